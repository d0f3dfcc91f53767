r"""Shares of a training step, from sums of per-example gradients over groups.

Let :math:`g_i` be the gradient of example i's own loss, :math:`\pi_k` the share of rows in group k, :math:`\mu_k` the mean of
:math:`g_i` over group k, :math:`\mu = \sum_k \pi_k \mu_k` the step's direction and :math:`q_i = \|g_i\|^2`. The signed share

.. math:: s_k = \langle \pi_k \mu_k, \mu \rangle / \|\mu\|^2 = \pi_k \, \rho_k \, \sqrt{\alpha_k} \, c_k / \|\mu\|, \qquad \sum_k s_k = 1

is a product of four readable factors: how many rows (:math:`\pi_k`), how loud each is (:math:`\rho_k = \sqrt{\text{mean } q_i}`), how
unanimous they are (:math:`\alpha_k = \|\mu_k\|^2 / \text{mean } q_i`) and how well they point along the step
(:math:`c_k = \cos(\mu_k, \mu)`).

Everything is computed from sums that add up over batches, so that whoever produces the sums (a linear head, hooks of a network) gets the
same words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import polars as pl

Array = npt.NDArray[np.float64]

NONE = "(none)"  # the row of examples that belong to no group (id -1), so that shares still sum to 1
CONFLICT = 0.2  # conflict mass above which the groups' gradients work against each other
ROUNDING = 1e-12  # a mean gradient below this part of the typical gradient is zero
DOMINATES = 1.5  # times the equal share from which one group is said to dominate
AGAINST = -0.02  # cosine with the step below which it is said to work against a group
NOISE = 2.0  # a mean gradient shorter than this many standard errors has no direction worth dividing up


@dataclass(frozen=True, eq=False)
class GroupShares:
    """Whose step it is, and why. Arrays have one entry per group; shares are signed and sum to 1.

    ``count`` rows, ``pi`` share of the rows, ``share`` signed share of the step (``share_lo``, ``share_hi``: bootstrap interval, nan
    without one), ``rho`` loudness (root mean square norm), ``alpha`` coherence in [0, 1] and ``alpha_unbiased`` the same without the
    upward bias of small groups (nan for one row; may be negative), ``alignment`` cosine with the step, ``parity`` = share / pi (1 = paid by
    head count), ``magnitude_share`` = pi ||mu_k|| / sum, which is never negative.

    ``cosine`` (G, G) between group means; ``norm`` = ||mu|| and ``noise``, its sampling error sqrt(tr Cov / m); ``conflict`` in [0, 1], the
    part of the groups' inner products that is negative; ``effective_groups`` = exp(entropy of ``magnitude_share``);
    ``step_cosine``: cosine between the mean gradient and the step, which is 1 but for an optimizer's update;
    ``space``: ``"head"`` (gradient of a linear head) or ``"function"`` (pseudo-residuals of a tree ensemble, where only ``count``, ``pi``,
    ``share``, ``rho``, ``parity`` and ``magnitude_share`` have a meaning).
    """

    names: tuple[str, ...]
    count: npt.NDArray[np.int64]
    pi: Array
    share: Array
    share_lo: Array
    share_hi: Array
    rho: Array
    alpha: Array
    alpha_unbiased: Array
    alignment: Array
    parity: Array
    magnitude_share: Array
    cosine: Array
    norm: float
    noise: float
    conflict: float
    effective_groups: float
    space: str = "head"
    step_cosine: float = 1.0

    @property
    def settled(self) -> bool:
        """The mean gradient is within its own sampling error: the step has no direction, and shares of it are not to be read."""
        return not np.isfinite(self.norm) or self.norm <= NOISE * self.noise

    @property
    def dominant(self) -> int:
        """Index of the group with the largest share (by magnitude once the step has settled)."""
        share = self.magnitude_share if self.settled and self.space == "head" else self.share
        return int(np.nanargmax(share)) if np.isfinite(share).any() else int(np.argmax(self.pi))

    def to_frame(self) -> pl.DataFrame:
        """One row per group."""
        import polars as pl

        columns = ("count", "pi", "share", "share_lo", "share_hi", "rho", "alpha", "alpha_unbiased", "alignment", "parity")
        return pl.DataFrame(
            {"group": list(self.names)} | {name: getattr(self, name) for name in columns} | {"magnitude_share": self.magnitude_share}
        )


def shares_from_sums(
    names: tuple[str, ...],
    count: npt.NDArray[np.int64],
    sums: Array,
    norms_sq: Array,
    *,
    weight: Array | None = None,
    weight_sq: Array | None = None,
    weighted_norms_sq: Array | None = None,
    intervals: tuple[Array, Array] | None = None,
) -> GroupShares:
    r"""Shares from additive sums: ``sums`` (G, P) = :math:`\sum_{i \in k} w_i g_i` and ``norms_sq`` (G,) = :math:`\sum w_i q_i`.

    With row weights w (how many rows of the population a sampled row stands for) also ``weight`` = :math:`\sum w_i`, ``weight_sq`` =
    :math:`\sum w_i^2` and ``weighted_norms_sq`` = :math:`\sum w_i^2 q_i`; without them all w are 1.
    """
    total = (count if weight is None else weight).sum()
    mu = sums.sum(axis=0) / total
    return shares_from_products(
        names,
        count,
        Products(sums @ sums.T, sums @ mu, float(mu @ mu)),
        norms_sq,
        weight=weight,
        weight_sq=weight_sq,
        weighted_norms_sq=weighted_norms_sq,
        intervals=intervals,
    )


@dataclass(frozen=True, eq=False)
class Products:
    r"""Inner products of the group sums :math:`\Sigma_k`: ``gram`` (G, G), ``along`` :math:`\langle \Sigma_k, u \rangle`, and of the step.

    u is the direction of the step: the mean gradient :math:`\mu`, or an optimizer's update, with ``forward``
    :math:`= \langle \mu, u \rangle` and ``length_sq`` :math:`= \|u\|^2`. Inner products with the mean are formed with the vector itself,
    since sums of ``gram`` may cancel.
    """

    gram: Array
    along: Array
    norm_sq: float
    forward: float | None = None
    length_sq: float | None = None


def shares_from_products(
    names: tuple[str, ...],
    count: npt.NDArray[np.int64],
    products: Products,
    norms_sq: Array,
    *,
    weight: Array | None = None,
    weight_sq: Array | None = None,
    weighted_norms_sq: Array | None = None,
    intervals: tuple[Array, Array] | None = None,
) -> GroupShares:
    """Shares from inner products of group sums; the other arguments are those of :func:`shares_from_sums`."""
    weight = count.astype(np.float64) if weight is None else weight
    weight_sq = count.astype(np.float64) if weight_sq is None else weight_sq
    weighted_norms_sq = norms_sq if weighted_norms_sq is None else weighted_norms_sq
    total = weight.sum()
    pi = weight / total
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_q = norms_sq / weight
        length = np.sqrt(np.maximum(np.diag(products.gram), 0.0)) / weight
        norm_sq = products.norm_sq
        norm = float(np.sqrt(norm_sq))
        forward = norm_sq if products.forward is None else products.forward
        step = norm if products.length_sq is None else float(np.sqrt(products.length_sq))
        contribution = products.along / total
        mean_norm = float(np.sqrt(norms_sq.sum() / total))
        largest = float(np.nanmax(length, initial=0.0))  # where norms are not known
        vanished = not norm > ROUNDING * (mean_norm if np.isfinite(mean_norm) else largest)
        share = np.full(len(names), np.nan) if vanished or forward == 0 else contribution / forward
        u_statistic = (weight**2 * length**2 - weighted_norms_sq) / (weight**2 - weight_sq)
        magnitude = np.nan_to_num(pi * length)
        magnitude_share = magnitude / magnitude.sum()
        outer = np.outer(length * weight, length * weight)
        cosine = np.clip(products.gram / outer, -1.0, 1.0)
        spread = max(mean_norm**2 - norm_sq, 0.0) if np.isfinite(mean_norm) else np.nan
        noise = float(np.sqrt(spread * weight_sq.sum() / total**2))
        alpha = length**2 / mean_q
        alpha_unbiased = np.where(count > 1, u_statistic, np.nan) / mean_q
        parity = share / pi
        alignment = np.clip(products.along / (length * weight * step), -1.0, 1.0)
    unknown = np.full(len(names), np.nan)
    low, high = intervals or (unknown, unknown)
    return GroupShares(
        names=names,
        count=count,
        pi=pi,
        share=share,
        share_lo=low,
        share_hi=high,
        rho=np.sqrt(mean_q),
        alpha=alpha,
        alpha_unbiased=alpha_unbiased,
        alignment=alignment,
        parity=parity,
        magnitude_share=magnitude_share,
        cosine=cosine,
        norm=norm,
        noise=noise,
        conflict=_conflict(products.gram),
        effective_groups=_effective(magnitude_share),
        step_cosine=forward / (norm * step) if norm > 0 and step > 0 else float("nan"),
    )


def shares_from_magnitudes(names: tuple[str, ...], count: npt.NDArray[np.int64], magnitude: Array, norms_sq: Array) -> GroupShares:
    """Shares in function space: ``magnitude`` (G,) = sum of |pseudo-residual|, ``norms_sq`` (G,) = sum of its square.

    Every example owns its coordinate there, so nothing aligns or cancels: those columns are nan.
    """
    groups = len(names)
    unknown = np.full(groups, np.nan)
    pi = count / count.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        share = magnitude / magnitude.sum()
        rho = np.sqrt(norms_sq / count)
        parity = share / pi
    return GroupShares(
        names=names,
        count=count,
        pi=pi,
        share=share,
        share_lo=unknown,
        share_hi=unknown,
        rho=rho,
        alpha=unknown,
        alpha_unbiased=unknown,
        alignment=unknown,
        parity=parity,
        magnitude_share=share,
        cosine=np.full((groups, groups), np.nan),
        norm=float(np.sqrt(norms_sq.sum() / count.sum())),
        noise=0.0,
        conflict=float("nan"),
        effective_groups=_effective(share),
        space="function",
    )


def factor_shares(shares: GroupShares) -> dict[str, float]:
    """How much of the spread of log shares each factor explains: covariance with log s_k over its variance; sums to 1.

    Keys: many (pi), loud (rho), unanimous (sqrt alpha), aligned (alignment). Empty when fewer than two groups have a positive share or all
    shares are equal.
    """
    # A positive share implies positive pi, rho, alpha and alignment, so every logarithm below exists.
    kept = np.flatnonzero(np.nan_to_num(shares.share) > 0)
    if kept.size < 2 or shares.space != "head":
        return {}
    log_share = np.log(shares.share[kept])
    centered = log_share - log_share.mean()
    variance = float(centered @ centered)
    if variance < 1e-12:
        return {}
    factors = {
        "many": np.log(shares.pi[kept]),
        "loud": np.log(shares.rho[kept]),
        "unanimous": 0.5 * np.log(shares.alpha[kept]),
        "aligned": np.log(shares.alignment[kept]),
    }
    return {name: float(centered @ (value - value.mean())) / variance for name, value in factors.items()}


def hints(shares: GroupShares, kind: str = "group", *, causes: bool = True) -> tuple[str, ...]:
    """What the numbers suggest, each with the numbers beside it. ``kind`` is the word for a group in the sentences ("class", "range").

    Without ``causes`` they say who dominates, and leave it to others why, and who conflicts with whom.
    """
    if not np.isfinite(shares.share).any():
        return ("The mean gradient is zero: there is no step to divide.",)
    if shares.space == "head" and shares.settled:
        return (
            f"The mean gradient ({shares.norm:.2g}) is not clear of its sampling error ({shares.noise:.2g}): the step has no direction to "
            "divide, so signed shares say nothing here; shares of the magnitude are given instead.",
        )
    if len(shares.names) < 2:
        return ()  # nobody to compare with
    k = shares.dominant
    found = []
    if shares.share[k] < DOMINATES / len(shares.names):
        found.append(f"No {kind} dominates: the largest share is {percent(shares.share[k])} ({kind} {shares.names[k]!r}).")
    elif causes:
        found.extend(_cause(shares))
    if shares.share[k] > 1 + ROUNDING:
        found.append("A share above 100 % means that the others pull the other way.")
    if shares.space == "head":
        found.extend(_incoherent(shares, kind))
        against = [j for j in range(len(shares.names)) if shares.alignment[j] < AGAINST]
        if against:
            listed = ", ".join(f"{shares.names[j]!r} ({signed(shares.alignment[j])})" for j in against[:5])
            found.append(f"The step works against {listed} (cosine with the step).")
        # Between two groups the conflict is all or nothing, and the line above has said it.
        if causes and len(shares.names) > 2 and shares.conflict > CONFLICT:
            found.append(
                f"{percent(shares.conflict, 0)} of the inner products between groups is negative (above {percent(CONFLICT, 0)}): "
                "their gradients oppose each other, which remedies that combine gradients act on."
            )
    return tuple(found)


def dominance_sentence(shares: GroupShares, kind: str, moment: str) -> str:
    """``class 'benign' is 62.7 % of the rows and 71.0 % of the step at the start of training``"""
    k = shares.dominant
    name = f"{kind} {shares.names[k]!r}" if kind else repr(shares.names[k])
    if shares.space == "head" and shares.settled:
        return f"{name} is {percent(shares.pi[k])} of the rows and {percent(shares.magnitude_share[k])} of the pull {moment}"
    what = "step" if shares.space == "head" else "pseudo-residuals"
    return f"{name} is {percent(shares.pi[k])} of the rows and {percent(shares.share[k])} of the {what} {moment}"


def sum_by(ids: npt.NDArray[np.int64], values: Array, groups: int) -> Array:
    """Sums (G,) of ``values`` (n,) over the groups ``ids`` (n,)."""
    return np.asarray(np.bincount(ids, values, minlength=groups), dtype=np.float64)


def percent(value: float, digits: int = 1) -> str:
    """``62.7 %``"""
    return "unknown" if not np.isfinite(value) else f"{100 * value:.{digits}f} %".replace("-", "\N{MINUS SIGN}")


def signed(value: float) -> str:
    """``+0.25``, with a true minus sign"""
    return f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def _effective(share: Array) -> float:
    """exp(entropy): how many equal groups the shares amount to."""
    if not np.isfinite(share).all():
        return float("nan")
    present = share[share > 0]
    return float(np.exp(-np.sum(present * np.log(present))))


def _conflict(inner: Array) -> float:
    upper = inner[np.triu_indices_from(inner, k=1)]
    mass = np.abs(upper).sum()
    return float(-upper[upper < 0].sum() / mass) if mass > 0 else 0.0


MOST_FACTOR = 100


def _cause(shares: GroupShares) -> list[str]:
    explained = factor_shares(shares)
    positive = shares.share[np.nan_to_num(shares.share) > 0]
    if not explained or positive.max() < 2 * positive.min():
        return []
    factor = max(explained, key=lambda name: explained[name])
    remedy = {
        "many": "resampling, class weights or a moved threshold act on counts",
        "loud": "a loss scale, clipping or a focal loss acts on loudness",
        "unanimous": "noisy labels or outliers make a group incoherent",
        "aligned": "the groups ask for different directions",
    }[factor]
    spread = positive.max() / positive.min()
    # A share near zero makes the ratio arbitrary large: the number stops meaning anything.
    size = f"by a factor of {spread:.1f}" if spread < MOST_FACTOR else f"by more than a factor of {MOST_FACTOR}"
    return [f"Shares differ {size}, mostly through '{factor}': {remedy}."]


def _typical(values: Array) -> float:
    """The median of what is known; nan if nothing is."""
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def incoherent(shares: GroupShares) -> list[int]:
    """Groups that are loud without pointing anywhere, as wrong labels and outliers make them."""
    typical = _typical(shares.rho)
    return [k for k in range(len(shares.names)) if shares.alpha_unbiased[k] < 0.05 and shares.rho[k] > 1.5 * typical]


def _incoherent(shares: GroupShares, kind: str) -> list[str]:
    typical = _typical(shares.rho)
    return [
        f"{kind.capitalize()} {shares.names[k]!r} is loud ({shares.rho[k]:.2g}, typical {typical:.2g}) but not unanimous (coherence "
        f"{signed(shares.alpha_unbiased[k])}): inspect its labels and outliers."
        for k in incoherent(shares)
    ]
