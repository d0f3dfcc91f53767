"""The metric over batches: as if all rows had come at once, in one process or several."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import distributed as dist

from counterpoise._errors import InputError
from counterpoise.metrics import CurveDecompositionMetric, auroc_auprc_decomposition

EXACT = {"rel": 0, "abs": 1e-12}


def rows(n=1000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, generator=generator) < 0.15).long()
    return torch.sigmoid(torch.randn(n, generator=generator) + 1.5 * y - 2), y


def filled(metric, scores, y, size=96, **more):
    for first in range(0, len(y), size):  # nothing where there are no rows
        metric.update(scores[first : first + size], y[first : first + size], **{k: v[first : first + size] for k, v in more.items()})
    return metric


def same(found, expected) -> None:
    assert (found.auroc, found.auprc, found.prevalence) == pytest.approx((expected.auroc, expected.auprc, expected.prevalence), **EXACT)


def test_batches_are_as_if_all_had_come_at_once() -> None:
    scores, y = rows()
    metric = filled(CurveDecompositionMetric(), scores, y)
    found, expected = metric.compute(), auroc_auprc_decomposition(y, scores)
    same(found, expected)
    assert np.array_equal(found.index, expected.index) and np.array_equal(found.auprc_loss, expected.auprc_loss)
    assert repr(metric) == "CurveDecompositionMetric(1,000 rows)"
    same(pickle.loads(pickle.dumps(metric)).compute(), expected)
    metric.reset()
    same(filled(metric, scores[:300], y[:300]).compute(), auroc_auprc_decomposition(y[:300], scores[:300]))


def test_groups_are_reported() -> None:
    scores, y = rows()
    ids = torch.arange(len(y)) % 3 - 1
    with pytest.raises(InputError, match="integer ids >= 0, or -1"):
        filled(CurveDecompositionMetric(), scores, y, groups=7 * ids)
    ids = torch.where(ids > 0, 7, ids)
    table = filled(CurveDecompositionMetric(), scores, y, groups=ids).compute().by_group
    assert table["group"].to_list() == ["0", "7", "(none)"]
    own = ids == 7
    assert table["auroc"].to_list()[1] == pytest.approx(auroc_auprc_decomposition(y[own], scores[own]).auroc, **EXACT)
    mixed = CurveDecompositionMetric()
    mixed.update(scores[:500], y[:500])
    mixed.update(scores[500:], y[500:], groups=torch.zeros(500, dtype=torch.int32))
    assert mixed.compute().by_group["rows"].to_list() == [500, 500]


@pytest.mark.parametrize("bins", [2, 10, 1000])
def test_bins_are_exact_for_rounded_scores(bins) -> None:
    scores, y = rows()
    found = filled(CurveDecompositionMetric(bins=bins), scores, y).compute()
    rounded = (scores.double() * bins).floor().clamp(max=bins - 1)
    expected = auroc_auprc_decomposition(y, rounded)
    same(found, expected)
    assert found.index.tolist() == sorted({int(k) for k in rounded[y == 1]})
    exact = auroc_auprc_decomposition(y, scores)
    of = [rounded[y == k].numpy() for k in (0, 1)]
    tied = (of[0][:, None] == of[1][None, :]).mean()
    assert abs(found.auroc - exact.auroc) <= tied / 2


def test_edges_of_the_range_belong_to_the_bins() -> None:
    metric = CurveDecompositionMetric(bins=4, range=(-2, 2))
    metric.update(torch.tensor([-2.0, 2.0, 1.0]), torch.tensor([0, 1, 1]))
    assert metric.compute().index.tolist() == [3]
    with pytest.raises(InputError, match=r"preds: got 2.5; expected scores in \[-2, 2\]"):
        metric.update(torch.tensor([2.5]), torch.tensor([1]))


@pytest.mark.parametrize("options", [{}, {"bins": 50}], ids=["exact", "bins"])
def test_merged(options) -> None:
    scores, y = rows()
    metrics = [filled(CurveDecompositionMetric(**options), scores[part], y[part]) for part in (slice(0, 400), slice(400, None))]
    metrics[0].merge(metrics[1])
    same(metrics[0].compute(), filled(CurveDecompositionMetric(**options), scores, y).compute())
    with pytest.raises(InputError, match="other: got bins=7"):
        metrics[0].merge(CurveDecompositionMetric(bins=7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_types_of_scores(dtype) -> None:
    scores, y = rows()
    scores = (8 * scores).to(dtype).requires_grad_(dtype.is_floating_point).reshape(100, 10)
    metric = filled(CurveDecompositionMetric(), scores, y.reshape(100, 10), size=7)
    same(metric.compute(), auroc_auprc_decomposition(y, scores.detach().double().reshape(-1)))


@pytest.mark.parametrize(
    ("preds", "target", "more", "message"),
    [
        ([0.1, 0.2], [0], {}, r"preds and target: got shapes \(2,\) and \(1,\)"),
        ([0.1, 0.2], [0, 2], {}, "target: got 2; expected 0 or 1"),
        ([0.1, float("nan")], [0, 1], {}, "preds: got 1 scores that are NaN"),
        ([0.1, 0.2], [0, 1], {"groups": [0]}, "groups: got torch.int64 of shape"),
        ([0.1, 0.2], [0, 1], {"groups": [0.0, 1.0]}, "groups: got torch.float32 of shape"),
    ],
)
def test_bad_batches(preds, target, more, message) -> None:
    with pytest.raises(InputError, match=message):
        CurveDecompositionMetric().update(preds, target, **more)


@pytest.mark.parametrize("options", [{}, {"bins": 50}], ids=["exact", "bins"])
def test_one_class_or_no_rows(options) -> None:
    metric = CurveDecompositionMetric(**options)
    with pytest.raises(InputError, match="compute: got no rows"):
        metric.compute()
    metric.update([0.1, 0.2], [0, 0])
    with pytest.raises(InputError, match="target: got 2 rows of one class; expected both classes"):
        metric.compute()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 1}, "bins: got 1"),
        ({"bins": 2.5}, "bins: got 2.5"),
        ({"range": (1, 0)}, r"range: got \(1, 0\)"),
        ({"range": (0, np.inf)}, "range"),
    ],
)
def test_bad_arguments(options, message) -> None:
    with pytest.raises(InputError, match=message):
        CurveDecompositionMetric(**options)


def test_groups_with_bins_are_refused() -> None:
    with pytest.raises(InputError, match="Leave out bins"):
        CurveDecompositionMetric(bins=5).update([0.1], [1], groups=[0])


def one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    scores, y = rows()
    ids = torch.arange(len(y)) % 2
    expected = auroc_auprc_decomposition(y, scores, groups=ids)
    for size in (700, len(y)):  # of different sizes, then one without a row
        own = slice(0, size) if rank == 0 else slice(size, None)
        exact, binned = CurveDecompositionMetric(), CurveDecompositionMetric(bins=64)
        filled(exact, scores[own], y[own], groups=ids[own])
        filled(binned, scores[own], y[own])
        found = exact.compute()
        same(found, expected)
        assert np.array_equal(found.index, expected.index) and found.by_group.equals(expected.by_group)
        same(binned.compute(), auroc_auprc_decomposition(y, (64 * scores.double()).floor()))
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_several_processes_agree_on_all_rows(tmp_path) -> None:
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
