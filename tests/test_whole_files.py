"""A file is whole or not there."""

import os

import pytest

from xb_lite.files import write_whole


def test_folder_text_and_line_ends(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_whole(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()
    write_whole(path, b"\xff")
    assert path.read_bytes() == b"\xff" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("data", ["new", "\ud800"])
def test_what_cannot_be_written_leaves_all_as_it_was(tmp_path, monkeypatch, data):
    path = tmp_path / "result.json"
    write_whole(path, "old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises((OSError, UnicodeEncodeError)):
        write_whole(path, data)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
