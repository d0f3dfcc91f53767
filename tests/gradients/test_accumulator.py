from __future__ import annotations

import pytest
import torch

from counterpoise import CounterpoiseError
from counterpoise.gradients import Accumulator, Aggregator, GradientStatistics, WinsorizedMean, backward
from tests.gradients.examples import Bounded, EqualLength, SignVote, Smoothed, Sum
from tests.gradients.examples_model import NAMES, ThreeHeads, batch, in_one, rows_of_losses

DRAWS = 250


def micro_batches(k: int, n: int = 24, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = batch(n, seed)
    return list(zip(x.chunk(k), y.chunk(k), strict=True))


class Seen(Aggregator):
    """Keeps the statistics it was given."""

    needs = frozenset({"gramian", "rowstats"})

    def weights(self, s: GradientStatistics) -> torch.Tensor:
        self.seen = s
        return torch.ones(len(s), dtype=torch.float64)


@pytest.mark.parametrize("heads", ["own", "weighted"])
@pytest.mark.parametrize("make", [Sum, EqualLength, Bounded, Smoothed, SignVote, WinsorizedMean], ids=lambda make: make.__name__)
def test_micro_batches_are_one_large_batch(make: type[Aggregator], heads: str) -> None:
    whole, parts = ThreeHeads(), ThreeHeads()
    aggregators = make(), make()
    acc = Accumulator(parts.trunk.parameters(), aggregators[1], heads=heads)
    for step in range(2):
        one = backward(whole(*batch(seed=step)), aggregators[0], params=whole.trunk.parameters(), heads=heads, strategy="rows")
        for data in micro_batches(4, seed=step):
            acc.backward(parts(*data))
        many = acc.step()
        torch.testing.assert_close(in_one(list(parts.parameters())), in_one(list(whole.parameters())), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(many.weights, one.weights, rtol=1e-6, atol=0, equal_nan=True)
        torch.testing.assert_close(many.losses, one.losses)
        assert many.names == NAMES and many.passes == 12 and len(acc) == 0


def test_shared_parameters_left_out_get_the_weighted_sum() -> None:
    for make in (EqualLength, SignVote):
        whole, parts = ThreeHeads(), ThreeHeads()
        backward(whole(*batch()), make(), params=whole.trunk[2].parameters())
        acc = Accumulator(parts.trunk[2].parameters(), make())
        for data in micro_batches(3):
            acc.backward(parts(*data))
        acc.step()
        torch.testing.assert_close(in_one(list(parts.parameters())), in_one(list(whole.parameters())))


def test_one_task_for_each_micro_batch() -> None:
    model = ThreeHeads()
    data = micro_batches(7, n=28)
    tasks = ["seg", "seg", "seg", "depth", "depth", "normals", "normals"]  # not the same number
    acc = Accumulator(model.trunk.parameters(), EqualLength(), mode="stochastic")
    for task, (x, y) in zip(tasks, data, strict=True):
        acc.backward(model(x, y)[task], task=task)
    report = acc.step()
    rows = []
    for name in NAMES:
        own = [
            rows_of_losses({name: model(x, y)[name]}, list(model.trunk.parameters()))
            for task, (x, y) in zip(tasks, data, strict=True)
            if task == name
        ]
        rows.append(torch.cat(own).mean(dim=0))
    torch.testing.assert_close(in_one(list(model.trunk.parameters())), EqualLength()(torch.stack(rows)))
    assert report.passes == 7 and report.names == NAMES
    head = torch.stack([torch.autograd.grad(model(x, y)["seg"], model.heads["seg"].bias)[0] for x, y in data[:3]]).mean(dim=0)
    torch.testing.assert_close(model.heads["seg"].bias.grad, head)
    # A task without a micro-batch is a gradient of zeros.
    for task in ("seg", "normals"):
        acc.backward(model(*data[0])[task], task=task)
    report = acc.step()
    assert report.names == NAMES and report.norms[1] == 0 and (report.norms[[0, 2]] > 0).all()


@pytest.mark.parametrize("mode", ["sequential", "stochastic"])
def test_noise_is_told_from_signal(mode: str) -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.tensor([[1.0, 0.0, 0.0, 0.5], [-0.5, 1.0, 0.0, 0.0]], dtype=torch.float64)
    population = means @ means.T
    p = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    seen, raw = [], []
    for _ in range(DRAWS):
        aggregator = Seen()
        acc = Accumulator([p], aggregator, mode=mode)
        for k in range(4):
            noisy = (
                means
                + torch.randn(2, 4, generator=generator, dtype=torch.float64)
                + torch.randn(4, generator=generator, dtype=torch.float64)
            )
            if mode == "sequential":
                acc.backward(noisy @ p)
            else:
                acc.backward(noisy[k % 2] @ p, task="ab"[k % 2])
        acc.step()
        seen.append(aggregator.seen.gramian_unbiased)
        raw.append(aggregator.seen.gramian)
        assert aggregator.seen.n_micro == 4
    found = torch.stack(seen)
    error = (found.mean(dim=0) - population) / (found.std(dim=0) / DRAWS**0.5)
    assert error.abs().max() < 3
    biased = (torch.stack(raw).mean(dim=0) - population) / (torch.stack(raw).std(dim=0) / DRAWS**0.5)
    assert biased.diagonal().min() > 5


def test_denoise_weighs_by_what_is_left() -> None:
    class Lengths(EqualLength):
        def __init__(self, denoise: bool = False) -> None:
            super().__init__()
            self.denoise = denoise

        def weights(self, s: GradientStatistics) -> torch.Tensor:
            return 1 / self.gramian(s).diagonal().clamp(min=1e-3).sqrt()

    generator = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
    quiet = torch.zeros(50, dtype=torch.float64)
    quiet[0] = 1.0
    found = {}
    for denoise in (False, True):
        acc = Accumulator([p], Lengths(denoise))
        for _ in range(8):
            noise = torch.randn(50, generator=generator, dtype=torch.float64)
            acc.backward([quiet @ p, (quiet + noise) @ p])
        found[denoise] = acc.step().weights
    assert found[False][0] / found[False][1] > 2  # noise makes the second look longer
    assert 0.5 < found[True][0] / found[True][1] < 2
    with pytest.raises(CounterpoiseError, match="denoise: got True; expected gradients in at least two parts"):
        backward([quiet @ p, quiet @ p], Lengths(True))


def test_with_a_scaler() -> None:
    found = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0**12)):
        model = ThreeHeads(dtype=torch.float32)
        acc = Accumulator(model.trunk.parameters(), EqualLength(), scaler=scaler)
        for x, y in micro_batches(3):
            acc.backward(model(x.float(), y.float()))
        report = acc.step()
        found.append((in_one(list(model.parameters())) / (1 if scaler is None else 2.0**12), report.weights, report.losses))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)
    losses = model(*batch(dtype=torch.float32))
    acc.backward({name: loss * float("inf") for name, loss in losses.items()})
    model.zero_grad()
    assert "left to the scaler" in acc.step().notes[0]
    assert not torch.isfinite(in_one(list(model.trunk.parameters()))).all()


