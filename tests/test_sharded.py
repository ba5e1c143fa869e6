"""Two processes that share a model's weights, on a CPU, by the configs that a reader launches with.

Run as a program, this file is one of them.
"""

import json
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from launching import launch
from safetensors.torch import load_file
from tiny import tiny_model, tiny_recipe, tiny_sets
from transformers import AutoTokenizer

from xb_lite.models.adapters import WEIGHTS, read_run
from xb_lite.models.cached import DEFAULT, SPECS, cached_model
from xb_lite.models.precision import Precision
from xb_lite.scaling.launch import folder
from xb_lite.training.lora import SAVE_EVERY, last_checkpoint
from xb_lite.training.run import train

PRECISIONS = {
    # In fp32, so that the adapter can be compared with that of one process.
    "fp32": Precision("cpu", torch.float32, None, "tests"),
    # As on a card that is full of the model: its weights in bf16, the adapter's in fp32.
    "bf16": Precision("cpu", torch.bfloat16, None, "tests"),
}
RECIPE = {"lora_std": 0.1, "reference": "adapter-off"}  # the adapter has an effect from the start
NEEDED = pytest.mark.skipif(not find_spec("deepspeed"), reason="needs `pip install deepspeed`")
WAYS = ["fsdp", *(pytest.param(way, marks=NEEDED) for way in ("zero2", "zero3"))]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def learn(place, precision="fp32", killed_at=None, **changes):
    def kill(terms):
        if terms["step"] == killed_at:
            os._exit(1)

    tokenizer = AutoTokenizer.from_pretrained(cached_model(SPECS[DEFAULT]))  # no weights
    how = PRECISIONS[precision]
    model = tiny_model(tokenizer, num_hidden_layers=5).to(how.weights)
    recipe = tiny_recipe(**RECIPE, **changes)
    return train(recipe, model, tokenizer, tiny_sets(), place, how, on_step=kill)


def environment(way, precision):
    """What accelerate tells its processes by one of our configs, but for the cards."""
    from accelerate.commands import launch as command
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    config = str(folder() / f"{way}.yaml")
    words = ["--config_file", config, "--num_processes", "2", "-m", "xb_lite"]
    ready = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("multi_gpu_launcher", "deepspeed_launcher"):
            patch.setattr(command, name, lambda args: ready.update(args=args))
        command.launch_command(command.launch_command_parser().parse_args(words))
        args = ready["args"]
        if way == "fsdp":
            found = prepare_multi_gpu_env(args)
        else:
            _, found = prepare_deepspeed_cmd_env(args)
    own = {k: v for k, v in found.items() if k.startswith(("ACCELERATE_", "FSDP_"))}
    # A config asks for bf16, which a GPU that is full of a model computes in anyway.
    return {**own, "ACCELERATE_MIXED_PRECISION": "no" if precision == "fp32" else "bf16"}


def start(way, place, precision="fp32", **changes):
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    shared = {"PYTHONPATH": paths, "DS_ACCELERATOR": "cpu", **environment(way, precision)}
    return launch([__file__, place, precision, json.dumps(changes)], timeout=280, **shared)


def together(place, precision, changes):
    """One of the processes. accelerate shards on GPUs alone: FSDP is told that this CPU is one."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    fsdp, shared = os.environ.get("ACCELERATE_USE_FSDP"), []
    if fsdp:
        torch.distributed.init_process_group("gloo")
        PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_GPU)
        PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
        local = DTensor.to_local
        DTensor.to_local = lambda self, **how: shared.append(1) or local(self, **how)
    learn(Path(place), precision, **json.loads(changes))
    assert shared or not fsdp  # else each had the whole model


def same(place, wanted, tolerance):
    found = load_file(place / WEIGHTS)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name].float(), value.float(), atol=tolerance), name


@pytest.mark.parametrize("way", WAYS)
def test_parts_of_a_model_learn_what_the_whole_learns(tmp_path, way):
    changes = {"steps": 12, "pairs_at_once": 1}  # two passes a step
    alone = learn(tmp_path / "alone", **{**changes, "pairs_at_once": 4})
    done = start(way, tmp_path / "both", **changes)
    assert done.returncode == 0, done.stderr[-3000:]
    for row, wanted in zip(read_run(tmp_path / "both")["curve"], alone.curve, strict=True):
        assert row == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    same(tmp_path / "both", load_file(tmp_path / "alone" / WEIGHTS), 1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_parts_in_bf16_learn_and_are_saved(tmp_path, way):
    changes = {"steps": 3, "pairs_at_once": 2, "gradient_checkpointing": True}  # as recipes for 8B
    done = start(way, tmp_path / "both", "bf16", **changes)
    assert done.returncode == 0, done.stderr[-3000:]
    found = read_run(tmp_path / "both")
    assert len(found["curve"]) == 3
    assert all(value.isfinite().all() for value in load_file(tmp_path / "both" / WEIGHTS).values())


@pytest.mark.parametrize("way", WAYS)
def test_parts_go_on_where_they_were(tmp_path, way):
    place, changes = tmp_path / "both", {"steps": SAVE_EVERY + 3, "pairs_at_once": 2}
    alone = learn(tmp_path / "alone", **{**changes, "pairs_at_once": 4})
    assert start(way, place, killed_at=SAVE_EVERY + 2, **changes).returncode != 0
    assert last_checkpoint(place).endswith(f"-{SAVE_EVERY}")
    done = start(way, place, **changes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [row["step"] for row in read_run(place)["curve"]] == [r["step"] for r in alone.curve]
    same(place, load_file(tmp_path / "alone" / WEIGHTS), 1e-4)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    together(*sys.argv[1:])
