"""Several processes: configs that accelerate reads, what is refused, and an evaluation shared."""

import json
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import yaml
from launching import launch
from tiny import own_cache, tiny_model, tiny_recipe

from xb_lite.data.items import plan
from xb_lite.replies import shares
from xb_lite.replies.cache import ask
from xb_lite.replies.types import Decoding, Reply
from xb_lite.scaling.launch import folder
from xb_lite.training.checks import check_place, sharing
from xb_lite.training.lora import TrainingError

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(folder().glob("*.yaml"))


def test_the_configs_are_those_that_the_readme_names():
    assert [path.stem for path in CONFIGS] == ["ddp", "fsdp", "zero2", "zero3"]
    readme = (ROOT / "README.md").read_text()
    for path in CONFIGS:
        assert path.name in readme


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_field_of_a_config(path):
    from accelerate.commands.config.config_args import ClusterConfig

    found = ClusterConfig.from_yaml_file(str(path))
    assert found.num_processes == 4
    kind = {"ddp": "MULTI_GPU", "fsdp": "FSDP"}.get(path.stem, "DEEPSPEED")
    assert str(found.distributed_type.value) == kind
    if kind == "DEEPSPEED":
        assert found.deepspeed_config["zero_stage"] == int(path.stem[-1])
    if kind == "FSDP":
        from accelerate.utils import FullyShardedDataParallelPlugin

        plugin = FullyShardedDataParallelPlugin.__dataclass_fields__
        own = {name.removeprefix("fsdp_") for name in found.fsdp_config}
        assert own <= plugin.keys() | {"version"}


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_on_several_nodes_each_starts_its_own_processes_of_deepspeed(name, monkeypatch):
    from accelerate.commands import launch
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    ready = []
    monkeypatch.setattr(launch, "deepspeed_launcher", ready.append)
    words = ["--config_file", str(folder() / f"{name}.yaml"), "--num_machines", "2"]
    words += ["--machine_rank", "1", "--num_processes", "8", "--main_process_ip", "head"]
    words += ["--main_process_port", "29500", "-m", "xb_lite", "train"]
    launch.launch_command(launch.launch_command_parser().parse_args(words))
    (args,) = ready
    command, _ = prepare_deepspeed_cmd_env(args)
    assert command is None  # of the launcher of DeepSpeed, which would want a hostfile
    assert (args.nnodes, args.node_rank, args.nproc_per_node) == ("2", 1, "4")
    assert args.rdzv_endpoint == "head:29500"


@pytest.mark.parametrize(
    ("told", "way"),
    [
        ({}, None),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "FSDP"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO-3"),
        ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, None),
    ],
)
def test_what_cannot_be_with_shared_weights_is_refused_before_it_starts(
    tmp_path, monkeypatch, told, way
):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert sharing() == way
    place = tmp_path / "it"
    recipes = {
        'reference is "cache"': tiny_recipe(reference="cache"),
        "as_described": tiny_recipe(reference="adapter-off", separate="as_described"),
        "gradient-ascent cannot": tiny_baseline(),
    }
    for words, recipe in recipes.items():
        if way is None:
            check_place(recipe, tmp_path / "fine", resume=True)
        else:
            with pytest.raises(TrainingError, match=f"{re.escape(words)}.*{way}"):
                check_place(recipe, place, resume=True)
    assert not place.exists()
    check_place(tiny_recipe(reference="adapter-off"), tmp_path / "fine", resume=True)


def test_fsdp_of_version_1_is_refused_before_it_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for version in (None, "1"):
        if version:
            monkeypatch.setenv("FSDP_VERSION", version)
        with pytest.raises(TrainingError, match="FSDP of version 1 .* Set fsdp_version: 2"):
            check_place(tiny_recipe(reference="adapter-off"), tmp_path / "it", resume=True)
    assert not (tmp_path / "it").exists()


def tiny_baseline():
    from xb_lite.recipes import load_recipe

    return load_recipe("gradient-ascent-smollm2-135m")


def test_the_slurm_script_is_shell_and_uses_the_configs():
    script = folder() / "train.slurm"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    assert all(f"{path.stem}" in text for path in CONFIGS)
    assert "accelerate launch" in text and "-m xb_lite train" in text


def test_configs_are_yaml_that_says_what_each_is_for():
    for path in CONFIGS:
        assert path.read_text().startswith("# ")
        assert yaml.safe_load(path.read_text())["num_machines"] == 1


