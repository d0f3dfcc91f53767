"""The battery of the update stage: every optimizer must pass all of ``OPTIMIZER_CHECKS``; every check takes an :class:`OptimizerCase`."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

CALLS = 8  # of step() in most checks: two medians of three, and two left over


@dataclass(frozen=True)
class OptimizerCase:
    """An optimizer with a way to build it: ``make(params, lr=..., weight_decay=..., maximize=..., foreach=...)``.

    ``period`` is how many calls of ``step()`` make one step, ``sparse`` whether it takes sparse gradients, ``capturable`` whether it may be
    part of a CUDA graph.
    """

    name: str
    make: Callable[..., torch.optim.Optimizer]
    period: int = 1
    sparse: bool = True
    capturable: bool = False


class Problem:
    """Least squares on mini-batches; the same for the same seed."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).to(dtype)
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2)
        self.X = torch.randn(CALLS, 5, 4, generator=generator, dtype=torch.float64).to(dtype)
        self.Y = torch.randn(CALLS, 5, 2, generator=generator, dtype=torch.float64).to(dtype)

    @property
    def parameters(self) -> list[Tensor]:
        return list(self.model.parameters())

    def loss(self, call: int) -> Tensor:
        return F.mse_loss(self.model(self.X[call % CALLS]), self.Y[call % CALLS])

    def run(self, optimizer: torch.optim.Optimizer, first: int = 0, last: int = CALLS, sign: float = 1.0) -> list[Tensor]:
        """The parameters after calls first .. last - 1."""
        for call in range(first, last):
            optimizer.zero_grad()
            (sign * self.loss(call)).backward()
            optimizer.step()
        return self.values()

    def values(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]


