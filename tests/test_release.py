"""A release: versions and addresses by tag, metadata, cards, and what a wheel brings."""

import json
import re
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "book" / "tools"))

import notebook_files  # noqa: E402
import release  # noqa: E402


@pytest.fixture
def tree(tmp_path):
    """The files of the repository that name a version or a revision."""
    for place in release.places(ROOT):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / place, tmp_path / place)
    return tmp_path


def texts(tree):
    return {place: (tree / place).read_text() for place in release.places(tree)}


def test_a_release_names_its_tag_everywhere_and_main_takes_it_back(tree, capsys):
    before = texts(tree)
    assert release.main(["9.8.7"], root=tree) == 0
    after = texts(tree)
    address = r"git\+https://github\.com/xb-lite/xb-lite"
    for path in notebook_files.notebooks(tree / "notebooks"):
        cell = notebook_files.code_cells(notebook_files.read(path))[0]
        if re.search(address, cell.source):
            assert re.search(address + r'@v9\.8\.7"', cell.source), path.name
        name = path.relative_to(tree).as_posix()
        whole = notebook_files.read(ROOT / name)
        assert notebook_files.code_digest(notebook_files.read(path)) == (
            notebook_files.code_digest(whole)
        )
    assert "/blob/main/notebooks/" not in re.sub(r"\(https://github[^)]*", "", after["README.md"])
    assert yaml.safe_load(after["book/_config.yml"])["repository"]["branch"] == "v9.8.7"
    assert 'REVISION = "v9.8.7"' in after["xb_lite/files.py"]
    assert tomllib.loads(after["pyproject.toml"])["project"]["version"] == "9.8.7"
    assert yaml.safe_load(after["CITATION.cff"])["version"] == "9.8.7"
    assert release.main(["--check", "v9.8.7"], root=tree) == 0
    assert release.main(["--check", "v9.8.8"], root=tree) == 1
    assert "book/_config.yml is not as v9.8.8 needs it" in capsys.readouterr().err
    assert release.main(["--main"], root=tree) == 0
    for place, text in texts(tree).items():
        if place not in ("pyproject.toml", "CITATION.cff"):
            assert text == before[place], place


def test_a_version_of_another_form_changes_nothing(tree, capsys):
    before = texts(tree)
    assert release.main(["v1"], root=tree) == 1
    assert "no version of the form" in capsys.readouterr().err
    assert texts(tree) == before


def test_every_install_line_can_be_pinned():
    for path in notebook_files.notebooks():
        for cell in notebook_files.code_cells(notebook_files.read(path)):
            for address in re.findall(r"git\+https\S+", cell.source):
                assert release.INSTALL.search(f"{address}"), path.name


def test_the_metadata_of_a_release_agree():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    zenodo = json.loads((ROOT / ".zenodo.json").read_text())
    assert about["version"] == citation["version"]
    assert zenodo["title"] == citation["title"]
    assert zenodo["license"] == about["license"] == citation["license"]
    assert [one["name"] for one in zenodo["creators"]] == [
        one["name"] for one in citation["authors"]
    ]
    related = {one["identifier"] for one in zenodo["related_identifiers"]}
    for paper in citation["references"]:
        assert {one["value"] for one in paper["identifiers"]} <= related
    assert citation["repository-code"] in related


def test_the_workflow_runs_on_tags_and_checks_before_it_builds():
    flow = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text())
    assert flow[True]["push"] == {"tags": ["v*"]}  # YAML reads `on` as true
    commands = [step.get("run", "") for step in flow["jobs"]["release"]["steps"]]
    order = [
        next(i for i, command in enumerate(commands) if part in command)
        for part in (
            "release.py --check",
            "python -m build",
            "dist/*.whl",
            "make pdf",
            "gh release",
        )
    ]
    assert order == sorted(order)


@pytest.mark.parametrize("card", sorted(ROOT.glob("artifacts/*/*/README.md")), ids=str)
def test_a_committed_adapter_has_a_whole_card(card):
    text = card.read_text(encoding="utf-8")
    for part in ("base_model:", "## Intended use and limits", "## Recipe", "## Versions", "seed"):
        assert part in text
