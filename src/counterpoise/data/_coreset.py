r"""Mini-batch coresets (CoLM: Nguyen et al. 2025, arXiv:2407.19580): b of the L examples of a pool, chosen in every step, to train on.

What is unbalanced: the sources of a mixture. Large ones fill every batch; picks by gradient may drop examples of small ones. CoLM keeps
all examples of small sources, k in this pool, and shares the rest of the budget among the other sources in proportion to their counts. From
source q it takes :math:`b_q` medoids (:func:`facility_location`) in the space of the steps that Adam would make with each example alone.
With features :math:`g_i`, estimates of the gradients of the examples, and a history m, v of t - 1 steps,

.. math::
    m_i = \beta_1 m + (1 - \beta_1) g_i, \quad v_i = \beta_2 v + (1 - \beta_2) g_i^2, \quad
    u_i = \frac{m_i / (1 - \beta_1^t)}{\sqrt{v_i / (1 - \beta_2^t)} + \epsilon} .

The history becomes the mean of :math:`m_i` and :math:`v_i` over the medoids that were picked. Within a source only the h coordinates with
the largest :math:`|\mathrm{mean}_i\, u_i|` are compared. These differ from source to source, so distances across sources mean nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._precision import single
from counterpoise._seeding import generator as stream

from ._facility_location import METRICS, facility_location
from ._passes import _seed_of
from ._sources import allocate_budget, sizes_of, small_sources

__all__ = ["AdamHistory", "MiniBatchCoreset", "leading_coordinates"]

IntArray = npt.NDArray[np.int64]

NORMALIZE = ("adam", "optimizer", None)
WEIGHTS = ("uniform", "cluster")
STATE = ("seed", "pools", "step", "m", "v")


@dataclass(frozen=True, eq=False)
class AdamHistory:
    """Averages of gradients ``m`` and of their squares ``v``, each (d,), after ``step`` steps of Adam; None before the first."""

    m: Tensor | None = None
    v: Tensor | None = None
    step: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def after(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """(m_i, v_i), each (n, d): the averages after one more step with the gradient of one example alone, for each of the n."""
        beta1, beta2 = self.betas
        m = (1 - beta1) * g
        v = (1 - beta2) * g.square()
        return (m, v) if self.m is None or self.v is None else (m.add_(self.m.to(m), alpha=beta1), v.add_(self.v.to(v), alpha=beta2))

    def direction(self, m: Tensor, v: Tensor) -> Tensor:
        """The step that follows from averages of one step more."""
        t = self.step + 1
        return (m / (1 - self.betas[0] ** t)) / ((v / (1 - self.betas[1] ** t)).sqrt_() + self.eps)


class MiniBatchCoreset:
    r"""Chooses ``budget`` of the L examples of a pool: small sources whole, medoids in gradient space of the others.

    Called in every step with features of the pool, it returns the rows to train on. It keeps a history of Adam over calls; calls with the
    same arguments in the same order make the same choices.

    Parameters
    ----------
    budget : int
        b, the examples that are chosen of each pool. The paper takes 64 of 128.
    source_sizes : mapping {source: examples} or sequence of int, optional
        Examples of each source in the whole *data set*, not the pool. Needed by ``keep_small="below-mean"``.
    keep_small : {"below-mean"}, a set of sources, or None, default "below-mean"
        Sources whose examples are all kept: those below the mean size (:func:`small_sources`), the named ones, or none. If a pool has more
        than b of them, b are drawn at random, from every such source first.
    normalize : {"adam", "optimizer", None}, default "adam"
        Compare steps of Adam with a history of the selector's own (decay .9 and .999, as Adam's defaults), with that of the training's
        optimizer (pass ``history`` in every call), or the features as they are. "optimizer" needs features that are gradients, on the
        scale of those that it sees: where these are clipped or scaled, take "adam".
    top_dims : int or None, default 2560
        h, coordinates that are compared within a source (the paper's, 0.7 % of its layer); None: all.
    metric : {"l1", "euclidean", "cosine"}, default "l1"
        Distance between features; the paper's is l1.
    per_source : bool, default True
        One coreset per source, or one for all that are not kept.
    weights : {"uniform", "cluster"}, default "uniform"
        What ``example_weights`` holds: ones, or numbers in proportion to how many examples each choice stands for, with mean 1 (as in
        CRAIG; worse in the paper).
    generator : torch.Generator or int, optional
        A seed, or a generator that is asked for one number; used where more than b examples are kept. Default: seed 0.

    Attributes
    ----------
    small : frozenset
        The sources that are kept whole.
    example_weights : Tensor, shape (b,), or None
        Weights of the choices of the last call, in their order. Multiply them with losses that are averaged within each example first: a
        mean over all tokens of a batch weighs long examples more.

    Raises
    ------
    InputError
        If an option is out of its range. In a call: if b > L, features and sources do not fit each other or earlier calls, a source is not
        in ``source_sizes``, or fewer than b rows are kept or finite.

    Examples
    --------
    >>> rng = torch.Generator().manual_seed(0)
    >>> features, sources = torch.randn(8, 5, generator=rng), torch.tensor([0, 0, 0, 0, 0, 1, 1, 2])
    >>> coreset = MiniBatchCoreset(4, source_sizes=[500, 300, 10])
    >>> coreset.small
    frozenset({2})
    >>> chosen = coreset(features, sources)  # row 7 is kept; two of source 0, one of source 1
    >>> sources[chosen]
    tensor([2, 0, 0, 1])
    """

    def __init__(
        self,
        budget: int,
        source_sizes: Mapping[int, int] | Sequence[int] | None = None,
        keep_small: str | Iterable[int] | None = "below-mean",
        normalize: str | None = "adam",
        top_dims: int | None = 2560,
        metric: str = "l1",
        per_source: bool = True,
        weights: str = "uniform",
        generator: torch.Generator | int | None = None,
    ) -> None:
        check_range("budget", budget, low=1, integer=True)
        if top_dims is not None:
            check_range("top_dims", top_dims, low=1, integer=True)
        check_choice("normalize", normalize, NORMALIZE)
        check_choice("metric", metric, METRICS)
        check_choice("weights", weights, WEIGHTS)
        self.budget, self.normalize, self.top_dims = int(budget), normalize, top_dims
        self.metric, self.per_source, self.weights = metric, bool(per_source), weights
        self.source_sizes = None if source_sizes is None else sizes_of("source_sizes", source_sizes)
        self.small = self._small(keep_small)
        self.example_weights: Tensor | None = None
        self._seed = _seed_of(generator)
        self._pools = 0  # that were seen
        self._history = AdamHistory()

    def __repr__(self) -> str:
        kept = f", keeps {listing(sorted(self.small))}" if self.small else ""
        return f"MiniBatchCoreset({self.budget}, normalize={self.normalize!r}, metric={self.metric!r}{kept})"

    def __call__(self, features: Tensor, sources: Any, history: AdamHistory | None = None) -> Tensor:
        """The rows to train on: those kept, then those picked, source after source.

        Parameters
        ----------
        features : Tensor, shape (L, d)
            One row per example, as of :func:`counterpoise.diagnostics.gradient_features`. A row that is not finite, or for Adam whose
            squares are not, is never picked; a warning names it. Rows of small sources are not looked at.
        sources : int Tensor, array or list, shape (L,)
            Source of each example.
        history : AdamHistory, optional
            That of the optimizer, for ``normalize="optimizer"``: ``MiniBatchCoreset.history_of(optimizer, layer)``.

        Returns
        -------
        int64 Tensor, shape (b,), on the device of the features
        """
        chosen, skipped = self.choose(features, sources, history)
        if skipped:
            warnings.warn(f"Rows of features that are not finite are not picked: {listing(skipped)}.", stacklevel=2)
        return chosen

    def choose(self, features: Tensor, sources: Any, history: AdamHistory | None = None) -> tuple[Tensor, list[int]]:
        """As a call, without its warning: the rows to train on, and those that were passed over because they are not finite."""
        g, ids = self._checked(features, sources)
        past = self._past(history, g)
        kept = self._kept(ids)
        rest = np.flatnonzero(~np.isin(ids, list(self.small))) if len(kept) < self.budget else np.empty(0, dtype=np.int64)
        looked_at = g[torch.from_numpy(rest).to(g.device)]
        finite = (looked_at if self.normalize is None else looked_at.square()).isfinite().all(dim=1).cpu().numpy()
        usable, skipped = rest[finite], rest[~finite].tolist()
        wanted = self.budget - len(kept)
        if wanted > len(usable):
            accepted = f"at most {len(kept) + len(usable)}, as many rows as are kept or finite"
            bad_input("budget", self.budget, accepted, f"Not finite: {listing(skipped)}.")
        parts, sizes = [torch.from_numpy(kept).to(g.device)], [torch.ones(len(kept), device=g.device)]
        if wanted:
            picked, stands_for = self._picked(g, ids, usable, wanted, past)
            parts.append(picked)
            sizes.append(stands_for)
        self._pools += 1
        count = torch.cat(sizes)
        self.example_weights = count / count.mean() if self.weights == "cluster" else torch.ones_like(count)
        return torch.cat(parts), skipped

    def skip(self) -> None:
        """A pool that is not looked at; the history of Adam stays as it is."""
        self._pools += 1

    @staticmethod
    def history_of(optimizer: torch.optim.Optimizer, layer: nn.Module | Iterable[Tensor]) -> AdamHistory:
        """What Adam or AdamW remembers of the trainable parameters of ``layer``, in the order in which features have them."""
        parameters = [p for p in (layer.parameters() if isinstance(layer, nn.Module) else layer) if p.requires_grad]
        groups = [group for group in optimizer.param_groups if any(p is own for own in parameters for p in group["params"])]
        if not parameters or sum(p is own for group in groups for own in parameters for p in group["params"]) != len(parameters):
            bad_input("layer", "parameters that the optimizer does not have", "trainable parameters, all of this optimizer")
        if any("betas" not in group or "eps" not in group for group in groups):
            bad_input("optimizer", type(optimizer).__name__, "Adam or AdamW, whose groups have betas and eps", "Or use normalize='adam'.")
        betas, eps = tuple(float(beta) for beta in groups[0]["betas"]), float(groups[0]["eps"])
        start = AdamHistory(betas=(betas[0], betas[1]), eps=eps)
        states = [optimizer.state.get(p) or {} for p in parameters]
        if not any(states):
            return start
        if any("exp_avg" not in state or "exp_avg_sq" not in state for state in states):
            bad_input("optimizer", f"a {type(optimizer).__name__} without exp_avg of all parameters", "Adam or AdamW after a step of all")
        m, v = (torch.cat([single(state[name].detach()).flatten() for state in states]) for name in ("exp_avg", "exp_avg_sq"))
        return replace(start, m=m, v=v, step=int(states[0]["step"]))

    def state_dict(self) -> dict[str, Any]:
        """Where the choices go on: numbers, and the history of Adam as tensors (d,), or None before the first pool."""
        past = self._history
        return {"seed": self._seed, "pools": self._pools, "step": past.step, "m": past.m, "v": past.v}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        if not isinstance(state, Mapping) or (missing := [name for name in STATE if name not in state]):
            given = f"no {', '.join(missing)}" if isinstance(state, Mapping) else state
            bad_input("state", given, f"what state_dict() gives: {', '.join(STATE)}")
        for name in ("seed", "pools", "step"):
            check_range(f"state[{name!r}]", state[name], low=0, integer=True)
        m, v = (None if state[name] is None else torch.as_tensor(state[name]).clone() for name in ("m", "v"))
        self._seed, self._pools = int(state["seed"]), int(state["pools"])
        self._history = AdamHistory(m, v, int(state["step"]))

    def _small(self, keep_small: str | Iterable[int] | None) -> frozenset[Any]:
        if keep_small is None:
            return frozenset()
        if isinstance(keep_small, str):
            check_choice("keep_small", keep_small, ("below-mean",), "Or pass a set of sources, or None.")
            if self.source_sizes is None:
                hint = "Count the examples of each source in the whole data set, or pass keep_small=None."
                bad_input("source_sizes", None, "the size of each source for keep_small='below-mean'", hint)
            return frozenset(small_sources(counts=self.source_sizes))
        try:
            return frozenset(int(source) for source in keep_small)
        except (TypeError, ValueError):
            bad_input("keep_small", keep_small, "'below-mean', a set of sources (integers), or None")

    def _checked(self, features: Any, sources: Any) -> tuple[Tensor, IntArray]:
        if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point() or not features.shape[1]:
            what = f"shape {tuple(features.shape)} of {features.dtype}" if isinstance(features, Tensor) else type(features).__name__
            bad_input("features", what, "a tensor of floats of shape (L, d), one row per example")
        ids = as_sources(sources)
        pool = len(features)
        if len(ids) != pool:
            bad_input("sources", f"{len(ids)} sources for {pool} rows of features", "one source for each row")
        if self.budget > pool:
            bad_input("budget", self.budget, f"at most {pool}, the examples of this pool", "Leave out the last, smaller pool of an epoch.")
        if self.source_sizes is not None:
            known = [source for source, size in self.source_sizes.items() if size]
            if unknown := sorted(set(ids.tolist()) - set(known)):
                bad_input("sources", f"{listing(unknown)}", f"sources with examples in source_sizes: {listing(known)}")
        return single(features.detach()), ids

    def _past(self, history: AdamHistory | None, g: Tensor) -> AdamHistory:
        if (history is None) == (self.normalize == "optimizer"):
            wanted = "that of the optimizer" if history is None else "None unless normalize='optimizer'"
            bad_input("history", history, wanted, "MiniBatchCoreset.history_of(optimizer, layer) reads it.")
        past = history if history is not None else self._history
        if past.m is not None and past.m.shape != g.shape[1:]:
            bad_input("features", f"{g.shape[1]} columns", f"{len(past.m)}, as the history of Adam has", "One selector serves one layer.")
        return past

    def _kept(self, ids: IntArray) -> IntArray:
        """Rows of small sources; b of them at random if they are more, from every source first."""
        kept = np.flatnonzero(np.isin(ids, list(self.small)))
        if len(kept) <= self.budget:
            return kept
        kept = stream(self._seed, "kept", self._pools).permutation(kept)
        first = np.zeros(len(kept), dtype=np.bool_)
        first[np.unique(ids[kept], return_index=True)[1]] = True
        return np.sort(np.concatenate([kept[first], kept[~first]])[: self.budget])

    def _picked(self, g: Tensor, ids: IntArray, usable: IntArray, wanted: int, past: AdamHistory) -> tuple[Tensor, Tensor]:
        """(wanted,) medoids of all sources and how many rows each stands for; the history goes on with them."""
        rows = torch.from_numpy(usable).to(g.device)
        g = g[rows]
        m, v = past.after(g) if self.normalize is not None else (g, g)
        u = past.direction(m, v) if self.normalize is not None else g
        groups = np.unique(ids[usable], return_inverse=True)[1] if self.per_source else np.zeros(len(usable), dtype=np.int64)
        counts = np.bincount(groups)
        picks, sizes = [], []
        for q, share in enumerate(allocate_budget(counts, wanted).tolist()):
            members = torch.from_numpy(np.flatnonzero(groups == q)).to(g.device)
            if not share:
                continue
            if share == len(members):
                picks.append(members)
                sizes.append(torch.ones(share, device=g.device))
                continue
            how = "lazy" if g.device.type == "cpu" else "naive"
            found = facility_location(leading_coordinates(u[members], self.top_dims), share, self.metric, how)
            picks.append(members[found.indices])
            sizes.append(found.cluster_sizes.float())
        picked = torch.cat(picks)
        if self.normalize == "adam":
            self._history = replace(past, m=m[picked].mean(dim=0), v=v[picked].mean(dim=0), step=past.step + 1)
        return rows[picked], torch.cat(sizes)


def leading_coordinates(u: Tensor, count: int | None) -> Tensor:
    """The ``count`` columns of (n, d) with the largest absolute mean, largest first; ``u`` itself if it has no more, or for None.

    >>> leading_coordinates(torch.tensor([[1.0, -5.0, 2.0], [1.0, -3.0, 2.0]]), 2)
    tensor([[-5.,  2.],
            [-3.,  2.]])
    """
    if count is None or count >= u.shape[1]:
        return u
    return u[:, u.mean(dim=0).abs().topk(count).indices]


def as_sources(sources: Any) -> IntArray:
    """Sources as integers (L,)."""
    values = sources.detach().cpu().numpy() if isinstance(sources, Tensor) else np.asarray(sources)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        hint = "Groups.from_labels(names).ids turns names into them."
        bad_input("sources", f"{values.dtype} of shape {values.shape}", "one integer for each example", hint)
    return values.astype(np.int64)
