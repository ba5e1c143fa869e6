"""The first cell of every notebook."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from xb_lite import figures, session
from xb_lite.dialogues import as_dialogue, encode
from xb_lite.models.loading import ALIGNED


def test_profile_comes_from_the_environment(monkeypatch, capsys):
    monkeypatch.setenv("XB_PROFILE", "smoke")
    here = session.start()
    assert here.pick(smoke=1, quick=2) == 1
    assert "profile smoke, tier cpu" in capsys.readouterr().out


def test_quick_is_the_default_and_stands_in_for_full(monkeypatch):
    monkeypatch.delenv("XB_PROFILE", raising=False)
    assert session.start().pick(smoke=1, quick=2) == 2
    monkeypatch.setenv("XB_PROFILE", "full")
    assert session.start().pick(smoke=1, quick=2) == 2
    assert session.start().pick(smoke=1, quick=2, full=3) == 3


def test_unknown_profile_is_named(monkeypatch):
    monkeypatch.setenv("XB_PROFILE", "fast")
    with pytest.raises(ValueError, match="'fast'; it must be one of smoke, quick, full"):
        session.start()


def test_the_readers_model_is_chosen_in_one_place(monkeypatch, capsys):
    monkeypatch.delenv("XB_MODEL", raising=False)
    own = session.start()
    assert (own.model, own.is_default, own.aligned) == ("smollm2-135m", True, ALIGNED)
    assert "The text is about" not in capsys.readouterr().out
    monkeypatch.setenv("XB_MODEL", "qwen2.5-coder-0.5b")
    other = session.start()
    assert other.model == other.aligned == "qwen2.5-coder-0.5b" and not other.is_default
    said = capsys.readouterr().out
    assert "tier cpu, qwen2.5-coder-0.5b" in said and "The text is about smollm2-135m: " in said
    assert session.start("org/name").model == "org/name"
    monkeypatch.delenv("XB_MODEL")
    for tier, model in session.MODELS.items():
        monkeypatch.setattr(session, "tier", lambda tier=tier: tier)
        assert session.start().model == model


def test_of_a_model_in_a_folder_the_last_name_is_printed(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_model").mkdir()
    monkeypatch.setenv("XB_MODEL", str(tmp_path / "my_model"))
    assert session.start().model == str(tmp_path / "my_model")
    said = capsys.readouterr().out
    assert "tier cpu, my_model\n" in said and str(tmp_path) not in said


def test_scatter_gives_each_kind_its_color_and_marker():
    figures.use_style()
    _, ax = plt.subplots()
    figures.scatter_kinds(ax, np.zeros((3, 2)), ["benign", "harmful", "harmful"])
    labels = [c.get_label() for c in ax.collections]
    assert labels == ["harmful", "benign"]
    for collection, label in zip(ax.collections, labels, strict=True):
        found = mpl.colors.to_hex(collection.get_facecolor()[0][:3])
        assert found.lower() == figures.COLORS[label].lower()
    plt.close()


def test_tokens_are_shaded_by_mask(tokenizer):
    encoding = encode(tokenizer, as_dialogue("a < b", "yes"))
    html = figures.show_tokens(tokenizer, encoding).data
    assert html.count("<span") == len(encoding) + len(figures.TOKEN_SHADES)
    assert html.count(figures.TOKEN_SHADES["response"]) == encoding.response.sum() + 1
    assert " &lt;" in html and "< b" not in html


def test_text_and_kinds_have_contrast_with_the_ground():
    def luminance(color):
        rgb = np.array(mpl.colors.to_rgb(color))
        return np.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    def contrast(color):
        return (luminance(figures.GROUND) + 0.05) / (luminance(color) + 0.05)

    assert contrast(figures.INK) > 7
    assert all(contrast(figures.COLORS[kind]) > 3 for kind in figures.MARKERS)
