"""Training: the official step's gradient, runs that are stopped and go on, and a model left whole.

Run as a program, this file is one of two processes that train together.
"""

import copy
import json
import math
import os
import random
import shutil
import signal
import sys
import warnings
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from launching import launch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from tiny import tiny_model, tiny_recipe, tiny_sets
from transformers import AutoTokenizer, TrainerCallback

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from official_step import Item, official_step  # noqa: E402

from xb_lite.hidden import lowest_layers, watch_layers
from xb_lite.losses import step as steps
from xb_lite.losses.batch import collate
from xb_lite.losses.step import Reference, counted, forward, masks, step_terms, token_counts
from xb_lite.losses.terms import Terms, centroid, coefficients
from xb_lite.models.adapters import CARD, WEIGHTS, merged, read_run
from xb_lite.models.cached import DEFAULT, SPECS, cached_model
from xb_lite.models.packing import NAME, by_row
from xb_lite.models.precision import Precision
from xb_lite.recipes import RecipeError
from xb_lite.training import lora as runs
from xb_lite.training import run as training
from xb_lite.training.draw import draw_pairs
from xb_lite.training.lora import TrainingError, adapted, last_checkpoint
from xb_lite.training.run import Trained, XBoundaryTrainer, train
from xb_lite.training.trainers import NotFinite, _KeepGood

EXACT = Precision("cpu", torch.float32, None, "tests")
MIXED = Precision("cpu", torch.float32, torch.bfloat16, "tests")
LAYERS = 5  # of the model; a recipe trains 3, or 4 where it is the official one
SETS = tiny_sets()
OFFICIAL = {
    "retain": "absolute",
    "retain_weight": 1.0,
    "separate": "as_coded",
    "separate_weight": None,
    "multi_turn_share": 0.0,
    "sink_tokens": 0,
    "lora_layers": 4,  # as the official code cuts the model: one above the highest target
    "reference": "adapter-off",
}
BREAKERS = {"method": "circuit-breakers", "separate": None, "boundary_share": 0}
VARIANTS = {
    "refusal": {},
    "as_described": {"separate": "as_described"},
    "official": OFFICIAL,
    "circuit-breakers": BREAKERS,
    "random": {"separate_target": "random"},
}
AT_WORK = {"lora_std": 0.1}  # an adapter that has an effect from the first step on


pytestmark = pytest.mark.usefixtures("one_thread")


def model_of(tokenizer):
    model = tiny_model(tokenizer, num_hidden_layers=LAYERS)
    model.lm_head = torch.nn.Linear(32, 50, bias=False)  # the official step computes all logits
    return model.eval()


def run(tokenizer, folder, model=None, precision=EXACT, sets=SETS, seed=0, **options):
    """``train`` on a tiny model; what is neither its argument nor one here changes the recipe."""
    own = {name: options.pop(name) for name in ("on_step", "resume") if name in options}
    recipe = tiny_recipe(**options)
    model = model_of(tokenizer) if model is None else model
    return train(recipe, model, tokenizer, sets, folder, precision, seed=seed, **own)


def follow(tokenizer, folder, see, **changes):
    """Train as ``train`` does; ``see(step, trainer, learning)`` before the weights change.

    Gradients are not clipped, so that they can be compared. Returns the curve.
    """
    recipe = tiny_recipe(**changes)
    pairs = draw_pairs(recipe, SETS, tokenizer, seed=0)
    model = model_of(tokenizer)

    class See(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **_):
            see(state.global_step + 1, trainer, learning)

    with lowest_layers(model, recipe.lora_layers), adapted(model, recipe, 0) as learning:
        trainer = XBoundaryTrainer(recipe, learning, tokenizer, pairs, folder, EXACT)
        trainer.args.max_grad_norm = 0
        trainer.add_callback(See())
        trainer.train()
    return runs.curve(trainer.state)


def gradients(learning):
    return {n: p.grad.clone() for n, p in learning.named_parameters() if p.requires_grad}


def close(found, wanted, tolerance=1e-5):
    """Of tensors by name, each within ``tolerance`` of the whole."""
    assert found.keys() == wanted.keys()
    size = torch.stack([value.float().norm() for value in wanted.values()]).norm()
    return all((found[n] - value).norm() <= tolerance * size for n, value in wanted.items())


def weights(folder):
    return load_file(Path(folder) / WEIGHTS)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


# The official step


def as_official(pair):
    """The ids of a pair as the official code has them."""
    ids, response = pair.change.encoding.input_ids.tolist(), pair.change.encoding.response
    begin = int(response.int().argmax())
    keep = pair.keep.encoding.input_ids.tolist()
    return Item(ids[:begin], ids[begin:], keep, boundary=pair.separate)


