from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader

from counterpoise._errors import InputError
from counterpoise.data import IndexedDataset, RegressionTwoViews

EXAMPLES = [(torch.full((2, 3), float(i)), 10.0 * i) for i in range(5)]


def shaken(x: torch.Tensor) -> torch.Tensor:
    return x + 0.1 * torch.rand(x.shape)


def test_all_first_views_come_before_all_second_ones() -> None:
    inputs, targets = RegressionTwoViews(shaken)(EXAMPLES)
    assert inputs.shape == (10, 2, 3) and targets.tolist() == 2 * [0.0, 10.0, 20.0, 30.0, 40.0]
    torch.testing.assert_close(inputs[:5].floor(), inputs[5:].floor())
    assert (inputs[:5] != inputs[5:]).any(dim=(1, 2)).all()


def test_without_a_transform_the_batch_is_there_twice() -> None:
    inputs, targets = RegressionTwoViews()(EXAMPLES)
    assert torch.equal(inputs[:5], inputs[5:]) and torch.equal(inputs[:5], torch.stack([x for x, _ in EXAMPLES]))
    assert torch.equal(targets[:5], targets[5:])


@pytest.mark.parametrize("workers", [0, 1])
def test_in_a_loader_with_weights_and_positions(workers) -> None:
    examples = IndexedDataset([(x, y, y / 40) for x, y in EXAMPLES])
    batches = list(DataLoader(examples, batch_size=2, collate_fn=RegressionTwoViews(shaken), num_workers=workers))
    assert [len(batch[0]) for batch in batches] == [4, 4, 2]
    inputs, targets, weights, index = batches[1]
    assert index.tolist() == [2, 3, 2, 3] and targets.tolist() == [20, 30, 20, 30] and weights.tolist() == [0.5, 0.75, 0.5, 0.75]
    torch.testing.assert_close(inputs.floor()[:, 0, 0], index.float())


def test_what_is_no_batch_of_examples_is_refused() -> None:
    with pytest.raises(InputError, match="transform: got 3"):
        RegressionTwoViews(3)
    for examples, message in (([], "none"), ([torch.ones(2)], "Tensor"), ([(1.0,)], "tuple of length 1"), ([{"x": 1.0}], "dict")):
        with pytest.raises(InputError, match=f"examples: got '?{message}"):
            RegressionTwoViews()(examples)
