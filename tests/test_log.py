"""A log survives whatever happens to its file, and says in one sentence what it cannot mend."""

import errno
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xb_lite.results.logs import Log, LogError

RUN = {"subject": {"model": "m"}, "decoding": {"seed": 0}}
ROWS = [{"id": "a", "text": "Zoë\n\u2028"}, {"id": "b", "text": "\ud800"}, {"id": "c", "n": [1]}]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "run", "asked"]) | st.text(max_size=3), inner)
    ),
    max_leaves=6,
)


@pytest.fixture
def path(tmp_path):
    """A log with three rows."""
    with Log(tmp_path / "new" / "log.jsonl", RUN) as log:
        for row in ROWS:
            log.append([row])
    return log.path


def rows_of(path, run=RUN):
    with Log(path, run) as log:
        return log.rows


def in_one_sentence(error):
    """No line break, no name of an exception of Python's, and not longer than can be read."""
    text = str(error.value)
    return "\n" not in text and "Error" not in text and 20 < len(text) < 400


def test_rows_come_back_as_they_were(path):
    assert list(rows_of(path).values()) == ROWS
    assert json.loads(path.read_bytes().splitlines()[0]) == {"run": RUN}


def test_order_of_settings_does_not_matter(path):
    assert rows_of(path, dict(reversed(RUN.items())))


def test_a_last_line_cut_at_any_byte_is_mended(path):
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    for cut in range(len(data) - len(lines[-1]) - len(lines[-2]), len(data) + 1):
        path.write_bytes(data[:cut])
        whole = data[:cut].count(b"\n") - 1
        with Log(path, RUN) as log:
            assert list(log.rows.values()) == ROWS[:whole]
            log.append([row for row in ROWS if row["id"] not in log.rows])
        assert path.read_bytes() == data


def test_a_first_line_cut_at_any_byte_is_written_again(path):
    data = path.read_bytes()
    first = data.splitlines(keepends=True)[0]
    for cut in range(len(first)):
        path.write_bytes(data[:cut])
        assert rows_of(path) == {}
        assert path.read_bytes() == first


def test_bytes_that_a_failing_disk_left_at_the_end_are_cut_off(path):
    data = path.read_bytes()
    path.write_bytes(data + b"\0" * 100)
    assert list(rows_of(path).values()) == ROWS
    assert path.read_bytes() == data


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize(
    "line",
    [
        b'{"id": "b", "te',
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"text": "?"}',
        b'{"id": ["b"]}',
        b"[" * 9999,
    ],
)
def test_a_damaged_line_in_the_middle_is_named_and_nothing_is_changed(path, number, line):
    lines = path.read_bytes().splitlines()
    lines[number - 1] = line
    damaged = b"\n".join([*lines, b'{"id": "to'])
    path.write_bytes(damaged)
    with pytest.raises(LogError, match=f"line {number} is damaged: delete it") as error:
        rows_of(path)
    assert in_one_sentence(error) and path.read_bytes() == damaged
    path.write_bytes(b"\n".join([*lines[: number - 1], *lines[number:], b""]))  # as it says
    assert len(rows_of(path)) == 2


def test_a_damaged_first_line_is_not_said_to_be_made_again(path):
    path.write_bytes(b'{"run": 3}\n' + path.read_bytes())
    with pytest.raises(LogError, match="line 1 is damaged.*start anew"):
        rows_of(path)


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize(
    "data", [b"my diary", b'{"rows": []}', b"a\nb\n", b'{"ru\n', b"\x89PNG\r\n"]
)
def test_a_file_that_is_no_log_is_left_as_it_is(tmp_path, data, anew):
    path = tmp_path / "mine.json"
    path.write_bytes(data)
    with pytest.raises(LogError, match="not a log of this program: give another") as error:
        Log(path, RUN, anew=anew).__enter__()
    assert in_one_sentence(error) and path.read_bytes() == data


def test_other_settings_are_refused_and_named(path):
    before = path.read_bytes()
    for other, name in (
        ({**RUN, "decoding": {"seed": 1}}, "decoding"),
        ({**RUN, "judges": {"xstest": "strings"}}, "judges"),
        ({"subject": RUN["subject"]}, "decoding"),
    ):
        with pytest.raises(LogError, match=f"other settings .*{name}.* now .*start anew") as error:
            rows_of(path, other)
        assert in_one_sentence(error) and path.read_bytes() == before
        assert "subject" not in str(error.value)


def test_anew_is_empty_again(path):
    with Log(path, {"subject": "another"}, anew=True) as log:
        assert log.rows == {}
    assert rows_of(path, {"subject": "another"}) == {}


@pytest.mark.parametrize("anew", [False, True])
def test_a_second_writer_is_refused_and_harms_nothing(path, anew):
    before = path.read_bytes()
    with Log(path, RUN):
        with pytest.raises(LogError, match="another process is writing to") as error:
            Log(path, RUN, anew=anew).__enter__()
        assert in_one_sentence(error) and path.read_bytes() == before
    assert len(rows_of(path)) == 3  # and the lock is free again


@contextmanager
def held_elsewhere(path, row=None):
    """Another process has the log open, and writes a row before it is done. Gives what ends it."""

    def hold(open_, done):
        with Log(path, RUN) as log:
            open_.set()
            done.wait(30)
            if row:
                log.append([row])

    context = multiprocessing.get_context("fork")
    open_, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(open_, done))
    other.start()
    try:
        assert open_.wait(30)
        yield done.set
    finally:
        done.set()
        other.join()


