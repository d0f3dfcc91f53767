"""Loss, gradient, bounds and metrics of the authors' policy loss (recipe/bapo), batch by batch."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from counterpoise.diagnostics import policy_balance
from counterpoise.losses import BalancedClipLoss, balanced_bounds
from counterpoise.losses._balanced_clip import ratios
from tests.oracles import oracle_files


@pytest.mark.parametrize("path", oracle_files("08"))
def test_agrees_with_the_authors(path: Path) -> None:
    with np.load(path) as numbers:
        oracle = {key: numbers[key] for key in numbers.files}
    cases = sorted({int(match[1]) for key in oracle if (match := re.match(r"c(\d+)_", key))})
    assert cases
    for i in cases:
        case = {key.partition("_")[2]: value for key, value in oracle.items() if key.startswith(f"c{i}_")}
        target, *bounds = case["cfg"].tolist()
        c = bounds[6] if len(bounds) > 6 else 3.0
        options = {"target": target, "low": bounds[:3], "high": bounds[3:6], "preset": "reference", "dual_clip": c}
        old, logp, advantages, mask = (torch.from_numpy(case[name]) for name in ("old_logp", "logp", "adv", "mask"))
        logp.requires_grad_()
        criterion = BalancedClipLoss(**options)
        loss = criterion(logp, old, advantages, mask)
        (gradient,) = torch.autograd.grad(loss, logp)
        assert loss.item() == pytest.approx(float(case["loss"]), abs=1e-12)
        np.testing.assert_allclose(gradient, case["grad"], rtol=0, atol=1e-12)

        low, high, share = balanced_bounds(logp, old, advantages, mask, **options)
        last = criterion.last
        assert (low, high, share) == (last.low.item(), last.high.item(), last.share.item())
        assert (low, high) == pytest.approx((float(case["clip_low"]), float(case["clip_high"])), abs=1e-9)
        # Theirs is P / (Q + 1e-8), and infinite without a Q.
        assert share == pytest.approx(1 - 1 / (1 + float(case["pos_neg_ratio"])), abs=1e-7)

        clipped = last.clipped_low.item() + last.clipped_high.item()
        assert clipped == pytest.approx(float(case["clipfrac"]), abs=1e-8)
        balance = policy_balance(logp, old, advantages, mask, low=low, high=high)
        assert balance.share == pytest.approx(share, abs=1e-9)
        assert balance.clipped_low + balance.clipped_high == pytest.approx(clipped, abs=1e-9)
        r, keep = ratios(logp.detach(), old, mask.bool()), mask.bool()
        assert float(-r.log().sum() / keep.sum()) == pytest.approx(float(case["kl"]), abs=1e-8)
        assert float(((advantages < 0) & (r > c) & keep).sum() / keep.sum()) == pytest.approx(float(case["dualclip_frac"]), abs=1e-8)
