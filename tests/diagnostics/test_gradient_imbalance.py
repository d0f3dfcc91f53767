from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from torch import nn

from counterpoise import CounterpoiseError
from counterpoise._pergrad import untouched
from counterpoise.diagnostics import GradientImbalance, gradient_imbalance
from counterpoise.gradients import GradientAnnealing, GradientStatistics
from counterpoise.report import _plots
from tests.batteries import diagnoses
from tests.batteries.diagnoses import DiagnosisCase


def of_model(model: nn.Module, data: Any, loss_fn: Any) -> GradientImbalance:
    """Two terms of a model in evaluation mode: its loss and its size. The forward pass is the caller's, and is undone here."""
    with untouched(model, evaluate=True):
        output = model(data[0])
        return gradient_imbalance({"data": loss_fn(output, data[1]), "size": output.square().mean()}, trainable(model))


def trainable(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


CASE = DiagnosisCase("gradient_imbalance", of_model)
# The checks of functions that draw batches and run the model themselves do not apply: this one is given losses.
CHECKS = (diagnoses.nothing_is_changed, diagnoses.calls_repeat, diagnoses.reports_are_frozen)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_battery(check: Callable[[DiagnosisCase], None]) -> None:
    check(CASE)


def problem(scale: float = 100.0) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x = torch.randn(20, 3, dtype=torch.float64)
    return net, {
        "residual": scale * net(x).square().mean(),
        "boundary": (net(x[:4]) - 1).square().mean(),
        "start": net(x[4:8]).abs().mean(),
    }


def test_numbers_are_those_of_the_gradients() -> None:
    net, losses = problem()
    found = gradient_imbalance(losses, net.named_parameters())
    rows = {name: torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for name, loss in losses.items()}
    for i, name in enumerate(found.names):
        for p, g in enumerate(rows[name]):
            assert found.abs_max[i, p] == pytest.approx(float(g.abs().max()), rel=1e-14)
            assert found.abs_mean[i, p] == pytest.approx(float(g.abs().mean()), rel=1e-14)
            assert found.l2[i, p] == pytest.approx(float(g.norm()), rel=1e-14)
    assert found.names == ("residual", "boundary", "start") and found.parameters == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert found.matrices == ("0.weight", "2.weight")
    np.testing.assert_allclose(found.largest, found.abs_max[:, [0, 2]].max(axis=1))
    np.testing.assert_allclose(found.mean, found.abs_mean[:, [0, 2]].mean(axis=1))
    assert found.dominant == "residual" and found.ratio == np.nanmax(found.ratios)
    np.testing.assert_allclose(found.ratios[1, 2], found.largest[1] / found.mean[2])
    assert np.isnan(np.diag(found.ratios)).all()


def test_the_ratio_is_what_annealing_aims_at() -> None:
    """One update with alpha = 1 gives each term the weight max |g_r| / mean |g_i|; the fixed point is its root."""
    net, losses = problem()
    found = gradient_imbalance(losses, net.named_parameters())
    parameters = list(net.parameters())
    rows = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in losses.values()]
    flat = [torch.stack(parts).flatten(1) for parts in zip(*rows, strict=True)]
    s = GradientStatistics.from_rows(flat, shapes=[p.shape for p in parameters])
    weights = GradientAnnealing(alpha=1.0).weights(s)
    np.testing.assert_allclose(weights[1:], found.ratios[0, 1:], rtol=1e-12)
    rest = GradientAnnealing()
    for _ in range(300):
        rest.weights(s)
    weighted = gradient_imbalance(list((rest.lambdas * torch.stack(list(losses.values()))).unbind()), net.named_parameters())
    np.testing.assert_allclose(weighted.ratios[0, 1:], np.sqrt(found.ratios[0, 1:]), rtol=1e-9)


def test_histograms_count_every_entry_but_zeros() -> None:
    w = nn.Parameter(torch.tensor([[1.0, 10.0, 0.0, 1e-30, 1e30]], dtype=torch.float64))
    found = gradient_imbalance([(w * w.detach()).sum(), w.sum()], {"w": w})
    counts, edges = found.per_layer_histograms["w"], found.edges
    assert counts.sum(axis=1).tolist() == [4, 5] and len(edges) == counts.shape[1] + 1
    for i, value, expected in ((0, 1.0, 1), (1, 1.0, 5), (0, 10.0, 1), (0, 3.0, 0)):
        place = np.searchsorted(edges, value * (1 + 1e-9), side="right") - 1
        assert counts[i, place] == expected
    assert counts[0, 0] == counts[0, -1] == 1  # what lies outside


