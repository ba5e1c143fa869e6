"""The training data of the official X-Boundary code: four public files, none of them in this
package.

Each is fetched by whoever asks for it, from its own home at one revision (``training.json`` has
addresses, licences and digests), or read from a file of one's own in the same layout: JSON, JSON
lines, or of UltraChat Parquet. How they are put together is ``training.official``'s.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xb_lite.data.fetching import Remote, fetched
from xb_lite.data.rows import BenchmarkError

PARQUET = b"PAR1"  # its first bytes


@dataclass(frozen=True)
class TrainingFile:
    """A file of training data and its home; ``rows`` as published, ``fields`` that are read."""

    name: str
    title: str
    licence: str
    home: str
    url: str
    blob: str | None
    sha256: str | None
    rows: int
    fields: Sequence[str]

    @property
    def remote(self) -> Remote:
        own = f"{self.name}=FILE behind --data official"
        return Remote(self.name, self.title, self.url, own, self.sha256, self.blob)


def _read_specs() -> dict[str, TrainingFile]:
    specs = json.loads(Path(__file__).with_name("training.json").read_text(encoding="utf-8"))
    return {name: TrainingFile(name, **fields) for name, fields in specs.items()}


TRAINING = _read_specs()


def load_training(name: str, path: str | os.PathLike[str] | None = None) -> list[dict]:
    """The rows of one of ``TRAINING``, as they are in its file.

    A fetched file has as many rows as published, or is refused; of one's own another number is
    fine. Where no digest is known beforehand, the first fetch records it and says so.

    Args:
        path: your own copy, in the same layout.

    Raises:
        BenchmarkError: there is no such set or file, it cannot be fetched, is not the published
            one, or a row lacks a field.
    """
    if name not in TRAINING:
        raise BenchmarkError(f"There is no training set {name!r}; sets are {', '.join(TRAINING)}.")
    known = TRAINING[name]
    if path is None:

        def check(data: bytes) -> None:
            rows = _rows(data, known, known.url)
            if len(rows) != known.rows:
                raise BenchmarkError(f"{known.url} has {len(rows)} rows, not {known.rows}.")

        source, data, new = fetched(known.remote, "training", check)
        if new and not known.remote.is_pinned:
            warnings.warn(
                f"no digest of {known.title} was known: that of {source} is recorded now.",
                stacklevel=2,
            )
    else:
        source = Path(path).expanduser()
        try:
            data = source.read_bytes()
        except OSError as error:
            raise BenchmarkError(
                f"{source} cannot be read ({error.strerror or error}): give a file in the layout "
                f"of {known.title}."
            ) from None
    return _rows(data, known, str(source))


def _rows(data: bytes, known: TrainingFile, source: str) -> list[dict]:
    rows = _parquet(data, source) if data.startswith(PARQUET) else _json(data, source)
    if not rows:
        raise BenchmarkError(f"{source} has no rows.")
    for number, row in enumerate(rows, 1):
        if not isinstance(row, Mapping):
            raise BenchmarkError(f"{source}, row {number} is no object with fields.")
        for field in known.fields:
            value = row.get(field)
            fine = _is_dialogue(value) if field == "messages" else isinstance(value, str)
            if not fine:
                kind = "a list of messages" if field == "messages" else "a text"
                raise BenchmarkError(f"{source}, row {number}, field {field!r}: is not {kind}.")
    return rows


def _is_dialogue(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(m, Mapping)
        and isinstance(m.get("role"), str)
        and isinstance(m.get("content"), str)
        for m in value
    )


def _json(data: bytes, source: str) -> list:
    try:
        text = data.decode("utf-8-sig")
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise BenchmarkError(f"{source} is neither JSON nor JSON lines ({error}).") from None


def _parquet(data: bytes, source: str) -> list[dict]:
    try:
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise BenchmarkError(f"{error}: pip install 'xb-lite[official]' brings it.") from error
    try:
        return read_table(io.BytesIO(data)).to_pylist()
    except Exception as error:  # pyarrow's own, of many kinds
        raise BenchmarkError(f"{source} is no Parquet file ({error}).") from None
