"""Files that appear whole or not at all, whatever ends the process and whoever else writes them."""

from __future__ import annotations

import os
from pathlib import Path


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
