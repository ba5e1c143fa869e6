"""The terms of the loss: known values, what must not change them, and the official step."""

import math
import random
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from peft import LoraConfig, get_peft_model
from tiny import tiny_model
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from official_step import Item, batch, official_step  # noqa: E402

from xb_lite.hidden import watch_layers
from xb_lite.losses.targets import random_centroid, random_direction
from xb_lite.losses.terms import (
    Coefficients,
    Terms,
    centroid,
    coefficients,
    erase,
    masked_mean,
    retain,
    separate,
    total,
)

INF, NAN = float("inf"), float("nan")
SEEDS = st.integers(0, 10**6)
unhurried = settings(max_examples=60, deadline=None)


pytestmark = pytest.mark.usefixtures("one_thread")


def states(*tokens):
    """One item's tokens, ``[1, token, dim]``."""
    return torch.tensor([tokens], dtype=torch.float32)


def masks(*tokens):
    return torch.tensor([tokens], dtype=torch.bool)


# Known values


def test_erase_is_the_cosine_where_it_is_positive():
    reference = states([1, 0], [1, 0], [1, 0], [1, 0], [3, 4])
    state = states([1, 0], [0, 1], [-1, 0], [1, 1], [4, 3])
    wanted = torch.tensor([[1, 0, 0, math.sqrt(0.5), 24 / 25]])
    assert torch.allclose(erase(state, reference), wanted)
    assert torch.allclose(erase(7 * state, 0.1 * reference), wanted)


def test_erase_has_no_gradient_at_the_reference_nor_where_it_is_erased():
    reference = states([1, 0], [3, 4], [0, 2])
    for state in (reference.clone(), -reference):
        state.requires_grad_()
        (gradient,) = torch.autograd.grad(erase(state, reference).sum(), state)
        assert gradient.abs().max() < 1e-7
    aside = states([1, 1], [4, 3], [1, 2]).requires_grad_()
    (gradient,) = torch.autograd.grad(erase(aside, reference).sum(), aside)
    assert (gradient.norm(dim=-1) > 0.05).all()
    # Across the state, not along it: what falls is the cosine, never the length.
    assert torch.allclose((gradient * aside).sum(dim=-1), torch.zeros(1, 3), atol=1e-7)


def test_separate_is_the_dot_product_with_a_centroid_of_any_length():
    state = states([2, 0], [0, 5], [-1, 0], [3, 4])
    found = separate(state, torch.tensor([[0.5, 0.0]]))
    assert torch.allclose(found, torch.tensor([[0.5, 0, 0, 0.3]]))
    assert torch.allclose(separate(9 * state, torch.tensor([[0.5, 0.0]])), found)
    # A longer centroid, unlike a longer state, weighs more.
    assert torch.allclose(separate(state, torch.tensor([[1.0, 0.0]])), 2 * found)


def test_centroid_is_a_mean_of_directions_and_not_one_itself():
    reference = states([5, 0], [0, 0.1], [-7, -7])
    found = centroid(reference, masks(1, 1, 0))
    assert torch.allclose(found, torch.tensor([[0.5, 0.5]]))
    assert found.norm() < 0.8
    assert torch.allclose(centroid(reference, masks(1, 0, 0)), torch.tensor([[1.0, 0.0]]))


def test_an_item_without_tokens_has_no_centroid():
    reference = states([1, 0], [0, 1]).repeat(2, 1, 1)
    with pytest.raises(ValueError, match="no token"):
        centroid(reference, torch.tensor([[True, False], [False, False]]))


def test_retain_is_a_distance_of_the_states_or_one_relative_to_the_reference():
    reference, state = states([0, 2], [10, 0], [3, 4]), states([3, 6], [13, 4], [3, 4])
    assert torch.allclose(retain(state, reference, "absolute"), torch.tensor([[5.0, 5.0, 0.0]]))
    assert torch.allclose(retain(state, reference, "relative"), torch.tensor([[2.5, 0.5, 0.0]]))
    assert torch.equal(retain(state, reference), retain(state, reference, "relative"))
    with pytest.raises(ValueError, match="squared"):
        retain(state, reference, "squared")


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_retain_has_a_finite_gradient_at_the_reference(kind):
    reference = states([1, 0], [3, 4])
    state = reference.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(retain(state, reference, kind).sum(), state)
    assert (gradient == 0).all()