@pytest.mark.parametrize("reference", ["cache", "adapter-off"])
def test_erase_and_separate_read_the_same_states_whatever_is_retained(tokenizer, reference):
    """Also of the last layer with LoRA, which the absolute retain term has after the norm."""
    found = {}
    for retain in ("relative", "absolute"):
        recipe = tiny_recipe(
            retain=retain, target_layers=[2], lora_layers=3, lora_std=0.1, reference=reference
        )
        drawn = draw_pairs(recipe, SETS, tokenizer, seed=0)[: recipe.pairs]
        batch = collate(drawn, tokenizer.pad_token_id)
        model = model_of(tokenizer)
        with (
            lowest_layers(model, recipe.lora_layers),
            adapted(model, recipe, 0) as learning,
            by_row(model),
        ):
            before = Reference(recipe, drawn, tokenizer.pad_token_id).of(learning, learning, batch)
            now = forward(learning, learning, batch, recipe)
            found[retain] = step_terms(recipe, batch, now, before, token_counts(recipe, batch))
    assert found["relative"].erase < 1 and found["relative"].separate > 0
    assert torch.equal(found["absolute"].erase, found["relative"].erase)
    assert torch.equal(found["absolute"].separate, found["relative"].separate)


@pytest.mark.parametrize("lora_std, pairs_at_once", [(0.0, 4), (0.1, 2)])
def test_in_the_official_setting_a_step_is_the_official_one(
    tmp_path, tokenizer, lora_std, pairs_at_once
):
    changes = {**OFFICIAL, "lora_std": lora_std, "steps": 3, "learning_rate": 0.01}
    recipe = tiny_recipe(**changes)
    drawn = draw_pairs(recipe, SETS, tokenizer, seed=0)
    entries = [layer + 1 for layer in recipe.target_layers]
    wanted = []

    def see(step, trainer, learning):
        mine = gradients(learning)
        pairs = drawn[(step - 1) * recipe.pairs : step * recipe.pairs]
        assert {pair.boundary for pair in pairs} == {True, False}
        official = official_step(
            learning,
            [as_official(pair) for pair in pairs],
            step,
            targets=entries,
            schedule=recipe.schedule,
            alpha=recipe.alpha,
            window=recipe.max_tokens // 2,
        )
        found = Terms(*trainer.terms)
        for name in Terms._fields:
            theirs = getattr(official, name)
            assert torch.allclose(getattr(found, name), theirs, rtol=1e-5, atol=1e-7), name
        learning.zero_grad()
        official.loss.backward()
        assert close(mine, gradients(learning))
        for name, p in learning.named_parameters():
            if p.requires_grad:
                p.grad = mine[name]
        wanted.append(official.loss.item())

    curve = follow(tokenizer, tmp_path, see, **changes, pairs_at_once=pairs_at_once)
    assert [row["loss"] for row in curve] == pytest.approx(wanted, rel=1e-5)
    assert curve[-1]["retain"] > 0 and len(wanted) == 3


def test_the_token_that_ends_a_template_is_no_part_of_a_request(tokenizer):
    """ChatML ends a response with a newline of its own, which sees the refusal before it."""
    recipe = tiny_recipe(**OFFICIAL)
    pairs = [p for p in draw_pairs(recipe, SETS, tokenizer, seed=0) if p.boundary][:3]
    batch = collate(pairs, tokenizer.pad_token_id)
    for mask, pair in zip(masks(recipe, batch)["separate"], pairs, strict=True):
        request = as_official(pair).request
        assert mask.tolist() == [i < len(request) for i in range(len(mask))]


# What a step is made of


@pytest.mark.parametrize("variant", VARIANTS)
def test_neither_order_nor_padding_changes_a_step(tmp_path, tokenizer, variant):
    recipe = tiny_recipe(**{**VARIANTS[variant], **AT_WORK, "pairs": 8, "pairs_at_once": 8})
    pairs = draw_pairs(recipe, SETS, tokenizer, seed=0)
    orders = [pairs[:8], pairs[7::-1], random.Random(0).sample(pairs[:8], 8)]
    wider = {
        name: torch.nn.functional.pad(value, (0, 9)) if value.dim() == 2 else value
        for name, value in collate(orders[2], 3).items()
    }
    model, found = model_of(tokenizer), []
    with lowest_layers(model, recipe.lora_layers), adapted(model, recipe, 0) as learning:
        for batch in [*(collate(order, 3) for order in orders), wider]:
            reference = Reference(recipe, pairs, 3).of(learning, learning, batch)
            assert bool(reference.centroid) == (recipe.separate is not None)  # nothing reads it
            states = steps.forward(learning, learning, batch, recipe)
            terms = step_terms(recipe, batch, states, reference, token_counts(recipe, batch))
            found.append(torch.stack(list(terms)))
    for terms in found[1:]:
        assert torch.allclose(terms, found[0], rtol=1e-5, atol=1e-7)
    assert (found[0] > 0).tolist() == [True, True, recipe.separate is not None]


def test_a_tokenizer_needs_no_token_to_pad_with(tmp_path, tokenizer):
    own = copy.deepcopy(tokenizer)
    own.pad_token = None
    found, wanted = (
        run(each, tmp_path / str(i), steps=2) for i, each in enumerate((own, tokenizer))
    )
    assert found.curve == wanted.curve


def test_which_tokens_each_term_is_over(tokenizer):
    recipe = tiny_recipe(boundary_share=0.5)
    batch = collate(draw_pairs(recipe, SETS, tokenizer, seed=0)[:4], 3)
    changed, n = batch["separate"], 4
    assert sorted(changed.tolist()) == [False, False, True, True]
    every, prompt, response = counted(batch), batch["prompt"][:n], batch["response"][:n]
    for separate, wanted in (
        ("refusal", response & changed[:, None]),
        ("as_described", response & ~changed[:, None]),
        (None, torch.zeros_like(response)),
    ):
        changes = BREAKERS if separate is None else {"separate": separate}
        by_term = masks(tiny_recipe(**changes), batch)
        assert torch.equal(by_term["separate"], wanted)
        assert torch.equal(by_term["erase"], every[:n] & ~changed[:, None])
        assert torch.equal(by_term["retain"], every[n:])
    assert (prompt & changed[:, None]).any() and not every[:, 0].any()  # the sink


