"""Whether `reproduce` that is killed again and again ends with the results of a run that was not.

    python benchmarks/killed.py [--kills 5] [--seed 0] [--limit 3]

Two results of the plan ``ablations``, of a few requests of each set, in fp32, so that no reply
depends on which others are in its batch. They are made twice in a temporary folder, with empty
caches of replies: once in one go, and once with SIGKILL at random moments, which are drawn by how
much is in the logs, and a last run to the end. Then results, logs and cached replies are compared,
but for seconds and dates. Minutes; status 1 where they differ.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from xb_lite.files import cache_folder
from xb_lite.reproduce.manifest import MANIFEST

PLAN = "ablations"
CLOCK = ("seconds", "started", "judging", "command")  # what two equal runs do not share


def write_manifest(path, limit):
    book = json.loads(MANIFEST.read_text(encoding="utf-8"))
    plan = {**book["plans"][PLAN], "exact": True, "limit": limit, "digest": None}
    settings = [setting for setting in book["settings"] if setting["plan"] == PLAN]
    path.write_text(json.dumps({"plans": {PLAN: plan}, "settings": settings}))


def own_cache(path):
    """A cache with the machine's models in it, and nothing else."""
    path.mkdir(parents=True)
    for model in cache_folder().iterdir():
        if (model / "manifest.json").exists():
            (path / model.name).symlink_to(model)


def start(root, name):
    environment = {**os.environ, "XB_LITE_CACHE": str(root / name / "cache")}
    command = [sys.executable, "-m", "xb_lite", "reproduce", "--manifest", str(root / "plan.json")]
    command += ["--results", str(root / name / "results")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def without_clock(what):
    if isinstance(what, dict):
        return {k: without_clock(v) for k, v in what.items() if k not in CLOCK}
    if isinstance(what, list):
        timed = [isinstance(v, dict) and v.get("metric") == "seconds" for v in what]
        return [without_clock(v) for v, is_time in zip(what, timed, strict=True) if not is_time]
    return what


def contents(folder):
    """All that was written, by path: results whole, logs and replies line by line."""
    found = {}
    for path in sorted(folder.rglob("*.json*")):
        place = path.relative_to(folder)
        if path.suffix == ".lock" or any(parent.is_symlink() for parent in path.parents):
            continue
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines() if path.suffix == ".jsonl" else [text]
        found[str(place)] = [without_clock(json.loads(line)) for line in lines]
    return found


def lines_in(folder):
    """Of logs and replies; the last may be half a line."""
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("*.jsonl"))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=3)
    args = parser.parse_args()
    dice = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_manifest(root / "plan.json", args.limit)
        for name in ("whole", "killed"):
            own_cache(root / name / "cache")
        began = time.monotonic()
        if status := start(root, "whole").wait():
            return status
        lines = lines_in(root / "whole")
        print(f"in one go: {time.monotonic() - began:.0f} s, {lines} lines of logs", flush=True)

        for reached in sorted(dice.sample(range(lines), args.kills)):
            process = start(root, "killed")
            while process.poll() is None and lines_in(root / "killed") < reached:
                time.sleep(0.02)
            time.sleep(dice.uniform(0, 0.2))
            process.send_signal(signal.SIGKILL)
            status = process.wait()
            print(f"status {status} at {lines_in(root / 'killed')} lines of logs", flush=True)
        if status := start(root, "killed").wait():
            return status

        one, other = contents(root / "whole"), contents(root / "killed")
        differ = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
        entries = sum(map(len, one.values()))
        print(f"{len(one)} files with {entries} entries; {len(differ)} differ", *differ)
        return 1 if differ else 0


if __name__ == "__main__":
    sys.exit(main())
