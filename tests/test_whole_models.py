"""A folder that is not the model it says is refused in one sentence, within a time limit."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from xb_lite.dialogues import as_dialogue, encode
from xb_lite.models import whole
from xb_lite.models.cached import ModelError
from xb_lite.models.loading import load_model, model_digest
from xb_lite.models.precision import Precision

FP32 = Precision("cpu", torch.float32, None, "tests")
PLACE = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("model") / "whole"
    config = AutoConfig.for_model(
        "llama",
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=len(tokenizer),
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path, made):
    return shutil.copytree(made, tmp_path / "model")


def edit(folder, name="config.json", **fields):
    path = folder / name
    there = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**there, **fields}))


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder, match):
    with pytest.raises(ModelError, match=match) as raised:
        load_model(folder, FP32)
    assert "\n" not in str(raised.value)


def test_a_whole_one_loads(folder):
    model, _ = load_model(folder, FP32)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop(PLACE), rf"has no weights for {PLACE}"),
        (lambda w: w.pop("model.norm.weight"), "has no weights for model.norm.weight"),
        (lambda w: w.update({"x.y": w.pop(PLACE)}), "has no weights for"),
        (lambda w: w.update({"model.layers.2.mlp.up_proj.weight": w[PLACE] + 0}), "not of its con"),
        (lambda w: w.update({PLACE: w[PLACE] * torch.nan}), "that are not finite"),
        (lambda w: w.update({PLACE: w[PLACE] / 0}), "that are not finite"),
        (lambda w: w.update({PLACE: w[PLACE][:5].clone()}), "model"),
        (lambda w: [w.pop(n) for n in list(w) if ".layers.1." in n], "has no weights for"),
    ],
    ids=range(8),
)
def test_weights_that_are_not_those_of_the_config(folder, change, says):
    rewrite(folder, change)
    refused(folder, says)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers in the config of .* at most 1,000"),
        ({"num_hidden_layers": 1}, "weights that are not of its config"),
        ({"num_hidden_layers": 3}, "has no weights for"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"intermediate_size": 10**6}, "is of a model of .* weights, and its files hold"),
        ({"model_type": "mistral"}, "of the family LlamaForCausalLM.*as MistralForCausalLM"),
        ({"model_type": "gpt2"}, "model"),
    ],
    ids=str,
)
def test_a_config_that_is_not_of_the_weights(folder, fields, says):
    edit(folder, **fields)
    refused(folder, says)


def test_a_kernel_that_a_config_names_is_not_looked_for(folder):
    edit(folder, attn_implementation="evil/kernel", _attn_implementation="evil/kernel")
    assert load_model(folder, FP32)[0].config._attn_implementation == "sdpa"


def test_a_model_without_a_head(folder, made):
    config = AutoConfig.from_pretrained(made)
    AutoModel.from_config(config).save_pretrained(folder)
    refused(folder, "has no weights for lm_head.weight.*no chat model with a head")


def test_a_tokenizer_with_nothing_to_pad_with(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    refused(folder, "neither a token that ends a turn")


@pytest.mark.parametrize("value", ["x", 1.5, [2], {"a": 1}, -3])
def test_a_generation_config_whose_tokens_are_none(folder, value):
    edit(folder, "generation_config.json", bos_token_id=value)
    refused(folder, "model")


@pytest.mark.parametrize(
    ("template", "says", "seconds"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
            "takes longer than 1.5 seconds for one turn",
            1.5,
        ),
        ("{{ 9**(9**9) }}{{ messages[0].content }}", "takes longer|fails", 1.5),
        ("{{ 'x' * 10**11 }}", "fails at a user's turn .MemoryError|ends the process", 60),
        ("{{ raise_exception('no users') }}", "fails at a user's turn .*no users", 60),
        ("{{ messages[0].content[0].text }}", "leaves out what the user says", 60),
        ("{% for p in messages[0].content %}{{ p.text }}{% endfor %}", "leaves out", 60),
        ("{% if %}", "fails at a user's turn", 60),
    ],
)
def test_a_template_that_does_not_end_or_takes_no_text(
    folder, monkeypatch, template, says, seconds
):
    monkeypatch.setattr(whole, "TIMEOUT", seconds)
    (folder / "chat_template.jinja").write_text(template)
    refused(folder, f"the chat template of .*{says}")


def test_a_template_that_wants_parts_is_one_sentence(tokenizer, monkeypatch):
    template = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(ValueError, match="may want their content in parts"):
        encode(tokenizer, as_dialogue("Hi", "Ho"))


@pytest.mark.parametrize(
    "place", ["../elsewhere/model.safetensors", "model.bin", "sub/a.safetensors"]
)
def test_weights_elsewhere_are_not_read(folder, place):
    names = load_file(folder / "model.safetensors")
    target = folder / place
    target.parent.mkdir(exist_ok=True)
    shutil.move(folder / "model.safetensors", target)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, place)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "are read only from safetensors files in the folder")


def test_a_damaged_index_is_one_sentence(folder):
    for content in ("[]", "{", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'):
        (folder / "model.safetensors.index.json").write_text(content)
        refused(folder, "is damaged")


def test_the_digest_is_of_all_that_is_read(folder):
    before = model_digest(folder)
    rewrite(folder, lambda w: w.update({PLACE: w[PLACE] + 1}))
    assert model_digest(folder) != before


@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_weights_that_are_no_floats_are_not_cast(folder, kind):
    rewrite(folder, lambda w: w.update({PLACE: w[PLACE].to(kind)}))
    refused(folder, "has weights in .*, in model.layers.1.mlp.up_proj.weight, and its config names")


def test_a_mask_of_an_older_file_is_no_weight(folder):
    header = {"h.0.attn.bias": ("BOOL", (1, 9, 9)), "wte.weight": ("F32", (10**6, 9))}
    config = AutoConfig.from_pretrained(folder)
    config._attn_implementation = "eager"
    whole.check_header("old", header, config)
    with pytest.raises(ModelError, match="weights in I8, in wte.weight"):
        whole.check_header("old", {"wte.weight": ("I8", (9, 9))}, config)
    config.quantization_config = {"quant_method": "gptq"}
    whole.check_header("old", {"wte.weight": ("I8", (10**6, 9))}, config)


def test_a_model_of_the_hub_is_looked_at_before_it_is_fetched(folder, monkeypatch):
    """Its files, as the hub describes them, are of another model than its config."""
    from xb_lite.models import loading

    asked = []

    def metadata(repo):
        asked.append(repo)
        one = SimpleNamespace(dtype="F32", shape=[3, 4])
        return SimpleNamespace(files_metadata={"a": SimpleNamespace(tensors={"lm_head": one})})

    def hub(kind):
        """What asks the hub asks the folder."""
        own = kind.from_pretrained
        return lambda source, **more: own(str(folder), **more)

    monkeypatch.setattr(whole, "get_safetensors_metadata", metadata)
    monkeypatch.setattr(loading, "_hub_answers", lambda source: True)
    for kind in (loading.AutoTokenizer, loading.AutoConfig):
        monkeypatch.setattr(kind, "from_pretrained", hub(kind))
    config = loading.PretrainedConfig.get_config_dict
    monkeypatch.setattr(
        loading.PretrainedConfig, "get_config_dict", lambda _, **more: config(str(folder), **more)
    )
    monkeypatch.setattr(loading.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ModelError, match="is of a model of .* weights, and its files hold 12"):
        load_model("some/model", FP32)
    assert asked == ["some/model"]
