"""Every recipe that comes along can be followed, and what cannot be is refused by name."""

import json
import math
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from tiny import tiny_model, tiny_recipe, tiny_sets

from xb_lite.losses.terms import coefficients
from xb_lite.models.precision import Precision
from xb_lite.recipes import (
    METHODS,
    Baseline,
    Recipe,
    RecipeError,
    as_fields,
    changes_of,
    load_recipe,
    recipe_for,
    recipe_names,
    run_name,
    usual_values,
)
from xb_lite.training.defense import train_defense
from xb_lite.training.run import train

ROOT = Path(__file__).parent.parent
EXACT = Precision("cpu", torch.float32, None, "tests")
CPU = "x-boundary-smollm2-135m"
# No harmful response is among their items.
HARMLESS = ("refusal-tuning", "alignment", "intention-tuning")

# Architecture and decoder layers of the real models, as in their own config.json.
MODELS = {
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", 24),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", 24),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", 28),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", 28),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": ("llama", 32),
    "meta-llama/Meta-Llama-3-8B-Instruct": ("llama", 32),
    "mistralai/Mistral-7B-Instruct-v0.2": ("mistral", 32),
    "qwen2.5-coder-0.5b": ("qwen2", 24),
    "qwen2.5-coder-1.5b": ("qwen2", 28),
    "smollm2-135m": ("llama", 30),
    "smollm2-135m-aligned": ("llama", 30),
    "smollm2-135m-aligned-360": ("llama", 30),
}
OURS = [name for name in recipe_names() if isinstance(load_recipe(name), Recipe)]
OFFICIAL = [name for name in OURS if load_recipe(name).retain == "absolute"]


pytestmark = pytest.mark.usefixtures("one_thread")


def as_file(folder, values):
    path = folder / "mine.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return path


# The recipes that come with the package


@pytest.mark.parametrize("name", recipe_names())
def test_each_recipe_fits_its_model_and_says_where_it_is_from(name):
    recipe = load_recipe(name)
    _, layers = MODELS[recipe.model]
    recipe.check_model(layers)
    assert METHODS[recipe.method] is type(recipe)
    assert recipe.source.startswith(("this book", "X-Boundary, arXiv 2502.09990"))
    assert type(recipe)(**as_fields(recipe)) == recipe
    assert json.loads(json.dumps(as_fields(recipe))) == as_fields(recipe)


@pytest.mark.parametrize("name", OURS)
def test_layers_are_at_the_depth_of_the_others(name):
    recipe = load_recipe(name)
    _, layers = MODELS[recipe.model]
    if name in OFFICIAL:  # 10 and 20 of hidden_states, whatever the model; LoRA on blocks 0 to 20
        assert recipe.target_layers == (9, 19) and recipe.lora_layers == 21
        return
    assert [round(3 * (layer + 1) / layers) for layer in recipe.target_layers] == [1, 2]
    assert recipe.lora_layers == max(recipe.target_layers) + 1


def test_published_numbers():
    common = {
        "rank": 16,
        "lora_alpha": 16,
        "dropout": 0.05,
        "lora_std": 0,
        "steps": 180,
        "learning_rate": 1e-4,
        "pairs": 16,
        "alpha": 10,
        "retain_weight": 1,
        "separate": "as_coded",
        "separate_weight": None,
        "max_tokens": 1024,
        "multi_turn_share": 0,
        "sink_tokens": 0,
    }
    by_model = {
        "x-boundary-llama-3-8b": (500, 300, 4000),
        "x-boundary-mistral-7b": (500, 300, 0),
        "x-boundary-qwen2.5-7b": (100, 600, 4000),
        "x-boundary-r1-distill-llama-8b": (400, 300, 4000),
    }
    assert sorted(by_model) == [name for name in OFFICIAL if name.startswith("x-boundary")]
    for name, (boundary, schedule, refusals) in by_model.items():
        recipe = load_recipe(name)
        assert {field: getattr(recipe, field) for field in common} == common
        assert recipe.schedule == schedule
        share = boundary / (3000 + boundary)
        assert recipe.boundary_share == pytest.approx(share, abs=1e-4)
        assert recipe.refusal_share == pytest.approx(refusals / 14001 * (1 - share), abs=1e-4)
    # What the published table says of steps 90 and 180.
    for name, wanted in (("llama-3-8b", (3, 7, 6, 4)), ("qwen2.5-7b", (1.5, 8.5, 3, 7))):
        recipe = load_recipe(f"x-boundary-{name}")
        found = [c for t in (90, 180) for c in coefficients(t, recipe.schedule, recipe.alpha)]
        assert found == pytest.approx(wanted)