def moved(before: list[Tensor], after: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def same(a: list[Tensor], b: list[Tensor]) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def foreach_is_the_loop(case: OptimizerCase) -> None:
    found = []
    for foreach in (False, True):
        problem = Problem()
        start = problem.values()
        found.append(problem.run(case.make(problem.parameters, foreach=foreach)))
        assert moved(start, found[-1])
    torch.testing.assert_close(found[1], found[0], rtol=1e-6, atol=1e-9)


def single_precision_is_double_rounded(case: OptimizerCase) -> None:
    found = []
    for dtype in (torch.float32, torch.float64):
        problem = Problem(dtype)
        found.append(problem.run(case.make(problem.parameters, lr=0.01)))
        assert all(p.dtype == dtype for p in found[-1])
    torch.testing.assert_close(found[0], [p.float() for p in found[1]], rtol=1e-4, atol=1e-5)


def a_saved_state_goes_on_where_it_was(case: OptimizerCase) -> None:
    for at in (0, 1, 4, 6):
        problem = Problem()
        expected = problem.run(case.make(problem.parameters, weight_decay=0.01))
        problem, optimizer = Problem(), None
        optimizer = case.make(problem.parameters, weight_decay=0.01)
        problem.run(optimizer, 0, at)
        file = io.BytesIO()
        torch.save({"model": problem.model.state_dict(), "optimizer": optimizer.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        other = Problem()
        other.model.load_state_dict(saved["model"])
        resumed = case.make(other.parameters, lr=123.0)  # its options come with the state
        resumed.load_state_dict(saved["optimizer"])
        same(other.run(resumed, at), expected)


def a_copy_goes_on_where_it_was(case: OptimizerCase) -> None:
    problem = Problem()
    optimizer = case.make(problem.parameters)
    problem.run(optimizer, 0, 4)
    other, resumed = copy.deepcopy((problem, optimizer))
    same(other.run(resumed, 4), problem.run(optimizer, 4))
    assert moved(problem.values(), other.run(resumed))  # and is another one


def groups_have_their_own_options(case: OptimizerCase) -> None:
    problem = Problem()
    start = problem.values()
    frozen, free = problem.parameters[:2], problem.parameters[2:]
    optimizer = case.make([{"params": frozen, "lr": 0.0}, {"params": free}])
    after = problem.run(optimizer)
    same(after[:2], start[:2])
    assert moved(start[2:], after[2:])
    assert [len(group["params"]) for group in optimizer.param_groups] == [2, 2]


def a_group_can_be_added(case: OptimizerCase) -> None:
    problem = Problem()
    optimizer = case.make(problem.parameters[:2])
    start = problem.values()
    optimizer.add_param_group({"params": problem.parameters[2:], "lr": 0.05})
    after = problem.run(optimizer)
    assert all(not torch.equal(a, b) for a, b in zip(start, after, strict=True))
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


def a_closure_is_evaluated_with_gradients(case: OptimizerCase) -> None:
    problem = Problem()
    expected = problem.run(case.make(problem.parameters))
    problem = Problem()
    optimizer = case.make(problem.parameters)
    for call in range(CALLS):

        def closure(call: int = call) -> Tensor:
            optimizer.zero_grad()
            loss = problem.loss(call)
            loss.backward()
            return loss

        before = problem.loss(call).item()
        assert optimizer.step(closure).item() == before
    same(problem.values(), expected)


def parameters_without_gradients_stay(case: OptimizerCase) -> None:
    problem = Problem()
    apart = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = case.make([apart, *problem.parameters], weight_decay=0.1)
    start = problem.values()
    after = problem.run(optimizer)
    assert moved(start, after)
    assert torch.equal(apart, torch.ones_like(apart)) and apart.grad is None


def sparse_gradients_do_what_dense_ones_do(case: OptimizerCase) -> None:
    if not case.sparse:
        pytest.skip("takes no sparse gradients")
    found = []
    for sparse in (False, True):
        table = nn.Embedding(6, 2, sparse=sparse, dtype=torch.float64, _weight=torch.arange(12.0, dtype=torch.float64).reshape(6, 2))
        optimizer = case.make([table.weight])
        for call in range(CALLS):
            optimizer.zero_grad()
            words = torch.tensor([0, call % 2, 2, 2, call % 3 + 3])
            (table(words) ** 2).sum().backward()
            optimizer.step()
        found.append(table.weight.detach().clone())
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    assert not torch.equal(found[0][0], torch.tensor([0.0, 1.0], dtype=torch.float64))


def maximize_goes_up(case: OptimizerCase) -> None:
    down, up = Problem(), Problem()
    same(up.run(case.make(up.parameters, maximize=True), sign=-1.0), down.run(case.make(down.parameters)))


def schedulers_set_its_learning_rate(case: OptimizerCase) -> None:
    problem = Problem()
    optimizer = case.make(problem.parameters, lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1], gamma=0.0)
    for call in range(case.period):
        problem.run(optimizer, call, call + 1)
    after = problem.values()
    scheduler.step()
    assert scheduler.get_last_lr() == [0.0]
    same(problem.run(optimizer), after)  # whatever it is called with, nothing moves any more


def a_cycle_of_rate_and_momentum_runs(case: OptimizerCase) -> None:
    problem = Problem()
    optimizer = case.make(problem.parameters)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=CALLS + 1)
    rates = []
    for call in range(CALLS):
        problem.run(optimizer, call, call + 1)
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert max(rates) > 5 * rates[0]


def hooks_see_every_call(case: OptimizerCase) -> None:
    problem = Problem()
    optimizer = case.make(problem.parameters)
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    problem.run(optimizer)
    assert seen == ["before", "after"] * CALLS


def it_is_part_of_a_cuda_graph(case: OptimizerCase) -> None:
    if not case.capturable or not torch.cuda.is_available():
        pytest.skip("not capturable, or no CUDA")
    p = nn.Parameter(torch.ones(4, device="cuda"))
    p.grad = torch.ones_like(p)
    optimizer = case.make([p], capturable=True)
    optimizer.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    before = p.detach().clone()
    graph.replay()
    assert not torch.equal(p, before)


def a_compiled_step_makes_the_same_numbers(case: OptimizerCase) -> None:
    problem = Problem()
    expected = problem.run(case.make(problem.parameters, weight_decay=0.01))
    problem = Problem()
    optimizer = case.make(problem.parameters, weight_decay=0.01)
    torch.compiler.reset()
    step = torch.compile(optimizer.step, backend="aot_eager")
    for call in range(CALLS):
        optimizer.zero_grad()
        problem.loss(call).backward()
        step()
    # torch's own optimizers count steps in single precision here.
    torch.testing.assert_close(problem.values(), expected, rtol=1e-4, atol=1e-5)


OPTIMIZER_CHECKS: list[Callable[[OptimizerCase], None]] = [
    foreach_is_the_loop,
    single_precision_is_double_rounded,
    a_saved_state_goes_on_where_it_was,
    a_copy_goes_on_where_it_was,
    groups_have_their_own_options,
    a_group_can_be_added,
    a_closure_is_evaluated_with_gradients,
    parameters_without_gradients_stay,
    sparse_gradients_do_what_dense_ones_do,
    maximize_goes_up,
    schedulers_set_its_learning_rate,
    a_cycle_of_rate_and_momentum_runs,
    hooks_see_every_call,
    it_is_part_of_a_cuda_graph,
    a_compiled_step_makes_the_same_numbers,
]
