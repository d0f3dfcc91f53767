from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise._errors import InputError
from counterpoise.data import CoresetBatchSampler, MiniBatchCoreset, allocate_budget, facility_location

SIZES = [700, 300, 60, 30]


def pool(seed: int = 0, counts: tuple[int, ...] = (20, 12, 3, 1), d: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    sources = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    sources = sources[torch.randperm(len(sources), generator=rng)]
    return torch.randn(len(sources), d, generator=rng), sources


def test_small_sources_are_whole_and_others_get_their_share() -> None:
    for seed in range(5):
        features, sources = pool(seed)
        chosen = MiniBatchCoreset(18, SIZES)(features, sources)
        assert len(set(chosen.tolist())) == 18 and chosen.dtype == torch.int64
        counts = torch.bincount(sources[chosen], minlength=4).tolist()
        assert counts == [*allocate_budget([20, 12], 14).tolist(), 3, 1]
        assert sources[chosen[:4]].min() >= 2, "those kept come first"


def test_without_history_it_is_facility_location_of_each_source() -> None:
    features, sources = pool()
    chosen = MiniBatchCoreset(16, keep_small=None, normalize=None)(features, sources)
    expected = []
    for q, share in enumerate(allocate_budget([20, 12, 3, 1], 16).tolist()):
        members = (sources == q).nonzero().squeeze(1)
        if share:
            expected += members[facility_location(features[members], share).indices].tolist()
    assert chosen.tolist() == expected
    all_alike = MiniBatchCoreset(16, keep_small=None, normalize=None, per_source=False)(features, sources)
    assert all_alike.tolist() == facility_location(features, 16).indices.tolist()


def test_steps_are_those_that_adam_makes_with_one_example_alone() -> None:
    """Over several steps: every u_i, and the history that goes on with the mean of what was picked."""
    coreset = MiniBatchCoreset(6, keep_small=None, per_source=False)
    m = v = torch.zeros(10, dtype=torch.float64)
    for t in range(1, 5):
        g, sources = pool(t)
        g = g.double()
        m_i, v_i = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        u = (m_i / (1 - 0.9**t)) / ((v_i / (1 - 0.999**t)).sqrt() + 1e-8)
        chosen = coreset(g, sources)
        assert chosen.tolist() == facility_location(u, 6).indices.tolist()
        m, v = m_i[chosen].mean(dim=0), v_i[chosen].mean(dim=0)
        torch.testing.assert_close(coreset.state_dict()["m"], m)
        torch.testing.assert_close(coreset.state_dict()["v"], v)
        assert coreset.state_dict()["step"] == t


def test_the_history_of_the_optimizer_gives_the_step_it_would_make() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    other = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([{"params": other.parameters()}, {"params": layer.parameters(), "betas": (0.8, 0.95), "eps": 1e-3}], lr=1)
    assert MiniBatchCoreset.history_of(optimizer, layer).m is None
    for _ in range(3):
        optimizer.zero_grad()
        other(layer(torch.randn(4, 3))).square().sum().backward()
        optimizer.step()
    history = MiniBatchCoreset.history_of(optimizer, layer)
    assert history.step == 3 and history.betas == (0.8, 0.95) and history.eps == 1e-3
    g = torch.randn(5, 8)
    u = history.direction(*history.after(g))
    for row in range(5):
        twin = copy.deepcopy(layer)
        again = torch.optim.Adam(twin.parameters(), lr=1.0, betas=(0.8, 0.95), eps=1e-3)
        for own, old in zip(twin.parameters(), layer.parameters(), strict=True):
            again.state[own] = {name: value.clone() for name, value in optimizer.state[old].items()}
        twin.weight.grad, twin.bias.grad = g[row, :6].reshape(2, 3).clone(), g[row, 6:].clone()
        before = torch.cat([p.detach().flatten().clone() for p in twin.parameters()])
        again.step()
        torch.testing.assert_close(before - torch.cat([p.detach().flatten() for p in twin.parameters()]), u[row], rtol=1e-4, atol=1e-5)
    coreset = MiniBatchCoreset(2, keep_small=None, normalize="optimizer")
    chosen = coreset(g, [0] * 5, history=history)
    assert chosen.tolist() == facility_location(u, 2).indices.tolist()
    assert coreset.state_dict()["m"] is None, "the history is the optimizer's"


def test_only_leading_coordinates_of_a_source_are_compared() -> None:
    features, sources = pool(counts=(30,))
    features[:, 7] += 100.0
    chosen = MiniBatchCoreset(5, keep_small=None, normalize=None, top_dims=1)(features, sources)
    assert chosen.tolist() == facility_location(features[:, 7:8], 5).indices.tolist()


def test_weights() -> None:
    features, sources = pool()
    coreset = MiniBatchCoreset(18, SIZES, weights="cluster")
    coreset(features, sources)
    weights = coreset.example_weights
    assert weights is not None and weights.mean() == pytest.approx(1.0)
    counts = weights * len(sources) / 18
    assert torch.allclose(counts, counts.round(), atol=1e-4) and counts[:4].round().tolist() == [1, 1, 1, 1]
    assert counts.sum() == pytest.approx(len(sources), rel=1e-5)
    uniform = MiniBatchCoreset(18, SIZES)
    uniform(features, sources)
    assert uniform.example_weights is not None and uniform.example_weights.tolist() == [1.0] * 18


def test_more_small_examples_than_the_budget() -> None:
    features, sources = pool(counts=(5, 0, 30, 2))
    drawn = [MiniBatchCoreset(8, SIZES, generator=seed)(features, sources) for seed in (0, 0, 1, 2, 3)]
    assert torch.equal(drawn[0], drawn[1]) and not all(torch.equal(drawn[0], other) for other in drawn[2:])
    for chosen in drawn:
        assert len(set(chosen.tolist())) == 8
        assert set(sources[chosen].tolist()) == {2, 3}, "one of every small source first"
    coreset = MiniBatchCoreset(8, SIZES)
    assert not torch.equal(coreset(features, sources), coreset(features, sources)), "another draw for every pool"
    one = MiniBatchCoreset(1, keep_small={2, 3})(features, sources)
    assert sources[one].item() in (2, 3)


@pytest.mark.parametrize("metric", ["l1", "euclidean", "cosine"])
def test_edges(metric: str) -> None:
    features, sources = pool()
    whole = MiniBatchCoreset(36, SIZES, metric=metric)(features, sources)
    assert sorted(whole.tolist()) == list(range(36))
    assert MiniBatchCoreset(1, keep_small=None, metric=metric)(torch.ones(1, 1), [0]).tolist() == [0]
    alike = MiniBatchCoreset(3, keep_small=None, metric=metric)(torch.ones(9, 4), torch.zeros(9, dtype=torch.int64))
    assert alike.tolist() == [0, 1, 2]
    kept_only = MiniBatchCoreset(4, SIZES, metric=metric)
    assert set(sources[kept_only(features, sources)].tolist()) == {2, 3}
    assert kept_only.state_dict()["m"] is None


def test_a_state_goes_on_where_it_was() -> None:
    first, second = (MiniBatchCoreset(12, SIZES, generator=5) for _ in range(2))
    for seed in range(3):
        first(*pool(seed))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    crowded = pool(9, counts=(5, 0, 30, 2))
    for features, sources in (pool(3), crowded, pool(4)):
        assert torch.equal(first(features, sources), second(features, sources))
    with pytest.raises(InputError, match="state: got no pools"):
        second.load_state_dict({name: value for name, value in first.state_dict().items() if name != "pools"})
    with pytest.raises(InputError, match=r"state\['step'\]: got -1"):
        second.load_state_dict(first.state_dict() | {"step": -1})


def test_rows_that_are_not_finite() -> None:
    features, sources = pool()
    kept, other = (int((sources == q).nonzero()[0]) for q in (3, 0))
    features[kept] = float("nan")
    features[other, 0] = float("nan")
    coreset = MiniBatchCoreset(18, SIZES)
    with pytest.warns(UserWarning, match=rf"not finite are not picked: {other}\."):
        chosen = coreset(features, sources)
    assert kept in chosen.tolist() and other not in chosen.tolist()
    assert coreset.state_dict()["m"].isfinite().all()
    with pytest.raises(InputError, match=f"budget: got 36; expected at most 35, .* Not finite: {other}"):
        MiniBatchCoreset(36, SIZES)(features, sources)


def test_rows_whose_squares_overflow_do_not_stay_in_the_history() -> None:
    """Of an infinite average of squares every later step would be 0."""
    features, sources = pool()
    other = int((sources == 0).nonzero()[0])
    features[other, 0] = 1e30
    coreset = MiniBatchCoreset(18, SIZES)
    with pytest.warns(UserWarning, match=rf"not finite are not picked: {other}\."):
        chosen = coreset(features, sources)
    assert other not in chosen.tolist() and coreset.state_dict()["v"].isfinite().all()
    assert other in MiniBatchCoreset(18, SIZES, normalize=None)(features, sources).tolist()


def test_a_source_without_examples_is_none() -> None:
    features, sources = pool()
    with pytest.raises(InputError, match="sources: got '1'; expected sources with examples in source_sizes: 0, 2, 3"):
        MiniBatchCoreset(18, [700, 0, 60, 30])(features, sources)


def test_the_random_state_and_the_features_are_left_alone() -> None:
    features, sources = pool(counts=(5, 0, 30, 2))
    copied, before = features.clone(), torch.get_rng_state()
    MiniBatchCoreset(8, SIZES)(features, sources)
    MiniBatchCoreset(20, keep_small=None)(features, sources)
    assert torch.equal(features, copied) and torch.equal(before, torch.get_rng_state())


def test_half_precision_is_computed_in_float32() -> None:
    features, sources = pool()
    half = features.bfloat16()
    one, other = MiniBatchCoreset(18, SIZES), MiniBatchCoreset(18, SIZES)
    assert torch.equal(one(half, sources), other(half.float(), sources))
    assert one.state_dict()["m"].dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 0}, "budget: got 0; expected an integer >= 1"),
        ({"source_sizes": None}, "source_sizes: got None; expected the size of each source for keep_small='below-mean'"),
        ({"source_sizes": [3, -1]}, "source_sizes: got [3, -1]"),
        ({"keep_small": "below-men"}, "Did you mean 'below-mean'?"),
        ({"keep_small": {"web"}}, "keep_small: got {'web'}"),
        ({"keep_small": 3}, "keep_small: got 3"),
        ({"normalize": "sgd"}, "normalize: got 'sgd'"),
        ({"top_dims": 0}, "top_dims: got 0"),
        ({"metric": "precomputed"}, "metric: got 'precomputed'"),
        ({"weights": "size"}, "weights: got 'size'"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        MiniBatchCoreset(**({"budget": 4, "source_sizes": SIZES} | options))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": 37}, "budget: got 37; expected at most 36"),
        ({"features": torch.zeros(36)}, "features: got shape (36,) of torch.float32"),
        ({"features": torch.zeros(36, 2, dtype=torch.int64)}, "torch.int64"),
        ({"features": [[1.0]]}, "features: got 'list'"),
        ({"sources": torch.zeros(35, dtype=torch.int64)}, "sources: got 35 sources for 36 rows"),
        ({"sources": ["a"] * 36}, "Groups.from_labels"),
        ({"sources": torch.full((36,), 9)}, "sources: got '9'; expected sources with examples in source_sizes: 0, 1, 2, 3"),
        ({"normalize": "optimizer"}, "history: got None; expected that of the optimizer"),
    ],
)
def test_bad_pools(change: dict[str, Any], said: str) -> None:
    features, sources = pool()
    given = {"budget": 18, "features": features, "sources": sources, "normalize": "adam"} | change
    coreset = MiniBatchCoreset(given["budget"], SIZES, normalize=given["normalize"])
    with pytest.raises(InputError) as caught:
        coreset(given["features"], given["sources"])
    assert said in str(caught.value)


