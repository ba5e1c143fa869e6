"""The fair rival of the benchmark computes the official step, and is timed against ours."""

import re
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model

from xb_lite.results.contract import read_result

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from official_step import Item, official_step  # noqa: E402
from plain_step import PlainStep  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def test_its_loss_and_gradient_are_the_official_ones(tokenizer):
    model = tiny_model(tokenizer, num_hidden_layers=3)
    model.lm_head = torch.nn.Linear(32, 50, bias=False)  # the official step computes all logits
    # Of rows that are masked whole, as the official padding on the left has, sdpa may make NaN.
    model.set_attn_implementation("eager")
    learning = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    torch.manual_seed(0)
    for name, value in learning.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    draw = torch.Generator().manual_seed(1)

    def ids(length):
        return torch.randint(5, 900, (length,), generator=draw).tolist()

    items = [
        Item(ids(7), ids(11), ids(20)),
        Item(ids(5), ids(6), ids(9), boundary=True),
        Item(ids(40), ids(50), ids(70)),  # longer than the windows
    ]
    how = {"targets": (1, 2), "window": 32, "pad_id": 2}
    found = {}
    for name, loss in (
        ("official", lambda step: official_step(learning, items, step, **how).loss),
        ("plain", PlainStep(learning, items, **how)),
    ):
        for step in (1, 90, 400):
            learning.zero_grad()
            value = loss(step)
            value.backward()
            gradient = torch.cat(
                [p.grad.flatten() for p in learning.parameters() if p.requires_grad]
            )
            found[name, step] = value.detach(), gradient.clone()
    for step in (1, 90, 400):
        (wanted, slope), (value, own) = found["official", step], found["plain", step]
        assert torch.allclose(value, wanted, rtol=1e-5)
        assert (own - slope).norm() <= 1e-4 * slope.norm()


@pytest.mark.slow
def test_the_benchmark_times_it_against_our_step(tokenizer, tmp_path, monkeypatch, capsys):
    import training

    folder = tmp_path / "Tiny"  # with the layers that the official recipe trains, and one more
    tiny_model(tokenizer, num_hidden_layers=22).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = f"--items long --rival plain --pairs 2 --repeats 2 --model {folder}"
    words += f" --own-recompute --results {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["training.py", *words.split()])
    training.main()
    said = capsys.readouterr().out
    theirs, ours = (float(loss) for loss in re.findall(r"loss ([\d.]+)", said))
    assert ours == pytest.approx(theirs, rel=0.02)  # where products are in bf16
    rows = read_result(tmp_path / "long-own-recompute-plain.json")["rows"]
    assert {row["metric"] for row in rows} >= {"time-ratio", "peak-ratio", "own-memory-ratio"}
    assert all(row["n"] == 2 and row["mean"] > 0 for row in rows)
