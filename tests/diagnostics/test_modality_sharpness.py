from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from counterpoise import Groups
from counterpoise._errors import InputError
from counterpoise.diagnostics import _modality_sharpness, modality_sharpness

N, D, TAU = 60, 6, 0.1
OF_Q = np.array(["text", "image"])[np.arange(N) % 2]
OF_T = np.array(["image", "audio", "video"])[np.arange(N) % 3]


def embeddings(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    query = torch.randn(N, D, generator=g, dtype=torch.float64)
    target = 2 * (query + torch.randn(N, D, generator=g, dtype=torch.float64))
    target[OF_T == "audio"] += 1  # a center of its own
    return query, target


def test_it_is_the_gradient_of_infonce() -> None:
    query, target = embeddings()
    report = modality_sharpness(query, target, (OF_Q, OF_T), temperature=TAU)
    assert report.pairs == tuple((q, t) for q in ("image", "text") for t in ("audio", "image", "video"))
    cosine = (F.normalize(query) @ F.normalize(target).T).requires_grad_()
    F.cross_entropy(cosine / TAU, torch.arange(N), reduction="sum").backward()
    size, logits, itself = cosine.grad.abs().numpy(), cosine.detach().numpy() / TAU, np.eye(N, dtype=bool)
    rank = 1 + (logits > logits.diagonal()[:, None]).sum(axis=1)
    for k, (q, t) in enumerate(report.pairs):
        block = np.outer(q == OF_Q, t == OF_T)
        assert report.gradient_share[k] == pytest.approx(size[block].sum() / size.sum(), rel=1e-10)
        assert report.logit_share[k] == pytest.approx(block.mean(), rel=1e-12)
        assert report.logit_sd[k] == pytest.approx(logits[block & ~itself].std(ddof=1), rel=1e-9)
        own = (q == OF_Q) & (t == OF_T)
        assert report.count[k] == own.sum() and report.mean_rank[k] == pytest.approx(rank[own].mean())
        a, b = F.normalize(query)[torch.from_numpy(q == OF_Q)], F.normalize(target)[torch.from_numpy(t == OF_T)]
        assert report.centroid_distance[k] == pytest.approx((a.mean(dim=0) - b.mean(dim=0)).norm().item(), rel=1e-10)
        one, other = torch.cov(a.T), torch.cov(b.T)
        assert report.covariance_gap[k] == pytest.approx(((one - other).norm() / (one.norm() + other.norm())).item(), rel=1e-10)
    assert report.gradient_share.sum() == pytest.approx(1) and report.logit_share.sum() == pytest.approx(1)


@pytest.mark.parametrize("gap", [10.0, 40.0, 300.0])
def test_own_targets_have_half_of_the_gradient_however_easy_they_are(gap: float) -> None:
    report = modality_sharpness(np.eye(4), np.eye(4), (["a", "b", "a", "b"], ["c", "c", "d", "d"]), temperature=1 / gap)
    # Pairs of one size, and every query has the gradient p of each of three negatives, and 3 p of its own target.
    assert report.gradient_share == pytest.approx([0.25] * 4, rel=1e-12)
    own = modality_sharpness(np.eye(2), np.eye(2), (["a", "b"], ["a", "b"]), temperature=1 / gap)
    assert own.gradient_share == pytest.approx([0.25] * 4, rel=1e-12)


def test_some_rows_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, target = embeddings()
    whole = modality_sharpness(query, target, (OF_Q, OF_T), temperature=TAU)
    monkeypatch.setattr(_modality_sharpness, "PAIRS_AT_ONCE", 7 * N)
    parts = modality_sharpness(query.numpy(), 3 * target, (Groups.from_labels(OF_Q, kind="modality"), OF_T.tolist()), temperature=TAU)
    for field in dataclasses.fields(whole)[1:]:
        np.testing.assert_allclose(getattr(parts, field.name), getattr(whole, field.name), rtol=1e-9)


def test_a_sharp_modality_shows() -> None:
    """Embeddings of one modality that crowd in a corner are flat among themselves; where they spread, logits do."""
    g = torch.Generator().manual_seed(0)
    items = torch.randn(200, 16, generator=g)
    narrow = torch.arange(200) < 100
    view = torch.where(narrow[:, None], 0.2 * items + 1, items)
    ids = np.where(narrow.numpy(), "narrow", "wide")
    report = modality_sharpness(view + 0.1 * torch.randn(200, 16, generator=g), view, (ids, None), temperature=0.05)
    spread = dict(zip(report.pairs, report.logit_sd, strict=True))
    assert spread["wide", "wide"] > 3 * spread["narrow", "narrow"]
    rank = dict(zip(report.pairs, report.mean_rank, strict=True))
    assert rank["wide", "wide"] < rank["narrow", "narrow"] and np.isnan(rank["narrow", "wide"])
    text = report.summary()
    assert "Sharpest is wide" in text and "temperatures per modality are worth a try" in text
    assert "narrow - narrow: " in text.splitlines()[0] and "Own targets rank worst for narrow - narrow" in text
    assert report.to_frame().columns[:3] == ["query", "target", "count"] and len(report.to_frame()) == 4
    assert report.plot().axes
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.count = None


def test_what_is_given_stays_as_it_is() -> None:
    query, target = (x.requires_grad_() for x in embeddings())
    before = query.detach().clone(), torch.get_rng_state()
    modality_sharpness(query, target, (OF_Q, OF_T))
    assert query.grad is None and torch.equal(query, before[0]) and torch.equal(torch.get_rng_state(), before[1])


def test_what_makes_no_sense_is_refused() -> None:
    query, target = embeddings()
    nan = query.clone()
    nan[4] = float("nan")
    both = (OF_Q, OF_T)
    for arguments, message in (
        ((query[:1], target[:1], (OF_Q[:1], OF_T[:1])), "query and target: got shapes"),
        ((query, target[:5], both), "query and target: got shapes"),
        ((query[0], target, both), "query: got shape"),
        ((nan, target, both), "query: got nan or inf in row 4"),
        ((query, np.array([["a"]]), both), "target: got an array of"),
        ((query, target, OF_Q), "modalities: got .ndarray.; expected a tuple"),
        ((query, target, (OF_Q[:5], OF_T)), "modalities: got 5 items for 60 embeddings"),
        ((query, target, ([None, *OF_Q[1:]], OF_T)), "modalities: got none in row 0"),
        ((query, target, both, 0.0), "temperature"),
        ((np.eye(2), np.eye(2), (["a", "b"], None), 1e-4), "temperature: got 0.0001; expected a larger one: own targets stand out so far"),
    ):
        with pytest.raises(InputError, match=message):
            modality_sharpness(*arguments)
