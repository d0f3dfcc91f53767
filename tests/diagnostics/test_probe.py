"""Which examples are measured, in which groups, with which loss of each."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from counterpoise import Groups
from counterpoise._errors import InputError
from counterpoise.diagnostics import sketch_gradients
from counterpoise.diagnostics._probe import MAX_GROUPS, BatchIds, Probe, draw, per_example_loss

M = 30
CPU = torch.device("cpu")


def probe(data: Any, groups: Any = "target", *, max_examples: int = 4096, batch_size: int = 8, seed: int = 0) -> Probe:
    return draw(data, groups, max_examples=max_examples, batch_size=batch_size, seed=seed, device=CPU)


def table() -> tuple[Tensor, Tensor]:
    return torch.arange(M, dtype=torch.float32)[:, None].expand(M, 3).contiguous(), torch.arange(M) % 3


# ---- examples ----------------------------------------------------------------------------------------------------


def test_random_part_of_tensors() -> None:
    found = probe(table(), max_examples=12)
    assert found.sizes == [8, 4] and len(found) == 12
    index = torch.cat(found.index)
    assert len(torch.unique(index)) == 12 and not torch.equal(index, torch.arange(12))
    assert torch.equal(torch.cat([batch[0][:, 0] for batch in found.batches]).long(), index)
    assert torch.equal(torch.cat(found.ids), index % 3)
    assert torch.equal(index, torch.cat(probe(table(), max_examples=12).index))
    assert not torch.equal(index, torch.cat(probe(table(), max_examples=12, seed=1).index))


def test_first_batches_of_a_loader() -> None:
    found = probe(DataLoader(TensorDataset(*table()), batch_size=7), max_examples=16)
    assert found.sizes == [7, 7, 2] and torch.cat(found.index).tolist() == list(range(16))
    assert probe([[x, y] for x, y in DataLoader(TensorDataset(*table()), batch_size=7)]).sizes == [7, 7, 7, 7, 2]


Pair = namedtuple("Pair", "x y")


def test_kinds_of_batches() -> None:
    x, y = table()
    model, cut = nn.Linear(3, 3), lambda output, batch: F.cross_entropy(output, batch["y"], reduction="none")
    expected = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y))
    for batches in ([{"x": x, "y": y}], [UserDict(x=x, y=y)]):
        found = sketch_gradients(model, None, batches, groups="y", forward=lambda model, batch: model(batch["x"]), loss=cut)
        torch.testing.assert_close(found.group_sums, expected.group_sums)
    torch.testing.assert_close(sketch_gradients(model, nn.CrossEntropyLoss(), [Pair(x, y)]).group_sums, expected.group_sums)


def test_infinite_entries_of_masks_are_legal() -> None:
    x, y = table()
    mask = torch.zeros(M, 3)
    mask[:, 1] = float("-inf")
    sketch = sketch_gradients(
        nn.Linear(3, 3), nn.CrossEntropyLoss(), (x, mask, y), forward=lambda model, batch: model(batch[0] * batch[1].exp())
    )
    assert bool(torch.isfinite(sketch.norms_sq).all())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(3, 2), "data: got 'Tensor'"),
        ({"x": torch.zeros(3)}, "data: got 'dict'"),
        ("text", "data: got 'str'"),
        (3, "data: got 'int'"),
        ((torch.zeros(3, 2), torch.zeros(4)), "tensors of 3, 4 rows"),
        ((torch.zeros(0, 2), torch.zeros(0)), "no examples"),
        ([], "no examples"),
        ((np.zeros((3, 2)), np.zeros(3)), "without tensors"),
        ((torch.tensor([[1.0], [float("nan")]]), torch.zeros(2)), r"NaN \(example 1 of its batch\)"),
    ],
)
def test_bad_data(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        probe(data)


# ---- groups ----------------------------------------------------------------------------------------------------


def test_classes_ranges_and_columns() -> None:
    x, y = table()
    assert probe((x, y)).group_names == ("0", "1", "2") and probe((x, y)).kind == "class"
    assert probe((x, 2 * y - 1)).group_names == ("-1", "1", "3")  # a label below 0 is a class like others
    assert probe((x, y[:, None])).group_names == ("0", "1", "2")
    assert probe((x, y.float())).group_names == ("0", "1", "2")
    ranges = probe((x, torch.rand(M)))
    assert len(ranges.group_names) == 10 and ranges.kind == "bin" and "continuous" in ranges.notes[0]
    assert np.bincount(torch.cat(ranges.ids)).tolist() == [3] * 10
    assert probe((x, y), None).group_names == ("all",)


def test_given_ids() -> None:
    x, y = table()
    ids = torch.where(torch.arange(M) < 4, -1, torch.arange(M) % 2 * 3)
    for given in (ids, ids.numpy(), ids.tolist(), ids.float(), lambda batch: ids[batch[0][:, 0].long()]):
        found = probe((x, y), given)
        assert found.group_names == ("0", "1", "2", "3") and torch.equal(torch.cat(found.ids), ids)
    assert torch.equal(torch.cat(probe((x, y), torch.arange(M) % 2 == 1).ids), torch.arange(M) % 2)
    assert torch.equal(torch.cat(probe((x, y), torch.full((M,), -1)).ids), torch.full((M,), -1))
    groups = Groups.from_labels(np.array(["cat", "dog"])[np.arange(M) % 2])
    found = probe((x, y), groups)
    assert found.group_names == ("cat", "dog") and torch.equal(torch.cat(found.ids), torch.arange(M) % 2)
    far = torch.arange(M) % 3 * 10_000  # numbers of users, say
    assert probe((x, y), far).group_names == ("0", "10000", "20000")


def test_ids_stay_with_their_examples_in_a_part() -> None:
    found = probe(table(), torch.arange(M) % 5, max_examples=11)
    assert torch.equal(torch.cat(found.ids), torch.cat(found.index) % 5)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.zeros(M - 1, dtype=torch.int64), r"array of shape \(29,\)"),
        (torch.zeros(M, 2, dtype=torch.int64), r"array of shape \(30, 2\)"),
        (torch.full((M,), float("nan")), "30 ids that are NaN"),
        (torch.arange(M) * 1000 + MAX_GROUPS, None),
        (["a"] * M, "ids of type <U1"),
        (np.array([None] * M), "ids of type object"),
        ("age", "groups: got 'age'"),
        (lambda batch: torch.zeros(2), "a function that returns shape"),
    ],
)
def test_bad_groups(groups: Any, message: str | None) -> None:
    if message is None:
        assert len(probe(table(), groups).group_names) == M
        return
    with pytest.raises(InputError, match=message):
        probe(table(), groups)


def test_too_many_groups() -> None:
    rows = MAX_GROUPS + 5
    x = torch.zeros(rows, 1)
    for data, groups in (((x, torch.arange(rows)), "target"), ((x, x[:, 0]), torch.arange(rows) + 2000)):
        with pytest.raises(InputError, match="1005 groups; expected at most 1000"):
            probe(data, groups)


@pytest.mark.parametrize("shape", [(M, 4), (M, 2, 2)])
def test_targets_of_several_columns_need_groups(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="one value per example"):
        probe((torch.zeros(M, 3), torch.zeros(shape, dtype=torch.int64)))
    assert probe((torch.zeros(M, 3), torch.zeros(shape)), None).group_names == ("all",)


def test_one_id_per_example_needs_a_fixed_order() -> None:
    """Also behind a batch sampler of the user's, beside which the loader's own sampler says nothing."""
    dataset, ids = TensorDataset(*table()), torch.arange(M) % 2
    shuffled = (
        DataLoader(dataset, batch_size=8, shuffle=True),
        DataLoader(dataset, batch_sampler=BatchSampler(RandomSampler(dataset), 8, False)),
        DataLoader(dataset, batch_sampler=[[1, 0], [3, 2]]),
    )
    for loader in shuffled:
        with pytest.raises(InputError, match="loader that shuffles"):
            probe(loader, ids)
    assert torch.equal(torch.cat(probe(DataLoader(dataset, batch_size=8), ids).ids), ids)


def test_first_tensor_of_a_batch_has_the_examples() -> None:
    batch = {"prior": torch.ones(10), "x": torch.zeros(M, 3), "y": torch.arange(M) % 3}
    with pytest.raises(InputError, match="30 values for 10 examples"):
        probe([batch], "y")


def test_batch_ids_keep_their_names() -> None:
    ids = BatchIds()
    assert ids.ids(None, 4).tolist() == [0] * 4 and ids.names == ("all",)
    assert ids.ids([0, 2, -1], 3).tolist() == [0, 2, -1] and ids.names == ("0", "1", "2")
    assert ids.ids(torch.tensor([0, 1]), 2).tolist() == [0, 1] and ids.names == ("0", "1", "2")
    ids.ids([5], 1)
    assert len(ids.names) == 6
    for given, message in (
        ([0], "shape"),
        ([0.5, 1.0], "whole number"),
        ([float("nan"), 0], "whole number"),
        ([0, MAX_GROUPS], "the id 1000"),
    ):
        with pytest.raises(InputError, match=message):
            ids.ids(given, 2)


# ---- losses ----------------------------------------------------------------------------------------------------


class Own(nn.Module):
    """A loss of the user's with a reduction that it honors."""

    reduction = "mean"

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        each = (output[:, 0] - target).abs()
        return each.mean() if self.reduction == "mean" else each


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.CrossEntropyLoss(reduction="none"),
        F.cross_entropy,
        lambda output, target: F.cross_entropy(output, target, reduction="none"),
    ],
)
def test_losses_without_their_reduction(loss: Any) -> None:
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(3, 3), table()
    _, found = per_example_loss(loss, None, None)(model, (x, y), M)
    assert torch.equal(found, F.cross_entropy(model(x), y, reduction="none"))
    assert getattr(loss, "reduction", "none") in ("mean", "sum", "none")


