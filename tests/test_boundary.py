"""Numbers about kinds of hidden states, against distributions whose answers are known."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import roc_auc_score, silhouette_score

from xb_lite.boundary.angles import principal_angles
from xb_lite.boundary.displacements import difference_in_means, displacement, times_as_far
from xb_lite.boundary.matching import matched, word_counts, word_matched
from xb_lite.boundary.probes import _auc, _distances_to_planes, probe
from xb_lite.boundary.resampling import bootstrap, check_items, columns, deal, recentred, shuffle
from xb_lite.boundary.separability import published_scores, separation

FEW = {"repeats": 40, "draws": 200}
pytestmark = pytest.mark.usefixtures("one_thread")


def gaussians(n, means, scale=None, seed=0):
    """``n`` states around each mean, their kinds in the order harmful, boundary-safe, benign."""
    draw = np.random.default_rng(seed)
    dim = len(means[0])
    noise = draw.standard_normal((len(means), n, dim)) @ (np.eye(dim) if scale is None else scale)
    kinds = ["harmful", "boundary-safe", "benign"][: len(means)]
    return np.concatenate(noise + np.array(means)[:, None]), np.repeat(kinds, n).tolist()


def at(length, place=0, dim=6):
    return np.eye(dim)[place] * length


def twins(n, dim, seed, topic=1.0):
    """Harmful and boundary-safe items of the same distribution, in pairs that share a topic."""
    draw = np.random.default_rng(seed)
    states = draw.standard_normal((2 * n, dim))
    states += np.tile(topic * draw.standard_normal((n, dim)), (2, 1))
    return states, ["harmful"] * n + ["boundary-safe"] * n, [*range(n)] * 2


def about(estimate, wanted, tolerance):
    assert estimate.low <= wanted <= estimate.high, (estimate, wanted)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.value == pytest.approx(wanted, rel=tolerance)


def numbers(states, kinds, pairs, **sizes):
    """Every estimate about two kinds, by name."""
    of_probe = probe(states, kinds, pairs, **sizes)
    found = {"accuracy": of_probe.accuracy, "auc": of_probe.auc}
    return found | vars(separation(states, kinds, pairs, **sizes))


# Known distributions


def test_fisher_ratios_and_distance_of_gaussians():
    scale = np.diag([1.0, 2.0, 0.5, 0.5, 1.0, 1.5])
    shift = np.array([1.2, 0, 0, 0, 0.9, 0])
    found = separation(*gaussians(1500, [shift, 0 * shift], scale), **FEW)
    square, trace, direction = shift @ shift, (scale**2).sum(), shift / np.linalg.norm(shift)
    about(found.fisher_trace, square / (2 * trace), 0.08)
    about(found.fisher_direction, square / (2 * direction @ scale**2 @ direction), 0.1)
    about(found.distance, np.sqrt(square / trace), 0.04)
    for name in ("value", "low", "high"):
        wanted = np.sqrt(2 * getattr(found.fisher_trace, name))
        assert getattr(found.distance, name) == pytest.approx(wanted)


def test_a_probe_is_as_good_as_bayes():
    """Where the best plane does not stand upright on the line between the means."""
    scale = np.eye(6)
    scale[0, 1] = 1.5
    shift = at(1.5)
    bayes = np.sqrt(shift @ np.linalg.inv(scale.T @ scale) @ shift)
    found = probe(*gaussians(1500, [shift, 0 * shift], scale), **FEW)
    about(found.accuracy, norm.cdf(bayes / 2), 0.02)
    about(found.auc, norm.cdf(bayes / np.sqrt(2)), 0.02)
    upright = norm.cdf(shift[0] / 2 / np.sqrt((scale.T @ scale)[0, 0]))
    assert found.accuracy.value > upright + 0.02


def test_nothing_is_found_where_there_is_nothing():
    """In 100 data sets of identical kinds, intervals miss chance and p is at most 0.05 about 5
    times; 90 and 12 leave room for luck (p < 0.003) and for sizes as small as 20 pairs."""
    missed, significant = {}, {}
    for seed in range(100):
        found = numbers(*twins(20, 8, seed), repeats=39, draws=100, seed=seed)
        for name, number in found.items():
            wanted = 0.5 if name in ("accuracy", "auc") else 0
            missed.setdefault(name, []).append(not number.low <= wanted <= number.high)
            significant.setdefault(name, []).append(number.shuffled.p <= 0.05)
    assert len(missed) == 6
    assert max(map(sum, missed.values())) <= 10, {k: sum(v) for k, v in missed.items()}
    assert max(map(sum, significant.values())) <= 12, {k: sum(v) for k, v in significant.items()}


def test_noise_of_many_dimensions_is_not_a_distance():
    """20 pairs in 300 dimensions: the plain distance of the means is 0.3, the true one 0."""
    found = [separation(*twins(20, 300, seed), repeats=9, draws=60) for seed in range(10)]
    plain = 1 / 2 * 2 / 20 / 2
    trace, direction = ([vars(x)[f"fisher_{k}"] for x in found] for k in ("trace", "direction"))
    assert abs(np.mean([number.value for number in trace])) < plain / 5
    assert abs(np.mean([number.shuffled.value for number in trace])) < plain / 5
    # Along the difference of the means of the items themselves it would be above 1.
    assert abs(np.mean([number.value for number in direction])) < 0.05
    assert min(number.value for number in direction) < 0
    states, kinds = gaussians(20, [np.zeros(300)] * 3)
    found = published_scores(states, kinds, **FEW)
    assert found.separation_score.value < 0.5 * found.as_printed[0]
    assert found.separation_score.low == 0


def test_a_rotated_moved_and_rescaled_copy_gives_the_same():
    states, kinds, pairs = twins(40, 12, 0)
    states[:40, 0] += 1.5
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((12, 12)))[0]
    copy = 300 * states @ turn + 1000 * np.arange(12)
    ours, theirs = (numbers(x, kinds, pairs, **FEW) for x in (states, copy))
    ours["angle"], theirs["angle"] = (
        principal_angles(x, kinds, pairs, rank=3, **FEW)[2] for x in (states, copy)
    )
    for name, one in ours.items():
        other = theirs[name]
        for field in ("value", "low", "high"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), abs=1e-7), name
        assert one.shuffled.high == pytest.approx(other.shuffled.high, abs=1e-7), name
    margins = [probe(x, kinds, pairs, **FEW).margins for x in (states, copy)]
    assert np.allclose(*margins, atol=1e-7)
    moved = states + np.random.default_rng(2).standard_normal(states.shape)
    one = displacement(states, moved, kinds, pairs, **FEW)
    other = displacement(5 * states @ turn, 5 * moved @ turn, kinds, pairs, **FEW)
    for name in ("relative", "cosine", "along", "across"):
        assert np.allclose(getattr(one, name), getattr(other, name))


def test_half_and_single_precision_give_the_same_as_double():
    states, kinds = gaussians(100, [at(2), at(0)])
    states = states.astype(np.float16)
    half, single, double = (
        numbers(states.astype(dtype), kinds, None, **FEW)
        for dtype in (np.float16, np.float32, np.float64)
    )
    for name, wanted in double.items():
        assert half[name] == single[name]
        assert single[name].value == pytest.approx(wanted.value, rel=1e-4)


def test_kinds_of_unequal_number_count_alike():
    states, kinds = gaussians(400, [at(3), at(0)])
    kept = [*range(400), *range(400, 440)]
    found = probe(states[kept], [kinds[i] for i in kept], **FEW)
    assert abs(found.accuracy.value - norm.cdf(1.5)) < 0.05
    found = [probe(*gaussians(20, [at(3.5), at(0)], seed=seed), **FEW) for seed in range(5)]
    assert max(max(x.accuracy.high, x.auc.high) for x in found) == 1
    states[:] = np.random.default_rng(1).standard_normal(states.shape)
    found = probe(states[kept], [kinds[i] for i in kept], **FEW)
    assert found.accuracy.low < 0.5 < found.accuracy.high
    assert found.accuracy.shuffled.low < 0.5 < found.accuracy.shuffled.high


# The probe


@pytest.mark.parametrize(("place", "margin", "crossed"), [(0, -1, 0.16), (1, 0, 0.5), (2, 1, 0.84)])
def test_margin_of_the_third_kind(place, margin, crossed):
    """In units of the standard deviation across the plane, with the plane at 1 of 2."""
    states, kinds = gaussians(600, [at(2), at(place), at(0)])
    found = probe(states, kinds, other="benign", **FEW)
    about(found.boundary_crossed, crossed, 0.15)
    assert found.boundary_margin.low <= margin <= found.boundary_margin.high
    assert abs(found.boundary_margin.value - margin) < 0.1
    assert found.margins[600:1200].mean() == pytest.approx(found.boundary_margin.value)
    assert found.margins.shape == (1800,) and found.margins[:600].mean() > 0.8
    assert found.boundary_margin.n == 600 and found.accuracy.n == 1200


def test_the_third_kind_does_not_train_the_probe():
    states, kinds = gaussians(100, [at(2), at(0), at(0)], seed=1)
    states[200:, 0] *= 1000  # in what parts the other two
    found = probe(states, kinds, **FEW)
    about(found.accuracy, norm.cdf(1), 0.05)
    assert found.accuracy.n == 200 and abs(found.margins[200:]).max() > 100


def test_scores_are_distances_to_the_plane():
    states, kinds = gaussians(20, [at(2), at(0)])
    states = np.concatenate([states, np.zeros((1, 6)), np.eye(6)])
    train = np.arange(47) < 40
    sides = columns(np.array([*kinds, *["benign"] * 7]), np.arange(47), "boundary-safe", 2, 2, 0)
    scores = _distances_to_planes(states, sides, train, ~train)
    assert np.allclose(np.linalg.norm(scores[1:] - scores[0], axis=0), 1)
    middle = states[:40].reshape(2, 20, 6).mean((0, 1))
    assert scores[0, 0] == pytest.approx(-middle @ (scores[1:] - scores[0])[:, 0])


def test_samples_of_the_bootstrap_are_around_the_number():
    values = np.array([3.0, -1.0, 1.0, 1.5, 2.0, 1.0, 2.5])
    assert recentred(values, 2).tolist() == [3, -1, 1, 2.75, 3.25, 2.25, 3.75]
    states, kinds, pairs = twins(40, 100, 0)
    states[:40, 0] += 2.5
    found = probe(states, kinds, pairs, **FEW)  # few items: every sample does worse than these
    for number in (found.accuracy, found.auc, found.boundary_margin):
        assert number.high - number.value == pytest.approx(number.value - number.low, rel=0.5)


def test_no_margin_without_boundary_safe_items():
    states, kinds = gaussians(20, [at(2), at(0)])
    kinds = [kind.replace("boundary-safe", "benign") for kind in kinds]
    found = probe(states, kinds, other="benign", **FEW)
    assert found.boundary_margin is None and found.boundary_crossed is None


def test_what_a_pair_shares_is_not_learned():
    """Four copies of each of 30 states with a random kind: a probe that sees one knows the rest."""
    draw = np.random.default_rng(0)
    states = np.repeat(draw.standard_normal((30, 60)), 4, axis=0)
    states += 0.01 * draw.standard_normal(states.shape)
    kinds = np.repeat(draw.permutation(["harmful", "boundary-safe"] * 15), 4).tolist()
    assert probe(states, kinds, **FEW).accuracy.value > 0.95
    found = probe(states, kinds, np.repeat(np.arange(30), 4).tolist(), **FEW)
    assert found.accuracy.low < 0.5 < found.accuracy.high
    assert found.accuracy.high - found.accuracy.low > 0.2  # 30 things were seen, not 120
    assert found.accuracy.shuffled.low < 0.4 < 0.6 < found.accuracy.shuffled.high


def test_auc_is_that_of_scikit_learn_ties_and_weights_too():
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 8, (50, 3)).astype(float)
    one = draw.random((50, 3)) < 0.4
    weights = draw.integers(0, 4, (50, 3))
    wanted = [roc_auc_score(one[:, i], scores[:, i], sample_weight=weights[:, i]) for i in range(3)]
    assert np.allclose(_auc(scores, 1.0 * weights * one, 1.0 * weights * ~one), wanted)


# Distances and angles


def test_silhouette_is_that_of_scikit_learn():
    states, kinds = gaussians(400, [at(1), at(0)])  # more than a block of distances
    found = separation(states[:700], kinds[:700], **FEW).silhouette
    assert found.value == pytest.approx(silhouette_score(states[:700], kinds[:700]), abs=1e-9)
    assert found.low < found.value < found.high and found.shuffled.p < 0.05


def test_a_twin_is_no_neighbour():
    """Twins at the same place: with them as neighbours the silhouette would be below 0."""
    states, kinds, pairs = twins(30, 5, 0, topic=20)
    assert abs(separation(states, kinds, pairs, **FEW).silhouette.value) < 0.005
    assert separation(states, kinds, **FEW).silhouette.value < -0.01


def test_random_directions_separate_little():
    found = separation(*gaussians(300, [at(3, dim=100), at(0, dim=100)]), **FEW)
    assert found.fisher_direction.value > 3
    assert 0 <= found.fisher_direction.random.low < found.fisher_direction.random.high < 0.3
    assert found.fisher_direction.random.p == 1 / 41
    # Of |cos| ** 2 * 9 / 2, with a squared cosine of 1 / 100 in the mean and half that in median.
    assert 0.005 < found.fisher_direction.random.value < 0.05


@pytest.mark.parametrize("normalised", [True, False])
def test_published_scores_are_those_of_the_centroids(normalised):
    means = [at(8) + at(3, 1), at(8) + at(1, 2), at(8)]
    states, kinds = gaussians(300, means, scale=0.3 * np.eye(6))
    found = published_scores(states, kinds, normalised=normalised, **FEW)
    if normalised:
        states = states / np.linalg.norm(states, axis=1, keepdims=True)
    harmful, boundary, benign = states.reshape(3, 300, 6).mean(1)
    to_benign, to_harmful = (np.linalg.norm(boundary - x) for x in (benign, harmful))
    wanted = np.linalg.norm(benign - harmful), to_benign / to_harmful
    assert found.as_printed == pytest.approx(wanted)
    about(found.separation_score, wanted[0], 0.02)
    about(found.boundary_ratio, wanted[1], 0.02)
    assert found.separation_score.shuffled.high < wanted[0] / 3
    assert found.separation_score.n == 900
    if not normalised:
        assert wanted == pytest.approx((3, 1 / np.sqrt(10)), rel=0.05)


def test_the_boundary_ratio_of_twins_has_a_control_around_one():
    states, kinds, pairs = twins(50, 20, 1, topic=3)
    draw = np.random.default_rng(1)
    states[50:] += at(5, 1, 20)
    states = np.concatenate([states, np.sqrt(10) * draw.standard_normal((50, 20))])
    found = published_scores(
        states, kinds + ["benign"] * 50, pairs + [None] * 50, normalised=False, repeats=300
    )
    about(found.boundary_ratio, 1, 0.15)
    assert found.boundary_ratio.shuffled.value == pytest.approx(1, abs=0.05)


def test_a_ratio_to_no_distance_is_infinite():
    states, kinds, pairs = twins(30, 6, 0, topic=5)
    states[30:] = states[:30]
    states = np.concatenate([states, states[:30] + at(9)])
    found = published_scores(
        states, kinds + ["benign"] * 30, pairs + [None] * 30, normalised=False, **FEW
    )
    assert found.boundary_ratio.value == found.boundary_ratio.high == np.inf


def test_principal_angles_of_known_subspaces():
    """Two planes that share no direction: turned by 20 degrees in one, by 70 in the other."""
    draw = np.random.default_rng(0)
    turns = np.radians([20, 70])
    spread = draw.standard_normal((2, 60, 2)) * [5, 3]
    states = np.zeros((2, 60, 8))
    states[0, :, [0, 1]] = spread[0].T
    states[1] += (spread[1] * np.cos(turns)) @ np.eye(8)[:2]
    states[1] += (spread[1] * np.sin(turns)) @ np.eye(8)[2:4]
    states[0] += 100  # about its own mean
    kinds = ["harmful"] * 60 + ["benign"] * 60
    found = principal_angles(states.reshape(120, 8), kinds, other="benign", rank=2, **FEW)
    assert [angle.value for angle in found] == pytest.approx([20, 70], abs=1e-4)
    assert all(angle.low <= angle.value <= angle.high for angle in found)
    # Mixtures of both share their subspace, but for the noise of 60 items.
    assert found[1].shuffled.high < 45 and found[1].shuffled.p == 1 / 41
    same = principal_angles(np.tile(states[0], (2, 1)), kinds, other="benign", rank=2, **FEW)
    assert max(angle.value for angle in same) < 1e-3


def test_angles_of_noise_are_like_their_control():
    states, kinds, pairs = twins(100, 10, 0)
    for angle in principal_angles(states, kinds, pairs, rank=3, **FEW):
        assert angle.shuffled.p > 0.025
        assert 0 <= angle.low < angle.value < angle.high <= 90


# Displacement


def test_displacement_along_and_across():
    draw = np.random.default_rng(0)
    states, kinds = gaussians(50, [at(4), at(0), at(2)])
    states += at(30, 3)
    direction = difference_in_means(states, kinds)
    by_kind = states.reshape(3, 50, 6).mean(1)
    assert np.allclose(direction, by_kind[0] - by_kind[1])
    unit = direction / np.linalg.norm(direction)
    sideways = draw.standard_normal(states.shape)
    sideways -= np.outer(sideways @ unit, unit)
    steps = draw.standard_normal(150)
    found = displacement(states, states + np.outer(steps, unit) + sideways, kinds, **FEW)
    norms = np.linalg.norm(states, axis=1)
    assert np.allclose(found.along, steps / norms)
    assert np.allclose(found.across, np.linalg.norm(sideways, axis=1) / norms)
    assert np.allclose(found.relative**2, found.along**2 + found.across**2)
    after = states + np.outer(steps, unit) + sideways
    wanted = (states * after).sum(1) / norms / np.linalg.norm(after, axis=1)
    assert np.allclose(found.cosine, wanted)
    assert list(found.of) == ["harmful", "boundary-safe", "benign"]
    for i, moves in enumerate(found.of.values()):
        for name in ("relative", "cosine", "along", "across"):
            wanted = getattr(found, name)[50 * i : 50 * i + 50].mean()
            number = getattr(moves, name)
            assert number.value == pytest.approx(wanted) and number.n == 50
            assert number.low < wanted < number.high


def test_the_harmful_direction_is_from_the_other_kind_asked_for():
    states, kinds = gaussians(50, [at(9), at(0, 1) - at(9, 1), at(0)], scale=0.01 * np.eye(6))
    found = displacement(states + at(5, 2), states + at(5, 2) + at(1), kinds, other="benign", **FEW)
    assert np.allclose(found.along, found.relative, atol=1e-3)
    found = displacement(states + at(5, 2), states + at(5, 2) + at(1), kinds, **FEW)
    assert np.allclose(found.along, found.relative / np.sqrt(2), atol=1e-3)


def test_a_move_along_a_random_direction_is_small():
    states, kinds = gaussians(50, [at(4, dim=200), at(0, dim=200)])
    states += at(30, 3, 200)
    found = displacement(states, states - at(5, dim=200), kinds, **FEW).of["harmful"].along
    assert found.value < -0.1 and found.random.p == 1 / 41
    assert 0 <= found.random.low < found.random.high < 0.05


def test_twice_as_far_is_twice():
    states, kinds, pairs = twins(60, 6, 0)
    states += at(20)
    draw = np.random.default_rng(1)
    # Items move very differently far, but each twice as far: the pairing takes that out.
    move = draw.standard_normal(states.shape) * draw.exponential(size=(120, 1))
    near, far = (displacement(states, states + k * move, kinds, pairs, **FEW) for k in (1, 2))
    found = times_as_far(far, near)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2)) and found.n == 60
    assert times_as_far(near, far, "harmful").value == pytest.approx(0.5)
    uneven = displacement(states, states + 2 * move[::-1], kinds, pairs, **FEW)
    found = times_as_far(uneven, near)
    assert found.low < 2 < found.high and found.high - found.low > 0.3
    wanted = [x.of["boundary-safe"].relative.value for x in (uneven, near)]
    assert found.value == pytest.approx(wanted[0] / wanted[1])


# Controls


def test_groups_are_never_split_and_every_fold_has_its_share():
    kinds = np.array(["harmful"] * 50 + ["boundary-safe"] * 40 + ["benign"] * 30, dtype=object)
    groups = np.array([*range(50), *range(40), *range(50, 80)])
    for seed in range(20):
        fold = deal(kinds, groups, ["harmful", "boundary-safe"], seed)
        assert all(len(set(fold[groups == group])) == 1 for group in range(80))
        for kind, share in (("harmful", 10), ("boundary-safe", 8), ("benign", 6)):
            counts = np.bincount(fold[kinds == kind])
            assert len(counts) == 5 and max(abs(counts - share)) <= 1
    assert not np.array_equal(*(deal(kinds, groups, ["harmful"] * 2, seed) for seed in (0, 1)))


def test_the_bootstrap_draws_whole_groups_of_every_sort():
    kinds = np.array(["harmful"] * 10 + ["benign"] * 8, dtype=object)
    groups = np.array([*range(10), *range(4), *range(10, 14)])
    weights = bootstrap(kinds, groups, 300, 0)
    assert (weights[:, :4] == weights[:, 10:14]).all()
    for members in (slice(0, 4), slice(4, 10), slice(14, 18)):
        assert (weights[:, members].sum(1) == members.stop - members.start).all()
    assert abs(weights.mean(0) - 1).max() < 0.25 and weights.var(0).min() > 0.5


def test_shuffled_labels_keep_what_holds_groups_together():
    kinds = np.array(["harmful"] * 10 + ["benign"] * 8 + ["harmful"] * 2, dtype=object)
    groups = np.array([*range(10), *range(4), 10, 10, 11, 12, 13, 13])
    labels = shuffle(kinds, groups, 200, 0)
    assert (labels[:, 0] == (kinds == "harmful")).all()
    assert (labels[:4] != labels[10:14]).all()  # twins swap
    assert (labels[:4, 1:].mean(1) > 0.3).all() and (labels[:4, 1:].mean(1) < 0.7).all()
    split = np.array([labels[14] != labels[15], labels[18] != labels[19]])
    assert (split.sum(0) <= 1).all() and split.mean() < 0.2  # for the number of harmful items
    alone = [*range(4, 10), *range(14, 20)]
    assert (labels[alone].sum(0) == 8).all()
    assert (labels[alone, 1:].mean(1) > 0.55).all() and (labels[alone, 1:].mean(1) < 0.8).all()


@pytest.mark.parametrize("size", [2, 3])
def test_shuffled_labels_are_as_many_where_one_kind_alone_has_groups(size):
    kinds = np.array(["harmful"] * 20 + ["benign"] * 20, dtype=object)
    groups = np.array([*(np.arange(20) // size), *range(20, 40)])
    labels = shuffle(kinds, groups, 200, 0)
    assert (labels.sum(0) == 20).all()
    assert (labels[:, 1:].mean(1) > 0.35).all() and (labels[:, 1:].mean(1) < 0.65).all()
    cut = [labels[groups == group].sum(0) % size > 0 for group in range(20 // size)]
    assert np.mean(cut) < 0.1


def test_matched_items_are_alike_and_as_many_as_can_be():
    kinds = ["harmful", "benign"] * 4 + ["boundary-safe"]
    lengths = [5, 5, 9, 8, 20, 7, 21, 40, 5]
    assert matched(lengths, kinds, "benign", tolerance=2).tolist() == [0, 1, 2, 5]
    assert matched(lengths, kinds, "benign", tolerance=21).tolist() == list(range(8))
    draw = np.random.default_rng(0)
    lengths = np.concatenate([draw.integers(10, 30, 200), draw.integers(15, 40, 200)])
    kinds = ["harmful"] * 200 + ["boundary-safe"] * 200
    kept = matched(lengths, kinds, "boundary-safe")
    half = len(kept) // 2
    assert (kept[:half] < 200).all() and (kept[half:] >= 200).all() and half > 100
    assert sorted(lengths[kept[:half]]) == sorted(lengths[kept[half:]])
    counts = [np.bincount(side, minlength=40) for side in (lengths[:200], lengths[200:])]
    assert half == np.minimum(*counts).sum()


def test_a_probe_of_length_finds_nothing_on_a_length_matched_subset():
    draw = np.random.default_rng(0)
    lengths = np.concatenate([draw.integers(10, 30, 200), draw.integers(15, 40, 200)])
    kinds = ["harmful"] * 200 + ["boundary-safe"] * 200
    states = np.stack([lengths, draw.standard_normal(400)], axis=1).astype(float)
    kept = matched(lengths, kinds, "boundary-safe")
    assert probe(states, kinds, **FEW).accuracy.low > 0.6
    found = probe(states[kept], [kinds[i] for i in kept], **FEW).accuracy
    assert found.low < 0.5 < found.high and found.shuffled.p > 0.05


def test_words_tell_topics_apart_but_not_on_a_word_matched_subset():
    draw = np.random.default_rng(0)
    harmful = draw.random(400) < 0.5
    bomb = draw.random(400) < np.where(harmful, 0.8, 0.3)
    filler = [" ".join(draw.choice([f"w{i}" for i in range(30)], 6)) for _ in range(400)]
    prompts = [f"{'Bomb' if b else 'cake'}: {rest}" for b, rest in zip(bomb, filler, strict=True)]
    kinds = np.where(harmful, "harmful", "boundary-safe").tolist()
    assert probe(word_counts(prompts), kinds, **FEW).accuracy.low > 0.6
    kept = word_matched(prompts, kinds)
    kinds, bomb = [kinds[i] for i in kept], bomb[kept]
    assert kinds.count("harmful") == kinds.count("boundary-safe") > 60
    share = [bomb[np.array(kinds) == kind].mean() for kind in ("harmful", "boundary-safe")]
    assert abs(share[0] - share[1]) < 0.1
    found = probe(word_counts([prompts[i] for i in kept]), kinds, **FEW).accuracy
    assert found.low < 0.5


def test_word_counts(monkeypatch):
    found = word_counts(["Don't stop, DON'T", "don't go", "Go on", "stop"])
    assert found.tolist() == [[1, 0, 1], [1, 1, 0], [0, 1, 0], [0, 0, 1]]  # don't, go, stop
    monkeypatch.setattr("xb_lite.boundary.matching.WORDS", 1)
    assert word_counts(["a b", "a b", "a c"]).tolist() == [[1], [1], [1]]


def test_the_same_seed_gives_the_same_and_nothing_is_changed_in_place():
    states, kinds, pairs = twins(20, 6, 0)
    before = states.copy()
    first, second, other = (numbers(states, kinds, pairs, seed=s, **FEW) for s in (1, 1, 2))
    assert first == second != other
    principal_angles(states, kinds, pairs, rank=2, **FEW)
    published_scores(states, ["harmful", "boundary-safe", "benign", "benign"] * 10, **FEW)
    displacement(states, states + 1, kinds, pairs, **FEW)
    assert (states == before).all()


# Bad input

STATES, KINDS = gaussians(12, [at(1), at(0), at(2)])
ANALYSES = {
    "probe": probe,
    "separation": separation,
    "scores": published_scores,
    "angles": lambda *args, **options: principal_angles(*args, rank=2, **options),
    "displacement": lambda x, *args, **options: displacement(x, x, *args, **options),
}
NOT_FINITE, NO_NORM = STATES.copy(), STATES.copy()
NOT_FINITE[4, 1], NO_NORM[3] = np.nan, 0


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((STATES[0], KINDS), r"states of shape \(6,\), with 36 kinds: every row of"),
        ((STATES[1:], KINDS), r"shape \(35, 6\), with 36 kinds"),
        ((STATES, KINDS, [1] * 35), "with 36 kinds and 35 pairs"),
        ((STATES, KINDS[1:] + ["safe"]), "kind 'safe' is not one of harmful, boundary-safe, ben"),
        ((STATES, ["harmful"] * 35 + ["boundary-safe"]), "1 boundary-safe items: at least 2 are"),
        ((STATES, ["boundary-safe"] * 18 + ["benign"] * 18), "0 harmful items: at least 2"),
        ((NOT_FINITE, KINDS), "1 states are not finite, the first of item 4: leave such"),
        ((np.ones((36, 6)), KINDS), "all states are the same: take them after a layer"),
    ],
)
def test_bad_input_is_named(name, args, message):
    with pytest.raises(ValueError, match=message):
        ANALYSES[name](*args)


@pytest.mark.parametrize("name", ANALYSES)
def test_tensors_are_taken_as_arrays_are(name):
    """As ``hidden_states`` returns them."""
    found, wanted = (ANALYSES[name](x, KINDS, **FEW) for x in (torch.tensor(STATES), STATES))
    assert str(found) == str(wanted)
    with pytest.raises(ValueError, match="1 states are not finite, the first of item 4"):
        ANALYSES[name](torch.tensor(NOT_FINITE), KINDS)


@pytest.mark.parametrize(("name", "count"), list(product(ANALYSES, ("repeats", "draws"))))
def test_no_repeats_or_draws(name, count):
    with pytest.raises(ValueError, match=f"0 {count}: at least 1 is needed"):
        ANALYSES[name](STATES, KINDS, **{count: 0})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probe(STATES, KINDS, other="harmful"), "harmful and harmful: the kinds to comp"),
        (lambda: probe(STATES, KINDS, [0] * 4 + [None] * 32), "9 harmful items or pairs: at least"),
        (lambda: principal_angles(STATES, KINDS, rank=5), "rank 5 of 6 dimensions and 12 items"),
        (lambda: principal_angles(STATES, KINDS, rank=0), "rank 0 of 6"),
        (lambda: principal_angles(STATES * [1, 1, 0, 0, 0, 0] + 3, KINDS, rank=3),
            "harmful items vary in fewer than 3 directions"),
        (lambda: published_scores(NO_NORM, KINDS), "item 3 has a state of norm 0"),
        (lambda: displacement(STATES, STATES[1:], KINDS), r"\(36, 6\) before and \(35, 6\) after"),
        (lambda: displacement(STATES, NOT_FINITE, KINDS), "1 states are not finite, the first of"),
        (lambda: displacement(NO_NORM, STATES, KINDS), "item 3 has a state of norm 0"),
        (lambda: displacement(STATES, NO_NORM, KINDS), "item 3 has a state of norm 0"),
        (lambda: displacement(np.tile(STATES[:18], (2, 1)), STATES, ["harmful"] * 18
            + ["boundary-safe"] * 18), "harmful and boundary-safe items have the same mean"),
        (lambda: matched([1] * 3, KINDS, "benign"), r"values of shape \(3,\) for 36 kinds"),
        (lambda: matched([np.inf] * 36, KINDS, "benign"), "one finite number an item"),
        (lambda: matched(range(36), KINDS, "benign"), "0 couples of harmful and benign items wit"),
        (lambda: matched([1] * 36, KINDS, "safe"), "kind 'safe' is not one of"),
        (lambda: word_counts(["one", "two"]), "no word is in two prompts"),
    ],
)  # fmt: skip
def test_bad_requests_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_ratio_is_of_the_same_items_that_moved():
    moved = displacement(STATES, STATES + 1, KINDS, **FEW)
    with pytest.raises(ValueError, match="two displacements of the same items, boundary-safe amo"):
        times_as_far(moved, displacement(STATES[:24], STATES[:24] + 1, KINDS[:24], **FEW))
    with pytest.raises(ValueError, match="moves no boundary-safe item"):
        times_as_far(moved, displacement(STATES, STATES, KINDS, **FEW))
    with pytest.raises(ValueError, match="the same items, safe among"):
        times_as_far(moved, moved, "safe")


def test_the_fewest_items_get_an_answer():
    kept = [*range(10), *range(12, 22)]
    found = numbers(STATES[kept], [KINDS[i] for i in kept], None, **FEW)
    assert all(np.isfinite([x.value, x.low, x.high]).all() for x in found.values())
    kept = [0, 1, 12, 13, 24, 25]
    states, kinds = STATES[kept], [KINDS[i] for i in kept]
    assert published_scores(states, kinds, **FEW).separation_score.n == 6
    assert displacement(states, states + 1, kinds, **FEW).of["harmful"].across.n == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("analysis", [probe, separation])
def test_items_that_repeat_one_another_have_no_scatter_to_measure_by(analysis, dtype):
    draw = np.random.default_rng(0)
    kinds = ["harmful"] * 12 + ["boundary-safe"] * 12
    two = draw.standard_normal((2, 50)).astype(dtype) + 7
    with pytest.raises(ValueError, match="do not vary within their kinds"):
        analysis(np.repeat(two, 12, axis=0), kinds, **FEW)
    twin = draw.standard_normal((12, 50)).astype(dtype)
    twin[:, 0] = 0
    states = np.concatenate([twin + at(3, dim=50).astype(dtype), twin])
    with pytest.raises(ValueError, match="leave out items that repeat others"):
        analysis(states, kinds, [*range(12)] * 2, **FEW)


def test_a_sample_of_the_bootstrap_without_scatter_is_named():
    states = np.repeat(np.eye(6)[:2], 12, axis=0)
    states[0, 5] = 1  # the one item that differs is not in every sample
    kinds = ["harmful"] * 12 + ["boundary-safe"] * 12
    with pytest.raises(ValueError, match="in a sample of the bootstrap: leave out"):
        separation(states, kinds, **FEW)


def test_items_of_other_kinds_are_left_out():
    items = check_items(STATES, KINDS, [*range(12)] * 3, ["harmful", "benign"])
    assert items.states.shape == (24, 6) and items.groups.tolist() == [*range(12)] * 2
    assert abs(items.states.mean(0)).max() < 1e-12
