r"""A contrastive loss for batches of several modalities: e5-omni (arXiv:2601.03666).

What is unbalanced in one embedding space of several modalities: under one temperature some pairs of modalities are sharper than others and
take the gradient; most negatives of a batch are trivial; and the two sides of the pairs differ in mean and covariance. With logits
:math:`S_{ij} = \cos(q_i, p_j) / \tau(q_i, p_j)` (:class:`ModalityTemperature`), the hardest negatives :math:`\Omega_i`
(:class:`QuantileCurriculum`), and a share :math:`\gamma_+` of them that are taken to be positives in truth,

.. math::
    N_i = \max\Big( \sum_{j \in \Omega_i} e^{S_{ij}} - \gamma_+ e^{S_{ii}},\; \epsilon \Big), \qquad
    L = -\frac{1}{B} \sum_i \log \frac{e^{S_{ii}}}{e^{S_{ii}} + N_i} + \lambda \, L_{coral} .

At a temperature of 0.01 logits reach 100, whose exponential no float32 holds. So with :math:`\ell_i` the logarithm of the sum,

.. math::
    \log N_i = \max\big( \ell_i + \log(1 - e^{\log \gamma_+ + S_{ii} - \ell_i}),\; \log \epsilon \big), \qquad
    L_i = -\log \sigma(S_{ii} - \log N_i) .
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.nn import functional as F

from counterpoise._dist import all_gather_rows, gather_rows, world_size
from counterpoise._errors import bad_input, check_choice, check_range, described, listing

from ._conr import unit_rows
from ._coral import coral_loss, whitened_coral
from ._log_mass import log_masses
from ._modality_temperature import Modalities, ModalityTemperature
from ._quantile_curriculum import QuantileCurriculum

__all__ = ["OmniContrastiveLoss", "OmniTerms", "debiased_losses"]


@dataclass(frozen=True)
class OmniTerms:
    """What the last call of an :class:`OmniContrastiveLoss` saw, of this process: tensors without gradient, so that reading one is what
    waits for the device.

    Attributes
    ----------
    temperatures : (M,)
        Of the modalities.
    kept_fraction : scalar
        Share of the negatives that the curriculum kept.
    floor_hits : scalar
        Share of the rows whose negatives weigh less than the floor: they give practically no gradient. Near 1 training stands still.
    coral : scalar
        The alignment term before its weight; 0 where the weight is 0.
    """

    temperatures: Tensor
    kept_fraction: Tensor
    floor_hits: Tensor
    coral: Tensor


class OmniContrastiveLoss(nn.Module):
    r"""Contrastive loss of pairs: a temperature per modality, hard negatives, a correction for false negatives, aligned covariances.

    Every part can be left out: ``ModalityTemperature(1)`` is one learned temperature, ``curriculum=None`` keeps all negatives,
    ``gamma_plus=0`` corrects nothing, ``coral_weight=0`` aligns nothing. All four left out, it is InfoNCE, and with ``symmetric=True`` the
    loss of CLIP. Notation at the top of the module.

    **Easy rows drop out.** Where a positive stands out by more than :math:`\log(1 / \gamma_+)`, here 2.3, from all negatives together, the
    correction takes more than there is, and the row has only the floor left. That follows from the formula. ``last.floor_hits`` is the
    share of such rows; when it comes near 1, lower ``gamma_plus`` or enlarge the batch.

    Parameters
    ----------
    temperature : ModalityTemperature
        Its parameter is part of this module: hand ``loss.parameters()`` to the optimizer, too.
    curriculum : QuantileCurriculum, optional
        Which negatives count. Calls in training mode advance it by one step. Default: all of them.
    gamma_plus : float in [0, 1), default 0.1 (the paper; 0.1 to 0.2)
        Strength of the correction. Not the form of the original debiased contrastive loss (Chuang et al. 2020), which also rescales.
    coral_weight : float >= 0, default 0.05 (the paper; 0.02 to 0.1)
        :math:`\lambda` of :func:`coral_loss`.
    whiten : bool, default True
        Whether embeddings are whitened before their covariances are compared, as in :func:`batch_whiten`.
    symmetric : bool, default False (the paper)
        Also targets against queries; the mean of both directions.
    negatives : {"in-batch", "gathered"}, default "in-batch"
        "gathered": where torch.distributed is in use, compare the queries of this process with the targets of all processes, through which
        gradients flow; covariances are those of all rows. "mean" is scaled so that the gradients that DDP averages are those of one large
        batch. All processes have to call.
    eps : float > 0, default 1e-6 (ours; the paper gives none)
    eps_mode : {"relative", "absolute"}, default "relative"
        What the floor is: ``eps`` times the largest :math:`e^{S_{ij}}` of the row, which is that of its positive wherever the floor
        matters; or ``eps`` itself, which means nothing where exponentials are as large as e^50. The relative one is for the correction
        alone: with ``gamma_plus=0`` there is none.
    reduction : {"mean", "sum", "none"}, default "mean"
        "none": one value per pair. Every pair has the alignment term of the batch, so that the mean is L.

    Shapes
    ------
    query (B, D) and target (N, D), of any length; query_modality and target_modality: integers (B,) and (N,), weights (B, M) and (N, M)
    that sum to 1, or lists of names, where an item of several modalities is a tuple of names. positives (B,): the row of target that
    belongs to each query, by default the row of the same number (further rows are further negatives). positives_mask (B, N): True where a
    pair is positive as well (duplicates, the same class), and no negative; with ``negatives="gathered"`` its columns are the targets of
    all processes, one after the other. Output: a scalar; with ``reduction="none"`` (B,). Half precision is computed, and the loss
    returned, in float32.

    Attributes
    ----------
    last : OmniTerms or None
        What the last call saw.

    Raises
    ------
    InputError
        If shapes do not match, a modality is unknown, weights are negative or do not sum to 1, an embedding is not finite, there is no
        negative, or a parameter is out of its range. (Values are not looked at inside ``torch.compile``.)

    Examples
    --------
    >>> query = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> target = torch.tensor([[1.0, 0.1], [0.2, 1.0], [0.0, 1.0]])
    >>> temperature = ModalityTemperature(["text", "image"], init=[0.2, 0.4])
    >>> loss = OmniContrastiveLoss(temperature, coral_weight=0.0, reduction="none")
    >>> loss(query, target, ["text", "text", "image"], ["image"] * 3)
    tensor([0.0060, 0.7030, 1.2380], grad_fn=...)
    >>> loss.last.floor_hits
    tensor(0.)
    """

    def __init__(
        self,
        temperature: ModalityTemperature,
        curriculum: QuantileCurriculum | None = None,
        gamma_plus: float = 0.1,
        coral_weight: float = 0.05,
        whiten: bool = True,
        symmetric: bool = False,
        negatives: Literal["in-batch", "gathered"] = "in-batch",
        eps: float = 1e-6,
        eps_mode: Literal["relative", "absolute"] = "relative",
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        if not isinstance(temperature, ModalityTemperature):
            bad_input("temperature", temperature, "a ModalityTemperature", "ModalityTemperature(1, init=0.02) is one for all.")
        if curriculum is not None and not isinstance(curriculum, QuantileCurriculum):
            bad_input("curriculum", curriculum, "a QuantileCurriculum or None")
        check_range("gamma_plus", gamma_plus, low=0, high=1)
        check_range("eps", eps, low=0, open_low=True)
        check_choice("eps_mode", eps_mode, ("relative", "absolute"))
        if gamma_plus + (eps if eps_mode == "relative" else 0) >= 1:
            bad_input("gamma_plus", gamma_plus, "a number in [0, 1), also together with a relative eps")
        check_range("coral_weight", coral_weight, low=0)
        check_choice("negatives", negatives, ("in-batch", "gathered"))
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        self.temperature, self.curriculum = temperature, curriculum
        self.gamma_plus, self.coral_weight, self.whiten, self.symmetric = float(gamma_plus), float(coral_weight), whiten, symmetric
        self.negatives, self.eps, self.eps_mode, self.reduction = negatives, float(eps), eps_mode, reduction
        self.last: OmniTerms | None = None

    def forward(
        self,
        query: Tensor,
        target: Tensor,
        query_modality: Modalities,
        target_modality: Modalities,
        positives: Tensor | None = None,
        positives_mask: Tensor | None = None,
    ) -> Tensor:
        _check_shapes(query, target, positives)
        weights_q, weights_t = (
            self._weights(name, modality, len(x))
            for name, modality, x in (("query_modality", query_modality, query), ("target_modality", target_modality, target))
        )
        with torch.autocast(query.device.type, enabled=False):
            unit_q, unit_t = unit_rows(query), unit_rows(target)
            wide = torch.promote_types(unit_q.dtype, unit_t.dtype)
            columns = None if positives is None else positives.long()
            own = _Pairs(unit_q.to(wide), unit_t.to(wide), weights_q, weights_t, columns, 0, len(query))
            if self.negatives == "gathered" and world_size() > 1:
                own = _gathered(own)
            self._check_values(own, positives_mask)
            losses, floored, kept = self._contrast(own, positives_mask)
            coral = losses.new_zeros(())
            if self.coral_weight:
                align = whitened_coral if self.whiten else coral_loss
                coral = align(own.query, own.target)
                losses = losses + self.coral_weight * coral
        self.last = OmniTerms(self.temperature.temperatures.detach(), kept, floored.to(losses.dtype).mean(), coral.detach())
        if self.training and self.curriculum is not None:
            self.curriculum.advance()
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.sum() * (self._processes() / len(own.query))

    def extra_repr(self) -> str:
        parts = f"curriculum={self.curriculum}, gamma_plus={self.gamma_plus:g}, coral_weight={self.coral_weight:g}, whiten={self.whiten}"
        kinds = f"symmetric={self.symmetric}, negatives={self.negatives!r}, eps={self.eps:g}, eps_mode={self.eps_mode!r}"
        return f"{parts}, {kinds}, reduction={self.reduction!r}"

    def get_extra_state(self) -> Tensor:
        """The step of the curriculum."""
        return torch.tensor(0 if self.curriculum is None else self.curriculum.step)

    def set_extra_state(self, state: Tensor) -> None:
        if self.curriculum is not None:
            self.curriculum.step = int(state)

    # ---- parts --------------------------------------------------------------------------------------------------------------------------

    def _contrast(self, pairs: _Pairs, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Losses (B,) of this process' queries, which of them (and of their targets) lie on the floor, and the share of negatives kept."""
        rho = 0.0 if self.curriculum is None else self.curriculum.traced_rho()
        mine = slice(pairs.first, pairs.first + pairs.rows)
        tau_q, tau_t = (self.temperature.of(weights).to(pairs.query.dtype) for weights in (pairs.weights_q, pairs.weights_t))
        default = pairs.positives is None
        every = torch.arange(len(pairs.query), device=pairs.query.device) if pairs.positives is None else pairs.positives
        positives, query = every[mine], pairs.query[mine]
        alone = pairs.rows == len(pairs.query)
        found = log_masses(
            query @ pairs.target.T, tau_q[mine], tau_t, positives, mask, rho, reverse=self.symmetric and alone, one_to_one=default
        )
        losses, floored = self._debiased(found.positive, found.negative)
        kept, present = found.kept, found.present
        if self.symmetric:
            reverse = found.reverse
            if reverse is None:  # the queries of all processes
                itself = torch.arange(mine.start, mine.stop, device=every.device)
                others = None if mask is None else all_gather_rows(mask).to(mask.device)[:, positives].T
                if not default:
                    shared = every == positives[:, None]
                    others = shared if others is None else others | shared
                back = log_masses(
                    pairs.target[positives] @ pairs.query.T, tau_t[positives], tau_q, itself, others, rho, reverse=False, one_to_one=True
                )
                reverse, kept, present = back.negative, kept + back.kept, present + back.present
            back_losses, back_floored = self._debiased(found.positive, reverse)
            losses, floored = (losses + back_losses) / 2, torch.cat([floored, back_floored])
        return losses, floored, kept.to(losses.dtype) / present.clamp(min=1)

    def _debiased(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        return debiased_losses(positive, negative, self.gamma_plus, self.eps, self.eps_mode)

    def _weights(self, name: str, modality: Modalities, rows: int) -> Tensor:
        weights = self.temperature.weights(modality, name)
        if len(weights) != rows:
            bad_input(name, f"{len(weights)} items for {rows} embeddings", "one per embedding")
        return weights

    def _processes(self) -> int:
        return world_size() if self.negatives == "gathered" else 1

    def _check_values(self, pairs: _Pairs, mask: Tensor | None) -> None:
        """Of all processes where rows are gathered, so that none is left waiting for one that refuses its rows."""
        n = len(pairs.target)
        if n < 2:
            bad_input("target", f"{n} rows", "an input of at least two targets, of which one is a negative", "Use a larger batch.")
        if self.coral_weight and len(pairs.query) < 2:
            bad_input("query", "1 row", "an input of at least two, which have a covariance", "coral_weight=0 leaves it out.")
        if mask is not None and (mask.shape != (pairs.rows, n) or mask.dtype != torch.bool):
            hint = "Columns are the targets of all processes." if self._processes() > 1 else ""
            bad_input("positives_mask", described(mask), f"booleans {(pairs.rows, n)}", hint)
        if torch.compiler.is_compiling():
            return
        for name, x in (("query", pairs.query), ("target", pairs.target)):
            wrong = ~torch.isfinite(x.detach().sum(dim=1))
            if bool(wrong.any()):
                bad_input(name, f"nan or inf in row {listing(torch.nonzero(wrong)[:, 0].tolist())}", "finite embeddings")


class _Pairs(NamedTuple):
    """Unit embeddings and weights of all processes, the column of each query's positive (None: that of its own number), and which queries
    are of this process: ``rows`` from ``first`` on."""

    query: Tensor
    target: Tensor
    weights_q: Tensor
    weights_t: Tensor
    positives: Tensor | None
    first: int
    rows: int


def debiased_losses(
    positive: Tensor, negative: Tensor, gamma_plus: float, eps: float, eps_mode: Literal["relative", "absolute"] = "relative"
) -> tuple[Tensor, Tensor]:
    r""":math:`L_i` (B,) from :math:`S_{ii}` and :math:`\ell_i` (B,), and which rows lie on the floor.

    >>> positive, negative = torch.tensor([1.0, 50.0, 100.0]), torch.tensor([2.0, 10.0, 99.0])
    >>> losses, floored = debiased_losses(positive, negative, 0.1, 1e-6)
    >>> losses, floored
    (tensor([1.2860e+00, 1.0000e-06, 2.3734e-01]), tensor([False,  True, False]))
    """
    if gamma_plus == 0:
        log_n, left = negative, torch.ones_like(negative, dtype=torch.bool)
        if eps_mode == "relative":
            return -F.logsigmoid(positive - log_n), ~left
    else:
        log_share = math.log(gamma_plus) + positive - negative  # of the mass that the correction takes away
        left = log_share < 0
        safe = torch.where(left, log_share, -1.0)
        log_n = torch.where(left, negative, 0.0) + torch.log(-torch.expm1(safe))
    floor = math.log(eps) + positive if eps_mode == "relative" else torch.full_like(positive, math.log(eps))
    floored = ~left | (log_n <= floor)
    return -F.logsigmoid(positive - torch.where(floored, floor, log_n)), floored


@_disable_dynamo  # torch.compiler.disable loads the compiler at once
def _gathered(own: _Pairs) -> _Pairs:
    query, first = gather_rows(own.query)
    target, offset = gather_rows(own.target)
    weights_q, weights_t = (all_gather_rows(part).to(part.device) for part in (own.weights_q, own.weights_t))
    positives = own.positives
    if positives is None and len(query) != len(target):  # further targets: rows of one number belong together in each process
        positives = torch.arange(own.rows, device=query.device)
    # Whether columns are given is the same in all processes.
    if positives is not None:
        positives = all_gather_rows(positives + offset).to(query.device)
    return _Pairs(query, target, weights_q, weights_t, positives, first, own.rows)


# ---- before the computation -------------------------------------------------------------------------------------------------------------


def _check_shapes(query: Tensor, target: Tensor, positives: Tensor | None) -> None:
    for name, x in (("query", query), ("target", target)):
        if x.ndim != 2 or not x.is_floating_point():
            bad_input(name, described(x), "floating-point embeddings (B, D)")
    if query.shape[1] != target.shape[1] or not len(query):
        bad_input("query and target", f"shapes {tuple(query.shape)} and {tuple(target.shape)}", "inputs (B, D) and (N, D) with B >= 1")
    if positives is None:
        if len(target) < len(query):
            bad_input("target", f"{len(target)} rows for {len(query)} queries", "at least as many", "Or pass positives, the row of each.")
        return
    if positives.shape != (len(query),) or positives.is_floating_point() or positives.dtype == torch.bool:
        bad_input("positives", described(positives), f"integers ({len(query)},)")
    if not torch.compiler.is_compiling() and not bool(((positives >= 0) & (positives < len(target))).all()):
        bad_input("positives", positives.tolist(), f"rows of target, 0..{len(target) - 1}")
