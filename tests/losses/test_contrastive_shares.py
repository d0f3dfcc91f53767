from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from counterpoise import diagnostics
from counterpoise._errors import InputError
from counterpoise.losses import contrastive_shares

B, C = 5, 9


def problem() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, the positive's column, and two columns of hard negatives, one of which is missing in row 0."""
    logits = 4 * torch.randn(B, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hard = torch.tensor([[5, -1], [6, 7], [8, 0], [1, 2], [0, 8]])
    return logits, torch.arange(B), hard


def test_shares_are_the_gradients_of_the_cross_entropy() -> None:
    logits, positive, hard = problem()
    logits.requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(logits, positive, reduction="sum"), logits)
    found = contrastive_shares(logits, positive, hard)
    for i in range(B):
        columns = [h for h in hard[i].tolist() if h >= 0]
        easy = [j for j in range(C) if j != i and j not in columns]
        assert 1 - found.positive[i].item() == pytest.approx(-g[i, i].item(), abs=1e-10)
        assert found.hard[i].item() == pytest.approx(g[i, columns].sum().item(), abs=1e-10)
        assert found.easy[i].item() == pytest.approx(g[i, easy].abs().sum().item(), abs=1e-10)
        assert found.ratio[i].item() == pytest.approx((g[i, easy].sum() / g[i, columns].sum()).item(), rel=1e-10)
        assert found.n_easy[i].item() == len(easy)
    assert not found.positive.requires_grad


@pytest.mark.parametrize("m", [0.5, 3.0, 40.0])
def test_a_margin_divides_the_ratio_by_its_exponential(m: float) -> None:
    logits, positive, hard = problem()
    index = torch.where(hard >= 0, hard, 5)
    raised = logits.scatter(1, index, logits.gather(1, index) + m)
    found, before = contrastive_shares(raised, positive, hard), contrastive_shares(logits, positive, hard)
    torch.testing.assert_close(found.ratio, before.ratio * math.exp(-m), rtol=1e-12, atol=0)


def test_masks_and_columns_say_the_same() -> None:
    logits, positive, hard = problem()
    masks = [torch.zeros(B, C, dtype=torch.bool) for _ in range(2)]
    for i in range(B):
        masks[0][i, i] = True
        masks[1][i, [h for h in hard[i].tolist() if h >= 0]] = True
    a, b = contrastive_shares(logits, positive, hard), contrastive_shares(logits, *masks)
    for name in ("positive", "hard", "easy", "ratio", "n_easy"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert diagnostics.contrastive_shares is contrastive_shares


def test_candidates_that_are_none_and_rows_without_hard_negatives() -> None:
    logits, positive, _ = problem()
    logits[1, 4:] = -torch.inf
    found = contrastive_shares(logits, positive, torch.tensor([5, -1, -1, -1, -1]))
    assert found.n_easy.tolist() == [7, 3, 8, 8, 8]
    assert torch.isnan(found.ratio).tolist() == [False, True, True, True, True]
    assert found.overall == pytest.approx((found.easy[0] / found.hard[0]).item())
    assert found.per_thousand == pytest.approx(1000 * found.overall / 7)
    none = contrastive_shares(logits, positive, torch.full((B,), -1))
    assert math.isnan(none.overall) and math.isnan(none.per_thousand) and "No row has a hard negative." in none.summary()


def test_half_precision_is_looked_at_in_single() -> None:
    logits, positive, hard = problem()
    rounded = logits.to(torch.bfloat16)
    found, expected = contrastive_shares(rounded, positive, hard), contrastive_shares(rounded.float(), positive, hard)
    assert found.ratio.dtype == torch.float32 and torch.equal(found.ratio, expected.ratio)


def test_frame_and_words() -> None:
    found = contrastive_shares(*problem())
    frame = found.to_frame()
    assert frame.shape == (B, 5) and frame["easy"].to_list() == found.easy.tolist()
    assert found.summary().startswith("Of the softmax of 5 rows the positive has ")
    assert f"push {found.overall:.3g} times as hard" in found.summary()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": torch.zeros(B)}, "logits"),
        ({"logits": torch.full((B, C), math.nan)}, "logits: got nan"),
        ({"positive": torch.full((B,), C)}, "positive: got 9; expected columns 0..8"),
        ({"positive": torch.full((B,), -1)}, "positive: got -1"),
        ({"positive": torch.zeros(B, C, dtype=torch.bool)}, "positive: got none in row 0"),
        ({"positive": torch.zeros(B - 1, dtype=torch.int64)}, "positive"),
        ({"hard": torch.zeros(B)}, "hard: got a tensor of torch.float32"),
        ({"hard": torch.zeros(B, C - 1, dtype=torch.bool)}, "hard: got a mask"),
        ({"hard": torch.arange(B)}, "hard: got a column that is the positive, too"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    logits, positive, hard = problem()
    with pytest.raises(InputError, match=message):
        contrastive_shares(**({"logits": logits, "positive": positive, "hard": hard} | changes))
