"""The boundary explorer: an interactive map of prompts by layer, defense and projection.

``display(HTML(explorer(...)))`` in a notebook; where scripts do not run its first view is a
picture. The markup is ``explorer.html``, its look ``explorer.css``, what it does ``explorer.js``,
built on ``xb_lite.elements``; this module checks the data and packs them. Used in
02_boundary.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from math import floor, log10
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from xb_lite.elements import element
from xb_lite.figures import COLORS, MARKERS

# The markers of the figures as SVG paths around the origin.
SHAPES = {
    "X": "M-2.7 5.4L0 2.7L2.7 5.4L5.4 2.7L2.7 0L5.4-2.7"
    "L2.7-5.4L0-2.7L-2.7-5.4L-5.4-2.7L-2.7 0L-5.4 2.7Z",
    "o": "M-4.6 0a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0-9.2 0Z",
    "s": "M-4.2-4.2H4.2V4.2H-4.2Z",
}

PLACES = 1024  # places along either axis of a map: finer than the pixels of a screen
STEPS = 100  # least number of thresholds along the strip; at most 2.5 times as many


def explorer(
    maps: Mapping[str, Float[np.ndarray, "defense layer item 2"]],
    scores: Float[np.ndarray, "defense layer item"],
    kinds: Sequence[str],
    prompts: Sequence[str],
    defenses: Sequence[str],
    layers: Sequence[int],
    start: tuple[int, int] = (0, 0),
) -> str:
    """HTML in which a reader chooses the map, reads prompts and drags a threshold of refusal.

    An item is refused where its score is at or above the threshold. The same data give the same
    text. 240 items, three defenses, ten layers and three projections take about 200 kB.

    Args:
        maps: by the name of the projection, where each item lies, ``[defense, layer, item, 2]``.
            The axes are shared by all defenses at a layer, so a projection should be fitted to
            them together, or to the first. The first projection is shown first.
        scores: the harm score of each item, ``[defense, layer, item]``, larger is more harmful.
            The threshold starts at 0, where the plane of a probe is.
        kinds: ``"harmful"``, ``"boundary-safe"`` or ``"benign"``, of each item.
        prompts: what is shown of each item; redact here what no page should show.
        defenses: names; the first is what the others' moves are drawn from.
        layers: decoder layers, counted from 0.
        start: the defense and the layer shown first, as indices into these two.

    Raises:
        ValueError: nothing to show, lengths or shapes that do not agree, an unknown kind, a
            number that is not finite, or a start that is not there.
    """
    maps = {name: np.asarray(points, dtype=np.float64) for name, points in maps.items()}
    scores = np.asarray(scores, dtype=np.float64)
    _check(maps, scores, kinds, prompts, defenses, layers, start)
    places = {name: _places(points) for name, points in maps.items()}
    buckets, scales = _buckets(scores)
    shown = [kind for kind in COLORS if kind in kinds]
    first = next(iter(places))
    defense, layer = start
    data = {
        "kinds": [shown.index(kind) for kind in kinds],
        "names": shown,
        "prompts": list(prompts),
        "projections": list(places),
        "defenses": list(defenses),
        "layers": [int(layer) for layer in layers],
        "maps": [_packed(points, "<u2") for points in places.values()],
        "scores": _packed(buckets, "u1"),
        "scales": scales,
        "places": PLACES,
    }
    parts = {
        "colors": "".join(f"--{kind}:{COLORS[kind]};" for kind in MARKERS),
        "n": len(kinds),
        "first": escape(f"{first}, {defenses[defense]}, layer {layers[layer]}"),
        "reference": escape(defenses[0]),
        "one_defense": "hidden" if len(defenses) == 1 else "",
        "projections": _choices("projection", list(places), 0),
        "defenses": _choices("defense", defenses, defense),
        "layer": layer,
        "last_layer": len(layers) - 1,
        "layer_name": layers[layer],
        "legend": "".join(
            f"<li>{_glyph(kind)} {kind} ({list(kinds).count(kind)})</li>" for kind in shown
        ),
        "glyphs": "".join(f"<i>{_glyph(kind)}</i>" for kind in shown),
        "rows": len(shown),
        "counts": "".join(
            f"<li>{_glyph(kind)} <b></b><span></span><small></small></li>" for kind in shown
        ),
        "points": "".join(map(_point, kinds, places[first][defense, layer])),
    }
    return element(Path(__file__).with_name("explorer"), data, parts)


def _check(maps, scores, kinds, prompts, defenses, layers, start) -> None:
    if not (maps and len(kinds) and len(defenses) and len(layers)):
        raise ValueError(
            f"nothing to explore: {len(maps)} maps, {len(kinds)} items, {len(defenses)} defenses, "
            f"{len(layers)} layers; one of each is the least."
        )
    if len(prompts) != len(kinds):
        raise ValueError(f"{len(prompts)} prompts for {len(kinds)} kinds; one of each an item.")
    unknown = sorted({str(kind) for kind in kinds} - set(MARKERS))
    if unknown:
        raise ValueError(f"unknown kinds {unknown}; an item is one of {list(MARKERS)}.")
    shape = (len(defenses), len(layers), len(kinds))
    for name, values, expected in [
        ("scores", scores, shape),
        *((f"the map {name!r}", points, (*shape, 2)) for name, points in maps.items()),
    ]:
        if values.shape != expected:
            raise ValueError(
                f"{name}: shape {values.shape}; {shape[0]} defenses, {shape[1]} layers and "
                f"{shape[2]} items make {expected}."
            )
        if not np.isfinite(values).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise ValueError(f"{name}: not finite at {where} (defense, layer, item, ...).")
    if not (0 <= start[0] < shape[0] and 0 <= start[1] < shape[1]):
        raise ValueError(
            f"start {tuple(start)}: indices of one of {shape[0]} defenses and {shape[1]} layers."
        )


def _places(points: Float[np.ndarray, "defense layer item 2"]) -> Int[np.ndarray, "d l i 2"]:
    """Where points lie between the ends of their layer's axes, which all defenses share."""
    low, high = (end(axis=(0, 2), keepdims=True) for end in (points.min, points.max))
    middle, half = (low + high) / 2, np.where(high > low, (high - low) / 2, 1)
    return np.rint(((points - middle) / half + 1) / 2 * (PLACES - 1)).astype(int)


