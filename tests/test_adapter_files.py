"""An adapter that is not what its folder says is refused in one sentence, at every door, before any
weight changes: a defense that was never applied must not get a number."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_recipe, tiny_sets
from transformers import PreTrainedTokenizerFast

from xb_lite.models import loading
from xb_lite.models.adapter_files import FIELDS, AdapterError, read_adapter, read_run
from xb_lite.models.adapters import merged, scale_adapter
from xb_lite.models.loading import load_defended, model_digest
from xb_lite.models.precision import Precision
from xb_lite.training.lora import BEGUN, TrainingError, clear_disk_errors
from xb_lite.training.run import train

EXACT = Precision("cpu", torch.float32, None, "tests")
RECIPE = tiny_recipe(lora_std=0.1, steps=1)
WEIGHTS, CONFIG, RUN = "adapter_model.safetensors", "adapter_config.json", "run.json"
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("adapter") / "mine"
    model = tiny_model(tokenizer, num_hidden_layers=4)
    train(RECIPE, model, tokenizer, tiny_sets(), folder, EXACT)
    return folder


@pytest.fixture(scope="module")
def model(tokenizer):
    return tiny_model(tokenizer, num_hidden_layers=4)


@pytest.fixture
def copy(tmp_path, trained):
    return shutil.copytree(trained, tmp_path / "copy")


def edit(folder, **fields):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))


def rewrite(folder, change):
    """``change`` gets the tensors and alters them, or gives others."""
    weights = load_file(folder / WEIGHTS)
    weights = change(weights) or weights
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS)


def refused(model, folder, match=None):
    """By both readers, in a sentence, with the model as it was."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(AdapterError, match=match) as raised:
        merged(model, folder)
    assert "\n" not in str(raised.value)
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


def without(*parts):
    return lambda weights: {n: v for n, v in weights.items() if not all(p in n for p in parts)}


def put(name, value):
    return lambda weights: weights.update({name: value})


WRONG_WEIGHTS = {
    "no tensors": lambda _: {"x": torch.zeros(0)},
    "all renamed": lambda w: {n.removeprefix("base_model.model."): v for n, v in w.items()},
    "one renamed": lambda w: {n.replace("layers.0", "layers.9"): v for n, v in w.items()},
    "one B missing": without("layers.0.self_attn.q_proj.lora_B"),
    "all A missing": without("lora_A"),
    "a layer missing": without("layers.1."),
    "the last layer missing": without("layers.2."),
    "a place missing": without("layers.1.mlp.up_proj"),
    "a target missing": without("up_proj"),
    "more": put("base_model.model.model.norm.weight", torch.ones(32)),
    "a base weight": put("base_model.model.model.layers.0.self_attn.q_proj.weight", torch.ones(2)),
    "nan": put(FIRST, torch.full((4, 32), torch.nan)),
    "infinite": put(FIRST, torch.full((4, 32), torch.inf)),
    "one axis": put(FIRST, torch.ones(128)),
    "no axis": put(FIRST, torch.tensor(1.0)),
    "three axes": put(FIRST, torch.ones(4, 32, 1)),
    "whole numbers": put(FIRST, torch.ones(4, 32, dtype=torch.int64)),
    "another rank": put(FIRST, torch.ones(5, 32)),
    "turned": put(FIRST, torch.ones(32, 4)),
    "all 0": lambda w: {n: torch.zeros_like(v) for n, v in w.items()},
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_weights_that_are_not_those_of_the_config(copy, model, tmp_path, name):
    rewrite(copy, WRONG_WEIGHTS[name])
    refused(model, copy)
    if name != "all 0":
        with pytest.raises(AdapterError):
            scale_adapter(copy, 0.5, tmp_path / "scaled")
        assert not (tmp_path / "scaled").exists()


@pytest.mark.parametrize(
    "name",
    ["a layer missing", "the last layer missing", "a place missing", "a target missing"],
)
def test_without_run_json_the_model_says_what_is_missing(copy, model, name):
    """As of adapters of the hub, whose config may leave the layers to the model."""
    (copy / RUN).unlink()
    edit(copy, layers_to_transform=None)
    rewrite(copy, WRONG_WEIGHTS[name])
    refused(model, copy)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"r": 0}, "r is 0; it must be a whole number"),
        ({"r": -1}, "r is -1"),
        ({"r": True}, "r is True"),
        ({"r": 4.0}, "r is 4.0"),
        ({"r": "4"}, "r is '4'"),
        ({"r": None}, "r is None"),
        ({"r": 10**9}, "damaged"),
        ({"r": 8}, "damaged"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"lora_alpha": 99}, "run.json says lora_alpha"),
        ({"lora_dropout": 2}, "lora_dropout is 2"),
        ({"target_modules": None}, "target_modules is None"),
        ({"target_modules": ["q_proj"]}, "none of the target_modules"),
        ({"target_modules": ["(a+)+$"]}, "target_modules is"),
        ({"target_modules": "(a+)+$"}, "target_modules is"),
        ({"target_modules": [["q_proj"]]}, "target_modules is"),
        ({"layers_to_transform": [0, 1]}, "in none of the layers_to_transform"),
        ({"layers_to_transform": [0, 1, 2, 3]}, "layer 3, one of the layers_to_transform"),
        ({"layers_to_transform": [0, 1, 10**12]}, "layers_to_transform is"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; it must be LORA"),
        ({"peft_type": None}, "peft_type is None"),
        ({"task_type": "SEQ_CLS"}, "task_type is"),
        ({"bias": "all"}, "bias is 'all', which is not applied"),
        ({"use_dora": True}, "use_dora is True, which is not applied"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is"),
        ({"layer_replication": [[0, 4], [0, 4]]}, "layer_replication is"),
        ({"something_new": 3}, "something_new is 3, which is not applied"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "alpha_pattern is"),
    ],
    ids=str,
)
def test_a_config_that_is_not_of_the_weights_or_asks_for_more(copy, model, fields, says):
    edit(copy, **fields)
    refused(model, copy, says)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(field=st.sampled_from(sorted(FIELDS)) | st.text(max_size=9), value=JSON)
