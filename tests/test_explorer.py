"""The boundary explorer: what is packed into it, and what a reader can do with it in a browser."""

import re
import tomllib

import numpy as np
import pytest
from browser import ROOT, Elements, check_book, data_of, needs_browser, slide, with_scripts
from hypothesis import example, given
from hypothesis import strategies as st
from notebook_files import machine_path

from xb_lite.boundary import interactive as module
from xb_lite.boundary.interactive import explorer
from xb_lite.results.stats import rate

KINDS = ("harmful", "boundary-safe", "benign")


def made_up(per_kind=20, layers=4, seed=0):
    """Three clusters under three defenses, the first of which moves nothing."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in KINDS for _ in range(per_kind)]
    centres = np.repeat([[3.0, 1.0], [1.0, -1.0], [-3.0, 0.0]], per_kind, axis=0)
    base = centres + rng.normal(size=(len(kinds), 2))
    moves = rng.normal(size=(3, layers, 1, 2)) * np.array([0, 1, 2]).reshape(3, 1, 1, 1)
    points = base * np.linspace(0.3, 1, layers).reshape(1, layers, 1, 1) + moves
    return {
        "maps": {"PCA": points, "t-SNE": points[..., ::-1] * 10},
        "scores": points[..., 0] - 1,
        "kinds": kinds,
        "prompts": [f"Prompt {i} about locks." for i in range(len(kinds))],
        "defenses": ["undefended", "circuit breakers", "X-Boundary"],
        "layers": [3 * layer for layer in range(layers)],
        "start": (1, 2),
    }


# What is packed


def test_every_control_and_every_point_is_there_and_no_placeholder():
    text = explorer(**made_up())
    elements = Elements(with_scripts(text))
    kinds = [attributes.get("type") for tag, attributes in elements.found if tag == "input"]
    assert kinds == ["radio"] * 5 + ["range", "checkbox", "range"]
    assert text.count('style="transform:translate(') == 60
    assert "{{" not in text and "}}" not in text
    # Nothing that a page could have twice, that runs by itself, or that is fetched.
    for tag, attributes in elements.found:
        assert not {"id", "src", "href"} & set(attributes), tag
        assert not any(name.startswith("on") for name in attributes), tag
    text = text.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"url\(|@import|https?:|\beval\b|innerHTML", text)


def test_the_full_size_is_small():
    rng = np.random.default_rng(0)
    text = explorer(
        {name: rng.normal(size=(3, 10, 240, 2)) for name in ("PCA", "LDA", "t-SNE")},
        rng.normal(size=(3, 10, 240)),
        np.repeat(KINDS, 80).tolist(),
        ["A prompt of a usual length, about a hundred letters, that asks for something; " * 2]
        * 240,
        ["undefended", "circuit breakers", "X-Boundary"],
        range(0, 30, 3),
    )
    assert len(text.encode()) < 250_000


def test_the_same_data_give_the_same_text():
    assert explorer(**made_up()) == explorer(**made_up())
    assert explorer(**made_up()) != explorer(**made_up(seed=1))


def test_nothing_packed_looks_like_a_path_of_a_machine():
    # base64 with "/" could hold "/tmp/x" by chance.
    text = explorer(**made_up(per_kind=60, layers=20))
    assert all("/" not in packed for packed in data_of(text)["maps"])
    assert machine_path(text) is None


def test_prompts_and_names_are_text():
    data = made_up()
    bad = "</script><script>document.title='bad'</script><!--"
    data["prompts"][0] = bad
    data["defenses"][1] = data["defenses"][0] = "<img src=x onerror=alert(1)>{{js}}"
    for text, scripts in ((explorer(**data), 5), (with_scripts(explorer(**data)), 2)):
        elements = Elements(text)
        assert elements.count("script") == scripts and elements.count("img") == 0
    assert data_of(explorer(**data))["prompts"][0] == bad


def test_kinds_that_are_absent_are_not_shown():
    data = made_up()
    data["kinds"] = ["benign"] * 40 + ["harmful"] * 20
    assert data_of(explorer(**data))["names"] == ["harmful", "benign"]
    assert "boundary-safe (" not in explorer(**data)


@given(
    st.lists(
        st.one_of(
            st.integers(-40, 40).map(lambda tenths: tenths / 10),
            st.floats(-1e6, 1e6).map(lambda x: x if abs(x) > 1e-6 else 0.0),
        ),
        min_size=2,
        max_size=30,
    ),
    st.sampled_from([0.0, 1e3, -1e9]),
)
@example([0.0, 999999.9999999999], 0.0)  # whose logarithm is that of a million
def test_counts_by_steps_are_counts_by_scores(values, offset):
    scores = np.array(values).reshape(1, 1, -1) + offset
    steps, [(first, count, width)] = module._buckets(scores)
    assert steps.min() == 0 and steps.max() == count - 1 and count <= 252
    for position in range(count + 1):
        threshold = (first + position) * width
        assert (steps >= position).sum() == (scores >= threshold).sum()


def test_scores_that_are_all_the_same_and_points_that_coincide():
    data = made_up()
    data["scores"] = np.full_like(data["scores"], 0.5)
    data["maps"] = {"PCA": np.zeros((3, 4, 60, 2))}
    packed = data_of(explorer(**data))
    assert packed["scales"][0] == [100, 1, 0.005]
    assert (module._places(np.zeros((1, 1, 2, 2))) == 512).all()


def test_axes_are_shared_by_the_defenses_of_a_layer_and_by_nothing_else():
    points = np.zeros((2, 2, 3, 2))
    points[0, 0] = [[0, 0], [1, 1], [2, 2]]
    points[1, 0] = [[0, 0], [1, 1], [4, 4]]
    points[:, 1] = [[0, 0], [10, 10], [20, 20]]
    places = module._places(points)[..., 0]
    assert places.tolist() == [
        [[0, 256, 512], [0, 512, 1023]],
        [[0, 256, 1023], [0, 512, 1023]],
    ]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"maps": {}}, "nothing to explore: 0 maps, 60 items"),
        ({"kinds": [], "prompts": []}, "0 items"),
        ({"prompts": ["one"]}, "1 prompts for 60 kinds"),
        ({"kinds": ["nice"] * 60}, r"unknown kinds \['nice'\]"),
        ({"scores": np.zeros((3, 60, 4))}, r"scores: shape \(3, 60, 4\).*make \(3, 4, 60\)"),
        ({"maps": {"PCA": np.zeros((3, 4, 60))}}, r"the map 'PCA': shape .* make \(3, 4, 60, 2\)"),
        ({"defenses": ["one"]}, "scores: shape"),
        ({"layers": [1, 2]}, "scores: shape"),
        ({"scores": np.full((3, 4, 60), np.nan)}, r"scores: not finite at \(0, 0, 0\)"),
        ({"maps": {"LDA": np.full((3, 4, 60, 2), np.inf)}}, "'LDA': not finite"),
        ({"start": (3, 0)}, r"start \(3, 0\): indices of one of 3 defenses and 4 layers"),
        ({"start": (0, -1)}, "start"),
    ],
)
def test_what_cannot_be_shown_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        explorer(**{**made_up(), **change})


def test_its_files_are_in_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = project["tool"]["setuptools"]["package-data"]
    assert {"explorer.html", "explorer.css", "explorer.js"} <= set(listed["xb_lite.boundary"])
    assert {"elements.css", "elements.js"} <= set(listed["xb_lite"])


# What a reader can do with it


def positions(tab):
    """Where the points are, in percent of the map."""
    moves = tab.locator(".points path").evaluate_all("all => all.map(e => e.style.transform)")
    return np.array([[float(x) for x in re.findall(r"[\d.]+(?=%)", move)] for move in moves])


def expected(points, defense, layer):
    places = module._places(points)[defense, layer] / (module.PLACES - 1)
    return np.stack([3 + 94 * places[:, 0], 97 - 94 * places[:, 1]], axis=1)


@needs_browser
def test_layer_defense_and_projection_move_the_points(show):
    data = made_up()
    tab = show(explorer(**data))
    assert np.allclose(positions(tab), expected(data["maps"]["PCA"], 1, 2), atol=1e-3)
    assert tab.locator(".title").text_content() == "PCA, circuit breakers, layer 6"

    tab.get_by_label("Layer").press("ArrowRight")
    assert np.allclose(positions(tab), expected(data["maps"]["PCA"], 1, 3), atol=1e-3)
    tab.get_by_label("X-Boundary", exact=True).check(force=True)
    assert np.allclose(positions(tab), expected(data["maps"]["PCA"], 2, 3), atol=1e-3)
    tab.get_by_label("PCA").press("ArrowRight")
    assert np.allclose(positions(tab), expected(data["maps"]["t-SNE"], 2, 3), atol=1e-3)
    assert tab.locator(".title").text_content() == "t-SNE, X-Boundary, layer 9"

    tab.get_by_label("Lines from undefended").check()
    assert tab.locator(".lines line").count() == 60
    tab.get_by_label("undefended", exact=True).check(force=True)
    assert tab.locator(".lines line").count() == 0


@needs_browser
def test_the_threshold_refuses_what_python_says(show):
    data = made_up()
    kinds = np.array(data["kinds"])
    tab = show(explorer(**data))
    _, scales = module._buckets(data["scores"])
    first, count, width = scales[2]
    assert tab.locator("[name=threshold]").input_value() == str(-first)  # the probe's plane
    for position in (-first, 0, count // 2, count):
        slide(tab, "threshold", position)
        refused = data["scores"][1, 2] >= (first + position) * width
        for line, kind in enumerate(KINDS):
            found = rate(refused[kinds == kind])
            shown = tab.locator(".counts li").nth(line)
            assert shown.locator("b").text_content() == f"{found.value:.0%}".replace("%", " %")
            assert shown.locator("span").text_content() == f"{found.k} of 20 {kind} refused"
            interval = f"95 % interval: {100 * found.low:.0f} to {100 * found.high:.0f} %"
            assert shown.locator("small").text_content() == interval
        outlined = tab.locator(".points path").evaluate_all(
            "all => all.map(e => e.classList.contains('refused'))"
        )
        assert outlined == refused.tolist()
    # Outlines, not colors alone.
    style = "e => [getComputedStyle(e).stroke, getComputedStyle(e).strokeWidth]"
    slide(tab, "threshold", count // 2)
    assert tab.locator(".points .refused").first.evaluate(style) == ["rgb(43, 43, 43)", "1.7px"]


@needs_browser
def test_the_threshold_keeps_its_value_over_layers_and_is_said_once_it_rests(show):
    data = made_up()
    data["scores"] = np.linspace(-1, 1, 60) * np.array([1, 10, 1, 0.1]).reshape(1, 4, 1)
    data["scores"] = np.broadcast_to(data["scores"], (3, 4, 60))
    tab = show(explorer(**data))
    status = tab.locator("[role=status]")
    assert status.text_content() == ""
    slide(tab, "threshold", 75)
    value = tab.locator(".rule b")
    assert value.text_content() == "0.50"
    # The layers below and above have strips ten times as wide and a tenth as wide.
    for layer, shown in ((1, "0.6"), (3, "0.102"), (2, "0.50")):
        slide(tab, "layer", layer)
        assert value.text_content() == shown
    tab.wait_for_timeout(600)
    said = status.text_content()
    assert said == (
        "PCA, circuit breakers, layer 6. Threshold 0.50: 0 of 20 harmful refused, 0 %; "
        "0 of 20 boundary-safe refused, 0 %; 15 of 20 benign refused, 75 %."
    )


@needs_browser
def test_points_are_read_by_keyboard_through_one_tab_stop(show):
    data = made_up()
    tab = show(explorer(**data))
    for _ in range(5):  # projection, defense, layer, lines, then the map
        tab.keyboard.press("Tab")
    focused = "() => document.activeElement.getAttribute('aria-label')"
    assert tab.evaluate(focused).endswith("Prompt 0 about locks.")
    assert tab.locator(".prompt").text_content() == data["prompts"][0]

    x, y = expected(data["maps"]["PCA"], 1, 2).T
    for key, ahead in (("ArrowRight", x > x[0]), ("ArrowUp", y < y[0])):
        tab.locator(".points path").first.focus()
        tab.keyboard.press(key)
        item = data["prompts"].index(tab.locator(".prompt").text_content())
        assert ahead[item]
        label = tab.evaluate(focused)
        assert label.startswith(data["kinds"][item]) and label.endswith(data["prompts"][item])
        assert tab.locator(".about").text_content().startswith(label.split(":")[0])

    # From the least to the most harmful every prompt is passed, each once.
    steps = module._buckets(data["scores"])[0][1, 2]
    tab.keyboard.press("Home")
    walked = []
    for _ in data["prompts"]:
        walked.append(data["prompts"].index(tab.locator(".prompt").text_content()))
        tab.keyboard.press("PageUp")
    assert sorted(walked) == list(range(60)) and (np.diff(steps[walked]) >= 0).all()

    tab.keyboard.press("Tab")
    assert tab.evaluate("() => document.activeElement.name") == "threshold"
    tab.keyboard.press("Shift+Tab")
    assert tab.evaluate(focused).endswith(data["prompts"][walked[-1]])


@needs_browser
def test_a_point_is_read_by_mouse_and_by_touch_and_stays_read(show):
    data = made_up()
    x, y = expected(data["maps"]["PCA"], 1, 2)[7] / 100
    for settings in ({}, {"width": 390, "has_touch": True}):
        tab = show(explorer(**data), **settings)
        tab.locator(".map").scroll_into_view_if_needed()
        box = tab.locator(".map").bounding_box()
        at = box["x"] + x * box["width"], box["y"] + y * box["height"]
        (tab.touchscreen.tap if settings else tab.mouse.move)(*at)
        assert tab.locator(".prompt").text_content() == data["prompts"][7]
        slide(tab, "layer", 0)
        assert tab.locator(".prompt").text_content() == data["prompts"][7]
        assert tab.evaluate(check_book.OVERFLOW) is None


@needs_browser
def test_text_from_the_data_is_never_markup(show):
    data = made_up()
    data["prompts"][0] = "</script><img src=x onerror=alert(1)> $x$ \u2028 'quoted'"
    data["defenses"][1] = "<b onclick=alert(2)>bold</b>"
    data["maps"] = {"<i>map</i>": data["maps"]["PCA"]}
    tab = show(explorer(**data))
    tab.locator(".points path").first.focus()
    assert tab.locator(".prompt").text_content() == data["prompts"][0]
    assert (
        tab.locator(".title").text_content() == "<i>map</i>, <b onclick=alert(2)>bold</b>, layer 6"
    )


@needs_browser
def test_two_on_a_page_do_not_meet_even_with_the_same_data(show):
    text = explorer(**made_up())
    tab = show(text, text)
    one, two = (tab.locator(".xb-explorer").nth(i) for i in (0, 1))
    one.get_by_label("X-Boundary").check(force=True)
    assert one.locator(".title").text_content() == "PCA, X-Boundary, layer 6"
    assert two.locator(".title").text_content() == "PCA, circuit breakers, layer 6"
    assert two.get_by_label("circuit breakers").is_checked()


@needs_browser
def test_without_scripts_the_first_view_is_a_picture_with_a_sentence(show):
    data = made_up()
    tab = show(explorer(**data), java_script_enabled=False)
    assert tab.get_by_role("img", name="Map of 60 prompts: PCA, circuit breakers, layer 6").count()
    assert tab.get_by_text("First view: PCA, circuit breakers, layer 6.").is_visible()
    for part in ("form", ".guard", ".reading", ".key"):
        assert tab.locator(part).count() == 0
    box = tab.locator(".map").bounding_box()
    x, y = expected(data["maps"]["PCA"], 1, 2)[7] / 100
    mark = tab.locator(".points path").nth(7).bounding_box()
    assert abs(mark["x"] + mark["width"] / 2 - box["x"] - x * box["width"]) < 2
    assert abs(mark["y"] + mark["height"] / 2 - box["y"] - y * box["height"]) < 2


@needs_browser
def test_motion_is_short_and_off_where_it_is_not_wanted(show):
    text = explorer(**made_up())
    duration = "e => getComputedStyle(e).transitionDuration"
    for motion, seconds in (("no-preference", "0.35s"), ("reduce", "0s")):
        tab = show(text, reduced_motion=motion)
        assert tab.locator(".points path").first.evaluate(duration) == seconds


@needs_browser
@pytest.mark.parametrize(
    "attributes, system, ground",
    [
        ("", "light", "rgb(251, 251, 250)"),
        ("", "dark", "rgb(26, 30, 34)"),
        (' data-theme="light"', "dark", "rgb(251, 251, 250)"),
        (' data-theme="dark"', "light", "rgb(26, 30, 34)"),
        (' data-theme="auto"', "dark", "rgb(26, 30, 34)"),
    ],
)
def test_the_page_decides_between_light_and_dark_then_the_system(show, attributes, system, ground):
    tab = show(explorer(**made_up(4)), attributes=attributes, color_scheme=system)
    style = "e => getComputedStyle(e).backgroundColor"
    assert tab.locator(".xb-explorer").evaluate(style) == ground


@needs_browser
@pytest.mark.parametrize("theme", check_book.THEMES)
@pytest.mark.parametrize("width", check_book.WIDTHS)
def test_axe_finds_nothing(show, theme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    tab = show(explorer(**made_up()), width=width, color_scheme=theme)
    slide(tab, "threshold", 60)
    tab.locator(".points path").nth(3).focus()
    tab.wait_for_timeout(500)
    found = axe.run(tab, options={"resultTypes": ["violations"], "preload": False}).response
    assert [(rule["id"], rule["nodes"][0]["target"]) for rule in found["violations"]] == []
    assert tab.evaluate(check_book.OVERFLOW) is None