def _buckets(
    scores: Float[np.ndarray, "defense layer item"],
) -> tuple[Int[np.ndarray, "defense layer item"], list[tuple[int, int, float]]]:
    """Scores as steps of each layer's strip, and of each strip its first step, count and width.

    Threshold ``p`` of a strip is ``(first + p) * width``; a score is at or above it exactly where
    its step is at least ``p``, so that counts by steps are counts by scores.
    """
    buckets, scales = np.empty(scores.shape, dtype=int), []
    for layer, at in enumerate(np.moveaxis(scores, 1, 0)):
        span, size = at.max() - at.min(), np.abs(at).max()
        if span <= 1e-9 * size or not size:  # all the same, but for rounding
            span = size or 1.0
        width = _round_step(span)
        steps = np.floor(at / width)
        steps -= steps * width > at  # the quotient was rounded up
        steps += (steps + 1) * width <= at  # or down
        first = int(steps.min())
        buckets[:, layer] = steps - first
        scales.append((first, int(steps.max()) - first + 1, width))
    return buckets, scales


def _round_step(span: float) -> float:
    """1, 2 or 5 times a power of ten, ``STEPS`` times or more in ``span``."""
    power = floor(log10(span / STEPS))
    power -= 10.0**power > span / STEPS  # the logarithm was rounded up
    factor = max(factor for factor in (1, 2, 5) if factor * 10.0**power <= span / STEPS)
    return float(f"{factor}e{power}")  # as a person would write it


def _packed(values: np.ndarray, dtype: str) -> str:
    # Without "/": letters after one could look like the path of a file.
    return base64.urlsafe_b64encode(values.astype(dtype).tobytes()).decode()


def _choices(name: str, labels: Sequence[str], chosen: int) -> str:
    return "".join(
        f'<label><input type="radio" name="{name}" value="{i}"{" checked" * (i == chosen)}> '
        f"<span>{escape(label)}</span></label>"
        for i, label in enumerate(labels)
    )


def _glyph(kind: str) -> str:
    shape = f'<path class="{kind}" d="{SHAPES[MARKERS[kind]]}"/>'
    return f'<svg class="glyph" viewBox="-7 -7 14 14" aria-hidden="true">{shape}</svg>'


def _point(kind: str, place: Int[np.ndarray, " 2"]) -> str:
    """A marker at a place in percent of the map, as ``explorer.js`` puts it too."""
    x, y = (3 + 94 * part / (PLACES - 1) for part in (place[0], PLACES - 1 - place[1]))
    where = f"translate({x:.1f}%,{y:.1f}%)"
    return f'<path class="{kind}" d="{SHAPES[MARKERS[kind]]}" style="transform:{where}"/>'
