"""Estimates: sizes against published ones, parts against a real graph, and the command."""

import json
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError

from xb_lite import __main__
from xb_lite.models.cached import SPECS
from xb_lite.recipes import RecipeError, load_recipe, recipe_names
from xb_lite.results.contract import read_result
from xb_lite.results.frames import find
from xb_lite.scaling import shapes
from xb_lite.scaling.cards import CARDS
from xb_lite.scaling.command import before_fetching
from xb_lite.scaling.estimates import estimate, estimate_table
from xb_lite.scaling.shapes import Shape, ShapeError, from_config, shape_of

ROOT = Path(__file__).parent.parent
CPU = "x-boundary-smollm2-135m"
# As the models' own pages state them.
PARAMETERS = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": 8_030_261_248,
    "mistralai/Mistral-7B-Instruct-v0.2": 7_241_732_096,
}


@pytest.fixture
def offline(monkeypatch):
    def no(*args, **kwargs):
        raise OSError("nothing is fetched here")

    monkeypatch.setattr(shapes, "get_hf_file_metadata", lambda *_, **__: None)
    monkeypatch.setattr(shapes, "hf_hub_download", no)


def of(name=CPU, card="cpu", how=None, **changes):
    recipe = load_recipe(name, **changes)
    return estimate(recipe, shape_of(recipe.model), CARDS[card], **(how or {}))


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_are_the_published_ones(name, offline):
    assert shape_of(name).parameters == PARAMETERS[name]


def test_sizes_of_packaged_models_are_those_of_their_files(offline):
    for name, spec in SPECS.items():
        assert shape_of(name).parameters == spec.parameters
        assert shape_of(name).num_hidden_layers == spec.layers
    assert shape_of("smollm2-135m-aligned") == shape_of("smollm2-135m")


def test_a_shape_is_that_of_the_real_model(default_model):
    from xb_lite.training.lora import adapted

    model, _ = default_model
    shape = from_config("it", model.config.to_dict())
    assert shape.parameters == model.num_parameters()
    recipe = load_recipe(CPU)
    with adapted(model, recipe, 0) as learning:
        trained = sum(p.numel() for p in learning.parameters() if p.requires_grad)
    assert trained == shape.lora_parameters(recipe.lora_layers, recipe.rank)


def test_every_recipe_has_an_estimate_without_fetching(offline):
    for name in recipe_names():
        recipe = load_recipe(name)
        for card in CARDS.values():
            found = estimate(recipe, shape_of(recipe.model), card)
            assert 0 < found.weights < found.memory < 2e12
            assert 0 < found.step * recipe.steps == pytest.approx(found.seconds)
            assert found.download <= found.disk


def test_the_published_recipes_fit_a_card_of_80_gb_and_the_small_ones_a_t4():
    for name in ("llama-3-8b", "mistral-7b", "qwen2.5-7b", "r1-distill-llama-8b"):
        assert of(f"x-boundary-{name}", "a100-80gb").fits
        assert not of(f"x-boundary-{name}", "t4").fits
    for name in ("smollm2-1.7b", "qwen2.5-1.5b", "qwen2.5-0.5b"):
        assert of(f"x-boundary-{name}", "t4").memory < 15e9


@pytest.mark.parametrize(("card", "capability"), [("t4", (7, 5)), ("a100-80gb", (8, 0))])
@pytest.mark.parametrize("kind", ["package", "hub", "folder"])
def test_an_estimate_is_in_the_formats_that_the_model_is_loaded_in(
    tmp_path, monkeypatch, card, capability, kind
):
    import torch
    from safetensors.torch import save_file

    from xb_lite.models.loading import precision_of

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = {**sizes, "num_hidden_layers": 24, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"weight": torch.zeros(8)}, tmp_path / "model.safetensors")
    hub, package = "Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-coder-0.5b"
    name = {"package": package, "hub": hub, "folder": str(tmp_path)}[kind]
    memory = SimpleNamespace(total_memory=int(CARDS[card].memory * 1e9))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    loaded = precision_of(name)
    found = of("x-boundary-qwen2.5-0.5b", card, model=name, gradient_checkpointing=False)
    assert found.weights == loaded.weights.itemsize * shape_of(name).parameters
    assert bool(found.copies) == (loaded.products is not None)
    assert (loaded.weights == torch.float32) == (
        kind == "folder" or (kind, card) == ("package", "a100-80gb")
    )


