from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from counterpoise._errors import InputError
from counterpoise.diagnostics import ModalityReport, modality_statistics
from counterpoise.gradients import arl_weights, fusion_weights


def logits(modalities: int = 3, rows: int = 11, columns: int = 4, seed: int = 0) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [(1 + 2 * m) * torch.randn(rows, columns, generator=source, dtype=torch.float64) for m in range(modalities)]


def by_hand(parts: list[Tensor], clamp: float = 0.3) -> tuple[list[float], list[float], list[float]]:
    """Row by row, from the formulas."""
    a, H = [], []
    for part in parts:
        n = len(part)
        a.append(sum(abs(float(value)) for value in part.flatten()) / n)
        entropy = 0.0
        for row in part.tolist():
            e = [math.exp(value - max(row)) for value in row]
            entropy += sum(-(value / sum(e)) * math.log(value / sum(e) + 1e-16) for value in e)
        H.append(entropy / n)
    e = [value / sum(H) for value in H]
    inverse = [1 / max(share, clamp) for share in e]
    return [value / sum(a) for value in a], e, [value / sum(inverse) for value in inverse]


@pytest.mark.parametrize("modalities", [2, 3, 6])
@pytest.mark.parametrize("clamp", [0.3, 0.05])
def test_statistics_are_the_formulas(modalities: int, clamp: float) -> None:
    parts = logits(modalities)
    report = modality_statistics(parts, clamp)
    for found, wanted in zip((report.dependence, report.entropy_share, report.inverse_variance_share), by_hand(parts, clamp), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert report.rows.tolist() == [11] * modalities and report.errors is None and len(report) == modalities


@pytest.mark.parametrize("modalities", [2, 3, 6])
def test_weights_are_the_formula(modalities: int) -> None:
    d, _, q = by_hand(logits(modalities))
    score = [8.0 * q[m] * sum(d[j] for j in range(modalities) if j != m) for m in range(modalities)]
    wanted = [math.exp(value) / sum(map(math.exp, score)) for value in score]
    np.testing.assert_allclose(arl_weights(torch.tensor(d).double(), torch.tensor(q).double()), wanted, rtol=1e-6)
    torch.testing.assert_close(
        arl_weights(torch.tensor(d), torch.tensor(q), temperature=0.0), torch.full((modalities,), 1 / modalities), rtol=1e-6, atol=0
    )


def test_a_modality_that_is_listened_to_too_little_is_boosted() -> None:
    for d, q in (([0.5, 0.5], [0.7, 0.3]), ([0.2, 0.8], [0.5, 0.5]), ([0.6, 0.4], [0.9, 0.1])):
        k = arl_weights(torch.tensor(d), torch.tensor(q))
        assert bool(k[0] > k[1]) == (d[0] / d[1] < q[0] / q[1])


def test_saturated_and_silent_modalities_have_equal_shares() -> None:
    saturated = 1e4 * torch.eye(3)
    report = modality_statistics([saturated, -saturated[:, [1, 2, 0]].neg()])
    assert report.entropy_share.tolist() == report.inverse_variance_share.tolist() == [0.5, 0.5]
    silent = modality_statistics([torch.zeros(2, 3)] * 3)
    torch.testing.assert_close(silent.dependence, torch.full((3,), 1 / 3))
    assert torch.isfinite(silent.weights).all()
    assert torch.isfinite(modality_statistics([part[:1] for part in logits()]).weights).all()
    mixed = modality_statistics([saturated, torch.zeros(3, 3)])
    torch.testing.assert_close(mixed.inverse_variance_share, torch.tensor([1 / 0.3, 1.0]) / (1 / 0.3 + 1.0))


def test_absent_rows_do_not_count() -> None:
    parts = logits(rows=20)
    mask = torch.rand(20, 3, generator=torch.Generator().manual_seed(1)) < 0.6
    spoiled = [torch.where(mask[:, [m]], part, torch.tensor(float("nan")).double()) for m, part in enumerate(parts)]
    report = modality_statistics(spoiled, mask=mask)
    for m, part in enumerate(parts):
        alone = modality_statistics([part[mask[:, m]]] * 2)
        torch.testing.assert_close(report.entropy[m], alone.entropy[0])
    assert report.rows.tolist() == mask.sum(dim=0).tolist()

    mask[:, 1] = False
    report, without = modality_statistics(spoiled, mask=mask), modality_statistics([spoiled[0], spoiled[2]], mask=mask[:, [0, 2]])
    for name in ("dependence", "entropy_share", "inverse_variance_share", "weights"):
        found = getattr(report, name)
        assert found[1] == 0
        torch.testing.assert_close(found[[0, 2]], getattr(without, name))
    assert "In no row: modality 1." in report.summary()
    nobody = modality_statistics(parts, mask=torch.zeros(20, 3, dtype=torch.bool))
    assert nobody.weights.tolist() == [0, 0, 0]


def test_errors_say_what_to_listen_to() -> None:
    parts, target = logits(2, rows=200), torch.arange(200) % 4
    report = modality_statistics(parts, target=target)
    error = [(part.softmax(dim=1) - torch.nn.functional.one_hot(target, 4)).flatten() for part in parts]
    for m in range(2):
        for k in range(2):
            torch.testing.assert_close(report.errors[m, k], error[m] @ error[k] / 200)
    # Of all weighted means of the two predictions, the one with these weights has the smallest Brier score.
    best = fusion_weights(report.errors)[0]
    scores = [float((w * error[0] + (1 - w) * error[1]).square().mean()) for w in (best - 0.01, best, best + 0.01)]
    assert scores[1] == min(scores)
    half = torch.arange(200) < 100
    apart = modality_statistics(parts, target=target, mask=torch.stack([half, ~half], dim=1))
    assert bool(apart.errors[0, 1].isnan()) and "Smallest error" not in apart.summary()


def test_who_is_sure_and_wrong_is_named() -> None:
    sure = 5.0 * torch.eye(3)
    report = modality_statistics({"loud": sure, "quiet": 0.1 * sure}, target=torch.tensor([1, 2, 0]))
    assert "loud is the surest, quiet has the smallest error" in report.summary()
    assert "surest" not in modality_statistics([sure, 0.1 * sure], target=torch.arange(3)).summary()
    frame = report.to_frame()
    assert frame.columns == ["name", "rows", "dependence", "entropy", "share", "inverse_variance_share", "weight", "error"]
    assert frame["name"].to_list() == ["loud", "quiet"] and "loud=0.909" in repr(report)


def test_regression_has_the_variance_of_residuals_and_says_so() -> None:
    source = torch.Generator().manual_seed(0)
    y = 1000 + torch.randn(400, 1, generator=source)
    parts = [y + 5 + sd * torch.randn(400, 1, generator=source) for sd in (1.0, 2.0)]
    report = modality_statistics(parts, target=y[:, 0])
    torch.testing.assert_close(report.entropy, torch.stack([(part - y).var(correction=0) for part in parts]), rtol=1e-4, atol=0)
    torch.testing.assert_close(report.errors.diagonal(), report.entropy, rtol=1e-4, atol=0)
    assert report.proxy == "residual variance" and "not in the paper" in report.summary()


def test_weights_of_a_sum_are_those_of_the_smallest_variance() -> None:
    source = torch.Generator().manual_seed(0)
    for m in (1, 2, 3, 6):
        root = torch.randn(m, m, generator=source, dtype=torch.float64)
        sigma = root @ root.T
        inverse = torch.linalg.inv(sigma).sum(dim=1)
        torch.testing.assert_close(fusion_weights(sigma), inverse / inverse.sum(), rtol=1e-6, atol=1e-8)
        v = sigma.diagonal()
        torch.testing.assert_close(fusion_weights(v), (1 / v) / (1 / v).sum())
        torch.testing.assert_close(fusion_weights(1e-12 * sigma), fusion_weights(sigma), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("sigma", "wanted"),
    [
        ([[1.0, 1.0], [1.0, 1.0]], [0.5, 0.5]),  # the same prediction twice
        ([[0.0, 0.0], [0.0, 2.0]], [1.0, 0.0]),  # one that never errs
        ([0.0, 0.0, 1.0], [0.5, 0.5, 0.0]),
        ([[0.0, 0.0], [0.0, 0.0]], [0.5, 0.5]),
        ([[1.0, -1.0], [-1.0, 1.0]], [0.5, 0.5]),  # errors that cancel
    ],
)
def test_weights_where_the_matrix_has_no_inverse(sigma: list[object], wanted: list[float]) -> None:
    torch.testing.assert_close(fusion_weights(sigma), torch.tensor(wanted).double(), rtol=0, atol=1e-9)


def test_half_precision_is_computed_in_single_and_nothing_is_changed() -> None:
    parts = [part.to(torch.bfloat16).requires_grad_() for part in logits()]
    report = modality_statistics(parts)
    wanted = modality_statistics([part.detach().float() for part in parts])
    assert report.dependence.dtype == torch.float32 and not report.dependence.requires_grad
    torch.testing.assert_close(report.weights, wanted.weights, rtol=0, atol=0)
    assert all(part.grad is None for part in parts)
    assert isinstance(report, ModalityReport)


NAN = [torch.zeros(2, 3), torch.tensor([[0.0, float("nan"), 0.0], [0.0, 0.0, 0.0]])]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: modality_statistics(logits(1)), "logits: got 1 of them; expected at least 2"),
        (lambda: modality_statistics([torch.zeros(2, 3), torch.zeros(3, 3)]), "the same shape"),
        (lambda: modality_statistics([torch.zeros(2, 3), torch.zeros(2, 4)]), "the same shape"),
        (lambda: modality_statistics([torch.zeros(0, 3)] * 2), "an empty batch"),
        (lambda: modality_statistics([torch.zeros(2, 3, dtype=torch.int64)] * 2), "floating-point"),
        (lambda: modality_statistics(NAN), "NaN or infinite values of modality 1"),
        (lambda: modality_statistics({"a": NAN[0], "b": NAN[0] + math.inf}), "NaN or infinite values of b"),
        (lambda: modality_statistics(logits(), clamp=0.0), "clamp"),
        (lambda: modality_statistics(logits(), clamp=1.5), "clamp"),
        (lambda: modality_statistics(logits(), mask=torch.ones(11, 2, dtype=torch.bool)), r"mask: .*\(11, 3\)"),
        (lambda: modality_statistics(logits(), mask=torch.ones(11, 3)), "mask"),
        (lambda: modality_statistics(logits(), target=torch.full((11,), 4)), r"target: got 4; expected classes 0\.\.3"),
        (lambda: modality_statistics(logits(), target=torch.zeros(10, dtype=torch.int64)), "target"),
        (lambda: modality_statistics(logits(), target=torch.zeros(11)), r"target: .*\(11, 4\)"),
        (lambda: modality_statistics([torch.zeros(2, 1)] * 2, target=torch.tensor([1.0, math.nan])), "target: got NaN or infinite values"),
        (lambda: arl_weights([0.8, 0.2], [0.4, 0.6]), "expected floating-point tensors"),
        (lambda: arl_weights(torch.tensor([8, 2]), torch.tensor([4, 6])), "expected floating-point tensors"),
        (lambda: arl_weights(torch.ones(2), torch.ones(3)), "the same shape"),
        (lambda: arl_weights(torch.ones(1), torch.ones(1)), "M >= 2"),
        (lambda: arl_weights(torch.ones(2), torch.ones(2), -1.0), "temperature"),
        (lambda: fusion_weights([[1.0, 0.5]]), r"variances \(M,\) or covariances"),
        (lambda: fusion_weights([-1.0, 1.0]), "no negative variance"),
        (lambda: fusion_weights([float("nan"), 1.0]), "finite"),
        (lambda: fusion_weights([[1.0, 0.5], [0.2, 1.0]]), "symmetric"),
    ],
)
def test_bad_input_is_said_in_one_sentence(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()