def test_a_history_that_does_not_fit() -> None:
    coreset = MiniBatchCoreset(18, SIZES)
    coreset(*pool())
    with pytest.raises(InputError, match="features: got 7 columns; expected 10"):
        coreset(*pool(d=7))
    layer = nn.Linear(2, 2)
    with pytest.raises(InputError, match="optimizer: got 'SGD'"):
        MiniBatchCoreset.history_of(torch.optim.SGD(layer.parameters(), lr=1.0), layer)
    with pytest.raises(InputError, match="layer: got parameters that the optimizer does not have"):
        MiniBatchCoreset.history_of(torch.optim.Adam(layer.parameters()), nn.Linear(2, 2))
    history = MiniBatchCoreset.history_of(torch.optim.Adam(layer.parameters()), layer)
    with pytest.raises(InputError, match="history: got AdamHistory"):
        coreset(*pool(), history=history)


# -- the sampler: what the battery does not see -----------------------------------------------------------------------------------------

LARGE = pool(3, counts=(70, 30, 6, 3))


def test_batches_of_a_sampler_are_choices_of_its_pools() -> None:
    features, sources = LARGE
    sampler = CoresetBatchSampler(features, sources, pool_size=20, budget=10, generator=1)
    assert sampler.small == {2, 3}
    batches = list(sampler)
    assert len(batches) == len(sampler) == 5
    assert CoresetBatchSampler(features, sources, 20, 10, source_sizes=[70, 300, 60, 300]).small == {0, 2}
    everything = CoresetBatchSampler(features, sources, pool_size=20, budget=20, generator=1)
    coreset = MiniBatchCoreset(10, [70, 30, 6, 3])
    for batch, whole in zip(batches, everything, strict=True):
        assert set(batch) < set(whole)
        small = {i for i in whole if int(sources[i]) in (2, 3)}
        assert small <= set(batch)
        rows = torch.tensor(sorted(whole))
        assert len(coreset(features[rows], sources[rows])) == len(batch)