def test_the_loss_of_the_user_is_not_changed() -> None:
    loss = nn.MSELoss()
    model, (x, _) = nn.Linear(3, 2), table()
    _, found = per_example_loss(loss, None, None)(model, (x, torch.ones(M, 2)), M)
    assert found.shape == (M,) and loss.reduction == "mean"
    torch.testing.assert_close(found, (model(x) - 1).square().mean(dim=1))
    _, own = per_example_loss(Own(), None, None)(model, (x, torch.ones(M)), M)
    assert own.shape == (M,)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda o, t: F.cross_entropy(o, t), "loss_fn: got a loss that returns one number"),
        (nn.KLDivLoss(reduction="batchmean"), "one number for the batch"),
        (lambda o, t: 3.0, "a result of type float"),
        (lambda o, t: o[:7, 0], r"losses of shape \(7,\)"),
        (lambda o, t: o.T, r"losses of shape \(3, "),
        (None, "loss_fn: got None"),
        ("cross entropy", "a function or module"),
    ],
)
def test_bad_losses(loss: Any, message: str) -> None:
    x, y = table()
    target = torch.rand(M, 3) if isinstance(loss, nn.KLDivLoss) else y
    with pytest.raises(InputError, match=message):
        sketch_gradients(nn.Linear(3, 3), loss, (x, target), groups=None)


def test_batches_that_need_functions() -> None:
    x, y = table()
    model = nn.Linear(3, 3)
    with pytest.raises(InputError, match="batches that are dictionaries"):
        sketch_gradients(model, nn.CrossEntropyLoss(), [{"x": x, "y": y}], groups="y")
    with pytest.raises(InputError, match="batches without a target"):
        sketch_gradients(model, nn.CrossEntropyLoss(), [x], groups=None)
    with pytest.raises(InputError, match="a key of the batch, one of x, y"):
        sketch_gradients(model, nn.CrossEntropyLoss(), [{"x": x, "y": y}], groups="z")
    with pytest.raises(InputError, match="loss: got a loss that returns one number"):
        sketch_gradients(model, None, [(x, y)], loss=lambda output, batch: output.mean())