def test_masked_mean_of_known_values():
    values = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    mask = torch.tensor([[True, False], [True, True]])
    assert masked_mean(values, mask) == 13 / 3
    assert masked_mean(values, mask, 26.0) == 0.5
    assert masked_mean(values, mask, torch.tensor(26)) == 0.5
    none = torch.zeros(2, 2, dtype=torch.bool)
    assert masked_mean(values, none) == 0
    assert masked_mean(values, none, 5.0) == 0


@pytest.mark.parametrize("padding", [INF, -INF, NAN])
def test_masked_mean_never_sees_what_padding_holds(padding):
    values = torch.tensor([[1.0, padding], [padding, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [False, True]])
    mean = masked_mean(values, mask)
    assert mean == 2
    (gradient,) = torch.autograd.grad(mean, values)
    assert torch.equal(gradient, 0.5 * mask)
    assert masked_mean(values, torch.zeros_like(mask)) == 0


@pytest.mark.parametrize(
    "step, schedule, wanted",
    [
        (-5, 300.0, (0, 10)),
        (0, 300.0, (0, 10)),
        (75, 300.0, (2.5, 7.5)),
        (180, 300.0, (6, 4)),
        (180, 600.0, (3, 7)),
        (300, 300.0, (10, 0)),
        (301, 300.0, (10, 0)),
    ],
)
def test_coefficients_move_from_one_side_to_the_other(step, schedule, wanted):
    found = coefficients(step, schedule)
    assert isinstance(found, Coefficients)
    assert found == pytest.approx(wanted)
    assert coefficients(step, schedule, alpha=1.0) == pytest.approx([w / 10 for w in wanted])


@pytest.mark.parametrize("schedule", [0.0, -1.0])
def test_a_schedule_has_a_length(schedule):
    with pytest.raises(ValueError, match="schedule"):
        coefficients(1, schedule)


def test_total_weighs_the_terms():
    terms = Terms(torch.tensor(2.0), torch.tensor(3.0), torch.tensor(5.0))
    assert total(Coefficients(0.1, 10.0), terms) == pytest.approx(80.2)
    assert total(Coefficients(10.0, 0.0), terms) == 20
    assert total(Coefficients(1.0, 10.0), terms, 0.5, 2.0) == 131
    assert total(Coefficients(0.0, 1.0), terms, separate_weight=0.0) == 3
    # None: the two were divided by the tokens of both.
    assert total(Coefficients(0.0, 1.0), terms, separate_weight=None) == 8


def test_states_of_other_shapes_are_refused():
    one, two = states([1, 0], [0, 1]), states([1, 0], [0, 1]).repeat(2, 1, 1)
    for wrong in (
        lambda: erase(two, one),  # would broadcast
        lambda: retain(two, one),
        lambda: separate(two, torch.ones(1, 2)),
        lambda: masked_mean(torch.ones(2, 2), masks(1, 1)),
        lambda: centroid(one, torch.ones(1, 2)),  # not a mask
    ):
        with pytest.raises(TypeCheckError):
            wrong()


def test_a_random_direction_stands_for_the_centroid_as_long_and_on_its_side():
    centre = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
    found = random_centroid(centre, seed=3, layer=9)
    assert torch.allclose(found.norm(dim=-1), centre.norm(dim=-1))
    assert ((found * centre).sum(dim=-1) > 0).all()
    direction = random_direction(64, seed=3, layer=9)
    along = (found @ direction).abs() / found.norm(dim=-1)
    assert torch.allclose(along, torch.ones(5))
    assert torch.equal(random_centroid(centre, seed=3, layer=9), found)
    for seed, layer in ((4, 9), (3, 19)):
        assert (random_direction(64, seed, layer) @ direction).abs() < 0.5


# What must not change them


@st.composite
def batches(draw):
    """Defended and reference states and a mask with at least one token an item."""
    generator = torch.Generator().manual_seed(draw(SEEDS))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(2, 8))
    reference = torch.randn(shape, generator=generator)
    state = reference + torch.randn(shape, generator=generator)
    mask = torch.rand(shape[:2], generator=generator) < 0.6
    mask[:, draw(st.integers(0, shape[1] - 1))] = True
    return state, reference, mask


