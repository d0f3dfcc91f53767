"""Whose training step it is, and why: one call on the model, loss and data of a training loop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._pergrad import GradientSketch

from ._coherence import CoherenceReport, coherence
from ._from_sketch import Leverage, group_shares, interaction, leverage_of, shares_with_intervals
from ._opposing import OpposingPair, opposing_groups
from ._shares import CONFLICT, Array, GroupShares, _typical, dominance_sentence, percent, signed
from ._shares import hints as share_hints
from ._sketching import measure

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

    from counterpoise.report import TrainingView

__all__ = ["TrainingDiagnosis", "diagnosis_of", "examine"]

LOUD = 2.0  # times the typical size of a gradient from which a group is called loud
MANY = 2.0  # times the typical count from which a group is called many
INCOHERENT = 0.5  # of the typical coherence below which a group is called incoherent
LEAST_COHERENCE = 0.1  # typical coherence below which nobody is told from anybody
LEAST_COSINE = 0.1  # between update and gradient, below which a share of the update divides by next to nothing
DISAGREE = 0.1  # difference of a share between SGD and the optimizer that is worth a sentence
FEW_EXAMPLES = 0.25  # of the leverage held by 1 % of the examples from which they are worth a look
SCARCE = 10  # examples of a group below which its numbers are noise
LEAST_OPPOSING = 50  # examples from which opposing pairs are looked for
LEAST_PAIR = 5  # examples on each side from which a pair is worth a sentence


@dataclass(frozen=True, eq=False)
class TrainingDiagnosis:
    """Result of :func:`examine`: a statement about the step at the present parameters, to first order.

    ``per_group``: one row per group with ``share`` (``share_lo``, ``share_hi``), ``pi``, ``rho``, ``alpha``, ``alpha_unbiased``,
    ``alignment``, ``parity``, ``magnitude_share``, mean ``loss`` and ``count``; with an optimizer also ``share_sgd`` and
    ``share_optimizer``.
    ``cosine`` and ``interaction`` (G, G); ``coherence``; ``leverage`` of the examples; ``opposing`` pairs of outliers; ``logit_pressure``,
    per class the pull of its own rows and the push of the others; ``hints``, sentences with their numbers; ``shares`` as an object with
    ``.norm``, ``.noise`` and ``.settled``; ``sketch`` for further questions; ``seconds`` and ``peak_bytes`` of the measurement
    (``peak_bytes`` is the growth of this process's peak memory, on CUDA that of the allocator).
    """

    per_group: pl.DataFrame
    cosine: Array
    interaction: Array
    coherence: CoherenceReport | None
    leverage: Leverage | None
    opposing: tuple[OpposingPair, ...]
    logit_pressure: pl.DataFrame | None
    hints: tuple[str, ...]
    engine: str
    seconds: float
    peak_bytes: int
    shares: GroupShares
    sketch: GradientSketch
    kind: str
    metric: str
    notes: tuple[str, ...]
    step: int | None = None

    def __repr__(self) -> str:
        return f"TrainingDiagnosis({len(self.sketch):,} examples, {len(self.shares.names)} groups, engine={self.engine!r}: {self.headline})"

    @property
    def headline(self) -> str:
        """One sentence: who dominates."""
        moment = "now" if self.step is None else f"at step {self.step}"
        sentence = dominance_sentence(self.shares, self.kind, moment)
        s, k = self.shares, self.shares.dominant
        if not s.settled and np.isfinite([s.share_lo[k], s.share_hi[k]]).all():
            sentence += f" (95 % interval {percent(s.share_lo[k], 0)} to {percent(s.share_hi[k], 0)})"
        return sentence[:1].upper() + sentence[1:] + "."

    def to_frame(self) -> pl.DataFrame:
        """``per_group``."""
        return self.per_group

    def summary(self) -> str:
        """Who dominates, the hints, and what a reader should know about the measurement."""
        return "\n".join([self.headline, *self.hints, *self.notes])

    def view(self) -> TrainingView:
        """The same numbers as the report draws them."""
        from counterpoise.report import TrainingView

        s = self.shares
        return TrainingView(
            headline=self.headline,
            sentences=self.hints,
            notes=self.notes,
            kind=self.kind,
            names=s.names,
            counts=s.count,
            pi=s.pi,
            share=s.magnitude_share if s.settled else s.share,
            share_lo=np.full(len(s.names), np.nan) if s.settled else s.share_lo,
            share_hi=np.full(len(s.names), np.nan) if s.settled else s.share_hi,
            settled=s.settled,
            rho=s.rho,
            coherence=s.alpha_unbiased,
            alignment=s.alignment,
            loss=self.per_group["loss"].to_numpy(),
            cosine=self.cosine,
            norm=s.norm,
            noise=s.noise,
            examples=len(self.sketch),
            engine=self.engine,
            metric=self.metric,
        )

    def plot(self) -> Figure:
        """Each group's share of the rows and of the step, with its interval, and the factors that explain it."""
        from counterpoise.report import training_figure

        return training_figure(self.view())

    def to_html(self, about: str = "") -> str:
        """A page of its own: figure, hints and numbers; no network, no JavaScript. ``about`` says on it what was measured, and when."""
        from counterpoise.report import training_page

        return training_page(self.view(), about)

    def _repr_html_(self) -> str:
        return self.to_html()


def examine(
    model: nn.Module,
    loss_fn: Any = None,
    data: Any = None,
    *,
    groups: Any = "target",
    engine: str = "auto",
    params: str = "all",
    max_examples: int = 4096,
    sketch_dim: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    metric: str = "sgd",
    gramian: bool = False,
    bootstrap: int = 200,
    seed: int = 0,
    device: torch.device | str | None = None,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    loss: Callable[[Any, Any], Tensor] | None = None,
    batch_size: int = 256,
    train_mode: bool = False,
    batchnorm: str | None = None,
    leverage: bool = True,
    check: bool = True,
    progress: Callable[[int], None] | None = None,
) -> TrainingDiagnosis:
    r"""Measure whose training step it is, why, who conflicts with whom, and whether a few examples decide it. Nothing is changed.

    With :math:`g_i` the gradient of example i's own loss, :math:`\mu_k` its mean over group k (a part :math:`\pi_k` of the examples) and
    :math:`\mu` its mean over all,

    .. math:: s_k = \frac{\langle \pi_k \mu_k, \mu \rangle}{\|\mu\|^2}
        = \pi_k \, \rho_k \sqrt{\alpha_k} \, c_k / \|\mu\|, \qquad \sum_k s_k = 1

    is the signed share of group k: many (:math:`\pi`), loud (:math:`\rho = \sqrt{\text{mean} \|g_i\|^2}`), unanimous
    (:math:`\alpha = \|\mu_k\|^2 / \text{mean} \|g_i\|^2`), aligned (:math:`c = \cos(\mu_k, \mu)`). Shares above 1 and below 0 are normal:
    some groups gain at the expense of others. They describe this step at these parameters, to first order: measure at the start, after a
    tenth of the training and at the end.

    Cost: 4 to 14 times a forward and backward pass over the probe, the more the smaller the layers (half without ``leverage``; norms and
    group sums alone, by :func:`sketch_gradients`, 1.5 to 2 times). Memory: a pass of some of the examples, (G, P) sums and
    m * ``sketch_dim`` numbers; never m * P.

    Parameters
    ----------
    model : torch.nn.Module
        Left bit for bit as it was: parameters, ``.grad``, ``requires_grad``, buffers, modes, random states. Meanwhile it is in eval mode
        (dropout off) unless ``train_mode``.
    loss_fn : module or function (output, target) -> losses (m,)
        A loss of ``torch.nn`` or ``torch.nn.functional`` with a mean or sum is taken without its reduction; any other must return one loss
        per example. Further dimensions are averaged within the example.
    data : DataLoader, iterable of batches, or tuple of tensors (inputs..., targets)
        The probe. Of a loader the first batches are taken, of tensors a random part.
    groups : "target", str, Groups, integer ids (n,), function (batch) -> ids, or None
        Whose shares are measured; -1 stands for none and becomes a row "(none)". "target": the classes, or ten equally filled ranges of a
        continuous target. Another str names a key of batches that are dictionaries. None: all in one group.
    engine : {"auto", "ghost", "vmap", "jvp", "groups", "loop", "last_layer"}, default "auto"
        "ghost": hooks, exact, about twice a forward and backward pass. "vmap": vectorized gradients, exact, memory for 64 gradients.
        "jvp": forward mode, exact group sums and leverage, nothing else per example (unless ``sketch_dim`` asks for random directions).
        "groups": exact group sums alone. "loop": one backward per example, slow. "last_layer": hooks on the head only. "auto": ghost, which
        leaves parameters that no hook sees to vmap or, where torch cannot transform the model, to the loop, and says so in ``notes``.
    params : str, default "all"
        "all", "head", "last_k" (such as "last_2": the last layers called), or a regular expression on names; trainable ones only.
    max_examples : int, default 4096
        Size of the probe, which is held in memory.
    sketch_dim : int, default 256 (0 for "jvp" and "groups")
        Width of the random projection behind the intervals; errors of its cosines are about 1 / sqrt(sketch_dim).
    optimizer : torch.optim.Optimizer, optional
        With its state: SGD, Adam, AdamW, NAdam, RAdam, RMSprop or Adagrad. Shares of its latest update are given as well, since Adam hides
        loudness; ``interaction`` uses its scaling and learning rate.
    metric : {"sgd", "optimizer"}, default "sgd"
        Which of the two ``share`` is: of the mean gradient, or of the optimizer's update u, :math:`s_k = \langle \pi_k \mu_k, u \rangle /
        \langle \mu, u \rangle`. The latter needs a state that has grown under this loss.
    gramian : bool, default False
        All inner products between examples, exactly: m * m numbers, and a probe that goes through the model as one batch.
    bootstrap : int, default 200
        Resamples of the examples for the intervals of the shares; 0 gives none.
    seed : int, default 0
        Of the probe, the projection and the resamples.
    device : torch.device, default that of the model
        Where batches are moved to.
    forward, loss : functions (model, batch) -> output and (output, batch) -> losses (m,), optional
        For batches that are dictionaries, several outputs, and all else that ``model(input)`` and ``loss_fn(output, target)`` are not.
    batch_size : int, default 256
        Of tensors; a loader has its own.
    train_mode : bool, default False
        Measure with dropout as it is in training. Not with batch normalization, which ties examples to each other.
    batchnorm : {None, "eval"}
        "eval" allows a model whose batch normalization is in training mode to be measured with its running statistics.
    leverage : bool, default True
        A second pass for the exact share of every example.
    check : bool, default True
        Compare what the hooks found with the ordinary gradient of every batch and with a loop on three examples, at about a tenth of the
        time. Parameters that disagree are measured otherwise. Examples whose loss is another one when they are alone are an error. Without
        it, what was found out about the model in an earlier call (where its tensors have the examples) is used again, as long as its layers
        and their plain attributes, and the shapes of the batch, are the same.
    progress : function (examples), optional
        Called with the number of examples after each batch of each pass.

    Raises
    ------
    InputError
        If the loss is one number per batch, batch normalization is in training mode, there is nothing to train, groups do not fit the
        data, or a loss or gradient is not finite (which names the examples and their groups).

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> X = torch.randn(300, 5)
    >>> y = (X[:, 0] + torch.randn(300) > 1.5).long()
    >>> model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> diagnosis = examine(model, nn.CrossEntropyLoss(), (X, y))
    >>> diagnosis.engine, diagnosis.per_group["group"].to_list(), round(diagnosis.per_group["share"].sum(), 6)
    ('ghost', ['0', '1'], 1.0)
    """
    check_choice("metric", metric, ("sgd", "optimizer"))
    check_range("bootstrap", bootstrap, low=0, integer=True)
    if metric == "optimizer" and optimizer is None:
        bad_input("metric", metric, "also optimizer=...")
    began, before = time.perf_counter(), _peak(model)
    measured = measure(
        model,
        loss_fn,
        data,
        groups=groups,
        engine=engine,
        params=params,
        max_examples=max_examples,
        sketch_dim=sketch_dim,
        gramian=gramian,
        leverage=leverage,
        seed=seed,
        device=device,
        forward=forward,
        loss=loss,
        batch_size=batch_size,
        train_mode=train_mode,
        batchnorm=batchnorm,
        check=check,
        progress=progress,
    )
    return diagnosis_of(
        measured.sketch,
        optimizer=optimizer,
        metric=metric,
        bootstrap=bootstrap,
        seed=seed,
        pressure=measured.pressure,
        classes=measured.classes,
        began=began,
        peak=lambda: max(0, _peak(model) - before),
    )


def diagnosis_of(
    sketch: GradientSketch,
    *,
    optimizer: Any = None,
    metric: str = "sgd",
    bootstrap: int = 200,
    seed: int = 0,
    pressure: tuple[Tensor, Tensor] | None = None,
    classes: tuple[str, ...] = (),
    began: float | None = None,
    peak: Callable[[], int] = lambda: 0,
    step: int | None = None,
    shares: GroupShares | None = None,
) -> TrainingDiagnosis:
    """Everything that is said about a sketch; ``shares``: exact ones that were worked out while it still had its group sums."""
    import polars as pl

    began = time.perf_counter() if began is None else began
    if shares is None or (sketch.S is None and sketch.gramian is None):
        plain = group_shares(sketch, bootstrap=bootstrap, seed=seed) if shares is None else shares
    else:
        plain = shares_with_intervals(sketch, shares, bootstrap, seed=seed)
    updated = group_shares(sketch, optimizer=optimizer, bootstrap=0) if optimizer is not None else None
    shares = updated if metric == "optimizer" and updated is not None else plain
    ids = sketch.ids.cpu().numpy()
    with np.errstate(invalid="ignore", divide="ignore"):
        loss = np.bincount(ids, sketch.losses.cpu().numpy(), minlength=len(shares.names)) / shares.count
    frame = shares.to_frame().with_columns(pl.Series("loss", loss))
    if updated is not None:
        frame = frame.with_columns(pl.Series("share_sgd", plain.share), pl.Series("share_optimizer", updated.share))
    kind = {"class": "class", "bin": "range"}.get(sketch.kind, sketch.kind)
    leverage = leverage_of(sketch)
    inner = sketch.S is not None or sketch.gramian is not None or sketch.group_sums is not None
    report = coherence(sketch) if inner and sketch.norms_sq is not None and len(sketch) > 1 else None
    opposing: tuple[OpposingPair, ...] = ()
    if (sketch.S is not None or sketch.gramian is not None) and len(sketch) >= LEAST_OPPOSING:
        opposing = tuple(opposing_groups(sketch))
    pulls = None
    if pressure is not None:
        pull, push = (part.cpu().numpy() for part in pressure)
        with np.errstate(divide="ignore", invalid="ignore"):
            pulls = pl.DataFrame({"class": list(classes), "pull": pull, "push": push, "ratio": push / pull})
    notes = list(sketch.notes)
    if bootstrap and sketch.S is None and sketch.gramian is None:
        notes.append(f"No intervals: engine {sketch.engine!r} has no inner products between examples.")
    if sketch.norms_sq is None:
        notes.append(f"Loudness and coherence are not known: engine {sketch.engine!r} has nothing per example.")
    if sketch.engine == "last_layer":
        notes.append("Of the head alone: the layers below it can be dominated by others.")
    few = [repr(name) for name, count in zip(shares.names, shares.count, strict=True) if count < 2]
    if few:
        notes.append(f"Fewer than two examples in the probe: {', '.join(few)}.")
    scarce = [f"{name!r} ({count})" for name, count in zip(shares.names, shares.count, strict=True) if 2 <= count < SCARCE]
    if scarce:
        notes.append(f"Fewer than {SCARCE} examples in the probe, so that their numbers are noise: {listing(scarce)}.")
    cosine = float("nan") if updated is None else updated.step_cosine
    if metric == "optimizer":
        notes.append("Shares of the optimizer's update refer to a state that has grown under this loss.")
    if updated is not None and not cosine > LEAST_COSINE:
        notes.append(f"The optimizer's latest update hardly points along this gradient (cosine {signed(cosine)}): shares of it say little.")
    return TrainingDiagnosis(
        per_group=frame,
        cosine=shares.cosine,
        interaction=np.full((len(shares.names),) * 2, np.nan) if sketch.group_sums is None else interaction(sketch, optimizer),
        coherence=report,
        leverage=leverage,
        opposing=opposing,
        logit_pressure=pulls,
        hints=_hints(shares, plain, updated, kind, leverage, opposing, pulls, cosine),
        engine=sketch.engine,
        seconds=time.perf_counter() - began,
        peak_bytes=peak(),
        shares=shares,
        sketch=sketch,
        kind=kind,
        metric=metric,
        notes=tuple(notes),
        step=step,
    )


def _hints(
    shares: GroupShares,
    plain: GroupShares,
    updated: GroupShares | None,
    kind: str,
    leverage: Leverage | None,
    opposing: tuple[OpposingPair, ...],
    pulls: pl.DataFrame | None,
    updated_cosine: float,
) -> tuple[str, ...]:
    found = list(share_hints(shares, kind, causes=False))
    if np.isfinite(shares.share).any():
        found += _factors(shares, kind)
        found += _conflicts(shares, kind)
    if leverage is not None and leverage.top_share > FEW_EXAMPLES:
        found.append(
            f"1 % of the examples holds {percent(leverage.top_share)} of the leverage: look at them (leverage.to_frame()) before treating "
            "groups."
        )
    pair = opposing[0] if opposing else None
    if pair is not None and not shares.settled and min(len(pair.positive), len(pair.negative)) >= LEAST_PAIR:
        found.append(
            f"{len(pair.positive)} and {len(pair.negative)} examples pull against each other along one direction and cancel "
            f"({percent(pair.cancellation, 0)}), with {percent(pair.energy_share, 0)} of the gradients' energy: see opposing."
        )
    if pulls is not None and len(pulls) > 2:
        worst = pulls.filter(pulls["pull"] > 0).sort("ratio", descending=True).head(1)
        if len(worst) and worst["ratio"][0] > 2:
            name, pull, push, ratio = worst.row(0)
            found.append(f"Class {name!r} is pushed down {ratio:.1f} times as hard as it is pulled up ({push:.3g} against {pull:.3g}).")
    if updated is not None and updated_cosine > LEAST_COSINE:
        apart = np.abs(updated.share - plain.share)
        if np.isfinite(apart).any() and np.nanmax(apart) > DISAGREE:
            k = int(np.nanargmax(apart))
            found.append(
                f"The optimizer's step is divided otherwise than the gradient: {kind} {plain.names[k]!r} has {percent(plain.share[k])} of "
                f"the gradient and {percent(updated.share[k])} of the update. Advice about loudness holds for the gradient."
            )
    return tuple(found)


def _factors(shares: GroupShares, kind: str) -> list[str]:
    """Groups that stand out in one factor beside the others, each with the stage that acts on it."""
    G = len(shares.names)
    if G < 2:
        return []
    found = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for k in range(G):
            others = np.delete(np.arange(G), k)
            name = f"{kind.capitalize()} {shares.names[k]!r}"
            rho, count = _typical(shares.rho[others]), float(np.median(shares.count[others]))
            alpha = _typical(shares.alpha_unbiased[others])
            if shares.rho[k] > LOUD * rho:
                found.append(
                    f"{name} is loud: one of its gradients is {shares.rho[k] / rho:.1f} times as long as is typical of the others "
                    "(a loss scale, clipping or a focal loss acts on this; a rare class that is not learned yet is loud, too)."
                )
            if shares.count[k] > MANY * count:
                found.append(
                    f"{name} is many: {shares.count[k]:,} examples, {shares.count[k] / max(count, 1):.1f} times the others' median "
                    "(resampling, class weights or a moved threshold act on this)."
                )
            if shares.count[k] > 1 and alpha > LEAST_COHERENCE and shares.alpha_unbiased[k] < INCOHERENT * alpha and shares.rho[k] > rho:
                found.append(
                    f"{name} is incoherent: its gradients agree by {signed(shares.alpha_unbiased[k])}, those of the others by "
                    f"{signed(alpha)} (wrong labels, outliers, or a group that holds several kinds of examples: look at them)."
                )
    if len(found) > 6:
        found = [*found[:6], f"... and {len(found) - 6} more {kind} findings: see per_group."]
    return found


def _conflicts(shares: GroupShares, kind: str) -> list[str]:
    if kind in ("class", "range") or not shares.conflict > CONFLICT:
        return []  # classes and ranges of one output oppose each other by construction
    first, second = np.triu_indices(len(shares.names), k=1)
    cosine = np.nan_to_num(shares.cosine[first, second])
    worst = int(np.argmin(cosine))
    pair = f"{shares.names[first[worst]]!r} and {shares.names[second[worst]]!r}, cosine {signed(cosine[worst])}"
    text = f"Conflict: {percent(shares.conflict, 0)} of the inner products between groups is negative (most opposed: {pair})."
    return [f"{text} If they are domains or tasks, remedies that combine gradients act on this; classes of one output always oppose."]


def _peak(model: nn.Module) -> int:
    """Peak memory in bytes, so far."""
    device = next((p.device for p in model.parameters()), None) if isinstance(model, nn.Module) else None
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:  # not on every system
        return 0
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
