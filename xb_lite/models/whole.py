"""Whether a model is what its files say, before its weights are read and after.

transformers gives what is missing random weights, and leaves out what it does not know, with no
more than a warning; a template can loop for ever, and a config can ask for any number of layers.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import torch
from huggingface_hub import get_safetensors_metadata
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from xb_lite.models.cached import ModelError

TIMEOUT = 60  # seconds for one dialogue, the start of Python among them
MEMORY = 4 << 30  # bytes, for the same

# Of the largest models there are, with room; transformers makes the layers before it looks for
# their weights.
LIMITS = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1000),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 10_000),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_key_value_heads", "head_dim"), 100_000),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 1_000_000),
    **dict.fromkeys(("intermediate_size", "n_inner", "moe_intermediate_size"), 10_000_000),
    "vocab_size": 10_000_000,
}


def check_config(name: str, fields: dict[str, object]) -> None:
    """Raise a ModelError where a config asks for more than any model has, before it is followed."""
    if not isinstance(fields, dict):
        raise TypeError("its config.json is no object")
    for field, value in fields.items():
        if isinstance(value, dict) and field not in LIMITS:  # of a part, as text_config
            check_config(name, value)
            continue
        most = LIMITS.get(field)
        if most and value is not None and (type(value) is not int or not 0 <= value <= most):
            raise ModelError(
                f"{field} in the config of {name} is {value!r:.40}; it must be a whole number of "
                f"at most {most:,}: the file is damaged."
            )


def check_files(name: str, folder: Path) -> None:
    """Raise a ModelError where an index names weights that are not in the folder itself, in
    safetensors: what is elsewhere is not in the model's digest."""
    for index in folder.glob("*.index.json"):
        try:
            names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
            wrong = [file for file in names if Path(file).name != file or "\\" in file]
            wrong += [file for file in names if not file.endswith(".safetensors")]
        except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index} of {name} is damaged ({error!r:.80}).") from error
        if wrong and index.name.startswith("model.safetensors"):
            raise ModelError(
                f"{index} names {wrong[0]:.80}: weights are read only from safetensors files in "
                f"the folder of {name} itself."
            )


Header = dict[str, tuple[str, tuple[int, ...]]]  # of weights files: dtype and shape by key

FLOATS = ("F64", "F32", "F16", "BF16")
NO_WEIGHT = re.compile(r"(position_ids|attn\.(masked_)?bias)$")  # masks, which older files hold


def header_in(folder: Path) -> Header | None:
    """What the safetensors files in a folder hold; None where there are none, or one is damaged,
    which ``load_model`` says."""
    found: Header = {}
    try:
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as weights:
                for name in weights.keys():  # noqa: SIM118 - it is no dict
                    one = weights.get_slice(name)
                    found[name] = one.get_dtype(), tuple(one.get_shape())
    except (SafetensorError, OSError):
        return None
    return found or None


def header_on_hub(repo: str) -> Header:
    """The same of a model of the hub, read before its files are fetched, which can take an hour.

    Raises:
        NotASafetensorsRepoError: it has no safetensors files. And errors of the connection.
    """
    files = get_safetensors_metadata(repo).files_metadata.values()
    return {
        name: (one.dtype, tuple(one.shape)) for file in files for name, one in file.tensors.items()
    }


def parameters_in(folder: Path) -> int | None:
    """How many weights ``header_in`` a folder has, whatever their dtype."""
    header = header_in(folder)
    return None if header is None else _count(header)


def _count(header: Header) -> int:
    return sum(math.prod(shape) for _, shape in header.values())


def check_header(name: str, header: Header, config: PretrainedConfig) -> None:
    """Raise a ModelError where the files cannot be of the config's model, before they are read.

    Weights are floats, unless the config says how they are quantised: of anything else numbers
    would be made. And the config's model is not several times as large as the files, of which what
    they lack would be made up (8: of weights in 4 bits, packed).
    """
    if getattr(config, "quantization_config", None) is None:
        for key, (dtype, _) in header.items():
            if dtype not in FLOATS and not NO_WEIGHT.search(key):
                raise ModelError(
                    f"{name} has weights in {dtype}, in {key:.100}, and its config names no "
                    "quantisation: the file is damaged."
                )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, trust_remote_code=False, attn_implementation=config._attn_implementation
        )
    asked, here = model.num_parameters(), _count(header)
    if asked > 8 * here:
        raise ModelError(
            f"the config of {name} is of a model of {asked:,} weights, and its files hold {here:,}:"
            " they are not of one model."
        )


