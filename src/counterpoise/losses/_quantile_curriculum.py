r"""Which negatives count: the hardest ones of each row, fewer of them as training goes on (e5-omni, arXiv:2601.03666).

What is unbalanced: most negatives of a batch are trivial, and dilute those that teach something. At step t a row keeps

.. math:: \Omega_i = \{ j \neq i : S_{ij} \ge \mathrm{quantile}_{\rho_t}(S_{i, \mathrm{off}}) \},

with the quantile of its n negatives by linear interpolation. For sorted values :math:`s_0 \le \dots \le s_{n-1}` and :math:`h = \rho (n-1)`
it lies in :math:`(s_{\lfloor h \rfloor}, s_{\lceil h \rceil}]`, so what is at least as large as it is what is at least as large as
:math:`s_{\lceil h \rceil}`: one order statistic per row, found without sorting.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from counterpoise._errors import bad_input, check_range, described
from counterpoise._precision import single

__all__ = ["QuantileCurriculum", "threshold"]

ROUNDING = 1e-12  # rho (n - 1) that is whole in decimals is whole


class QuantileCurriculum:
    r"""The share :math:`\rho_t` of easy negatives that is left out at step t: constant during a warm-up, then linear to its final value.

    Give it to :class:`OmniContrastiveLoss`, whose calls in training mode count the steps, and whose ``state_dict`` holds the count. With
    k micro-batches per optimizer step there are k calls: multiply ``warmup`` and ``total`` by k, or set ``step`` yourself.

    Parameters
    ----------
    rho_init, rho_final : float in [0, 1), default 0.1 and 0.5 (the paper)
        :math:`\rho_t` up to the end of the warm-up, and from ``total`` on.
    warmup : int >= 0, default 4000 (the paper)
    total : int > warmup, optional
        The step at which ``rho_final`` is reached: that of your training. Needed unless both shares are equal.
    rho_before_warmup : float in [0, 1), optional
        :math:`\rho_t` during the warm-up. Default: ``rho_init``. The sources can also be read as no filter at all before it ends: 0.

    Attributes
    ----------
    step : int
        t, starts at 0.

    Raises
    ------
    InputError
        If a share is not in [0, 1), ``total`` is missing or no later than the warm-up; in :meth:`mask`, if shapes do not match, a logit is
        NaN or a column does not exist.

    Examples
    --------
    >>> curriculum = QuantileCurriculum(0.2, 0.6, warmup=100, total=300)
    >>> [round(curriculum.rho_at(t), 3) for t in (0, 100, 200, 300, 400)]
    [0.2, 0.2, 0.4, 0.6, 0.6]
    >>> logits = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0]])
    >>> QuantileCurriculum(0.5, 0.5).mask(logits, torch.tensor([0]))
    tensor([[False, False, False,  True,  True]])
    """

    def __init__(
        self,
        rho_init: float = 0.1,
        rho_final: float = 0.5,
        warmup: int = 4000,
        total: int | None = None,
        rho_before_warmup: float | None = None,
    ) -> None:
        for name, rho in (("rho_init", rho_init), ("rho_final", rho_final), ("rho_before_warmup", rho_before_warmup)):
            if rho is not None:
                check_range(name, rho, low=0, high=1)
                if rho == 1:
                    bad_input(name, rho, "a share below 1, which leaves negatives")
        check_range("warmup", warmup, low=0, integer=True)
        if total is not None:
            check_range("total", total, low=1, integer=True)
        if rho_init != rho_final:
            if total is None:
                bad_input("total", total, "the step at which rho_final is reached", "Pass the number of steps of your training.")
            if total <= warmup:
                bad_input("total", total, f"more than warmup={warmup}", "Shorten the warm-up of a short training.")
        self.rho_init, self.rho_final, self.warmup, self.total = float(rho_init), float(rho_final), int(warmup), total
        self.rho_before_warmup = self.rho_init if rho_before_warmup is None else float(rho_before_warmup)
        self._step = torch.zeros((), dtype=torch.int64)  # a tensor: a number would be compiled anew in every step

    @property
    def step(self) -> int:
        return int(self._step)

    @step.setter
    def step(self, value: int) -> None:
        self._step.fill_(value)

    def advance(self) -> None:
        """The next step."""
        self._step.add_(1)

    def rho_at(self, step: int) -> float:
        r""":math:`\rho_t`."""
        if step < self.warmup:
            return self.rho_before_warmup
        if self.total is None or self.rho_init == self.rho_final:
            return self.rho_init
        done = min((step - self.warmup) / (self.total - self.warmup), 1.0)
        return (1 - done) * self.rho_init + done * self.rho_final

    @property
    def rho(self) -> float:
        r""":math:`\rho_t` of the current step."""
        return self.rho_at(self.step)

    def traced_rho(self) -> float | Tensor:
        r""":attr:`rho`; where torch.compile traces it, a tensor unless it is the same at every step."""
        if not torch.compiler.is_compiling():
            return self.rho
        if self.rho_before_warmup == self.rho_init and (self.total is None or self.rho_init == self.rho_final):
            return self.rho_init
        rho: Tensor = self.rho_init * torch.ones_like(self._step, dtype=torch.float64)
        if self.total is not None and self.rho_init != self.rho_final:
            done = ((self._step - self.warmup).double() / (self.total - self.warmup)).clamp(max=1.0)
            rho = (1 - done) * self.rho_init + done * self.rho_final
        return torch.where(self._step < self.warmup, self.rho_before_warmup, rho)

    def mask(self, logits: Tensor, positives: Tensor) -> Tensor:
        r""":math:`\Omega` (B, N) as booleans, at the current step.

        ``positives`` is the column of the positive of each row (B,), or booleans (B, N) where a row has several; they are no negatives, and
        neither is what has the logit -inf. A row whose negatives all have it keeps one of them. No gradient flows through the mask.
        """
        if logits.ndim != 2 or not logits.is_floating_point():
            bad_input("logits", described(logits), "floating-point logits (B, N)")
        if not torch.compiler.is_compiling() and bool(logits.isnan().any()):
            bad_input("logits", "nan", "numbers")
        lines = single(logits.detach()).clone()
        own = torch.zeros_like(lines, dtype=torch.bool)
        if positives.dtype == torch.bool and positives.shape == logits.shape:
            own |= positives
        elif positives.shape == logits.shape[:1] and not positives.is_floating_point() and positives.dtype != torch.bool:
            if not torch.compiler.is_compiling() and not bool(((positives >= 0) & (positives < logits.shape[1])).all()):
                bad_input("positives", positives.tolist(), f"columns of the logits, 0..{logits.shape[1] - 1}")
            own.scatter_(1, positives[:, None].long(), True)
        else:
            bad_input("positives", described(positives), "columns (B,), or booleans (B, N)")
        lines.masked_fill_(own, float("-inf"))
        out = lines.isneginf()
        kept = (lines >= threshold(lines, self.rho, out.sum(dim=1))[:, None]) & ~out
        lost = ~kept.any(dim=1, keepdim=True) & ~own
        first = lost & (lost.cumsum(dim=1) == 1)
        return kept | first

    def state_dict(self) -> dict[str, Any]:
        """The step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])

    def __repr__(self) -> str:
        shares = f"rho_init={self.rho_init:g}, rho_final={self.rho_final:g}, warmup={self.warmup}, total={self.total}"
        return f"QuantileCurriculum({shares}, rho_before_warmup={self.rho_before_warmup:g}, step={self.step})"