def test_the_common_centroid_is_of_the_first_boundary_safe_items_in_training(
    tokenizer, monkeypatch
):
    monkeypatch.setattr(steps, "CENTROID_ROWS", 3)
    recipe = tiny_recipe(separate="as_described", boundary_share=0.5)
    pairs = draw_pairs(recipe, SETS, tokenizer, seed=0)
    first = list({p.keep.number: p for p in pairs if p.boundary}.values())[:3]
    model = model_of(tokenizer)
    with lowest_layers(model, recipe.lora_layers), adapted(model, recipe, 0) as learning:
        found = Reference(recipe, pairs, 3).of(learning, learning, collate(pairs[:4], 3)).centroid
        batch = collate(first, 3)
        states = steps.forward(learning, learning, batch, recipe)  # the adapter is at its start
    for layer in recipe.target_layers:
        wanted = centroid(states[layer][3:], counted(batch)[3:]).mean(dim=0)
        assert torch.allclose(found[layer], wanted.expand(4, -1), atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_that_are_kept_are_those_of_the_adapter_switched_off(tmp_path, tokenizer, variant):
    found = {}
    for reference in ("cache", "adapter-off"):
        changes = {**VARIANTS[variant], **AT_WORK, "reference": reference}
        seen = []
        curve = follow(
            tokenizer,
            tmp_path / reference,
            lambda step, trainer, learning, seen=seen: seen.append(gradients(learning)),
            **changes,
        )
        found[reference] = curve, seen
    (curve, seen), (wanted_curve, wanted) = found.values()
    for row, wanted_row in zip(curve, wanted_curve, strict=True):
        assert row == pytest.approx(wanted_row, rel=1e-4, abs=1e-6)
    assert all(close(mine, theirs, 1e-4) for mine, theirs in zip(seen, wanted, strict=True))


def test_states_are_kept_of_every_item_once(tmp_path, tokenizer, monkeypatch):
    asked = []

    def spy(model, peft_model, batch, recipe):
        if not torch.is_grad_enabled():
            asked.extend(tuple(row[row != 0].tolist()) for row in batch["attention_mask"])
        return forward(model, peft_model, batch, recipe)

    forward = steps.forward
    monkeypatch.setattr(steps, "forward", spy)
    run(tokenizer, tmp_path, steps=16)  # in fewer not every item comes
    # The refusals of boundary-safe prompts are compared with a centroid, never with themselves.
    refusals = len(SETS["over_refused"]) + len(SETS["over_refused_prefilled"])
    assert len(asked) == len(SETS.examples) - refusals


def test_what_is_kept_does_not_depend_on_where_a_run_began(tokenizer, monkeypatch):
    """What shares a batch may change the last bits; after a stop they must be the same again."""
    recipe = tiny_recipe(steps=12)
    pairs = draw_pairs(recipe, SETS, tokenizer, seed=0)
    batches = [collate(pairs[i : i + 4], 3) for i in range(0, len(pairs), 4)]
    forward = steps.forward
    model = model_of(tokenizer)

    def computed(batches):
        seen = set()

        def spy(model, peft_model, batch, recipe):
            seen.add(json.dumps(batch["input_ids"].tolist()))
            return forward(model, peft_model, batch, recipe)

        with monkeypatch.context() as patch:
            patch.setattr(steps, "forward", spy)
            reference = Reference(recipe, pairs, 3)
            for batch in batches:
                reference.of(learning, learning, batch)
        return seen

    with lowest_layers(model, recipe.lora_layers), adapted(model, recipe, 0) as learning:
        whole = computed(batches)
        for begin in range(1, len(batches)):
            assert computed(batches[begin:]) <= whole


@pytest.mark.parametrize("variant", VARIANTS)
def test_accumulated_passes_are_one_step(tmp_path, tokenizer, variant):
    found = {}
    for at_once in (4, 1):
        seen = []
        curve = follow(
            tokenizer,
            tmp_path / str(at_once),
            lambda step, trainer, learning, seen=seen: seen.append(gradients(learning)),
            **{**VARIANTS[variant], **AT_WORK, "pairs_at_once": at_once},
        )
        found[at_once] = curve, seen
    (wanted_curve, wanted), (curve, seen) = found.values()
    assert [row["step"] for row in wanted_curve] == [1, 2, 3, 4]
    for row, wanted_row in zip(curve, wanted_curve, strict=True):
        assert row == pytest.approx(wanted_row, rel=1e-4, abs=1e-6)
    assert all(close(mine, theirs, 1e-4) for mine, theirs in zip(seen, wanted, strict=True))


@pytest.mark.parametrize("at_once", [1, 4])
def test_the_loss_is_the_terms_by_the_schedule_of_steps(tmp_path, tokenizer, at_once):
    changes = {"schedule": 4, "alpha": 3, "steps": 6, "retain_weight": 2, "separate_weight": 5}
    for row in run(tokenizer, tmp_path, **changes, **AT_WORK, pairs_at_once=at_once).curve:
        weight = coefficients(row["step"], 4, 3)
        change = row["erase"] + 5 * row["separate"]
        assert row["loss"] == pytest.approx(
            weight.retain * 2 * row["retain"] + weight.xb * change, rel=1e-5
        )


def test_checkpointed_gradients_are_the_same(tmp_path, tokenizer):
    seen = {False: [], True: []}
    for on, mine in seen.items():
        follow(
            tokenizer,
            tmp_path / str(on),
            lambda step, trainer, learning, mine=mine: mine.append(gradients(learning)),
            **AT_WORK,
            gradient_checkpointing=on,
            dropout=0.2,
        )
    assert all(close(*both) for both in zip(*seen.values(), strict=True))


# Stopped and gone on with

STEPS = 7
STOPS = sorted(random.Random(0).sample(range(1, STEPS - 1), 3))
LONG = {"steps": STEPS, "dropout": 0.2, **AT_WORK}


class Killed(BaseException):
    """As abrupt as a test can be."""


@pytest.fixture
def exact_weights(monkeypatch):
    """The weights that ``save_adapter`` was given last, before they are rounded."""
    kept = {}

    def save(learning, *rest):
        kept.clear()
        for name, value in get_peft_model_state_dict(learning).items():
            kept[name] = value.detach().clone()
        return saved(learning, *rest)

    saved = training.save_adapter
    monkeypatch.setattr(training, "save_adapter", save)
    return lambda: dict(kept)


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(runs, "SAVE_EVERY", 2)


def interrupt(at):
    def on_step(row):
        if row["step"] == at:
            signal.raise_signal(signal.SIGINT)

    return on_step


def kill(at):
    def on_step(row):
        if row["step"] == at:
            raise Killed

    return on_step


@pytest.mark.parametrize(
    "stop, error, precision",
    [(interrupt, KeyboardInterrupt, EXACT), (kill, Killed, MIXED)],
    ids=["interrupted", "killed"],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    tmp_path, tokenizer, often, exact_weights, stop, error, precision
):
    options = {**LONG, "precision": precision}
    curve = run(tokenizer, tmp_path / "whole", **options).curve
    wanted = exact_weights()
    assert [row["step"] for row in curve] == list(range(1, STEPS + 1))
    for at in STOPS:
        folder = tmp_path / str(at)
        before = signal.getsignal(signal.SIGINT)
        with pytest.raises(error):
            run(tokenizer, folder, on_step=stop(at), **options)
        assert signal.getsignal(signal.SIGINT) is before
        assert read_run(folder) is None
        again = run(tokenizer, folder, **options)
        assert again.curve == curve
        assert equal(exact_weights(), wanted)
        assert equal(weights(folder), weights(tmp_path / "whole"))
        assert not (folder / "checkpoints").exists()


def test_an_interrupt_ends_after_the_step_under_way(tmp_path, tokenizer):
    seen = []

    def on_step(row):
        seen.append(row["step"])
        interrupt(2)(row)

    with pytest.raises(KeyboardInterrupt, match="stopped after step 3"):
        run(tokenizer, tmp_path, on_step=on_step, **LONG)
    assert seen == [1, 2, 3] and last_checkpoint(tmp_path).endswith("checkpoint-3")
    run(tokenizer, tmp_path, on_step=on_step, **LONG)
    assert seen == list(range(1, STEPS + 1))


@pytest.mark.parametrize("at", [STEPS - 1, STEPS])
def test_an_interrupt_in_the_last_step_changes_nothing(tmp_path, tokenizer, at):
    found = run(tokenizer, tmp_path, on_step=interrupt(at), **LONG)
    assert len(found.curve) == STEPS and read_run(tmp_path)["curve"] == found.curve


def test_a_second_interrupt_ends_at_once(tmp_path, tokenizer, often, exact_weights):
    def on_step(row):
        if row["step"] == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    run(tokenizer, tmp_path / "whole", **LONG)
    wanted = exact_weights()
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, tmp_path / "mine", on_step=on_step, **LONG)
    run(tokenizer, tmp_path / "mine", **LONG)
    assert equal(exact_weights(), wanted)


