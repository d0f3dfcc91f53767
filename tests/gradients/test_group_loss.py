from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise import Groups
from counterpoise._errors import InputError
from counterpoise.gradients import GroupLoss, PCGrad, backward
from counterpoise.gradients._group_loss import members_of

squares = nn.MSELoss(reduction="none")


def test_mean_of_each_group() -> None:
    losses = GroupLoss(squares, 4)(torch.tensor([1.0, 2.0, 3.0, 4.0, 9.0]), torch.zeros(5), torch.tensor([0, 2, 0, 2, -1]))
    assert losses.tolist() == [5.0, 0.0, 10.0, 0.0]


def test_gradients_of_the_means_and_nothing_where_there_is_no_example() -> None:
    output = torch.tensor([1.0, 2.0, 3.0, 7.0], requires_grad=True)
    losses = GroupLoss(squares, 3)(output, torch.zeros(4), torch.tensor([0, 0, 2, -1]))
    expected = [[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 6.0, 0.0]]
    for loss, row in zip(losses, expected, strict=True):
        (found,) = torch.autograd.grad(loss, output, retain_graph=True)
        assert found.tolist() == row


def test_a_loss_that_is_not_finite_stays_in_its_group() -> None:
    output = torch.tensor([1.0, torch.nan, torch.inf, 2.0])
    losses = GroupLoss(squares, 3)(output, torch.zeros(4), torch.tensor([0, 1, -1, 2]))
    assert losses[0] == 1 and losses[1].isnan() and losses[2] == 4


def test_further_dimensions_are_averaged() -> None:
    logits, target = torch.randn(4, 3, 5, 6), torch.randint(3, (4, 5, 6))
    losses = GroupLoss(nn.CrossEntropyLoss(reduction="none"), 2)(logits, target, torch.tensor([0, 1, 1, 0]))
    expected = torch.stack([nn.functional.cross_entropy(logits[k], target[k]) for k in ([0, 3], [1, 2])])
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_becomes_single(dtype) -> None:
    losses = GroupLoss(squares, 2)(
        torch.full((600,), 100.0, dtype=dtype), torch.zeros(600, dtype=dtype), torch.zeros(600, dtype=torch.long)
    )
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(losses[0], torch.tensor(10000.0, dtype=losses.dtype), rtol=2e-3, atol=0)  # their sum is no float16


@pytest.mark.parametrize(
    "make", [list, torch.tensor, lambda ids: torch.tensor(ids, dtype=torch.uint8), lambda ids: Groups(ids, ("a", "b"))]
)
def test_ids_of_many_kinds(make) -> None:
    assert GroupLoss(squares, 2)(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3), make([1, 0, 1])).tolist() == [4.0, 5.0]


def test_groups_of_the_batch() -> None:
    groups = Groups.from_labels(["b", None, "a"])
    assert GroupLoss(squares, 2)(torch.tensor([1.0, 2.0, 3.0]), torch.zeros(3), groups).tolist() == [9.0, 1.0]


def test_functions_are_losses_too() -> None:
    losses = GroupLoss(lambda output, target: (output - target).abs(), 1)(torch.tensor([1.0, 5.0]), torch.tensor([2.0, 2.0]), [0, 0])
    assert losses.tolist() == [2.0]


