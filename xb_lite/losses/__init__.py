"""The X-Boundary loss and one step of its training (chapter 4)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "terms": [
            "Terms",
            "centroid",
            "coefficients",
            "erase",
            "masked_mean",
            "retain",
            "separate",
            "total",
        ],
        "step": ["Reference", "step_terms"],
    },
)
