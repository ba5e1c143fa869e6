"""One style for every figure: safe for color-blind eyes, legible on light and dark pages.

The three kinds of prompts keep their color (Okabe and Ito's palette) and their marker everywhere,
so that neither is needed to tell them apart. Figures have a light ground of their own, which reads
as a card on a dark page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import matplotlib as mpl
from IPython.display import HTML
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib_inline.backend_inline import set_matplotlib_formats
from numpy import asarray, ndarray
from transformers import PreTrainedTokenizerBase

from xb_lite.dialogues import Encoding

GROUND = "#fbfbfa"
INK = "#2b2b2b"
GRID = "#dededb"

# harmful, boundary-safe, benign, then what else a figure needs
COLORS = {
    "harmful": "#D55E00",
    "boundary-safe": "#0072B2",
    "benign": "#009E73",
    "control": "#7A7A7A",
    "accent": "#CC79A7",
}

TOKEN_SHADES = {"sink": "#e3c3d3", "prompt": "#dededb", "response": "#bcd6e8"}
MARKERS = {"harmful": "X", "boundary-safe": "o", "benign": "s"}

STYLE = {
    "figure.facecolor": GROUND,
    "axes.facecolor": GROUND,
    "savefig.facecolor": GROUND,
    "figure.dpi": 110,
    "figure.figsize": (7.2, 4.0),
    "figure.constrained_layout.use": True,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "axes.prop_cycle": mpl.cycler(color=list(COLORS.values())),
    "svg.hashsalt": "xb_lite",  # the same figure gives the same bytes
}


def use_style() -> None:
    """Use this style for all figures from here on; in a notebook, as SVG."""
    mpl.rcParams.update(STYLE)
    set_matplotlib_formats("svg", metadata={"Date": None})


def scatter_kinds(
    ax: Axes, points: Float[ndarray, "item 2"], kinds: Sequence[str], **style: object
) -> None:
    """Scatter ``points`` ``[item, 2]``, each in the color and marker of its kind.

    Raises:
        ValueError: a kind that is unknown, or not as many as points.
    """
    points, kinds = asarray(points), asarray(kinds)
    if points.ndim != 2 or points.shape[1] != 2 or kinds.shape != points.shape[:1]:
        raise ValueError(
            f"points of shape {points.shape} and kinds of shape {kinds.shape}: every row of "
            "[item, 2] has one kind."
        )
    if unknown := sorted({*kinds.tolist()} - MARKERS.keys()):
        raise ValueError(f"kind {unknown[0]!r:.60} is not one of {', '.join(MARKERS)}.")
    for kind, marker in MARKERS.items():
        chosen = points[kinds == kind]
        if len(chosen):
            look = {"s": 26, "alpha": 0.75, "linewidths": 0.4, "edgecolors": GROUND, **style}
            ax.scatter(*chosen.T, color=COLORS[kind], marker=marker, label=kind, **look)


def show_tokens(tokenizer: PreTrainedTokenizerBase, encoding: Encoding) -> HTML:
    """The tokens of a dialogue, shaded by the mask they belong to, with a legend."""

    def shaded(text: str, mask: str) -> str:
        look = (
            f"background:{TOKEN_SHADES[mask]};color:{INK};padding:1px 3px;margin:1px;"
            "border-radius:3px;display:inline-block;white-space:pre"
        )
        return f'<span style="{look}">{escape(text)}</span>'

    legend = [shaded(mask, mask) for mask in TOKEN_SHADES]
    tokens = []
    for i, token in enumerate(encoding.input_ids):
        mask = next(mask for mask in TOKEN_SHADES if encoding.mask(mask)[i])
        tokens.append(shaded(tokenizer.decode(token).replace("\n", "↵"), mask))
    return HTML(
        f'<div style="margin-bottom:8px">{" ".join(legend)}</div>'
        f'<div style="line-height:1.9">{"".join(tokens)}</div>'
    )
