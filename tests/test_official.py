"""The official data path: counts, order, templates and lengths, on small harmless files."""

import hashlib
import json
import random
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from official_files import rows, written
from tiny import tiny_model, tiny_recipe

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from official_step import Item, official_step  # noqa: E402

from xb_lite import __main__
from xb_lite.data import fetching
from xb_lite.data import training as data
from xb_lite.data.fetching import git_blob
from xb_lite.data.rows import BenchmarkError
from xb_lite.data.training import TRAINING, load_training
from xb_lite.dialogues import render
from xb_lite.hidden import lowest_layers
from xb_lite.losses.batch import collate
from xb_lite.losses.step import Reference, forward, step_terms, token_counts
from xb_lite.models.packing import by_row
from xb_lite.recipes import RecipeError, load_recipe
from xb_lite.training import official
from xb_lite.training.lora import adapted
from xb_lite.training.official import (
    Official,
    OfficialSets,
    official_pairs,
    official_sets,
    parse_official,
)
from xb_lite.training.sets import REFUSAL

LLAMA = "meta-llama/Meta-Llama-3-8B-Instruct"
QWEN = "Qwen/Qwen2.5-7B-Instruct"
MISTRAL = "mistralai/Mistral-7B-Instruct-v0.2"
R1 = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


def sets(content=None, **options):
    content = content or rows()
    return OfficialSets(*(content[name] for name in TRAINING), Official(**options))


def recipe(model=LLAMA, **changes):
    own = {
        "model": model,
        "separate": "as_coded",
        "sink_tokens": 0,
        "boundary_share": 0.25,
        "steps": 2,
        "max_tokens": 64,
    }
    return tiny_recipe(**{**own, **changes})


def texts(tokenizer, model=LLAMA, content=None, **options):
    return official._texts(recipe(model), sets(content, **options), tokenizer, 0)


# Files


def test_files_of_ones_own_are_read_as_json_and_as_lines(tmp_path):
    content = rows()
    words = written(tmp_path, content)
    options, files = parse_official(["official", *words, "blanked=false"])
    assert not options.blanked and set(files) == set(TRAINING)
    assert official_sets(options, files) == sets(content, blanked=False)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in content["safemt"]))
    assert load_training("safemt", lines) == content["safemt"]


def test_ultrachat_is_read_from_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path = tmp_path / "chats.parquet"
    write_table(pyarrow.Table.from_pylist(rows()["ultrachat"]), path)
    assert load_training("ultrachat", path) == rows()["ultrachat"]
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(BenchmarkError, match="is no Parquet file"):
        load_training("ultrachat", path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("safemt", [], "has no rows"),
        ("safemt", [3], "row 1 is no object"),
        ("safemt", [{"prompt": "x"}], "row 1, field 'output': is not a text"),
        ("orbench-retain", [{"prompt": "x", "completion": "y"}], "field 'status'"),
        ("ultrachat", [{"messages": ["x"]}], "field 'messages': is not a list of messages"),
        ("ultrachat", "no", "neither JSON nor JSON lines"),
    ],
)
def test_what_is_no_such_file_is_said(tmp_path, name, content, words):
    path = tmp_path / "file.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(BenchmarkError, match=words):
        load_training(name, path)
    with pytest.raises(BenchmarkError, match="cannot be read"):
        load_training(name, tmp_path / "none.json")


def test_sets_that_are_not_there_are_said():
    with pytest.raises(BenchmarkError, match="no training set 'x'; sets are circuit-breakers"):
        load_training("x")
    with pytest.raises(RecipeError, match="files are .* not x"):
        official_sets(files={"x": "y"})


def served(monkeypatch, tmp_path, content):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fetching, "_download", lambda remote: content)


def test_a_fetched_file_is_the_published_one(tmp_path, monkeypatch):
    good = json.dumps(rows()["safemt"]).encode()
    known = replace(TRAINING["safemt"], rows=3, sha256=None, blob=git_blob(good))
    monkeypatch.setitem(data.TRAINING, "safemt", known)
    served(monkeypatch, tmp_path, good)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_training("safemt") == rows()["safemt"]
    served(monkeypatch, tmp_path, b"never asked again")
    assert load_training("safemt") == rows()["safemt"]
    for changed in (
        {"sha256": "0" * 64, "url": "http://x/a"},
        {"blob": "0" * 40, "url": "http://x/b"},
    ):
        monkeypatch.setitem(data.TRAINING, "safemt", replace(known, **changed))
        served(monkeypatch, tmp_path, good)
        with pytest.raises(BenchmarkError, match="another file than it should"):
            load_training("safemt")
    monkeypatch.setitem(data.TRAINING, "safemt", replace(known, rows=600, url="http://x/c"))
    with pytest.raises(BenchmarkError, match="has 3 rows, not 600"):
        load_training("safemt")