def test_an_empty_batch() -> None:
    losses = GroupLoss(squares, 3)(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    assert losses.tolist() == [0.0, 0.0, 0.0]


def test_what_losses_are_made_of() -> None:
    output = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    losses = GroupLoss(squares, 3, allow_coupled=True)(output, torch.zeros(3), torch.tensor([2, -1, 2]))
    members = members_of(losses)
    assert members is not None
    assert members.per_example.tolist() == [1.0, 4.0, 9.0] and members.per_example.requires_grad
    assert members.group.tolist() == [2, -1, 2]
    assert members.counts.tolist() == [0, 0, 2]
    assert members.allow_coupled
    torch.testing.assert_close((members.coefficients() * members.per_example).sum(), losses.sum())


@pytest.mark.parametrize(
    "change", [lambda x: 2 * x, torch.clone, lambda x: x.detach(), lambda x: x[:2], lambda x: x.mul_(2), lambda x: torch.stack([*x])]
)
def test_what_is_computed_from_them_is_no_longer_marked(change) -> None:
    losses = GroupLoss(squares, 3)(torch.ones(3, requires_grad=True), torch.zeros(3), torch.tensor([0, 1, 2]))
    assert members_of(losses) is not None
    assert members_of(change(losses)) is None


def test_copies() -> None:
    loss = GroupLoss(squares, 2)
    arguments = torch.ones(2), torch.zeros(2), torch.tensor([0, 1])
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(other(*arguments), loss(*arguments))
    assert not loss.state_dict()
    assert repr(loss).startswith("GroupLoss(\n  n_groups=2")


@pytest.mark.parametrize(
    ("loss", "m", "message"),
    [
        (nn.CrossEntropyLoss(), 2, "^loss: got CrossEntropyLoss with reduction='mean'; expected a loss with reduction=\"none\""),
        (nn.CrossEntropyLoss, 2, "^loss: got the class CrossEntropyLoss; expected an object"),
        ("ce", 2, "^loss: got 'str'; expected a loss"),
        (squares, 0, "^n_groups: got 0; expected an integer >= 1"),
        (squares, 2.5, "^n_groups: got 2.5; expected an integer >= 1"),
    ],
)
def test_refuses_at_once(loss, m, message) -> None:
    with pytest.raises(InputError, match=message):
        GroupLoss(loss, m)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (torch.tensor([0, 1]), "^group: got 2 ids for 3 losses; expected one id for each loss of the batch"),
        (torch.tensor([0, 1, 2]), r"^group: got 2; expected ids in 0..1, or -1 for none"),
        (torch.tensor([0, 1, -2]), r"^group: got -2; expected ids in 0..1, or -1 for none"),
        (torch.tensor([0.0, 1.0, 1.0]), "^group: got a tensor of torch.float32; expected integer ids.*from_labels"),
        (torch.tensor([True, False, True]), "^group: got a tensor of torch.bool; expected integer ids"),
        (torch.zeros(3, 1, dtype=torch.long), r"^group: got shape \(3, 1\); expected one id per example, shape \(3,\)"),
        (["a", "b", "a"], "^group: got 'list'; expected a tensor of group ids.*from_labels"),
        (Groups([0, 1, 2], ("a", "b", "c")), "^group: got 3 groups; expected the 2 groups of n_groups"),
    ],
)
def test_refuses_ids(group, message) -> None:
    with pytest.raises(InputError, match=message):
        GroupLoss(squares, 2)(torch.zeros(3), torch.zeros(3), group)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            lambda output, target: (output - target).square().mean(),
            "^loss: got a loss that returns a scalar; expected one loss for each example",
        ),
        (lambda output, target: 1.0, "^loss: got a loss that returns float; expected one that returns a tensor"),
        (lambda output, target: torch.zeros(3, dtype=torch.long), "^loss: got a loss that returns a tensor of torch.int64"),
    ],
)
def test_refuses_losses_that_are_reduced(loss, message) -> None:
    with pytest.raises(InputError, match=message):
        GroupLoss(loss, 2)(torch.zeros(3), torch.zeros(3), torch.tensor([0, 1, 0]))


def test_reports_name_the_groups_and_say_who_is_absent() -> None:
    groups = Groups.from_labels(["cat", "dog", "ant", "dog", "cat", "cat"])
    loss = GroupLoss(nn.MSELoss(reduction="none"), groups)
    assert loss.n_groups == 3 and loss.names == groups.names
    net = nn.Linear(2, 1)
    rows = np.array([1, 3, 4])  # no ant
    output = net(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))[:, 0]
    report = backward(loss(output, torch.ones(3), groups.ids[rows]), PCGrad())
    assert report.names == groups.names and report.strategy == "ghost"
    assert report.notes == ("No example in this batch: ant.",)
    with pytest.raises(InputError, match=r"Make Groups once for the data set, and pass groups\.ids\[batch\]"):
        loss(output, torch.ones(3), Groups.from_labels(["dog", "dog", "cat"]))
