"""The guard's detectors on the reference model, ready to use: the probe is fitted to replies that
this machine makes, since no harmful reply comes with the book."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from xb_lite.corpora import load_refusals
from xb_lite.data.items import Item, attacked, load_items, spread
from xb_lite.guard.detectors import GibberishDetector, ProbeDetector
from xb_lite.guard.plane import Plane, fitted_plane
from xb_lite.judges.gibberish import Gibberish
from xb_lite.models.cached import DEFAULT
from xb_lite.models.loading import precision_of
from xb_lite.models.precision import Precision
from xb_lite.replies.cache import ask
from xb_lite.replies.subjects import Subject, local_subject
from xb_lite.replies.types import Decoding

LAYER_SHARE = 2 / 3  # of the depth
DECODING = Decoding(48)
LOOK = 60  # characters: about 16 tokens, after which a guard looks


def gibberish_detector(subject: Subject, precision: Precision) -> GibberishDetector:
    """The gibberish judge with ``subject`` as the model that reads."""
    return GibberishDetector(Gibberish(subject.model, subject.tokenizer, precision))


def probe_detector(
    subject: Subject,
    precision: Precision,
    limit: int | None = 30,
    alarms: float = 0.02,
    decoding: Decoding = DECODING,
) -> ProbeDetector:
    """A probe fitted to what ``subject``, an undefended model, replies to the prompts of the train
    split; its threshold is set on the validation split.

    *Bad* are prefilled replies to harmful prompts. *Good* are replies to boundary-safe and benign
    prompts, with the prefill and without, and refusals of harmful ones. All are read after every
    ``LOOK`` characters, as a guard does.

    Args:
        limit: prompts of each kind.
        alarms: share of harmless validation replies that may be ended.

    Raises:
        ValueError: as ``fitted_plane``; or the subject has no model on this machine.
    """
    if subject.model is None:
        raise ValueError("a probe reads hidden states: give a model on this machine.")
    depth = subject.model.config.get_text_config().num_hidden_layers
    layer = max(1, round(LAYER_SHARE * depth)) - 1
    reader = ProbeDetector(
        subject.model, subject.tokenizer, precision, Plane(layer, np.zeros(1), np.inf)
    )

    def read(items: Sequence[Item]) -> list[Float[np.ndarray, "look dim"]]:
        said = ask(subject.backend, items, decoding, subject=subject.identity(precision))
        pairs = [(item.request, turns[-1].text) for item, turns in zip(items, said, strict=True)]
        return looks(reader, pairs)

    bad = read(attacked(spread(load_items("harmful", "train"), limit), "prefill"))
    good = read(_harmless("train", limit)) + looks(reader, _refusals("train", limit))
    held_out = read(_harmless("validation", limit)) + looks(reader, _refusals("validation", limit))
    plane = fitted_plane(layer, np.concatenate(bad), np.concatenate(good), held_out, alarms)
    return ProbeDetector(subject.model, subject.tokenizer, precision, plane)


def looks(
    reader: ProbeDetector, pairs: Sequence[tuple[str, str]]
) -> list[Float[np.ndarray, "look dim"]]:
    """States of each reply to its request, at every look that a guard takes at it."""
    read = [
        (i, request, said[:end])
        for i, (request, said) in enumerate(pairs)
        if said.strip()
        for end in [*range(LOOK, len(said), LOOK), len(said)]
    ]
    states = reader.states([(request, said) for _, request, said in read])
    owner = np.array([i for i, *_ in read])
    return [states[owner == i] for i in range(len(pairs)) if (owner == i).any()]


def detectors_named(names: Sequence[str]) -> list[GibberishDetector | ProbeDetector]:
    """``gibberish`` and ``probe``, both read with the default model, as fast as the machine can.

    Raises:
        ValueError: there is no such detector; before a model is loaded.
    """
    made = {"gibberish": gibberish_detector, "probe": probe_detector}
    if wrong := [name for name in names if name not in made]:
        raise ValueError(f"there is no detector {wrong[0]!r}; there are {', '.join(made)}.")
    precision = precision_of(DEFAULT)
    subject = local_subject(DEFAULT, precision)
    return [made[name](subject, precision) for name in names]


def _harmless(split: str, limit: int | None) -> list[Item]:
    """Plain and with the prefill, or the probe would read that off."""
    plain = [
        item
        for kind in ("boundary-safe", "benign")
        for item in spread(load_items(kind, split), limit)
    ]
    return [*plain, *attacked(plain, "prefill")]


def _refusals(split: str, limit: int | None) -> list[tuple[str, str]]:
    texts = [row.text for row in load_refusals()]
    items = spread(load_items("harmful", split), limit)
    return [(item.request, texts[i % len(texts)]) for i, item in enumerate(items)]
