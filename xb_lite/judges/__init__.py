"""Who says whether a reply complied, refused, evaded or is gibberish (chapter 3)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "strings": ["INTENTION_ANALYSIS", "XSTEST", "X_BOUNDARY", "agreement"],
        "gibberish": ["Gibberish"],
        "service": ["Service"],
        "classifiers": ["harmbench", "llama_guard"],
        "named": ["judges", "judges_named"],
    },
)
