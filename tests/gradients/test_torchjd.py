from __future__ import annotations

import copy
import pickle

import pytest
import torch

from counterpoise import CounterpoiseError
from counterpoise.gradients import Accumulator, GradientStatistics, as_torchjd, backward
from tests.gradients.examples import EqualLength, SignVote
from tests.gradients.examples_model import ThreeHeads, batch, in_one, rows_of_losses

theirs = pytest.importorskip("torchjd.aggregation")
autojac = pytest.importorskip("torchjd.autojac")

AGGREGATORS = {
    "UPGrad": theirs.UPGrad,
    "MGDA": theirs.MGDA,
    "DualProj": theirs.DualProj,
    "IMTLG": theirs.IMTLG,
    "AlignedMTL": theirs.AlignedMTL,
    "Krum": lambda: theirs.Krum(n_byzantine=0, n_selected=2),
    "ConFIG": theirs.ConFIG,
    "TrimmedMean": lambda: theirs.TrimmedMean(trim_number=1),
    "Mean": theirs.Mean,
    "Sum": theirs.Sum,
    "Constant": lambda: theirs.Constant(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
}
GRAMIAN = {"UPGrad", "MGDA", "DualProj", "IMTLG", "AlignedMTL", "Krum"}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_their_aggregators_in_our_backward(name: str) -> None:
    ours, reference = ThreeHeads(), ThreeHeads()
    report = backward(ours(*batch()), AGGREGATORS[name](), params=ours.trunk.parameters())
    losses = list(reference(*batch()).values())
    parameters = list(reference.trunk.parameters())
    autojac.backward(losses, inputs=parameters)
    autojac.jac_to_grad(parameters, AGGREGATORS[name]())
    # Their solvers iterate on a Gramian that was added up in another order.
    torch.testing.assert_close(in_one(list(ours.trunk.parameters())), in_one(parameters), rtol=1e-4, atol=1e-6)
    assert report.weights.isnan().all() == (name not in GRAMIAN)
    assert bool(report.notes) == (name not in GRAMIAN)
    if name in GRAMIAN:
        sketched = ThreeHeads()
        assert backward(sketched(*batch()), AGGREGATORS[name](), strategy="sketch").strategy == "sketch"
        torch.testing.assert_close(in_one(list(sketched.trunk.parameters())), in_one(parameters), rtol=1e-4, atol=1e-6)
    else:
        assert "takes the whole Jacobian" in report.notes[0]
        with pytest.raises(CounterpoiseError, match="strategy: got 'sketch'; expected 'rows'"):
            backward(ThreeHeads()(*batch()), AGGREGATORS[name](), strategy="sketch")


@pytest.mark.parametrize("name", ["UPGrad", "Mean", "Constant", "Random"])
def test_their_weightings_in_our_backward(name: str) -> None:
    make = {
        "UPGrad": theirs.UPGradWeighting,
        "Mean": theirs.MeanWeighting,
        "Constant": lambda: theirs.ConstantWeighting(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)),
        "Random": theirs.RandomWeighting,
    }[name]
    model, reference = ThreeHeads(), ThreeHeads()
    torch.manual_seed(0)
    report = backward(model(*batch()), make())
    torch.manual_seed(0)
    aggregator = theirs.GramianWeightedAggregator(make()) if name == "UPGrad" else theirs.WeightedAggregator(make())
    backward(reference(*batch()), aggregator)
    torch.testing.assert_close(in_one(list(model.parameters())), in_one(list(reference.parameters())))
    assert (report.strategy, bool(report.weights.isnan().all())) == ("rows", name != "UPGrad")


def test_a_weighting_around_another_takes_what_that_one_takes() -> None:
    for inner, whole in ((theirs.MeanWeighting(), True), (theirs.UPGradWeighting(), False)):
        model = ThreeHeads()
        report = backward(model(*batch()), theirs.CRMOGMWeighting(inner))
        assert bool(report.notes) == whole


def test_what_they_remember_is_remembered() -> None:
    weighting = theirs.CRMOGMWeighting(theirs.UPGradWeighting())
    model = ThreeHeads()
    acc = Accumulator(model.trunk.parameters(), weighting)
    for seed in range(2):
        acc.backward(model(*batch(seed=seed)))
    acc.step()
    held = [backward(model(*batch(seed=seed)), theirs_once, refresh_every=2).strategy for seed, theirs_once in enumerate([weighting] * 4)]
    assert held == ["rows", "held weights"] * 2


@pytest.mark.parametrize("optimize", [False, True])
def test_ours_in_their_jac_to_grad(optimize: bool) -> None:
    ours, reference = ThreeHeads(), ThreeHeads()
    backward(ours(*batch()), EqualLength(), params=ours.trunk.parameters())
    parameters = list(reference.trunk.parameters())
    autojac.backward(list(reference(*batch()).values()), inputs=parameters)
    converted = as_torchjd(EqualLength())
    assert isinstance(converted, theirs.GramianWeightedAggregator)
    weights = autojac.jac_to_grad(parameters, converted, optimize_gramian_computation=optimize)
    torch.testing.assert_close(in_one(parameters), in_one(list(ours.trunk.parameters())))
    assert weights.shape == (3,)


def test_rules_for_coordinates_become_plain_aggregators() -> None:
    converted = as_torchjd(SignVote())
    assert isinstance(converted, theirs.Aggregator) and not isinstance(converted, theirs.GramianWeightedAggregator)
    J = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(converted(J), SignVote()(J))
    with pytest.raises(CounterpoiseError, match="aggregator: got 'UPGrad'; expected an aggregator of counterpoise"):
        as_torchjd(theirs.UPGrad())


@pytest.mark.parametrize("make", [EqualLength, SignVote])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_what_was_converted_can_be_copied_and_saved(make, again) -> None:
    J = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    converted = as_torchjd(make())
    same = again(converted)
    assert isinstance(same, theirs.GramianWeightedAggregator) == (make is EqualLength)
    assert torch.equal(same(J), converted(J))


def test_a_method_is_no_function_of_its_class() -> None:
    class Scaled:
        def __init__(self, factor: float) -> None:
            self.factor = factor

        def combined(self, jacobian: torch.Tensor) -> torch.Tensor:
            return self.factor * jacobian.sum(dim=0)

    p = torch.nn.Parameter(torch.ones(2))
    for factor in (1.0, 10.0):
        backward([p.sum(), 2 * p.sum()], Scaled(factor).combined)
    assert p.grad.tolist() == [33.0, 33.0]


def test_ours_in_their_engine() -> None:
    engine_of = pytest.importorskip("torchjd.autogram").Engine
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).double()
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    engine = engine_of(model, batch_dim=0)
    losses = model(x).square().mean(dim=1)
    weights = as_torchjd(EqualLength()).gramian_weighting(engine.compute_gramian(losses))
    rows = rows_of_losses(dict(enumerate(model(x).square().mean(dim=1))), list(model.parameters()))
    torch.testing.assert_close(weights, EqualLength().weights(GradientStatistics.from_rows([rows])))


@pytest.mark.parametrize("make", [theirs.MoDoWeighting, theirs.SDMGradWeighting])
def test_methods_of_two_batches_are_refused(make: type) -> None:
    with pytest.raises(CounterpoiseError, match=r"aggregator: got '\w+'; expected one that combines the gradients of one batch"):
        backward(ThreeHeads()(*batch()), make())
