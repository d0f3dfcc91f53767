"""Leaving no trace, and the states of torch that a measurement sets meanwhile."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise._pergrad import exact_backends, random_states, untouched
from tests.batteries.diagnoses import Model, changes, snapshot


def upset(model: Model) -> None:
    """All that must come back."""
    model(torch.randn(5, 6))
    model.norm.running_mean.add_(1)
    model.norm.running_var = torch.full((8,), float("nan"))
    model.layer.weight.grad = torch.ones(8, 6)
    model.head.weight.requires_grad_(False)
    model.frozen.weight.requires_grad_(True)
    model.train(not model.training)
    torch.rand(3), random.random(), np.random.rand()


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("evaluate", [False, True])
def test_untouched(fails: bool, evaluate: bool) -> None:
    torch.manual_seed(0)
    model = Model()
    model.layer.weight.grad = torch.zeros(8, 6)
    model.norm.eval()
    before = snapshot(model)
    try:
        with untouched(model, evaluate=evaluate):
            assert model.training != evaluate
            upset(model)
            assert len(changes(before, snapshot(model))) > 10
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert not changes(before, snapshot(model))


def test_buffers_that_are_not_numbers_come_back() -> None:
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(float("nan"))
    with untouched(model, evaluate=True):
        model.running_mean.zero_()
    assert bool(torch.isnan(model.running_mean).all())


def test_random_states() -> None:
    own = torch.Generator().manual_seed(1)
    state, before = own.get_state(), snapshot(nn.Identity())
    with random_states(generators=[own]):
        torch.rand(2, generator=own), torch.rand(2), random.random(), np.random.rand()
    assert torch.equal(own.get_state(), state) and not changes(before, snapshot(nn.Identity()))


def test_backends_come_back_after_a_failure() -> None:
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
    with pytest.raises(KeyError), exact_backends(forward_mode=True, recurrent=True):
        assert not torch.backends.mha.get_fastpath_enabled()
        assert not torch.backends.mkldnn.enabled  # type: ignore[attr-defined]
        raise KeyError
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert torch.backends.mkldnn.enabled == onednn  # type: ignore[attr-defined]
