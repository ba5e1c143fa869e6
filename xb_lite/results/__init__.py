"""Results on disk, their statistics and tables."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "contract": ["read_result"],
        "frames": ["find", "frame", "published", "published_results"],
        "stats": ["difference", "mean", "mean_of_runs", "rate"],
        "tables": ["html_table"],
    },
)