def test_what_takes_more_is_said_to():
    plain = of()
    assert of(max_tokens=192).memory < plain.memory
    assert of(how={"tokens": 100}) == of(how={"tokens": 100}, max_tokens=384)
    assert of(pairs_at_once=1).activations == pytest.approx(plain.activations / 4)
    assert of(pairs_at_once=1).operations == plain.operations
    recomputed = of(gradient_checkpointing=True)
    assert recomputed.activations < plain.activations / 2 and recomputed.copies == 0
    assert recomputed.operations > plain.operations
    assert of(reference="adapter-off").kept == 0
    assert of(reference="adapter-off").activations > plain.activations
    assert of(dropout=0.05).activations > plain.activations
    assert of(rank=32).adapter == 2 * plain.adapter
    assert of(how={"items": 40}).kept < plain.kept
    # Of a baseline the whole model is run, and its logits are kept.
    assert of("gradient-ascent-smollm2-135m").activations > plain.activations


def test_dpo_reads_every_item_with_either_answer_and_once_more_for_its_reference():
    sft, dpo = (of(f"{method}-smollm2-135m") for method in ("sft", "dpo"))
    assert dpo.activations == pytest.approx(2 * sft.activations)
    assert dpo.step == pytest.approx(2 * 3 / 2 * sft.step)


def test_processes_share_the_work_and_with_zero_3_the_weights():
    one, four = (of("x-boundary-llama-3-8b", "a100-80gb", {"processes": n}) for n in (1, 4))
    assert four.step == one.step / 4 and four.memory == one.memory
    shared = of("x-boundary-llama-3-8b", "a100-80gb", {"processes": 4, "sharded": True})
    assert shared.weights < one.weights / 3


def test_a_config_of_ones_own_is_read(tmp_path, offline):
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 100,
    }
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "model_type": "qwen2"}))
    assert shape_of(tmp_path) == Shape(**sizes, num_key_value_heads=4, attention_bias=True)
    with pytest.raises(ShapeError, match="lacks a size: .*vocab_size"):
        from_config("it", {k: v for k, v in sizes.items() if k != "vocab_size"})
    for name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        with pytest.raises(ShapeError, match="it has experts"):
            from_config("it", {**sizes, name: 4})
    for name in ("layer_norm_eps", "norm_epsilon", "do_layer_norm_before"):  # BERT's, OPT's, …
        with pytest.raises(ShapeError, match="it is of another kind .gpt."):
            from_config("it", {**sizes, name: 1e-5, "model_type": "gpt"})
    with pytest.raises(ShapeError, match="no/such cannot be had .nothing is fetched here"):
        shape_of("no/such")
    for name in ("/no/such/folder", "./no-such-folder"):
        with pytest.raises(ShapeError, match="cannot be had .there is no such folder"):
            shape_of(name)
    recipe = replace(load_recipe(CPU), lora_layers=20, model=str(tmp_path))
    with pytest.raises(RecipeError, match="lora_layers is 20; it must be at most 4"):
        estimate(recipe, shape_of(tmp_path))


