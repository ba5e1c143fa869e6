"""An adapter on disk is what was trained, and what plain peft and vLLM expect to find."""

import json
import re
import shutil
import warnings
from pathlib import Path
from tempfile import gettempdir

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import tiny_model, tiny_recipe, tiny_sets

from xb_lite.__main__ import main
from xb_lite.models.adapters import AdapterError, merged, read_run, scale_adapter
from xb_lite.models.precision import Precision
from xb_lite.recipes import as_fields
from xb_lite.recipes.kinds import LINEAR
from xb_lite.training import run as training
from xb_lite.training.lora import adapted
from xb_lite.training.run import train

EXACT = Precision("cpu", torch.float32, None, "tests")
# Large, so that rounding is small beside it.
RECIPE = tiny_recipe(lora_std=0.1, learning_rate=0.05, lora_alpha=8)
WEIGHTS = "adapter_model.safetensors"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tokenizer):
    """The folder of an adapter, and its weights before they were rounded."""
    folder, exact = tmp_path_factory.mktemp("adapter") / "mine", {}

    def save(learning, *rest):
        for name, value in get_peft_model_state_dict(learning).items():
            exact[name] = value.detach().clone()
        saved(learning, *rest)

    saved = training.save_adapter
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "save_adapter", save)
        model = tiny_model(tokenizer, num_hidden_layers=4)
        sets = tiny_sets()
        train(RECIPE, model, tokenizer, sets, folder, EXACT, seed=5, model_digest="abc123")
    return folder, exact


@pytest.fixture
def copy(tmp_path, trained):
    """Of the adapter, to be damaged."""
    return shutil.copytree(trained[0], tmp_path / "copy")


def model_of(tokenizer, **options):
    return tiny_model(tokenizer, **{"num_hidden_layers": 4, **options})


def read_config(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@torch.no_grad()
def logits(model):
    ids = torch.arange(5, 45).view(2, 20)
    return model(input_ids=ids, use_cache=False).logits


def test_weights_are_the_trained_ones_rounded_to_fp16(trained):
    folder, exact = trained
    found = load_file(folder / WEIGHTS)
    assert found.keys() == exact.keys()
    assert all(torch.equal(value, exact[name].half()) for name, value in found.items())
    assert all(value.abs().max() > 0 for value in found.values())
    with safe_open(folder / WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_plain_peft_loads_it_onto_the_whole_model(trained, tokenizer):
    folder, exact = trained
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # of keys that are missing
        loaded = PeftModel.from_pretrained(model_of(tokenizer), str(folder))
    whole = merged(model_of(tokenizer), folder)
    base = logits(model_of(tokenizer))
    assert torch.allclose(logits(loaded), logits(whole), rtol=1e-4, atol=1e-4)
    with adapted(model_of(tokenizer), RECIPE, seed=0) as learning:
        set_peft_model_state_dict(learning, exact)
        wanted = logits(learning.eval())
    change = (wanted - base).norm()
    assert change > 0.1 * base.norm()
    assert (logits(whole) - wanted).norm() < 5e-3 * change


def test_a_merged_model_is_a_plain_one(trained, tokenizer):
    base, whole = model_of(tokenizer), merged(model_of(tokenizer), trained[0])
    assert type(whole) is type(base) and not whole.training
    assert whole.config.to_dict() == base.config.to_dict()
    wanted = {name: value.requires_grad for name, value in base.named_parameters()}
    assert {name: value.requires_grad for name, value in whole.named_parameters()} == wanted


def test_its_format_is_the_one_vllm_reads(trained):
    """As in vLLM's ``lora/utils.py`` (names), ``lora/peft_helper.py`` (config) and its default
    ``max_lora_rank`` of 16."""
    folder, _ = trained
    config = read_config(folder)
    assert config["peft_type"] == "LORA"
    assert isinstance(config["r"], int) and config["r"] == RECIPE.rank
    assert config["lora_alpha"] == RECIPE.lora_alpha
    assert config["target_modules"] == sorted(LINEAR)
    assert config["bias"] == "none" and not config["modules_to_save"]
    assert not config["use_dora"] and not config["use_rslora"]
    name = re.compile(
        rf"base_model\.model\.model\.layers\.([012])\.(self_attn|mlp)\.({'|'.join(LINEAR)})"
        r"\.lora_([AB])\.weight"
    )
    found = load_file(folder / WEIGHTS)
    assert all(name.fullmatch(key) for key in found) and len(found) == 3 * len(LINEAR) * 2
    for key, value in found.items():
        side = 0 if "lora_A" in key else 1
        assert value.dtype == torch.float16 and value.shape[side] == config["r"]


def test_its_files_name_the_base_model_and_no_place_on_this_machine(trained):
    folder, _ = trained
    assert read_config(folder)["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    for path in folder.iterdir():
        if path.name != WEIGHTS:
            text = path.read_text()
            assert not any(place in text for place in (gettempdir(), str(Path.home())))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["README.md", "adapter_config.json", WEIGHTS, "run.json"]
    )


def test_the_card_says_what_it_is(trained):
    folder, _ = trained
    card = (folder / "README.md").read_text()
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert head.splitlines() == [
        "base_model: HuggingFaceTB/SmolLM2-135M-Instruct",
        "library_name: peft",
        "language: en",
    ]
    found = read_run(folder)
    run = {name: value for name, value in found["run"].items() if name != "recipe"}
    for name, value in {**run, **as_fields(RECIPE), **found["versions"]}.items():
        assert f"| {name} | {value} |" in body
    for name in ("retain", "erase", "separate"):
        assert f"| {name} | {round(found['curve'][-1][name], 4)} |" in body


def test_the_run_has_all_that_decided_it(trained):
    found = read_run(trained[0])
    assert found.keys() == {"run", "versions", "curve"}
    assert found["run"] == {
        "recipe": as_fields(RECIPE),
        "seed": 5,
        "sets": tiny_sets().digest,
        "model": "abc123",
        "precision": str(EXACT),
    }
    assert [row["step"] for row in found["curve"]] == [1, 2, 3, 4]
    assert found["versions"].keys() == {"xb-lite", "torch", "transformers", "peft"}


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_size": 64},
        {"num_hidden_layers": 2},
        {"kind": "gpt2"},
    ],
    ids=str,
)
def test_another_models_adapter_is_refused_and_the_model_is_as_before(trained, tokenizer, options):
    model = model_of(tokenizer, **options)
    names, before = [name for name, _ in model.named_parameters()], logits(model)
    with pytest.raises(AdapterError, match="does not fit this model") as raised:
        merged(model, trained[0])
    assert "\n" not in str(raised.value)
    assert [name for name, _ in model.named_parameters()] == names
    assert all(value.requires_grad for value in model.parameters())
    assert torch.equal(logits(model), before)


