"""``examine``: what it says about planted domination, what it refuses, what it leaves behind, and what it costs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from counterpoise._errors import InputError
from counterpoise.diagnostics import TrainingDiagnosis, examine, sketch_gradients
from tests.batteries.diagnoses import DIAGNOSIS_CHECKS, DiagnosisCase

DIGITS = load_digits()
X, Y = torch.tensor(DIGITS.data / 16, dtype=torch.float32), torch.tensor(DIGITS.target)
CE = nn.CrossEntropyLoss()

CASES = [
    DiagnosisCase(f"{function.__name__}, {engine}", partial(_call, function, engine, options))  # type: ignore[name-defined]
    for _call in [
        lambda function, engine, options, model, data, loss: function(model, loss, data, engine=engine, batchnorm="eval", **options)
    ]
    for function, engine, options in [
        (examine, "auto", {}),
        (examine, "ghost", {"batch_size": 16, "gramian": False, "check": False}),
        (examine, "groups", {"groups": "target"}),
        (examine, "last_layer", {}),
        (sketch_gradients, "loop", {"batch_size": 16}),
        (sketch_gradients, "ghost", {"gramian": True}),
    ]
]


@pytest.mark.parametrize("check", DIAGNOSIS_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_battery(case: DiagnosisCase, check: Callable[[DiagnosisCase], None]) -> None:
    check(case)


def small(n: int = 60, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), (torch.randn(n, 6), torch.arange(n) % 3)


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int, weight: Tensor | None = None) -> nn.Module:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = F.cross_entropy(model(x), y, reduction="none")
        (losses if weight is None else losses * weight[y]).mean().backward()
        optimizer.step()
    return model


# ---- planted domination ----------------------------------------------------------------------------------------------------

SEEDS = range(10)


def first_of(frame: pl.DataFrame, column: str) -> int:
    return int(np.nanargmax(frame[column].to_numpy()))


def test_loud() -> None:
    """The loss of class 3 counts ten times."""
    weight = torch.ones(10)
    weight[3] = 10.0

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none") * weight[target]

    found = [examine(train(net(s), X, Y, 15, weight), loss, (X, Y), seed=s, leverage=False) for s in SEEDS]
    assert sum(any("'3' is loud" in hint for hint in d.hints) for d in found) >= 9
    assert sum(first_of(d.per_group, "rho") == 3 for d in found) >= 9
    assert sum(first_of(d.per_group, "share") == 3 for d in found) >= 7


def test_many() -> None:
    """Class 3 is there ten times."""
    rows = torch.cat([torch.arange(len(Y)), (Y == 3).nonzero()[:, 0].repeat(9)])
    x, y = X[rows], Y[rows]
    found = [examine(train(net(s), x, y, 15), CE, (x, y), seed=s, max_examples=2000, leverage=False) for s in SEEDS]
    assert sum(any("'3' is many" in hint or "many" in hint for hint in d.hints) for d in found) >= 9
    assert sum(first_of(d.per_group, "pi") == 3 for d in found) >= 9
    assert sum(first_of(d.per_group, "share") == 3 for d in found) >= 7


def test_incoherent() -> None:
    """40 % of class 3 have another label."""
    hits, last = 0, 0
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        y, own = Y.clone(), (Y == 3).nonzero()[:, 0]
        own = own[torch.rand(len(own), generator=generator) < 0.4]
        y[own] = (y[own] + torch.randint(1, 10, (len(own),), generator=generator)) % 10
        d = examine(train(net(seed), X, y, 200), CE, (X, y), groups=Y, seed=seed, leverage=False, bootstrap=0)
        hits += any("'3' is incoherent" in hint for hint in d.hints)
        last += int(np.argmin(d.per_group["alpha_unbiased"].to_numpy())) == 3
    assert hits >= 9 and last >= 9


def test_conflict() -> None:
    """Two domains with opposite labels, once the net has learned what they have in common: that there are two digits of ten."""
    rows = (Y == 3) | (Y == 5)
    x, y = X[rows], (Y[rows] == 5).long()
    domain = torch.arange(len(y)) % 2
    y = torch.where(domain == 1, 1 - y, y)
    found = [examine(train(net(s), x, y, 40), CE, (x, y), groups=domain, seed=s, leverage=False) for s in SEEDS]
    assert sum(any("onflict" in hint for hint in d.hints) for d in found) >= 9
    assert sum(d.cosine[0, 1] < -0.8 for d in found) >= 9


def test_nothing_planted() -> None:
    found = [examine(train(net(s), X, Y, 15), CE, (X, Y), seed=s, leverage=False, bootstrap=0) for s in SEEDS]
    assert not any("'3' is" in hint for d in found for hint in d.hints)
    assert np.mean([d.per_group["share"][3] for d in found]) < 0.3


def test_adam_hides_loudness() -> None:
    """A class whose loss counts 100 times has more than 0.9 of the gradient, and of Adam's update about what it has without that."""
    for seed in range(2):
        share = {}
        for factor in (1.0, 100.0):
            weight = torch.ones(10)
            weight[3] = factor
            model = net(seed)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

            def loss(output: Tensor, target: Tensor, weight: Tensor = weight) -> Tensor:
                return F.cross_entropy(output, target, reduction="none") * weight[target]

            for _ in range(200):
                optimizer.zero_grad()
                loss(model(X), Y).mean().backward()
                optimizer.step()
            d = examine(model, loss, (X, Y), optimizer=optimizer, metric="optimizer", bootstrap=0, leverage=False)
            share[factor] = d.per_group["share_sgd"][3], d.per_group["share_optimizer"][3]
            np.testing.assert_array_equal(d.per_group["share"], d.per_group["share_optimizer"])
        assert share[100.0][0] > 0.9
        assert abs(share[100.0][1] - share[1.0][1]) < 0.1
        assert any("divided otherwise" in hint for hint in d.hints)
        assert any("state that has grown under this loss" in note for note in d.notes)


