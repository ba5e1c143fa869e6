"""The convergence study on a tiny model: what arms differ in, what is written, and resuming."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_model, tiny_recipe, tiny_sets

from xb_lite.corpora import KINDS
from xb_lite.dialogues import as_dialogue
from xb_lite.hidden import decoder_layers
from xb_lite.losses.step import ReferenceStates
from xb_lite.models.loading import ALIGNED, ALIGNED_360
from xb_lite.models.precision import Precision
from xb_lite.replies.local import LocalBackend
from xb_lite.replies.subjects import Subject
from xb_lite.replies.types import Decoding, Reply
from xb_lite.reproduce import (
    convergence,
    convergence_arms,
    convergence_states,
    convergence_summary,
)
from xb_lite.reproduce.convergence_arms import ARMS, base_recipe, train_arm
from xb_lite.reproduce.convergence_states import Watch, separations
from xb_lite.reproduce.convergence_summary import power_of_k, steps_to, summary_rows
from xb_lite.results.contract import read_result
from xb_lite.results.frames import find
from xb_lite.results.stats import mean_of_runs
from xb_lite.training.lora import adapted

EXACT = Precision("cpu", torch.float32, None, "tests")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def subject(default_model):
    tokenizer = default_model[1]
    model = tiny_model(tokenizer, num_hidden_layers=4)
    return Subject("tiny", "digest", LocalBackend(model, tokenizer), model, tokenizer)


@pytest.fixture(scope="module")
def dialogues():
    sets = tiny_sets(harmful=24, boundary=24, benign=24)
    of_kind = {
        "harmful": sets["harmful"],
        "boundary-safe": sets["compliant"],
        "benign": sets["benign"],
    }
    return dict.fromkeys(convergence_states.PARTS, of_kind)


def small(steps):
    return tiny_recipe(steps=steps, reference="adapter-off", multi_turn_share=0.0)


def run(subject, arm, seed=0, steps=3, dialogues=None, main=False):
    recipe = small(steps)
    look = Watch(
        subject.tokenizer,
        dialogues,
        [max(recipe.target_layers)],
        steps,
        EXACT,
        main,
        first=not seed,
        success=unasked,
    )
    if dialogues is None:
        look = unseen
    return train_arm(subject, recipe, ARMS[arm], seed, tiny_sets(), EXACT, look)


def unseen(step, model):
    return {}


def unasked():
    return {"k": 1, "n": 2}


@pytest.fixture(scope="module")
def curves(subject):
    return {arm: run(subject, arm)["curve"] for arm in ARMS}


def test_the_erase_term_starts_flat_unless_b_is_drawn(curves):
    for arm, curve in curves.items():
        first = curve[0]
        assert [row["step"] for row in curve] == [1, 2, 3]
        drawn = "push" in arm
        assert (first["erase gradient"] > 1e-4) == drawn
        assert (first["erase"] < 1 - 1e-5) == drawn == (first["retain"] > 0)
        assert first["separate gradient"] > 1e-3


def test_arms_see_the_same_items_and_differ_where_they_should(curves):
    for arm in ("none", "no-retain", "none, warm-up", "separate, warm-up"):
        assert curves[arm][0] == curves["separate"][0]  # measured, whatever its weight
    for arm in ("random", "other"):
        assert curves[arm][0]["erase"] == curves["separate"][0]["erase"]
        assert curves[arm][0]["separate"] != curves["separate"][0]["separate"] > 0
    slow, fast = (curves[arm][1]["retain"] for arm in ("separate, warm-up", "separate"))
    assert 0 < slow < 0.2 * fast
    assert curves["none"][2] != curves["separate"][2]


def test_a_seed_gives_the_same_curve_and_leaves_the_model_as_it_was(subject, curves):
    before = {name: value.clone() for name, value in subject.model.named_parameters()}
    assert run(subject, "separate")["curve"] == curves["separate"]
    assert run(subject, "separate", seed=1)["curve"] != curves["separate"]
    after = dict(subject.model.named_parameters())
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_loss_s_gradient_is_the_sum_of_the_terms(subject, monkeypatch):
    """Measured steps take the terms' gradients one by one; the weights must not notice."""
    measured = run(subject, "separate", steps=4)["curve"]
    monkeypatch.setattr(convergence_arms, "measured", lambda step: False)
    plain = run(subject, "separate", steps=4)["curve"]
    for one, other in zip(measured, plain, strict=True):
        assert "cosine" in one and "cosine" not in other
        for term in ("erase", "separate", "retain"):
            assert one[term] == pytest.approx(other[term], rel=1e-3, abs=1e-5)


