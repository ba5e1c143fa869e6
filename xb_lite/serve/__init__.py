"""A defended model as an OpenAI-compatible server (chapter 7)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "proxy": ["application", "in_background", "listen", "serve"],
        "local": ["LocalModel"],
        "upstreams": ["RemoteModel"],
    },
)
