r"""What each modality says on its own, and how much it should be listened to (arXiv:2507.10203, sections 3 and 4).

What is unbalanced: of several encoders behind one head, the one that learns fastest takes the loss down, and the others stay as they are.
Most cures make modalities equal. Where predictions :math:`s_m` have errors of different size, equal is not best: of all
:math:`f = \sum_m w_m s_m` with :math:`\sum_m w_m = 1`, the variance is smallest at

.. math:: w = \frac{\Sigma^{-1} 1}{1^\top \Sigma^{-1} 1}, \qquad\text{and for independent errors at}\quad
          w_m = \frac{1 / \sigma_m^2}{\sum_k 1 / \sigma_k^2} .

In training, the paper puts the entropy of the unimodal prediction in the place of the variance. That is a confidence: a modality that is
sure and wrong has a low entropy and is given *more* weight. With targets, :func:`modality_statistics` measures the errors, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._dist import all_reduce_sum
from counterpoise._errors import bad_input, check_range
from counterpoise._precision import single

if TYPE_CHECKING:
    import polars

__all__ = ["ModalityReport", "arl_weights", "check_unimodal", "fusion_weights", "modality_statistics"]

CLAMP, TEMPERATURE = 0.3, 8.0  # of the authors' code; the temperature that of their script for CREMA-D


def arl_weights(dependence: Tensor, inverse_variance_share: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    r"""Weights of the encoders' gradients, from what the model listens to and what it should listen to.

    .. math:: k = \mathrm{softmax}_m\Bigl(T \, q_m \sum_{j \ne m} d_j\Bigr)

    With two modalities this is the authors' :math:`\mathrm{softmax}(T [d_1 q_0, d_0 q_1])`: modality 0 has the larger weight where
    :math:`d_0 / d_1 < q_0 / q_1`. The form for more is ours.

    Parameters
    ----------
    dependence : Tensor, shape (..., M)
        :math:`d_m`, how strongly the unimodal logits speak, such as ``modality_statistics(...).dependence``.
    inverse_variance_share : Tensor, shape (..., M)
        :math:`q_m`. 0 marks a modality that was absent: its weight is 0, and the softmax leaves it out.
    temperature : float >= 0, default 8.0 (the authors' script for CREMA-D; 4.0 in others)
        0 gives equal weights.

    Returns
    -------
    Tensor, shape (..., M)
        Sums to 1 (to 0 where every modality is absent).

    Raises
    ------
    InputError
        If shapes differ, there are fewer than two modalities, or the temperature is negative.

    Examples
    --------
    >>> arl_weights(torch.tensor([0.8, 0.2]), torch.tensor([0.4, 0.6]))
    tensor([0.0392, 0.9608])
    """
    check_range("temperature", temperature, low=0)
    given = (dependence, inverse_variance_share)
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in given):
        bad_input("dependence and inverse_variance_share", [type(x).__name__ for x in given], "floating-point tensors (..., M)")
    d, q = single(dependence), single(inverse_variance_share)
    if d.shape != q.shape or d.ndim < 1 or d.shape[-1] < 2:
        bad_input(
            "dependence and inverse_variance_share", f"shapes {tuple(d.shape)} and {tuple(q.shape)}", "the same shape (..., M) with M >= 2"
        )
    return _weights(temperature * q * (d.sum(dim=-1, keepdim=True) - d), q > 0)


def _weights(score: Tensor, present: Tensor) -> Tensor:
    """Softmax over the modalities that are present; 0 for the others, and no NaN where there are none."""
    score = score.masked_fill(~present, float("-inf"))
    top = score.amax(dim=-1, keepdim=True)
    e = (score - torch.where(present.any(dim=-1, keepdim=True), top, torch.zeros_like(top))).exp()
    return e / e.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(e.dtype).tiny)


def fusion_weights(variance: Tensor | npt.ArrayLike) -> Tensor:
    r"""Weights of predictions, summing to 1, with which their weighted sum varies least.

    Parameters
    ----------
    variance : tensor or array-like, shape (M, M) or (M,)
        Covariances :math:`\Sigma` of the predictions' errors: weights :math:`\Sigma^{-1} 1 / (1^\top \Sigma^{-1} 1)`. Or variances alone,
        for independent errors: weights :math:`\propto 1 / \sigma_m^2`.

    Returns
    -------
    Tensor, shape (M,), float64
        Below 0 for a modality whose errors are mostly a louder copy of another's. Where several weights are equally good (equal
        predictions, no variance at all), those nearest to each other.

    Raises
    ------
    InputError
        If the shape is another one, a value is not finite, a variance is negative, or the matrix is not symmetric.

    Examples
    --------
    >>> fusion_weights([1.0, 3.0])
    tensor([0.7500, 0.2500], dtype=torch.float64)
    >>> fusion_weights([[1.0, 1.2], [1.2, 3.0]])
    tensor([ 1.1250, -0.1250], dtype=torch.float64)
    """
    sigma = torch.as_tensor(variance).detach().double()
    if sigma.ndim == 1:
        sigma = sigma.diag()
    if sigma.ndim != 2 or sigma.shape[0] != sigma.shape[1] or len(sigma) < 1:
        bad_input("variance", f"shape {tuple(sigma.shape)}", "variances (M,) or covariances (M, M)")
    if not bool(torch.isfinite(sigma).all()) or bool((sigma.diagonal() < 0).any()):
        bad_input("variance", sigma.tolist(), "finite values, and no negative variance")
    scale = sigma.diagonal().mean()
    if bool((sigma - sigma.T).abs().max() > 1e-6 * scale):
        bad_input("variance", sigma.tolist(), "a symmetric matrix", "Errors have one covariance for each pair.")
    m = len(sigma)
    # Lagrange's conditions rather than an inverse: they have a solution where the matrix has no inverse, too.
    system = sigma.new_ones(m + 1, m + 1)
    system[:m, :m] = sigma / scale if bool(scale > 0) else 0.0
    system[m, m] = 0.0
    w: Tensor = torch.linalg.pinv(system, hermitian=True)[:m, m]
    return w / w.sum()


@dataclass(frozen=True, eq=False)
class ModalityReport:
    r"""Result of :func:`modality_statistics` for M modalities. Tensors of shape (M,) unless said otherwise.

    Attributes
    ----------
    names : tuple of str
        Names of the modalities.
    rows : Tensor
        Rows in which each was present.
    dependence : Tensor
        :math:`d_m`, the mean absolute logit, summed over classes, as a share: what the fused prediction is made of.
    entropy : Tensor
        Mean entropy :math:`H_m` of the unimodal prediction in nats; for regression the variance of the residuals.
    entropy_share : Tensor
        :math:`e_m = H_m / \sum_k H_k`, before the floor.
    inverse_variance_share : Tensor
        :math:`q_m \propto 1 / \max(e_m, \text{clamp})`; 0 for a modality that is absent from all rows.
    weights : Tensor
        :func:`arl_weights` of these at the default temperature.
    proxy : {"entropy", "residual variance"}
        What stands for the variance. The second is an extension to regression that is not in the paper.
    errors : Tensor, shape (M, M), or None
        With targets, :math:`E \sum_c (p_{mc} - y_c)(p_{kc} - y_c)` over the rows in which both are present (NaN without any): the Brier
        score of each modality on the diagonal; for regression of the residuals around their mean.
        :func:`~counterpoise.gradients.fusion_weights` of it says what to listen to, by errors and not by confidence.
    """

    names: tuple[str, ...]
    rows: Tensor
    dependence: Tensor
    entropy: Tensor
    entropy_share: Tensor
    inverse_variance_share: Tensor
    weights: Tensor
    proxy: str = "entropy"
    errors: Tensor | None = None

    def __len__(self) -> int:
        """Number of modalities M."""
        return len(self.names)

    def to_frame(self) -> polars.DataFrame:
        """One row for each modality: name, rows, dependence, entropy, both shares, weight, and its error where targets were given."""
        import polars

        columns = {"rows": self.rows, "dependence": self.dependence, self.proxy: self.entropy, "share": self.entropy_share}
        columns |= {"inverse_variance_share": self.inverse_variance_share, "weight": self.weights}
        if self.errors is not None:
            columns["error"] = self.errors.diagonal()
        return polars.DataFrame({"name": list(self.names)} | {name: values.tolist() for name, values in columns.items()})

    def summary(self) -> str:
        """The modalities in a few lines."""
        frame = self.to_frame()
        width = max(8, *(len(name) for name in self.names))
        heads = ["listened to", self.proxy, "1/variance", "weight", *(["error"] if "error" in frame.columns else [])]
        lines = [f"{'':{width}}  " + "  ".join(f"{head:>11}" for head in heads)]
        for row in frame.iter_rows(named=True):
            values = [row["dependence"], row[self.proxy], row["inverse_variance_share"], row["weight"]]
            values += [row["error"]] if "error" in row else []
            lines.append(f"{row['name']:{width}}  " + "  ".join(f"{value:11.4g}" for value in values))
        if self.proxy != "entropy":
            lines.append("The variance of the residuals stands for the variance: an extension to regression, not in the paper.")
        missing = [name for name, n in zip(self.names, self.rows.tolist(), strict=True) if not n]
        if missing:
            lines.append(f"In no row: {', '.join(missing)}. Left out of the weights.")
        lines += self._what_errors_say()
        return "\n".join(lines)

    def _what_errors_say(self) -> list[str]:
        if self.errors is None or not bool(torch.isfinite(self.errors).all()):
            return []
        shown = [
            ", ".join(f"{name} {w:.2f}" for name, w in zip(self.names, fusion_weights(of).tolist(), strict=True))
            for of in (self.errors, self.errors.diagonal())
        ]
        lines = [f"Weights of the mean with the smallest error: {shown[0]}; if errors were independent: {shown[1]}."]
        sure, right = int(self.entropy.argmin()), int(self.errors.diagonal().argmin())
        if self.proxy == "entropy" and sure != right:
            lines.append(
                f"{self.names[sure]} is the surest, {self.names[right]} has the smallest error: entropy is not the variance here, and "
                "weights made of it favor the wrong one."
            )
        return lines

    def __repr__(self) -> str:
        listened = ", ".join(f"{name}={d:.3g}" for name, d in zip(self.names[:8], self.dependence[:8].tolist(), strict=True))
        return f"ModalityReport(listened to: {listened}{', ...' if len(self) > 8 else ''})"


@torch.no_grad()
def modality_statistics(
    logits: Sequence[Tensor] | Mapping[str, Tensor],
    clamp: float = CLAMP,
    *,
    mask: Tensor | None = None,
    target: Tensor | None = None,
) -> ModalityReport:
    r"""Which modality a model listens to, and which it should listen to, from the logits that each modality has alone.

    .. math:: a_m = \sum_c \overline{|s_{mc}|}, \quad d_m = \frac{a_m}{\sum_k a_k}, \qquad
              H_m = \overline{-\sum_c p_{mc} \log p_{mc}}, \quad e_m = \frac{H_m}{\sum_k H_k}, \quad
              q_m = \frac{1 / \max(e_m, \text{clamp})}{\sum_k 1 / \max(e_k, \text{clamp})}

    with :math:`p_m = \mathrm{softmax}(s_m)` and means over rows. Nothing is changed, and no gradient flows.

    Parameters
    ----------
    logits : sequence or dict of M >= 2 Tensors, shape (B, C)
        Unimodal logits :math:`s_m`, such as :func:`counterpoise.losses.zero_out_unimodal` gives. Keys are the names in the report.
    clamp : float in (0, 1], default 0.3 (the authors' code)
        Smallest share of the entropy that counts. It was chosen for two modalities, whose mean share is 1/2; with more than three it is
        above the mean share, and 0.6 / M keeps its meaning.
    mask : bool Tensor, shape (B, M), optional
        Which modality is there in which row. Statistics are over the rows in which it is; what stands in the others is not looked at. A
        modality without any row has shares and weight 0.
    target : Tensor, optional
        Classes (B,) of an integer type: errors are measured as well. Numbers (B,) or (B, C): logits are predictions of a regression, and
        the variance of their residuals takes the place of the entropy.

    Raises
    ------
    InputError
        If there are fewer than two modalities, shapes differ, a batch is empty, a logit (of a row that counts) or a target is not finite,
        or a class is not in 0..C-1.

    Examples
    --------
    >>> sure = torch.tensor([[4.0, -4.0, 0.0], [-4.0, 0.0, 4.0]])
    >>> report = modality_statistics({"image": sure, "sound": 0.1 * sure}, target=torch.tensor([1, 2]))
    >>> print(report.summary())
              listened to      entropy   1/variance       weight        error
    image          0.9091      0.09304       0.7538        0.224        0.982
    sound         0.09091        1.047       0.2462        0.776       0.6838
    Weights of the mean with the smallest error: image 0.12, sound 0.88; if errors were independent: image 0.41, sound 0.59.
    image is the surest, sound has the smallest error: entropy is not the variance here, and weights made of it favor the wrong one.
    """
    names = tuple(str(name) for name in logits) if isinstance(logits, Mapping) else ()
    parts = list(logits.values()) if isinstance(logits, Mapping) else list(logits)
    stacked, present = check_unimodal(parts, mask)
    names = names or tuple(f"modality {m}" for m in range(len(stacked)))
    check_clamp(clamp)
    regression = target is not None and target.is_floating_point()
    y = None if target is None else numbers(target, stacked) if regression else one_hot(target, stacked)
    rows = present.sum(dim=0)
    a, H = totals(stacked, present)
    check_finite(a, names)
    n = rows.clamp(min=1)
    a, H = a / n, H / n
    if regression:
        assert y is not None
        H = residual_variance(stacked, y, present)
    dependence, entropy_share, q = shares(a, H, rows > 0, clamp)
    return ModalityReport(
        names=names,
        rows=rows,
        dependence=dependence,
        entropy=H,
        entropy_share=entropy_share,
        inverse_variance_share=q,
        weights=arl_weights(dependence, q),
        proxy="residual variance" if regression else "entropy",
        errors=None if y is None else _errors(stacked, y, present, regression),
    )


# ---- the parts, for whole batches and for what several processes add up to ---------------------------------------------------------------


def check_clamp(clamp: float) -> None:
    check_range("clamp", clamp, low=0, high=1, open_low=True)


def check_unimodal(logits: Any, mask: Tensor | None, count: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits (M, B, C), at least single precision and 0 where a modality is absent, and which are present (B, M)."""
    parts = list(logits)
    if not all(isinstance(part, Tensor) and part.is_floating_point() for part in parts):
        bad_input("logits", [type(part).__name__ for part in parts], "floating-point tensors, one for each modality")
    if len(parts) < 2 or (count is not None and len(parts) != count):
        bad_input("logits", f"{len(parts)} of them", f"{count or 'at least 2'}, one (B, C) for each modality")
    if any(part.ndim != 2 or part.shape != parts[0].shape for part in parts):
        bad_input("logits", f"shapes {[tuple(part.shape) for part in parts]}", "the same shape (B, C) for every modality")
    if not len(parts[0]):
        bad_input("logits", "an empty batch", "at least one row")
    stacked = torch.stack([single(part.detach()) for part in parts])
    if mask is None:
        return stacked, torch.ones(stacked.shape[1], len(parts), dtype=torch.bool, device=stacked.device)
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (stacked.shape[1], len(parts)):
        found = f"{mask.dtype} of shape {tuple(mask.shape)}" if isinstance(mask, Tensor) else mask
        bad_input("mask", found, f"a bool tensor ({stacked.shape[1]}, {len(parts)}): rows by modalities, True where there is one")
    present = mask.to(stacked.device)
    return torch.where(present.T[:, :, None], stacked, 0.0), present


def check_finite(a: Tensor, names: Sequence[str]) -> None:
    """Sums of absolute logits show whether a logit was not finite; where torch.compile traces, nothing is looked at."""
    if torch.compiler.is_compiling() or bool(torch.isfinite(a).all()):
        return
    wrong = ", ".join(name for name, value in zip(names, a.tolist(), strict=True) if not abs(value) < float("inf"))
    bad_input("logits", f"NaN or infinite values of {wrong}", "finite logits", "Look at the learning rate: has the training diverged?")


def totals(stacked: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over rows of absolute logits and of entropies, each (M,)."""
    H = torch.special.entr(stacked.softmax(dim=-1)).sum(dim=-1)
    return stacked.abs().sum(dim=(1, 2)), (H * present.T).sum(dim=1)


def residual_variance(stacked: Tensor, y: Tensor, present: Tensor, group: Any = None, sync: bool = False) -> Tensor:
    """Variance of the residuals over rows, summed over outputs, (M,); the mean first, then what is around it."""
    there = present.T[:, :, None].to(stacked.dtype)
    residual = (stacked - y) * there

    def added(x: Tensor) -> Tensor:
        return all_reduce_sum(x, group) if sync else x

    n = added(there.sum(dim=1)).clamp(min=1)
    mean = added(residual.sum(dim=1)) / n
    centered = (residual - mean[:, None]) * there
    return (added(centered.square().sum(dim=1)) / n).sum(dim=1)


def shares(a: Tensor, H: Tensor, there: Tensor, clamp: float) -> tuple[Tensor, Tensor, Tensor]:
    """Dependence d, share e before the floor, share q of the inverse; each (M,), 0 for who is not there."""
    d, e = _share(a, there), _share(H, there)
    inverse = torch.where(there, 1 / e.clamp(min=clamp), 0.0)
    return d, e, _share(inverse, there)


def _share(x: Tensor, there: Tensor) -> Tensor:
    """Parts of the sum over those who are there; equal parts where the sum is 0."""
    x = torch.where(there, x, 0.0)
    total = x.sum()
    equal = there.to(x.dtype) / there.sum().clamp(min=1)
    return torch.where(total > 0, x / torch.where(total > 0, total, 1.0), equal)


def one_hot(target: Tensor, stacked: Tensor) -> Tensor:
    """Classes (B,) as (B, C)."""
    return torch.nn.functional.one_hot(classes(target, stacked), stacked.shape[2]).to(stacked.dtype)


def classes(target: Tensor, stacked: Tensor) -> Tensor:
    """Targets that are classes of these logits."""
    _, B, C = stacked.shape
    integers = isinstance(target, Tensor) and not target.is_floating_point() and target.dtype != torch.bool
    if not integers or target.shape != (B,):
        found = f"{target.dtype} of shape {tuple(target.shape)}" if isinstance(target, Tensor) else target
        bad_input("target", found, f"integer classes ({B},), one for each row of the logits")
    if not torch.compiler.is_compiling() and not bool(((target >= 0) & (target < C)).all()):
        bad_input("target", int(target[(target < 0) | (target >= C)][0]), f"classes 0..{C - 1}, as the logits have {C} columns")
    return target.to(stacked.device).long()


def numbers(target: Tensor, stacked: Tensor) -> Tensor:
    """Targets of a regression as (B, C)."""
    _, B, C = stacked.shape
    if isinstance(target, Tensor) and target.is_floating_point() and (target.shape == (B, C) or (C == 1 and target.shape == (B,))):
        if not torch.compiler.is_compiling() and not bool(torch.isfinite(target).all()):
            bad_input("target", "NaN or infinite values", "finite numbers")
        return target.to(stacked).reshape(B, C)
    found = f"{target.dtype} of shape {tuple(target.shape)}" if isinstance(target, Tensor) else target
    bad_input("target", found, f"floating-point targets ({B}, {C}), one for each output of the logits")


def _errors(stacked: Tensor, y: Tensor, present: Tensor, regression: bool) -> Tensor:
    """Second moments of the errors (M, M), over the rows that both have."""
    there = present.T[:, :, None].to(stacked.dtype)
    error = (stacked - y if regression else stacked.softmax(dim=-1) - y) * there
    if regression:
        error = (error - (error.sum(dim=1) / there.sum(dim=1).clamp(min=1))[:, None]) * there
    both = present.T.to(stacked.dtype) @ present.to(stacked.dtype)
    moments = torch.einsum("mbc,kbc->mk", error, error)
    return torch.where(both > 0, moments / both.clamp(min=1), torch.nan)
