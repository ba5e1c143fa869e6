"""Files of the book's repository that the package itself does not hold: results and adapters."""

from __future__ import annotations

import urllib.request
from http.client import HTTPException
from importlib.metadata import metadata
from pathlib import Path

from xb_lite.model_files import cache_folder
from xb_lite.whole_files import write_whole

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
        with urllib.request.urlopen(f"{raw}/main/{name}", timeout=TIMEOUT) as response:
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
