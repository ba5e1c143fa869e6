"""Replies of a chat model, on this machine or behind a server, asked once and kept (chapter 3)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "types": ["Decoding", "Reply"],
        "local": ["LocalBackend"],
        "server": ["RemoteBackend"],
        "cache": ["ask"],
        "subjects": ["Subject", "local_subject", "remote_subject"],
    },
)
