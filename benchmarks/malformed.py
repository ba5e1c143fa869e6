"""Malformed input at every door: how much of it is refused in a sentence.

    python benchmarks/malformed.py [--seed 0] [--each 170]

Doors are adapters, model folders, results, logs, data files and requests to the proxy. Each input
is one that was whole with one thing changed, drawn from the seed. Counted are ``clear`` (one
sentence), ``traceback`` (another error), ``hang`` (longer than ``LIMIT``), ``harmless`` (accepted,
and what was read is what the whole input gives, or what the input now says), and ``accepted``
(read as something else). The last line of a door's faults says what they were.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny import tiny_model, tiny_recipe, tiny_sets

from xb_lite.data.public import load_dialogues
from xb_lite.evaluation.outcomes import read_log
from xb_lite.models import whole
from xb_lite.models.adapters import merged, scale_adapter
from xb_lite.models.loading import load_model
from xb_lite.models.precision import Precision
from xb_lite.results.contract import read_result
from xb_lite.results.frames import frame
from xb_lite.serve.requests import ServingError, read_request
from xb_lite.training.run import train

EXACT = Precision("cpu", torch.float32, None, "malformed input")
LIMIT = 90.0  # seconds for one input
CLEAR = (ValueError, RuntimeError)  # of whose kinds the package's own errors are
ODD = [
    *(None, True, False, 0, -1, 1, 3, 1.5, 10**9, 10**400, 1e308, float("nan"), float("inf")),
    *("", "x", "../x", "\ud800", "[/x]", "\0", [], {}, [None], {"a": 1}, [[1]], "9" * 5000),
]


def odd(draw: random.Random) -> object:
    return copy.deepcopy(draw.choice(ODD))


def places(value: object, at: tuple = ()) -> Iterator[tuple]:
    """Where something stands in nested JSON."""
    if at:
        yield at
    if isinstance(value, dict):
        inner = list(value.items())
    else:
        inner = list(enumerate(value))[:3] if isinstance(value, list) else []
    for key, one in inner:
        yield from places(one, (*at, key))


def change_json(value: object, draw: random.Random) -> object:
    """With one place gone, odd, or renamed."""
    changed = copy.deepcopy(value)
    *before, last = draw.choice(list(places(changed)))
    inner = changed
    for key in before:
        inner = inner[key]
    how = draw.choice(("odd", "odd", "gone", "more"))
    if how == "odd":
        inner[last] = odd(draw)
    elif how == "gone":
        del inner[last]
    elif isinstance(inner, dict):
        inner[f"{last}x"] = odd(draw)
    else:
        inner.append(odd(draw))
    return changed


def change_bytes(data: bytes, draw: random.Random) -> bytes:
    """Cut short, with a byte flipped, doubled, or in another encoding."""
    at = draw.randrange(len(data))
    return draw.choice(
        (
            lambda: data[:at],
            lambda: data[:at] + bytes([data[at] ^ 0x5A]) + data[at + 1 :],
            lambda: data + data,
            lambda: b"",
            lambda: data.decode("latin-1").encode("utf-16"),
        )
    )()


def rewrite(path: Path, draw: random.Random) -> None:
    if draw.random() < 0.8:
        path.write_text(json.dumps(change_json(json.loads(path.read_text()), draw)))
    else:
        path.write_bytes(change_bytes(path.read_bytes(), draw))


def change_tensors(path: Path, draw: random.Random) -> None:
    weights = load_file(path)
    name = draw.choice(sorted(weights))
    value = weights[name]
    how = draw.choice(
        ("gone", "renamed", "nan", "inf", "flat", "more axes", "cut", "ints", "more", "bytes")
    )
    if how == "bytes":  # of the header or a weight: a weight that stays finite is another adapter
        head = 8 + int.from_bytes(path.read_bytes()[:8], "little")
        data = bytearray(path.read_bytes())
        data[draw.randrange(head)] ^= 0x5A
        path.write_bytes(data)
        return
    del weights[name]
    if how == "renamed":
        weights[draw.choice((f"x.{name}", name.removeprefix("base_model."), f"{name}x"))] = value
    elif how == "more":
        weights |= {name: value, f"{name.rpartition('.')[0]}.extra": torch.ones(2)}
    elif how != "gone":
        weights[name] = {
            "nan": value * torch.nan,
            "inf": torch.full_like(value, torch.inf),
            "flat": value.flatten(),
            "more axes": value[None],
            "cut": value[: len(value) // 2],
            "ints": value.to(torch.int64),
        }[how].contiguous()
    save_file(weights, path, metadata={"format": "pt"})


class Doors:
    """Whole inputs in a folder, and for each door a way to change one and to read it.

    Each method changes ``folder`` (a fresh copy) and gives a function that reads it; that returns
    whether what was read is what the input says.
    """

    def __init__(self, root: Path) -> None:
        model, tokenizer = load_model(precision=EXACT)
        del model
        self.base = tiny_model(tokenizer, num_hidden_layers=4)
        self.state = copy.deepcopy(self.base.state_dict())
        recipe = tiny_recipe(lora_std=0.1, steps=1)
        train(recipe, self.base, tokenizer, tiny_sets(), root / "adapter", EXACT)
        tiny_model(tokenizer, hidden_size=8).save_pretrained(root / "model")
        tokenizer.save_pretrained(root / "model")
        self.root = root
        self.merged = {k: v.clone() for k, v in self._merge(root / "adapter").items()}
        self.model = load_model(root / "model", EXACT)[0].state_dict()
        results = Path(__file__).parents[1] / "results" / "cpu" / "smollm2-135m"
        (root / "result").mkdir()
        shutil.copy(results / "none.json", root / "result" / "none.json")
        whole_result = json.loads((results / "none.json").read_text())
        whole_result["rows"] = whole_result["rows"][:6]
        (root / "result" / "none.json").write_text(json.dumps(whole_result))
        (root / "log").mkdir()
        lines = (results / "none.jsonl").read_text().splitlines()[:4]
        (root / "log" / "none.jsonl").write_text("\n".join(lines) + "\n")
        (root / "data").mkdir()
        rows = [{"prompt": f"Bake {i}?"} for i in range(5)]
        (root / "data" / "rows.json").write_text(json.dumps(rows))
        self.request = {
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "temperature": 0.5,
            "max_tokens": 9,
            "stream": False,
        }

    def _merge(self, folder: Path) -> dict[str, torch.Tensor]:
        self.base.load_state_dict(self.state)
        return merged(self.base, folder).state_dict()

    def adapter(self, folder: Path, draw: random.Random) -> Callable[[], bool]:
        scaling = draw.random() < 0.3
        which = draw.choice(("adapter_config.json", "run.json", "tensors", "tensors"))
        if which == "tensors":
            change_tensors(folder / "adapter_model.safetensors", draw)
        else:
            rewrite(folder / which, draw)

        def read() -> bool:
            if scaling:
                folder_ = scale_adapter(folder, 1.0, folder.parent / "scaled")
                same = _equal(self._merge(folder_), self.merged)
            else:
                same = _equal(self._merge(folder), self.merged)
            return same or _says_so(folder)

        return read

    def model_folder(self, folder: Path, draw: random.Random) -> Callable[[], bool]:
        which = draw.choice(("config.json", "generation_config.json", "tensors", "tensors"))
        if draw.random() < 0.03:
            loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
            (folder / "chat_template.jinja").write_text(loop)
        elif which == "tensors":
            change_tensors(folder / "model.safetensors", draw)
        else:
            rewrite(folder / which, draw)

        # Another number in the config is another model, which the file then says.
        return lambda: _equal(load_model(folder, EXACT)[0].state_dict(), self.model)

    def result(self, folder: Path, draw: random.Random) -> Callable[[], bool]:
        path = folder / "none.json"
        rewrite(path, draw)

        def read() -> bool:
            frame(folder)
            return read_result(path) == json.loads(path.read_text())

        return read

    def log(self, folder: Path, draw: random.Random) -> Callable[[], bool]:
        path = folder / "none.jsonl"
        lines = path.read_text().splitlines()
        at = draw.randrange(len(lines))
        if draw.random() < 0.8:
            lines[at] = json.dumps(change_json(json.loads(lines[at]), draw))
            path.write_text("\n".join(lines) + "\n")
        else:
            path.write_bytes(change_bytes(path.read_bytes(), draw))
        return lambda: all(outcome.id in path.read_text() for outcome in read_log(path))

    def data(self, folder: Path, draw: random.Random) -> Callable[[], bool]:
        path = folder / "rows.json"
        rewrite(path, draw)
        return lambda: all(turn.strip() for item in load_dialogues(path) for turn in item.turns)

    def proxy(self, folder: Path, draw: random.Random) -> Callable[[], bool]:
        if draw.random() < 0.8:
            body = json.dumps(change_json(self.request, draw)).encode()
        else:
            body = change_bytes(json.dumps(self.request).encode(), draw)

        def read() -> bool:
            asked = read_request(body, {"content-type": "application/json"})
            return all(isinstance(message["content"], str) for message in asked.dialogue)

        return read


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        value.shape == other[name].shape and torch.equal(value, other[name])
        for name, value in one.items()
    )


def _says_so(folder: Path) -> bool:
    """Whether another change of the weights is what the config asks for, by a field that scales."""
    config = json.loads((folder / "adapter_config.json").read_text())
    return bool(config["use_rslora"] or config["alpha_pattern"] or config["rank_pattern"])


def tried(read: Callable[[], bool]) -> tuple[str, str]:
    """What came of one input, and the words of a fault."""
    found: list[tuple[str, str]] = []

    def run() -> None:
        try:
            found.append(("harmless", "") if read() else ("accepted", ""))
        except CLEAR as error:
            said = str(error)
            bare = type(error) in (RuntimeError, UnicodeEncodeError) or "\n" in said.strip()
            found.append(("traceback" if bare else "clear", f"{type(error).__name__}: {said}"))
        except ServingError as error:
            found.append(("clear", str(error)))
        except BaseException as error:
            found.append(("traceback", f"{type(error).__name__}: {error}"))

    # A thread, which is left behind where it hangs: faults are counted, not mended, here.
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    return found[0] if found else ("hang", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=170, help="inputs at each door")
    parser.add_argument("--doors", nargs="*", help="default: all")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    whole.TIMEOUT = 20
    with tempfile.TemporaryDirectory() as name:
        doors = Doors(Path(name))
        ways = {
            "adapter": doors.adapter,
            "model": doors.model_folder,
            "result": doors.result,
            "log": doors.log,
            "data": doors.data,
            "proxy": doors.proxy,
        }
        total: Counter[str] = Counter()
        for door, change in ways.items():
            if args.doors and door not in args.doors:
                continue
            counts, faults, began = Counter(), [], time.monotonic()
            for number in range(args.each):
                draw = random.Random(f"{args.seed} {door} {number}")
                with tempfile.TemporaryDirectory() as scratch:
                    folder = Path(scratch) / "one"
                    source = doors.root / door
                    if source.exists():
                        shutil.copytree(source, folder)
                    try:
                        read = change(folder, draw)
                    except (UnicodeEncodeError, ValueError):  # no file has that
                        counts["cannot be written"] += 1
                        continue
                    what, words = tried(read)
                    counts[what] += 1
                    if what not in ("clear", "harmless"):
                        faults.append(f"  {what} {number}: {words:.200}")
            total += counts
            seconds = time.monotonic() - began
            print(f"{door:<8}", dict(counts), f"{seconds:.0f} s", *faults, sep="\n  ", flush=True)
    names = ("clear", "harmless", "accepted", "traceback", "hang")
    print(f"in all  {sum(total.values())} inputs:", *(f"{n} {total[n]}" for n in names))


if __name__ == "__main__":
    main()