def test_what_cannot_be_used_is_refused() -> None:
    model = ThreeHeads()
    acc = Accumulator(model.trunk.parameters(), EqualLength())
    with pytest.raises(CounterpoiseError, match="step: got no micro-batch; expected at least one"):
        acc.step()
    with pytest.raises(CounterpoiseError, match=r"task: got 'seg'; expected None in sequential mode"):
        acc.backward(model(*batch())["seg"], task="seg")
    with pytest.raises(CounterpoiseError, match=r"task: got None; expected the name of the task"):
        Accumulator(model.trunk.parameters(), EqualLength(), mode="stochastic").backward(model(*batch())["seg"])
    with pytest.raises(CounterpoiseError, match=r"mode: got 'random'"):
        Accumulator(model.trunk.parameters(), EqualLength(), mode="random")
    with pytest.raises(CounterpoiseError, match="params: got an empty collection"):
        Accumulator([], EqualLength())
    for options, message in (
        ({"reduce": "mean"}, "reduce: got 'mean'"),
        ({"row_dtype": torch.int32}, "row_dtype: got torch.int32"),
        ({"sketch_dim": 0}, "sketch_dim: got 0"),
    ):
        with pytest.raises(CounterpoiseError, match=message):
            Accumulator(model.trunk.parameters(), EqualLength(), **options)
    with pytest.raises(CounterpoiseError, match="sketch_dim: got 23; expected at least 24"):
        Accumulator(model.trunk.parameters(), EqualLength(), sketch_dim=23).backward(model(*batch()))
    acc.backward(model(*batch()))
    with pytest.raises(CounterpoiseError, match=r"losses: got 'seg'; expected those of before, seg, depth, normals"):
        acc.backward({"seg": model(*batch())["seg"]})
    assert len(acc) == 1
    spoiled = {name: loss * (float("nan") if name == "depth" else 1) for name, loss in model(*batch()).items()}
    acc.backward(spoiled)
    with pytest.raises(CounterpoiseError, match=r"row 1 \(depth\)"):
        acc.step()
    assert all(p.grad is None for p in model.parameters()) and len(acc) == 0
    acc.backward(model(*batch()))
    acc.step()
    assert "3 micro" not in repr(acc) and "sequential" in repr(acc)


def test_one_task_at_a_time_shared_parameters_left_out_get_the_weighted_sum() -> None:
    grads = []
    for mode in ("sequential", "stochastic"):
        model = ThreeHeads()
        acc = Accumulator(model.trunk[0].parameters(), EqualLength(), mode=mode)
        if mode == "sequential":
            acc.backward(model(*batch()))
        for name in NAMES if mode == "stochastic" else ():
            acc.backward(model(*batch())[name], task=name)
        acc.step()
        grads.append(in_one(list(model.parameters())))
    torch.testing.assert_close(grads[0], grads[1])


def test_a_micro_batch_that_breaks_off_leaves_nothing_half_added() -> None:
    model = ThreeHeads()
    acc = Accumulator(model.trunk.parameters(), EqualLength())
    acc.backward(model(*batch()))
    losses = model(*batch())
    losses["normals"] = model(*batch())["normals"]
    losses["normals"].backward()
    model.zero_grad()
    with pytest.raises(CounterpoiseError, match="a graph that was already used"):
        acc.backward(losses)
    assert len(acc) == 0
    acc.backward(model(*batch()))
    acc.step()
    found = in_one(list(model.parameters()))
    model.zero_grad()
    backward(model(*batch()), EqualLength())
    torch.testing.assert_close(found, in_one(list(model.parameters())))