def test_whatever_a_field_is_the_adapter_is_refused_or_the_same(trained, copy, field, value):
    shutil.copy(trained / CONFIG, copy / CONFIG)
    edit(copy, **{field: value})
    try:
        read = read_adapter(copy)
    except AdapterError as error:
        assert "\n" not in str(error)
        return
    own = read_adapter(trained).config.to_dict()
    same = {"lora_dropout", "task_type", "base_model_name_or_path", "revision", "init_lora_weights"}
    same |= {"fan_in_fan_out", "use_rslora", "rank_pattern", "alpha_pattern", "layers_pattern"}
    same |= {"layers_to_transform"}
    found = read.config.to_dict()
    assert {n for n in own if own[n] != found[n]} <= same & {field}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(field=st.sampled_from(["run", "curve", "versions", "recipe", "strength"]), value=JSON)
def test_whatever_run_json_has_it_is_read_or_damaged(trained, copy, field, value):
    ended = json.loads((trained / RUN).read_text())
    (ended["run"] if field in ("recipe", "strength") else ended)[field] = value
    (copy / RUN).write_text(json.dumps(ended))
    try:
        assert isinstance(read_run(copy)["run"], dict)
    except AdapterError as error:
        assert "\n" not in str(error)


# The base.


@pytest.fixture
def bases(tmp_path, tokenizer, monkeypatch):
    """Two folders of models of one shape with other weights."""
    folders = []
    for name in ("one", "other"):
        base = tiny_model(tokenizer, num_hidden_layers=4)
        with torch.no_grad():
            base.model.norm.weight += len(folders)
        base.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        folders.append(tmp_path / name)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    monkeypatch.chdir(tmp_path)
    return folders


def of(folder, base, digest=""):
    edit(folder, base_model_name_or_path=base)
    ended = json.loads((folder / RUN).read_text())
    ended["run"] |= {"model": digest}
    ended["run"]["recipe"]["model"] = base
    (folder / RUN).write_text(json.dumps(ended))


def test_an_adapter_of_another_base_is_refused_by_its_digest(copy, bases):
    one, other = bases
    of(copy, "one", model_digest(one))
    load_defended(one, EXACT, copy)
    with pytest.raises(AdapterError, match=r"is of a model of the digest \w+…, not of .*other"):
        load_defended(other, EXACT, copy)


def test_an_adapter_of_the_hub_is_refused_by_the_name_of_its_base(copy, bases, monkeypatch):
    (copy / RUN).unlink()
    edit(copy, base_model_name_or_path="org/One")
    load_defended(bases[0], EXACT, copy)  # a folder of that name
    with pytest.raises(AdapterError, match="is of org/One, not of .*: give that model"):
        load_defended(bases[1], EXACT, copy)
    edit(copy, base_model_name_or_path="/home/maker/base")
    with pytest.warns(UserWarning, match="does not say which model it is of"):
        load_defended(bases[1], EXACT, copy)


def test_a_loaded_model_knows_which_one_it_is(copy, model, monkeypatch):
    of(copy, "smollm2-135m", "a" * 64)
    monkeypatch.setattr(model, "xb_digest", "b" * 64, raising=False)
    with pytest.raises(AdapterError, match="is of a model of the digest aaaaaaaaaaaa…"):
        merged(model, copy)


