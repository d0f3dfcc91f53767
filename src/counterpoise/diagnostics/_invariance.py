r"""Which weights are scale invariant, and how fast their steps die away (Heo et al. 2021, arXiv:2006.08217).

What is unbalanced: a weight w before a normalization is scale invariant, :math:`f(c\,w) = f(w)`. Only its direction counts, and a step
:math:`lr` turns it as one of :math:`lr / \|w\|^2` would turn a weight of length 1. Its gradient is orthogonal to w, so every step makes w
longer and the next one smaller, while the other parameters keep their steps.

Such weights are seen in one gradient, as :class:`counterpoise.optim.AdamP` sees them: all cosines of rows and their gradients are small.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_range, listing
from counterpoise._pergrad import untouched
from counterpoise.optim._projection import cosines, rows_of
from counterpoise.report._format import percent, plain

from ._sketching import unwrapped

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["InvarianceReport", "scale_invariance"]

Array = npt.NDArray[np.float64]

EPS = 1e-8  # of AdamP, in the cosines
FACTOR = 2.0  # by which weights are made longer, to see whether the loss minds
MINDS = 0.01  # of the loss: a larger change is more than the epsilon of a normalization layer


@dataclass(frozen=True, eq=False)
class InvarianceReport:
    """Result of :func:`scale_invariance`: one entry per trainable parameter, in the order of the model.

    Attributes
    ----------
    names : tuple of str
    shapes : tuple of tuple of int
    kinds : tuple of "channel", "layer" or None
        How the parameter is taken as invariant: row by row, as a whole, or not at all. Vectors are never.
    cos_channel, cos_layer : (P,)
        :math:`|cos|` of weight and gradient: the largest of any row, and of the whole; NaN for vectors.
    limit_channel, limit_layer : (P,)
        What they must be below: delta over the root of the row length, of all rows or of one.
    norm : (P,)
        Length of the whole parameter.
    effective_lr : (P,)
        The learning rate at which plain gradient descent on a weight of length 1 would turn as far as this one turns in the next step:
        :math:`\\|\\Delta_\\perp\\| / (\\|w\\|^2 \\|g_\\perp\\|)` with the parts of step and gradient that are orthogonal to w. For
        ``torch.optim.SGD`` without momentum that is :math:`lr / \\|w\\|^2`. NaN where no gradient turns the weight.
    growth : (P,)
        By how much the squared length grows in the next step, relative to what it is.
    change : (P,)
        By how much the loss changes when the weight becomes twice as long, relative to the loss: (nearly) 0 if it is invariant. For
        "channel", every other row becomes half as long instead. NaN for parameters that are not taken as invariant, and if the loss was
        given as a tensor.
    delta : float
    optimizer : str
        Whose step it is.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    kinds: tuple[str | None, ...]
    cos_channel: Array
    cos_layer: Array
    limit_channel: Array
    limit_layer: Array
    norm: Array
    effective_lr: Array
    growth: Array
    change: Array
    delta: float
    optimizer: str

    @property
    def false_alarms(self) -> tuple[str, ...]:
        """Parameters that are taken as invariant, though the loss changes by more than 1 % when they are made longer."""
        return tuple(name for name, change in zip(self.names, self.change, strict=True) if change > MINDS)

    def to_frame(self) -> pl.DataFrame:
        """One row per parameter."""
        import polars as pl

        columns = ("cos_channel", "limit_channel", "cos_layer", "limit_layer", "norm", "effective_lr", "growth", "change")
        first: dict[str, Any] = {"parameter": list(self.names), "kind": list(self.kinds)}
        return pl.DataFrame(first | {name: getattr(self, name) for name in columns}, schema_overrides={"kind": pl.String})

    def summary(self) -> str:
        """Which weights are invariant, how different their effective learning rates are, what the next step does to them."""
        chosen = np.array([kind is not None for kind in self.kinds])
        matrices = sum(len(shape) > 1 for shape in self.shapes)
        if not chosen.any():
            return f"None of {matrices} weights with rows is scale invariant (delta {self.delta:g})."
        by_kind = {kind: [name for name, own in zip(self.names, self.kinds, strict=True) if own == kind] for kind in ("channel", "layer")}
        word = {"channel": "by channel", "layer": "as a whole"}
        parts = [f"{len(names)} {word[kind]} ({listing(names, 3)})" for kind, names in by_kind.items() if names]
        lines = [f"{chosen.sum()} of {matrices} weights with rows are taken as scale invariant (delta {self.delta:g}): {', '.join(parts)}."]
        rates = self.effective_lr[chosen & np.isfinite(self.effective_lr)]
        if len(rates):
            spread = f" to {plain(rates.max())}, a factor of {plain(rates.max() / rates.min())}" if rates.max() > rates.min() else ""
            lines.append(f"Their effective learning rates with {self.optimizer}: {plain(rates.min())}{spread}.")
            worst = int(np.nanargmax(np.where(chosen, self.growth, np.nan)))
            lines.append(
                f"The next step changes their squared length by at most {plain(100 * self.growth[worst])} % ({self.names[worst]})."
            )
        if self.false_alarms:
            lines.append(
                f"Not invariant, though the gradient looks like it: {listing(self.false_alarms, 3)}; the loss changes with the length."
            )
        if by_kind["layer"]:
            chance = math.erf(self.delta / math.sqrt(2))
            lines.append(
                f"A gradient without any relation to its weight passes the test of a whole layer in {percent(chance, 0)} of all steps."
            )
        return "\n".join(lines)

    def plot(self) -> Figure:
        """For every weight with rows: both cosines, as multiples of what they must be below."""
        return _figure(self)


