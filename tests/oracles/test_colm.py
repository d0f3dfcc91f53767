"""Picks, cluster sizes, budgets and leading coordinates of the authors' code, which picks with submodlib's lazy greedy.

Exact ties may be broken in another way: then sets of picks may differ, but not their value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from counterpoise.data import MiniBatchCoreset, allocate_budget, facility_location
from counterpoise.data._coreset import leading_coordinates
from counterpoise.data._facility_location import pairwise_distances
from tests.oracles import oracle_files

Oracle = dict[str, Any]


@pytest.fixture(params=oracle_files("11"))
def oracle(request: pytest.FixtureRequest) -> Oracle:
    path: Path = request.param
    with np.load(path) as numbers:
        return {key: numbers[key] for key in numbers.files}


def metrics(oracle: Oracle) -> list[str]:
    found = [key.removeprefix("order_none_") for key in oracle if key.startswith("order_none_")]
    assert found
    return found


def value(similarity: np.ndarray, picks: np.ndarray) -> float:
    return float(similarity[:, picks].astype(np.float64).max(axis=1).sum())


def same_picks(similarity: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> bool:
    """The same set, or another one of the same value."""
    assert len(set(ours.tolist())) == len(ours) == len(theirs)
    assert value(similarity, ours) == pytest.approx(value(similarity, theirs), rel=1e-6)
    return set(ours.tolist()) == set(theirs.tolist())


def sizes(picks: np.ndarray, counts: np.ndarray) -> dict[int, int]:
    return dict(zip(picks.tolist(), np.rint(counts).astype(int).tolist(), strict=True))


def test_distances(oracle: Oracle) -> None:
    for metric in metrics(oracle):
        distances = pairwise_distances(torch.from_numpy(oracle["features"]), metric)
        # The authors' Euclidean distances come from a matrix product in float32, so that an example's distance to itself is not quite 0.
        error = np.abs((distances.max() - distances).numpy() - oracle[f"sim_{metric}"]) / float(distances.max())
        assert error[~np.eye(len(error), dtype=bool)].max() < 1e-5 and error.max() < (1e-6 if metric == "l1" else 1e-3)


@pytest.mark.parametrize("optimizer", ["lazy", "naive"])
def test_one_problem(oracle: Oracle, optimizer: str) -> None:
    budget = int(oracle["budget"])
    for metric in metrics(oracle):
        similarity, theirs = oracle[f"sim_{metric}"], oracle[f"order_none_{metric}"]
        for features, how in ((oracle["features"], metric), (similarity.max() - similarity, "precomputed")):
            found = facility_location(features, budget, how, optimizer)
            if same_picks(similarity, found.indices.numpy(), theirs):
                weights = oracle[f"weights_none_{metric}"]
                assert sizes(found.indices.numpy(), found.cluster_sizes.numpy()) == sizes(theirs, weights)
            if how == "precomputed":
                assert float(found.gains.sum()) == pytest.approx(value(similarity, theirs), rel=1e-6)


def test_one_problem_for_each_source(oracle: Oracle) -> None:
    budget, source = int(oracle["budget"]), oracle["source"]
    features = torch.from_numpy(oracle["features"])
    for metric in metrics(oracle):
        coreset = MiniBatchCoreset(budget, keep_small=None, normalize=None, top_dims=None, metric=metric, weights="cluster")
        picks = coreset(features, source).numpy()
        theirs, weights = oracle[f"order_{metric}"], oracle[f"weights_{metric}"]
        assert source[picks].tolist() == source[theirs].tolist()  # the same budgets, source after source
        for q in np.unique(source):
            members = np.flatnonzero(source == q)
            within = oracle[f"sim_{metric}"][np.ix_(members, members)]
            ours, other = (np.searchsorted(members, found[source[found] == q]) for found in (picks, theirs))
            if len(ours) and same_picks(within, ours, other):
                assert coreset.example_weights is not None
                counts = coreset.example_weights.numpy() * weights.sum() / budget  # ours have mean 1
                assert sizes(picks[source[picks] == q], counts[source[picks] == q]) == sizes(
                    theirs[source[theirs] == q], weights[source[theirs] == q]
                )


def test_budgets(oracle: Oracle) -> None:
    for counts, total, expected in zip(oracle["budget_counts"], oracle["budget_total"], oracle["budget_alloc"], strict=True):
        found = allocate_budget(counts, int(total)).numpy()
        assert found.sum() == total and (found <= counts).all()
        if (expected <= counts).all():  # the released rounding may ask a source for more than it has
            assert found.tolist() == expected.tolist()


def test_leading_coordinates(oracle: Oracle) -> None:
    features, source, masked = torch.from_numpy(oracle["features"]).double(), oracle["source"], oracle["masked"]
    for q in np.unique(source):
        found = leading_coordinates(features[source == q], int(oracle["mask_dim"]))
        np.testing.assert_allclose(found, masked[source == q], rtol=1e-12, atol=0)