def test_losses_and_parameters_in_other_forms() -> None:
    net, losses = problem()
    expected = gradient_imbalance(losses, net.named_parameters())
    for given, params in (
        (list(losses.values()), net.parameters()),
        (torch.stack(list(losses.values())), dict(net.named_parameters())),
        (tuple(losses.values()), list(net.parameters())),
    ):
        found = gradient_imbalance(given, params)
        assert found.names == ("0", "1", "2") and found.dominant == "0"
        assert found.ratio == pytest.approx(expected.ratio, rel=1e-12)
    only = gradient_imbalance(losses, net[0].bias)
    assert only.matrices == ("0",)


def test_the_graph_remains_for_the_step() -> None:
    net, losses = problem()
    gradient_imbalance(losses, net.parameters())
    assert all(p.grad is None for p in net.parameters())
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in net.parameters())


def test_a_term_without_gradient_takes_no_part() -> None:
    net, losses = problem()
    losses["met"] = 0 * losses["start"]
    losses["offset"] = net[2].bias.sum()
    found = gradient_imbalance(losses, net.named_parameters())
    assert found.silent == ("met", "offset") and np.isfinite(found.ratio)
    assert np.isnan(found.ratios[:, 3:]).all()
    assert "No gradient in the compared parameters: met, offset." in found.summary()
    alone = gradient_imbalance({"residual": losses["residual"], "met": losses["met"]}, net.named_parameters())
    assert alone.dominant == "residual" and np.isnan(alone.ratio) and "nothing is out of balance" in alone.summary()
    alone.plot()


def test_words_table_and_figure() -> None:
    net, losses = problem(1e4)
    found = gradient_imbalance(losses, net.named_parameters())
    assert found.ratio > 100 and "'residual' dominates" in found.summary() and "GradientAnnealing(reference=0)" in found.summary()
    frame = found.to_frame()
    assert frame.columns == ["term", "parameter", "compared", "abs_max", "abs_mean", "l2"] and frame.height == 12
    assert frame.filter(frame["compared"])["parameter"].unique().sort().to_list() == ["0.weight", "2.weight"]
    figure = found.plot()
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["0.weight", "2.weight"]
    assert figure.texts[0].get_text().startswith("residual: largest entry")
    assert sum(len(ax.patches) for ax in figure.axes) == 6
    assert [to_hex(patch.get_edgecolor()) for patch in figure.axes[0].patches].count(_plots.RED) == 1


def test_a_deep_network_shows_six_layers() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*[layer for _ in range(9) for layer in (nn.Linear(4, 4), nn.Tanh())])
    x = torch.randn(8, 4)
    figure = gradient_imbalance([net(x).square().sum(), net(-x).sum()], net.named_parameters()).plot()
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert len(titles) == 6 and titles[0] == "0.weight" and titles[-1] == "16.weight"


def test_balanced_terms_dominate_nobody() -> None:
    net, _ = problem()
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = gradient_imbalance([net(x[:25]).square().mean(), net(x[25:]).square().mean()], net.named_parameters())
    assert found.ratio < 30 and "does not dominate" in found.summary() and "GradientAnnealing" not in found.summary()


def test_bad_input() -> None:
    net, losses = problem()
    one = losses["residual"]
    for wrong, params, message in (
        ([one], net.parameters(), "losses: got 1 term; expected at least two"),
        ({"a": one, "b": one.detach()}, net.parameters(), r"losses\['b'\]: got a tensor without a graph"),
        ([one, torch.ones(3, requires_grad=True)], net.parameters(), r"losses\[1\]: got shape \(3,\)"),
        (losses, [], "params: got no parameters; expected at least one parameter"),
        (losses, ["weight"], "params: got 'str'|params: got str"),
        (losses, 3, "params"),
        (losses, [torch.ones(2)], "which is frozen"),
        (losses, [torch.ones(2, requires_grad=True)], "parameters that the losses depend on"),
    ):
        with pytest.raises(CounterpoiseError, match=message):
            gradient_imbalance(wrong, params)
    broken = {"fine": one, "broken": (one * 0).sqrt() * float("inf")}
    with pytest.raises(CounterpoiseError, match="broken"):
        gradient_imbalance(broken, net.parameters())