def test_an_arm_learns_by_one_mean_of_erase_and_separate_too(subject, curves):
    recipe = replace(small(2), separate_weight=None)
    one = train_arm(subject, recipe, {}, 0, tiny_sets(), EXACT, unseen)["curve"]
    assert 0 < one[0]["separate"] < curves["separate"][0]["separate"]  # by the tokens of both
    assert one[1]["erase gradient"] > 0


def test_targets_keep_what_they_should():
    recipe = small(1)
    old, states = torch.randn(4, 32), torch.randn(4, 5, 32)
    mask = torch.tensor([[False], [True], [True], [True]]).expand(4, 5)
    by_layer = [dict.fromkeys(recipe.target_layers, what) for what in (states, old)]
    reference = ReferenceStates(by_layer[0], {}, by_layer[1])
    turned = convergence_arms.random_target(reference, recipe, 3, mask).centroid
    again = convergence_arms.random_target(reference, recipe, 3, mask).centroid
    for layer, new in turned.items():
        assert torch.equal(new, again[layer])
        torch.testing.assert_close(new.norm(dim=-1), old.norm(dim=-1))
        assert ((new * old).sum(dim=-1) > 0).all()
    assert not torch.equal(*turned.values())
    rolled = convergence_arms.other_target(reference, recipe, 3, mask).centroid
    assert all(torch.equal(new[1:], old[:-1]) for new in rolled.values())
    here = torch.nn.functional.normalize(states, dim=-1).mean(dim=1)
    for near in convergence_arms.near_target(reference, recipe, 3, mask).centroid.values():
        assert torch.equal(near[0], old[0])  # nothing of it is to leave anything
        torch.testing.assert_close(near.norm(dim=-1), old.norm(dim=-1))
        torch.testing.assert_close((here * near).sum(dim=-1)[1:], (here * old).sum(dim=-1)[1:])
        assert (torch.cosine_similarity(near, old)[1:] < 0.9).all()


def test_states_are_reduced_where_asked(subject, dialogues, monkeypatch):
    monkeypatch.setattr(convergence_states, "STATES_AT", (0, 2))
    monkeypatch.setattr(convergence_states, "LAST_ALONE", 2)
    monkeypatch.setattr(convergence_states, "SPLITS", 5)
    first = run(subject, "none", 0, 2, dialogues, main=True)["states"]
    assert list(first) == [0, 2]
    assert list(run(subject, "none", 1, 2, dialogues, main=True)["states"]) == [2]
    assert list(run(subject, "push", 0, 2, dialogues)["states"]) == [2]
    found = first[0]["harmful 2"]
    assert set(first[0]) == {"harmful 2", "boundary-safe 2", "benign 2"}
    assert (found["n"], found["k"], len(found["costs"])) == (24, 3, 5)
    assert found["radius"][1] >= found["radius"][8] > 0
    assert found["radius"][1] <= found["diameter"]


def test_steps_to_a_level_and_their_mean():
    curve = [{"step": n, "erase": value} for n, value in enumerate((1, 0.95, 0.8, 0.9), 1)]
    assert [steps_to(curve, x) for x in (1, 0.9, 0.8, 0.7)] == [1, 3, 3, None]
    found = mean_of_runs([10, 12, 14])
    assert (found.value, found.n) == (12, 3)
    assert found.high - 12 == pytest.approx(4.303 * 2 / 3**0.5, rel=1e-3)
    one = mean_of_runs([7])
    assert (one.low, one.high) == (0, 14)