# ---- the report ----------------------------------------------------------------------------------------------------


def test_report() -> None:
    model, data = small()
    d = examine(model, CE, data, gramian=True)
    assert isinstance(d, TrainingDiagnosis)
    f = d.per_group
    assert f["group"].to_list() == ["0", "1", "2"] and f["count"].to_list() == [20, 20, 20]
    assert f["share"].sum() == pytest.approx(1, abs=1e-6)
    rebuilt = f["pi"] * f["rho"] * f["alpha"].sqrt() * f["alignment"] / d.shares.norm
    np.testing.assert_allclose(f["share"], rebuilt, rtol=1e-5)
    with torch.no_grad():
        losses = F.cross_entropy(model(data[0]), data[1], reduction="none").double()
    np.testing.assert_allclose(f["loss"], [float(losses[data[1] == k].mean()) for k in range(3)], rtol=1e-5)
    assert d.leverage is not None and d.leverage.values.sum() == pytest.approx(1)
    assert d.coherence is not None and d.interaction.shape == d.cosine.shape == (3, 3)
    assert d.kind == "class" and d.engine == "ghost" and d.seconds > 0
    assert d.headline in d.summary() and "%" in d.headline
    assert f["share_lo"].is_finite().all() and (f["share_lo"] < f["share"]).all()
    for again in (dataclasses.replace(d, step=7).headline,):
        assert "at step 7" in again


def test_logit_pressure() -> None:
    """Sums over rows of 1 - p of the own class, and of p of the others."""
    model, data = small()
    for batch_size in (256, 7):
        d = examine(model, CE, data, batch_size=batch_size)
        with torch.no_grad():
            p = model(data[0]).double().softmax(dim=1)
        own = F.one_hot(data[1], 3).bool()
        assert d.logit_pressure is not None
        np.testing.assert_allclose(d.logit_pressure["pull"], (1 - p).where(own, 0.0).sum(dim=0), rtol=1e-5)
        np.testing.assert_allclose(d.logit_pressure["push"], p.where(~own, 0.0).sum(dim=0), rtol=1e-5)
    regression = examine(nn.Linear(6, 1), lambda o, t: (o[:, 0] - t).square(), (data[0], data[0].sum(dim=1)))
    assert regression.logit_pressure is None and regression.kind == "range"


