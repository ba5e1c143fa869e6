"""Where harmful and boundary-safe states lie, and how far a defense moves them (chapter 2)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "probes": ["probe"],
        "separability": ["published_scores", "separation"],
        "angles": ["principal_angles"],
        "displacements": ["displacement", "times_as_far"],
        "matching": ["matched", "word_matched"],
        "steering": ["steered"],
        "interactive": ["explorer"],
    },
)