def test_circuit_breakers_differ_from_x_boundary_in_what_they_are():
    mine, breakers = (
        as_fields(load_recipe(CPU)),
        as_fields(load_recipe(f"circuit-breakers-{CPU[11:]}")),
    )
    wrong = {field for field in mine if mine[field] != breakers[field]}
    assert wrong == {"method", "separate", "lora_std", "source"}


@pytest.mark.parametrize("size", ["llama-3-8b", "qwen2.5-7b", "mistral-7b"])
def test_beside_each_published_recipe_stand_its_circuit_breakers(size):
    mine, breakers = (
        as_fields(load_recipe(f"{m}-{size}")) for m in ("x-boundary", "circuit-breakers")
    )
    wrong = {field for field in mine if mine[field] != breakers[field]}
    data = {"boundary_share", "refusal_share"}
    assert wrong | data == {"method", "separate", "lora_std", "source"} | data
    refusals = 0 if size == "mistral-7b" else 4000
    assert breakers["boundary_share"] == 0
    assert breakers["refusal_share"] == pytest.approx(refusals / 14001, abs=1e-4)


def test_a_share_is_prefilled_wherever_harmful_responses_are():
    """Half of all that is kept begins as they do; where there are none, nothing does."""
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.prefilled_share == (0 if recipe.method in HARMLESS else 0.5)
    for share in (0, 0.3, 1, 1.0):
        assert load_recipe(CPU, prefilled_share=share).prefilled_share == share


@pytest.mark.parametrize("name", OURS)
def test_each_recipe_trains_a_model_of_its_kind(tmp_path, tokenizer, name):
    """Every field as it is, but for the sizes."""
    whole = load_recipe(name)
    kind, _ = MODELS[whole.model]
    above = whole.lora_layers - max(whole.target_layers)  # 1, or 2 in the official code
    sizes = {"rank": whole.rank, "pairs": whole.pairs, "pairs_at_once": whole.pairs_at_once}
    recipe = tiny_recipe(name, steps=2, lora_layers=2 + above, max_tokens=whole.max_tokens, **sizes)
    changed = {f for f, value in as_fields(whole).items() if as_fields(recipe)[f] != value}
    assert changed <= {"target_layers", "lora_layers", "steps", "source"}
    model = tiny_model(tokenizer, kind, num_hidden_layers=5)
    curve = train(recipe, model, tokenizer, tiny_sets(), tmp_path, EXACT).curve
    assert [row["step"] for row in curve] == [1, 2]
    assert all(math.isfinite(value) for row in curve for value in row.values())
    assert curve[0]["grad_norm"] > 0
    # At LoRA's usual start nothing has changed yet.
    assert (curve[0]["retain"] == 0) == (recipe.lora_std == 0)
    assert curve[1]["retain"] > 0 and curve[0]["erase"] > 0.5
    if recipe.method == "circuit-breakers":
        assert [row["separate"] for row in curve] == [0, 0]
    else:
        assert max(row["separate"] for row in curve) > 0


# Recipes of one's own


def test_a_recipe_of_ones_own_is_a_file(tmp_path):
    mine = {**as_fields(load_recipe(CPU)), "steps": 7, "source": "me"}
    path = as_file(tmp_path, mine)
    assert load_recipe(path) == load_recipe(str(path)) == load_recipe(CPU, steps=7, source="me")
    assert load_recipe(path, steps=8).steps == 8


