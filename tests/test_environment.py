"""pyproject.toml, constraints.txt and environment.yml agree, and the versions of Colab fit."""

import json
import pkgutil
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "pyproject.toml").read_text()
PROJECT = tomllib.loads(TEXT)["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(r) for r in sum(EXTRAS.values(), PROJECT["dependencies"])]
CORE = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
# What Colab installs before a reader does; an installation that leaves it alone is quick and safe.
COLAB = json.loads((ROOT / "tests" / "colab.json").read_text())


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    rows = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(number) for name, number in rows}


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_range_holds_its_pin(requirement):
    pin = pins()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_range_has_two_ends_and_a_reason(requirement):
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators == {">=", "<"}
    begins = re.compile(rf'\s*"{requirement.name}(\[\w+\])?>')
    line = next(filter(begins.match, TEXT.splitlines()))
    assert re.search(r"#\s*\S+", line), f"{requirement.name} has no comment"


def test_conda_environment_installs_this_package_with_these_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip_name, pip = environment["dependencies"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.split("=")[1] + ".0")
    assert pip_name == "pip"
    assert pip["pip"] == ["-c constraints.txt", "-e .[book,test,baselines]"]


def test_torch_is_the_one_that_ci_uses():
    assert pins()["torch"] == Version("2.13.0")


@pytest.mark.parametrize("name", COLAB["packages"])
def test_the_version_that_colab_has_may_stay(name):
    assert CORE[canonicalize_name(name)].specifier.contains(COLAB["packages"][name])


def test_colab_has_a_python_that_the_package_allows():
    assert SpecifierSet(PROJECT["requires-python"]).contains(COLAB["python"] + ".0")


@pytest.mark.parametrize("command", ["/somewhere/bin/xb-lite", "/somewhere/xb_lite/__main__.py"])
def test_the_installed_command_is_the_module(command, monkeypatch, capsys):
    main = pkgutil.resolve_name(PROJECT["scripts"]["xb-lite"])
    assert callable(main)
    monkeypatch.setattr(sys, "argv", [command])
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    said = "xb-lite" if command.endswith("xb-lite") else "python -m xb_lite"
    assert capsys.readouterr().out.startswith(f"usage: {said} [-h]")
