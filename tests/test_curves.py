"""Training curves of the experiment's adapters, told from made ones."""

import json
import sys

from made_experiment import write_experiment

from xb_lite.reproduce import curves as module
from xb_lite.results.contract import read_result
from xb_lite.results.frames import find


def made_curve(fall):
    """Of 30 steps; the erase term is 0.6 from step ``fall`` on."""
    return [
        {"step": n, "erase": 1.0 if n < fall else 0.6, "retain": 0.1, "loss": 2.0}
        for n in range(1, 31)
    ]


def test_steps_are_counted_by_arm_and_seed_and_saved_beside_circuit_breakers(
    tmp_path, monkeypatch, capsys
):
    write_experiment(tmp_path, arms=("CB", "XB as coded"), seeds=(0, 1))
    asked = []

    def trained(setting, seed, edition):
        asked.append((setting.method, setting.strength, seed, edition))
        return (12 if setting.method == "circuit-breakers" else 8) + seed

    monkeypatch.setattr(module, "trained_adapter", trained)
    monkeypatch.setattr(
        module, "read_run", lambda fall: {"run": {"sets": "digest"}, "curve": made_curve(fall)}
    )
    monkeypatch.setattr(sys, "argv", ["curves.py", "--results", str(tmp_path)])
    module.main()
    assert {row[1] for row in asked} == {None} and {row[3] for row in asked} == {2}
    path = tmp_path / "cpu" / "curves" / "smollm2-135m-aligned-360.json"
    runs = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert [(run["arm"], run["seed"]) for run in runs] == [
        (arm, seed) for arm in ("CB", "XB as coded") for seed in (0, 1)
    ]
    assert runs[0]["curve"][11] == {"step": 12, "erase": 0.6, "retain": 0.1}
    result = read_result(path)
    assert find(result, "steps to erase 0.9", set="CB").value == 12.5
    saved = find(result, "steps saved to erase 0.7", set="CB less XB as coded")
    assert (saved.value, saved.n) == (4, 2)
    assert find(result, "reached erase 0.5", set="CB").k == 0
