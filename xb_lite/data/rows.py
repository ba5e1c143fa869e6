"""Rows of a benchmark file: from bytes in any known layout to dialogues, or to what is wrong.

JSON as in the official X-Boundary code, JSON lines, or CSV. Every fault has a row number and a
field; nothing raises from inside a library.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field


class BenchmarkError(ValueError):
    """A benchmark cannot be loaded; the message says which file and row, and what to do."""


@dataclass(frozen=True)
class BenchmarkItem:
    """One dialogue of a benchmark, as its user speaks it.

    ``id`` is the benchmark (or the file's name) and the row, since the files' own ids repeat.
    ``dialogue`` holds user messages only: one, or one a turn. ``target`` is the plain request that
    a reply is judged against; None means the prompt itself. An affirmative opening ("Sure, here
    is") is no target: it is in ``extra``, as every other field of the row is, under its own name.
    ``context`` is text that the request is about; it stands in the dialogue already.
    """

    id: str
    dialogue: list[dict[str, str]]
    target: str | None
    category: str | None
    extra: dict[str, object]
    context: str | None = None

    @property
    def turns(self) -> list[str]:
        """What the user says, turn by turn."""
        return [message["content"] for message in self.dialogue]


@dataclass(frozen=True)
class Layout:
    """The names a file has for things. ``dialogue``: a prompt, a list of turns or of messages.

    ``target`` is in every row; ``plain`` is the same where rows may leave it out. ``context`` is
    text that a request is about. ``keep``: per field, the values of the rows that belong to the
    benchmark; it counts only where the benchmark was asked for by name.
    """

    dialogue: str
    target: str | None = None
    plain: str | None = None
    category: str | None = None
    context: str | None = None
    keep: dict[str, list[str]] = field(default_factory=dict)

    @property
    def fields(self) -> set[str]:
        named = {self.dialogue, self.target, self.plain, self.category, self.context}
        return (named | self.keep.keys()) - {None}


class MalformedError(ValueError):
    """What is wrong with a row, worded to follow its number."""

    def __init__(self, problem: str, name: str | None = None) -> None:
        super().__init__(f" {problem}" if name is None else f", field {name!r}: {problem}")


PACKED = {  # first bytes of files that hold a table in another way
    b"\x1f\x8b": "compressed by gzip: unpack it (gunzip)",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet: unpack it, or save it as CSV",
    b"PAR1": "Parquet: save it as JSON lines (pandas.read_parquet(…).to_json(…, lines=True))",
    b"ARROW1": "Arrow: save it as JSON lines",
}

Rows = list[tuple[int, object]]  # row number from 1; a MalformedError stands for an unreadable row


def parse(
    data: bytes, source: str, layouts: Sequence[Layout], first: Layout | None = None
) -> tuple[Layout, Rows]:
    """The file's rows, of whatever format it is, and which of ``layouts`` they have: ``first``
    where its dialogue is there, otherwise the one of which most fields are.

    Raises:
        BenchmarkError: ``source`` is not text, is empty, or has none of the layouts.
    """
    for start, what in PACKED.items():
        if data.startswith(start):
            raise BenchmarkError(f"{source} is {what}, and read are JSON, JSON lines or CSV.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BenchmarkError(
            f"{source} is not UTF-8 text (byte {error.start}): save it as UTF-8."
        ) from None
    if "\0" in text:
        raise BenchmarkError(f"{source} is not text: it has zero bytes in it.")
    if not text.strip():
        raise BenchmarkError(f"{source} is empty.")
    fields, rows = (_json if text.lstrip()[0] in "{[" else _csv)(text, source)
    if not rows:
        raise BenchmarkError(f"{source} has no rows.")
    layout = max(
        layouts,
        key=lambda known: (known.dialogue in fields, known is first, len(known.fields & fields)),
    )
    if layout.dialogue not in fields:
        known = ", ".join(dict.fromkeys(known.dialogue for known in layouts))
        raise BenchmarkError(
            f"{source} has none of the fields that hold a dialogue ({known}); its fields are: "
            f"{', '.join(' '.join(field.split()) for field in sorted(fields))[:200] or 'none'}. "
            "For prompts of your own, one a row, call the column (in CSV the first line) prompt."
        )
    return layout, rows


def _json(text: str, source: str) -> tuple[set[str], Rows]:
    document = _loads(text)
    # Not splitlines(): it also cuts at characters that may stand inside a JSON string.
    lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if source.endswith(".jsonl") or (
        isinstance(document, MalformedError) and isinstance(_loads(lines[0][1]), dict)
    ):
        rows = [(number, _loads(line)) for number, line in lines]
    elif isinstance(document, MalformedError):
        raise BenchmarkError(f"{source}{document}.")
    else:
        listed = document.get("data") if isinstance(document, dict) else document
        if not isinstance(listed, list):
            raise BenchmarkError(
                f"{source} holds no list of rows: a JSON file is a list, or has one under 'data'."
            )
        rows = list(enumerate(listed, 1))
    return {name for _, row in rows if isinstance(row, dict) for name in row}, rows


def _loads(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except MalformedError as problem:
        return problem
    except json.JSONDecodeError as error:
        return MalformedError(f"is not JSON ({error})")
    except (ValueError, RecursionError):
        return MalformedError("is JSON that nests too deep or has a number too long to read")


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Of a field that is there twice the last would win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise MalformedError("is there twice", max(names, key=names.count))
    return found


def _csv(text: str, source: str) -> tuple[set[str], Rows]:
    table, broken = [], None
    try:
        for columns in csv.reader(io.StringIO(text, newline=""), strict=True):
            if columns:
                table.append(columns)
    except csv.Error as error:
        broken = MalformedError(f"is not CSV ({error}), nor can anything after it be read")
    header = [name.strip() for name in table[0]] if table else []
    if twice := [name for name in header if header.count(name) > 1]:
        raise BenchmarkError(f"{source} has two columns {twice[0]!r:.60}: leave one out.")
    rows: Rows = []
    for number, columns in enumerate(table[1:], 1):
        row: object = dict(zip(header, columns, strict=False))
        if len(columns) < len(header):
            row = MalformedError("is missing", header[len(columns)])
        elif len(columns) > len(header):
            row = MalformedError(f"has {len(columns)} columns, the header {len(header)}")
        rows.append((number, row))
    if broken is not None:
        rows.append((len(rows) + 1, broken))
    return set(header), rows


def belongs(row: object, keep: dict[str, list[str]]) -> bool:
    """Whether the row's fields have the values that ``keep`` asks for; raises MalformedError."""
    if not isinstance(row, dict):
        return True  # as_item says what is wrong with it
    return all(_text(row.get(name), name) in values for name, values in keep.items())


def as_item(row: object, layout: Layout, label: str) -> BenchmarkItem:
    """The row as an item with id ``label``; raises MalformedError."""
    if isinstance(row, MalformedError):
        raise row
    if not isinstance(row, dict):
        raise MalformedError(f"is {type(row).__name__}, not an object with fields")
    dialogue = _dialogue(row.get(layout.dialogue), layout.dialogue)
    if layout.target:
        target = _text(row.get(layout.target), layout.target)
    else:
        target = _optional(row, layout.plain)
    category, context = _optional(row, layout.category), _optional(row, layout.context)
    # The official HarmBench file has under "behavior" the request, all others have the category.
    if target is None and category is not None and category == dialogue[-1]["content"]:
        target, category = category, None
    if context is not None:  # joined as HarmBench and the official code do
        dialogue[-1]["content"] = in_context(context, dialogue[-1]["content"])
    used = {layout.dialogue, layout.target, layout.plain, layout.category}
    extra = {name: value for name, value in row.items() if name not in used}
    return BenchmarkItem(label, dialogue, target, category, extra, context)


FENCE = "\n\n---\n\n"  # HarmBench's, between a context and the request about it


def in_context(context: str, request: str) -> str:
    """A request behind what it is about."""
    return f"{context}{FENCE}{request}"


def _dialogue(value: object, name: str) -> list[dict[str, str]]:
    """User messages from a prompt, a list of prompts or a list of messages."""
    turns = [value] if isinstance(value, str) else value
    if value is None or turns == []:
        raise MalformedError("is missing" if value is None else "has no turns", name)
    if not isinstance(turns, list):
        raise MalformedError(f"is {type(value).__name__}, not a text or a list of turns", name)
    messages = []
    for i, turn in enumerate(turns, 1):
        place = name if isinstance(value, str) else f"{name}, turn {i}"
        message = {"role": "user", "content": turn} if isinstance(turn, str) else turn
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise MalformedError("is no text and no message with 'role' and 'content'", place)
        if message["role"] != "user":
            raise MalformedError("has another role than 'user'", place)
        messages.append({**message, "content": _text(message["content"], place)})
    return messages


def _optional(row: dict, name: str | None) -> str | None:
    value = row.get(name)
    blank = value is None or (isinstance(value, str) and not value.strip())
    return None if blank else _text(value, name)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise MalformedError(
            "is missing" if value is None else f"is {type(value).__name__}, no text", name
        )
    if not value.strip():
        raise MalformedError("is blank", name)
    try:
        value.encode()
    except UnicodeEncodeError:  # half a character, as JSON's \ud800 gives
        raise MalformedError("has characters that cannot be encoded", name) from None
    return value
