"""The sizes of a model, from its config alone: nothing else of it is fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from huggingface_hub import (
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError

from xb_lite.models.cached import DEFAULT, SPECS, ModelSpec

KNOWN = Path(__file__).with_name("shapes.json")
SOON = 5.0  # seconds in which the hub has to answer
LAYER_NORMS = {"layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "do_layer_norm_before"}


class ShapeError(ValueError):
    """A model's sizes cannot be had, or are not those of a plain decoder."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A decoder as Llama, Mistral and Qwen2 are: names as in their ``config.json``.

    Example:
        >>> shape_of("meta-llama/Meta-Llama-3-8B-Instruct").parameters
        8030261248
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    head_dim: int | None = None

    @property
    def query(self) -> int:
        """Width of all queries together."""
        head = self.head_dim or self.hidden_size // self.num_attention_heads
        return head * self.num_attention_heads

    @property
    def keys(self) -> int:
        """Width of all keys together, and of all values."""
        return self.query // self.num_attention_heads * self.num_key_value_heads

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """In and out of each linear map of a decoder layer."""
        dim, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (dim, self.query),
            "k_proj": (dim, self.keys),
            "v_proj": (dim, self.keys),
            "o_proj": (self.query, dim),
            "gate_proj": (dim, inner),
            "up_proj": (dim, inner),
            "down_proj": (inner, dim),
        }

    @property
    def layer_weights(self) -> int:
        """Weights of the linear maps of one decoder layer."""
        return sum(a * b for a, b in self.linear.values())

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        bias = self.attention_bias * (self.query + 2 * self.keys)
        layer = self.layer_weights + 2 * self.hidden_size + bias
        tables = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.num_hidden_layers * layer + tables + self.hidden_size

    def lora_parameters(self, layers: int, rank: int) -> int:
        """Of LoRA on all linear maps of so many layers."""
        return layers * rank * sum(a + b for a, b in self.linear.values())


def shape_of(model: str | os.PathLike[str]) -> Shape:
    """Sizes of a model for ``load_model``: those of the models of the package's recipes are in it;
    of a folder its ``config.json`` is read, of any other model of the hub fetched (a few kB).

    Raises:
        ShapeError: there is no such model, its config cannot be had, or it is another kind of
            model.
    """
    name = str(model)
    spec = spec_of(name)
    known = _known()
    if (hub := spec.hub if spec else name) in known:
        shape = Shape(**known[hub])
        # In Qwen's files the output matrix lies beside the embeddings that it is tied to.
        untied = spec is not None and spec.parameters != shape.parameters
        return replace(shape, tie_word_embeddings=False) if untied else shape
    try:
        path = Path(name) if os.path.isdir(name) else None
        if path is None and (os.path.isabs(name) or name.startswith((".", "~"))):
            raise OSError("there is no such folder")
        file = path / "config.json" if path else _from_hub(name, "config.json")
        config = json.loads(Path(file).read_text(encoding="utf-8"))
    except Exception as error:  # the hub's client has its own errors, by version
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ShapeError(f"the config of {name} cannot be had ({first}).") from error
    return from_config(name, config)


def spec_of(name: str) -> ModelSpec | None:
    """The spec of a model of the package; of an aligned one that of the model that was aligned."""
    return SPECS.get(DEFAULT if name.startswith(f"{DEFAULT}-aligned") else name)


def from_config(name: str, config: Mapping[str, object]) -> Shape:
    """The shape in a ``config.json``.

    Raises:
        ShapeError: a size is missing, the model has experts, or it is another kind of model.
    """
    if LAYER_NORMS & config.keys():  # the sums are right of decoders with RMS norms
        kind = config.get("model_type", "one without a type")
        raise ShapeError(f"{name} is of another kind ({kind}); an estimate is of plain decoders.")
    found = {field: config[field] for field in Shape.__dataclass_fields__ if field in config}
    if str(config.get("model_type", "")).startswith("qwen2"):
        found["attention_bias"] = True  # not in its config
    found.setdefault("num_key_value_heads", found.get("num_attention_heads"))
    if any(name.endswith("experts") for name in config):  # each kind of model names them otherwise
        raise ShapeError(f"{name} has experts; an estimate is of plain decoders alone.")
    try:
        return Shape(**found)
    except TypeError as error:
        raise ShapeError(f"the config of {name} lacks a size: {error}.") from None


def _from_hub(name: str, file: str) -> str:
    """Where a file of a model lies, fetched or kept from before. Without a connection
    ``hf_hub_download`` would try again for 23 seconds; so the hub is asked once before."""
    url = hf_hub_url(name, file)
    try:
        get_hf_file_metadata(url, timeout=SOON)
    except HfHubHTTPError:
        pass  # it is there, and says so again
    except Exception as error:  # of the network, by the client's version
        if isinstance(kept := try_to_load_from_cache(name, file), str):
            return kept
        raise OSError("no connection to the hub, and it is not in its cache") from error
    return hf_hub_download(name, file)


@cache
def _known() -> dict[str, dict[str, object]]:
    return json.loads(KNOWN.read_text(encoding="utf-8"))
