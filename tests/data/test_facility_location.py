from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.data import Selection, facility_location
from counterpoise.data._facility_location import METRICS, pairwise_distances

OPTIMIZERS = ("lazy", "naive", "stochastic")


def rows(n: int = 40, h: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, h, generator=torch.Generator().manual_seed(seed))


def value(distances: np.ndarray, picks: list[int]) -> float:
    return float((distances.max() - distances)[:, picks].max(axis=1).sum())


def plain_greedy(distances: np.ndarray, budget: int) -> list[int]:
    picks: list[int] = []
    for _ in range(budget):
        others = [j for j in range(len(distances)) if j not in picks]
        picks.append(max(others, key=lambda j: (round(value(distances, [*picks, j]), 9), -j)))
    return picks


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("optimizer", ["lazy", "naive"])
def test_picks_are_those_of_a_plain_greedy_search(metric: str, optimizer: str) -> None:
    for seed in range(4):
        x = rows(seed=seed).double()
        distances = pairwise_distances(x, metric).numpy()
        found = facility_location(x, 12, metric, optimizer)
        assert found.indices.tolist() == plain_greedy(distances, 12)
        assert float(found.gains.sum()) == pytest.approx(value(distances, found.indices.tolist()), rel=1e-12)
        assert (found.gains.diff() <= 1e-9).all(), "gains only fall"


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_greedy_reaches_its_share_of_the_best(optimizer: str) -> None:
    distances = pairwise_distances(rows(9), "l1").numpy()
    best = max(value(distances, list(picks)) for picks in itertools.combinations(range(9), 3))
    found = facility_location(distances, 3, "precomputed", optimizer)
    assert value(distances, found.indices.tolist()) >= (1 - 1 / np.e) * best


@pytest.mark.parametrize("metric", METRICS)
def test_distances(metric: str) -> None:
    x = rows(5).double()
    distances = pairwise_distances(x, metric)
    i, j = 1, 3
    expected = {
        "l1": (x[i] - x[j]).abs().sum(),
        "euclidean": (x[i] - x[j]).norm(),
        "cosine": 1 - torch.nn.functional.cosine_similarity(x[i], x[j], dim=0),
    }[metric]
    torch.testing.assert_close(distances[i, j], expected)
    assert torch.equal(distances.diagonal(), torch.zeros(5, dtype=torch.float64)) and torch.equal(distances, distances.T)


def test_cosine_of_zeros_and_of_huge_rows() -> None:
    x = torch.tensor([[0.0, 0.0], [1e30, 0.0], [-1e-30, 0.0]])
    torch.testing.assert_close(pairwise_distances(x, "cosine"), torch.tensor([[1.0, 1, 1], [1, 0, 2], [1, 2, 0]]))
    assert facility_location(torch.zeros(4, 2), 2, "cosine").indices.tolist() == [0, 1]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("optimizer", ["lazy", "naive"])
def test_rows_that_are_equal_are_picked_from_the_first(metric: str, optimizer: str) -> None:
    found = facility_location(torch.full((50, 7), 0.3), 5, metric, optimizer)
    assert found.indices.tolist() == [0, 1, 2, 3, 4]
    assert found.gains.tolist() == [0.0] * 5
    assert found.cluster_sizes.tolist() == [46, 1, 1, 1, 1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("n", "budget"), [(1, 1), (2, 1), (6, 6)])
def test_small_pools_and_whole_pools(optimizer: str, n: int, budget: int) -> None:
    found = facility_location(rows(n), budget, optimizer=optimizer)
    assert len(set(found.indices.tolist())) == len(found) == budget
    assert int(found.cluster_sizes.sum()) == n
    if n == budget:
        assert found.cluster_sizes.tolist() == [1] * n


def test_clusters_are_of_the_closest_pick() -> None:
    x = rows(60)
    found = facility_location(x, 7, "euclidean")
    nearest = torch.cdist(x.double(), x[found.indices].double()).argmin(dim=1)
    assert found.cluster_sizes.tolist() == torch.bincount(nearest, minlength=7).tolist()


