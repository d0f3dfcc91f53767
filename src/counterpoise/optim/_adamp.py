r"""Adam and SGD whose updates have no radial component on scale-invariant weights (Heo et al. 2021, arXiv:2006.08217).

What is unbalanced, and how the radial component is found and taken out, stands in ``_projection.py``. Here is what it is taken out of: the
moments of Adam, and the buffer of SGD with momentum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from counterpoise._errors import bad_input, check_choice, check_range

from ._projection import INVARIANCES, check_real, dense_gradient, last_group_refused, parts, radial, rows_of, tensors_of

__all__ = ["SGDP", "AdamP"]

Invariance = Literal["auto", "channel", "layer", "none"]


class _Projected(torch.optim.Optimizer):
    """What AdamP and SGDP share: checks, loading, the order of a step. They say what is kept per parameter, and what a step is."""

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step. ``closure`` is evaluated once, with gradients enabled; what it returned is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lists: list[list[Tensor]] = [[] for _ in ("params", "grads", *self._kept(group))]
            self._init_group(group, *lists)
            for part in parts(lists[0], group["foreach"]):
                self._move(group, *([tensors[i] for i in part] for tensors in lists))
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self._check(self.defaults | param_group)
        super().add_param_group(param_group)
        with last_group_refused(self):
            check_real(self.param_groups[-1])

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                if name != "differentiable":  # which Optimizer.__setstate__ itself has put there
                    group.setdefault(name, value)
            for p in group["params"]:
                if p in self.state:
                    self._adopt(self.state[p], p, group)

    def _init_group(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *kept: list[Tensor]) -> None:
        # torch.compile knows this method by its name: it is run, not traced, and may fill lists of tensors.
        for p in group["params"]:
            gradient = dense_gradient(p, type(self).__name__)
            if gradient is None or not p.numel():
                continue
            params.append(p)
            grads.append(gradient)
            state = self.state[p]
            for name, tensors in zip(self._kept(group), kept, strict=True):
                if name not in state:
                    state[name] = self._first(name, p, group)
                tensors.append(state[name])

    @staticmethod
    def _check(group: dict[str, Any]) -> None:
        check_range("lr", group["lr"].item() if isinstance(group["lr"], Tensor) else group["lr"], low=0.0)
        check_range("eps", group["eps"], low=0.0)
        check_range("weight_decay", group["weight_decay"], low=0.0)
        check_range("delta", group["delta"], low=0.0)
        check_range("wd_ratio", group["wd_ratio"], low=0.0, high=1.0)
        check_choice("invariance", group["invariance"], INVARIANCES)

    def _kept(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of what is kept of every parameter."""
        raise NotImplementedError

    def _first(self, name: str, p: Tensor, group: dict[str, Any]) -> Tensor:
        """What is kept of a parameter before its first step."""
        return torch.zeros_like(p, memory_format=torch.preserve_format)

    def _adopt(self, state: dict[str, Any], p: Tensor, group: dict[str, Any]) -> None:
        """Bring what was loaded, from this or a related optimizer, into the form of this one's, in place."""

    def _move(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *kept: list[Tensor]) -> None:
        """One step of parameters of one shape."""
        raise NotImplementedError