def test_a_run_may_be_stopped_again_and_again(tmp_path, tokenizer, often, exact_weights):
    curve = run(tokenizer, tmp_path / "whole", **LONG).curve
    wanted = exact_weights()
    for at, stop, error in (
        (1, interrupt, KeyboardInterrupt),
        (3, kill, Killed),
        (4, kill, Killed),
    ):
        with pytest.raises(error):
            run(tokenizer, tmp_path / "mine", on_step=stop(at), **LONG)
    assert run(tokenizer, tmp_path / "mine", **LONG).curve == curve
    assert equal(exact_weights(), wanted)


def test_a_checkpoint_that_was_cut_off_is_not_gone_on_with(
    tmp_path, tokenizer, often, exact_weights
):
    curve = run(tokenizer, tmp_path / "whole", **LONG).curve
    wanted = exact_weights()
    for damage in ("missing", "half"):
        folder = tmp_path / damage
        with pytest.raises(Killed):
            run(tokenizer, folder, on_step=kill(5), **LONG)
        whole = Path(last_checkpoint(folder))
        cut_off = shutil.copytree(whole, whole.with_name("checkpoint-5"))
        state = cut_off / "trainer_state.json"
        if damage == "half":
            state.write_text(state.read_text()[: state.stat().st_size // 2])
        else:
            state.unlink()
            (cut_off / "optimizer.pt").unlink()
        assert last_checkpoint(folder) == str(whole)
        assert run(tokenizer, folder, **LONG).curve == curve
        assert equal(exact_weights(), wanted)


def test_without_checkpoints_there_is_no_last_one(tmp_path):
    assert last_checkpoint(tmp_path) is None


def test_a_finished_run_is_not_made_again(tmp_path, tokenizer):
    first = run(tokenizer, tmp_path)
    assert isinstance(first, Trained) and first.folder == tmp_path
    changed = (tmp_path / WEIGHTS).stat().st_mtime_ns
    again = run(tokenizer, tmp_path, on_step=lambda row: pytest.fail("trained again"))
    assert again == first and (tmp_path / WEIGHTS).stat().st_mtime_ns == changed


def test_another_word_on_where_a_recipe_comes_from_makes_no_other_run(tmp_path, tokenizer):
    first = run(tokenizer, tmp_path)
    trained_again = {"on_step": lambda row: pytest.fail("trained again")}
    assert run(tokenizer, tmp_path, source="this book, in other words", **trained_again) == first


def other_runs():
    return {
        "recipe": {"learning_rate": 1e-3},
        "seed": {"seed": 1},
        "sets": {"sets": tiny_sets(harmful=6)},
        "precision": {"precision": MIXED},
    }


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_with_another_run_in_it_is_left_alone(tmp_path, tokenizer, often, finished):
    if finished:
        run(tokenizer, tmp_path)
    else:
        with pytest.raises(Killed):
            run(tokenizer, tmp_path, on_step=kill(3))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for what, options in other_runs().items():
        with pytest.raises(TrainingError, match=f"has a run of another {what} in it"):
            run(tokenizer, tmp_path, **options)
    both = {**other_runs()["seed"], **other_runs()["precision"]}
    with pytest.raises(TrainingError, match="another seed, precision in it"):
        run(tokenizer, tmp_path, **both)
    model, recipe = model_of(tokenizer), tiny_recipe()
    with pytest.raises(TrainingError, match="another model in it"):
        train(recipe, model, tokenizer, SETS, tmp_path, EXACT, model_digest="other")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("finished", [True, False])
def test_without_resume_a_run_begins_anew(tmp_path, tokenizer, often, finished):
    wanted = run(tokenizer, tmp_path / "whole", seed=1)
    folder = tmp_path / "mine"
    if finished:
        run(tokenizer, folder)
    else:
        with pytest.raises(Killed):
            run(tokenizer, folder, on_step=kill(3))
    (folder / "notes.txt").write_text("of the reader's own")
    seen = []
    found = run(tokenizer, folder, seed=1, resume=False, on_step=seen.append)
    assert found.curve == wanted.curve == seen
    assert equal(weights(folder), weights(tmp_path / "whole"))
    assert (folder / "notes.txt").exists()


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_checkpoints_that_no_run_here_began_are_refused_and_stay(tmp_path, tokenizer, often):
    with pytest.raises(Killed):
        run(tokenizer, tmp_path / "stale", on_step=kill(3))
    (tmp_path / "stale" / runs.BEGUN).unlink()
    for name in ("notes", "file"):
        (tmp_path / name).mkdir()
    (tmp_path / "notes" / "checkpoints").mkdir()
    (tmp_path / "notes" / "checkpoints" / "notes.txt").write_text("of the reader's own")
    (tmp_path / "file" / "checkpoints").write_text("of the reader's own")
    before = files_of(tmp_path)
    for folder in tmp_path.iterdir():
        for resume in (True, False):
            words = "checkpoints is not of a run that was begun here .*: take another folder, or"
            with pytest.raises(TrainingError, match=words):
                run(tokenizer, folder, seed=1, resume=resume)
    assert files_of(tmp_path) == before


def test_a_kill_while_a_run_is_noted_down_is_no_foreign_run(tmp_path, tokenizer):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "begun.json.123.part").write_text("{")
    run(tokenizer, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_a_finished_run_leaves_checkpoints_of_others_beside_it(tmp_path, tokenizer):
    first = run(tokenizer, tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    assert run(tokenizer, tmp_path) == first
    assert (tmp_path / "checkpoints" / "checkpoint-2").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_after_a_kill_while_clearing_up_no_half_checkpoint_is_gone_on_with(
    tmp_path, tokenizer, often, monkeypatch, resume
):
    def killed(folder, **_):
        for path in folder.rglob("optimizer.pt"):
            path.unlink()
        raise Killed

    run(tokenizer, tmp_path / "whole")
    folder = tmp_path / "mine"
    with pytest.raises(Killed):
        run(tokenizer, folder, on_step=kill(3))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(runs.shutil, "rmtree", killed)
        run(tokenizer, folder, resume=False)
    seen = []
    run(tokenizer, folder, on_step=seen.append, resume=resume)
    assert [row["step"] for row in seen] == [1, 2, 3, 4]
    assert equal(weights(folder), weights(tmp_path / "whole"))
    assert sorted(os.listdir(folder)) == sorted(os.listdir(tmp_path / "whole"))


@pytest.mark.parametrize("resume", [True, False])
def test_a_readme_of_the_readers_own_is_refused_before_training(tmp_path, tokenizer, resume):
    (tmp_path / CARD).write_text("A page of mine.")
    with pytest.raises(TrainingError, match=f"has a {CARD} of its own, .*take another folder"):
        run(tokenizer, tmp_path, resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == [CARD]
    assert (tmp_path / CARD).read_text() == "A page of mine."


def test_the_card_of_a_run_that_is_begun_anew_is_in_nobodys_way(tmp_path, tokenizer):
    wanted = run(tokenizer, tmp_path)
    with pytest.raises(Killed):
        run(tokenizer, tmp_path, resume=False, on_step=kill(2))
    assert (tmp_path / CARD).exists() and not (tmp_path / WEIGHTS).exists()
    assert run(tokenizer, tmp_path).curve == wanted.curve


def test_seeds_differ_and_the_same_one_is_the_same(tmp_path, tokenizer):
    for before, (name, seed) in enumerate((("a", 0), ("b", 0), ("c", 1))):
        model = model_of(tokenizer)
        torch.manual_seed(before)
        run(tokenizer, tmp_path / name, model, seed=seed, dropout=0.2)
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


# What goes wrong


def test_a_share_that_gives_no_boundary_safe_item_is_named(tmp_path, tokenizer):
    words = "boundary_share is 0.01, which gives no boundary-safe item in 4 steps of 4 pairs"
    with pytest.raises(RecipeError, match=words):
        run(tokenizer, tmp_path / "new", boundary_share=0.01, separate="as_described")
    assert not (tmp_path / "new").exists()
    for separate in ("as_coded", "refusal"):
        with pytest.warns(UserWarning, match=f"{words}: there is no separate term"):
            run(tokenizer, tmp_path / separate, boundary_share=0.01, separate=separate)
    run(tokenizer, tmp_path, boundary_share=0.01, method="circuit-breakers", separate=None)


def poison(model, at):
    """Weights of the adapter become NaN after a step."""

    def on_step(row):
        if row["step"] == at:
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.data.fill_(math.nan)

    return on_step


@pytest.mark.parametrize("at_once", [2, 4])
def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_weights(
    tmp_path, tokenizer, at_once
):
    model = model_of(tokenizer)
    good = {}

    def on_step(row):
        if row["step"] == 2:
            good.update({n: v.detach().half() for n, v in model.named_parameters() if "lora" in n})
        poison(model, 3)(row)

    before = snapshot(model)
    with pytest.raises(TrainingError) as raised:
        run(tokenizer, tmp_path, model, on_step=on_step, pairs_at_once=at_once)
    for words in ("loss of step 4 is not finite", "retain nan", "last_good", "learning_rate"):
        assert words in str(raised.value)
    assert snapshot(model) == before
    # The weights whose loss was the last finite one, that of step 3.
    found = weights(tmp_path / "last_good")
    by_name = {f"base_model.model.{n.replace('.default', '')}": v for n, v in good.items()}
    assert equal(found, by_name) and all(value.isfinite().all() for value in found.values())
    last_good = read_run(tmp_path / "last_good")
    assert [row["step"] for row in last_good["curve"]] == [1, 2, 3]
    assert read_run(tmp_path) is None
    PeftModel.from_pretrained(model_of(tokenizer), str(tmp_path / "last_good"))
    assert logits(merged(model_of(tokenizer), tmp_path / "last_good")).isfinite().all()


def spoil_gradients(monkeypatch, steps):
    """One of the gradients of these steps is NaN, as their losses are not."""
    before = _KeepGood.on_pre_optimizer_step

    def spoiled(self, args, state, control, model=None, **more):
        if state.global_step + 1 in steps:
            learned = [p for p in model.parameters() if p.requires_grad]
            learned[-1].grad.view(-1)[0] = math.nan
        return before(self, args, state, control, model=model, **more)

    monkeypatch.setattr(_KeepGood, "on_pre_optimizer_step", spoiled)


def test_a_step_whose_gradient_is_not_finite_is_left_out(tmp_path, tokenizer, monkeypatch):
    model, seen = model_of(tokenizer), {}

    def on_step(row):
        learned = {n: v.detach().clone() for n, v in model.named_parameters() if "lora" in n}
        seen[row["step"]] = learned

    spoil_gradients(monkeypatch, {2, 4})
    with pytest.warns(UserWarning, match="gradient of step [24] is not finite"):
        run(tokenizer, tmp_path, model, on_step=on_step)
    assert equal(seen[1], seen[2]) and equal(seen[3], seen[4])
    assert not equal(seen[2], seen[3])
    assert all(value.isfinite().all() for value in weights(tmp_path).values())


def test_under_fp16_gradients_may_be_not_finite_while_the_scale_falls(recwarn):
    keeper = _KeepGood(SimpleNamespace(accelerator=SimpleNamespace(reduce=lambda x, _: x)))
    args = SimpleNamespace(fp16=True, device="cpu")
    weight = torch.nn.Parameter(torch.zeros(2))

    def check(step, value):
        weight.grad = torch.full((2,), value)
        keeper._check_gradient({"weight": weight}, step, args)

    for step in range(1, 25):
        check(step, math.inf)
    check(25, 1.0)
    for step in range(26, 50):
        check(step, math.inf)
    assert weight.grad is not None and not recwarn.list  # both are the scaler's
    with pytest.raises(NotFinite, match="gradients of 25 steps, to step 50, are not finite"):
        check(50, math.inf)


def test_gradients_that_stay_not_finite_end_the_run(tmp_path, tokenizer, monkeypatch):
    spoil_gradients(monkeypatch, {2, 3, 4, 5})
    with (
        pytest.warns(UserWarning, match="not finite"),
        pytest.raises(TrainingError, match="gradients of 3 steps, to step 4, are not finite"),
    ):
        run(tokenizer, tmp_path)
    assert all(value.isfinite().all() for value in weights(tmp_path / "last_good").values())


def test_a_learning_rate_that_is_too_high_is_said_to_be(tmp_path, tokenizer):
    with pytest.raises(TrainingError, match=r"loss of step [23] is not finite.*learning_rate"):
        run(tokenizer, tmp_path, learning_rate=1e30)
    assert all(value.isfinite().all() for value in weights(tmp_path / "last_good").values())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.OutOfMemoryError("of another kind"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
    ids=repr,
)
def test_too_little_memory_says_what_to_lower(tmp_path, tokenizer, monkeypatch, error):
    def fails(*_):
        raise error

    model = model_of(tokenizer)
    before = snapshot(model)
    with monkeypatch.context() as patch:
        patch.setattr(training, "forward", fails)
        with pytest.raises(
            TrainingError, match="memory for pairs_at_once = 4 and max_tokens = 128"
        ):
            run(tokenizer, tmp_path, model)
    assert snapshot(model) == before
    run(tokenizer, tmp_path, model)  # what was begun can be gone on with


def test_other_errors_stay_what_they_are(tmp_path, tokenizer, monkeypatch):
    def fails(*_):
        raise RuntimeError("unsupported memory format")

    monkeypatch.setattr(training, "forward", fails)
    with pytest.raises(RuntimeError, match="unsupported memory format") as raised:
        run(tokenizer, tmp_path)
    assert type(raised.value) is RuntimeError


def test_in_a_folder_named_memory_a_loss_is_still_a_loss(tmp_path, tokenizer):
    model = model_of(tokenizer)
    with pytest.raises(TrainingError, match="not finite"):
        run(tokenizer, tmp_path / "tried to allocate memory", model, on_step=poison(model, 1))


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, tokenizer):
    folder = tmp_path / "mine"
    with pytest.raises(RecipeError, match="lora_layers is 6; it must be at most 5"):
        run(tokenizer, folder, lora_layers=6)
    with pytest.raises(RecipeError, match="boundary_share is 0.25, but the compliant set is empty"):
        run(tokenizer, folder, sets=tiny_sets(boundary=0))
    assert not folder.exists()


def test_processes_that_cannot_share_a_step_are_told_so(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"pairs is 4.*pairs_at_once \(4\) times.*\(2\)"):
        runs.arguments(tiny_recipe(), tmp_path, EXACT, 0)


def test_gradients_are_scaled_down_to_a_norm_of_one(tmp_path):
    assert runs.arguments(tiny_recipe(), tmp_path, EXACT, 0).max_grad_norm == 1


# The model afterwards


@torch.no_grad()
def logits(model):
    return model(input_ids=torch.arange(5, 45).view(2, 20), use_cache=False).logits


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def snapshot(model):
    """All that training could leave behind."""
    return {
        "logits": logits(model).tolist(),
        "modules": [name for name, _ in model.named_modules()],
        "kinds": [type(module).__name__ for module in model.modules()],
        "learns": {name: value.requires_grad for name, value in model.named_parameters()},
        "gradients": [name for name, value in model.named_parameters() if value.grad is not None],
        "config": model.config.to_dict(),
        "attention": model.config._attn_implementation,
        "modes": [module.training for module in model.modules()],
        "checkpointed": [getattr(m, "gradient_checkpointing", False) for m in model.modules()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in HOOKS],
        "forward": "forward" in vars(model),
    }


@pytest.mark.parametrize(
    "changes",
    [{}, OFFICIAL, {"gradient_checkpointing": True}, {"max_tokens": 512, "precision": MIXED}],
    ids=str,
)
def test_the_model_is_whole_again(tmp_path, tokenizer, changes):
    model = model_of(tokenizer)
    model.lm_head.weight.requires_grad_(False)
    before = snapshot(model)
    while_it_ran = []
    run(
        tokenizer,
        tmp_path / "first",
        model,
        on_step=lambda row: while_it_ran.append(
            (len(model.model.layers), model.config._attn_implementation)
        ),
        **changes,
    )
    assert snapshot(model) == before
    assert not any(before["hooks"])
    assert set(while_it_ran) == {(changes.get("lora_layers", 3), NAME)}
    # transformers hooks what it is first asked the states of: not the lowest layers alone.
    whole = model(input_ids=torch.arange(9)[None], output_hidden_states=True, use_cache=False)
    assert len(whole.hidden_states) == LAYERS + 1
    before["hooks"] = snapshot(model)["hooks"]
    assert before["attention"] == "sdpa"
    with pytest.raises(Killed):
        run(tokenizer, tmp_path / "second", model, on_step=kill(2), **changes)
    assert snapshot(model) == before


@pytest.mark.parametrize("precision", [EXACT, MIXED])
def test_what_goes_into_the_adapter_is_cast_by_autocast_alone(tokenizer, precision):
    recipe, model, seen = tiny_recipe(), model_of(tokenizer), []
    with adapted(model, recipe, 0) as learning, runs.no_casts_twice(learning, precision):
        into = model.model.layers[0].mlp.down_proj.lora_A["default"]
        into.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0].dtype))
        with precision.autocast():
            logits(model)
    assert seen == [precision.products or torch.float32]