def test_a_changed_recipe_does_not_carry_the_claim_of_the_published_one(tmp_path):
    name = "x-boundary-llama-3-8b"
    published = load_recipe(name)
    assert load_recipe(name, steps=180, target_layers=(9, 19), label_noise=0.0) == published
    changed = load_recipe(name, model="./mine", steps=60)
    said = f"model, steps changed from {name}: "
    assert changed.source == said + published.source and changes_of(changed) == {}
    assert load_recipe(name, steps=60, source="me").source == "me"
    # Saved and read again it is what it was, and changed again it says so once more.
    own = tmp_path / "own.json"
    own.write_text(json.dumps(as_fields(changed)))
    assert load_recipe(own) == changed
    assert load_recipe(own, rank=8).source == f"rank changed from own: {changed.source}"


def test_recipes_are_found_by_name():
    assert set(OURS) < set(recipe_names())
    with pytest.raises(RecipeError, match=f"no recipe 'mine'.*{CPU}.*JSON file"):
        load_recipe("mine")
    with pytest.raises(RecipeError, match="no recipe 'nowhere/mine.json'"):
        load_recipe("nowhere/mine.json")


@pytest.mark.parametrize("text", ["", "{", '{"steps": }', "\ufeff{}"])
def test_a_file_that_is_no_json_is_said_to_be_none(tmp_path, text):
    with pytest.raises(RecipeError, match="mine.json is no JSON"):
        load_recipe(as_file(tmp_path, text))


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"method": []}', '{"method": "ga"}'])
def test_a_recipe_has_a_method(tmp_path, text):
    with pytest.raises(RecipeError, match=r"^method of recipe .* must be one of x-boundary, "):
        load_recipe(as_file(tmp_path, text))


def test_fields_are_neither_missing_nor_unknown(tmp_path):
    mine = as_fields(load_recipe(CPU))
    del mine["rank"], mine["alpha"]
    with pytest.raises(RecipeError) as raised:
        load_recipe(as_file(tmp_path, {**mine, "ranks": 16}))
    for words in ("alpha (missing)", "rank (missing)", "ranks (unknown)"):
        assert words in str(raised.value)
    with pytest.raises(RecipeError, match=r"retain_wait \(unknown\)"):
        load_recipe(CPU, retain_wait=2)
    # A field of the other kind of recipe.
    with pytest.raises(RecipeError, match=r"weight \(unknown\)"):
        load_recipe(CPU, weight=1.0)
    with pytest.raises(RecipeError, match=r"alpha \(unknown\)"):
        load_recipe("sft-smollm2-135m", alpha=1)


INF, NAN = math.inf, math.nan
COUNTS = [0, -1, 1.5, 2.0, "2", True, None, INF, NAN]
BAD = {
    "model": ["", " ", None, 3, ["smollm2-135m"]],
    "source": ["", None],
    "gradient_checkpointing": [0, 1, "yes", None],
    "lora_layers": COUNTS,
    "rank": COUNTS,
    "steps": COUNTS,
    "pairs": COUNTS,
    "pairs_at_once": [*COUNTS, 3, 16],
    "max_tokens": COUNTS,
    "lora_alpha": [0, -1, "16", None, True, INF, NAN],
    "learning_rate": [0, -1e-4, "1e-4", None, True, INF, NAN],
    "lora_std": [-0.1, "0", None, False, INF, NAN],
    "dropout": [-0.1, 1.1, "0", None, False, INF, NAN],
    "boundary_share": [0, -0.1, 1.1, "0", None, True, INF, NAN],
    "refusal_share": [-0.1, 0.8, 1.1, "0", None, False, INF, NAN],
    "multi_turn_share": [-0.1, 1.1, "0", None, False, INF, NAN],
    "prefilled_share": [-0.1, 1.1, "0", None, False, INF, NAN],
    "target_layers": [
        [],
        None,
        9,
        "9",
        [9, "19"],
        [9, -1],
        [9, 20],
        [9.0],
        [True],
        [NAN],
        {"9": 1},
    ],
    "separate": [None, "", "all", 1, ["refusal"]],
    "separate_weight": [-1, "1", True, INF, NAN],
    "retain": [None, "", "squared", ["relative"]],
    "retain_weight": [-1, "1", None, True, INF, NAN],
    "alpha": [0, -1, "10", None, True, INF, NAN],
    "schedule": [0, -1, "150", None, True, INF, NAN],
    "sink_tokens": [-1, 0.5, "1", None, True, INF, NAN],
    "reference": [None, "", "off", ["cache"]],
    "label_noise": [-0.1, 1.1, "0", None, False, INF, NAN],
    "boundary_style": ["", "questions", 1, ["question"]],
    "separate_target": [None, "", "none", ["random"]],
}


