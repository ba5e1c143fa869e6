"""Defenses that are trained: X-Boundary, circuit breakers and the baselines (chapter 5)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "run": ["train"],
        "defense": ["adapter_folder", "train_defense"],
        "draw": ["draw_pairs"],
        "sets": ["REFUSAL", "Sets", "reference_sets"],
        "lora": ["adapted"],
        "official": ["Official", "official_sets"],
    },
)
