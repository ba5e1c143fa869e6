"""Public benchmarks by name, or from a file of your own.

Nothing of the data is in this package. A benchmark is fetched from its own home, at one pinned
revision, on the machine of whoever asks for it (``benchmarks.json`` has addresses, licences and
field names); its digest is recorded at the first fetch and checked from then on. A file of your own
is read by what is in it: JSON as in the official X-Boundary code, JSON lines, or CSV.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

from xb_lite.data.fetching import Remote, fetched
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


def _read_specs() -> tuple[Layout, list[Layout], dict[str, Benchmark]]:
    """The layout of files of one's own, all layouts, and the benchmarks."""
    specs = json.loads(Path(__file__).with_name("benchmarks.json").read_text(encoding="utf-8"))
    layouts = {name: Layout(**fields) for name, fields in specs["layouts"].items()}
    benchmarks = {
        name: Benchmark(name, **{**fields, "layout": layouts[fields["layout"]]})
        for name, fields in specs["benchmarks"].items()
    }
    return layouts["prompts"], list(layouts.values()), benchmarks


OWN, LAYOUTS, BENCHMARKS = _read_specs()


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
    # Of a file of your own "prompt" is asked, even where its other columns fit a benchmark better.
    layout, rows = parse(data, str(source), LAYOUTS, first=OWN if benchmark is None else None)
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


def _cached(benchmark: Benchmark) -> tuple[Path, bytes]:
    """The benchmark's file and its bytes, fetched the first time."""
    if benchmark.url is None:
        raise BenchmarkError(
            f"{benchmark.title} has no confirmed address to fetch from: get your own copy "
            f"({benchmark.home}) and load it with "
            f"load_dialogues({benchmark.name!r}, path=...), or in a command with --sets "
            f"{benchmark.name}=FILE."
        )
    own = f"path= (in a command: --sets {benchmark.name}=FILE)"
    remote = Remote(benchmark.name, benchmark.title, benchmark.url, own)
    file, data, _ = fetched(remote, "benchmarks", lambda data: parse(data, benchmark.url, LAYOUTS))
    return file, data
