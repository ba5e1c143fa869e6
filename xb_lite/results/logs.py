"""A file that only grows, a line for each finished thing, so that a killed run goes on from it.

The first line says which run it is; a run of other settings never goes on in the same file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from xb_lite.files import write_whole

START = b'{"run"'  # of every log
POLL = 0.5  # seconds between two looks at whether another process is done


class LogError(ValueError):
    """A log cannot be gone on with; the message says why, and what to do."""


class Log:
    """Rows on disk, by their ``id``: JSON lines behind one line that describes the run. Of two rows
    of one ``id`` the later counts.

    Use it as a context: ``with Log(path, run) as log``. While it is open no other process can
    write to it. What a killed process left of a line is cut off. With ``anew`` a file that is
    there is deleted first. With ``wait`` another process is waited for, which is said once on
    stderr; what it wrote is then among the rows.

    Raises:
        LogError: the file belongs to a run of other settings or is no log, another process is
            writing to it and is not waited for, a line is damaged, or it cannot be written to.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        run: dict[str, object],
        anew: bool = False,
        wait: bool = False,
    ) -> None:
        self.path, self.run, self.anew, self.wait = Path(path), run, anew, wait
        self.rows: dict[str, dict] = {}
        self._lock = FileLock(f"{self.path}.lock")

    def __enter__(self) -> Log:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._locked():
                said = f"another process is writing to {self.path}"
                if not self.wait:
                    raise LogError(f"{said}: wait for it, or end it.")
                print(f"{said}; waiting for it (Ctrl-C ends this one).", file=sys.stderr)
                self._lock.acquire(poll_interval=POLL)
        except OSError as error:
            raise LogError(self._unusable(error)) from error
        try:
            if self.anew and self.path.exists():
                with self.path.open("rb") as file:
                    _check_start(self.path, file.read(len(START)))
                self.path.unlink()
            self._take_up()
        except OSError as error:
            self._lock.release()
            raise LogError(self._unusable(error)) from error
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def look(self) -> None:
        """Take up the rows that are there and write nothing, as several processes can at once.

        Raises:
            LogError: the file is no log, damaged, or belongs to a run of other settings.
        """
        rows = read_rows(self.path)
        wanted = json.loads(json.dumps(self.run))
        before = rows[0]["run"] if rows else wanted
        names = [name for name in {**before, **wanted} if before.get(name) != wanted.get(name)]
        if names:
            was, now = ({name: run.get(name) for name in names} for run in (before, wanted))
            raise LogError(
                f"{self.path} is of a run with other settings ({was}, now {now}): go on with those,"
                " start anew, or give another file."
            )
        self.rows = {row["id"]: row for row in rows[1:]}

    def append(self, rows: Sequence[dict]) -> None:
        """Write rows that are done; on disk when this returns."""
        self._write("".join(map(_line, rows)))
        self.rows.update({row["id"]: row for row in rows})

    def keep(self, ids: Collection[str]) -> None:
        """Leave only these rows in the file, which is replaced in one step."""
        rows = {name: row for name, row in self.rows.items() if name in ids}
        if len(rows) < len(self.rows):
            write_whole(self.path, "".join(map(_line, [{"run": self.run}, *rows.values()])))
            self.rows = rows

    def _locked(self) -> bool:
        """True where no other process has the lock, which is then this one's."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            return False
        return True

    def _take_up(self) -> None:
        self.look()
        whole = 0
        if self.path.exists():
            with self.path.open("r+b") as file:
                whole = file.truncate(file.read().rfind(b"\n") + 1)
        if not whole:
            self._write(_line({"run": self.run}))

    def _write(self, text: str) -> None:
        try:
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise LogError(self._unusable(error)) from error

    def _unusable(self, error: OSError) -> str:
        return f"{self.path} cannot be written to ({error.strerror or error}); what is there stays."


def read_rows(path: Path) -> list[dict]:
    """All lines of a log, the run's own first; an unfinished last line is none.

    Raises:
        LogError: it is no log, which is then left as it is; a line before the last is damaged; or
            the file cannot be read.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise LogError(f"{path} cannot be read ({error.strerror or error}).") from error
    _check_start(path, data)
    *lines, _ = data.split(b"\n")
    rows = [_row(line, *(("id", str) if i else ("run", dict))) for i, line in enumerate(lines)]
    if rows[:1] == [None]:
        raise LogError(
            f"{path}, line 1 is damaged, which says of which run it is: delete the"
            " file to start anew."
        )
    if None in rows:
        raise LogError(
            f"{path}, line {rows.index(None) + 1} is damaged: delete it, and it is made again."
        )
    return rows


def _check_start(path: Path, data: bytes) -> None:
    """What is no log stays as it is."""
    if not START.startswith(data[: len(START)]):
        raise LogError(f"{path} is not a log of this program: give another file.")


def _row(line: bytes, key: str, kind: type) -> dict | None:
    """The line as a row that has ``key``; None if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get(key), kind) else None


def _line(row: dict) -> str:
    return json.dumps(row) + "\n"