def test_what_is_written_is_not_made_again(subject, dialogues, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(convergence_states, "STATES_AT", (0, 2))
    monkeypatch.setattr(convergence_states, "LAST_ALONE", 2)
    monkeypatch.setattr(convergence_summary, "STATES_AT", (0, 2))
    monkeypatch.setattr(convergence_states, "SPLITS", 5)
    monkeypatch.setattr(convergence, "base_recipe", lambda _, steps, layers: small(steps))
    monkeypatch.setattr(convergence, "local_subject", lambda *_: subject)
    monkeypatch.setattr(convergence, "reference_sets", lambda *_, **__: tiny_sets())
    monkeypatch.setattr(convergence, "dialogues_of", lambda *_: dialogues)
    monkeypatch.setattr(convergence, "attacks_of", lambda *_: unasked)
    command = ["convergence.py", "--steps", "2", "--results", str(tmp_path)]
    arms = ["--arms", "separate", "none", "--seeds"]
    monkeypatch.setattr(sys, "argv", [*command, *arms, "0"])
    convergence.main()
    (path,) = tmp_path.glob("*/convergence/2-steps/runs.jsonl")
    first = path.read_text()
    monkeypatch.setattr(sys, "argv", [*command, *arms, "0", "1"])
    convergence.main()
    assert path.read_text().startswith(first)
    runs = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["arm"], r["seed"]) for r in runs] == [
        (arm, seed) for seed in (0, 1) for arm in ("separate", "none")
    ]
    result = read_result(path.with_name("summary.json"))
    reached = find(result, "reached erase 0.9", set="none")
    assert (reached.k, reached.n) == (0, 2)
    saved = find(result, "steps saved to erase 0.9", set="none less separate")
    assert saved.value == 0 and saved.n == 2
    paired = find(
        result, "k-variance difference", set="separate less none, step 2", attack="benign 2"
    )
    assert paired.n == 24 and paired.low <= paired.value <= paired.high
    assert result["seed"] == [0, 1] and result["adapter"]["run"]["recipe"]["steps"] == 2


def test_runs_on_other_data_are_not_gone_on_with(subject, monkeypatch, tmp_path):
    monkeypatch.setattr(convergence, "base_recipe", lambda _, steps, layers: small(steps))
    monkeypatch.setattr(convergence, "local_subject", lambda *_: subject)
    monkeypatch.setattr(convergence, "reference_sets", lambda *_, **__: tiny_sets())
    monkeypatch.setattr(convergence, "dialogues_of", lambda *_: {})
    monkeypatch.setattr(convergence, "attacks_of", lambda *_: unasked)
    path = tmp_path / convergence.tier() / "convergence" / "1-steps" / "runs.jsonl"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["convergence.py", "--steps", "1", "--results", str(tmp_path)])
    fits = {"arm": "none", "seed": 0, "data": tiny_sets().digest, "layers": [9, 19]}
    for change, said in (
        ({"data": "other"}, "on other data"),
        ({"layers": [9]}, "of other layers"),
    ):
        path.write_text(json.dumps({**fits, **change}) + "\n")
        with pytest.raises(SystemExit, match=said):
            convergence.main()


def test_two_processes_lose_no_run_of_each_other_and_no_line_is_cut_off(tmp_path):
    path = tmp_path / "deeper" / "runs.jsonl"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: convergence.add_run(path, {"seed": seed}), range(40)))
    assert sorted(run["seed"] for run in convergence.read_runs(path)) == list(range(40))
    assert not list(path.parent.glob("*.part"))


def test_states_are_compared_with_the_other_arm_s_where_no_start_was_looked_at(
    subject, dialogues, monkeypatch
):
    """As where the arms from a random B alone are watched, whose start is no undefended model."""
    monkeypatch.setattr(convergence_states, "LAST_ALONE", 2)
    monkeypatch.setattr(convergence_summary, "STATES_AT", (0, 2))
    made = {arm: run(subject, arm, 1, 2, dialogues) for arm in ("push", "none")}
    runs = [{"arm": arm, "seed": 1, **json.loads(json.dumps(of))} for arm, of in made.items()]
    rows = [row for row in summary_rows(runs) if "k-variance" in row["metric"]]
    assert {row["set"] for row in rows} == {"push less none, step 2"}


