"""Two and four processes with a part of the batch each, against one process with all of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from counterpoise.gradients import Accumulator, Aggregator, GradientStatistics, backward
from tests.gradients.examples import Bounded, EqualLength, SignVote, Smoothed, Sum
from tests.gradients.examples_model import ThreeHeads, batch, in_one


class AtRandom(EqualLength):
    """Draws from torch's global generator, whose state differs between processes."""

    def weights(self, s: GradientStatistics) -> torch.Tensor:
        return torch.rand(len(s), dtype=torch.float64)


class Momentum(EqualLength):
    def finish(self, combined: torch.Tensor, slot: int, s: GradientStatistics) -> torch.Tensor:
        before = self.kept(f"momentum_{slot}", combined.shape)
        return self.keep(f"momentum_{slot}", combined if before is None else 0.9 * before + combined.abs())


class Seen(Sum):
    needs = frozenset({"gramian"})

    def weights(self, s: GradientStatistics) -> torch.Tensor:
        self.seen = s
        return super().weights(s)


# name: aggregator, options, whether the result is that of one process exactly
CASES: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "rows-equal": (EqualLength, {"reduce": "rows"}, True),
    "auto-equal": (EqualLength, {}, True),  # fewer entries than the sketch has columns
    "sketch-equal": (EqualLength, {"strategy": "sketch"}, True),
    "weighted": (EqualLength, {"heads": "weighted"}, True),
    "sign": (SignVote, {}, True),
    "bounded": (Bounded, {}, True),
    "smoothed": (Smoothed, {"reduce": "rows"}, True),
    "momentum": (Momentum, {}, True),
    "momentum-sketch": (Momentum, {"strategy": "sketch"}, True),
    "plain": (Sum, {}, True),
    "held": (EqualLength, {"refresh_every": 2, "reduce": "rows"}, True),
    "features": (EqualLength, {"features": True}, True),
    "gramian": (EqualLength, {"reduce": "gramian"}, False),
    "narrow": (EqualLength, {"reduce": "sketch", "sketch_dim": 64}, False),
    "random": (AtRandom, {}, False),
}


def two_steps(make: type[Aggregator], options: dict[str, Any], part: slice, ddp: bool = False) -> dict[str, Any]:
    options = dict(options)
    at_features = options.pop("features", False)
    model: nn.Module = ThreeHeads()
    inner = model
    if ddp:
        model = DistributedDataParallel(model)
    aggregator = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    weights = []
    for seed in range(2):
        x, y = batch(seed=seed)
        optimizer.zero_grad()
        if at_features:
            z = inner.trunk(x[part])
            report = backward(inner.losses_at(z, y[part]), aggregator, features=z, **options)
        else:
            report = backward(model(x[part], y[part]), aggregator, params=inner.trunk.parameters(), **options)
        weights.append(report.weights)
        optimizer.step()
    return {
        "weights": torch.stack(weights),
        "grad": in_one(list(inner.parameters())),
        "values": nn.utils.parameters_to_vector(inner.parameters()).detach(),
    }


def one_step(part: slice) -> dict[str, Any]:
    model = ThreeHeads()
    x, y = batch()
    report = backward(model(x[part], y[part]), EqualLength(), params=model.trunk.parameters())
    return {"weights": report.weights, "grad": in_one(list(model.parameters()))}


def accumulated(part: slice, mode: str) -> dict[str, Any]:
    model = ThreeHeads()
    aggregator = Seen()
    acc = Accumulator(model.trunk.parameters(), aggregator, mode=mode, reduce="rows")
    x, y = (whole[part] for whole in batch())
    for k, (a, b) in enumerate(zip(x.chunk(3), y.chunk(3), strict=True)):
        losses = model(a, b)
        if mode == "sequential":
            acc.backward(losses)
        else:
            acc.backward(losses[list(losses)[k]], task=list(losses)[k])
    report = acc.step()
    return {"weights": report.weights, "grad": in_one(list(model.parameters())), "unbiased": aggregator.seen.gramian_unbiased}


