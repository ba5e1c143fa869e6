"""Public benchmarks by name, or from a file of your own.

Nothing of the data is in this package. A benchmark is fetched from its own home, at one pinned
revision, on the machine of whoever asks for it (``benchmarks.json`` has addresses, licences and
field names); its digest is recorded at the first fetch and checked from then on. A file of your own
is read by what is in it: JSON as in the official X-Boundary code, JSON lines, or CSV.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.request
import warnings
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tqdm.auto import tqdm

from xb_lite.data.published import check_published
from xb_lite.data.rows import (
    BenchmarkError,
    BenchmarkItem,
    Layout,
    MalformedError,
    as_item,
    belongs,
    parse,
)
from xb_lite.files import cache_folder, write_whole

TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Benchmark:
    """A benchmark and its home; ``url`` is its file at one revision, None if none is confirmed.

    ``kind`` is ``"harmful"`` or ``"boundary-safe"``.
    """

    name: str
    title: str
    kind: str
    licence: str
    layout: Layout
    home: str
    url: str | None


def _read_specs() -> tuple[list[Layout], dict[str, Benchmark]]:
    specs = json.loads(Path(__file__).with_name("benchmarks.json").read_text(encoding="utf-8"))
    layouts = {name: Layout(**fields) for name, fields in specs["layouts"].items()}
    benchmarks = {
        name: Benchmark(name, **{**fields, "layout": layouts[fields["layout"]]})
        for name, fields in specs["benchmarks"].items()
    }
    return list(layouts.values()), benchmarks


LAYOUTS, BENCHMARKS = _read_specs()


def load_dialogues(
    name_or_path: str | os.PathLike[str],
    *,
    path: str | os.PathLike[str] | None = None,
    skip_malformed: bool = False,
) -> list[BenchmarkItem]:
    """The dialogues of a public benchmark, or of a file in one of the known layouts.

    Args:
        name_or_path: a name in ``BENCHMARKS``, else a file.
        path: your own copy of the named benchmark, in its own layout or the official code's. Warns
            where it has not as many items as the set is published with.
        skip_malformed: leave malformed rows out, with one warning that names the first of them.

    Raises:
        BenchmarkError: there is no such benchmark or file, it cannot be fetched or is not the one
            fetched first, it is no benchmark, or a row is malformed.
    """
    benchmark = BENCHMARKS.get(os.fspath(name_or_path))
    if path is None and benchmark is not None:
        source, data = _cached(benchmark)
    elif path is not None and benchmark is None:
        raise BenchmarkError(f"There is no benchmark {str(name_or_path)!r}; {_names()}.")
    else:
        source = Path(os.path.expanduser(name_or_path if path is None else path))
        data = _read(source, or_name=path is None)
    layout, rows = parse(data, str(source), LAYOUTS)
    label = source.stem if benchmark is None else benchmark.name
    keep = layout.keep if benchmark is not None and layout is benchmark.layout else {}
    items, problems = [], []
    for number, row in rows:
        try:
            if belongs(row, keep):
                items.append(as_item(row, layout, f"{label}-{number}"))
        except MalformedError as problem:
            if not skip_malformed:
                raise BenchmarkError(
                    f"{source}, row {number}{problem}; correct that row or take it out (in "
                    "Python skip_malformed=True leaves such rows out)."
                ) from None
            problems.append(f"row {number}{problem}")
    first = "; ".join(problems[:3]) + (" …" if len(problems) > 3 else "")
    if not items:
        raise BenchmarkError(f"{source} has no row that can be used{first and f' ({first})'}.")
    if problems:
        warnings.warn(
            f"{source}: {len(problems)} of {len(rows)} rows are malformed and left out ({first}).",
            stacklevel=2,
        )
    if benchmark is not None:
        check_published(benchmark.name, str(source), items)
    return items


def _names() -> str:
    return f"benchmarks are {', '.join(BENCHMARKS)}"


def _read(path: Path, or_name: bool) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        what = f"benchmark and no file {str(path)!r}; {_names()}" if or_name else f"file {path}"
        raise BenchmarkError(f"There is no {what}.") from None
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        reason = getattr(error, "strerror", None) or error
        raise BenchmarkError(f"{str(path)!r} cannot be read ({reason}); give a file.") from None


# The copy in the cache, and its digest.


def _cached(benchmark: Benchmark) -> tuple[Path, bytes]:
    """The benchmark's file and its bytes, fetched the first time."""
    if benchmark.url is None:
        raise BenchmarkError(
            f"{benchmark.title} has no confirmed address to fetch from: get your own copy "
            f"({benchmark.home}) and load it with "
            f"load_dialogues({benchmark.name!r}, path=...), or in a command with --sets "
            f"{benchmark.name}=FILE."
        )
    folder = cache_folder() / "benchmarks"
    address = hashlib.sha256(benchmark.url.encode()).hexdigest()  # a new revision is a new file
    file = folder / f"{benchmark.name}-{address[:12]}{Path(benchmark.url).suffix}"
    record = folder / f"{file.name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recorded = _recorded(record)
        if recorded is not None and file.exists():
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest() != recorded:
                raise BenchmarkError(
                    f"{file} was altered since it was fetched (its sha256 is not {recorded[:12]}…):"
                    " delete it to fetch it again, or give it as path= (in a command: --sets "
                    f"{benchmark.name}=FILE) to use it as it is."
                )
            return file, data
        data = _download(benchmark)
        parse(
            data, benchmark.url, LAYOUTS
        )  # the login page of a network must not become the first copy
        found = hashlib.sha256(data).hexdigest()
        if recorded not in (None, found):
            raise BenchmarkError(
                f"{benchmark.url} sent another file than at the first fetch (sha256 {found[:12]}…, "
                f"recorded {recorded[:12]}…): if you trust it, delete {record} and try again."
            )
        write_whole(file, data)
        write_whole(record, json.dumps({"url": benchmark.url, "sha256": found}, indent=1))
        return file, data
    except OSError as error:
        raise BenchmarkError(
            f"The cache folder {folder} cannot be used ({error.strerror or error}): set "
            "XB_LITE_CACHE to a folder you can write to."
        ) from error


def _recorded(record: Path) -> str | None:
    """The digest of the first fetch; None if there was none."""
    if not record.exists():
        return None
    try:
        return str(json.loads(record.read_bytes())["sha256"])
    except (ValueError, TypeError, KeyError, RecursionError):
        raise BenchmarkError(
            f"{record} does not hold a digest any more: delete it to fetch again."
        ) from None


def _download(benchmark: Benchmark) -> bytes:
    try:
        with urllib.request.urlopen(benchmark.url, timeout=TIMEOUT) as response:
            expected, data = response.length, bytearray()
            name = f"fetching {benchmark.name}"
            with tqdm(total=expected, desc=name, unit="B", unit_scale=True) as bar:
                while piece := response.read(1 << 16):
                    data += piece
                    bar.update(len(piece))
        if expected is not None and len(data) != expected:
            raise OSError(f"the connection broke after {len(data)} of {expected} bytes")
        return bytes(data)
    except (OSError, HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it holds the connection
        raise BenchmarkError(
            f"{benchmark.title} could not be fetched from {benchmark.url} ({reason}): try again, "
            f"or give a copy of your own as path= (in a command: --sets {benchmark.name}=FILE)."
        ) from error
