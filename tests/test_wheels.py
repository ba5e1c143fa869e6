"""Files out of wheels: fetched by the real pip, from a folder of wheels instead of an index."""

import hashlib
import subprocess
import sys
import zipfile

import pytest

from xb_lite.models import wheels
from xb_lite.models.wheels import FetchError, Wheel, fetch_wheel, require_sha256


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its only source, with one wheel in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "toy_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy_data/data.bin", b"payload")
        metadata = "Metadata-Version: 2.1\nName: toy-data\nVersion: 1.0\nRequires-Dist: not-there\n"
        archive.writestr("toy_data-1.0.dist-info/METADATA", metadata)
        archive.writestr("toy_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return path


def toy(index, sha256=None):
    digest = sha256 or hashlib.sha256(index.read_bytes()).hexdigest()
    return Wheel("toy-data", "1.0", digest, index.stat().st_size)


def test_fetches_the_wheel_alone(index, tmp_path):
    path = fetch_wheel(toy(index), tmp_path / "out")
    assert path.read_bytes() == index.read_bytes()
    assert [p.name for p in (tmp_path / "out").iterdir()] == [index.name]


def test_altered_wheel_is_named_and_leaves_nothing(index, tmp_path):
    with pytest.raises(FetchError, match="toy-data 1.0: .* is not the expected file"):
        fetch_wheel(toy(index, sha256="0" * 64), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_missing_package_gives_the_last_word_of_pip(index, tmp_path):
    with pytest.raises(FetchError, match="pip could not download gone==1.0: ERROR"):
        fetch_wheel(Wheel("gone", "1.0", "", 1), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_environment_without_pip_is_told_so(monkeypatch, tmp_path):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match="python -m ensurepip"):
        fetch_wheel(Wheel("toy-data", "1.0", "", 1), tmp_path)


def test_interrupt_stops_pip_and_leaves_nothing(index, tmp_path, monkeypatch):
    started = []

    class Slow(subprocess.Popen):
        def __init__(self, command, **options):
            super().__init__([sys.executable, "-c", "import time; time.sleep(60)"], **options)
            started.append(self)

    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(wheels.subprocess, "Popen", Slow)
    monkeypatch.setattr(wheels.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_wheel(toy(index), tmp_path / "out")
    assert started[0].returncode is not None
    assert not list((tmp_path / "out").iterdir())


def test_require_sha256_keeps_the_right_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"right")
    require_sha256(path, hashlib.sha256(b"right").hexdigest(), "a file")
    assert path.exists()