def test_where_no_digest_is_known_the_first_fetch_records_it_and_says_so(tmp_path, monkeypatch):
    good = json.dumps(rows()["ultrachat"]).encode()
    monkeypatch.setitem(data.TRAINING, "ultrachat", replace(TRAINING["ultrachat"], rows=9))
    served(monkeypatch, tmp_path, good)
    with pytest.warns(UserWarning, match="no digest of UltraChat .* recorded now"):
        load_training("ultrachat")
    (record,) = (tmp_path / "cache" / "training").glob("*.parquet.json")
    assert json.loads(record.read_text())["sha256"] == hashlib.sha256(good).hexdigest()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_training("ultrachat")


def test_a_git_blob_is_what_git_says():
    assert git_blob(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_every_published_file_has_an_address_at_a_commit_and_a_licence():
    for known in TRAINING.values():
        assert any(len(part) == 40 for part in known.url.split("/")), known.url
        assert known.licence and known.rows and known.home in known.url or known.blob
    assert [TRAINING[name].remote.is_pinned for name in TRAINING] == [True, True, True, False]


# How they are put together


def restated(content, tokenizer, tags, boundary, label, separator=""):
    """The order and the blanks of the official dataset, said once more with the global generators
    that it uses."""
    state, seen = np.random.get_state(), random.getstate()
    np.random.seed(3333)
    random.seed(0)
    try:
        before, after = tags

        def blank(prompt):
            return "" if np.random.choice([0, 1]) else prompt

        erased = []
        for row in content["circuit-breakers"] + content["safemt"]:
            erased.append((before + blank(row["prompt"]) + after, row["output"]))
        random.shuffle(erased)
        kept = []
        for row in content["ultrachat"]:
            if len(row["messages"]) < 2:
                continue
            if np.random.choice([0, 1]):
                kept.append(before + after + separator + row["messages"][1]["content"])
            else:
                kept.append(render(tokenizer, row["messages"]))
        random.shuffle(kept)
        good = [r for r in content["orbench-retain"] if r["status"] == "1_full_compliance"]
        for row in good[:boundary]:
            np.random.choice([0, 1])
            asked = before + row["prompt"] + after
            erased.append((asked, REFUSAL, asked + separator + row["completion"]))
            random.shuffle(erased)
        again = list(content["circuit-breakers"])
        random.shuffle(again)
        refused = []
        for row in again[:2000] * 2:
            refused.append(before + blank(row["prompt"]) + after + separator + row[label])
        kept += refused
        random.shuffle(kept)
        return erased, kept
    finally:
        np.random.set_state(state)
        random.setstate(seen)


@pytest.mark.parametrize(
    ("model", "family", "label"), [(LLAMA, "llama", "llama3_output"), (QWEN, "qwen", "qwen_output")]
)
def test_texts_and_their_order_are_the_official_ones(tokenizer, model, family, label):
    tags = official.FAMILIES[family]
    wanted = restated(rows(), tokenizer, tags[:2], 3, label, tags.separator)
    changes, retained = texts(tokenizer, model)
    assert [(c.request, c.response, *([c.retain] if c.retain else [])) for c in changes] == wanted[
        0
    ]
    assert retained == wanted[1]


def test_mistral_has_neither_blanks_nor_refusals(tokenizer):
    changes, retained = texts(tokenizer, MISTRAL)
    assert len(retained) == 8
    assert all("Weed" in c.request or "Nettle" in c.request or c.retain for c in changes)
    assert all(c.request.startswith("[INST] ") and c.request.endswith(" [/INST]") for c in changes)


def test_about_half_of_all_prompts_are_blanked_and_no_boundary_safe_one(tokenizer):
    content = rows(circuit=400)
    changes, retained = texts(tokenizer, content=content)
    empty = "".join(official.FAMILIES["llama"][:2])
    harmful = [c for c in changes if c.retain is None]
    assert 0.4 < sum(c.request == empty for c in harmful) / len(harmful) < 0.6
    refused = [text for text in retained if "No weed" in text]
    assert 0.4 < sum(text.startswith(empty) for text in refused) / len(refused) < 0.6
    assert all("Kill weed" in c.request for c in changes if c.retain)
    changes, retained = texts(tokenizer, content=content, blanked=False)
    assert not any(c.request == empty for c in changes)


def test_r1_is_trained_with_the_tags_of_llama_3_unless_asked_otherwise(tokenizer):
    changes, _ = texts(tokenizer, R1)
    assert all("<|start_header_id|>user" in c.request for c in changes)
    changes, retained = texts(tokenizer, R1, tags="template", blanked=False, refusals=False)
    own = render(tokenizer, [{"role": "user", "content": "Nettle 0"}])
    assert own in [c.request for c in changes]
    assert len(retained) == 8


def test_an_end_of_turn_is_behind_every_response_if_asked(tokenizer):
    assert not any(c.response.endswith("<|im_end|>") for c in texts(tokenizer)[0])
    changes, _ = texts(tokenizer, end_of_turn=True)
    assert all(c.response.endswith("<|im_end|>") for c in changes)
    assert all(c.retain.endswith("<|im_end|>") for c in changes if c.retain)


def test_the_published_recipes_take_500_100_and_400_boundary_safe_prompts():
    for name, size in (("llama-3-8b", 500), ("qwen2.5-7b", 100), ("r1-distill-llama-8b", 400)):
        assert official._boundary_size(load_recipe(f"x-boundary-{name}"), 3000, 530) == size
    assert official._boundary_size(recipe(boundary_share=0.5), 3000, 530) == 530


def test_counts_are_the_published_ones(tokenizer, monkeypatch):
    monkeypatch.setattr(official, "render", lambda _, messages: messages[0]["content"])
    content = rows(circuit=2400, safemt=600, answered=530, refused=12, chats=10_020)
    whole = load_recipe("x-boundary-llama-3-8b")
    changes, retained = official._texts(whole, sets(content), tokenizer, 0)
    assert (len(changes), len(retained)) == (3_500, 14_001)
    assert sum(c.retain is not None for c in changes) == 500
    assert whole.steps * whole.pairs == 2_880  # less than once through


def test_lengths_are_cut_at_the_tail(tokenizer):
    content = rows()
    long = " ".join(str(i) for i in range(200))
    content["circuit-breakers"] = [
        {**row, "prompt": long, "output": long} for row in content["circuit-breakers"]
    ]
    content["ultrachat"] = [
        {"messages": [{"role": "user", "content": long}, {"role": "assistant", "content": "x"}]}
    ] * 8
    few = recipe(steps=4)
    pairs = official_pairs(few, sets(content, blanked=False), tokenizer)
    for pair in pairs:
        assert len(pair.keep.encoding) <= 64
        request, response = (
            int(pair.change.encoding.mask(m).sum()) for m in ("prompt", "response")
        )
        assert request <= 32 and response <= 32
    cut = [pair.change.encoding for pair in pairs if pair.change.encoding.n_cut]
    assert cut and all(int(e.prompt.sum()) == 32 for e in cut if int(e.response.sum()) == 32)
    # The end of the request is gone, and with it the assistant's tag.
    whole = tokenizer(official.FAMILIES["llama"].user + long)["input_ids"][:32]
    assert any(e.input_ids[:32].tolist() == whole for e in cut)


def test_pairs_are_in_the_order_of_the_trainers_sampler(tokenizer):
    few = recipe(steps=3)
    changes, retained = texts(tokenizer)
    n = min(len(changes), len(retained))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(42)).tolist()
    pairs = official_pairs(few, sets(), tokenizer)
    assert len(pairs) == 12 == n
    for pair, index in zip(pairs, order, strict=True):
        change = changes[index]
        keep = retained[index] if change.retain is None else change.retain
        wanted = tokenizer(change.request)["input_ids"][:32]
        wanted += tokenizer(change.response, add_special_tokens=False)["input_ids"][:32]
        assert pair.change.encoding.input_ids.tolist() == wanted
        assert pair.keep.encoding.input_ids.tolist() == tokenizer(keep)["input_ids"][:64]
        assert pair.boundary == pair.separate == (change.retain is not None)
    assert len(official_pairs(recipe(steps=9), sets(), tokenizer)) == 36
    seeded = sets(order="seeded")
    numbers = [
        [p.change.encoding.input_ids.tolist() for p in official_pairs(few, seeded, tokenizer, seed)]
        for seed in (0, 1)
    ]
    assert numbers[0] == [p.change.encoding.input_ids.tolist() for p in pairs] != numbers[1]
    assert (
        official_pairs(few, sets(), tokenizer, 5)[0].change.encoding.input_ids.tolist()
        == (numbers[0][0])
    )