class AdamP(_Projected):
    r"""Adam with decoupled weight decay that leaves the length of scale-invariant weights alone.

    With Adam's moments m, v of the gradient g, :math:`\beta_1, \beta_2` their decay, and t the step:

    .. math::
        u = \frac{m}{\sqrt{v} / \sqrt{1 - \beta_2^t} + \epsilon}, \qquad
        w \leftarrow (1 - lr \cdot wd \cdot r)\,w - \frac{lr}{1 - \beta_1^t} \bigl(u - \hat w\,(\hat w \cdot u)\bigr)

    with :math:`\hat w = w / (\|w\| + \epsilon)` row by row. The projection and r = ``wd_ratio`` apply where the weight is invariant:
    a tensor of two dimensions or more whose gradient has, at this step, :math:`|\cos(g, w)| < \delta / \sqrt n` in every row of length n,
    per output channel or else for the whole layer. Elsewhere this is AdamW, with r = 1.

    **Without a decaying learning rate, expect less than from AdamW**: the growth of the weights that is removed here acts as a decay of the
    steps. Use a schedule that goes to (nearly) zero.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor), or of dict
        As in torch; every option below may stand in a group.
    lr : float or Tensor, default 1e-3
        A tensor can be changed without compiling or capturing anew.
    betas : (float, float) in [0, 1), default (0.9, 0.999)
    eps : float >= 0, default 1e-8
        Added to the root of v and to the length of a weight; the smallest length in a cosine.
    weight_decay : float >= 0, default 0
        Decoupled: not in the moments, multiplied by lr.
    delta : float >= 0, default 0.1
        The larger, the more weights are taken as invariant. Defaults are the paper's.
    wd_ratio : float in [0, 1], default 0.1
        Share of the weight decay that invariant weights get.
    nesterov : bool, default False
        u from :math:`\beta_1 m + (1 - \beta_1) g`.
    invariance : {"auto", "channel", "layer", "none"}, default "auto"
        "auto" decides by the gradient, anew at every step; the others fix it, for tensors of two dimensions or more. "none" is AdamW.
    foreach : bool, optional
        Compute parameters of one shape together. Default: yes, on any device, unless they are of a tensor class of their own (``DTensor``).
    maximize : bool, default False
    capturable : bool, default False
        Keep the step count on the device, for CUDA graphs.

    Notes
    -----
    *State*: ``step``, ``exp_avg``, ``exp_avg_sq``, as torch's Adam. The state of torch's Adam and AdamW, and of the package ``adamp``,
    can be loaded; options that are not in it stay as they were given here, and L2 regularization becomes decoupled decay. The moments
    are never projected.

    *Reduced precision*: parameters in half precision are stepped in float32 and rounded once.

    *Several processes*: no change for DDP. Parameters spread over processes by rows (``fully_shard``) give the same steps; a test of a
    whole layer sums over processes.

    *Fused attention weights* (q, k and v in one tensor) are tested as a whole, so one part that is not invariant turns the projection off.

    *False alarms*: a gradient without any relation to its weight passes the layer test with probability 8 % per step (delta 0.1).
    ``diagnostics.scale_invariance`` shows which weights are taken as invariant.

    Raises
    ------
    InputError
        If an option is out of its range, a parameter is complex, or a gradient is sparse.

    Examples
    --------
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    >>> optimizer = AdamP(net.parameters(), lr=1e-2, weight_decay=1e-2)
    >>> schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    >>> before = net[0].weight.norm(dim=1).detach()
    >>> for x in torch.randn(10, 32, 4, generator=torch.Generator().manual_seed(0)):
    ...     optimizer.zero_grad()
    ...     torch.nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long()).backward()
    ...     optimizer.step()
    ...     schedule.step()
    >>> bool((net[0].weight.norm(dim=1) / before - 1).abs().max() < 0.1)
    True
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        *,
        invariance: Invariance = "auto",
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "delta": delta, "wd_ratio": wd_ratio, "nesterov": nesterov,
            "invariance": invariance, "foreach": foreach, "maximize": maximize, "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)

    @staticmethod
    def _check(group: dict[str, Any]) -> None:
        _Projected._check(group)
        if not isinstance(group["betas"], tuple | list) or len(group["betas"]) != 2:
            bad_input("betas", group["betas"], "two numbers, such as (0.9, 0.999)")
        for i, beta in enumerate(group["betas"]):
            _check_decay(f"betas[{i}]", beta)

    def _kept(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq", "step"

    def _first(self, name: str, p: Tensor, group: dict[str, Any]) -> Tensor:
        return _step_count(0.0, p, group) if name == "step" else super()._first(name, p, group)

    def _adopt(self, state: dict[str, Any], p: Tensor, group: dict[str, Any]) -> None:
        if "step" in state:
            state["step"] = _step_count(state["step"], p, group)
        if state.pop("max_exp_avg_sq", None) is not None:
            group["amsgrad"] = False  # so that torch's Adam can take the state back

    def _move(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *kept: list[Tensor]) -> None:
        exp_avgs, exp_avg_sqs, steps = kept
        beta1, beta2 = group["betas"]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)

        p, g = rows_of(params), rows_of(grads)
        corrections = _bias_corrections(steps, (beta1, beta2), p, group["capturable"])
        update = rows_of(exp_avg_sqs).sqrt().div_(corrections[1] ** 0.5).add_(group["eps"])
        m = rows_of(exp_avgs)
        if group["nesterov"]:
            m = torch.lerp(g, m, beta1)
        torch.div(m, update, out=update)
        del m  # for the peak of memory
        decayed = _drop_radial(update, p, g, params, group)
        update.mul_(-group["lr"] / corrections[0])
        _move_by(params, update, p, decayed, group["lr"] * group["weight_decay"])


class SGDP(_Projected):
    r"""SGD with momentum and decoupled weight decay that leaves the length of scale-invariant weights alone.

    .. math::
        b \leftarrow \mu\,b + (1 - d)\,g, \qquad u = b \ \text{ or, with Nesterov's, }\ g + \mu\,b, \qquad
        w \leftarrow \Bigl(1 - \frac{lr \cdot wd \cdot r}{1 - \mu}\Bigr)\,w - lr\,\bigl(u - \hat w\,(\hat w \cdot u)\bigr)

    with momentum :math:`\mu` and dampening d. Which weights are projected, and r, are as in :class:`AdamP`.

    Two things are as in the authors' code and unlike ``torch.optim.SGD``: dampening acts at the first step as well, and without momentum;
    and without Nesterov's the buffer itself is projected, so that the next step starts from the projected one.

    Parameters
    ----------
    params : iterable of Tensor, of (name, Tensor), or of dict
    lr : float or Tensor
    momentum : float in [0, 1), default 0
    dampening : float in [0, 1], default 0
    weight_decay : float >= 0, default 0
        Decoupled, and divided by 1 - momentum: what L2 regularization of the same size comes to in the long run.
    nesterov : bool, default False
    eps, delta, wd_ratio, invariance, foreach, maximize
        As in :class:`AdamP`.
    capturable : bool, default False
        Changes nothing, since nothing is kept on the host: a step can be part of a CUDA graph either way.

    Notes
    -----
    *State*: ``momentum_buffer``, as torch's SGD, and none without momentum. The state of ``torch.optim.SGD`` and of the package ``adamp``
    can be loaded. More in :class:`AdamP`.

    Raises
    ------
    InputError
        If an option is out of its range, a parameter is complex, or a gradient is sparse.

    Examples
    --------
    >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    >>> optimizer = SGDP([w], lr=0.1, momentum=0.9, invariance="channel")
    >>> w.grad = torch.tensor([[3.0, 4.0]])  # all of it is along w
    >>> optimizer.step()
    >>> w.data
    tensor([[3., 4.]])
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        eps: float = 1e-8,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        *,
        invariance: Invariance = "auto",
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov, "eps": eps,
            "delta": delta, "wd_ratio": wd_ratio, "invariance": invariance, "foreach": foreach, "maximize": maximize,
            "capturable": capturable,
        }  # fmt: skip
        super().__init__(params, defaults)

    @staticmethod
    def _check(group: dict[str, Any]) -> None:
        _Projected._check(group)
        _check_decay("momentum", group["momentum"])
        check_range("dampening", group["dampening"], low=0.0, high=1.0)

    def _kept(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _adopt(self, state: dict[str, Any], p: Tensor, group: dict[str, Any]) -> None:
        if "momentum" in state:  # of the package adamp
            state["momentum_buffer"] = state.pop("momentum")
        if "momentum_buffer" in state and state["momentum_buffer"] is None:  # of torch's SGD, before the first step
            del state["momentum_buffer"]

    def _move(self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *kept: list[Tensor]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        p, g = rows_of(params), rows_of(grads)
        if momentum:
            (buffers,) = kept
            torch._foreach_mul_(buffers, momentum)
            torch._foreach_add_(buffers, grads, alpha=1 - group["dampening"])
            b = rows_of(buffers)
        else:
            b = g * (1 - group["dampening"])
        update = torch.add(g, b, alpha=momentum) if group["nesterov"] else b.clone()
        decayed = _drop_radial(update, p, g, params, group)
        if momentum and not group["nesterov"]:
            # A difference rather than a copy, for which DTensor has no rule.
            torch._foreach_add_(buffers, tensors_of(update - b, params[0]))
        _move_by(params, update.mul_(-lr), p, decayed, lr * group["weight_decay"] / (1 - momentum))


def _drop_radial(update: Tensor, p: Tensor, g: Tensor, params: list[Tensor], group: dict[str, Any]) -> Tensor:
    """Take the radial component out of the update, in place, where the weight is invariant; (k, 1, 1) the share of the decay it gets."""
    one = p.new_ones((1, 1, 1))
    if params[0].ndim < 2 or group["invariance"] == "none":
        return one
    along, invariant = radial(update, p, g, delta=group["delta"], eps=group["eps"], invariance=group["invariance"])
    update.addcmul_(p, along, value=-1)
    return torch.where(invariant, group["wd_ratio"] * one, one)


def _move_by(params: list[Tensor], update: Tensor, p: Tensor, decayed: Tensor, decay: float | Tensor) -> None:
    """``params += update - decay * decayed * p``; the update is overwritten."""
    if isinstance(decay, Tensor) or decay:
        update.addcmul_(p, decayed * -decay)
    torch._foreach_add_(params, tensors_of(update, params[0]))


def _bias_corrections(steps: list[Tensor], betas: tuple[float, float], p: Tensor, on_device: bool) -> list[float] | list[Tensor]:
    """1 - beta^t: a number if the steps lie on the host and are the same for all k tensors, else (k, 1, 1)."""
    if not on_device and not torch.compiler.is_compiling():
        counts = {step.item() for step in steps}
        if len(counts) == 1:
            return [1 - beta**count for count in counts for beta in betas]
    exponents = torch.stack(steps).double()
    return [(1 - beta**exponents).to(p).view(-1, 1, 1) for beta in betas]


def _step_count(step: float | Tensor, p: Tensor, group: dict[str, Any]) -> Tensor:
    # On the host unless captured: there it is read for free.
    return torch.as_tensor(step, dtype=torch.float32, device=p.device if group["capturable"] else "cpu")


def _check_decay(name: str, value: float) -> None:
    check_range(name, value, low=0.0, high=1.0)
    if value == 1:
        bad_input(name, value, "a number in [0, 1)", "At 1 nothing would be forgotten, and the step is divided by 1 - " + name + ".")
