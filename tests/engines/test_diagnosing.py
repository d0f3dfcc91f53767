"""What the three diagnosis callbacks share, and what is said when their framework is not installed."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from counterpoise import Groups
from counterpoise._errors import InputError, MissingExtraError
from counterpoise.diagnostics import examine
from counterpoise.engines._diagnosing import Diagnoser, _held, _undisturbed, _without_numbers, scalars


def diagnoser(**options) -> Diagnoser:
    defaults = dict.fromkeys(("probe", "loss_fn", "forward", "loss")) | {"groups": "target", "params": "all", "engine": "auto"}
    return Diagnoser(**({"every": 10, "batch": 16, "seed": 0} | defaults | options))


def problem(n: int = 90, separation: float = 1.0) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % 3
    X = torch.randn(n, 4, generator=generator) + separation * nn.functional.one_hot(y, 4)
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    return model, X, y


@pytest.mark.parametrize(
    ("name", "module", "extra"), [("lightning", "lightning.pytorch", "lightning"), ("transformers", "transformers", "text")]
)
def test_a_missing_framework_is_named_with_its_extra(name, module, extra, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"counterpoise.engines.{name}", raising=False)
    with pytest.raises(MissingExtraError, match=rf"engines.{name} needs the package '{name}': pip install 'counterpoise\[{extra}\]'"):
        importlib.import_module(f"counterpoise.engines.{name}")


def test_numbers_are_those_of_the_diagnosis() -> None:
    model, X, y = problem()
    found = examine(model, nn.CrossEntropyLoss(), (X, y))
    assert not found.shares.settled
    logged = scalars(found)
    expected = {"norm": found.shares.norm, "noise": found.shares.noise, "conflict": found.shares.conflict}
    expected |= {"coherence": found.coherence.alpha_unbiased}
    expected |= {f"share/{k}": found.per_group["share"][k] for k in range(3)} | {f"loss/{k}": found.per_group["loss"][k] for k in range(3)}
    assert logged == {f"counterpoise/{name}": value for name, value in expected.items()}


def test_a_step_without_a_direction_is_not_divided() -> None:
    model, X, y = problem(separation=0.0)
    found = examine(model, nn.CrossEntropyLoss(), (X, y))
    assert found.shares.settled
    names = set(scalars(found))
    assert not any("share" in name for name in names) and {"counterpoise/norm", "counterpoise/loss/2"} <= names


def test_what_is_not_known_is_left_out() -> None:
    model, X, y = problem()
    assert "counterpoise/coherence" not in scalars(examine(model, nn.CrossEntropyLoss(), (X, y), engine="groups"))


def test_a_probe_is_drawn_by_its_seed_and_groups_follow_their_rows() -> None:
    model, X, y = problem()
    loader = DataLoader(TensorDataset(X, y), batch_size=5, shuffle=True)
    groups = Groups.from_labels([f"site {i // 30}" for i in range(90)], kind="domain")
    losses = []
    for seed in (0, 0, 1):
        own = diagnoser(groups=groups, seed=seed, loss_fn=nn.CrossEntropyLoss())
        with torch.no_grad():
            model.weight.copy_(torch.arange(12.0).reshape(3, 4) / 10)
        own._examine(model, 0, lambda: loader)
        sketch = own.diagnoses[0].sketch
        assert len(sketch) == 16 and sketch.group_names == groups.names and sketch.kind == "domain"
        batches, ids = own._fixed
        assert [len(batch[0]) for batch in batches] == [5, 5, 5, 1]  # as the training loader makes them
        rows = [int((x == X).all(dim=1).nonzero()) for batch in batches for x in batch[0]]
        assert len(set(rows)) == 16 and ids.ids.tolist() == [i // 30 for i in rows]
        losses.append(sketch.losses.tolist())
    assert losses[0] == losses[1] != losses[2]


def test_a_probe_may_be_tensors_a_batch_or_a_loader() -> None:
    model, X, y = problem()
    loader = DataLoader(TensorDataset(X, y), batch_size=32, shuffle=True)
    measured = []
    for probe in ((X, y), [(X, y)], loader, [[X[:40], y[:40]], [X[40:], y[40:]]]):
        own = diagnoser(probe=probe, loss_fn=nn.CrossEntropyLoss())
        own._examine(model, 0, lambda: pytest.fail("the training data are not asked for"))
        own._examine(model, 10, lambda: None)
        first, second = own.diagnoses
        assert (first.step, second.step) == (0, 10) and len(first.sketch) == 90
        assert torch.equal(first.sketch.losses, second.sketch.losses)  # the same examples in the same order
        measured.append(sorted(first.per_group["share"].to_list()))
    np.testing.assert_allclose(measured, measured[:1] * 4, rtol=1e-5)
    both = ({"x": X}, y)
    assert _held(both) == [both]
    assert _held({"x": X}) == [{"x": X}]
    with pytest.raises(InputError, match=r"probe: got 'Tensor'; expected tensors \(X, y\), one batch, or a loader of batches."):
        _held(X)


def test_a_long_loader_is_read_only_as_far_as_it_is_used() -> None:
    read = []

    def batches():
        for i in range(100):
            read.append(i)
            yield torch.zeros(1000, 1), torch.zeros(1000)

    assert len(_held(batches())) == len(read) == 5  # 4,096 examples


def test_what_is_kept_does_not_grow_with_the_model() -> None:
    model, X, y = problem()
    own = diagnoser(probe=(X, y), loss_fn=nn.CrossEntropyLoss())
    own._examine(model, 0, lambda: None)
    (found,) = own.diagnoses
    assert found.sketch.group_sums is None and found.sketch.parameters == ()
    assert found.plot() and found.summary() and own.plot()


def test_only_new_hints_are_told(caplog) -> None:
    model, X, y = problem(n=300)
    rows = (y == 0) | (torch.arange(300) < 100)  # many of class 0
    own = diagnoser(probe=(X[rows], y[rows]), loss_fn=nn.CrossEntropyLoss())
    with caplog.at_level("INFO", logger="counterpoise"):
        own._examine(model, 0, lambda: None)
        told = [record.getMessage() for record in caplog.records]
        assert told == [f"step 0: {hint}" for hint in own.diagnoses[0].hints] and told
        with torch.no_grad():
            model.weight[0, 0] += 0.02  # other numbers, the same findings
        own._examine(model, 10, lambda: None)
        assert own.diagnoses[0].hints != own.diagnoses[1].hints
        assert len(caplog.records) == len(told)
    assert _without_numbers("Class '3' is many: 61 of 100.") != _without_numbers("Class '4' is many: 61 of 100.")
    assert _without_numbers("Class '3' is many: 61 of 100.") == _without_numbers("Class '3' is many: 7.5 of 100.")


def test_the_first_error_ends_the_training_and_later_ones_do_not(caplog) -> None:
    model, X, y = problem()
    values = iter([1.0, float("nan"), 1.0])
    own = diagnoser(probe=(X, y), loss=lambda output, batch: output.square().sum(dim=1) * value)
    for value in values:
        logged = own._examine(model, 0, lambda: None, loss_fn=None)
        assert bool(logged) == (value == 1.0)
    assert len(own.diagnoses) == 2
    assert "no diagnosis. data: got 90 examples whose loss or gradient is not finite" in caplog.text
    value = float("nan")
    with pytest.raises(InputError, match="not finite"):
        diagnoser(probe=(X, y), loss=own.loss)._examine(model, 0, lambda: None)


def test_steps_are_due_when_a_multiple_is_reached_or_passed() -> None:
    own = diagnoser(every=10)
    due = []
    for step in [0, 1, 2, 9, 10, 11, 20, 31, 33, 40]:
        if own._due(step):
            due.append(step)
            own._last = step
    assert due == [0, 10, 20, 31, 40]


def test_random_numbers_go_on_as_if_nothing_had_been() -> None:
    import random

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [draws(), draws()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = draws()
    inside = []
    for _ in range(2):
        with _undisturbed(seed=5):
            inside.append(draws())
    assert [first, draws()] == expected and inside[0] == inside[1]
    with pytest.raises(KeyError), _undisturbed(seed=5):
        draws()
        raise KeyError
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert draws() == expected[0]


def test_a_compiled_module_is_measured_as_written() -> None:
    model, X, y = problem()
    plain = diagnoser(probe=(X, y), loss_fn=nn.CrossEntropyLoss())
    plain._examine(model, 0, lambda: None)
    compiled = diagnoser(probe=(X, y), loss_fn=nn.CrossEntropyLoss())
    compiled._examine(torch.compile(model, backend="eager"), 0, lambda: None)
    assert compiled.diagnoses[0].engine == "ghost"
    assert compiled.diagnoses[0].per_group.equals(plain.diagnoses[0].per_group)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"every": 0}, "every: got 0; expected an integer >= 1"),
        ({"batch": 0}, "batch: got 0; expected an integer >= 1"),
        ({"seed": -1}, "seed: got -1; expected an integer >= 0"),
    ],
)
def test_arguments_are_checked(options, words) -> None:
    with pytest.raises(InputError, match=words):
        diagnoser(**options)


def test_what_cannot_be_measured_says_what_to_do() -> None:
    model, X, y = problem()

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(zip(X, y, strict=True))

    with pytest.raises(InputError, match=r"probe: got None; expected examples to be measured.* Pass probe=\(X, y\)"):
        diagnoser(loss_fn=nn.CrossEntropyLoss())._examine(model, 0, lambda: DataLoader(Stream(), batch_size=8))
    with pytest.raises(InputError, match=r"groups: got .*\(5,\).*; expected one id for each of the 90 training examples"):
        loader = DataLoader(TensorDataset(X, y), batch_size=8)
        diagnoser(loss_fn=nn.CrossEntropyLoss(), groups=[0] * 5)._examine(model, 0, lambda: loader)
    with pytest.raises(InputError, match=r"diagnoses: got .*none yet"):
        diagnoser().plot()
