"""The battery of the losses: every check takes a :class:`LossCase`.

A loss with a value per row must pass all of ``LOSS_CHECKS``; one that exists only for a whole batch, all of ``BATCH_LOSS_CHECKS``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from counterpoise._errors import InputError

Batch = tuple[Tensor, Tensor]  # inputs that are differentiated, targets


@dataclass(frozen=True)
class LossCase:
    """A loss with a way to make batches for it.

    ``make(reduction)`` builds the loss, ``batch(rows, generator)`` a float64 batch of ordinary values, ``extremes()`` a float32 batch
    of the largest, the smallest and the equal ones that a network may put out. The case of a loss that exists only for a batch has
    ``reductions=("batch",)`` and a ``make`` that does not look at its argument.
    """

    name: str
    make: Callable[[str], nn.Module]
    batch: Callable[[int, torch.Generator], Batch]
    extremes: Callable[[], Batch]
    reductions: tuple[str, ...] = ("mean", "sum", "none")

    def sample(self, rows: int = 7, dtype: torch.dtype = torch.float64) -> Batch:
        inputs, targets = self.batch(rows, torch.Generator().manual_seed(rows))
        return inputs.to(dtype), targets.to(dtype) if targets.is_floating_point() else targets


def gradients_are_those_of_the_values(case: LossCase) -> None:
    inputs, targets = case.sample()
    for reduction in case.reductions:
        loss = case.make(reduction).double()
        assert torch.autograd.gradcheck(lambda x, loss=loss: loss(x, targets), (inputs.requires_grad_(),))


def order_of_rows_does_not_matter(case: LossCase) -> None:
    inputs, targets = case.sample()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    assert not torch.equal(inputs, inputs[order])
    for reduction in case.reductions:
        loss = case.make(reduction)
        expected = loss(inputs, targets)
        torch.testing.assert_close(loss(inputs[order], targets[order]), expected[order] if reduction == "none" else expected)


def reductions_agree(case: LossCase) -> None:
    inputs, targets = case.sample()
    each = case.make("none")(inputs, targets)
    assert len(each) == len(inputs) and each.unique().numel() > 1
    torch.testing.assert_close(case.make("mean")(inputs, targets), each.mean())
    torch.testing.assert_close(case.make("sum")(inputs, targets), each.sum())


def arguments_are_left_alone(case: LossCase) -> None:
    inputs, targets = case.sample()
    before = inputs.clone(), targets.clone()
    inputs.requires_grad_()
    case.make("mean")(inputs, targets).backward()
    assert torch.equal(inputs, before[0]) and torch.equal(targets, before[1])


def half_precision_is_computed_in_single(case: LossCase) -> None:
    inputs, targets = case.sample(dtype=torch.float32)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = inputs.to(dtype)
        expected = case.make("mean")(rounded.float(), targets)
        loss = case.make("mean")(rounded, targets)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected)


def autocast_changes_nothing(case: LossCase) -> None:
    inputs, targets = case.sample(dtype=torch.float32)
    inputs.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.make("mean")(inputs, targets)
    loss.backward()
    assert loss.dtype == torch.float32 and inputs.grad is not None
    torch.testing.assert_close(loss, case.make("mean")(inputs, targets))


def an_empty_batch_costs_nothing(case: LossCase) -> None:
    inputs, targets = case.sample(rows=0)
    inputs.requires_grad_()
    for reduction in ("mean", "sum"):
        loss = case.make(reduction)(inputs, targets)
        assert loss.item() == 0.0
        loss.backward()
    assert len(case.make("none")(inputs, targets)) == 0


def an_empty_batch_is_refused(case: LossCase) -> None:
    with pytest.raises(InputError, match="input"):
        case.make("batch")(*case.sample(rows=0))


def one_row_is_a_batch(case: LossCase) -> None:
    inputs, targets = case.sample()
    each = case.make("none")(inputs, targets)
    for i in range(len(inputs)):
        torch.testing.assert_close(case.make("none")(inputs[i : i + 1], targets[i : i + 1])[0], each[i])


def a_batch_of_one_row_has_a_finite_loss_and_gradient(case: LossCase) -> None:
    inputs, targets = case.sample()
    for i in range(len(inputs)):
        row = inputs[i : i + 1].clone().requires_grad_()
        loss = case.make("batch")(row, targets[i : i + 1])
        loss.backward()
        assert loss.ndim == 0 and torch.isfinite(loss) and row.grad is not None and torch.isfinite(row.grad).all()


def extreme_inputs_give_finite_losses_and_gradients(case: LossCase) -> None:
    for dtype in (torch.float32, torch.float64):
        inputs, targets = case.extremes()
        inputs = inputs.to(dtype).requires_grad_()
        losses = case.make("none")(inputs, targets)
        assert torch.isfinite(losses).all() and (losses >= 0).all()
        losses.sum().backward()
        assert inputs.grad is not None and torch.isfinite(inputs.grad).all()


def buffers_survive_saving(case: LossCase) -> None:
    inputs, targets = case.sample()
    loss, other = case.make("none").double(), case.make("none").double()
    for buffer in other.buffers():
        buffer.zero_()
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(inputs, targets), loss(inputs, targets), rtol=0, atol=0)


def compiles_to_the_same_numbers(case: LossCase) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    loss = case.make("mean")
    inputs, targets = case.sample(dtype=torch.float32)
    gradients = []
    for call in (loss, torch.compile(loss, fullgraph=True)):
        x = inputs.clone().requires_grad_()
        call(x, targets).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[1], gradients[0])


LOSS_CHECKS: list[Callable[[LossCase], None]] = [
    gradients_are_those_of_the_values,
    order_of_rows_does_not_matter,
    reductions_agree,
    arguments_are_left_alone,
    half_precision_is_computed_in_single,
    autocast_changes_nothing,
    an_empty_batch_costs_nothing,
    one_row_is_a_batch,
    extreme_inputs_give_finite_losses_and_gradients,
    buffers_survive_saving,
    compiles_to_the_same_numbers,
]

BATCH_LOSS_CHECKS: list[Callable[[LossCase], None]] = [
    gradients_are_those_of_the_values,
    order_of_rows_does_not_matter,
    arguments_are_left_alone,
    half_precision_is_computed_in_single,
    autocast_changes_nothing,
    an_empty_batch_is_refused,
    a_batch_of_one_row_has_a_finite_loss_and_gradient,
    extreme_inputs_give_finite_losses_and_gradients,
    buffers_survive_saving,
    compiles_to_the_same_numbers,
]
