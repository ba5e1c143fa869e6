"""What a recipe takes before it is run: memory, time and disk by a model's config alone (chapter
9)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cards": ["CARDS", "Card"],
        "estimates": ["Estimate", "estimate", "estimate_table"],
        "shapes": ["Shape", "shape_of"],
    },
)