@pytest.fixture
def unreachable(monkeypatch):
    """A hub at whose address nobody listens; what is downloaded for all that is noted."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setattr(shapes, "hf_hub_url", lambda *_: f"http://127.0.0.1:{port}/config.json")
    monkeypatch.setattr(shapes, "hf_hub_download", lambda *what: asked.append(what))
    return asked


def test_without_a_connection_there_is_no_estimate_at_once(unreachable):
    recipe = replace(load_recipe(CPU), model="no/such")
    began = time.monotonic()
    assert before_fetching(recipe) == (
        "no estimate of memory: the config of no/such cannot be had (no connection to the hub, "
        "and it is not in its cache)."
    )
    assert time.monotonic() - began < 5 and not unreachable


def test_without_a_connection_a_config_from_before_will_do(unreachable, monkeypatch, tmp_path):
    sizes = {name: 8 for name in Shape.__annotations__}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    kept = str(tmp_path / "config.json")
    monkeypatch.setattr(shapes, "try_to_load_from_cache", lambda *_: kept)
    assert shape_of("no/such") == Shape(**sizes) and not unreachable


def test_a_hub_that_refuses_says_why(monkeypatch, offline):
    def refused(url, timeout):
        assert timeout <= 5
        response = SimpleNamespace(headers={}, request=None)
        raise HfHubHTTPError("404", response=response)

    monkeypatch.setattr(shapes, "get_hf_file_metadata", refused)
    with pytest.raises(ShapeError, match="no/such cannot be had .nothing is fetched here"):
        shape_of("no/such")


def test_the_command_prints_a_line_a_card(capsys, offline):
    assert __main__.main(["estimate", "x-boundary-llama-3-8b", "--cards", "a100-80gb", "t4"]) == 0
    said = capsys.readouterr().out
    assert "8.03 billion parameters, 21 of 32 layers trained" in said
    fits, too_much = said.splitlines()[2:4]
    assert fits.startswith("A100, 80 GB") and "too much" not in fits
    assert too_much.startswith("T4") and "too much" in too_much
    assert "to fetch 16.06 GB" in said
    assert __main__.main(["estimate", CPU, "--set", "max_tokens=96", "--tokens", "50"]) == 0
    for wrong, words in (
        (["--cards", "abacus"], "there is no card 'abacus'"),
        (["--tokens", "0"], "--tokens is 0"),
        (["--set", "steps=0"], "steps is 0"),
        (["--processes", "0"], "--processes is 0"),
        (["--processes", "3"], "times the number of processes (3)"),
        (["--set", "pairs_at_once=2", "--processes", "2", "--sharded"], "with ZeRO-3 or FSDP"),
    ):
        assert __main__.main(["estimate", CPU, *wrong]) == 1
        assert words in capsys.readouterr().err


def test_the_command_needs_no_torch():
    script = (
        "import sys\nfrom xb_lite.__main__ import main\nmain(['estimate', 'x-boundary-llama-3-8b'])"
        "\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT).returncode == 0


def test_training_says_it_before_anything_is_fetched(capsys, monkeypatch, tmp_path):
    from xb_lite.training import defense

    def loading(*args, **kwargs):
        raise RuntimeError("here it would be fetched")

    monkeypatch.setattr(defense, "local_subject", loading)
    command = ["train", "x-boundary-llama-3-8b", "--into", str(tmp_path)]
    assert __main__.main(command) == 1
    said = capsys.readouterr()
    assert "to fetch 16.06 GB" in said.out and "here it would be fetched" in said.err


def test_under_fp16_the_adapter_and_the_states_of_the_loss_stay_in_fp32(tokenizer):
    """As on a T4: what is trained and what is compared must not round away."""
    import torch
    from tiny import tiny_model, tiny_recipe, tiny_sets

    from xb_lite.losses.batch import collate
    from xb_lite.losses.step import forward
    from xb_lite.models.packing import by_row
    from xb_lite.models.precision import Precision
    from xb_lite.training.draw import draw_pairs
    from xb_lite.training.lora import adapted, arguments

    recipe = tiny_recipe(steps=1)
    model = tiny_model(tokenizer, num_hidden_layers=4).half()
    batch = collate(draw_pairs(recipe, tiny_sets(), tokenizer, 0), tokenizer.pad_token_id)
    with adapted(model, recipe, 0) as learning, by_row(model):
        learned = [p for p in learning.parameters() if p.requires_grad]
        assert {p.dtype for p in learned} == {torch.float32}
        with torch.autocast("cpu", dtype=torch.float16):
            states = forward(learning, learning, batch, recipe)
    assert {state.dtype for state in states.values()} == {torch.float32}
    fp16 = Precision("cpu", torch.float16, None, "tests")
    assert arguments(recipe, Path("nowhere"), fp16, 0).fp16  # with loss scaling, by the Trainer


def test_loss_scaling_keeps_gradients_that_fp16_would_lose(tokenizer):
    """As on a T4: without it most gradients of the recipe's long items would be zero."""
    import torch
    from tiny import tiny_model, tiny_recipe, tiny_sets

    from xb_lite import losses
    from xb_lite.losses.batch import collate
    from xb_lite.losses.step import Reference, forward, step_terms, token_counts
    from xb_lite.models.packing import by_row
    from xb_lite.training.draw import draw_pairs
    from xb_lite.training.lora import adapted

    recipe = tiny_recipe(steps=1, lora_std=0.1)
    model = tiny_model(tokenizer, num_hidden_layers=4)
    pairs = draw_pairs(recipe, tiny_sets(), tokenizer, 0)
    batch = collate(pairs, tokenizer.pad_token_id)
    many = 1e-4  # as of ten thousand times as many tokens, of which the loss is the mean

    def gradient(scaler, products):
        with adapted(model, recipe, 0) as learning, by_row(model):
            with torch.autocast("cpu", dtype=torch.float16, enabled=products):
                before = Reference(recipe, pairs, 0).of(learning, learning, batch)
                states = forward(learning, learning, batch, recipe)
            terms = step_terms(recipe, batch, states, before, token_counts(recipe, batch))
            weights = losses.coefficients(90, 150, 10.0)
            loss = losses.total(weights, terms, recipe.retain_weight, recipe.separate_weight)
            learned = [p for p in learning.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(learned)
            scaler.scale(many * loss).backward()
            scaler.unscale_(optimizer)
            return torch.cat([p.grad.flatten() for p in learned])

    off, on = (torch.amp.GradScaler("cpu", enabled=enabled) for enabled in (False, True))
    exact = gradient(off, products=False)
    model.half()
    scaled, plain = gradient(on, products=True), gradient(off, products=True)
    assert (scaled - exact).norm() < 0.05 * exact.norm()
    assert (plain - exact).norm() > 2 * (scaled - exact).norm()
    assert (plain == 0).sum() > (scaled == 0).sum()


def test_a_step_that_overflows_under_loss_scaling_is_left_to_the_scaler():
    import math
    import warnings
    from types import SimpleNamespace

    import torch

    from xb_lite.training.trainers import IN_A_ROW, _KeepGood

    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight])
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    terms = torch.zeros(1)
    alone = SimpleNamespace(reduce=lambda value, _: value)
    keep = _KeepGood(SimpleNamespace(terms=terms, accelerator=alone, term_names=("loss",)))
    model = SimpleNamespace(named_parameters=lambda: [("weight", weight)])
    args, state = SimpleNamespace(device="cpu", fp16=True), SimpleNamespace(global_step=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2 * IN_A_ROW):
            scaler.scale(math.inf * weight.sum()).backward()
            keep.on_pre_optimizer_step(args, state, None, model=model)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    assert weight.tolist() == [1, 1] and scaler.get_scale() == 1024 / 2 ** (2 * IN_A_ROW)