def all_terms(state, reference, mask):
    """Every function's mean over the mask; the centroids are of the reference itself."""
    centre = centroid(reference, mask)
    return {
        "erase": masked_mean(erase(state, reference), mask),
        "separate": masked_mean(separate(state, centre), mask),
        "relative": masked_mean(retain(state, reference), mask),
        "absolute": masked_mean(retain(state, reference, "absolute"), mask),
    }


def same(found, wanted):
    return all(torch.allclose(found[k], wanted[k], rtol=1e-4, atol=1e-5) for k in wanted)


@unhurried
@given(batches())
def test_terms_keep_their_bounds(drawn):
    state, reference, mask = drawn
    assert ((erase(state, reference) >= 0) & (erase(state, reference) <= 1 + 1e-5)).all()
    centre = centroid(reference, mask)
    assert (centre.norm(dim=-1) <= 1 + 1e-5).all()
    away = separate(state, centre)
    assert ((away >= 0) & (away <= centre.norm(dim=-1, keepdim=True) + 1e-5)).all()
    assert (retain(state, reference) >= 0).all()


@unhurried
@given(batches(), SEEDS)
def test_a_rotation_of_both_models_states_changes_nothing(drawn, seed):
    state, reference, mask = drawn
    dim = state.shape[-1]
    noise = torch.randn(dim, dim, generator=torch.Generator().manual_seed(seed))
    rotation = torch.linalg.qr(noise).Q
    assert same(
        all_terms(state @ rotation, reference @ rotation, mask), all_terms(state, reference, mask)
    )


@unhurried
@given(batches(), st.floats(0.01, 100))
def test_a_common_scale_changes_the_absolute_distance_alone(drawn, scale):
    state, reference, mask = drawn
    wanted = all_terms(state, reference, mask)
    wanted["absolute"] = scale * wanted["absolute"]
    assert same(all_terms(scale * state, scale * reference, mask), wanted)


@unhurried
@given(batches(), st.randoms())
def test_the_order_of_items_and_tokens_changes_nothing(drawn, shuffler):
    state, reference, mask = drawn
    items, tokens = list(range(state.shape[0])), list(range(state.shape[1]))
    shuffler.shuffle(items)
    shuffler.shuffle(tokens)
    moved = [each[items][:, tokens] for each in drawn]
    assert same(all_terms(*moved), all_terms(state, reference, mask))


@unhurried
@given(batches(), st.integers(0, 4), st.integers(0, 4), SEEDS)
def test_padding_changes_nothing_on_either_side(drawn, left, right, seed):
    state, reference, mask = drawn
    size, _, dim = state.shape
    noise = torch.randn(4, size, left + right, dim, generator=torch.Generator().manual_seed(seed))

    def pad(each, filling):
        return torch.cat([filling[:, :left], each, filling[:, left:]], dim=1)

    padded = (
        pad(state, 100 * noise[0]),
        pad(reference, noise[1]),
        pad(mask, torch.zeros(size, left + right, dtype=torch.bool)),
    )
    assert same(all_terms(*padded), all_terms(state, reference, mask))


# The official step

LAYER_COUNT = 4  # as the official code cuts the model: the highest target entry and one more
TARGETS = (2, 3)  # entries of hidden_states: decoder layers 1 and 2
WINDOW = 16
VOCABULARY = range(97)  # all that is asked of a tokenizer here is how many tokens it has


