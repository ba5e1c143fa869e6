"""Intention Analysis and other defenses by prompt (chapter 7)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "prompts": ["first_stage", "restates", "second_stage"],
        "defenses": [
            "DEFENSES",
            "Defended",
            "by_prompt",
            "defense_named",
            "prompted",
        ],
        "stages": ["analyse", "two_stage"],
    },
)
