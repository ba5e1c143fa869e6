"""Chapter 1's exercises: solutions pass, stubs are silent, known mistakes get their own words."""

import pytest
import torch
from exercise_pages import cells_of, defining, solutions_of, sources_of

from xb_lite.exercises import hidden_states as check
from xb_lite.exercises.verdicts import NOT_YET

CELLS = cells_of("01_hidden_states")
NAMES = (
    "last_prompt_token",
    "layer_output",
    "mean_state",
    "longest_ordinary",
    "components",
    "without_direction",
)


def defined(codes, name):
    """The function of an exercise, by the code that defines it."""
    there = {"torch": torch}
    exec(defining(codes, name), there)
    return there[name]


def masked_mean(states, mask):
    return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def mean_in_place(states, mask):
    states[~mask] = 0
    return states.sum(1) / mask.sum(1, keepdim=True)


def mean_with_sink(states, mask):
    mask = mask.clone()
    mask[:, 0] = True
    return masked_mean(states, mask)


def svd(states):
    return torch.linalg.svd(states - states.mean(0), full_matrices=False)


def uncentred(states):
    u, size, _ = torch.linalg.svd(states, full_matrices=False)
    return (u * size)[:, :2]


def scaled(states):
    return right_components((states - states.mean(0)) / states.std(0))


def right_components(states):
    u, size, _ = svd(states)
    return (u * size)[:, :2]


def removed_in_place(states, direction):
    unit = direction / direction.norm()
    states -= (states @ unit)[:, None] * unit
    return states


def along(states, direction):
    return states @ (direction / direction.norm())


def unit(direction):
    return direction / direction.norm()


CATALOGUE = {
    "last_prompt_token": [
        (lambda mask: torch.full((len(mask),), mask.shape[1] - 1), "padding here"),
        (lambda mask: torch.full((len(mask),), -1), "-1 is the last position"),
        (lambda mask: mask.sum(1) - 1, "a count is not a position"),
        (lambda mask: mask.sum(1), "works for one turn"),
        (lambda mask: mask.int().argmax(1), "first prompt token"),
        (lambda mask: torch.where(mask, torch.arange(mask.shape[1]), -1).amax(1) + 1, "Off by one"),
        (lambda mask: torch.where(mask, torch.arange(mask.shape[1]), -1).max(), "one number"),
        (lambda mask: mask, "shape"),
    ],
    "layer_output": [
        (lambda everything, layer: everything[layer], "too low"),
        (lambda everything, layer: everything[layer + 2], "too high"),
        (lambda everything, layer: everything[-1], "last entry"),
        (lambda everything, layer: everything[-layer], "negative index"),
        (lambda everything, layer: everything[-layer - 1], "negative index"),
        (lambda everything, layer: everything[-(layer + 2)], "negative index"),
        (lambda everything, layer: everything[len(everything) // 2], "middle entry"),
        (lambda everything, layer: everything[layer + 1][0], "the batch is gone"),
        (lambda everything, layer: everything[layer][0], "first dialogue, one layer too low"),
        (lambda everything, layer: everything[layer + 1][:, -1], "only its last token"),
        (lambda everything, layer: everything[layer + 1] - everything[layer], "layer adds"),
    ],
    "mean_state": [
        (lambda states, mask: states.mean(1), "mask is not used"),
        (lambda states, mask: (states * mask[..., None]).mean(1), "divisor"),
        (lambda states, mask: (states * mask[..., None]).sum(1), "That is the sum"),
        (lambda states, mask: masked_mean(states, ~mask), "upside down"),
        (mean_with_sink, "first token is in your mean"),
        (lambda states, mask: states[mask].mean(0), "one mean over all dialogues"),
        (lambda states, mask: states.mean(-1), "averaged over the dimensions"),
        (
            lambda states, mask: torch.nn.functional.normalize(masked_mean(states, mask), dim=-1),
            "length 1",
        ),
        (mean_in_place, "in place"),
    ],
    "longest_ordinary": [
        (lambda norms: norms.amax(0), "largest norm itself"),
        (lambda norms: norms.amax(0) / norms.mean(0), "divided by the mean"),
        (lambda norms: norms.median(0).values / norms.amax(0), "upside down"),
        (lambda norms: norms.amax(1) / norms.median(1).values, "within a token"),
        (lambda norms: norms.amax(0) / norms.median(), "One median for all layers"),
        (lambda norms: norms.max() / norms.median(), "One number for all layers"),
        (lambda norms: norms.argmax(0), "which token it is"),
        (lambda norms: norms.amax(0) / norms.amin(0), "smallest norm"),
    ],
    "components": [
        (uncentred, "did not subtract the mean"),
        (lambda states: states @ svd(states)[2][:2].T, "axes are right; subtract the mean"),
        (lambda states: (svd(states)[0] * svd(states)[1])[:, -2:], "vary least"),
        (lambda states: right_components(states).flip(1), "wrong order"),
        (lambda states: svd(states)[0][:, :2], "same length"),
        (lambda states: svd(states)[2][:2], "These are the axes, [2, dim]"),
        (lambda states: svd(states)[2][:2].T, "These are the axes; project"),
        (scaled, "unit variance"),
        (lambda states: svd(states)[0] * svd(states)[1], "all components"),
    ],
    "without_direction": [
        (lambda states, d: states - (states @ d)[:, None] * d, "multiplied by it twice"),
        (lambda states, d: states - along(states, d)[:, None] * d, "Only one of the two"),
        (lambda states, d: states + along(states, d)[:, None] * unit(d), "sign"),
        (lambda states, d: states - 2 * along(states, d)[:, None] * unit(d), "mirrors"),
        (lambda states, d: along(states, d)[:, None] * unit(d), "part along the direction"),
        (along, "how far each state goes"),
        (lambda states, d: states - unit(d), "same vector"),
        (lambda states, d: states - d, "same vector"),
        (lambda states, d: states - states.mean(0), "direction is still there"),
        (removed_in_place, "in place"),
    ],
}


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_on_the_page_is_right(name):
    verdict = getattr(check, name)(defined(solutions_of(CELLS), name))
    assert verdict.right, verdict


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_on_the_page_is_not_attempted(name):
    for stub in (defined(sources_of(CELLS, ("code",)).values(), name), ...):
        verdict = getattr(check, name)(stub)
        assert verdict.right is None and verdict.text == NOT_YET


@pytest.mark.parametrize("name", NAMES)
def test_each_known_mistake_gets_its_own_words(name):
    assert len(CATALOGUE[name]) >= 5
    for wrong, words in CATALOGUE[name]:
        verdict = getattr(check, name)(wrong)
        assert verdict.right is False and words in verdict.text, (words, verdict)


@pytest.mark.parametrize("turn", ([1, 1], [-1, 1], [1, -1], [-1, -1]))
def test_the_sign_of_a_component_is_free(turn):
    assert check.components(lambda states: right_components(states) * torch.tensor(turn)).right
    turned = [lambda s: (right_components(s) * torch.tensor(turn)).numpy()]
    turned += [lambda s: (right_components(s) * torch.tensor(turn)).tolist()]
    assert all(check.components(function).right for function in turned)


@pytest.mark.parametrize("at", range(10))
def test_an_entry_that_is_right_for_one_layer_only_is_not_accepted(at):
    for wrong in (
        lambda everything, layer: everything[at],
        lambda everything, layer: everything[(at - layer) % len(everything)],
    ):
        assert check.layer_output(wrong).right is False
