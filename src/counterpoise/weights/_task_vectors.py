r"""Task vectors :math:`V_i = \theta_i - \theta_0`: what fine-tuning changed, and how the changes of several models lie to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, permutations
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import bad_input
from counterpoise._seeding import generator

from ._models import Model, Models
from ._slerp import positive, slerp_coefficients

if TYPE_CHECKING:
    import polars as pl

__all__ = ["TaskVectorReport", "task_vector", "task_vector_report"]

Array = npt.NDArray[np.float64]

ORDERS = 120  # all orders of five vectors; of more vectors, as many at random


def task_vector(base: Model, tuned: Model) -> dict[str, Tensor]:
    r""":math:`V = \theta - \theta_0` for every floating-point parameter.

    Parameters
    ----------
    base, tuned : torch.nn.Module, state dictionary, or path
        A path is a ``.safetensors`` file or a folder of them.

    Returns
    -------
    dict of name -> tensor, in single precision at least, on the device of the base. Buffers and integers have no entry; a tensor with
    several names (tied weights) has one. What was frozen is 0.

    Raises
    ------
    InputError
        If names, shapes or types differ; the first differences are named.

    Examples
    --------
    >>> task_vector({"w": torch.ones(2)}, {"w": torch.tensor([1.0, 3.0])})
    {'w': tensor([0., 2.])}
    """
    models = Models(base, [tuned])
    return {name: models.vector(0, name) for name in models.parameters}


@dataclass(frozen=True, eq=False)
class TaskVectorReport:
    r"""Result of :func:`task_vector_report`.

    Attributes
    ----------
    norms : (K,)
        Lengths of the task vectors.
    cosines : (K, K)
        Between them; NaN for a vector of length 0.
    sizes : (K,)
        Numbers of training examples, as given; None if they were not.
    r2_norm_vs_size : float
        :math:`R^2` of the line of length against size; NaN without sizes, or if all are alike. With two models it is 1.
    joint_alignment : (K,)
        Cosines with the task vector of the jointly trained model, or with the sum of the task vectors if there is none.
    joint_given : bool
        Which of the two.
    order_cosine : float
        Lowest cosine between nested interpolations of the same vectors, equally weighted by the paper's rule, in two different orders (all
        of them up to five vectors, else 120 at random): 1 if the order does not matter. NaN where there is no angle.
    """

    norms: Array
    cosines: Array
    sizes: Array | None
    r2_norm_vs_size: float
    joint_alignment: Array
    joint_given: bool
    order_cosine: float

    def to_frame(self) -> pl.DataFrame:
        """One row per model: ``model, size, norm, joint_alignment``, then a column ``cosine_k`` for every model k."""
        import polars as pl

        count = len(self.norms)
        columns: dict[str, Any] = {"model": list(range(count)), "size": [None] * count if self.sizes is None else self.sizes}
        columns |= {"norm": self.norms, "joint_alignment": self.joint_alignment}
        return pl.DataFrame(columns | {f"cosine_{k}": self.cosines[k] for k in range(count)})

    def summary(self) -> str:
        """Lengths, angles, and whether the order matters, in a few sentences."""
        longest = int(np.argmax(self.norms))
        lines = [f"Task vectors are {', '.join(f'{norm:.3g}' for norm in self.norms)} long; that of models[{longest}] is the longest."]
        if len(self.norms) > 1:
            upper = self.cosines[np.triu_indices(len(self.norms), 1)]
            angles = np.degrees(np.arccos(np.clip(upper[np.isfinite(upper)], -1, 1)))
            if len(angles):
                least, most = f"{angles.min():.0f}", f"{angles.max():.0f}"
                lines.append(f"Angles between them: {least if least == most else f'{least} to {most}'} degrees.")
            kind = "The jointly trained model" if self.joint_given else "Their sum"
            nearest = int(np.nanargmax(self.joint_alignment)) if np.isfinite(self.joint_alignment).any() else 0
            lines.append(f"{kind} lies nearest to models[{nearest}] (cosine {self.joint_alignment[nearest]:.2f}).")
        if np.isfinite(self.r2_norm_vs_size) and len(self.norms) > 2:
            lines.append(f"Length against number of examples: R^2 {self.r2_norm_vs_size:.2f}.")
        if self.order_cosine < 0.999:
            lines.append(f"The order of nested interpolation matters: two orders differ by as much as cosine {self.order_cosine:.2f}.")
        return " ".join(lines)


def task_vector_report(
    base: Model, models: Sequence[Model], sizes: Sequence[float] | None = None, *, joint: Model | None = None
) -> TaskVectorReport:
    """How long the task vectors of ``models`` are, how they lie to each other, and which one a joint training follows.

    Parameters
    ----------
    base : torch.nn.Module, state dictionary, or path
        What all were fine-tuned from.
    models : sequence of K of these
    sizes : (K,), optional
        Numbers of examples that each was trained on.
    joint : a model, optional
        Trained on all tasks together. The paper finds it nearer to the task with more data.

    Raises
    ------
    InputError
        If models do not match the base, or sizes are not K numbers above 0.

    Examples
    --------
    >>> base = {"w": torch.zeros(2)}
    >>> report = task_vector_report(base, [{"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([0.0, 1.0])}], sizes=[500, 100])
    >>> report.norms.tolist(), report.cosines[0, 1].round(3)
    ([5.0, 1.0], np.float64(0.8))
    """
    opened = Models(base, [*models, *([] if joint is None else [joint])] if isinstance(models, Sequence) else models)
    count = len(opened) - (joint is not None)
    if not count:
        bad_input("models", "an empty sequence", "at least one model")
    n = None if sizes is None else positive("sizes", sizes, count).numpy()
    gram = opened.gram()
    # The joint model is one more vector; without it, the sum of the others takes its place.
    weights = torch.eye(count, dtype=torch.float64)
    last = torch.ones(1, count, dtype=torch.float64)
    whole = gram if joint is not None else torch.cat([weights, last]) @ gram @ torch.cat([weights, last]).T
    lengths = whole.diagonal().clamp_min(0).sqrt()
    cosines = (whole / torch.outer(lengths, lengths)).clamp(-1, 1).numpy()
    norms = lengths[:count].numpy()
    return TaskVectorReport(
        norms=norms,
        cosines=cosines[:count, :count],
        sizes=n,
        r2_norm_vs_size=_r2(n, norms),
        joint_alignment=cosines[count, :count],
        joint_given=joint is not None,
        order_cosine=_order_cosine(gram[:count, :count]),
    )


def _r2(sizes: Array | None, norms: Array) -> float:
    if sizes is None or len(sizes) < 2 or np.ptp(sizes) == 0 or np.ptp(norms) == 0:
        return float("nan")
    return float(np.corrcoef(sizes, norms)[0, 1] ** 2)


def _order_cosine(gram: Tensor) -> float:
    count = len(gram)
    if count == 1:
        return 1.0
    draw = generator(0, "orders of task vectors")
    orders = (tuple(draw.permutation(count)) for _ in range(ORDERS)) if count > 5 else permutations(range(count))
    rows = []
    for order in islice(orders, ORDERS):
        at = torch.tensor([int(k) for k in order])
        try:
            c = slerp_coefficients(gram[at][:, at], torch.ones(count, dtype=torch.float64), "mean")
        except ValueError:  # antiparallel
            return float("nan")
        rows.append(torch.zeros(count, dtype=torch.float64).scatter(0, at, c))
    merged = torch.stack(rows)
    products = merged @ gram @ merged.T
    lengths = products.diagonal().clamp_min(0).sqrt()
    return float((products / torch.outer(lengths, lengths)).min().clamp(-1, 1))
