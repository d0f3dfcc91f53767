"""Aggregators of TorchJD in our ``backward``, and ours in theirs; TorchJD itself is imported by :func:`as_torchjd` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from counterpoise._errors import bad_input
from counterpoise._extras import require
from counterpoise._precision import single

from ._aggregator import Aggregator
from ._statistics import GradientStatistics, nothing_known

if TYPE_CHECKING:
    import torchjd.aggregation

__all__ = ["adapted", "as_torchjd"]

TWO_BATCHES = {"MoDoWeighting", "SDMGradWeighting"}  # what they call a matrix is a product of two Jacobians


class GramianWeighted(Aggregator):
    """Weights from a function of the Gramian, such as a ``Weighting`` of TorchJD."""

    needs = frozenset({"gramian"})

    def __init__(self, weighting: Callable[[Tensor], Tensor], name: str) -> None:
        super().__init__()
        self.weighting = weighting
        self.name = name

    def weights(self, s: GradientStatistics) -> Tensor:
        return self.weighting(s.gramian).detach()

    @property
    def label(self) -> str:
        return self.name


class WholeMatrix(Aggregator):
    """A function of the whole Jacobian (m, n) at once, which has to exist for it; it returns (n,), or weights (m,)."""

    needs = frozenset({"rows"})

    def __init__(self, function: Callable[[Tensor], Tensor], name: str, *, weighs: bool) -> None:
        super().__init__()
        self.function = function
        self.weighs = weighs
        self.name = name

    def combine_all(self, rows: Iterable[Tensor], weights: Tensor | None, s: GradientStatistics) -> Iterator[Tensor]:
        parts = [single(part) for part in rows]
        matrix = torch.cat(parts, dim=1)
        sizes = [part.shape[1] for part in parts]
        del parts
        combined = self.function(matrix).detach()
        if self.weighs:
            self.last = {"weights": combined}
            combined = combined @ matrix
        if combined.shape != matrix.shape[1:]:
            bad_input("aggregator", f"{self.name} with a result of shape {tuple(combined.shape)}", f"shape ({matrix.shape[1]},)")
        yield from torch.split(combined, sizes)

    @property
    def label(self) -> str:
        return self.name


def adapted(aggregator: Any) -> Aggregator:
    """``aggregator`` itself if it is ours; one around an aggregator or weighting of TorchJD, or any function (m, n) -> (n,).

    What is TorchJD's is told by its attributes and the names of its bases, so that TorchJD need not be installed.
    """
    if isinstance(aggregator, Aggregator):
        return aggregator
    if isinstance(aggregator, type):
        bad_input("aggregator", f"the class {aggregator.__name__}", f"an object: {aggregator.__name__}()")
    if not callable(aggregator):
        bad_input("aggregator", type(aggregator).__name__, "an aggregator of counterpoise or TorchJD, or a function (m, n) -> (n,)")
    # One adapter for one object, so that weights held for several steps are found again. A method has the attributes of its function.
    own = {} if isinstance(aggregator, MethodType) else getattr(aggregator, "__dict__", {})
    known = own.get("_counterpoise_adapter")
    if isinstance(known, Aggregator):
        return known
    if (_bases(aggregator) | _bases(getattr(aggregator, "weighting", None))) & TWO_BATCHES:
        bad_input(
            "aggregator", type(aggregator).__name__, "one that combines the gradients of one batch",
            "MoDo and SDMGrad multiply gradients of independent batches: see TorchJD's own examples.",
        )  # fmt: skip
    name = type(aggregator).__name__ if isinstance(aggregator, nn.Module) else getattr(aggregator, "__name__", type(aggregator).__name__)
    weighting = getattr(aggregator, "gramian_weighting", None)
    made: Aggregator
    if weighting is not None:
        made = GramianWeighted(weighting, name)
    elif _bases(aggregator) & {"Weighting"}:
        made = WholeMatrix(aggregator, name, weighs=True) if _takes_a_matrix(aggregator) else GramianWeighted(aggregator, name)
    else:
        made = WholeMatrix(aggregator, name, weighs=False)
    if hasattr(aggregator, "__dict__") and not isinstance(aggregator, MethodType):
        object.__setattr__(aggregator, "_counterpoise_adapter", made)
    return made


def _bases(x: object) -> set[str]:
    return {base.__name__ for base in type(x).__mro__}


def _takes_a_matrix(weighting: Any) -> bool:
    """Whether a weighting of TorchJD is called on the Jacobian; one that wraps another takes what that one takes."""
    bases = _bases(weighting)
    if bases & {"_MatrixWeighting", "_Composition", "_GramianWeighting"}:
        return "_GramianWeighting" not in bases
    inner = getattr(weighting, "weighting", None)
    return inner is not None and _takes_a_matrix(inner)


def as_torchjd(aggregator: Aggregator) -> torchjd.aggregation.Aggregator:
    """``aggregator`` as a TorchJD ``Aggregator``, for its ``jac_to_grad`` and wherever it checks the class.

    One that weighs by the Gramian alone becomes a ``GramianWeightedAggregator``, for which ``jac_to_grad`` need not build the Jacobian
    (``optimize_gramian_computation=True``); its ``gramian_weighting`` also serves TorchJD's ``autogram.Engine``.

    Parameters
    ----------
    aggregator : Aggregator
        It is wrapped, not copied: what it remembers is shared.

    Raises
    ------
    InputError
        If it is no aggregator of counterpoise.
    MissingExtraError
        If TorchJD is not installed.

    Examples
    --------
    >>> from counterpoise.gradients import PCGrad
    >>> as_torchjd(PCGrad())(torch.tensor([[1.0, 0.0], [-0.5, 1.0]]))
    tensor([0.8000, 1.4000])
    """
    if not isinstance(aggregator, Aggregator):
        bad_input("aggregator", type(aggregator).__name__, "an aggregator of counterpoise.gradients")
    theirs = require("torchjd.aggregation", "test")
    if aggregator.needs <= {"losses", "gramian"} and type(aggregator).finish is Aggregator.finish:

        class _Weighting(theirs.Weighting):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.aggregator = aggregator

            def forward(self, gramian: Tensor) -> Tensor:
                ones = torch.ones(len(gramian), dtype=torch.float64, device=gramian.device)
                s = nothing_known(ones, (), tuple(str(i) for i in range(len(gramian))))
                weights = aggregator.found_weights(replace(s, gramian=gramian.detach().double()))
                assert weights is not None
                return weights.to(gramian)

            def __reduce__(self) -> tuple[Any, ...]:
                return _weighting_of, (self.aggregator,)

        weighted: torchjd.aggregation.Aggregator = theirs.GramianWeightedAggregator(_Weighting())
        return weighted

    class _Aggregator(theirs.Aggregator):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.aggregator = aggregator

        def forward(self, matrix: Tensor) -> Tensor:
            combined: Tensor = aggregator(matrix)
            return combined

        def __reduce__(self) -> tuple[Any, ...]:
            return as_torchjd, (self.aggregator,)

    whole: torchjd.aggregation.Aggregator = _Aggregator()
    return whole


def _weighting_of(aggregator: Aggregator) -> Any:
    """How the weighting in :func:`as_torchjd`, whose class has no name of its own, is made again from a file."""
    return as_torchjd(aggregator).gramian_weighting
