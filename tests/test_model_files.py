"""The cache of models: whole or not there, whatever happens on the way."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import httpx
import pytest

from xb_lite.models import cached as model_files
from xb_lite.models.cached import SPECS, ModelError, ModelSpec, cached_model, gguf_file
from xb_lite.models.wheels import FetchError

CONTENT = b"GGUF of a toy model"


class Toy:
    """A source that hands out ``content``, and counts how often it was asked."""

    def __init__(self, content=CONTENT, error=None):
        self.content, self.error, self.asked = content, error, 0

    def fetch_into(self, folder):
        self.asked += 1
        if self.error:
            raise self.error
        path = folder / "toy.gguf"
        path.write_bytes(self.content)
        return path


def toy_spec(*sources):
    digest = hashlib.sha256(CONTENT).hexdigest()
    return ModelSpec("toy", "Toy", "toy/toy", "llama", "-", 1000, 1, digest, len(CONTENT), sources)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    def unpack(spec, gguf, folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())
        digest = hashlib.sha256(gguf.read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps({"model.safetensors": digest}))
        return folder

    monkeypatch.setattr(model_files, "_dequantise", unpack)
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def folders(cache):
    return sorted(p.name for p in cache.iterdir() if p.is_dir())


def test_fetched_once_then_found(cache):
    source = Toy()
    first, second = cached_model(toy_spec(source)), cached_model(toy_spec(source))
    assert first == second and source.asked == 1
    assert (first / "model.safetensors").read_bytes() == CONTENT


def test_altered_download_is_refused_and_removed(cache):
    with pytest.raises(FetchError, match="Toy: toy.gguf is not the expected file"):
        cached_model(toy_spec(Toy(CONTENT[:-1])))
    assert folders(cache) == []


def test_sources_are_tried_in_order(cache):
    down, up = Toy(error=OSError("hub unreachable")), Toy()
    cached_model(toy_spec(down, up))
    assert (down.asked, up.asked) == (1, 1)


def test_after_a_connection_that_breaks_the_next_source_is_tried(cache):
    broken, up = Toy(error=httpx.ReadTimeout("")), Toy()
    cached_model(toy_spec(broken, up))
    with pytest.raises(FetchError, match="Toy could not be fetched: ReadTimeout$"):
        cached_model(replace(toy_spec(broken), name="other"))


def test_all_sources_failing_names_each_reason(cache):
    sources = Toy(error=OSError("hub unreachable")), Toy(error=FetchError("no index"))
    with pytest.raises(
        FetchError, match="Toy could not be fetched: hub unreachable; then no index"
    ):
        cached_model(toy_spec(*sources))


def test_own_copy_is_used_before_any_source(cache):
    cache.mkdir()
    (cache / "Toy.gguf").write_bytes(CONTENT)
    source = Toy()
    cached_model(toy_spec(source))
    assert source.asked == 0 and (cache / "Toy.gguf").exists()


def test_the_gguf_file_is_kept_once_and_unpacked_from(cache):
    source = Toy()
    path = gguf_file(toy_spec(source))
    assert path == cache / "Toy.gguf" and path.read_bytes() == CONTENT
    assert gguf_file(toy_spec(source)) == path and cached_model(toy_spec(source)).is_dir()
    assert source.asked == 1 and folders(cache) == [cached_model(toy_spec(source)).name]


def test_another_gguf_file_in_its_place_is_refused_and_the_next_call_fetches(cache):
    cache.mkdir()
    (cache / "Toy.gguf").write_bytes(b"another")
    with pytest.raises(FetchError, match="Toy.gguf is not the expected file.*removed"):
        gguf_file(toy_spec(Toy()))
    assert gguf_file(toy_spec(Toy())).read_bytes() == CONTENT


def test_altered_cache_is_named_and_made_anew(cache, capsys):
    spec = toy_spec(Toy())
    path = cached_model(spec) / "model.safetensors"
    path.write_bytes(b"something else")
    assert cached_model(spec) == path.parent and path.read_bytes() == CONTENT
    assert f"{path} is missing or was altered" in capsys.readouterr().out


@pytest.mark.parametrize("manifest", ["{}", "[]", '{"config.json": "0"}', "3"])
def test_a_manifest_without_weights_is_none(cache, capsys, manifest):
    spec = toy_spec(Toy())
    folder = cached_model(spec)
    (folder / "manifest.json").write_text(manifest)
    (folder / "model.safetensors").write_bytes(b"something else")
    assert (cached_model(spec) / "model.safetensors").read_bytes() == CONTENT
    assert "says of no weights that it has" in capsys.readouterr().out


def test_a_damaged_model_stays_until_the_new_one_is_there(cache):
    folder = cached_model(toy_spec(Toy()))
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FetchError):
        cached_model(toy_spec(Toy(error=OSError("no network"))))
    assert (folder / "model.safetensors").read_bytes() == b"damaged"
    assert folders(cache) == [folder.name]


def test_leftovers_of_a_killed_run_are_named_and_removed(cache, capsys):
    spec = toy_spec(Toy())
    left = cache / f"toy-{spec.sha256[:12]}.part-xyz"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"half")
    cached_model(spec)
    assert folders(cache) == [f"toy-{spec.sha256[:12]}"]
    assert f"removing {left}" in capsys.readouterr().out


def test_a_file_in_place_of_the_cache_folder(cache):
    cache.write_text("not a folder")
    with pytest.raises(
        ModelError, match=f"cache folder {cache} cannot be used .*Set XB_LITE_CACHE"
    ):
        cached_model(toy_spec(Toy()))


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_read_only_or_full_cache_is_one_sentence(cache, code):
    source = Toy(error=OSError(code, os.strerror(code)))
    with pytest.raises(ModelError, match=rf"cannot be used \({os.strerror(code)}\)\. Set XB_LITE"):
        cached_model(toy_spec(source))


def test_too_little_space_is_said_before_the_download(cache, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    source = Toy()
    with pytest.raises(ModelError, match="0.0 GB free, which is too little for Toy"):
        cached_model(toy_spec(source))
    assert source.asked == 0


def test_two_processes_at_once_fetch_once(tmp_path):
    script = textwrap.dedent(f"""
        import sys, time
        sys.path.insert(0, {str(os.path.dirname(__file__))!r})
        from test_model_files import CONTENT, Toy, toy_spec
        from xb_lite.models import cached as model_files
        import pathlib

        def unpack(spec, gguf, folder):
            folder.mkdir()
            (folder / "model.safetensors").touch()
            empty = '{hashlib.sha256(b"").hexdigest()}'
            (folder / "manifest.json").write_text('{{"model.safetensors": "' + empty + '"}}')
            with open({str(tmp_path / "log")!r}, "a") as log:
                log.write("unpacked ")
            time.sleep(2)
            return folder

        model_files._dequantise = unpack
        print(model_files.cached_model(toy_spec(Toy())))
    """)
    env = {**os.environ, "XB_LITE_CACHE": str(tmp_path / "cache")}
    both = [
        subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "unpacked "
    assert outputs[0].split()[-1] == outputs[1].split()[-1]


def test_specs_are_complete():
    for spec in SPECS.values():
        assert len(spec.sha256) == 64 and spec.size > 0 and spec.sources
    assert set(SPECS) == {"smollm2-135m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"}


def test_default_model_is_as_its_spec_says(default_model):
    model, tokenizer = default_model
    spec = SPECS["smollm2-135m"]
    assert model.config.model_type == spec.architecture
    assert model.config.num_hidden_layers == spec.layers
    assert sum(p.numel() for p in model.parameters()) == spec.parameters
    assert "named SmolLM" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False
    )


def test_default_model_needs_no_network_once_cached(default_model):
    script = (
        "import socket\n"
        "def refuse(*a, **k): raise OSError('network used')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from xb_lite.models import load_model; load_model(); print('loaded')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith("loaded\n"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"])
def test_further_models_load_by_their_specs(name):
    from xb_lite.models.loading import load_model  # two processes of this file need no torch

    model, _ = load_model(name)
    assert sum(p.numel() for p in model.parameters()) == SPECS[name].parameters