def test_a_folder_without_an_adapter_is_said_to_have_none(tmp_path, tokenizer):
    with pytest.raises(AdapterError, match=f"no adapter in .*nowhere: {WEIGHTS} is missing"):
        merged(model_of(tokenizer), tmp_path / "nowhere")
    assert read_run(tmp_path) is None


@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json"])
def test_a_damaged_adapter_is_said_to_be_damaged(copy, tokenizer, name):
    for data in (b"", b"{", (copy / name).read_bytes()[:100]):
        (copy / name).write_bytes(data)
        with pytest.raises(AdapterError, match="copy"):
            merged(model_of(tokenizer), copy)
    (copy / name).unlink()
    with pytest.raises(AdapterError, match="copy"):
        merged(model_of(tokenizer), copy)


def test_a_damaged_run_is_said_to_be_damaged(copy):
    path = copy / "run.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(AdapterError, match="run.json is damaged"):
        read_run(copy)


def test_an_adapter_in_half_the_weights_is_merged_into_half_the_weights(trained, tokenizer):
    half = merged(model_of(tokenizer).to(torch.bfloat16), trained[0])
    assert {value.dtype for value in half.parameters()} == {torch.bfloat16}
    wanted = logits(merged(model_of(tokenizer), trained[0]))
    assert (logits(half).float() - wanted).norm() < 0.1 * wanted.norm()


# Strength.


def test_a_scaled_adapter_goes_that_part_of_the_way(tokenizer, trained, tmp_path):
    ends = model_of(tokenizer), merged(model_of(tokenizer), trained[0])
    ends = [model.state_dict() for model in ends]
    for strength in (0.0, 0.5, 2.0):
        folder = scale_adapter(trained[0], strength, tmp_path / str(strength))
        found = merged(model_of(tokenizer), folder).state_dict()
        for name, value in found.items():
            wanted = torch.lerp(ends[0][name], ends[1][name], strength)
            torch.testing.assert_close(value, wanted, atol=2e-4, rtol=1e-3)
        assert any(not torch.equal(found[n], ends[1][n]) for n in found)


def test_a_scaled_adapter_says_so_and_is_one_for_peft(tokenizer, trained, tmp_path):
    half = scale_adapter(trained[0], 0.5, tmp_path / "half")
    once_more = scale_adapter(half, 0.5, tmp_path / "quarter")
    assert read_run(once_more)["run"]["strength"] == 0.25
    assert read_run(once_more)["curve"] == read_run(trained[0])["curve"]
    assert "| strength | 0.25 |" in (once_more / "README.md").read_text()
    assert read_config(once_more) == read_config(trained[0])
    adapted_ = PeftModel.from_pretrained(model_of(tokenizer), str(half)).eval()
    assert torch.allclose(logits(adapted_), logits(merged(model_of(tokenizer), half)), atol=1e-4)


def test_what_cannot_be_scaled(trained, copy, tmp_path):
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be a number of at least 0"):
            scale_adapter(trained[0], strength, tmp_path / "new")
    with pytest.raises(ValueError, match="name another folder"):
        scale_adapter(trained[0], 0.5, trained[0])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("A page of mine.")
    with pytest.raises(ValueError, match="has a README.md of its own: name another folder"):
        scale_adapter(trained[0], 0.5, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["README.md"]
    shutil.copytree(trained[0], tmp_path / "another", ignore=lambda *_: ["run.json"])
    (tmp_path / "another" / "README.md").write_text("The card of an adapter from elsewhere.")
    with pytest.raises(ValueError, match="has a README.md of its own: name another folder"):
        scale_adapter(trained[0], 0.5, tmp_path / "another")
    with pytest.raises(ValueError, match="holds another adapter: name another folder"):
        scale_adapter(trained[0], 0.5, copy)
    (copy / "run.json").unlink()
    with pytest.raises(AdapterError, match="no finished adapter in .*run.json is missing"):
        scale_adapter(copy, 0.5, tmp_path / "new")
    with pytest.raises(AdapterError, match="no adapter in"):
        scale_adapter(tmp_path / "nowhere", 0.5, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_command_that_scales(trained, tmp_path, capsys):
    into = tmp_path / "half"
    assert main(["scale", str(trained[0]), "0.5", "--into", str(into)]) == 0
    assert capsys.readouterr().out.strip() == str(into)
    assert read_run(into)["run"]["strength"] == 0.5
    assert main(["scale", str(trained[0]), "0.5", "--into", str(into)]) == 0  # the same once more
    assert main(["scale", str(into), "-1", "--into", str(tmp_path / "new")]) == 1
    assert "at least 0" in capsys.readouterr().err