def test_without_a_term_for_them_refusals_of_harmless_prompts_are_not_erased(tokenizer):
    breakers = {"method": "circuit-breakers", "separate": None}
    for changes in (breakers, {"separate": "as_described"}):
        pairs = official_pairs(recipe(steps=8, **changes), sets(blanked=False), tokenizer)
        assert any(pair.boundary for pair in pairs)
        for pair in pairs:
            assert not pair.separate
            said = tokenizer.decode(pair.change.encoding.input_ids)
            assert REFUSAL[:20] not in said
    separated = official_pairs(recipe(steps=8), sets(blanked=False), tokenizer)
    erased = [REFUSAL[:20] in tokenizer.decode(p.change.encoding.input_ids) for p in separated]
    assert erased == [pair.boundary for pair in separated]


def test_what_cannot_be_is_said(tokenizer):
    with pytest.raises(RecipeError, match="no tags for .*SmolLM2.* tags=template"):
        official_pairs(recipe("smollm2-135m"), sets(), tokenizer)
    assert official_pairs(recipe("smollm2-135m"), sets(tags="template"), tokenizer)
    content = rows()
    for row in content["circuit-breakers"]:
        del row["llama3_output"]
    with pytest.raises(RecipeError, match="rows without llama3_output"):
        official_pairs(recipe(), sets(content), tokenizer)
    assert official_pairs(recipe(), sets(content, refusals=False), tokenizer)
    with pytest.raises(RecipeError, match="boundary_share is 0.25, but orbench-retain has no"):
        official_pairs(recipe(), sets(rows(answered=0)), tokenizer)
    with pytest.raises(RecipeError, match="method is sft; official data are for X-Boundary"):
        official_pairs(load_recipe("sft-smollm2-135m"), sets(), tokenizer)
    for words, said in (
        (["mine"], "the data are 'mine'"),
        (["official", "blanked=maybe"], "blanked is 'maybe'"),
        (["official", "tags=x"], "tags is 'x'; it must be one of by-name, template"),
        (["official", "speed=3"], "'speed=3' is neither an option"),
        (["official", "ultrachat="], "'ultrachat=' is neither"),
    ):
        with pytest.raises(RecipeError, match=said):
            parse_official(words)