def test_layers_above_those_that_learn_are_never_run(tmp_path, tokenizer):
    model = model_of(tokenizer)
    calls = [0] * LAYERS

    def count(layer):
        def hook(*_):
            calls[layer] += 1

        return hook

    with ExitStack() as stack:
        for layer, module in enumerate(model.model.layers):
            stack.callback(module.register_forward_hook(count(layer)).remove)
        run(tokenizer, tmp_path, model, reference="adapter-off")
        # Once for either model in each of 4 steps, and twice to see that rows need no padding.
        assert calls == [10, 10, 10, 0, 0]
        logits(model)
        assert calls == [11, 11, 11, 1, 1]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "mistral"])
def test_the_lowest_layers_are_a_model_and_the_others_come_back(tokenizer, kind):
    model = tiny_model(tokenizer, kind, num_hidden_layers=LAYERS)
    layers, wanted = list(model.model.layers), logits(model)
    kept = {}
    with watch_layers(model, [0, 2], kept.__setitem__):
        logits(model)
    for error in (None, Killed):
        found = {}
        with suppress(Killed), lowest_layers(model, 3):
            assert len(model.model.layers) == model.config.num_hidden_layers == 3
            with watch_layers(model, [0, 2], found.__setitem__, stop=False):
                lower = logits(model)
            assert lower.shape == wanted.shape and not torch.allclose(lower, wanted)
            if error:
                raise error
        assert all(torch.equal(found[layer], kept[layer]) for layer in kept)
        assert list(model.model.layers) == layers and model.config.num_hidden_layers == LAYERS
        assert torch.equal(logits(model), wanted)


