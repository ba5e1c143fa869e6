"""A subject is a model with a defense, under the name that results and caches know it by."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from xb_lite.files import digest, sha256_of
from xb_lite.models.adapter_files import WEIGHTS, read_run
from xb_lite.models.loading import last_name, load_defended, model_digest
from xb_lite.models.precision import Precision
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.server import RemoteBackend
from xb_lite.replies.types import Backend


@dataclass(frozen=True)
class Subject:
    """What is evaluated: ``name`` in paths and tables, ``digest`` of its weights, and what replies.

    ``defense`` is its name in paths; ``adapter`` what was trained, as in the results. ``method``
    and ``strength`` are for a defense that neither an adapter nor a prompt is, as steering.
    ``source`` is the version of a defense by prompt, where it says one.
    ``analyst`` is the digest of another model that a defense by prompt asks.
    ``date`` is what the model is told that it is, where its template tells.
    ``model`` and ``tokenizer`` are None behind a server, where capability is not measured.
    """

    name: str
    digest: str
    backend: Backend
    model: PreTrainedModel | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    defense: str = "none"
    adapter: dict | None = None
    prompt: str | None = None
    source: str | None = None
    method: str | None = None
    strength: float | None = None
    analyst: str | None = None
    date: str | None = None

    def identity(self, precision: Precision) -> dict[str, str]:
        """What its replies are cached under: all that decides them but the decoding.

        A server's precision is not known here.
        """
        weights = f" {self.adapter['digest']}" if self.adapter else ""
        return {
            "model": self.digest,
            "defense": f"{self.defense}{weights}",
            "precision": str(precision) if self.model else "the server's",
            **({"source": self.source} if self.source else {}),
            **({"analyst": self.analyst} if self.analyst else {}),
            **({"date": self.date} if self.date else {}),
        }


def local_subject(
    name: str, precision: Precision, adapter: str | os.PathLike[str] | None = None
) -> Subject:
    """A model on this machine, with the adapter in a folder merged into it; the folder's name is
    then the defense's.

    Raises:
        ModelError, FetchError: see ``load_model``.
        AdapterError: there is no adapter of this model in the folder.
        ValueError: the folder is named ``none``.
    """
    defense = "none" if adapter is None else last_name(adapter)
    if adapter is not None and defense == "none":
        raise ValueError(
            f"the adapter's folder {adapter} is named none, as a model without a defense is in "
            "results: rename it."
        )
    model, tokenizer = load_defended(name, precision, adapter)
    found = None
    if adapter is not None:
        run = (read_run(adapter) or {}).get("run")
        found = {"run": run, "digest": sha256_of(Path(adapter) / WEIGHTS)}
    backend = LocalBackend(model, tokenizer, precision=precision)
    return Subject(
        last_name(name),
        model_digest(name),
        backend,
        model,
        tokenizer,
        defense,
        found,
        date=getattr(tokenizer, "xb_date", None),
    )


def remote_subject(server: str, name: str) -> Subject:
    """A model behind an OpenAI-compatible server, under the server's own ``name`` for it; its
    digest is that name with the digest of the address, which no result and no log shows. Raises
    ValueError or RemoteError for a bad address or a missing key."""
    backend = RemoteBackend(server, name)
    return Subject(Path(name).name, f"{name} at a server {digest(backend.base_url)[:16]}", backend)
