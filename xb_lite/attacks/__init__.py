"""Attacks that know the defense, each with its budget, its source and a placebo (chapter 8)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "running": ["Ask", "Attack", "Budgeted", "Tried", "rows_of", "run"],
        "catalog": ["ATTACKS", "attack_named"],
        "table": ["where_it_breaks"],
    },
)
