from __future__ import annotations

import pytest
import torch
from torch import nn

from counterpoise import CounterpoiseError
from counterpoise.optim import MicroBatchMedian
from counterpoise.optim._micro_batch_median import median_of

SGD = torch.optim.SGD


def steps(optimizer: MicroBatchMedian, p: nn.Parameter, gradients: list[torch.Tensor | None]) -> list[torch.Tensor]:
    """The parameter after each micro-batch."""
    found = []
    for gradient in gradients:
        optimizer.zero_grad()
        p.grad = None if gradient is None else gradient.clone()
        optimizer.step()
        found.append(p.detach().clone())
    return found


@pytest.fixture
def p() -> nn.Parameter:
    return nn.Parameter(torch.zeros(4, dtype=torch.float64))


@pytest.fixture
def gradients() -> list[torch.Tensor]:
    return list(torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_every_kth_call_steps_with_the_median_of_the_last_k(p, gradients, k) -> None:
    found = steps(MicroBatchMedian(SGD([p], lr=1.0), k=k), p, gradients)
    expected = torch.zeros(4, dtype=torch.float64)
    for call, after in enumerate(found, 1):
        if call % k == 0:
            expected -= torch.stack(gradients[call - k : call]).quantile(0.5, dim=0)
        torch.testing.assert_close(after, expected)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_rolling_steps_at_every_call_with_what_there_is(p, gradients, k) -> None:
    found = steps(MicroBatchMedian(SGD([p], lr=1.0), k=k, rolling=True), p, gradients)
    expected = torch.zeros(4, dtype=torch.float64)
    for call, after in enumerate(found, 1):
        expected -= torch.stack(gradients[max(call - k, 0) : call]).quantile(0.5, dim=0)
        torch.testing.assert_close(after, expected)


def test_one_loud_micro_batch_of_three_is_passed_over(p) -> None:
    ones = torch.ones_like(p.data)
    found = steps(MicroBatchMedian(SGD([p], lr=1.0)), p, [ones, 1e6 * ones, 2 * ones])
    assert torch.equal(found[-1], -2 * ones)


def test_afterwards_the_gradient_is_the_median_in_its_place(p) -> None:
    optimizer = MicroBatchMedian(SGD([p], lr=1.0))
    held = torch.zeros_like(p.data)
    for value in (1.0, 5.0, 3.0):
        p.grad = held
        held.fill_(value)
        optimizer.step()
    assert p.grad is held and torch.equal(held, torch.full_like(held, 3.0))


def test_no_gradient_counts_as_zero_whichever_way_it_was_cleared(p) -> None:
    ones = torch.ones_like(p.data)
    by_none = steps(MicroBatchMedian(SGD([p], lr=1.0), rolling=True), p, [None, ones, 3 * ones, None, None, None, None])
    p.data.zero_()
    zero = torch.zeros_like(ones)
    by_zero = steps(MicroBatchMedian(SGD([p], lr=1.0), rolling=True), p, [zero, ones, 3 * ones, zero, zero, zero, zero])
    torch.testing.assert_close(by_none, by_zero, rtol=0, atol=0)
    assert [float(after[0]) for after in by_none] == [0.0, -0.5, -1.5, -2.5, -2.5, -2.5, -2.5]


def test_a_micro_batch_that_overflowed_is_left_out(p) -> None:
    optimizer = MicroBatchMedian(SGD([p], lr=1.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    weight = torch.ones_like(p.data)
    for value in (1.0, float("inf"), 5.0, 2.0):
        optimizer.zero_grad()
        scaler.scale((value * weight * p).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(p.data, -2 * weight)


def test_half_precision_has_the_median_exactly() -> None:
    values = [torch.tensor([1.0, 300.0, 0.1]), torch.tensor([3.0, 100.0, 0.3]), torch.tensor([2.0, 200.0, 0.2])]
    for dtype in (torch.float16, torch.bfloat16):
        found = median_of([value.to(dtype) for value in values])
        assert found.dtype == dtype and torch.equal(found, torch.tensor([2.0, 200.0, 0.2]).to(dtype))


def test_sparse_medians_are_those_of_the_dense_tensors() -> None:
    generator = torch.Generator().manual_seed(1)
    for k in (1, 2, 3, 4):
        parts = []
        for _ in range(k):
            rows = torch.randint(7, (4,), generator=generator)  # some twice
            parts.append(torch.sparse_coo_tensor(rows[None], torch.randn(4, 3, generator=generator), (7, 3), check_invariants=True))
        for absent in (0, 1):
            found = median_of([*parts, *[None] * absent])
            dense = torch.stack([*(part.to_dense() for part in parts), *[torch.zeros(7, 3)] * absent])
            assert found.is_sparse and found.is_coalesced()
            torch.testing.assert_close(found.to_dense(), dense.quantile(0.5, dim=0))
    mixed = median_of([parts[0], torch.ones(7, 3), None])
    torch.testing.assert_close(mixed, torch.stack([parts[0].to_dense(), torch.ones(7, 3), torch.zeros(7, 3)]).median(dim=0).values)


def test_sparse_adam_can_be_the_base() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = MicroBatchMedian(torch.optim.SparseAdam(table.parameters(), lr=0.1))
    before = table.weight.detach().clone()
    for words in ([0, 1], [0, 2], [0, 1]):
        optimizer.zero_grad()
        table(torch.tensor(words)).sum().backward()
        optimizer.step()
    changed = (table.weight != before).any(dim=1)
    assert changed.tolist() == [True, True, False, False, False]


def test_shared_groups_stay_shared_after_loading(p) -> None:
    base = SGD([p], lr=1.0, momentum=0.9)
    optimizer = MicroBatchMedian(base, rolling=True)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.25
    assert base.param_groups is optimizer.param_groups and optimizer.defaults is base.defaults
    assert "k=3, rolling=True, base_optimizer=SGD" in repr(optimizer)


def test_bad_input(p) -> None:
    with pytest.raises(CounterpoiseError, match=r"base_optimizer: got 'Linear'; expected a torch\.optim.Optimizer"):
        MicroBatchMedian(nn.Linear(1, 1))
    with pytest.raises(CounterpoiseError, match="got 'LBFGS'; expected an optimizer that steps without a closure"):
        MicroBatchMedian(torch.optim.LBFGS([p]))
    for k in (0, 2.5, True):
        with pytest.raises(CounterpoiseError, match="k: got"):
            MicroBatchMedian(SGD([p], lr=1.0), k=k)
    with pytest.raises(CounterpoiseError, match=r"what MicroBatchMedian.state_dict\(\) gave"):
        MicroBatchMedian(SGD([p], lr=1.0)).load_state_dict(SGD([p], lr=1.0).state_dict())
