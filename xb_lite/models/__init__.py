"""Chat models by name, their precision, and adapters merged into them (chapter 0)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "loading": ["ALIGNED", "load_defended", "load_model", "precision_of"],
        "cached": ["DEFAULT"],
        "adapters": ["merged", "published_adapter", "read_run", "scale_adapter"],
        "likelihood": ["response_log_probs"],
    },
)
