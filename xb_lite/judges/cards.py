"""Requests and replies as cards for a page, each with what judges said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

GRID = "display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:10px"
CARD = "border:1px solid #7a7a7a;border-radius:6px;padding:4px 12px;overflow-wrap:anywhere"


def cards(
    requests: Sequence[str],
    responses: Sequence[str],
    said: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """HTML with one numbered card for each request and its response; numbers start at 1.

    Args:
        said: labels by judge, in the order of the requests; they stand below the response.

    Raises:
        ValueError: there are not as many requests, responses and labels.
    """
    columns = [responses, *(said or {}).values()]
    if any(len(column) != len(requests) for column in columns):
        raise ValueError(f"{len(requests)} requests, and not as many responses or labels.")
    made = []
    for place, (request, response) in enumerate(zip(requests, responses, strict=True)):
        labels = "; ".join(f"{name}: {labels[place]}" for name, labels in (said or {}).items())
        parts = [
            f"<p><strong>{place + 1}. User:</strong> {_text(request)}</p>",
            f"<p><strong>Model:</strong> {_text(response)}</p>",
            f"<p><em>{escape(labels)}</em></p>" if labels else "",
        ]
        made.append(f'<div style="{CARD}">{"".join(parts)}</div>')
    return f'<div style="{GRID}">{"".join(made)}</div>'


def _text(text: str) -> str:
    """Escaped, with single line breaks kept and no empty lines."""
    return "<br>".join(escape(line) for line in text.splitlines() if line.strip())