def one_rank(rank: int, size: int, folder: str) -> None:
    warnings.simplefilter("error")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.manual_seed(rank)
    part = slice(rank * 24 // size, (rank + 1) * 24 // size)
    found: dict[str, Any] = {}
    for name, (make, options, _) in CASES.items():
        if name == "gramian":
            with pytest.warns(UserWarning, match="averages the Gramians of the processes"):
                found[name] = two_steps(make, options, part)
        else:
            found[name] = two_steps(make, options, part)
    found["ddp"] = two_steps(EqualLength, {"reduce": "rows"}, part, ddp=True)
    found["ddp-sketch"] = two_steps(EqualLength, {"strategy": "sketch"}, part, ddp=True)
    found["accumulated"] = accumulated(part, "sequential")
    found["accumulated-stochastic"] = accumulated(part, "stochastic")
    found["error"] = spoiled(rank, part)
    found["skipped"] = skipped(rank, part)
    found["order"] = in_another_order(rank, part)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def skipped(rank: int, part: slice) -> torch.Tensor:
    """What is not finite on one process reaches all of them, so that their scalers skip the same step."""
    found = []
    for options in ({"reduce": "rows"}, {"strategy": "sketch"}, {"reduce": "sketch"}):
        model = ThreeHeads()
        x, y = batch()
        z = model.trunk(x[part])
        if rank == 1:
            z.register_hook(lambda g: g * float("inf"))
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        backward(model.losses_at(z, y[part]), EqualLength(), params=model.trunk.parameters(), scaler=scaler, **options)
        found.append(torch.isfinite(in_one(list(model.trunk.parameters()))).all())
    return torch.stack(found)


def in_another_order(rank: int, part: slice) -> dict[str, Any]:
    """Each process may see the tasks in an order of its own, but sees all of them."""
    model = ThreeHeads()
    acc = Accumulator(model.trunk.parameters(), EqualLength(), mode="stochastic")
    x, y = (whole[part] for whole in batch())
    names = list(model(x, y))
    for name in names if rank == 0 else names[::-1]:
        acc.backward(model(x, y)[name], task=name)
    report = acc.step()
    found = {"weights": report.weights, "grad": in_one(list(model.parameters()))}
    new = Accumulator(model.trunk.parameters(), EqualLength(), mode="stochastic")
    new.backward(model(x, y)[names[min(rank, 1)]], task=names[min(rank, 1)])
    with pytest.raises(ValueError, match="task: got depth, seg in some processes only"):
        new.step()
    return found


def spoiled(rank: int, part: slice) -> list[str]:
    """A gradient that is not finite on one process is an error on all of them: nobody waits for the others."""
    messages = []
    for options in ({"reduce": "rows"}, {"strategy": "sketch"}, {"reduce": "sketch"}):
        model = ThreeHeads()
        x, y = batch()
        losses = model(x[part], y[part])
        if rank == 1:
            losses["depth"] = losses["depth"] * float("nan")
        try:
            backward(losses, EqualLength(), params=model.trunk.parameters(), **options)
        except ValueError as error:
            messages.append(str(error))
    return messages


@pytest.mark.parametrize("size", [2, 4])
def test_processes_are_one(size: int, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_rank, (size, str(tmp_path)), nprocs=size)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(size)]
    everything = slice(0, 24)
    for name, (make, options, exact) in CASES.items():
        for found in ranks[1:]:
            torch.testing.assert_close(found[name], ranks[0][name], rtol=0, atol=0, equal_nan=True, msg=f"{name}: processes differ")
        if exact:
            alone = two_steps(make, {key: value for key, value in options.items() if key != "reduce"}, everything)
            torch.testing.assert_close(ranks[0][name], alone, rtol=1e-6, atol=1e-9, equal_nan=True)
    for name in ("ddp", "ddp-sketch"):
        torch.testing.assert_close(ranks[-1][name], ranks[0]["rows-equal"], rtol=1e-6, atol=1e-9)
    assert not torch.allclose(ranks[0]["gramian"]["weights"], ranks[0]["rows-equal"]["weights"], rtol=1e-3)
    torch.testing.assert_close(ranks[0]["narrow"]["weights"], ranks[0]["rows-equal"]["weights"], rtol=1.0, atol=0)
    alone = accumulated(everything, "sequential")
    torch.testing.assert_close(ranks[0]["accumulated"]["grad"], alone["grad"])
    assert torch.isfinite(ranks[0]["accumulated"]["unbiased"]).all()
    for name in ("accumulated", "accumulated-stochastic"):
        for found in ranks[1:]:
            torch.testing.assert_close(found[name], ranks[0][name], rtol=0, atol=0, equal_nan=True)
    for found in ranks:
        assert not found["skipped"].any()
        torch.testing.assert_close(found["order"], one_step(everything), rtol=1e-6, atol=1e-9)
        assert len(found["error"]) == 3 and all("row 1 (depth)" in message for message in found["error"])