def test_engines_say_what_they_do_not_know() -> None:
    model, data = small()
    d = examine(model, CE, data, engine="groups")
    assert d.engine == "groups" and d.leverage is None and not d.opposing
    assert d.per_group["rho"].is_nan().all() and d.per_group["share_lo"].is_nan().all()
    assert d.per_group["share"].sum() == pytest.approx(1, abs=1e-6)
    assert any("nothing per example" in note for note in d.notes) and any("No intervals" in note for note in d.notes)
    d = examine(model, CE, data, engine="jvp")
    assert d.leverage is not None and d.per_group["share_lo"].is_nan().all()
    d = examine(model, CE, data, engine="jvp", sketch_dim=32)
    assert d.per_group["share_lo"].is_finite().all() and any("estimates from 32 random directions" in note for note in d.notes)
    d = examine(model, CE, data, engine="last_layer")
    assert any("head alone" in note for note in d.notes)


def test_no_gradient_at_all() -> None:
    model, (x, y) = small()
    d = examine(model, lambda output, target: 0 * output.sum(dim=1), (x, y))
    assert d.per_group["share"].is_nan().all() and any("no step to divide" in hint for hint in d.hints)
    d = examine(model, lambda output, target: torch.zeros(len(target)), (x, y))  # no graph at all
    assert d.per_group["share"].is_nan().all() and isinstance(d.summary(), str)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_examples(n: int) -> None:
    model, (x, y) = small()
    d = examine(model, CE, (x[:n], y[:n]))
    assert d.per_group["share"].sum() == pytest.approx(1, abs=1e-6)
    assert d.per_group["alpha_unbiased"].is_nan().all() or n > 3
    assert any("Fewer than two examples" in note for note in d.notes)
    assert isinstance(d.summary(), str) and isinstance(d.headline, str)


def test_groups_without_examples() -> None:
    model, (x, _) = small()
    y, ids = torch.arange(60) % 3, torch.where(torch.arange(60) == 5, 1, torch.where(torch.arange(60) < 20, -1, 3))
    d = examine(model, CE, (x, y), groups=ids)
    assert d.per_group["group"].to_list() == ["0", "1", "2", "3", "(none)"]
    assert d.per_group["count"].to_list() == [0, 1, 0, 40, 19]
    assert np.nansum(d.per_group["share"].to_numpy()) == pytest.approx(1, abs=1e-6)
    assert any("'0', '1', '2'" in note for note in d.notes)
    assert isinstance(d.summary(), str)


def test_examples_that_are_not_finite_are_named() -> None:
    model, (x, y) = small()

    def loss(output: Tensor, target: Tensor) -> Tensor:
        each = F.cross_entropy(output, target, reduction="none")
        return torch.where(torch.arange(len(each)) == 4, float("inf"), each) if len(each) == 60 else each

    def gradient(output: Tensor, target: Tensor) -> Tensor:
        """Finite losses, the gradients of two of which are not."""
        return F.cross_entropy(output, target, reduction="none") + (output[:, 0] - output[:, 0]).abs().add(target - 1).clamp(min=0).sqrt()

    with pytest.raises(InputError, match=r"1 examples whose loss or gradient is not finite; .* examples \d+ of group '\d'"):
        examine(model, loss, (x, y), check=False)
    with pytest.raises(InputError, match=r"20 examples whose loss .* examples 1, 4, 7, 10, 13 and 15 more of group '1'"):
        examine(model, gradient, (x, y))


