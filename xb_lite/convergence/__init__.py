"""Optimal transport between samples, and the bounds of the paper's argument (chapter 6)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "transport": [
            "k_variance",
            "paired_difference",
            "power_law",
            "sliced_estimate",
            "wasserstein1",
        ],
        "bounds": [
            "cluster_bound",
            "coverings",
            "diameter",
            "normalised_margin",
            "weed_bach_bound",
        ],
    },
)