def test_data_and_options_are_in_the_digest():
    assert sets().digest == sets().digest
    assert len({sets().digest, sets(blanked=False).digest, sets(rows(safemt=2)).digest}) == 3


def test_the_command_says_what_it_cannot_do(capsys):
    assert __main__.main(["train", "x-boundary-smollm2-135m", "--data", "mine"]) == 1
    assert "the data are 'mine'" in capsys.readouterr().err


def test_a_step_on_official_data_is_the_official_step(tokenizer):
    """Windows, blanks, tags and all, against the oracle of the benchmark."""
    model = tiny_model(tokenizer, num_hidden_layers=5)
    model.lm_head = torch.nn.Linear(32, 50, bias=False)
    few = recipe(
        target_layers=[1, 2],
        lora_layers=4,
        lora_std=0.1,
        steps=3,
        retain="absolute",
        retain_weight=1.0,
        separate_weight=None,
        reference="adapter-off",
    )
    pairs = official_pairs(few, sets(), tokenizer)
    assert {pair.boundary for pair in pairs} == {True, False}
    items = [
        Item(
            pair.change.encoding.input_ids[pair.change.encoding.prompt].tolist(),
            pair.change.encoding.input_ids[pair.change.encoding.response].tolist(),
            pair.keep.encoding.input_ids.tolist(),
            pair.boundary,
        )
        for pair in pairs
    ]
    with lowest_layers(model, 4), adapted(model, few, 0) as learning, by_row(model):
        batch = collate(pairs, tokenizer.pad_token_id)
        reference = Reference(few, pairs, tokenizer.pad_token_id).of(learning, learning, batch)
        states = forward(learning, learning, batch, few)
        found = step_terms(few, batch, states, reference, token_counts(few, batch))
        wanted = official_step(learning, items, 5, targets=[2, 3], window=32, pad_id=2)
    for name in found._fields:
        assert torch.allclose(getattr(found, name), getattr(wanted, name), rtol=1e-5), name