def normed(training: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train(training)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "net"}, "model: got 'str'"),
        ({"model": nn.Linear(6, 3).requires_grad_(False)}, "without trainable parameters"),
        ({"model": normed(True)}, r"batch normalization in training mode .*model.eval\(\) first"),
        ({"model": normed(False), "train_mode": True}, "train_mode: got True"),
        ({"model": nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, 3))}, "without running statistics"),
        ({"engine": "gost"}, "Did you mean 'ghost'"),
        ({"metric": "adam"}, "metric: got 'adam'"),
        ({"batchnorm": "train"}, "batchnorm: got 'train'"),
        ({"params": "lstm"}, "params: got 'lstm'; expected trainable parameters among"),
        ({"params": "("}, "a regular expression"),
        ({"params": 3}, "params: got 3"),
        ({"max_examples": 0}, "max_examples: got 0"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"sketch_dim": -1}, "sketch_dim: got -1"),
        ({"bootstrap": 1.5}, "bootstrap: got 1.5"),
        ({"seed": -1}, "seed: got -1"),
        ({"device": "cuda"}, "device: got 'cuda'"),
        ({"groups": torch.zeros(59, dtype=torch.int64)}, "groups: got an array of shape"),
        ({"loss_fn": lambda output, target: F.cross_entropy(output, target)}, "one number for the batch"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    model, data = small()
    given = {"model": model, "loss_fn": CE, "data": data} | options
    with pytest.raises(InputError, match=message):
        examine(given.pop("model"), given.pop("loss_fn"), given.pop("data"), **given)


def test_batch_normalization_with_its_own_statistics() -> None:
    model, data = normed(True), small()[1]
    d = examine(model, CE, data, batchnorm="eval")
    model.eval()
    np.testing.assert_array_equal(d.per_group["share"], examine(model, CE, data).per_group["share"])


def test_loader_of_dictionaries() -> None:
    model, (x, y) = small()
    rows = [{"x": x[i], "y": y[i], "site": int(i % 2)} for i in range(60)]
    d = examine(
        model,
        None,
        DataLoader(rows, batch_size=13),
        groups="site",
        forward=lambda model, batch: model(batch["x"]),
        loss=lambda output, batch: F.cross_entropy(output, batch["y"], reduction="none"),
    )
    expected = examine(model, CE, (x, y), groups=torch.arange(60) % 2)
    np.testing.assert_allclose(d.per_group["share"], expected.per_group["share"], rtol=1e-5)
    assert d.logit_pressure is None


def test_same_numbers_from_tensors_and_loader_in_any_batches() -> None:
    model, data = small()
    expected = examine(model, CE, data, bootstrap=0).per_group["share"]
    for probe in (DataLoader(TensorDataset(*data), batch_size=11), [data], list(DataLoader(TensorDataset(*data), batch_size=60))):
        np.testing.assert_allclose(examine(model, CE, probe, bootstrap=0).per_group["share"], expected, rtol=1e-5)


def test_progress() -> None:
    model, data = small()
    seen: list[int] = []
    examine(model, CE, data, batch_size=25, progress=seen.append)
    assert sum(seen) == 120 and set(seen) == {25, 10}  # two passes


MEMORY = """
import resource, torch
from torch import nn
from counterpoise.diagnostics import examine
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(500, 1000), nn.ReLU(), nn.Linear(1000, 500), nn.ReLU(), nn.Linear(500, 10))
data = torch.randn(4096, 500), torch.randint(10, (4096,))
examine(model, nn.CrossEntropyLoss(), (data[0][:8], data[1][:8]))  # whatever is imported on the way
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
d = examine(model, nn.CrossEntropyLoss(), data)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, d.peak_bytes / 2**20, d.engine)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in KiB")
def test_memory() -> None:
    """4096 examples and a million parameters: below 400 MiB above the model, where all gradients would be 16 GB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    grown, said, engine = done.stdout.split()
    assert float(grown) < 400 and engine == "ghost"
    assert float(said) == pytest.approx(float(grown), abs=1)