@pytest.mark.parametrize("field", BAD)
def test_a_value_that_cannot_be_is_named(field):
    for value in BAD[field]:
        with pytest.raises(RecipeError, match=rf"^{field} is .*; it must be "):
            load_recipe(CPU, **{field: value})


def test_every_field_has_values_that_cannot_be():
    assert {"method", *BAD} == Recipe.__dataclass_fields__.keys()


@pytest.mark.parametrize("value", [0, -1, "1", None, True, INF, NAN])
def test_a_baselines_weight_is_positive(value):
    name = next(n for n in recipe_names() if isinstance(load_recipe(n), Baseline))
    with pytest.raises(RecipeError, match=r"^weight is .*; it must be a number above 0"):
        load_recipe(name, weight=value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none_are_refused_in_files_too(tmp_path, number):
    mine = json.dumps({**as_fields(load_recipe(CPU)), "alpha": "?"}).replace('"?"', number)
    with pytest.raises(RecipeError, match="^alpha is "):
        load_recipe(as_file(tmp_path, mine))


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 10**9},
        {"pairs": 10**9, "pairs_at_once": 1},
        {"steps": 10**6, "pairs": 80},
        {"rank": 10**9},
    ],
    ids=str,
)
def test_a_run_that_would_never_end_is_refused(changes):
    with pytest.raises(RecipeError, match=f"{next(iter(changes))} is .*; it must be "):
        load_recipe(CPU, **changes)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, None])
def test_a_seed_that_is_none_is_refused_before_all_else(tmp_path, seed):
    with pytest.raises(RecipeError, match=r"seed is .*; it must be a whole number from 0 to 2\*"):
        train_defense(load_recipe(CPU, model="no/such-model"), tmp_path, seed=seed)


def test_methods_and_the_separate_term_go_together():
    breakers = {"method": "circuit-breakers", "separate": None, "boundary_share": 0}
    load_recipe(CPU, **breakers)
    for changes, words in (
        ({"boundary_share": 2}, "boundary_share is 2; it must be from 0 to 1"),
        ({"separate": "refusal"}, "separate is 'refusal'; it must be null for circuit breakers"),
    ):
        with pytest.raises(RecipeError, match=words):
            load_recipe(CPU, **{**breakers, **changes})
    with pytest.raises(RecipeError, match="separate is None; it must be one of as_coded"):
        load_recipe(CPU, separate=None)


CONTROLS = {"label_noise": 0.5, "boundary_style": "question", "separate_target": "random"}


def test_a_recipe_without_controls_is_what_it_was_before_there_were_any():
    """Byte for byte: adapters, results and their names are told by these fields."""
    for name in recipe_names():
        shipped = json.loads((files("xb_lite.recipes") / f"{name}.json").read_text())
        recipe = load_recipe(name)
        off = {f: v for f, v in usual_values(type(recipe)).items() if f in CONTROLS}
        assert shipped.keys().isdisjoint(CONTROLS) and len(off) in (0, 3)
        for same in (recipe, load_recipe(name, **off)):
            found = as_fields(same)
            assert found == {**found, **shipped} and found.keys() == shipped.keys()
            assert changes_of(same) == {}
        assert run_name("m", off, name) == "m"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "artifacts").rglob("run.json")), ids=lambda path: path.parent.name
)
def test_a_committed_adapter_is_of_the_same_recipe_as_ever(path):
    said = json.loads(path.read_text())["run"]["recipe"]
    if "prefilled_share" not in said:  # of the first edition's subject, older than that field
        pytest.skip("its recipe lacks other fields, too")
    recipe = METHODS[said["method"]](**said)
    assert as_fields(recipe) == said and not CONTROLS.keys() & changes_of(recipe).keys()


