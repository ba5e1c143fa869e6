"""Public files from their own home, at one pinned revision, kept in the cache with a digest.

Where the digest is known before the first fetch it is checked; else the first fetch records it, and
every later one must bring the same file.
"""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from tqdm.auto import tqdm

from xb_lite.data.rows import BenchmarkError
from xb_lite.files import cache_folder, write_whole

TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Remote:
    """A file and its address. ``own`` says how to give one's own copy, for messages.

    ``sha256`` is of the file, ``blob`` the name that git gives its content; None where not known.
    """

    name: str
    title: str
    url: str
    own: str
    sha256: str | None = None
    blob: str | None = None

    @property
    def is_pinned(self) -> bool:
        return self.sha256 is not None or self.blob is not None

    def check(self, data: bytes) -> None:
        """Raise a BenchmarkError where ``data`` is another file than the known digest says."""
        found = {
            "sha256": (self.sha256, hashlib.sha256(data).hexdigest()),
            "git blob": (self.blob, git_blob(data)),
        }
        for kind, (known, here) in found.items():
            if known not in (None, here):
                raise BenchmarkError(
                    f"{self.url} sent another file than it should ({kind} {here[:12]}…, expected "
                    f"{known[:12]}…): give a copy of your own as {self.own}."
                )


def git_blob(data: bytes) -> str:
    """The name under which git keeps a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def fetched(
    remote: Remote, kind: str, check: Callable[[bytes], object]
) -> tuple[Path, bytes, bool]:
    """A file in the cache folder ``kind``, its bytes, and whether it was fetched just now.

    Args:
        check: called with the bytes before they are kept, to raise where they are no such file: the
            login page of a network must not become the first copy.

    Raises:
        BenchmarkError: it cannot be fetched, is not the one that it should be or that was fetched
            first, or the cache cannot be used.
    """
    folder = cache_folder() / kind
    address = hashlib.sha256(remote.url.encode()).hexdigest()  # a new revision is a new file
    file = folder / f"{remote.name}-{address[:12]}{Path(remote.url).suffix}"
    record = folder / f"{file.name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recorded = _recorded(record)
        if recorded is not None and file.exists():
            data = file.read_bytes()
            if hashlib.sha256(data).hexdigest() != recorded:
                raise BenchmarkError(
                    f"{file} was altered since it was fetched (its sha256 is not {recorded[:12]}…):"
                    f" delete it to fetch it again, or give it as {remote.own} to use it as it is."
                )
            return file, data, False
        data = _download(remote)
        remote.check(data)
        check(data)
        found = hashlib.sha256(data).hexdigest()
        if recorded not in (None, found):
            raise BenchmarkError(
                f"{remote.url} sent another file than at the first fetch (sha256 {found[:12]}…, "
                f"recorded {recorded[:12]}…): if you trust it, delete {record} and try again."
            )
        write_whole(file, data)
        write_whole(record, json.dumps({"url": remote.url, "sha256": found}, indent=1))
        return file, data, True
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


def _download(remote: Remote) -> bytes:
    try:
        with urllib.request.urlopen(remote.url, timeout=TIMEOUT) as response:
            expected, data = response.length, bytearray()
            name = f"fetching {remote.name}"
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
            f"{remote.title} could not be fetched from {remote.url} ({reason}): try again, "
            f"or give a copy of your own as {remote.own}."
        ) from error
