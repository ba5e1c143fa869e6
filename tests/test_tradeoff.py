"""The trade-off of strength: what is packed into it, and what a reader can do with it."""

import json
import re
import tomllib

import pytest
from browser import ROOT, Elements, check_book, data_of, needs_browser, slide, with_scripts

from xb_lite.evaluation.tradeoff import Place, Said, tradeoff
from xb_lite.results.stats import rate

STRENGTHS = (0, 0.5, 0.75, 1, 1.25, 1.5)


def made_up(defenses=("CB", "XB as coded"), seeds=(0, 1), strengths=STRENGTHS, replies=True):
    """Every defense at every strength; the first seed has replies, except at strength 1.5."""
    return [
        Place(
            defense,
            seed,
            strength,
            rate(30 - round(16 * strength) - i, 40),
            rate(6 + round(8 * strength) + i + seed, 40),
            tuple(
                Said(f"Prompt {k} about locks?", f"{defense} at {strength}: reply {k}.", "complied")
                for k in range(3 if replies and seed == 0 and strength < 1.5 else 0)
            ),
        )
        for i, defense in enumerate(defenses)
        for seed in seeds
        for strength in strengths
    ]


# What is packed


def test_every_control_is_native_and_nothing_is_fetched():
    text = tradeoff(made_up())
    elements = Elements(with_scripts(text))
    found = [(tag, of.get("name"), of.get("type")) for tag, of in elements.found if "name" in of]
    assert found == [
        ("select", "defense", None),
        ("select", "seed", None),
        ("input", "strength", "range"),
    ]
    assert elements.count("label") == 3 and "{{" not in text
    for tag, attributes in elements.found:
        assert not {"id", "src", "href"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
    text = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"url\(|@import|https?:|\beval\b|innerHTML", text)


def test_the_table_has_a_row_for_every_place_with_n_and_interval():
    places = made_up()
    text = tradeoff(places)
    elements = Elements(text)
    assert elements.count("tr") == len(places) + 1
    found = places[3].success
    shown = f"{100 * found.value:.0f} [{100 * found.low:.0f}, {100 * found.high:.0f}]"
    assert f"{shown}, {found.k} of {found.n}" in text
    assert "40 harmful requests" in text


def test_places_are_in_order_whatever_order_they_come_in():
    places = made_up()
    assert tradeoff(places) == tradeoff([*places[:6][::-1], *places[6:][::-1]][:6] + places[6:])
    shuffled = tradeoff(places[::-1])
    assert [p["defense"] for p in data_of(shuffled)["places"]][0] == "XB as coded"
    assert [p["strength"] for p in data_of(shuffled)["places"]][:6] == list(STRENGTHS)


def test_texts_are_never_markup():
    bad = "</script><script>alert(1)</script><b>"
    place = Place(bad, 0, 1, rate(1, 4), rate(1, 5), (Said(bad, bad, bad),))
    text = tradeoff([place])
    assert text.count("<script") == 3 and "<b>alert" not in text and bad not in text
    assert data_of(text)["places"][0]["replies"][0]["prompt"] == bad


@pytest.mark.parametrize(
    ("places", "said"),
    [([], "no place on the plane yet"), (made_up()[:2] * 2, "CB from seed 0 at strength 0 is")],
)
def test_what_cannot_be_shown_is_named(places, said):
    with pytest.raises(ValueError, match=said):
        tradeoff(places)


def test_its_files_are_in_the_package():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    of_room = listed["package-data"]["xb_lite.evaluation"]
    assert {"tradeoff.html", "tradeoff.css", "tradeoff.js"} <= set(of_room)


def test_the_size_of_the_experiment_is_small():
    places = made_up([f"arm {i}" for i in range(5)], range(5))
    assert len(json.dumps(tradeoff(places))) < 200_000


# What a reader can do with it


def expected(place):
    return [
        f"{round(100 * found.value)} %|{found.k} of {found.n}; 95 % interval: "
        f"{100 * found.low:.0f} to {100 * found.high:.0f} %"
        for found in (place.success, place.over_refusal)
    ]


def shown(tab):
    return [
        f"{line.locator('b').text_content()}|{line.locator('small').text_content()}"
        for line in (tab.locator(".success"), tab.locator(".refusal"))
    ]


