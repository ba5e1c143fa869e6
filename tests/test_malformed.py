"""Whatever is changed in a file or a request that was whole: it is refused in one sentence, or what
is read is what it now says. Nothing else is raised, and nothing else is read."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_recipe, tiny_sets
from transformers import LlamaConfig

from xb_lite.data.public import LAYOUTS
from xb_lite.data.rows import BenchmarkError, parse
from xb_lite.evaluation.outcomes import Outcome, read_log
from xb_lite.models.adapter_files import AdapterError, read_adapter
from xb_lite.models.adapters import add
from xb_lite.models.cached import ModelError
from xb_lite.models.precision import Precision
from xb_lite.models.whole import check_config, check_header
from xb_lite.recipes import METHODS, Budget, RecipeError, load_recipe
from xb_lite.results.contract import read_result
from xb_lite.results.logs import LogError
from xb_lite.serve.requests import Asked, ServingError, read_request
from xb_lite.training.run import train

RESULTS = Path(__file__).parents[1] / "results" / "cpu" / "smollm2-135m"
EXACT = Precision("cpu", torch.float32, None, "tests")
QUICK = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = (
    st.integers()
    | st.sampled_from([10**9, 10**30, 10**400, -1, 0, 1])
    | st.floats(allow_nan=True, allow_infinity=True)
)
TEXTS = st.text(max_size=12) | st.sampled_from(["", "../x", "[/x]", "\0", "\ud800", "9" * 400])
LEAVES = st.none() | st.booleans() | NUMBERS | TEXTS
ANY = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)


def places(value, at=()):
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value[:4]) if isinstance(value, list) else inner
    for key, one in inner:
        yield from places(one, (*at, key))


@st.composite
def changed(draw, whole, most=3):
    """A copy with a few places that are gone, of something else, or more."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, most))):
        there = list(places(value))
        if not there:
            break
        *before, last = draw(st.sampled_from(there))
        inner = value
        for key in before:
            inner = inner[key]
        how = draw(st.sampled_from(["other", "gone", "more"]))
        if how == "other":
            inner[last] = draw(ANY)
        elif how == "gone":
            del inner[last]
        elif isinstance(inner, dict):
            inner[draw(TEXTS)] = draw(ANY)
        else:
            inner.append(draw(ANY))
    return value


def as_json(value):
    """Half a character too, as a file can have it."""
    return json.dumps(value).encode()


def one_sentence(error):
    said = str(error)
    assert said and "\n" not in said.strip(), said


# Requests

REQUEST = {
    "model": "m",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Ho"},
        {"role": "user", "content": "Name a river."},
    ],
    "temperature": 0.5,
    "top_p": 0.9,
    "max_tokens": 9,
    "seed": 3,
    "stream": True,
    "stream_options": {"include_usage": True},
    "stop": ["."],
    "n": 1,
    "chat_template_kwargs": {"enable_thinking": False},
}


@QUICK
@given(changed(REQUEST))
@example({**REQUEST, "max_tokens": 10**400})
@example({**REQUEST, "temperature": float("nan")})
@example({**REQUEST, "stop": float("nan")})
@example({**REQUEST, "messages": [{"role": "user", "content": "\ud800"}]})
@example({**REQUEST, "temperature": True})
def test_requests(said):
    try:
        asked = read_request(as_json(said), {"content-type": "application/json"})
    except ServingError as error:
        one_sentence(error)
        assert 400 <= error.status < 500
        return
    assert isinstance(asked, Asked) and asked.dialogue[-1]["role"] == "user"
    assert all(isinstance(message["content"], str) for message in asked.dialogue)
    assert len(asked.dialogue) == len(said["messages"])
    decoding = asked.decoding
    assert decoding.max_new_tokens >= 1 and 0 <= decoding.temperature < float("inf")
    if said.get("max_completion_tokens") is None and said.get("max_tokens") is not None:
        assert decoding.max_new_tokens == said["max_tokens"]
    for name, value in asked.fields.items():
        assert value is said[name] or value == said[name]


@QUICK
@given(st.binary(max_size=60))
def test_requests_that_are_no_json(body):
    try:
        read_request(body, {"content-type": "application/json"})
    except ServingError as error:
        one_sentence(error)
    else:
        pytest.fail("something was read")


# Configs


@QUICK
@given(changed(LlamaConfig().to_dict()))
@example({**LlamaConfig().to_dict(), "num_hidden_layers": 10**6})
@example({**LlamaConfig().to_dict(), "num_hidden_layers": True})
def test_configs(fields):
    try:
        check_config("a model", fields)
    except ModelError as error:
        one_sentence(error)
        return
    for name, most in (("num_hidden_layers", 1000), ("hidden_size", 10**6)):
        value = fields.get(name)
        assert value is None or (type(value) is int and 0 <= value <= most)


RECIPE = json.loads(
    (Path(__file__).parents[1] / "xb_lite/recipes/x-boundary-smollm2-135m.json").read_text()
)


@QUICK
@given(changed(RECIPE))
@example({**RECIPE, "steps": 10**9})
@example({**RECIPE, "boundary_share": float("nan")})
@example({**RECIPE, "method": ["x-boundary"]})
def test_recipes(tmp_path, values):
    path = tmp_path / "mine.json"
    path.write_bytes(as_json(values))
    try:
        recipe = load_recipe(path)
    except RecipeError as error:
        one_sentence(error)
        return
    assert isinstance(recipe, Budget) and type(recipe) is METHODS[values["method"]]
    for name, value in values.items():
        assert getattr(recipe, name) == (tuple(value) if isinstance(value, list) else value)
    assert recipe.steps * recipe.pairs < 10**7


# Tensors


