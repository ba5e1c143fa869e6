"""Files: the cache, writing whole, digests, and the book's own results and adapters.

Those are in place in the repository, and fetched where the package is installed without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from importlib.metadata import metadata
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm.auto import tqdm


def write_whole(path: Path, data: str | bytes) -> None:
    """Write a file in one step, and its folder where that is missing. Text is UTF-8, with its line
    ends as they are.

    Raises:
        OSError: it cannot be written; what was there stays, and nothing is left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # several runs may end at once
    try:
        part.write_bytes(data.encode() if isinstance(data, str) else data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, doing: str) -> Iterator[None]:
    """Alone with a folder or file among all processes; ``doing`` says what is waited for, e.g.
    ``"training"``. The lock is a file beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"another process is {doing} {path.name}; waiting for it …", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def cache_folder() -> Path:
    """Where models are kept: ``$XB_LITE_CACHE``, else ``xb_lite`` in the user's cache folder."""
    if folder := os.environ.get("XB_LITE_CACHE"):
        return Path(folder).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "xb_lite"


REVISION = "main"  # of the repository; a release names its tag (book/tools/release.py)
TIMEOUT = 30  # seconds without a byte
_fetched: set[Path] = set()


def own_file(name: str) -> Path:
    """A file of the repository, e.g. ``"results/cpu/smollm2-135m/none.json"``: in place where the
    package runs out of the repository, else fetched from its public address, once in a process, and
    kept in the cache for when that cannot be reached.

    Raises:
        ValueError: it is in neither.
    """
    own = Path(__file__).parents[1] / name
    if own.exists():
        return own
    copy = cache_folder() / name
    if copy in _fetched and copy.exists():
        return copy
    urls = dict(line.split(", ") for line in metadata("xb-lite").get_all("Project-URL"))
    raw = urls["Repository"].replace("github.com", "raw.githubusercontent.com")
    try:
        with urllib.request.urlopen(f"{raw}/{REVISION}/{name}", timeout=TIMEOUT) as response:
            data = response.read()
        write_whole(copy, data)
        _fetched.add(copy)
    except (OSError, HTTPException) as error:
        if not copy.exists():
            raise ValueError(
                f"{name} is not here and cannot be fetched from {raw} ({error}): run the book from "
                "its repository."
            ) from error
    return copy


def digest(what: object) -> str:
    """SHA-256 of what JSON can hold: how runs, items and labels are told apart."""
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def sha256_of(path: Path, describe: str | None = None) -> str:
    """Hex SHA-256 of a file, read in 16 MiB pieces; ``describe`` labels a bar for long files."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(
            total=path.stat().st_size,
            desc=describe,
            unit="B",
            unit_scale=True,
            delay=2,
            leave=False,
            disable=describe is None,
        ) as bar,
    ):
        while piece := file.read(1 << 24):
            digest.update(piece)
            bar.update(len(piece))
    return digest.hexdigest()