def test_a_watched_pass_ends_after_the_highest_layer_or_goes_on(tokenizer):
    model = model_of(tokenizer)
    wanted = logits(model)
    for stop in (True, False):
        seen, found = [], []
        with watch_layers(model, [2, 0], lambda layer, state, s=seen: s.append(layer), stop=stop):
            found.append(logits(model))
        assert seen == [0, 2] and len(found) == (not stop)
        assert all(torch.equal(each, wanted) for each in found)
        assert not any(snapshot(model)["hooks"])


# Two processes


@pytest.mark.parametrize("kind", ["is_fsdp_enabled", "is_deepspeed_enabled"])
@pytest.mark.parametrize("first", [True, False])
def test_parts_of_an_adapter_are_gathered_by_all_and_saved_by_one(tmp_path, tokenizer, kind, first):
    gathered = []

    def gather(wrapped):
        gathered.append(wrapped)
        return {name: value + 1 for name, value in learning.state_dict().items()}

    trainer = SimpleNamespace(
        **{"is_fsdp_enabled": False, "is_deepspeed_enabled": False, kind: True},
        accelerator=SimpleNamespace(get_state_dict=gather),
        model_wrapped="wrapped",
        is_world_process_zero=lambda: first,
        state=SimpleNamespace(log_history=[]),
    )
    with adapted(model_of(tokenizer), tiny_recipe(), 0) as learning:
        own = get_peft_model_state_dict(learning)
        wanted = {name: (value + 1).half() for name, value in own.items()}
        training._save(trainer, learning, tmp_path / "it", {}, "base")
    assert gathered == ["wrapped"] and (tmp_path / "it").exists() == first
    assert not first or equal(weights(tmp_path / "it"), wanted)