# Saving.


def test_what_is_published_names_no_place_of_its_maker(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "base").mkdir()
    recipe = tiny_recipe(lora_std=0.1, steps=1, model=str(tmp_path / "base"))
    base = tiny_model(tokenizer, num_hidden_layers=4)
    train(recipe, base, tokenizer, tiny_sets(), tmp_path / "made", EXACT)
    for path in (tmp_path / "made").iterdir():
        if path.name != WEIGHTS:
            assert str(tmp_path) not in path.read_text(), path.name
    assert read_adapter(tmp_path / "made").config.base_model_name_or_path == "base"
    again = train(recipe, base, tokenizer, tiny_sets(), tmp_path / "made", EXACT)
    assert len(again.curve) == 1


def test_training_that_ends_in_weights_that_are_not_finite_saves_the_last_good(tmp_path, tokenizer):
    recipe = tiny_recipe(lora_std=0.1, steps=1, learning_rate=1e300)
    base = tiny_model(tokenizer, num_hidden_layers=4)
    with pytest.raises(TrainingError, match="weights after step 1 are not finite.*learning_rate"):
        train(recipe, base, tokenizer, tiny_sets(), tmp_path / "made", EXACT)
    assert read_run(tmp_path / "made") is None
    good = load_file(tmp_path / "made" / "last_good" / WEIGHTS)
    assert all(value.isfinite().all() for value in good.values())


def test_a_strength_that_leaves_fp16_is_refused(trained, tmp_path):
    for strength in (1e9, 1e-9):
        with pytest.raises(ValueError, match="leave the range of fp16"):
            scale_adapter(trained, strength, tmp_path / "new")
    assert not (tmp_path / "new").exists()


FULL = "No space left on device"


@pytest.mark.parametrize("error", [OSError(28, FULL), SafetensorError(f"I/O error: {FULL}")])
def test_a_full_disk_is_one_sentence_and_leaves_nothing(trained, tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("xb_lite.models.adapters.save_file", full)
        with pytest.raises(AdapterError, match=f"{FULL}\\): make room"):
            scale_adapter(trained, 0.5, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert scale_adapter(trained, 0.5, tmp_path / "new").exists()
    assert len(os.listdir(tmp_path / "new")) == 4


@pytest.mark.parametrize("module", ["safetensors.torch.save_file", "torch.save"])
def test_a_full_disk_at_a_checkpoint_is_one_sentence(tmp_path, tokenizer, monkeypatch, module):
    def full(*_, **__):
        raise RuntimeError("PytorchStreamWriter failed writing file data.pkl: file write failed")

    monkeypatch.setattr("xb_lite.training.lora.SAVE_EVERY", 1)
    monkeypatch.setattr(module, full)
    monkeypatch.setattr("peft.peft_model.safe_save_file", full)
    base = tiny_model(tokenizer, num_hidden_layers=4)
    with pytest.raises(TrainingError, match="cannot be written to .*make room"):
        train(RECIPE, base, tokenizer, tiny_sets(), tmp_path / "made", EXACT)


@pytest.mark.parametrize(
    ("error", "of_disk"),
    [
        (OSError(28, FULL), True),
        (OSError(2, "No such file", "made/checkpoints/x"), True),
        (OSError(13, "Permission denied", "elsewhere/x"), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),
    ],
)
def test_only_errors_of_the_folder_are_said_to_be_of_its_disk(
    tmp_path, monkeypatch, error, of_disk
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingError if of_disk else type(error)), clear_disk_errors(Path("made")):
        raise error


def test_a_finished_run_that_was_killed_while_clearing_up_is_cleared_up(copy, tokenizer):
    (copy / "checkpoints" / "checkpoint-25").mkdir(parents=True)
    (copy / BEGUN).write_text("{}")
    (copy / ".part-xyz").mkdir()
    base = tiny_model(tokenizer, num_hidden_layers=4)
    train(RECIPE, base, tokenizer, tiny_sets(), copy, EXACT)
    assert sorted(os.listdir(copy)) == sorted([WEIGHTS, CONFIG, RUN, "README.md"])


def test_a_finished_run_whose_weights_are_damaged_is_not_taken_for_one(copy, tokenizer):
    rewrite(copy, without("layers.1."))
    base = tiny_model(tokenizer, num_hidden_layers=4)
    with pytest.raises(AdapterError, match="layer 1, one of the layers_to_transform"):
        train(RECIPE, base, tokenizer, tiny_sets(), copy, EXACT)


def test_the_reader_of_the_command_is_this_one():
    assert loading.read_adapter is read_adapter