@pytest.mark.parametrize("field", CONTROLS)
def test_a_control_is_a_change_by_name(field):
    name = "x-boundary-smollm2-135m-aligned-360"
    changes = {field: CONTROLS[field]}
    recipe = load_recipe(name, **changes)
    assert changes_of(recipe) == changes and as_fields(recipe)[field] == CONTROLS[field]
    assert run_name("x-boundary", {**changes, "match": 0.2}, name) == (
        f"x-boundary,{field}={CONTROLS[field]},match=0.2"
    )
    assert type(recipe)(**as_fields(recipe)) == recipe
    with pytest.raises(RecipeError, match=rf"{field} \(unknown\)"):
        load_recipe("sft-smollm2-135m", **changes)


def test_controls_that_make_no_sense_are_refused():
    breakers = "circuit-breakers-smollm2-135m-aligned-360"
    with pytest.raises(
        RecipeError, match="be centroid where separate is null: there is no separate term"
    ):
        load_recipe(breakers, separate_target="random")
    for field, off in (("label_noise", "0"), ("boundary_style", "null")):
        load_recipe(breakers, **{field: CONTROLS[field]})
        with pytest.raises(RecipeError, match=f"{field} is .* must be {off} where boundary_share"):
            load_recipe(breakers, boundary_share=0.0, **{field: CONTROLS[field]})


def test_a_style_needs_the_second_edition_which_is_said_before_a_model_is_loaded(tmp_path):
    recipe = load_recipe(CPU, model="no/such-model", boundary_style="list")
    with pytest.raises(RecipeError, match="first edition have no style: .*--edition 2"):
        train_defense(recipe, tmp_path)


def test_a_model_with_fewer_layers_is_refused():
    load_recipe(CPU).check_model(20)
    with pytest.raises(RecipeError, match="lora_layers is 20; it must be at most 19: smollm2"):
        load_recipe(CPU).check_model(19)


def test_one_setting_has_one_name():
    name = "circuit-breakers-smollm2-135m"
    own = load_recipe(name)
    for changes in (
        {"learning_rate": 1.6e-3, "steps": 300},
        {"steps": 300, "learning_rate": 0.0016},
        {"learning_rate": 0.0016, "retain_weight": own.retain_weight, "steps": 300},
        {"learning_rate": 0.0016, "steps": 300, "strength": 1},
    ):
        assert run_name("cb", changes, name) == "cb,steps=300,learning_rate=0.0016"
    assert run_name("cb", {"learning_rate": own.learning_rate}, name) == "cb"
    assert run_name("cb", {"retain_weight": 45}, name) == "cb,retain_weight=45.0"
    assert run_name("cb", {"strength": 0.75, "schedule": 450}, name) == (
        "cb,schedule=450,strength=0.75"
    )
    assert run_name("steering", {"strength": 1.0}) == "steering,strength=1.0"
    with pytest.raises(RecipeError):
        run_name("cb", {"steps": 1}, "nothing")


def test_changes_are_those_of_the_recipe_that_comes_with_the_package():
    name = "x-boundary-smollm2-135m"
    assert changes_of(load_recipe(name)) == {}
    changed = load_recipe(name, steps=7, target_layers=[3], source="mine")
    assert changes_of(changed) == {"steps": 7, "target_layers": [3]}
    assert changes_of(load_recipe(name, model="some/model")) == {}


def test_a_model_without_a_recipe_gets_the_small_one_fitted_to_its_depth():
    own = recipe_for("x-boundary", "smollm2-135m-aligned", [3, 7], steps=5)
    assert own == load_recipe("x-boundary-smollm2-135m", steps=5)
    assert recipe_for("circuit-breakers", "qwen2.5-coder-0.5b", [3, 7]).model.startswith("qwen")
    fitted = recipe_for("x-boundary", "org/model", [3, 7], steps=5)
    assert (fitted.model, fitted.target_layers, fitted.lora_layers) == ("org/model", (3, 7), 8)
    assert recipe_for("sft", "org/model", [3, 7]).lora_layers == 8
    with pytest.raises(RecipeError, match="there is no recipe 'magic-smollm2-135m'"):
        recipe_for("magic", "org/model", [3])
