"""The pages on the experiment: their cells run with nothing there, with a part, and with all."""

import json

import matplotlib
import pytest
from made_experiment import main, write_experiment

from xb_lite.figures import COLORS, INK
from xb_lite.files import own_file
from xb_lite.reproduce import arms, experiment
from xb_lite.results import html_table

PAGES = {"notebooks/05_training.ipynb": "05-42", "notebooks/reports/A_xboundary.ipynb": "A-E"}
SHARES = ("nothing", "part", "whole")


def cells_of(page):
    cells = json.loads(own_file(page).read_text(encoding="utf-8"))["cells"]
    own = [c for c in cells if c["id"].startswith(PAGES[page]) and c["cell_type"] == "code"]
    return {cell["id"]: "".join(cell["source"]) for cell in own}


@pytest.fixture(scope="module", params=SHARES)
def results(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "part":  # two arms, of which one has two seeds and the other one
        write_experiment(folder, ("CB",), (0, 1), tested=(0.2,))
        write_experiment(folder, ("XB as coded",), (0,), tested=(0.2,))
        write_experiment(folder, ("XB refusal",), (0,), rates=(8e-4,), tested=())
    elif request.param == "whole":
        main(folder)
    return request.param, folder


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_is_there(page, results, monkeypatch, capsys):
    share, folder = results
    for module in (arms, experiment):
        monkeypatch.setattr(module, "OWN", folder)
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    shown = []
    names = {
        "plt": plt,
        "np": np,
        "COLORS": COLORS,
        "INK": INK,
        "WORDS": "x-boundary",
        "SERVICE": "service",
        "HTML": str,
        "html_table": html_table,
        "display": shown.append,
        "show": lambda heads, rows: shown.append(html_table(heads, rows)),
    }
    try:
        for source in cells_of(page).values():
            exec(source, names)
        figures = len(plt.get_fignums())
    finally:
        plt.close("all")
    said, html = capsys.readouterr().out, "".join(shown)
    assert figures == (share != "nothing")
    assert ("Not run yet:" in said or "Not complete yet" in html) and html.count("NaN") == 0
    if share == "nothing":
        assert (said + html).count("been tested") >= 2 and "xb-tradeoff" not in html
    if share == "part":
        assert "not run" in html and "XB as coded<br>minus CB" in html and "one seed" in html
    if share == "whole":
        assert "not run" not in html and "not at equal success" in html
        assert ("xb-tradeoff" in html) == ("05" in page)


def test_what_is_seen_of_a_cell_is_short():
    for page in PAGES:
        cells = json.loads(own_file(page).read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if cell["id"] in cells_of(page) and "hide-input" not in cell["metadata"].get(
                "tags", []
            ):
                assert len("".join(cell["source"]).splitlines()) <= 20, cell["id"]


def test_the_sections_on_the_earlier_subject_are_below_the_experiment():
    cells = json.loads(own_file("notebooks/reports/A_xboundary.ipynb").read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    heads = [line for line in text.splitlines() if line.startswith("## ")]
    assert heads == ["## The experiment", "## Earlier runs, on another subject"]
