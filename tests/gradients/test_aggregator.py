from __future__ import annotations

import pytest
import torch

from counterpoise import CounterpoiseError
from counterpoise.gradients import Aggregator, GradientStatistics, _statistics
from tests.gradients.examples import EqualLength, SignVote


def rows(m: int = 4, n: int = 30) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(0))


def test_statistics_are_those_of_the_rows(monkeypatch) -> None:
    whole = rows()
    parts = [whole[:, :7], whole[:, 7:7], whole[:, 7:]]
    for at_once in (2**20, 4 * 5):  # also a few columns at a time
        monkeypatch.setattr(_statistics, "AT_ONCE", at_once)
        s = GradientStatistics.from_rows(parts, names="abcd", shapes=[torch.Size((7,)), torch.Size((0,)), torch.Size((1, 23))])
        assert len(s) == 4 and s.names == ("a", "b", "c", "d") and s.shapes[2] == (1, 23)
        assert s.gramian.dtype == s.l1.dtype == torch.float64
        torch.testing.assert_close(s.gramian, whole.double() @ whole.double().T)
        for slot in (0, 2):
            size = parts[slot].double().abs()
            torch.testing.assert_close(s.abs_max[:, slot], size.amax(dim=1))
            torch.testing.assert_close(s.abs_mean[:, slot], size.mean(dim=1))
            torch.testing.assert_close(s.l1[:, slot], size.sum(dim=1))
        assert not s.abs_max[:, 1].any() and not s.abs_mean[:, 1].any()
        assert torch.equal(s.losses, torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e15, 3e25])
def test_long_rows_have_the_inner_products_of_double_precision(scale: float) -> None:
    """Also far beyond where squares fit into single precision."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2**15 + 300, generator=generator) * torch.tensor([[1.0], [1e-3], [1e2], [1.0], [0.0]])
    x[3] = x[0] + 1e-3 * x[3]  # nearly parallel
    for rows in (x, x[:4], x.bfloat16()):
        rows = (rows * scale).contiguous()
        exact = rows.double() @ rows.double().T
        lengths = exact.diagonal().sqrt()
        found = GradientStatistics.from_rows([rows]).gramian
        assert ((found - exact).abs() <= 5e-8 * lengths[:, None] * lengths).all()


def test_what_was_not_asked_for_is_nan() -> None:
    s = GradientStatistics.from_rows([rows()], needs={"rows"}, losses=torch.arange(4.0))
    assert s.gramian.shape == (4, 4) and s.gramian.isnan().all() and s.abs_max.isnan().all()
    assert s.cross is None and s.gramian_unbiased is None and (s.n_micro, s.world_size) == (1, 1)
    assert torch.equal(s.losses, torch.arange(4.0))

    class Forgetful(Aggregator):
        needs = frozenset({"losses"})

        def weights(self, s: GradientStatistics) -> torch.Tensor:
            return s.gramian.diagonal()

    with pytest.raises(CounterpoiseError, match=r"Forgetful\.weights: .*nan.*`needs`"):
        Forgetful()(rows())


def test_a_group_that_is_not_finite_is_named() -> None:
    spoiled = rows()
    spoiled[1, 3] = spoiled[2, 0] = float("inf")
    with pytest.raises(CounterpoiseError, match=r"gradients: got nan or inf in row 1 \(depth\) and 1 more; expected finite values"):
        GradientStatistics.from_rows([rows(), spoiled], names=["segmentation", "depth", "normals", "edges"])


def test_an_aggregator_says_what_it_needs() -> None:
    with pytest.raises(CounterpoiseError, match=r"Wrong\.needs: got 'hessian'"):

        class Wrong(Aggregator):
            needs = frozenset({"hessian"})

    class Empty(Aggregator):
        pass

    with pytest.raises(NotImplementedError, match="Empty defines neither weights"):
        Empty()(rows())


def test_parameters_have_numbers_as_keys() -> None:
    seen = []

    class Watch(SignVote):
        def combine(self, rows: torch.Tensor, slot: int, s: GradientStatistics) -> torch.Tensor:
            seen.append((slot, tuple(rows.shape), tuple(s.shapes[slot])))
            return super().combine(rows, slot, s)

    Watch()({"weight": torch.ones(3, 2, 5), "bias": torch.ones(3, 2)})
    assert seen == [(0, (3, 10), (2, 5)), (1, (3, 2), (2,))]


def test_a_gradient_of_weights_does_not_flow_back() -> None:
    x = rows().requires_grad_()
    EqualLength()(x).sum().backward()
    length = x.detach().double().norm(dim=1)
    torch.testing.assert_close(x.grad[:, 0], (length.mean() / length / 4).float())
