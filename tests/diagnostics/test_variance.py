from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from counterpoise._errors import InputError
from counterpoise.data import TemperatureSampler, temperature_probabilities
from counterpoise.diagnostics import VarianceReport, gradient_variance
from counterpoise.groups import Groups
from counterpoise.losses import scalarization_weights
from tests.batteries.diagnoses import DIAGNOSIS_CHECKS, DiagnosisCase

TAUS = (1.0, 2.0, 5.0, float("inf"))
SIZES = np.array([60, 24, 6])
DOMAINS = np.repeat([0, 1, 2], SIZES)


def measured(model: nn.Module, data: Any, loss: Any) -> VarianceReport:
    return gradient_variance(model, loss, data, np.arange(60) % 7 // 3, [1.0, 5.0])


@pytest.mark.parametrize("check", DIAGNOSIS_CHECKS, ids=lambda check: check.__name__)
def test_battery(check: Callable[[DiagnosisCase], None]) -> None:
    if check.__name__ == "loaders_draw_nothing_from_outside":
        pytest.skip("takes loaders in a fixed order only")
    check(DiagnosisCase("gradient_variance", measured))


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return model, torch.randn(90, 5).double() * (1 + torch.from_numpy(DOMAINS))[:, None], torch.randint(3, (90,))


def rows_of(model: nn.Module, X: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    losses = nn.functional.cross_entropy(model(X), y, reduction="none")
    each = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([part.reshape(-1) for part in parts]) for parts in each])


def test_variances_are_those_of_all_gradients() -> None:
    """The distribution of a single draw written out: every example with its probability and weight."""
    model, X, y = problem()
    report = gradient_variance(model, nn.CrossEntropyLoss(), (X, y), DOMAINS, TAUS)
    gradients = rows_of(model, X, y)
    ids = torch.from_numpy(DOMAINS)
    for at, tau in enumerate(TAUS):
        w, p = scalarization_weights(SIZES, tau)[ids], temperature_probabilities(SIZES, tau)[ids] / torch.from_numpy(SIZES)[ids]
        mean = p @ gradients
        torch.testing.assert_close(mean, (w[:, None] * gradients).mean(dim=0), rtol=0, atol=1e-14)
        assert report.gradient_norm_sq[at] == pytest.approx(float(mean @ mean), rel=1e-10)
        weighing = float((w[:, None] * gradients - mean).square().sum(dim=1).mean())
        drawing = float(p @ (gradients - mean).square().sum(dim=1))
        assert report.var_s[at] == pytest.approx(weighing, rel=1e-10)
        assert report.var_ts[at] == pytest.approx(drawing, rel=1e-10)
        assert report.ratio[at] == pytest.approx(weighing / drawing, rel=1e-10)
    assert report.domains == ("0", "1", "2") and report.sizes.tolist() == SIZES.tolist()
    np.testing.assert_allclose(report.G, [float(gradients[ids == k].square().sum(dim=1).mean()) for k in range(3)], rtol=1e-12)


def test_variances_are_those_of_what_the_sampler_draws() -> None:
    model, X, y = problem()
    report = gradient_variance(model, nn.CrossEntropyLoss(), (X, y), DOMAINS, [5.0])
    gradients, draws, ids = rows_of(model, X, y), 200_000, torch.from_numpy(DOMAINS)
    drawn = torch.tensor(list(TemperatureSampler(DOMAINS, 5.0, num_samples=draws)))
    as_they_are = torch.tensor(list(TemperatureSampler(DOMAINS, 1.0, num_samples=draws)))
    w = scalarization_weights(SIZES, 5.0)[ids]
    mean = (w[:, None] * gradients).mean(dim=0)
    for rows, found, expected in ((drawn, gradients, report.var_ts[0]), (as_they_are, w[:, None] * gradients, report.var_s[0])):
        distance = (found - mean).square().sum(dim=1)[rows]
        assert abs(float(distance.mean()) - expected) < 4 * float(distance.std()) / draws**0.5


def test_F_is_1_only_at_tau_1_or_equal_sizes() -> None:
    model, X, y = problem()
    report = gradient_variance(model, nn.CrossEntropyLoss(), (X, y), DOMAINS, [1.0, 2.0, 3.0, 5.0, 100.0])
    p1 = SIZES / SIZES.sum()
    np.testing.assert_allclose(report.F, [float((temperature_probabilities(SIZES, t).numpy() ** 2 / p1).sum()) for t in (1, 2, 3, 5, 100)])
    assert report.F[0] == pytest.approx(1, abs=1e-14) and (np.diff(report.F) > 0).all()
    equal = gradient_variance(model, nn.CrossEntropyLoss(), (X, y), np.arange(90) % 3, TAUS)
    np.testing.assert_allclose(equal.F, 1, atol=1e-14)
    assert equal.best == ("either",) * 4