@pytest.fixture
def on_waiting(monkeypatch):
    """Sets what is done a while after it was said that another process is waited for."""
    lines = []

    def then(do, seconds=0.2):
        def say(line, file):
            assert file is sys.stderr
            lines.append(line)
            threading.Timer(seconds, do).start()

        monkeypatch.setattr("xb_lite.results.logs.print", say, raising=False)
        return lines

    return then


def test_a_second_process_is_refused_too(path):
    with held_elsewhere(path), pytest.raises(LogError, match="another process is writing to"):
        rows_of(path)
    assert len(rows_of(path)) == 3


def test_another_process_can_be_waited_for(path, on_waiting):
    with held_elsewhere(path, {"id": "d"}) as end:
        lines = on_waiting(end, seconds=1)
        worked = time.thread_time()
        with Log(path, RUN, wait=True) as log:
            assert time.thread_time() - worked < 0.1  # it sleeps, and looks again now and then
            assert list(log.rows) == ["a", "b", "c", "d"]
            with pytest.raises(LogError, match="another process is writing to"):
                rows_of(path)
    said = f"another process is writing to {path}; waiting for it (Ctrl-C ends this one)."
    assert lines == [said]
    with Log(path, RUN, wait=True) as log:
        assert len(log.rows) == 4
    assert lines == [said]


@pytest.mark.parametrize("anew", [False, True])
def test_who_waits_can_be_stopped_and_has_harmed_nothing(path, on_waiting, anew):
    before = path.read_bytes()
    with held_elsewhere(path):
        on_waiting(lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            Log(path, RUN, anew=anew, wait=True).__enter__()
        assert path.read_bytes() == before
        with pytest.raises(LogError, match="another process is writing to"):
            rows_of(path)
    assert len(rows_of(path)) == 3


def test_what_is_wrong_with_a_log_is_said_after_the_wait_too(path, on_waiting):
    with held_elsewhere(path) as end:
        on_waiting(end)
        with pytest.raises(LogError, match="other settings"):
            Log(path, {}, wait=True).__enter__()
    assert len(rows_of(path)) == 3  # and the lock is free again


def test_what_was_waited_for_can_be_made_anew(path, on_waiting):
    with held_elsewhere(path, {"id": "d"}) as end:
        lines = on_waiting(end)
        with Log(path, RUN, anew=True, wait=True) as log:
            assert log.rows == {} and lines
    assert rows_of(path) == {}


def test_an_error_in_the_block_frees_the_lock(path):
    with pytest.raises(RuntimeError), Log(path, RUN):
        raise RuntimeError
    with pytest.raises(LogError, match="other settings"):
        rows_of(path, {})
    assert len(rows_of(path)) == 3


def test_a_full_disk_is_one_sentence_and_what_was_written_stays(path):
    data = path.read_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Log(path, RUN) as log:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) + 9, hard))
        try:
            with pytest.raises(
                LogError, match="cannot be written to .*what is there stays"
            ) as error:
                log.append([{"id": "d", "text": "x" * 200}])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert in_one_sentence(error) and path.read_bytes().startswith(data)
    assert len(path.read_bytes()) == len(data) + 9  # half a line
    assert list(rows_of(path).values()) == ROWS


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_refuses_is_one_sentence(path, monkeypatch, code):
    def refuse(_):
        raise OSError(code, os.strerror(code))

    with Log(path, RUN) as log:
        monkeypatch.setattr(os, "fsync", refuse)
        with pytest.raises(LogError, match=os.strerror(code)) as error:
            log.append([{"id": "d"}])
    assert in_one_sentence(error) and "d" not in log.rows


def test_a_read_only_folder_is_one_sentence(path, monkeypatch):
    # root may write to any folder, so the refusal is played.
    def refuse(self, *_args, **_options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    for name in ("mkdir", "open", "read_bytes"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, refuse)
            with pytest.raises(LogError, match="Permission denied") as error, Log(path, RUN) as log:
                log.append([{"id": "d"}])
        assert in_one_sentence(error)
    assert len(rows_of(path)) == 3
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(LogError, match="Permission denied"):
            Log(path, RUN, anew=True).__enter__()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_real_read_only_folder_is_one_sentence(path):
    path.parent.chmod(0o555)
    try:
        with pytest.raises(LogError, match="cannot be written to"):
            Log(path.parent / "other.jsonl", RUN).__enter__()
    finally:
        path.parent.chmod(0o755)


def test_a_folder_or_a_path_below_a_file_is_one_sentence(path):
    for wrong in (path.parent, path / "log.jsonl"):
        for anew in (False, True):
            with pytest.raises(LogError) as error:
                Log(wrong, RUN, anew=anew).__enter__()
            assert in_one_sentence(error)


def lines(value):
    return json.dumps(value).encode() + b"\n"


@settings(max_examples=150, deadline=None)
@example(b"")
@example(b"\n")
@example(b'{"run"')
@example(b'{"run": {}}\n{"id": 1' + b"0" * 5000 + b"}\n")
@given(
    st.binary(max_size=60)
    | st.lists(JSON.map(lines), max_size=4).map(b"".join)
    | st.lists(JSON.map(lines) | st.binary(max_size=9), max_size=4).map(
        lambda more: b"".join([lines({"run": RUN}), *more])
    )
)
def test_any_bytes_are_a_log_or_one_sentence(data):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_bytes(data)
        try:
            rows = rows_of(path)
        except LogError as error:
            assert "\n" not in str(error) and len(str(error)) < 1000
            assert path.read_bytes() == data
        else:
            assert all(isinstance(name, str) and row["id"] == name for name, row in rows.items())
            assert repr(rows_of(path)) == repr(rows)  # NaN is not equal to itself
