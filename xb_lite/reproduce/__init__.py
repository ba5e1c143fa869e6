"""The book's results from one command: what they are, and making what is missing."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "manifest": ["Manifest", "Plan", "Setting", "load_manifest", "path_of"],
        "status": ["Task", "tasks_of"],
        "runner": ["reproduce"],
    },
)