@pytest.fixture(scope="module")
def small(tokenizer):
    return tiny_model(tokenizer, num_hidden_layers=4)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, small, tokenizer):
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    train(tiny_recipe(steps=1), copy.deepcopy(small), tokenizer, tiny_sets(), folder, EXACT)
    return folder


DTYPES = [torch.float16, torch.float32, torch.bfloat16, torch.int8, torch.int64, torch.bool]
SHAPES = st.lists(st.integers(0, 5), max_size=4)
VALUES = st.sampled_from([0.0, 1.0, float("nan"), float("inf"), -float("inf")])


@QUICK
@given(data=st.data())
def test_tensors_of_adapters(adapter, small, tmp_path, data):
    folder = tmp_path / "one"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(adapter, folder)
    path = folder / "adapter_model.safetensors"
    whole = load_file(path)
    weights = dict(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(whole)))
        how = data.draw(st.sampled_from(["gone", "renamed", "other", "value"]))
        value = weights.pop(name, whole[name]).clone()
        if how == "renamed":
            weights[data.draw(st.text("abAB._01", min_size=1, max_size=9))] = value
        elif how == "other":
            shape, dtype = data.draw(SHAPES), data.draw(st.sampled_from(DTYPES))
            weights[name] = torch.zeros(shape, dtype=dtype)
        elif how == "value":
            weights[name] = value = whole[name].clone()  # not one that was changed before
            value[0, 0] = data.draw(VALUES)
    save_file(weights, path, metadata={"format": "pt"})
    try:
        found = read_adapter(folder)
        add(copy.deepcopy(small), found)  # the model alone knows how wide its layers are
    except AdapterError as error:
        one_sentence(error)
        return
    assert found.weights.keys() == whole.keys()
    assert all(value.isfinite().all() for value in found.weights.values())
    assert all(found.weights[name].shape == whole[name].shape for name in whole)


@QUICK
@given(data=st.data())
def test_configs_of_adapters(adapter, tmp_path, data):
    folder = tmp_path / "one"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(adapter, folder)
    path = folder / data.draw(st.sampled_from(["adapter_config.json", "run.json"]))
    path.write_bytes(as_json(data.draw(changed(json.loads(path.read_text())))))
    try:
        found = read_adapter(folder)
    except AdapterError as error:
        one_sentence(error)
        return
    assert isinstance(found.config, LoraConfig) and found.config.r == 4
    assert found.weights.keys() == load_file(adapter / "adapter_model.safetensors").keys()


HEADER = st.dictionaries(
    st.text("abwo.", min_size=1, max_size=8),
    st.tuples(st.sampled_from(["F32", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3"]), SHAPES),
    min_size=1,
    max_size=4,
)


@settings(QUICK, max_examples=30)
@given(HEADER)
def test_headers_of_models(header):
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=9,
    )
    config._attn_implementation = "eager"
    header = {name: (dtype, tuple(shape)) for name, (dtype, shape) in header.items()}
    try:
        check_header("a model", header, config)
    except ModelError as error:
        one_sentence(error)
        return
    assert {dtype for dtype, _ in header.values()} <= {"F32", "BF16"}


# Results and logs

RESULT = json.loads((RESULTS / "none.json").read_text())
RESULT["rows"] = RESULT["rows"][:4]
LINES = [json.loads(x) for x in (RESULTS / "none.jsonl").read_text().splitlines()[:4]]


@QUICK
@given(changed(RESULT))
@example({**RESULT, "seconds": 10**400})
@example({**RESULT, "rows": [{**RESULT["rows"][0], "low": float("nan")}]})
def test_results(tmp_path, result):
    path = tmp_path / "one.json"
    path.write_bytes(as_json(result))
    try:
        found = read_result(path)
    except ValueError as error:
        one_sentence(error)
        assert str(path) in str(error)
        return
    assert found == json.loads(path.read_text())
    for row in found["rows"]:
        assert row["low"] <= row["high"] and 1 <= row["n"] <= 10**12
        assert 0 <= row.get("k", 0) <= row["n"]


@QUICK
@given(st.integers(0, 3), st.data())
def test_logs(tmp_path, at, data):
    lines = [*LINES[:at], data.draw(changed(LINES[at])), *LINES[at + 1 :]]
    path = tmp_path / "one.jsonl"
    path.write_bytes(b"".join(as_json(line) + b"\n" for line in lines))
    try:
        outcomes = read_log(path)
    except LogError as error:
        one_sentence(error)
        return
    assert all(isinstance(outcome, Outcome) for outcome in outcomes)
    for outcome in outcomes:
        turns = len(outcome.finished)
        assert all(len(labels) == turns for labels in outcome.labels.values())
        assert all(0 <= count < 2**63 for count in (*outcome.prompt_tokens, *outcome.new_tokens))


@QUICK
@given(st.integers(0, len((RESULTS / "none.jsonl").read_bytes()[:4000]) - 1), st.binary(max_size=3))
def test_logs_with_other_bytes(tmp_path, at, piece):
    data = (RESULTS / "none.jsonl").read_bytes()[:4000]
    path = tmp_path / "one.jsonl"
    path.write_bytes(data[:at] + piece + data[at + len(piece) :])
    try:
        assert all(isinstance(outcome, Outcome) for outcome in read_log(path))
    except LogError as error:
        one_sentence(error)


# Rows of a set

ROWS = {"data": [{"behavior": "b", "messages": [{"role": "user", "content": "Bake?"}]}] * 2}


@QUICK
@given(changed(ROWS) | ANY)
def test_rows(value):
    try:
        layout, rows = parse(as_json(value), "rows.json", LAYOUTS)
    except BenchmarkError as error:
        one_sentence(error)
        return
    assert layout.dialogue and rows and all(number >= 1 for number, _ in rows)