def text(seed, length):
    return random.Random(seed).choices(VOCABULARY, k=length)


# Of all lengths; of the third and the sixth, the windows cut parts off.
ITEMS = [
    Item(text(1, 5), text(2, 13), text(3, 21)),
    Item(text(4, 7), text(5, 4), text(4, 7) + text(6, 12), boundary=True),
    Item(text(7, 20), text(8, 30), text(9, 40)),
    Item(text(10, 3), text(11, 1), text(10, 3) + text(12, 2), boundary=True),
    Item(text(13, 16), text(14, 16), text(15, 32)),
    Item(text(16, 18), text(17, 9), text(16, 18) + text(18, 20), boundary=True),
]
MIXES = {
    "mixed": ITEMS,
    "harmful": [item for item in ITEMS if not item.boundary],
    "boundary": [item for item in ITEMS if item.boundary],
}


def with_adapter(at_init):
    """A tiny model with a LoRA on all linear modules of its layers, B zero or random."""
    model = tiny_model(VOCABULARY, num_hidden_layers=LAYER_COUNT)
    lora = LoraConfig(r=4, lora_alpha=4, lora_dropout=0.0, target_modules="all-linear")
    model = get_peft_model(model, lora)
    if not at_init:
        torch.manual_seed(1)
        for parameter in adapter(model).values():
            nn.init.normal_(parameter, std=0.2)
    return model


