"""Every example of a batch twice, for losses that compare views: a ``collate_fn`` of a loader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import default_collate

from counterpoise._errors import bad_input

__all__ = ["RegressionTwoViews"]


class RegressionTwoViews:
    """Collate B examples ``(input, target, ...)`` to a batch of 2B rows: first one view of every input, then the other, in the same order.

    Targets, and whatever else an example holds (a weight, a position), are repeated, so that every anchor of
    :class:`~counterpoise.losses.ConRLoss` has at least one positive: its other view. Row i and row B + i belong to the same example. Give
    it to a loader as ``collate_fn``; with one view per example use the loader's own.

    Parameters
    ----------
    transform : callable, optional
        Applied twice to every input, drawing anew each time; it must not change the target. Default: both views are the input itself, to be
        augmented as one batch afterwards (on the GPU, say). Views that stay the same teach ConR nothing. For loaders with several workers
        it must pickle.

    Raises
    ------
    InputError
        If there is no example, an example is not a tuple or list that begins with an input and a target, or ``transform`` is not callable.

    Examples
    --------
    >>> import torch
    >>> examples = [(torch.tensor([1.0]), 30.0), (torch.tensor([2.0]), 60.0)]
    >>> inputs, ages = RegressionTwoViews(transform=lambda x: x + torch.randn(1))(examples)
    >>> inputs.shape, ages.tolist()
    (torch.Size([4, 1]), [30.0, 60.0, 30.0, 60.0])
    """

    def __init__(self, transform: Callable[[Any], Any] | None = None) -> None:
        if transform is not None and not callable(transform):
            bad_input("transform", transform, "a callable that takes an input and returns a view of it, or None")
        self.transform = transform

    def __call__(self, examples: Sequence[Any]) -> Any:
        if not len(examples):
            bad_input("examples", "none", "at least one example")
        for example in examples:
            if not isinstance(example, (tuple, list)) or len(example) < 2:
                found = f"{type(example).__name__}" + (f" of length {len(example)}" if isinstance(example, (tuple, list)) else "")
                bad_input("examples", found, "examples (input, target, ...), tuples or lists")
        return default_collate([self._view(example) for _ in range(2) for example in examples])

    def __repr__(self) -> str:
        return f"RegressionTwoViews({self.transform!r})"

    def _view(self, example: Sequence[Any]) -> tuple[Any, ...]:
        first, *rest = example
        return (first if self.transform is None else self.transform(first), *rest)