def test_a_sampler_passes_over_rows_that_are_not_finite() -> None:
    features, sources = LARGE[0].clone(), LARGE[1]
    row = int((sources == 0).nonzero()[0])
    features[row] = float("nan")
    features[int((sources == 3).nonzero()[0])] = float("nan")  # kept by rule, whatever its features are
    with pytest.warns(UserWarning, match=rf"not finite are not picked: {row}\."):
        sampler = CoresetBatchSampler(features, sources, pool_size=20, budget=10)
    for _ in range(3):
        assert row not in np.concatenate(list(sampler))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool_size": 110}, "pool_size: got 110; expected an integer in [1, 109]"),
        ({"budget": 21}, "budget: got 21; expected an integer in [1, 20]"),
        ({"features": torch.zeros(5, 2)}, "features: got shape (5, 2) for 109 sources"),
        ({"sources": [0.5] * 109}, "sources: got float64"),
        ({"normalize": "optimizer"}, "A sampler knows no optimizer"),
        ({"weights": "cluster"}, "Batches are indices alone"),
        ({"source_size": [1]}, "options: got 'source_size'"),
        ({"num_replicas": 6, "rank": 0}, "num_replicas: got 6; expected at most 5"),
        ({"num_replicas": 2}, "expected both or neither"),
    ],
)
def test_bad_sampler(change: dict[str, Any], said: str) -> None:
    given = {"features": LARGE[0], "sources": LARGE[1], "pool_size": 20, "budget": 10} | change
    with pytest.raises(InputError) as caught:
        CoresetBatchSampler(**given)
    assert said in str(caught.value)
