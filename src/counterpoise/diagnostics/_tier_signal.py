r"""Which tier of tests the gradient of a policy comes from.

A group of G samples of one prompt has rewards :math:`R_g = \sum_t r_{gt}`, a part from each tier. GRPO's advantage is

.. math::
    A_g = \frac{R_g - \bar R}{\sigma_R + \epsilon} = \sum_t \frac{r_{gt} - \bar r_t}{\sigma_R + \epsilon}

so it falls apart into tiers. A tier that all samples of the group pass, or none, adds nothing; neither does a group of equal rewards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input, check_range

if TYPE_CHECKING:
    import polars as pl

__all__ = ["TIERS", "TierSignal", "tier_signal"]

TIERS: tuple[str, ...] = ("basic", "medium", "high", "edge")
"""The tiers of tests, from the one that a first attempt passes to the one that shows whether every case was thought of."""


@dataclass(frozen=True, eq=False)
class TierSignal:
    """Result of :func:`tier_signal`.

    Attributes
    ----------
    silent : ndarray, shape (4,)
        Share of the groups with tests of a tier whose samples are all alike in it; NaN for a tier without tests.
    share : ndarray, shape (4,)
        Share of each tier in the sum of the parts of all advantages, without their signs; NaN if no group has an advantage.
    silent_groups : float
        Share of the groups whose rewards are all equal: their samples were drawn for nothing.
    effective_samples : float
        Kish's number, :math:`(\\sum |A|)^2 / \\sum A^2`: how many samples of equal advantage would make this step; 0 if there is none.
    samples : int
        Samples drawn.
    """

    silent: npt.NDArray[np.float64]
    share: npt.NDArray[np.float64]
    silent_groups: float
    effective_samples: float
    samples: int

    def to_frame(self) -> pl.DataFrame:
        """One row per tier: ``tier, silent, share``."""
        import polars as pl

        return pl.DataFrame({"tier": TIERS, "silent": self.silent, "share": self.share})

    def summary(self) -> str:
        """One or two sentences."""
        text = f"{self.silent_groups:.0%} of the groups have equal rewards; {self.effective_samples:.3g} of {self.samples} samples count."
        if np.isnan(self.share).all():
            return text + " No tier gives a gradient."
        largest = int(np.nanargmax(self.share))
        return text + f" {self.share[largest]:.0%} of the advantages come from the tier {TIERS[largest]!r}."


def tier_signal(rewards: Any, *, eps: float = 1e-4) -> TierSignal:
    """Whose step a batch of groups makes, tier by tier (notation at the top of the module).

    Parameters
    ----------
    rewards : array or tensor, shape (P, G, 4)
        What each tier paid to each of G samples of P prompts: weights included, tiers that the schedule leaves out 0, tiers without a test
        NaN.
    eps : float, default=1e-4
        As the trainer adds it to the standard deviation; 1e-4 in TRL.

    Raises
    ------
    InputError
        If the shape is another one, a group has fewer than 2 samples, or a reward is infinite.

    Examples
    --------
    >>> rewards = np.zeros((2, 4, 4))
    >>> rewards[:, :, 0] = 0.15  # everybody passes the basic test
    >>> rewards[0, :2, 3] = 0.35  # half of the first group pass the one of edge cases
    >>> signal = tier_signal(rewards)
    >>> print(signal.summary())
    50% of the groups have equal rewards; 4 of 8 samples count. 100% of the advantages come from the tier 'edge'.
    """
    if hasattr(rewards, "detach"):
        rewards = rewards.detach().cpu().double().numpy()
    r = np.asarray(rewards, dtype=np.float64)
    if r.ndim != 3 or r.shape[2] != len(TIERS) or r.shape[0] < 1 or r.shape[1] < 2:
        bad_input("rewards", f"shape {r.shape}", "shape (prompts, 2 samples or more, 4 tiers)")
    if np.isinf(r).any():
        bad_input("rewards", np.inf, "finite numbers; NaN where a tier has no test")
    check_range("eps", eps, low=0)
    present = ~np.isnan(r).all(axis=1)  # (P, 4)
    parts = np.nan_to_num(r)
    parts = parts - parts.mean(axis=1, keepdims=True)
    # Differences in the last digit, of sums in another order, are none.
    parts[np.abs(parts) < 1e-12] = 0.0
    centered = parts.sum(axis=2)
    centered[np.abs(centered) < 1e-12] = 0.0
    spread = centered.std(axis=1, ddof=1, keepdims=True)
    loud = spread > 0
    scale = np.where(loud, 1 / np.where(loud, spread + eps, 1.0), 0.0)
    advantage, sizes = centered * scale, (np.abs(parts) * scale[:, :, None]).sum(axis=(0, 1))
    with np.errstate(invalid="ignore"):
        silent = ((parts == 0).all(axis=1) & present).sum(axis=0) / present.sum(axis=0)
        share = sizes / sizes.sum()
    total = float(np.square(advantage).sum())
    effective = float(np.abs(advantage).sum() ** 2 / total) if total else 0.0
    return TierSignal(silent, share, float(1 - loud.mean()), effective, r.shape[0] * r.shape[1])