def adapter(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def gradients(model, loss):
    """Of every LoRA matrix; zeros where the loss does not reach it."""
    parameters = adapter(model)
    if not loss.requires_grad:  # a term that the batch has no item of
        return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    found = torch.autograd.grad(
        loss, list(parameters.values()), retain_graph=True, allow_unused=True
    )
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


@pytest.fixture(scope="module")
def defended():
    return with_adapter(at_init=False)


@pytest.fixture(scope="module")
def untrained():
    return with_adapter(at_init=True)


def official(model, items, step=1, **options):
    return official_step(
        model, items, step, **{"targets": TARGETS, "window": WINDOW, "schedule": 300.0, **options}
    )


def states_after_each_layer(model, ids, attention):
    kept = {}
    with watch_layers(model, range(LAYER_COUNT), kept.__setitem__):
        model(input_ids=ids, attention_mask=attention, use_cache=False)
    return kept


def with_xb_lite(model, items, step):
    """The official loss and its terms by ``xb_lite.losses``.

    One forward pass of each model over all texts, padded on the right to the longest.
    """
    n, boundary = len(items), torch.tensor([item.boundary for item in items])
    requests = [list(item.request)[:WINDOW] for item in items]
    rows = [r + list(i.response)[:WINDOW] for r, i in zip(requests, items, strict=True)]
    rows += [list(item.retain)[: 2 * WINDOW] for item in items]
    ids = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    place = torch.arange(ids.shape[1])
    real = place < torch.tensor([len(row) for row in rows])[:, None]
    request = place < torch.tensor([len(row) for row in requests])[:, None]
    to_erase = real[:n] & ~boundary[:, None]
    to_separate = request & boundary[:, None]

    state = states_after_each_layer(model, ids, real.long())
    with torch.no_grad(), model.disable_adapter():
        reference = states_after_each_layer(model, ids, real.long())

    norm, top = model.get_base_model().model.norm, LAYER_COUNT - 1
    drift = [(state[layer], reference[layer]) for layer in range(top)]
    drift.append((norm(state[top]), norm(reference[top])))
    # The embeddings are one entry more, of zeros.
    positions = float((LAYER_COUNT + 1) * n * 2 * WINDOW)
    of_retain = sum(
        masked_mean(retain(now[n:], before[n:], "absolute"), real[n:], positions)
        for now, before in drift
    )

    count = len(TARGETS) * (to_erase.sum() + to_separate.sum())
    of_erase, of_separate = torch.zeros(()), torch.zeros(())
    for layer in (entry - 1 for entry in TARGETS):
        now, before = state[layer], reference[layer]
        away = separate(now[:n], centroid(before[n:], real[n:]))
        of_erase = of_erase + masked_mean(erase(now[:n], before[:n]), to_erase, count)
        of_separate = of_separate + masked_mean(away, to_separate, count)
    terms = Terms(of_retain, of_erase, of_separate)
    return total(coefficients(step, 300.0), terms, separate_weight=None), *terms


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("step", [1, 150, 400])
def test_equal_to_the_official_step(defended, mix, step):
    wanted = official(defended, MIXES[mix], step)
    found = with_xb_lite(defended, MIXES[mix], step)
    assert min(wanted.retain, wanted.xb) > 0.05
    pairs = zip(found, (wanted.loss, wanted.retain, wanted.erase, wanted.separate), strict=True)
    for mine, theirs in pairs:
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=0)
        mine, theirs = gradients(defended, mine), gradients(defended, theirs)
        for name, gradient in theirs.items():
            assert (mine[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_the_official_step_weighs_its_terms_by_the_schedule(defended):
    for step, p in ((1, 1 / 300), (150, 0.5), (400, 1.0)):
        found = official(defended, ITEMS, step)
        wanted = 10 * p * found.retain + 10 * (1 - p) * found.xb
        assert torch.allclose(found.loss, wanted)
        assert torch.allclose(found.xb, found.erase + found.separate)
        assert min(found.erase, found.separate) > 0


def test_official_batches_are_windows():
    cpu = torch.device("cpu")
    ids, mask = batch([[1, 2, 3, 4], [5]], 3, 9, "left", cpu)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 5]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = batch([[1, 2, 3, 4], [5]], 3, 9, "right", cpu)
    assert ids.tolist() == [[1, 2, 3], [5, 9, 9]] and mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_before_training_all_is_to_erase_and_nothing_to_retain(untrained):
    found = official(untrained, ITEMS)
    assert found.retain == 0 and found.separate > 0
    only_harmful = official(untrained, MIXES["harmful"])
    assert torch.allclose(only_harmful.xb, torch.ones(())) and only_harmful.separate == 0


def test_erase_gives_an_untrained_adapter_no_gradient_and_separate_does(untrained):
    found = official(untrained, ITEMS)

    def largest(loss):
        return max(gradient.abs().max() for gradient in gradients(untrained, loss).values())

    assert largest(found.retain) == 0
    assert largest(found.separate) > 1e-3
    assert largest(found.erase) < 1e-4 * largest(found.separate)
    _, _, alone, _ = with_xb_lite(untrained, ITEMS, 1)
    assert largest(alone) < 1e-4 * largest(found.separate)


def test_the_official_step_never_reads_the_refusal(defended):
    """Of a boundary item only the request counts, and no request token sees what follows it."""
    first, *others = [
        official(defended, [Item(i.request, refusal, i.retain, True) for i in MIXES["boundary"]])
        for refusal in (text(20, 3), text(21, 9), text(22, 30))
    ]
    wanted = gradients(defended, first.loss)
    for other in others:
        assert torch.equal(other.loss, first.loss)
        found = gradients(defended, other.loss)
        assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_the_official_xb_loss_does_not_train_the_last_layer_kept(defended):
    """The highest target entry is the output of the layer below it."""
    found = official(defended, ITEMS)
    last = f".layers.{LAYER_COUNT - 1}."
    for name, gradient in gradients(defended, found.xb).items():
        assert (gradient == 0).all() == (last in name), name
    assert all((gradient != 0).any() for gradient in gradients(defended, found.retain).values())


def test_the_official_retain_loss_counts_padding(defended):
    items = [Item(i.request[:8], i.response[:8], i.retain[:16], i.boundary) for i in ITEMS]
    narrow, wide = (official(defended, items, window=window) for window in (8, 16))
    assert torch.allclose(narrow.retain, 2 * wide.retain, rtol=1e-4)
    assert torch.allclose(narrow.xb, wide.xb, rtol=1e-4)