def threshold(lines: Tensor, rho: float | Tensor, left_out: int | Tensor) -> Tensor:
    """(B,) the smallest value of each line (B, N) that its rho-quantile lets pass, among what is not left out: ``left_out`` of a line's
    values, one number for all or (B,), are -inf.

    >>> threshold(torch.tensor([[4.0, -torch.inf, 1.0, 2.0, 3.0]]), 0.5, 1)  # the median of 1, 2, 3, 4 is 2.5
    tensor([3.])
    """
    n = lines.shape[1]
    if isinstance(left_out, int) and not isinstance(rho, Tensor):
        k = min(left_out + _above(rho * (n - left_out - 1), n), n - 1)
        if lines.device.type == "cpu" and not torch.compiler.is_compiling():
            # On CPUs NumPy selects several times as fast as torch.kthvalue.
            values = np.array(lines.numpy(), order="C") if lines.is_contiguous() else lines.contiguous().numpy()  # new memory
            values.partition(k, axis=1)
            return torch.from_numpy(values[:, k].copy())
        return lines.kthvalue(k + 1, dim=1).values
    out = torch.as_tensor(left_out, device=lines.device).expand(len(lines))
    h = rho * (n - out - 1).clamp(min=0).double()
    index = (out + torch.ceil(h - ROUNDING * n).long()).clamp(max=n - 1)
    return lines.sort(dim=1).values.gather(1, index[:, None])[:, 0]


def _above(h: float, n: int) -> int:
    """The index of the order statistic at or above position ``h``."""
    return max(math.ceil(h - ROUNDING * n), 0)