def together(folder, recipe):
    """One of the processes; both end here, and one of them writes."""
    tokenizer = AutoTokenizer.from_pretrained(cached_model(SPECS[DEFAULT]))  # no weights
    torch.set_num_threads(1)
    changes = json.loads(recipe)
    assert os.environ["WORLD_SIZE"] == "2"
    run(tokenizer, folder, resume=changes.pop("resume"), **changes)


@pytest.mark.parametrize(
    "reference", ["cache", pytest.param("adapter-off", marks=pytest.mark.slow)]
)
def test_two_processes_are_one_in_the_end(tmp_path, tokenizer, reference):
    # So many that in some only one of the processes meets items that it has no states of.
    changes = {**AT_WORK, "steps": 12, "reference": reference}
    alone = run(tokenizer, tmp_path / "alone", pairs_at_once=4, **changes)
    both = {**changes, "pairs_at_once": 2, "resume": False}
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    done = launch([__file__, tmp_path / "both", json.dumps(both)], PYTHONPATH=paths)
    assert done.returncode == 0, done.stderr[-3000:]
    found = read_run(tmp_path / "both")
    for row, wanted in zip(found["curve"], alone.curve, strict=True):
        assert row == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    for name, value in weights(tmp_path / "alone").items():
        assert torch.allclose(weights(tmp_path / "both")[name], value, atol=1e-4), name


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    together(*sys.argv[1:])