def scale_invariance(
    model: nn.Module, loss: Tensor | Callable[[], Tensor], *, optimizer: torch.optim.Optimizer | None = None, delta: float = 0.1
) -> InvarianceReport:
    r"""Which weights of a model are scale invariant, and what the next step does to their length.

    A weight of two dimensions or more is taken as invariant per channel if :math:`|\cos(g, w)| < \delta / \sqrt n` for every row w, of
    length n, and its gradient g; else as a whole, if the cosine of the whole tensor passes; else not. Nothing is changed: a step is tried
    on copies of the parameters and of the optimizer.

    Parameters
    ----------
    model : torch.nn.Module
        In the mode that it is trained in: with running statistics, batch normalization leaves nothing invariant.
    loss : Tensor of one number, or callable () -> such a Tensor
        Of one batch, as in training. Given as a callable, such as ``lambda: F.cross_entropy(model(x), y)``, it is evaluated again with
        longer weights, which tells false alarms from invariant weights. A tensor keeps its graph.
    optimizer : torch.optim.Optimizer, optional
        Whose next step is tried: of any kind, also one that projects, weight decay included. Default: plain gradient descent with lr = 1;
        multiply ``effective_lr`` by your lr, and ``growth`` of invariant weights by its square.
    delta : float >= 0, default 0.1 (the paper's)

    Raises
    ------
    InputError
        If the loss is not one finite number that depends on a trainable parameter; if a parameter is complex or its gradient sparse; if
        the optimizer needs a closure.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 16, bias=False), nn.BatchNorm1d(16), nn.Linear(16, 2))
    >>> x, y = torch.randn(64, 4), torch.arange(64) % 2
    >>> report = scale_invariance(model, lambda: nn.functional.cross_entropy(model(x), y))
    >>> [(name, kind) for name, kind in zip(report.names, report.kinds) if kind]
    [('0.weight', 'channel')]
    >>> bool(report.change[0] < 1e-3)
    True
    """
    if not isinstance(model, nn.Module):
        bad_input("model", type(model).__name__, "a torch.nn.Module")
    check_range("delta", delta, low=0.0)
    model = unwrapped(model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    with untouched(model, evaluate=False), torch.enable_grad():
        value = loss() if callable(loss) else loss
        gradients = _gradients(value, named)
    table = [_tests(p, g, delta) for (_, p), g in zip(named, gradients, strict=True)]
    kinds = [row.pop("kind") for row in table]
    with untouched(model, evaluate=False), torch.no_grad():
        steps = _trial(named, gradients, optimizer)
        effects = [_effect(p, g, step) for (_, p), g, step in zip(named, gradients, steps, strict=True)]
    changes = [math.nan] * len(named)
    if callable(loss):
        changes = [_change(model, loss, p, kind, float(value.detach())) for (_, p), kind in zip(named, kinds, strict=True)]
    rows = [row | effect for row, effect in zip(table, effects, strict=True)]
    return InvarianceReport(
        names=tuple(name for name, _ in named),
        shapes=tuple(tuple(p.shape) for _, p in named),
        kinds=tuple(kinds),
        **{name: np.array([row[name] for row in rows], dtype=np.float64) for name in rows[0]},
        change=np.array(changes),
        delta=float(delta),
        optimizer="gradient descent at lr = 1" if optimizer is None else type(optimizer).__name__,
    )


# ---- the gradient -----------------------------------------------------------------------------------------------------------------------


def _gradients(value: Any, named: list[tuple[str, nn.Parameter]]) -> list[Tensor]:
    """Of all parameters; zeros for one that takes no part."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        shown = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        bad_input("loss", shown, "one number, as a tensor or as a function that returns it")
    if not named or not value.requires_grad:
        bad_input("loss", "a tensor that depends on no trainable parameter", "the loss of a batch, not detached")
    if not bool(torch.isfinite(value)):
        bad_input("loss", f"a loss of {float(value.detach())}", "a finite one")
    for name, p in named:
        if p.is_complex():
            bad_input("model", f"parameter {name!r} of {p.dtype}", "real parameters")
    found = torch.autograd.grad(value, [p for _, p in named], retain_graph=True, allow_unused=True)
    if all(g is None for g in found):
        bad_input("loss", "a tensor that depends on no trainable parameter of the model", "the loss of this model")
    for (name, _), g in zip(named, found, strict=True):
        if g is not None and g.is_sparse:
            bad_input("model", f"a sparse gradient of {name!r}", "dense gradients", "Give the embedding sparse=False.")
    return [torch.zeros_like(p) if g is None else g.detach() for (_, p), g in zip(named, found, strict=True)]


def _tests(p: Tensor, gradient: Tensor, delta: float) -> dict[str, Any]:
    """What the gradient says about one parameter."""
    names = ("cos_channel", "limit_channel", "cos_layer", "limit_layer")
    if p.ndim < 2 or not p.numel():
        return dict.fromkeys(names, math.nan) | {"kind": None}
    w, g = rows_of([p.detach()]), rows_of([gradient])
    length = torch.linalg.vector_norm(w, dim=2, keepdim=True)
    of_rows, of_all = cosines(w, g, EPS, length, torch.linalg.vector_norm(length, dim=1, keepdim=True))
    values = (float(of_rows.max()), delta / math.sqrt(w.shape[2]), float(of_all), delta / math.sqrt(p.numel()))
    used = bool(g.any())  # a parameter without gradient says nothing
    kind = None if not used else "channel" if values[0] < values[1] else "layer" if values[2] < values[3] else None
    return dict(zip(names, values, strict=True)) | {"kind": kind}


# ---- the next step ----------------------------------------------------------------------------------------------------------------------


def _trial(named: list[tuple[str, nn.Parameter]], gradients: list[Tensor], optimizer: torch.optim.Optimizer | None) -> list[Tensor | None]:
    """The step that the optimizer would make of every parameter; None for one that is not its own."""
    if optimizer is None:
        return [-g for g in gradients]
    if not isinstance(optimizer, torch.optim.Optimizer):
        bad_input("optimizer", type(optimizer).__name__, "a torch.optim.Optimizer")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        bad_input("optimizer", type(optimizer).__name__, "an optimizer that steps without a closure")
    of = {id(p): g for (_, p), g in zip(named, gradients, strict=True)}
    other = copy.deepcopy(optimizer)
    copies: dict[int, Tensor] = {}
    for group, twin in zip(optimizer.param_groups, other.param_groups, strict=True):
        for p, q in zip(group["params"], twin["params"], strict=True):
            copies[id(p)] = q
            q.grad = of[id(p)].clone() if id(p) in of else None
    if not copies.keys() & of.keys():
        bad_input("optimizer", "one without any trainable parameter of the model", "the optimizer of this model")
    other.step()
    return [copies[id(p)].detach() - p.detach() if id(p) in copies else None for _, p in named]


def _effect(p: Tensor, gradient: Tensor, step: Tensor | None) -> dict[str, float]:
    """Length, effective learning rate and growth of one parameter."""
    w, g = (x.detach().reshape(-1).double().cpu() for x in (p, gradient))
    norm = float(torch.linalg.vector_norm(w))
    if step is None or not norm:
        return {"norm": norm, "effective_lr": math.nan, "growth": math.nan}
    s = step.reshape(-1).double().cpu()
    turns = [float(torch.linalg.vector_norm(x - w * (torch.dot(w, x) / norm**2))) for x in (s, g)]
    growth = float(2 * torch.dot(w, s) + torch.dot(s, s)) / norm**2
    return {"norm": norm, "effective_lr": turns[0] / turns[1] / norm**2 if turns[1] else math.nan, "growth": growth}


# ---- the loss with longer weights -------------------------------------------------------------------------------------------------------


def _change(model: nn.Module, loss: Callable[[], Tensor], p: nn.Parameter, kind: str | None, before: float) -> float:
    """Relative change of the loss; the parameter is given other data for a moment, which no graph of the user's sees."""
    if kind is None:
        return math.nan
    factor = p.new_full((len(p), *[1] * (p.ndim - 1)), FACTOR)
    if kind == "channel":
        factor[1::2] = 1 / FACTOR
    data = p.data
    with untouched(model, evaluate=False), torch.no_grad():
        try:
            p.data = data * factor
            after = float(loss())
        finally:
            p.data = data
    return abs(after - before) / abs(before) if before else abs(after)


# ---- the picture ------------------------------------------------------------------------------------------------------------------------


def _figure(report: InvarianceReport) -> Figure:
    from counterpoise.report import _plots

    shown = [i for i, shape in enumerate(report.shapes) if len(shape) > 1 and np.isfinite(report.cos_channel[i])]
    more = len(shown) - _plots.MOST_GROUPS
    shown = shown[: _plots.MOST_GROUPS]
    rows = max(len(shown), 1)
    with _plots.style():
        row_height, top, bottom, left, span = 26, 72, 46, 190, 340
        height = row_height * rows + top + bottom
        fig = _plots.figure(_plots.WIDTH, height)
        ax = _plots.axes(fig, left, bottom, span, row_height * rows)
        _plots.plain_rows(ax, rows)
        _plots.rules_between(ax, rows)
        ax.set_xscale("log")
        ax.axvline(1, color=_plots.INK, lw=1, zorder=1)
        for place, i in enumerate(shown):
            kind = report.kinds[i]
            for view, marker in (("channel", "o"), ("layer", "s")):
                ratio = getattr(report, f"cos_{view}")[i] / max(getattr(report, f"limit_{view}")[i], 1e-300)
                decides = kind == view
                color, edge = (_plots.BLUE, _plots.PAPER) if decides else (_plots.PAPER, _plots.GRAY)
                ax.plot(max(ratio, 1e-6), place, marker, ms=8.5, color=color, mec=edge, zorder=3 if decides else 2)
            _plots.row_text(fig, ax, place, 8, report.names[i][-24:], weight="bold" if kind else "normal")
            doubt = ", loss minds" if report.names[i] in report.false_alarms else ""
            _plots.row_text(fig, ax, place, left + span + 16, (kind or "not invariant") + doubt, color=_plots.MUTED)
        ax.set_xlabel("|cos| of weight and gradient, over its limit: invariant left of 1")
        looks: dict[str, Any] = {"ms": 7, "mec": _plots.GRAY, "color": _plots.PAPER}
        _plots.key(fig, 16, height - 44, [("largest of a row", {"marker": "o", **looks}), ("whole tensor", {"marker": "s", **looks})])
        title = f"{sum(kind is not None for kind in report.kinds)} weights are scale invariant" + (
            f" ({more} more not shown)" if more > 0 else ""
        )
        fig.text(8 / _plots.WIDTH, 1 - 12 / height, title, va="top", weight="bold")
        return fig