def test_a_model_in_training_is_asked_whole_and_with_what_it_learned(subject):
    """Its replies are those of the same weights after training, and the model is whole again."""
    model, count = subject.model, len(decoder_layers(subject.model))
    recipe, asked = replace(small(3), lora_std=0.5), [as_dialogue("Name a color.")]
    said, layers = {}, []

    def look(step, learning):
        layers.append(len(decoder_layers(model)))
        said[step] = subject.backend.reply(asked, Decoding(8))[0].text
        return {}

    plain = subject.backend.reply(asked, Decoding(8))[0].text
    train_arm(subject, recipe, {}, 0, tiny_sets(), EXACT, look)
    assert layers == [count] * 4 and len(decoder_layers(model)) == count
    with adapted(model, recipe, 0):
        assert said[0] == subject.backend.reply(asked, Decoding(8))[0].text != plain
    assert subject.backend.reply(asked, Decoding(8))[0].text == plain


def test_attacks_that_get_through_are_counted(default_model, monkeypatch):
    backend = SimpleNamespace(
        reply=lambda asked, decoding, prefill: [Reply("Sure", 1, 1, True)] * len(asked)
    )
    monkeypatch.setattr(convergence_states, "LocalBackend", lambda *_, **__: backend)
    labels = iter(["complied", "refused"] * 20)
    monkeypatch.setattr(
        convergence_states,
        "judges_named",
        lambda _: [lambda asked, _: [next(labels) for _ in asked]],
    )
    found = convergence_states.attacks_of(SimpleNamespace(model=None, tokenizer=None), EXACT, 2)()
    assert found == {"k": 10, "n": 20}


def test_steps_to_a_share_of_attacks_beside_the_twin_with_the_term():
    terms = {f"{name} gradient": 1.0 for name in ("erase", "separate", "retain")}

    def made(arm, shares):
        curve = [{"step": n, "erase": 1.0, **terms} for n in range(1, 31)]
        counts = {str(10 * n): {"k": share, "n": 10} for n, share in enumerate(shares)}
        return {"arm": arm, "seed": 0, "curve": curve, "success": counts}

    runs = [made("separate+push", (6, 5, 2, 1)), made("push", (6, 6, 5, 2))]
    rows = {(r["metric"], r["set"]): r for r in summary_rows(runs)}
    assert rows["steps to success 0.2", "separate+push"]["mean"] == 20
    assert rows["steps saved to success 0.2", "push less separate+push"]["mean"] == 10
    assert rows["reached success 0.4", "push"]["k"] == 1
    assert ("steps saved to success 0.2", "push less separate") not in rows


def test_a_level_that_no_run_reaches_counts_as_the_last_step():
    def made(arm, seed, values):
        terms = ("erase", "separate", "retain")
        row = {f"{name} gradient": 1.0 for name in terms}
        curve = [{"step": n, "erase": v, **row} for n, v in enumerate(values, 1)]
        return {"arm": arm, "seed": seed, "curve": curve, "states": {}}

    runs = [
        made("separate", 0, (1, 0.9, 0.6, 0.4)),
        made("separate", 1, (1, 1, 0.9, 0.4)),
        made("none", 1, (1, 1, 1, 0.95)),
        made("none", 0, (1, 1, 1, 0.6)),
    ]
    rows = {(r["metric"], r["set"]): r for r in summary_rows(runs)}
    assert rows["reached erase 0.9", "none"]["k"] == 1
    assert rows["steps to erase 0.9", "none"]["mean"] == 4
    saved = rows["steps saved to erase 0.9", "none less separate"]
    assert (saved["mean"], saved["n"]) == (1.5, 2)  # seed by seed: 4 - 2 and 4 - 3