def launched(arguments, cache, processes):
    words = ["-m", "xb_lite", *arguments]
    done = launch(words, processes, XB_LITE_CACHE=str(cache), PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def without_times(path):
    """The lines of a log but for how long each took."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "judging")} for row in rows]


class Counting:
    """Says one thing, and keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def reply(self, dialogues, decoding, prefill=""):
        self.asked.extend(dialogues)
        return [Reply("So.", 3, 2, True) for _ in dialogues]

    def play(self, scripts, decoding):
        return [self.reply(script, decoding) for script in scripts]


def test_replies_of_all_processes_are_where_the_evaluation_looks(tmp_path, monkeypatch):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(shares, "processes", lambda: 2)
    items, subject = plan(["harmful", "benign", "multi-turn"], limit=4), {"model": "a"}
    backend = Counting()
    asked, how = backend.asked, (backend, items, Decoding(3))
    for rank in (1, 0):
        state = SimpleNamespace(process_index=rank, wait_for_everyone=lambda: None)
        monkeypatch.setattr(shares, "PartialState", lambda state=state: state)
        assert shares.ask_shared(*how, subject=subject) == (rank == 0)
        assert asked
    by_both = list(asked)
    replies = ask(*how, subject=subject)
    assert len(replies) == len(items) and asked == by_both
    (store,) = (tmp_path / "replies").glob("*.jsonl")
    assert len(store.read_text().splitlines()) == 1 + len(items)


@pytest.mark.parametrize("then", [1, 3])
def test_what_was_asked_before_a_stop_is_kept_whatever_the_number_of_processes(
    tmp_path, monkeypatch, then
):
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr(shares, "processes", lambda: 2)

    def stopped():
        raise KeyboardInterrupt

    def process(rank, wait):
        state = SimpleNamespace(process_index=rank, wait_for_everyone=wait)
        monkeypatch.setattr(shares, "PartialState", lambda: state)
        return shares.ask_shared(*how, subject={"model": "a"})

    items = plan(["harmful", "benign"], [], limit=None)
    backend = Counting()
    asked, how = backend.asked, (backend, items, Decoding(3))
    waits = iter([lambda: None, stopped])
    with pytest.raises(KeyboardInterrupt):  # between its own share and the others'
        process(1, lambda: next(waits)())
    by_one = len(asked)
    assert 0 < by_one < len(items)
    monkeypatch.setattr(shares, "processes", lambda: then)
    for rank in (0, *reversed(range(1, then))):
        process(rank, lambda: None)
    ask(*how, subject={"model": "a"})
    assert len(asked) == len(items)
    if then == 1:
        assert len(list((tmp_path / "replies").glob("*.jsonl"))) == 1


class Echo(Counting):
    """Says what it is asked."""

    def reply(self, dialogues, decoding, prefill=""):
        said = super().reply(dialogues, decoding, prefill)
        texts = [dialogue[-1]["content"] for dialogue in dialogues]
        return [replace(reply, text=text) for reply, text in zip(said, texts, strict=True)]


@pytest.mark.parametrize(
    ("stopped", "then"), [("old", 1), ("old", 2), ("new", 1), ("new", 2), (None, 2)]
)
def test_of_an_edited_file_all_processes_ask_the_new_prompts_once(
    tmp_path, monkeypatch, stopped, then
):
    """Also where a process was stopped that had asked the old prompts, or the new ones."""
    monkeypatch.setenv("XB_LITE_CACHE", str(tmp_path))
    monkeypatch.setattr("xb_lite.replies.cache.BATCH", 1)
    backend, decoding, subject = Echo(), Decoding(3), {"model": "a"}
    items = plan(["benign"], limit=6)
    # Shares go by length: some items are now in another process's, some in the same.
    old, new = (
        [replace(item, turns=(text + "." * n,)) for item, n in zip(items, lengths, strict=True)]
        for text, lengths in (("old", range(6)), ("new", (3, 2, 1, 0, 4, 5)))
    )

    def stop_one(items):
        wait = Mock(side_effect=[None, KeyboardInterrupt])  # between its share and the others'
        state = SimpleNamespace(process_index=1, wait_for_everyone=wait)
        monkeypatch.setattr(shares, "processes", lambda: 2)
        monkeypatch.setattr(shares, "PartialState", lambda: state)
        with pytest.raises(KeyboardInterrupt):
            shares.ask_shared(backend, items, decoding, subject=subject)

    if stopped == "old":
        stop_one(old)
    else:
        ask(backend, old, decoding, subject=subject)
    backend.asked.clear()
    if stopped == "new":
        stop_one(new)
        assert 0 < len(backend.asked) < len(new)
    monkeypatch.setattr(shares, "processes", lambda: then)
    everyone, rank = threading.Barrier(then, timeout=60), threading.local()

    def process(number):
        rank.number = number
        shares.ask_shared(backend, new, decoding, subject=subject)

    monkeypatch.setattr(
        shares,
        "PartialState",
        lambda: SimpleNamespace(process_index=rank.number, wait_for_everyone=everyone.wait),
    )
    with ThreadPoolExecutor(then) as threads:
        list(threads.map(process, range(then)))
    assert then == 1 or len(backend.asked) == len(new)
    replies = ask(backend, new, decoding, subject=subject)
    assert [reply.text for (reply,) in replies] == [item.turns[0] for item in new]
    assert len(backend.asked) == len(new)


def test_who_is_done_waits_for_hours(monkeypatch):
    joined = []
    monkeypatch.setattr(shares, "PartialState", lambda **how: joined.append(how))
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares.join_processes(cpu=True)
    (how,) = joined
    assert how["cpu"] is True and how["timeout"] >= timedelta(hours=24)


@pytest.mark.slow
def test_an_evaluation_by_two_processes_is_that_of_one(tmp_path, tokenizer):
    model = tmp_path / "Tiny"
    tiny_model(tokenizer, num_hidden_layers=2).save_pretrained(model)
    tokenizer.save_pretrained(model)
    found = {}
    for processes in (1, 2):
        where = tmp_path / f"by{processes}"
        where.mkdir()
        own_cache(where / "cache")
        words = ["evaluate", str(model), "--limit", "2", "--max-new-tokens", "3"]
        words += ["--judge", "words"]  # the service judge would be fetched into a cache of its own
        said = launched([*words, "--results", str(where)], where / "cache", processes)
        assert said.count("result:") == 1
        (log,) = where.rglob("none.jsonl")
        (store,) = (where / "cache" / "replies").glob("*.jsonl")
        result = json.loads(log.with_suffix(".json").read_text())
        rows = [row for row in result["rows"] if row["metric"] != "seconds"]
        found[processes] = without_times(log), without_times(store), rows
    assert found[1] == found[2]