def heads(lengths: tuple[float, float, float]) -> VarianceReport:
    """A linear model of one number, whose gradient in every domain has a given length and both signs equally often."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    X = torch.tensor(lengths).double()[DOMAINS][:, None]
    y = (1 - 2 * (torch.arange(90) % 2)).double()[:, None]
    return gradient_variance(model, nn.MSELoss(), (X, y), DOMAINS, TAUS)


def test_theorem_2_holds_for_equal_gradients_and_may_fail_for_others() -> None:
    equal = heads((1.0, 1.0, 1.0))
    np.testing.assert_allclose(equal.ratio, equal.F, rtol=1e-12)
    assert equal.best == ("either",) + ("TemperatureSampler",) * 3
    learned_by_heart = heads((1.0, 0.01, 0.01))
    assert learned_by_heart.best == ("either",) + ("ScalarizedLoss",) * 3
    assert "Theorem 2, by which sampling is never the noisier one, does not hold here" in learned_by_heart.summary()
    assert "Theorem 2" not in equal.summary()


def test_words_table_and_picture_say_the_same() -> None:
    report = heads((1.0, 0.01, 0.01))
    frame = report.to_frame()
    assert frame.columns == ["tau", "var_s", "var_ts", "ratio", "F", "gradient_norm_sq", "best"] and frame.height == 4
    assert frame["ratio"].to_list() == report.ratio.tolist() and frame["best"].to_list() == list(report.best)
    assert report.summary().splitlines()[0] == "3 domains, examples x mean squared gradient: 0 60 x 4, 1 24 x 0.0004, 2 6 x 0.0004."
    assert "At tau 1 both are equally noisy (variances 1 to 1)." in report.summary()
    figure = report.plot()
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "2", "5", "inf"]


def test_without_noise_there_is_no_ratio() -> None:
    model = nn.Linear(1, 1).double()
    report = gradient_variance(model, lambda output, y: 0 * output[:, 0], (torch.ones(90, 1).double(), torch.ones(90)), DOMAINS, [3.0])
    assert np.isnan(report.ratio[0]) and report.best == ("either",)
    report.plot()


def test_data_may_come_in_any_form() -> None:
    model, X, y = problem()
    loss = nn.CrossEntropyLoss()
    expected = gradient_variance(model, loss, (X, y), DOMAINS, TAUS)
    dataset = TensorDataset(X, y)
    names = np.array(["en", "fo", "ga"])[DOMAINS]
    for data, domains in (
        (dataset, DOMAINS.tolist()),
        (DataLoader(dataset, batch_size=11), torch.from_numpy(DOMAINS)),
        ([(X[:50], y[:50]), (X[50:], y[50:])], names),
        (dataset, Groups.from_labels(names, "domain")),
    ):
        report = gradient_variance(model, loss, data, domains, list(TAUS))
        np.testing.assert_allclose(report.var_s, expected.var_s, rtol=1e-10)
        np.testing.assert_allclose(report.var_ts, expected.var_ts, rtol=1e-10)
    assert report.domains == ("en", "fo", "ga")


@pytest.mark.parametrize(
    ("domains", "taus", "message"),
    [
        (DOMAINS, [], "taus: got no temperature; expected at least one"),
        (DOMAINS, [1.0, 0.0], "taus: got .*0.0.*; expected a number > 0, or inf"),
        (DOMAINS[:80], [1.0], "domains: got 80 domains for 90 examples; expected one for each example"),
        ([None, *DOMAINS[1:]], [1.0], "domains: got 1 examples without a domain; expected a domain for every example"),
        (Groups(DOMAINS, ("a", "b", "c", "lost"), "domain"), [1.0], "domains: got no example of lost; expected an example in every domain"),
    ],
)
def test_bad_input_is_refused(domains, taus, message) -> None:
    model, X, y = problem()
    with pytest.raises(InputError, match=message):
        gradient_variance(model, nn.CrossEntropyLoss(), (X, y), domains, taus)


def test_a_loader_that_shuffles_is_refused() -> None:
    model, X, y = problem()
    with pytest.raises(InputError, match="a loader in a fixed order"):
        gradient_variance(model, nn.CrossEntropyLoss(), DataLoader(TensorDataset(X, y), shuffle=True), DOMAINS, [2.0])