@needs_browser
def test_defense_seed_and_strength_choose_the_rates_and_the_place(show):
    places = made_up()
    tab = show(tradeoff(places))
    assert shown(tab) == expected(places[3])  # the first, at strength 1
    tab.get_by_label("Defense").select_option("XB as coded")
    tab.get_by_label("Training seed").select_option("1")
    tab.get_by_role("slider").press("ArrowRight")
    wanted = next(p for p in places if (p.defense, p.seed, p.strength) == ("XB as coded", 1, 1.25))
    assert shown(tab) == expected(wanted)
    dot = tab.locator("circle.now")
    assert dot.count() == 1 and tab.locator(".own circle").count() == 6
    x, y = (float(dot.get_attribute(name).rstrip("%")) for name in ("cx", "cy"))
    assert x == pytest.approx(12 + 85 * wanted.over_refusal.value)
    assert y == pytest.approx(86 - 78 * wanted.success.value)
    name = f"attack success {round(100 * wanted.success.value)} %"
    assert name in tab.locator(".plane").get_attribute("aria-label")
    slide(tab, "strength", 0)
    assert tab.locator(".strength b").text_content() == "0 (undefended)"


@needs_browser
def test_adapters_may_have_other_seeds_and_strengths(show):
    places = made_up(("CB",), (0, 3)) + made_up(("XB as coded",), (2,), (0, 0.5))
    tab = show(tradeoff(places))
    tab.get_by_label("Training seed").select_option("3")
    slide(tab, "strength", 5)
    tab.get_by_label("Defense").select_option("XB as coded")
    seeds = tab.locator("[name=seed] option").all_text_contents()
    assert seeds == ["2"] and tab.locator(".strength b").text_content() == "0.5"
    tab.get_by_label("Defense").select_option("CB")  # the strength that was wanted comes back
    assert tab.locator(".strength b").text_content() == "1.5"
    assert tab.get_by_label("Training seed").input_value() == "0"


@needs_browser
def test_replies_are_shown_where_they_are_on_record(show):
    tab = show(tradeoff(made_up()))
    cards = tab.locator(".replies li")
    assert cards.count() == 3 and tab.locator(".none").is_hidden()
    assert "CB at 1: reply 0." in cards.first.text_content()
    assert "Judged: complied" in cards.first.text_content()
    slide(tab, "strength", 5)
    assert cards.count() == 0 and tab.locator(".none").is_visible()


@needs_browser
def test_it_is_used_by_keyboard_and_said_once_it_rests(show):
    tab = show(tradeoff(made_up()))
    names = []
    for _ in range(4):
        tab.keyboard.press("Tab")
        names.append(
            tab.evaluate("() => document.activeElement.name || document.activeElement.tagName")
        )
    assert names == ["defense", "seed", "strength", "SUMMARY"]
    status = tab.locator("[role=status]")
    assert status.text_content() == ""
    tab.get_by_role("slider").press("ArrowLeft")
    assert tab.get_by_role("slider").get_attribute("aria-valuetext") == "0.75"
    tab.wait_for_timeout(600)
    said = status.text_content()
    assert said.startswith("CB, seed 0, strength 0.75: attack success ")
    assert said.endswith("Replies: complied, complied, complied.")


@needs_browser
def test_without_scripts_it_is_a_table(show):
    tab = show(tradeoff(made_up()), java_script_enabled=False)
    assert tab.locator("tbody tr").count() == 24 and tab.locator("tbody tr").first.is_visible()
    for part in ("form", ".plane", ".replies", ".none"):
        assert tab.locator(part).count() == 0


@needs_browser
def test_with_scripts_the_table_is_folded_and_two_do_not_meet(show):
    text = tradeoff(made_up())
    tab = show(text, text)
    assert tab.locator("tbody tr").first.is_hidden()
    one, two = (tab.locator(".xb-tradeoff").nth(i) for i in (0, 1))
    one.get_by_label("Defense").select_option("XB as coded")
    assert two.get_by_label("Defense").input_value() == "CB"


@needs_browser
@pytest.mark.parametrize("theme", check_book.THEMES)
@pytest.mark.parametrize("width", check_book.WIDTHS)
def test_axe_finds_nothing(show, theme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab = show(tradeoff(made_up()), width=width, color_scheme=theme)
    tab.locator("summary").click()
    found = axe.run(tab, options={"resultTypes": ["violations"], "preload": False}).response
    assert [(rule["id"], rule["nodes"][0]["target"]) for rule in found["violations"]] == []
    assert tab.evaluate(check_book.OVERFLOW) is None
