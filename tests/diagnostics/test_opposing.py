"""Opposing groups: the toy model whose curvature is known, planted directions, and what is said about the groups."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from counterpoise._errors import InputError
from counterpoise.diagnostics import GradientSketch, LossTrajectory, opposing_groups, sharpness, sketch_gradients


def sketch_of(g, *, gramian=False, groups=None, names=("all",), index=None):
    m = len(g)
    return GradientSketch(
        losses=torch.ones(m).double(),
        groups=torch.zeros(m, dtype=torch.int64) if groups is None else groups,
        index=torch.arange(m) if index is None else index,
        group_names=names,
        norms_sq=g.double().square().sum(dim=1),
        S=None if gramian else g,
        gramian=g.double() @ g.double().T if gramian else None,
    )


def planted(m=400, P=30, size=4, strength=5.0, seed=0):
    """Noise, with ``size`` examples along e_0 and as many against it."""
    g = 0.3 * torch.randn(m, P, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    g[:size, 0] += strength
    g[size : 2 * size, 0] -= strength
    return g


# ---- the toy model ----------------------------------------------------------------------------------------------------------------------

A, P, BETA = 8.0, 0.05, 1.0  # strength of the outlying feature, probability of each of its signs, what the label follows


class Toy(nn.Module):
    """f = c (w . x): a two-layer linear network."""

    def __init__(self, w_o=0.05, c=0.5):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.3, w_o], dtype=torch.float64))
        self.c = nn.Parameter(torch.tensor(c, dtype=torch.float64))

    def forward(self, x):
        return self.c * (x @ self.w)


def half_squares(output, y):
    return 0.5 * (output - y) ** 2


def toy_data(m=1000, seed=0):
    rng = np.random.default_rng(seed)
    x = np.zeros((m, 2))
    x[:, 0] = rng.normal(size=m)
    outliers = rng.choice(m, size=int(2 * P * m), replace=False)
    x[outliers, 1] = A * np.where(np.arange(len(outliers)) % 2, 1, -1)
    y = BETA * x[:, 0] + 0.5 * rng.normal(size=m)
    return torch.tensor(x), torch.tensor(y)


def train(model, X, y, lr, steps, trajectory=None, every=20):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    w_o, lams = [], []
    for step in range(steps):
        losses = half_squares(model(X), y)
        lam = sharpness(model, half_squares, (X, y), iters=30).value if step % every == 0 else None
        if lam is not None:
            lams.append(lam)
        w_o.append(float(model.w.detach()[1]))
        if trajectory is not None:
            trajectory.update(losses, step, lr, sharpness=lam)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    return np.array(w_o), np.array(lams)


def test_the_toy_model_first_shrinks_the_useless_weight_while_its_sharpness_grows_with_c() -> None:
    X, y = toy_data()
    model = Toy()
    w_o, lams = train(model, X, y, lr=0.1, steps=200, every=199)
    assert abs(w_o[20]) < 0.3 * abs(w_o[0])
    c = float(model.c.detach())
    assert c > 0.6 and lams[1] > 1.5 * lams[0]
    # The feature's share of the squares is 2 p A^2, with the half of the squared loss; nothing else bends as much.
    assert lams[1] == pytest.approx(c**2 * 2 * P * A**2, rel=0.05)


def test_beyond_the_edge_the_toy_models_outliers_oscillate_and_are_found() -> None:
    X, y = toy_data()
    model = Toy()
    train(model, X, y, lr=0.1, steps=200, every=1000)
    lam = sharpness(model, half_squares, (X, y), iters=50).value
    trajectory = LossTrajectory()
    model.w.data[1] += 1e-3
    w_o, _ = train(model, X, y, lr=1.01 * 2 / lam, steps=60, trajectory=trajectory)
    jumps = np.sign(np.diff(w_o))
    assert (jumps[1:] == -jumps[:-1]).all()  # the weight jumps over its valley at every step
    assert trajectory.summary().startswith("Opposing groups")
    pair = opposing_groups(trajectory)[0]
    outliers = X[:, 1].numpy() != 0
    assert outliers[pair.positive].all() and outliers[pair.negative].all()
    # The sides are those who want the weight up and those who want it down: the sign of feature times residual.
    residual = (y - model(X)).detach().numpy()
    wants = np.sign(X[:, 1].numpy() * residual)
    up, down = (np.mean(wants[rows]) for rows in (pair.positive, pair.negative))
    assert abs(up) > 0.9 and abs(down) > 0.9 and up * down < 0
    assert pair.cancellation > 0.8 and pair.flip_rate == 1 and pair.lr_lambda_half == pytest.approx(1.0, abs=0.05) and pair.edge == 1
    # Far below the edge nothing is there to be found, and the summary says what that is worth.
    quiet, calm = LossTrajectory(), Toy()
    train(calm, X, y, lr=0.2 * 2 / lam, steps=60, trajectory=quiet)
    assert opposing_groups(quiet) == [] and "no evidence" in quiet.summary()


# ---- one point --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gramian", [False, True])
def test_a_planted_pair_is_found_with_its_numbers(gramian) -> None:
    g = planted()
    (pair,) = opposing_groups(sketch_of(g, gramian=gramian, index=torch.arange(400) + 1000))
    assert {frozenset(pair.positive.tolist()), frozenset(pair.negative.tolist())} == {
        frozenset(range(1000, 1004)),
        frozenset(range(1004, 1008)),
    }
    sigma_sq = torch.linalg.svdvals(g).square()
    assert pair.energy_share == pytest.approx(float(sigma_sq[0] / sigma_sq.sum()))
    a = (g @ torch.linalg.svd(g, full_matrices=False).Vh[0]).numpy()
    assert pair.cancellation == pytest.approx(1 - abs(a.sum()) / np.abs(a).sum())
    assert pair.step is None and math.isnan(pair.flip_rate) and math.isnan(pair.lr_lambda_half)
    assert "lr λ / 2 is unknown" in pair.summary()


def test_what_all_examples_share_is_no_opposing_pair() -> None:
    g = planted(strength=0.0)
    assert opposing_groups(sketch_of(g)) == []  # noise: no direction has the energy, or its tails are thin
    together = g + 3 * torch.nn.functional.one_hot(torch.tensor(1), 30)
    assert opposing_groups(sketch_of(together)) == []  # a direction with nearly all energy, along which nothing cancels
    assert len(opposing_groups(sketch_of(together), min_cancellation=0.0)) <= 1
    one_sided = planted()
    one_sided[:8, 0] = 5.0
    assert opposing_groups(sketch_of(one_sided)) == []
    half = torch.zeros(200, 3)
    half[:100, 0], half[100:, 0] = 1.0, -1.0
    assert opposing_groups(sketch_of(half)) == []  # cancels, but these are no outliers: everybody takes part


def test_several_pairs_come_strongest_first_and_no_more_than_asked_for() -> None:
    g = planted()
    g[20:24, 1] += 4.0
    g[24:28, 1] -= 4.0
    pairs = opposing_groups(sketch_of(g))
    assert [set(pair.to_frame()["index"]) for pair in pairs] == [set(range(8)), set(range(20, 28))]
    assert pairs[0].energy_share > pairs[1].energy_share
    assert len(opposing_groups(sketch_of(g), n_pairs=1)) == 1


def test_projection_and_gramian_of_a_network_agree() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        X, y = torch.randn(200, 8), torch.arange(200) % 2
        X[:6, 7] = 15.0  # the same feature, and both labels
        model = nn.Linear(8, 2)
        model.weight.data *= 0.01
    found = {}
    for gramian in (False, True):
        sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (X, y), gramian=gramian)
        (found[gramian], *_) = opposing_groups(sketch, k=0.03)
        assert set(found[gramian].label_counts["positive"]) | set(found[gramian].label_counts["negative"]) == {"0", "1"}
    for pair in found.values():
        assert set(pair.positive) | set(pair.negative) == set(range(6))
        assert all(len(counts) == 1 for counts in pair.label_counts.values())  # each side wants its own label
    assert found[False].energy_share == pytest.approx(found[True].energy_share, rel=0.2)


# ---- along a trajectory -----------------------------------------------------------------------------------------------------------------


def two_pairs():
    """0-1 against 2-3 in the first half, 10-11 against 12-13, less, in the second."""
    base = np.random.default_rng(0).random(100) + 1
    trajectory = LossTrajectory(index=np.arange(100) + 500)
    for step in range(60):
        tug = np.zeros(100)
        at, size = (0, 0.5) if step < 30 else (10, 0.4)
        tug[at : at + 2], tug[at + 2 : at + 4] = size, -size
        trajectory.update(base - 1e-4 * step + (-1) ** step * tug, step, lr=0.1, sharpness=20.0)
    return trajectory


def test_pairs_of_a_trajectory_are_distinct() -> None:
    pairs = opposing_groups(two_pairs(), k=0.02)
    assert set(pairs[0].to_frame()["index"]) == {500, 501, 502, 503}
    assert all(pair.flip_rate == 1 and pair.lr_lambda_half == pytest.approx(1) for pair in pairs)
    found = [frozenset(pair.to_frame()["index"]) for pair in pairs]
    assert len(set(found)) == len(found) <= 3
    assert "at step" in pairs[0].summary() and "oscillation starts at 1." in pairs[0].summary()


def test_a_few_who_carry_all_change_come_before_many_who_move_more() -> None:
    rng = np.random.default_rng(0)
    base = rng.random(200) + 1
    trajectory = LossTrajectory()
    for step in range(120):
        tug = np.zeros(200)
        if step < 6:  # everybody, and far
            tug[:] = np.where(np.arange(200) % 2, 1.0, -1.0) * (1 + 0.1 * rng.random(200))
        else:  # four, less far
            tug[7:9], tug[9:11] = 0.8, -0.8
        trajectory.update(base + (-1) ** step * tug, step, lr=0.1)
    assert trajectory.changes(0.01).volatile()[0] < 6
    first = opposing_groups(trajectory, k=0.01)[0]
    assert set(first.to_frame()["index"]) == {7, 8, 9, 10} and first.energy_share > 0.99


def test_nothing_that_moves_gives_an_empty_list() -> None:
    still = LossTrajectory()
    for step in range(5):
        still.update(np.ones(60), step, lr=0.1)
    assert opposing_groups(still) == []
    assert opposing_groups(sketch_of(torch.zeros(60, 4))) == [] and opposing_groups(sketch_of(torch.zeros(60, 4), gramian=True)) == []


# ---- who they are -----------------------------------------------------------------------------------------------------------------------


def pair_of_a_sketch():
    (pair,) = opposing_groups(sketch_of(planted()))
    return pair if 0 in pair.positive else type(pair)(pair.negative, pair.positive, pair.cancellation, pair.energy_share)


def test_tables_are_described_by_the_largest_standardized_differences() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 8))
    X[:4, 2] += 10.0
    X[4:8, 6] = -7.0
    labels = np.where(np.arange(400) < 4, "three", "four")
    for features in (X, torch.tensor(X), pl.DataFrame(X, schema=[f"x{j}" for j in range(8)])):
        pair = pair_of_a_sketch().describe(features, labels)
        frame = pair.contrast
        assert frame.height == 10 and frame.filter(pl.col("side") == "positive")["feature"][0] == "x2"
        top = frame.filter(pl.col("side") == "negative").row(0, named=True)
        assert top["feature"] == "x6"
        assert top["difference"] == pytest.approx((X[4:8, 6].mean() - X[8:, 6].mean()) / X[:, 6].std())
    assert pair.label_counts == {"positive": {"three": 4}, "negative": {"four": 4}}
    assert "three x 4" in pair.summary() and "x2 +" in pair.summary()


def test_images_are_described_by_their_mean_difference() -> None:
    images = np.zeros((400, 5, 5), dtype=np.float32)
    images[:4, 0, 0] = 1.0
    images[8:, 4, 4] = 0.5
    contrast = pair_of_a_sketch().describe(torch.from_numpy(images)).contrast
    assert contrast.shape == (2, 5, 5) and contrast.dtype == np.float32
    assert contrast[0, 0, 0] == 1 and contrast[1, 0, 0] == 0 and contrast[0, 4, 4] == contrast[1, 4, 4] == -0.5


# ---- bad input --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: opposing_groups(np.ones(100)), "source: got 'ndarray'; expected a LossTrajectory, or a GradientSketch"),
        (lambda: opposing_groups(sketch_of(torch.ones(49, 3))), "a sketch of 49 examples; expected at least 50"),
        (lambda: opposing_groups(LossTrajectory()), "0 recordings; expected at least 3"),
        (lambda: opposing_groups(GradientSketch(torch.ones(60), torch.zeros(60).long(), torch.arange(60), ("all",))), "rows per example"),
        (lambda: opposing_groups(sketch_of(torch.full((60, 3), float("nan")))), "not finite"),
        (lambda: opposing_groups(sketch_of(planted()), k=0.0), "k: got 0.0"),
        (lambda: opposing_groups(sketch_of(planted()), k=0.6), "k: got 0.6"),
        (lambda: opposing_groups(sketch_of(planted()), min_cancellation=1.5), "min_cancellation: got 1.5"),
        (lambda: opposing_groups(sketch_of(planted()), n_pairs=0), "n_pairs: got 0"),
        (lambda: pair_of_a_sketch().describe(np.ones((5, 2))), "5 rows; expected the whole data"),
        (lambda: pair_of_a_sketch().describe(np.ones(400)), "a table"),
        (lambda: pair_of_a_sketch().describe(np.full((400, 2), "a")), "Encode categories"),
        (lambda: pair_of_a_sketch().describe(labels=np.ones((400, 2))), "one label per example"),
    ],
)
def test_bad_input_is_one_sentence(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
