r"""Self Positioning (arXiv:2410.15035): where between fine-tuned models of one base the loss on a few mixed examples is lowest.

What is unbalanced: in a joint training the task with the most data fixes the direction of the step. So each task trains a model of its own,
and the merged position is searched for in the span of the task vectors :math:`V_i = \theta_i - \theta_0`:

.. math:: \min_{a > 0,\, \lambda \ge 0} \; \mathbb{E}\, L\Big(\theta_0 + \lambda \sum_i c_i(a)\, V_i\Big) + \mu \lambda,

with the coefficients c of the nested spherical interpolation (:mod:`._slerp`). N + 1 numbers are trained. The merged vector is linear in
the task vectors, so that :math:`\partial L / \partial (\lambda c_i) = \langle \nabla L, V_i \rangle`, and c depends on their inner products
alone: these are taken once, and a step is one forward and backward pass and N inner products; no graph holds a task vector.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from counterpoise._dist import all_reduce_mean_
from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._precision import single

from ._merge import moving, slice_of
from ._models import Model, Models
from ._slerp import RULES, Rule, slerp_coefficients

if TYPE_CHECKING:
    import polars as pl

__all__ = ["RATES", "MergeResult", "SelfPositioning", "forever", "search"]

HELD = 2**28  # bytes of task vectors that are kept in memory; of more, they are read at every step
FADED = 0.01  # of the weights: a task below it may be missing in the probe
FAINTEST = -700.0  # log a of the weakest model against the strongest: its exponential is no 0 yet
RATES = {"adam": 0.05, "sgd": 0.5}


@dataclass(frozen=True, eq=False)
class MergeResult:
    """Result of :meth:`SelfPositioning.fit`.

    Attributes
    ----------
    state_dict : dict
        Of the merged model, for ``load_state_dict``.
    weights : (K,)
        a, with sum 1; 0 for a model that was left out. Without such, ``merge(base, models, "slerp", weights, scale, rule=rule)`` makes the
        same parameters, also into a file.
    scale : float
        lambda.
    coefficients : (K,)
        What the task vectors are multiplied by in the end.
    history : list of dict
        One for each step: ``step, loss`` (of the batch, before the step), ``scale, weights`` (it was computed with).
    stopped : str
        Empty, or why the search ended early.
    """

    state_dict: dict[str, Tensor]
    weights: Tensor
    scale: float
    coefficients: Tensor
    history: list[dict[str, Any]]
    stopped: str = ""

    def to_frame(self) -> pl.DataFrame:
        """One row per step: ``step, loss, scale``, and a column ``weight_k`` for every model k."""
        import polars as pl

        rows = [
            {"step": row["step"], "loss": row["loss"], "scale": row["scale"]} | {f"weight_{k}": a for k, a in enumerate(row["weights"])}
            for row in self.history
        ]
        return pl.DataFrame(rows)

    def summary(self) -> str:
        """Where the search ended."""
        shares = ", ".join(f"{a:.2f}" for a in self.weights.tolist())
        losses = [row["loss"] for row in self.history]
        few = -(-len(losses) // 10)  # a single batch may be of another task than the next, with another loss
        first, last = sum(losses[:few]) / few, sum(losses[-few:]) / few
        batches = "batch" if few == 1 else f"{few} batches"
        text = f"Weights {shares}, scale {self.scale:.2f}; mean loss of the first {batches} {first:.4g}, of the last {last:.4g}."
        return f"{text} {self.stopped}".strip()


class SelfPositioning:
    r"""Merge fine-tuned models where a probe loss is lowest (arXiv:2410.15035).

    .. math:: \min_{a > 0,\, \lambda \ge 0} \; \mathbb{E}\, L\Big(\theta_0 + \lambda \sum_i c_i(a)\, V_i\Big) + \mu \lambda

    Parameters
    ----------
    lr : float > 0, optional
        Of the N + 1 numbers :math:`u_i = \log a_i` and lambda. Default: 0.05 with "adam", 0.5 with "sgd".
    optimizer : {"adam", "sgd"}, default "adam"
    scale : float >= 0, default 1.0
        Where lambda starts; a starts at 1 for every model. The interpolation of orthogonal vectors is as long as one of them, not as their
        sum, so that values above 1 are normal.

    Examples
    --------
    >>> base, models = nn.Linear(2, 1, bias=False), [{"weight": torch.tensor([[2.0, 0.0]])}, {"weight": torch.tensor([[0.0, 2.0]])}]
    >>> _ = nn.init.zeros_(base.weight)
    >>> probe = [torch.tensor([[1.0, 0.0], [0.0, 1.0]])]
    >>> result = SelfPositioning().fit(base, models, probe, lambda model, x: ((model(x) - 3.0) ** 2).mean(), mu=0.0)
    >>> result.state_dict["weight"].round(decimals=2), round(result.scale, 2)
    (tensor([[3., 3.]]), 2.12)
    """

    def __init__(self, lr: float | None = None, *, optimizer: Literal["adam", "sgd"] = "adam", scale: float = 1.0) -> None:
        check_choice("optimizer", optimizer, tuple(RATES))
        self.lr = RATES[optimizer] if lr is None else lr
        check_range("lr", self.lr, low=0.0, open_low=True)
        check_range("scale", scale, low=0.0)
        self.optimizer, self.scale = optimizer, scale

    def fit(
        self,
        base: nn.Module,
        models: Sequence[Model],
        probe: Iterable[Any],
        loss_fn: Callable[[nn.Module, Any], Tensor],
        steps: int = 200,
        mu: float = 0.01,
        rule: Rule = "mean",
    ) -> MergeResult:
        r"""Search on ``probe``. None of the arguments is changed.

        In memory are the base, the merged model, and one gradient at a time. Task vectors are kept if all of them are small (256 MiB), else
        read at every step, from files a piece at a time. The model is in eval mode, but for batch normalization, which uses the batch; its
        statistics are estimated anew on the whole probe in the end. With several processes (torch.distributed), each passes a part of the
        probe, and the N + 1 gradients are averaged.

        Parameters
        ----------
        base : torch.nn.Module
            What the models were fine-tuned from; parameters that do not require gradients are merged like the others.
        models : sequence of K modules, state dictionaries, or paths
            K = 1: only lambda is searched for.
        probe : loader, or list of batches
            Held-out examples of all tasks, mixed; examples the models were trained on make their losses look lower than they are. The paper
            takes 32,000. Batches are passed to ``loss_fn`` as they are, over and over until there were enough steps.
        loss_fn : function (model, batch) -> scalar
            Losses with in-batch negatives grow with log B: divide by it where tasks have batches of different sizes.
        steps : int >= 1, default 200
        mu : float >= 0, default 0.01
            Price of lambda, in units of the loss. The paper found values below 0.05 best.
        rule : {"mean", "sum"}, default "mean" (the paper's)
            See :func:`nested_slerp`: by the paper's rule the order of the models matters.

        Raises
        ------
        InputError
            If models do not match the base, all equal it, two task vectors are antiparallel, the probe is empty, or the first loss is not
            finite.

        Warns
        -----
        UserWarning
            If a model equals the base and is left out, a loss is not finite (the best position so far is returned), or a weight fades
            below 1 %: is its task in the probe?
        """
        if not isinstance(base, nn.Module):
            bad_input("base", type(base).__name__, "a torch.nn.Module, on which the loss is computed")
        check_choice("rule", rule, RULES)
        check_range("steps", steps, low=1, integer=True)
        check_range("mu", mu, low=0.0)
        opened = Models(base, models)
        gram = opened.gram()
        kept = moving(gram, opened.labels, depth=3)
        if not kept:
            bad_input("models", f"{len(opened)} models that equal the base", "at least one that was fine-tuned")
        with torch.random.fork_rng(devices=[]):  # loaders draw their seeds from it
            merged = MergedModel(base, opened, kept)
            batches = forever(probe)
            found = search(
                slice_of(gram, kept),
                lambda c: merged.loss_and_products(c, next(batches), loss_fn),
                [opened.labels[k] for k in kept],
                steps=steps, mu=mu, rule=rule, lr=self.lr, optimizer=self.optimizer, scale=self.scale,
            )  # fmt: skip
            merged.move(found.coefficients)
            merged.estimate_statistics(probe, loss_fn)
        found = found.among(kept, len(opened))
        return MergeResult(merged.state_dict(), found.weights, found.scale, found.coefficients, found.history, found.stopped)


# ---- N + 1 numbers ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Where :func:`search` ended: a with sum 1, lambda, and lambda c."""

    weights: Tensor
    scale: float
    coefficients: Tensor
    history: list[dict[str, Any]]
    stopped: str

    def among(self, kept: Sequence[int], count: int) -> Found:
        """The same for all ``count`` models, of which the search knew those at the places ``kept``; 0 for the others."""
        weights, coefficients = torch.zeros(2, count, dtype=torch.float64)
        weights[kept], coefficients[kept] = self.weights, self.coefficients
        history = []
        for row in self.history:
            a = dict(zip(kept, row["weights"], strict=True))
            history.append(row | {"weights": [a.get(k, 0.0) for k in range(count)]})
        return replace(self, weights=weights, coefficients=coefficients, history=history)


def search(
    gram: Tensor,
    evaluate: Callable[[Tensor], tuple[float, Tensor]],
    names: Sequence[str],
    *,
    steps: int,
    mu: float,
    rule: Rule,
    lr: float,
    optimizer: str,
    scale: float,
) -> Found:
    r"""Gradient descent on :math:`u = \log a` and lambda. ``evaluate(d)`` gives the loss and its gradient (N,) at :math:`d = \lambda c`."""
    u = torch.zeros(len(gram), dtype=torch.float64, requires_grad=True)
    size = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    made: Any = torch.optim.Adam if optimizer == "adam" else torch.optim.SGD
    stepper = made([u, size], lr=lr)
    history: list[dict[str, Any]] = []
    best, best_at = math.inf, (u.detach().clone(), size.detach().clone())
    stopped = ""
    for step in range(steps):
        with torch.enable_grad():
            d = size * slerp_coefficients(gram, torch.softmax(u, 0), rule, names)
        loss, slope = evaluate(d.detach())
        if not math.isfinite(loss) or not bool(torch.isfinite(slope).all()):
            if not history:
                bad_input("probe", f"a loss of {loss}, or its gradient, at the start", "finite losses")
            stopped = f"Stopped at step {step}: the probe loss is not finite; this is the best position before."
            warnings.warn(stopped, UserWarning, stacklevel=3)
            with torch.no_grad():
                u.copy_(best_at[0])
                size.copy_(best_at[1])
            break
        history.append({"step": step, "loss": loss, "scale": float(size.detach()), "weights": torch.softmax(u.detach(), 0).tolist()})
        if loss + mu * float(size.detach()) < best:
            best, best_at = loss + mu * float(size.detach()), (u.detach().clone(), size.detach().clone())
        stepper.zero_grad()
        d.backward(slope)  # type: ignore[no-untyped-call]
        assert size.grad is not None
        size.grad += mu
        stepper.step()
        with torch.no_grad():
            size.clamp_(min=0.0)
            u.sub_(u.max()).clamp_(min=FAINTEST)  # only ratios matter
    with torch.no_grad():
        weights = torch.softmax(u, 0)
        coefficients = size * slerp_coefficients(gram, weights, rule, names)
    faded = [name for name, a in zip(names, weights.tolist(), strict=True) if a < FADED]
    if faded:
        warnings.warn(f"The weight of {listing(faded)} fell below {FADED:.0%}: is the task in the probe?", UserWarning, stacklevel=3)
    return Found(weights, float(size.detach()), coefficients, history, stopped)


# ---- the model at a position ------------------------------------------------------------------------------------------------------------


class MergedModel:
    """A copy of the base that is moved to :math:`\\theta_0 + \\sum_i d_i V_i`."""

    def __init__(self, base: nn.Module, models: Models, kept: Sequence[int]) -> None:
        self._models, self._kept = models, list(kept)
        self.network = copy.deepcopy(base).eval()
        for p in self.network.parameters():
            p.requires_grad_(p.is_floating_point())
        self._norms = [
            module for module in self.network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        ]  # fmt: skip
        for module in self._norms:
            module.train()
        own = dict(self.network.named_parameters(remove_duplicate=False))
        self._parameters = {name: own[name] for name in models.parameters if name in own}
        numbers = sum(models.shapes[name].numel() * max(models.dtypes[name].itemsize, 4) for name in self._parameters)
        self._held: dict[str, Tensor] = {}
        if numbers * len(self._kept) <= HELD:
            self._held = {name: torch.stack([models.vector(k, name).reshape(-1) for k in self._kept]) for name in self._parameters}
        with torch.no_grad():
            values = self.network.state_dict(keep_vars=True)
            for name in models.buffers:
                values[name].copy_(models.checked(name, models.combined(name, [1 / len(models)] * len(models))))

    @torch.no_grad()
    def move(self, d: Tensor) -> None:
        """To the position with coefficients ``d``."""
        for name, p in self._parameters.items():
            if name in self._held:
                base = self._models.base(name)
                p.copy_(torch.addmv(base.reshape(-1), self._held[name].T, d.to(base)).view_as(p))
            else:
                whole = [0.0] * len(self._models)
                for k, value in zip(self._kept, d.tolist(), strict=True):
                    whole[k] = value
                p.copy_(self._models.combined(name, whole))

    def loss_and_products(self, d: Tensor, batch: Any, loss_fn: Callable[[nn.Module, Any], Tensor]) -> tuple[float, Tensor]:
        r"""The loss at ``d``, and :math:`\langle \nabla L, V_i \rangle`, means over processes."""
        self.move(d)
        products: list[Tensor] = []
        with _gradients(self._parameters, lambda name, g: products.append(self._products(name, g))), torch.enable_grad():
            loss = loss_fn(self.network, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                bad_input("loss_fn", _kind(loss), "a function that returns a scalar with a graph to the model's parameters")
            # Not into what else the loss is made of: parameters of its own, other models.
            loss.backward(inputs=list(self._parameters.values()))  # type: ignore[no-untyped-call]
        where = products[0].device if products else loss.device
        total = torch.stack([part.to(where) for part in products]).sum(dim=0) if products else torch.zeros(len(d), dtype=torch.float64)
        reduced = [torch.cat([loss.detach().double().reshape(1).to(where), total])]
        all_reduce_mean_(reduced)
        return float(reduced[0][0]), reduced[0][1:].cpu()

    def _products(self, name: str, gradient: Tensor) -> Tensor:
        """(N,), float64."""
        g = single(gradient.to_dense() if gradient.is_sparse else gradient)
        if name in self._held:
            return (self._held[name] @ g.reshape(-1)).double()
        total = torch.zeros(len(self._kept), dtype=torch.float64, device=g.device)
        for rows in self._models.pieces(name):
            base = self._models.base(name, rows)
            part = (g if rows is None else g[rows]).reshape(-1)
            total += torch.stack([(self._models.vector(k, name, rows, base).reshape(-1) @ part).double() for k in self._kept])
        return total

    def estimate_statistics(self, probe: Iterable[Any], loss_fn: Callable[[nn.Module, Any], Tensor]) -> None:
        """Means and variances of batch normalization over the whole probe; counters are the base's."""
        if not self._norms:
            return
        before = [(module, module.momentum) for module in self._norms]
        for module in self._norms:
            module.reset_running_stats()
            module.momentum = None  # the plain mean over batches
        with torch.no_grad():
            for batch in probe:
                loss_fn(self.network, batch)
        for module, momentum in before:
            module.momentum = momentum
        statistics: list[Any] = [tensor for module in self._norms for tensor in (module.running_mean, module.running_var)]
        all_reduce_mean_(statistics)

    def state_dict(self) -> dict[str, Tensor]:
        values = {name: value.detach() if isinstance(value, Tensor) else value for name, value in self.network.state_dict().items()}
        for name in self._models.fixed:
            for alias in self._models.base_model.aliases[name]:
                values[alias] = self._models.base_model.read(name).clone()
        return values


@contextmanager
def _gradients(parameters: dict[str, nn.Parameter], use: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Every gradient is used when it is there, and dropped: there is never more than one."""

    def hook(name: str) -> Callable[[Tensor], None]:
        def take(p: Tensor) -> None:
            if p.grad is not None:
                use(name, p.grad)
                p.grad = None

        return take

    handles = [p.register_post_accumulate_grad_hook(hook(name)) for name, p in parameters.items()]  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def forever(probe: Iterable[Any]) -> Iterator[Any]:
    """Batches, over and over."""
    while True:
        some = False
        for batch in probe:
            some = True
            yield batch
        if not some:
            bad_input("probe", "no batches", "a loader or list of batches", "An iterator can be read only once: pass what makes it.")


def _kind(x: Any) -> str:
    return f"a tensor of shape {tuple(x.shape)}, requires_grad={x.requires_grad}" if isinstance(x, Tensor) else type(x).__name__