def test_the_recipe_is_the_book_s_cut_down():
    recipe = base_recipe(ALIGNED, 40, [9])
    assert recipe.target_layers == (9,) and recipe.lora_layers == 10 and recipe.lora_std == 0
    assert recipe.separate == "refusal" and recipe.reference == "adapter-off"
    for changes in ARMS.values():
        fields = {k: v for k, v in changes.items() if k not in ("target", "warm_up")}
        assert replace(recipe, **fields).steps == 40


def test_slope_and_constant_of_a_power_law():
    found = {"by k": {str(k): 7 * k**-0.3 for k in convergence_states.SIZES}}
    slope, constant = power_of_k(found)
    assert slope == pytest.approx(-0.3) and constant == pytest.approx(7)


def test_the_separation_is_looked_at_often_first_and_then_every_twenty_steps(monkeypatch):
    monkeypatch.setattr(convergence_states, "_states", lambda *_: dict.fromkeys(KINDS, []))
    monkeypatch.setattr(convergence_states, "separations", lambda *_: {})
    monkeypatch.setattr(convergence_states, "reduced", lambda *_: {})
    dialogues = dict.fromkeys(convergence_states.PARTS, dict.fromkeys(KINDS, []))
    look = Watch(None, dialogues, [2], 95, EXACT, True, True, unasked)
    seen = {step: look(step, None) for step in range(96)}
    assert [s for s in seen if "separation" in seen[s]] == [*range(0, 41, 2), 60, 80, 95]
    assert [s for s in seen if "success" in seen[s]] == [*range(2, 21, 2), 30, 40, 60, 80, 95]


def test_separation_of_known_clouds_and_its_controls():
    """Two clouds two apart along one axis, 30 items each; the controls have hardly a margin."""
    dice = np.random.default_rng(0)
    axis = np.eye(4)[0]

    def cloud(place):
        return (0.1 * dice.normal(size=(30, 4)) + place * axis)[:, None]

    states = {
        part: {"harmful": cloud(1), "boundary-safe": cloud(-1)} for part in convergence_states.PARTS
    }
    found = separations(states, [7])
    assert set(found) == {
        f"{part} 7{case}"
        for part in convergence_states.PARTS
        for case in ("", ", shuffled", ", random split")
    }
    for part in convergence_states.PARTS:
        real = found[f"{part} 7"]
        assert real["margin"] == pytest.approx(1, abs=0.05) and real["n"] == 60
        assert real["low"] < real["value"] < real["high"]
        assert real["value"] == pytest.approx(real["margin"] / real["k_variance"], rel=1e-3)
        assert 0 < real["radius by diameter, harmful"] < 1
    for case in (", shuffled", ", random split"):
        assert found[f"held-out 7{case}"]["value"] < 0.2 * found["held-out 7"]["value"]


def test_separation_is_summarised_by_step(subject, dialogues, monkeypatch):
    monkeypatch.setattr(convergence_states, "STATES_AT", (0, 2))
    made = (run(subject, "none", seed, 2, dialogues, main=True) for seed in (0, 1))
    rows = [{"arm": "none", "seed": seed, **one} for seed, one in enumerate(made)]
    runs = json.loads(json.dumps(rows))  # as they are written
    assert list(runs[0]["separation"]) == ["0", "2"]
    result = {"rows": summary_rows(runs)}
    found = find(result, "margin by k-variance, step 2", set="none", attack="held-out 2, shuffled")
    each = [run["separation"]["2"]["held-out 2, shuffled"]["value"] for run in runs]
    assert (found.value, found.n) == (pytest.approx(np.mean(each)), 2)


def test_each_subject_has_its_recipe_and_folder(monkeypatch):
    recipe = base_recipe(ALIGNED_360, 120, [9, 19])
    assert recipe.model == ALIGNED_360 and recipe.lora_layers == 20 and recipe.lora_std == 0
    monkeypatch.setattr(convergence, "tier", lambda: "cpu")
    assert convergence.folder_of("r", ALIGNED, 40).as_posix() == "r/cpu/convergence"
    assert convergence.folder_of("r", ALIGNED_360, 40).name == ALIGNED_360
    assert convergence.folder_of("r", ALIGNED_360, 120).name == "120-steps"