def attention_of(config: PretrainedConfig) -> str:
    """Said to transformers, for a config can name another, as a kernel on the hub. It is the one
    that transformers takes where none is named."""
    family = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return "sdpa" if getattr(family, "_supports_sdpa", False) else "eager"


def check_loaded(name: str, model: PreTrainedModel, info: dict[str, object]) -> None:
    """Raise a ModelError where the weights were not those of the config.

    Args:
        info: transformers' own report of the loading.
    """
    found = {
        "has no weights for": info.get("missing_keys"),
        "has weights that are not of its config:": info.get("unexpected_keys"),
        "has weights of another shape than its config says:": info.get("mismatched_keys"),
        "could not be loaded:": info.get("error_msgs"),
    }
    for what, keys in found.items():
        if keys:
            first = sorted(map(str, keys))[0]
            more = f" and {len(keys) - 1} more" * (len(keys) > 1)
            raise ModelError(
                f"{name} {what} {first:.100}{more}, so another model than it says would be used: "
                "its files are not whole, or it is no chat model with a head."
            )
    families = [f for f in model.config.architectures or () if str(f).endswith("ForCausalLM")]
    if families and type(model).__name__ not in families:
        raise ModelError(
            f"{name} is of the family {families[0]}, and its model_type loads it as "
            f"{type(model).__name__}: config.json is damaged."
        )
    for key, value in model.named_parameters():
        if value.is_floating_point() and not value.isfinite().all():
            raise ModelError(f"{name} has weights that are not finite, in {key}: get it anew.")


def check_ends(name: str, config: GenerationConfig) -> None:
    """Raise a ModelError where a token that begins, ends or pads is not one."""
    for field in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, field)
        several = value if isinstance(value, list) and field == "eos_token_id" else [value]
        if not all(one is None or (type(one) is int and one >= 0) for one in several):
            raise ModelError(
                f"{field} in the generation_config.json of {name} is {value!r:.40}; it must be the "
                "number of a token."
            )


# In a process of its own: neither a thread nor a signal can end all that a template can do.
RENDER = """
import json, sys
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
except (ImportError, ValueError, OSError):
    pass
from transformers.utils.chat_template_utils import render_jinja_template
said = json.load(sys.stdin)
try:
    (text,), _ = render_jinja_template([said["dialogue"]], chat_template=said["template"],
        add_generation_prompt=True, enable_thinking=False, **said["tokens"])
    answer = {"text": text}
except BaseException as error:
    answer = {"error": f"{type(error).__name__}: {error}"[:300]}
json.dump(answer, sys.stdout)
"""

MARK = "Name a river."


def check_template(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Render a user's turn once, before any work.

    Raises:
        ModelError: the template does not end within ``TIMEOUT`` seconds, fails, or leaves the turn
            out, as one does that wants it in parts.
    """
    reason = _template_fault(
        tokenizer.get_chat_template(),
        json.dumps({k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}),
    )
    if reason:
        raise ModelError(f"the chat template of {name} {reason}: take another model.")


@lru_cache(maxsize=64)
def _template_fault(template: str, tokens: str) -> str | None:
    dialogue = [{"role": "user", "content": MARK}]
    said = {"template": template, "tokens": json.loads(tokens), "dialogue": dialogue}
    try:
        done = subprocess.run(
            [sys.executable, "-c", RENDER.replace("MEMORY", str(MEMORY))],
            input=json.dumps(said),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return f"takes longer than {TIMEOUT} seconds for one turn"
    except ValueError:
        return "ends the process that renders it"
    if "error" in answer:
        return f"fails at a user's turn ({' '.join(answer['error'].split())})"
    if MARK not in answer["text"]:
        return "leaves out what the user says (it may want it in parts)"
    return None