def test_stochastic_picks_follow_the_seed_and_are_nearly_as_good() -> None:
    x = rows(200)
    greedy = float(facility_location(x, 20).gains.sum())
    found = [facility_location(x, 20, optimizer="stochastic", generator=seed) for seed in (0, 0, 1)]
    assert found[0].indices.tolist() == found[1].indices.tolist() != found[2].indices.tolist()
    assert all(0.9 * greedy < float(one.gains.sum()) <= greedy * (1 + 1e-9) for one in found)
    one_by_generator = facility_location(x, 20, optimizer="stochastic", generator=torch.Generator().manual_seed(3))
    assert len(one_by_generator) == 20


def test_arrays_half_precision_and_inputs_are_left_alone() -> None:
    x = rows()
    expected = facility_location(x, 5).indices.tolist()
    assert facility_location(x.numpy(), 5).indices.tolist() == expected
    assert facility_location(x.double().tolist(), 5).indices.tolist() == expected
    half = x.bfloat16()
    assert facility_location(half, 5).indices.tolist() == facility_location(half.float(), 5).indices.tolist()
    distances = pairwise_distances(x, "l1")
    before = distances.clone()
    assert facility_location(distances, 5, "precomputed", "naive").indices.tolist() == expected
    assert torch.equal(distances, before)
    assert not facility_location(x.requires_grad_(), 5).gains.requires_grad


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_not_picked(optimizer: str, bad: float) -> None:
    x = rows(12)
    good = [i for i in range(12) if i not in (2, 9)]
    x[2, 1] = x[9, 0] = bad
    with pytest.warns(UserWarning, match=r"not finite are not picked: 2, 9\."):
        found = facility_location(x, 10, optimizer=optimizer)
    assert sorted(found.indices.tolist()) == good
    with pytest.raises(InputError, match="budget: got 11; expected at most 10"):
        facility_location(x, 11, optimizer=optimizer)


def test_distances_to_a_row_that_is_not_finite() -> None:
    distances = pairwise_distances(rows(6), "l1")
    distances[4] = distances[:, 4] = float("nan")
    with pytest.warns(UserWarning, match="not picked: 4"):
        assert 4 not in facility_location(distances, 5, "precomputed").indices.tolist()
    distances[0, 1] = float("nan")
    with pytest.warns(UserWarning), pytest.raises(InputError, match="features: got distances up to nan"):
        facility_location(distances, 3, "precomputed")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"budget": 0}, "budget: got 0; expected an integer in [1, 40]"),
        ({"budget": 41}, "budget: got 41"),
        ({"budget": 2.0}, "budget: got 2.0; expected an integer"),
        ({"metric": "l2"}, "metric: got 'l2'; expected one of l1, euclidean, cosine, precomputed"),
        ({"metric": "precomputed"}, "features: got shape (40, 6); expected a square matrix"),
        ({"optimizer": "lasy"}, "Did you mean 'lazy'?"),
        ({"features": torch.zeros(3)}, "features: got torch.float32 of shape (3,)"),
        ({"features": torch.zeros(0, 3)}, "of shape (0, 3)"),
        ({"features": torch.zeros(3, 3, dtype=torch.complex64)}, "torch.complex64"),
        ({"features": [["a"]]}, "expected a tensor or an array of numbers"),
        ({"features": torch.tensor([[3e38, 3e38], [-3e38, -3e38]])}, "Scale the features down"),
        ({"optimizer": "stochastic", "generator": -1}, "generator: got -1"),
    ],
)
def test_bad_input(arguments: dict[str, object], said: str) -> None:
    given = {"features": rows(), "budget": 1} | arguments
    with pytest.raises(InputError) as caught:
        facility_location(**given)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_a_selection_says_what_it_is() -> None:
    found = facility_location(torch.tensor([[0.0], [1.0], [9.0]]), 2)
    assert isinstance(found, Selection) and repr(found) == "Selection(2 of 3, value 26)"