MEASURED = sorted((ROOT / "results" / "estimate").glob("*-*.json"))


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_estimates_are_within_15_percent_of_what_was_measured(path):
    """On record, and by the estimate as it is now."""
    result = read_result(path)
    name, _, rest = path.stem.partition(",")
    name, _, tokens = name.rpartition("-")
    changes = dict(pair.split("=") for pair in rest.split(",") if pair)
    fixed = {"prefilled_share": 0.0, "multi_turn_share": 0.0, "steps": 3}
    if "gradient_checkpointing" in changes:
        fixed["gradient_checkpointing"] = changes["gradient_checkpointing"] == "true"
    now = of(name, max_tokens=int(tokens), **fixed).memory / 1e9
    measured = find(result, "measured-gb").value
    assert abs(now / measured - 1) < 0.15
    assert abs(find(result, "estimate-by-measured").value - 1) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tokens"), [(CPU, 192), ("x-boundary-qwen2.5-coder-0.5b", 96)])
def test_an_estimate_is_within_15_percent_of_a_run_here(tmp_path, name, tokens):
    command = [sys.executable, "benchmarks/estimate.py", "--recipe", name, "--repeats", "1"]
    command += ["--tokens", str(tokens)]
    subprocess.run([*command, "--results", str(tmp_path)], cwd=ROOT, check=True)
    (path,) = tmp_path.glob("*-*.json")
    assert abs(find(read_result(path), "estimate-by-measured").value - 1) < 0.15


def test_the_table_names_the_parts():
    recipe = load_recipe(CPU)
    said = estimate_table(recipe, shape_of(recipe.model), [CARDS["cpu"]])
    assert "weights 0.54, copies 0.14, adapter 0.07" in said
