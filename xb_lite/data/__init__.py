"""What is asked of a model: the book's own sets, public sets, and the attacks on them."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "items": ["Item", "PREFILL", "attacked", "load_items", "plan"],
        "public": ["BENCHMARKS", "load_dialogues"],
        "training": ["TRAINING", "load_training"],
    },
)
