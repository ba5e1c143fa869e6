"""Chapter 4: its exercises, and the loss as it stands on the page beside the official step."""

import math
import sys
from pathlib import Path

import pytest
import torch
from exercise_pages import accepts, cells_of, is_mistaken, says_not_yet, solutions_in, sources_of
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from torch import nn
from torch.nn.functional import normalize

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from official_step import Item, official_step  # noqa: E402

from xb_lite.exercises import xboundary_loss as check
from xb_lite.hidden import watch_layers
from xb_lite.losses.batch import Pair, Row, collate
from xb_lite.recipes import load_recipe

SOURCES = sources_of(cells_of("04_xboundary_loss"))
# The cells that define what solutions and the loss are made of.
BASICS = ("03-06", "03-14", "04-masks", "04-centroids", "04-loss")
EXERCISES = {  # stub: the cell that holds its solution
    "04-try-gradient": "04-try-gradient-hints",
    "04-try-centroid": "04-try-centroid-hints",
    "04-try-meeting": "04-try-meeting-hints",
    "04-ex1": "04-ex1-hints",
    "04-ex2": "04-ex2-hints",
    "04-ex3": "04-ex3-hints",
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def page():
    """The names of the page."""
    names = {"torch": torch, "grad": torch.autograd.grad, "check": check}
    for cell in BASICS:
        source = SOURCES[cell].partition("\n\nbeside = ")[0]  # what follows prints
        exec(source, names)
    return names


@pytest.mark.parametrize("stub", EXERCISES)
def test_an_untouched_stub_is_not_attempted(page, stub):
    says_not_yet(SOURCES[stub], page)


@pytest.mark.parametrize("stub", EXERCISES)
def test_the_solution_on_the_page_is_right(page, stub):
    accepts(SOURCES[stub], SOURCES[EXERCISES[stub]], page)


@pytest.mark.parametrize("stub", EXERCISES)
def test_every_exercise_has_two_hints(stub):
    assert SOURCES[EXERCISES[stub]].count("<summary>Hint") == 2


# Known wrong answers, and a word of what is said of each


def unit(states):
    return normalize(states, dim=-1)


def relu(values):
    return torch.relu(values)


def cosines(states, reference):
    return (unit(states) * unit(reference)).sum(dim=-1)


def in_place(states, mask):
    states /= states.norm(dim=-1, keepdim=True)
    return states[mask].mean(dim=0)


def erase_with_detached_length(states, reference, mask):
    """The right value; the gradient keeps its part along the state."""
    states, reference = states[mask], reference[mask]
    length = states.norm(dim=-1, keepdim=True).detach()
    return relu((states / length * unit(reference)).sum(dim=-1)).mean()


def erase_halfway_detached(states, reference, mask):
    """The right value; half of the gradient."""
    values = relu(cosines(states[mask], reference[mask]))
    return (values / 2 + values.detach() / 2).mean()


def erase_of_where(states, reference, mask):
    """The right value, also where padding is infinite; there the gradient is NaN."""
    return torch.where(mask, relu(cosines(states, reference)), 0).sum() / mask.sum()


def erase_in_place(states, reference, mask):
    value = relu(cosines(states[mask], reference[mask])).mean()
    if not states.requires_grad:
        states.zero_()
    return value


WRONG = [
    (check.gradient, [-0.128, 0.096], "descent"),
    (check.gradient, [0.64, -0.48], "1 / |h| is missing"),
    (check.gradient, [0.0256, -0.0192], "too many"),
    (check.gradient, [0.2, 0.0], "along the state"),
    (check.gradient, [-0.16, -0.48], "5 long"),
    (check.gradient, [0.0, 0.8], "by the reference"),
    (check.gradient, 0.6, "cosine itself"),
    (check.gradient, 0.16, "size"),
    (check.gradient, [0.0, 0.0], "Zero"),
    (check.centroid, lambda s, m: s[m].mean(dim=0), "weigh more"),
    (check.centroid, lambda s, m: unit(s[m].mean(dim=0)), "averaged first"),
    (check.centroid, lambda s, m: unit(unit(s[m]).mean(dim=0)), "stays as short"),
    (check.centroid, lambda s, m: unit(s).mean(dim=0), "not used"),
    (check.centroid, lambda s, m: (unit(s) * m[:, None]).mean(dim=0), "by all tokens"),
    (check.centroid, lambda s, m: unit(s[m]).sum(dim=0), "the sum"),
    (check.centroid, lambda s, m: unit(s[~m]).mean(dim=0), "inverted"),
    (check.centroid, lambda s, m: normalize(s, dim=0)[m].mean(dim=0), "along the tokens"),
    (check.centroid, lambda s, m: unit(s[m]), "unit vectors"),
    (check.centroid, lambda s, m: unit(s[m]).mean(dim=1), "over the entries"),
    (check.centroid, in_place, "in place"),
    (check.centroid, lambda s, m: -unit(s[m]).mean(dim=0), "sign"),
    (check.meeting_step, 10, "between two steps"),
    (check.meeting_step, 9, "between two steps"),
    (check.meeting_step, lambda n, w: 10, "not"),
    (check.meeting_step, lambda n, w: math.ceil(n / (1 + w)), "between two steps"),
    (check.meeting_step, lambda n, w: n // (1 + w), "between two steps"),
    (check.meeting_step, lambda n, w: 150 / 16, "arguments"),
    (check.meeting_step, lambda n, w: 1 / (1 + w), "progress"),
    (check.meeting_step, lambda n, w: n / w, "Nearly"),
    (check.meeting_step, lambda n, w: n / 2, "weight of 1"),
    (check.meeting_step, lambda n, w: 2 * n / (2 + w), "erase alone"),
    (check.meeting_step, lambda n, w: n * w / (1 + w), "1 - p"),
    (check.meeting_step, lambda n, w: 10 * n / (1 + w), "cancels"),
    (check.meeting_step, lambda n, w: n / (1 - w), "sign"),
    (check.final_angles, [90.0, 180.0], "Not exactly 90"),
    (check.final_angles, [0.0, 0.0], "Nothing moved"),
    (check.erase_term, lambda s, r, m: cosines(s, r)[m].mean(), "ReLU is missing"),
    (check.erase_term, lambda s, r, m: relu((s * r).sum(dim=-1))[m].mean(), "dot product"),
    (check.erase_term, lambda s, r, m: relu((s * unit(r)).sum(dim=-1))[m].mean(), "Only the"),
    (check.erase_term, lambda s, r, m: relu(cosines(s, r)).mean(), "not used"),
    (check.erase_term, lambda s, r, m: (relu(cosines(s, r)) * m).mean(), "still counted"),
    (check.erase_term, lambda s, r, m: relu(cosines(s, r))[m].sum(), "the sum"),
    (check.erase_term, lambda s, r, m: relu(cosines(s, r))[~m].mean(), "inverted"),
    (check.erase_term, lambda s, r, m: -relu(cosines(s, r))[m].mean(), "sign"),
    (check.erase_term, lambda s, r, m: relu(cosines(s, r)), "One value per token"),
    (check.erase_term, lambda s, r, m: relu(cosines(s, r))[m].mean().detach(), "detached"),
    (check.erase_term, lambda s, r, m: (relu(cosines(s, r)) * m).sum() / m.sum(), "NaN"),
    (check.erase_term, erase_with_detached_length, "length of the state is detached"),
    (check.erase_term, erase_halfway_detached, "another function"),
    (check.erase_term, erase_of_where, "gradient is NaN"),
    (check.erase_term, lambda s, r, m: relu(cosines(s, r))[m].mean(), "gradient is NaN"),
    (check.erase_term, erase_in_place, "in place"),
]


def leave(own="common", centre="boundary", rows="harmful", act=relu, mean="mask", by="item"):
    """The solution of ``as_described`` with a mistake."""

    def answer(states, kept, response, counted, boundary):
        per = torch.stack([unit(r[m]).mean(dim=0) for r, m in zip(kept, counted, strict=True)])
        chosen = {"boundary": boundary, "benign": ~boundary, "all": boundary | True}[centre]
        mu = per[chosen].mean(dim=0)
        if by == "token":
            mu = unit(kept)[counted & boundary[:, None]].mean(dim=0)
        mu = {"common": mu, "own": per[:, None], "unit": unit(mu)}[own]
        over = {
            "harmful": response & ~boundary[:, None],
            "safe": response & boundary[:, None],
            "both": response,
            "all tokens": (~boundary[:, None]).expand_as(response),
        }[rows]
        values = act((unit(states) * mu).sum(dim=-1))
        if mean == "sum":
            return values[over].sum()
        return (values * over).mean() if mean == "positions" else values[over].mean()

    return answer


def described_with_detached_length(states, kept, response, counted, boundary):
    """The right value; the gradient keeps its part along the state."""
    rows = zip(kept[boundary], counted[boundary], strict=True)
    common = torch.stack([unit(row[mask]).mean(dim=0) for row, mask in rows]).mean(dim=0)
    leaving = response & ~boundary[:, None]
    length = states.norm(dim=-1, keepdim=True).detach()
    return relu(states / length @ common)[leaving].mean()


def described_without_gradient(states, *others):
    """The right value; a gradient of zero."""
    return leave()(states.detach(), *others) + 0 * states.sum()


WRONG += [
    (check.as_described, leave(own="own"), "own pair"),
    (check.as_described, leave(own="unit"), "unit vector again"),
    (check.as_described, leave(centre="all"), "all items"),
    (check.as_described, leave(centre="benign"), "inverted"),
    (check.as_described, leave(by="token"), "long items"),
    (check.as_described, leave(rows="safe"), "refusal"),
    (check.as_described, leave(rows="both"), "leave them out"),
    (check.as_described, leave(rows="all tokens"), "response alone"),
    (check.as_described, leave(act=lambda x: x), "ReLU"),
    (check.as_described, leave(mean="sum"), "the sum"),
    (check.as_described, leave(mean="positions"), "all positions"),
    (check.as_described, lambda *given: leave()(*given).detach(), "detached"),
    (check.as_described, described_with_detached_length, "length of the state is detached"),
    (check.as_described, described_without_gradient, "another function"),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_known_wrong_answer_gets_its_words(number):
    exercise, answer, words = WRONG[number]
    is_mistaken(exercise(answer), words)


def test_wrong_angles_get_their_words(page):
    (solution,) = solutions_in(SOURCES["04-ex1-hints"])
    exec(solution, page)
    with_relu, plain = page["yours"]
    for answer, words in (
        ([plain, with_relu], "swapped"),
        ([90.0, plain], "Not exactly 90"),
        (torch.deg2rad(torch.tensor([with_relu, plain])), "radians"),
        (torch.deg2rad(torch.tensor([with_relu, plain])).cos(), "cosines"),
        ([plain, plain], "without the ReLU"),
        ([with_relu, with_relu], "with the ReLU"),
    ):
        verdict = check.final_angles(answer)
        assert verdict.right is False and words in verdict.text, verdict


def test_mistakes_of_an_exercise_differ_from_the_right_answer():
    assert check.as_described(leave()).right
    assert check.meeting_step(9.375).right


# The loss of the page and the official step

WINDOW, TARGETS, LAYERS = 8, (2, 3), 4


def encoding(prompt, response):
    from xb_lite.dialogues import Encoding

    ids = torch.tensor([*prompt, *response])
    is_response = torch.arange(len(ids)) >= len(prompt)
    return Encoding(ids, ~is_response, is_response, torch.zeros_like(is_response))


def states(model, batch):
    """After each layer; of the last after the final norm, as in the official code."""
    kept = {}
    with watch_layers(model, range(LAYERS), kept.__setitem__):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    top = LAYERS - 1
    return {**kept, top: model.get_base_model().model.norm(kept[top])}


@pytest.mark.parametrize("step", [1, 150])
def test_the_loss_of_the_page_is_the_official_one(page, step):
    """With the official variant and distance, its means by the official divisors."""
    model = tiny_model(range(97), num_hidden_layers=LAYERS)
    lora = LoraConfig(r=4, lora_alpha=4, lora_dropout=0.0, target_modules="all-linear")
    model = get_peft_model(model, lora)
    torch.manual_seed(1)
    for weight in (w for w in model.parameters() if w.requires_grad):
        nn.init.normal_(weight, std=0.2)
    dice = torch.Generator().manual_seed(2)

    def text(length):
        return torch.randint(1, 97, (length,), generator=dice).tolist()

    items = [
        Item(text(5), text(7), text(11)),
        Item(same := text(4), text(3), same + text(6), boundary=True),
        Item(text(8), text(2), text(9)),
        Item(same := text(6), text(8), same + text(2), boundary=True),
    ]
    wanted = official_step(model, items, step, targets=TARGETS, window=WINDOW, schedule=300.0)

    pairs = [
        Pair(
            Row(2 * i, encoding(item.request, item.response)),
            Row(2 * i + 1, encoding(item.retain, [])),
            item.boundary,
            item.boundary,
        )
        for i, item in enumerate(items)
    ]
    batch = collate(pairs, 0)
    now = states(model, batch)
    with torch.no_grad(), model.disable_adapter():
        was = states(model, batch)
    recipe = load_recipe(
        "x-boundary-smollm2-135m",
        separate="as_coded",
        retain="absolute",
        target_layers=[entry - 1 for entry in TARGETS],
        lora_layers=LAYERS,
        schedule=300,
        retain_weight=1.0,
    )
    loss, terms = page["xboundary_loss"](now, was, batch, step, recipe)
    retain, erase, separate = (terms[name] for name in ("retain", "erase", "separate"))
    p = step / 300
    assert torch.allclose(loss, 10 * ((1 - p) * (erase + separate) + p * retain))

    # The official code counts padding and the embeddings in one, and all tokens in the other.
    over = {k: int(m.sum()) for k, m in page["masks_of"]("as_coded", batch).items()}
    retain = retain * over["retain"] * LAYERS / (len(items) * 2 * WINDOW * (LAYERS + 1))
    both = over["erase"] + over["separate"]
    erase, separate = erase * over["erase"] / both, separate * over["separate"] / both
    found = 10 * ((1 - p) * (erase + separate) + p * retain)
    weights = [w for w in model.parameters() if w.requires_grad]
    for mine, theirs in (
        (retain, wanted.retain),
        (erase, wanted.erase),
        (separate, wanted.separate),
        (found, wanted.loss),
    ):
        assert torch.allclose(mine, theirs, rtol=1e-5)
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        slopes = (torch.autograd.grad(value, weights, **options) for value in (mine, theirs))
        for one, other in zip(*slopes, strict=True):
            assert (one - other).norm() <= 1e-5 * other.norm() + 1e-7
