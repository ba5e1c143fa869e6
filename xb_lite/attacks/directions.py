"""Changes of the weights' effect that need no training: a direction ablated, an adapter undone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from xb_lite.attacks.inside import backend_of, numbers_of, plain
from xb_lite.attacks.running import Ask, Budgeted
from xb_lite.boundary.steering import refusal_direction
from xb_lite.corpora import SHORT_REFUSAL, load_corpus
from xb_lite.data.items import Item
from xb_lite.dialogues import as_dialogue
from xb_lite.hidden import decoder_layers, layers_at
from xb_lite.models.adapter_files import read_adapter
from xb_lite.models.likelihood import response_log_probs
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding

SHARES = (0.4, 0.5, 0.6, 0.7)  # of the depth; the source takes none above 0.8


def replying(subject: Subject) -> Ask:
    """One greedy attempt at each item."""

    def ask(items: Sequence[Item], decoding: Decoding) -> list[list[str]]:
        return [[reply.text] for reply in subject.backend.reply(plain(items), decoding)]

    return ask


@dataclass(frozen=True, kw_only=True)
class Ablation(Budgeted):
    """The refusal direction of the defended model itself taken out of everything that is written
    into its residual stream. Of the directions at ``SHARES`` of the depth, from ``prompts`` harmful
    and as many benign training prompts, the one is taken that makes a refusal least likely on
    ``tries`` harmful validation prompts.

    The placebo tries as many random directions.

    Source: Refusal is mediated by a single direction, arXiv 2406.11717.
    """

    name: ClassVar[str] = "ablated direction"
    source: ClassVar[str] = "arXiv 2406.11717"
    at_once: ClassVar[int] = 64
    prompts: int = 32
    tries: int = 8
    seed: int = 0

    @contextmanager
    def on(self, subject: Subject) -> Iterator[Ask]:
        backend_of(subject)
        with numbers_of(subject):
            directions = self._directions(subject)
            refusals = [self._refusal(subject, direction) for direction in directions]
        best = min(range(len(directions)), key=refusals.__getitem__)
        with ablated(subject.model, directions[best]):
            yield replying(subject)

    def _directions(self, subject: Subject) -> list[Float[Tensor, " dim"]]:
        if self.placebo:
            draw = torch.Generator().manual_seed(self.seed)
            dim = subject.model.config.get_text_config().hidden_size
            return [torch.randn(dim, generator=draw) for _ in SHARES]
        kinds = [
            [row.prompt for row in load_corpus(kind, "train")[: self.prompts]]
            for kind in ("harmful", "benign")
        ]
        model, tokenizer = subject.model, subject.tokenizer
        return [
            refusal_direction(model, tokenizer, *kinds, layer)
            for layer in dict.fromkeys(layers_at(model, SHARES))
        ]

    def _refusal(self, subject: Subject, direction: Float[Tensor, " dim"]) -> float:
        asked = [
            as_dialogue(row.prompt, SHORT_REFUSAL)
            for row in load_corpus("harmful", "validation")[: self.tries]
        ]
        with ablated(subject.model, direction):
            found = response_log_probs(subject.model, subject.tokenizer, asked)
        return sum(float(each.sum()) for each in found) / len(found)


@contextmanager
def ablated(model: nn.Module, direction: Float[Tensor, " dim"]) -> Iterator[None]:
    """Within, ``direction`` is projected out of the embeddings, of what every attention and MLP
    writes, and of every layer's output."""
    unit = direction / direction.norm()

    def project(_module: nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
        state = output[0] if isinstance(output, tuple) else output
        along = unit.to(state)
        state = state - (state @ along)[..., None] * along
        return (state, *output[1:]) if isinstance(output, tuple) else state

    modules = [model.get_input_embeddings()]
    for layer in decoder_layers(model):
        inner = (getattr(layer, name, None) for name in ("self_attn", "mlp"))
        modules += [layer, *(module for module in inner if module is not None)]
    handles = [module.register_forward_hook(project) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class Subtraction(Budgeted):
    """``factor`` times a guess of the defense's change is subtracted from the defended weights: the
    attacker has those alone, and the adapter of another defense of the same base model, of which
    the ``rank`` largest directions of every matrix are taken.

    The placebo subtracts random changes of the same rank and norm.

    Source: negated task vectors, arXiv 2212.04089; that low-rank defenses are easily undone,
    arXiv 2412.07097.
    """

    name: ClassVar[str] = "subtracted guess"
    source: ClassVar[str] = "task arithmetic, arXiv 2212.04089"
    at_once: ClassVar[int] = 64
    guess: str | os.PathLike[str]
    rank: int = 8
    factor: float = 1.0
    seed: int = 0

    @property
    def budget(self) -> dict[str, int | float | str]:
        return {**super().budget, "guess": os.path.basename(os.path.abspath(self.guess))}

    @contextmanager
    def on(self, subject: Subject) -> Iterator[Ask]:
        backend_of(subject)
        with changed(subject.model, self._changes()):
            yield replying(subject)

    def _changes(self) -> dict[str, Float[Tensor, "out in"]]:
        draw = torch.Generator().manual_seed(self.seed)
        adapter = read_adapter(self.guess)
        of = adapter.config
        if of.use_rslora or of.rank_pattern or of.alpha_pattern:
            raise ValueError(
                f"{self.guess} scales its matrices one by one or by the root of the rank: guess an "
                "adapter with one lora_alpha over r."
            )
        scale = of.lora_alpha / of.r
        found = {}
        for name, (a, b) in adapter.places.items():
            change = leading(scale * b.float() @ a.float(), self.rank)
            if self.placebo:
                change = random_like(change, self.rank, draw)
            found[name] = -self.factor * change
        return found


def leading(change: Float[Tensor, "out in"], rank: int) -> Float[Tensor, "out in"]:
    """Its largest ``rank`` directions."""
    u, s, v = torch.svd_lowrank(change, q=min(rank + 8, *change.shape), niter=4)
    return (u[:, :rank] * s[:rank]) @ v[:, :rank].T


def random_like(
    change: Float[Tensor, "out in"], rank: int, draw: torch.Generator
) -> Float[Tensor, "out in"]:
    """A random change of that rank, with the norm of ``change``."""
    out, into = change.shape
    random = torch.randn(out, rank, generator=draw) @ torch.randn(rank, into, generator=draw)
    return random * (change.norm() / random.norm())


@contextmanager
@torch.no_grad()
def changed(model: nn.Module, changes: dict[str, Float[Tensor, "out in"]]) -> Iterator[None]:
    """Within, ``changes`` are added to the weights of the linear layers of these names.

    Raises:
        ValueError: the model has no such layer, or of another shape; it is then as before.
    """
    weights = {}
    for name, change in changes.items():
        try:
            weights[name] = model.get_submodule(name).weight
        except AttributeError:
            raise ValueError(f"the model has no layer {name}, of which the guess is.") from None
        if weights[name].shape != change.shape:
            shapes = f"{tuple(change.shape)}, not {tuple(weights[name].shape)}"
            raise ValueError(f"the guess for {name} is {shapes}: it is of another model.")
    before = {name: weight.clone() for name, weight in weights.items()}
    for name, weight in weights.items():
        weight += changes[name].to(weight)
    try:
        yield
    finally:
        for name, weight in weights.items():
            weight.copy_(before[name])
