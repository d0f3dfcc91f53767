r"""A penalty on dependence between predictions and protected attributes, their intersections included.

What is unbalanced: a penalty on one attribute at a time is blind to differences that only show in combinations (fairness gerrymandering):
predictions may be independent of sex and of age, and depend on both together. Two distance covariances see that (Chakraborty & Zhang 2019
for the joint one): the one with all attributes side by side, and the joint one of predictions and attributes.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from counterpoise._dist import all_gather_rows, gather_rows
from counterpoise._errors import bad_input, check_choice, check_range

from ._distance_covariance import FEW_VALUES, METHODS, check_count, evaluate, read_columns, result_dtype
from ._distances import MOST_CELLS, Attribute, Form, Points, apart, by_cells, by_ranks, collapse, variance

__all__ = ["DistanceCovariancePenalty"]

KINDS = ("ccdcov", "jdcov", "dcov_sum")
ROUNDING = 1e-13  # of the largest distance: what centering leaves of a column whose distance variance is 0


class DistanceCovariancePenalty(nn.Module):
    r"""Distance covariance between predictions and protected attributes :math:`s_1 \dots s_q`, to be added to a loss.

    .. math:: L = L_{pred}(y, \hat y) + \lambda \, \psi(\hat y, s)

    - ``"ccdcov"``: :math:`\psi = d(\hat y, [s_1 | \dots | s_q])`, the distance covariance d with all columns side by side. 0 in the
      population if and only if predictions are independent of the attributes together; how these depend on each other does not matter.
    - ``"jdcov"``: the joint distance covariance (:func:`joint_distance_covariance`). It stays above 0 where the attributes depend on each
      other; that part is constant, and only its gradient counts.
    - ``"dcov_sum"``: :math:`\sum_k d(\hat y, s_k)`, which does not see intersections. For comparison.

    Penalize what is deployed: probabilities, or rates, not logits. :math:`\lambda` has the scale of the predictions: values around 5 to 20
    suit probabilities, 40 to 150 rates around 0.1. :func:`counterpoise.engines.calibrate_penalty` chooses one.

    It enforces demographic parity, which calibration within groups may contradict where base rates differ. It costs accuracy.

    Parameters
    ----------
    kind : {"ccdcov", "jdcov", "dcov_sum"}, default "ccdcov"
    c : float >= 0, default 1.0 (the authors' code)
        Weight of lower orders in "jdcov".
    unbiased : bool, default True
        Unbiased estimates are right on average whatever the batch size, and may be negative; else V-statistics.
    attribute_encoding : {"onehot", "as_is"}, default "onehot"
        "onehot": integers and booleans are levels, each as far (sqrt 2) from every other; floating-point columns are numbers, best scaled
        to [0, 1]. "as_is": everything is a number. :class:`counterpoise.data.ProtectedAttributeEncoder` prepares either.
    method : {"auto", "dense", "sorted"}, default "auto"
        As in :func:`distance_covariance`: counts per cell of equal attributes where there are few (O(n log n + n K)), else blocks of
        rows of n x n. Value and gradient do not depend on it.
    scale : "equal_dvar" or None, default None
        "equal_dvar" divides the distances of each attribute by the root of its squared distance variance in the batch, so that one-hot
        levels (distance 1.41) do not outweigh a number in [0, 1].
    block_size : int, optional
        Rows of n x n in memory at once, for the dense form; default: what fits into 64 MiB. The gradient is computed with the value, so
        nothing is kept for the backward pass.
    gather : bool, default False
        Where torch.distributed is in use, take the rows of all processes, through which gradients flow: the value on each of them is that
        of the whole batch, and so are the gradients that DDP averages. All processes have to call, with the same attributes and codes.
        Otherwise each penalizes its own rows. The mean of these estimates is unbiased, too, and noisier where cells are rare.

    Shapes
    ------
    predictions (n,), n >= 4 (unbiased; over all processes with ``gather``); attributes: a tensor, or a sequence or dict of tensors, one
    per attribute, each (n,) or (n, d). Integer columns (n, d) are d attributes under "onehot"; floating-point columns (n, d) are one
    attribute of d numbers. Output: a scalar in the dtype of the predictions, float32 for half precision; sums are in float64. No gradient
    flows into the attributes.

    Constant predictions give 0 (the "jdcov" of the attributes alone remains) and a gradient of 0. An attribute with a single value
    contributes 0, and a warning. A level of one row contributes 0 to an unbiased estimate, with ``scale="equal_dvar"`` as well.

    Raises
    ------
    InputError
        If rows are too few, shapes do not match, a value is NaN or infinite (with the column), an attribute is text, or "sorted" has no
        fast form here.

    Examples
    --------
    >>> sex, old = torch.tensor([0, 0, 1, 1]).repeat(25), torch.tensor([0, 1, 0, 1]).repeat(25)
    >>> scores = torch.where(sex == old, 0.7, 0.3)  # the same mean for both sexes, and for old and young
    >>> for kind in ("dcov_sum", "ccdcov", "jdcov"):
    ...     print(kind, f"{DistanceCovariancePenalty(kind)(scores, [sex, old]):.4f}")
    dcov_sum -0.0029
    ccdcov 0.0402
    jdcov 0.0939
    """

    def __init__(
        self,
        kind: Literal["ccdcov", "jdcov", "dcov_sum"] = "ccdcov",
        c: float = 1.0,
        unbiased: bool = True,
        attribute_encoding: Literal["onehot", "as_is"] = "onehot",
        method: Literal["auto", "dense", "sorted"] = "auto",
        scale: Literal["equal_dvar"] | None = None,
        block_size: int | None = None,
        gather: bool = False,
    ) -> None:
        super().__init__()
        check_choice("kind", kind, KINDS)
        check_range("c", c, low=0.0)
        check_choice("attribute_encoding", attribute_encoding, ("onehot", "as_is"))
        check_choice("method", method, METHODS)
        check_choice("scale", scale, (None, "equal_dvar"))
        if block_size is not None:
            check_range("block_size", block_size, low=1, integer=True)
        self.kind = kind
        self.c = float(c)
        self.unbiased = unbiased
        self.attribute_encoding = attribute_encoding
        self.method = method
        self.scale = scale
        self.block_size = None if block_size is None else int(block_size)
        self.gather = gather

    def forward(self, predictions: Tensor, attributes: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> Tensor:
        return (self._uncompiled if torch.compiler.is_compiling() else self._value)(predictions, attributes)

    def _value(self, predictions: Tensor, attributes: Tensor | Sequence[Tensor] | Mapping[str, Tensor]) -> Tensor:
        _check_predictions(predictions)
        columns = _columns(attributes, predictions)
        if self.gather:
            # Values are looked at afterwards, so that no process is left waiting for one that refuses its rows.
            predictions, _ = gather_rows(predictions)
            columns = {name: all_gather_rows(values).to(predictions.device) for name, values in columns.items()}
        check_count("predictions", len(predictions), self.unbiased)
        y = read_columns("predictions", predictions)[:, 0]
        with torch.no_grad():
            form = self._form(y.detach(), [self._scaled(attribute) for attribute in self._attributes(columns, 6)])
        return evaluate(y, form).to(result_dtype([predictions]))

    # How many cells there are depends on values, which breaks a graph. (torch.compiler.disable would load the compiler at once.)
    _uncompiled = _disable_dynamo(_value)

    def check_attributes(self, attributes: Tensor | Sequence[Tensor] | Mapping[str, Tensor], n: int) -> None:
        """Say what is wrong with the attributes of n rows, or constant, without computing anything of them."""
        self._attributes(_columns(attributes, torch.empty(n)), 3)

    def extra_repr(self) -> str:
        shown = [repr(self.kind)] + ([f"c={self.c:g}"] if self.kind == "jdcov" else [])
        shown += [f"unbiased={self.unbiased}", f"attribute_encoding={self.attribute_encoding!r}", f"method={self.method!r}"]
        shown += [f"scale={self.scale!r}"] if self.scale else []
        return ", ".join(shown + (["gather=True"] if self.gather else []))

    # -- what comes in ------------------------------------------------------------------------------------------------------------------

    def _attributes(self, columns: Mapping[str, Tensor], stacklevel: int) -> list[Attribute]:
        found: dict[str, Attribute] = {}
        for name, values in columns.items():
            if self.attribute_encoding == "onehot" and not values.is_floating_point():
                codes = values[:, None] if values.ndim == 1 else values
                labels = [name] if codes.shape[1] == 1 else [f"column {k} of {name}" for k in range(codes.shape[1])]
                found |= {label: Attribute(code.to(torch.int64)) for label, code in zip(labels, codes.unbind(dim=1), strict=True)}
            else:
                found[name] = Attribute(read_columns(name, values))
        for name, attribute in found.items():
            if bool((attribute.values == attribute.values[:1]).all()):
                warnings.warn(f"{name} has a single value in this batch, so it contributes 0 to the penalty.", stacklevel=stacklevel)
        return list(found.values())

    def _scaled(self, attribute: Attribute) -> Attribute:
        if self.scale is None:
            return attribute
        spread = variance(attribute, self.unbiased, self.block_size)
        # A level that a single row has is centered to 0 up to rounding, which is no variance to divide by.
        least = (ROUNDING * attribute.largest()).square().clamp(min=torch.finfo(spread.dtype).tiny)
        return Attribute(attribute.values, torch.where(spread > least, spread.clamp(min=least).rsqrt(), 0.0))

    # -- the form in y ------------------------------------------------------------------------------------------------------------------

    def _form(self, y: Tensor, attributes: list[Attribute]) -> Form:
        together = list(range(len(attributes)))
        if self.kind == "jdcov":
            return self._of(y, attributes, [[k] for k in together], self.c)
        if self.kind == "ccdcov":
            return self._of(y, attributes, [together], None)
        return Form(*(reduce(torch.add, parts) for parts in zip(*(self._of(y, [a], [[0]], None) for a in attributes), strict=True)))

    def _of(self, y: Tensor, attributes: list[Attribute], spaces: list[list[int]], c: float | None) -> Form:
        points = self._points(attributes, c)
        if points is None:
            z = attributes[0].values[:, 0]
            return by_ranks(y, z if attributes[0].scale is None else z * attributes[0].scale, unbiased=self.unbiased)
        return by_cells(y, points, spaces, c=c, unbiased=self.unbiased, block=self.block_size)

    def _points(self, attributes: list[Attribute], c: float | None) -> Points | None:
        """Cells of equal attributes, or every row for itself; None where a single column of numbers is sorted instead."""
        if self.method == "dense":
            return apart(attributes)
        line = len(attributes) == 1 and c is None and not attributes[0].coded and attributes[0].values.shape[1] == 1
        points = collapse(attributes, FEW_VALUES if line else None)
        if points.collapsed or not (line or self.method == "sorted"):
            return points
        if not line:
            n = len(attributes[0].values)
            accepted = f"attributes with few combinations, at most {min(MOST_CELLS, n // 2)} in {n} rows, for the fast form"
            bad_input("method", self.method, accepted, 'Bin what is continuous, or use method="auto".')
        return None


def _check_predictions(predictions: Any) -> None:
    if not isinstance(predictions, Tensor) or predictions.ndim != 1 or not predictions.is_floating_point():
        shape = tuple(predictions.shape) if isinstance(predictions, Tensor) else type(predictions).__name__
        found = f"{shape} of {getattr(predictions, 'dtype', 'no dtype')}"
        bad_input("predictions", found, "floating-point probabilities or rates, shape (n,)", "predictions.squeeze(1) drops a column.")


def _columns(attributes: Any, predictions: Tensor) -> dict[str, Tensor]:
    """Attributes by name, each (n,) or (n, d) like the predictions, without gradient; levels as int64."""
    n, found = len(predictions), {}
    for name, values in _named(attributes):
        tensor = _as_tensor(name, values).detach().to(predictions.device)
        if tensor.ndim not in (1, 2) or len(tensor) != n or 0 in tensor.shape[1:]:
            bad_input(name, f"shape {tuple(tensor.shape)}", f"shape ({n},) or ({n}, d), like the predictions")
        found[name] = tensor if tensor.is_floating_point() or tensor.is_complex() else tensor.to(torch.int64)
    if not found:
        bad_input("attributes", attributes, "at least one attribute")
    return found


def _named(attributes: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(attributes, Mapping):
        yield from ((f"attributes[{name!r}]", values) for name, values in attributes.items())
    elif isinstance(attributes, (list, tuple)):
        yield from ((f"attributes[{k}]", values) for k, values in enumerate(attributes))
    else:
        yield "attributes", attributes


def _as_tensor(name: str, values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        bad_input(name, f"{type(values).__name__} that is no tensor", "numbers or codes of levels", "ProtectedAttributeEncoder makes them.")
