"""skorch: nets with and without the callback, their history, and what TensorBoard shows."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_digits
from skorch import NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import TensorBoard
from skorch.helper import predefined_split
from torch import nn

from counterpoise._errors import InputError
from counterpoise.diagnostics import examine
from counterpoise.engines import MLPClassifier, MLPRegressor
from counterpoise.engines._diagnosing import scalars
from counterpoise.engines.skorch import DiagnosisCallback

X, y = load_digits(return_X_y=True)
X, y = (X[:640] / 16).astype(np.float32), y[:640].astype(np.int64)


def classifier(*callbacks, probabilities: bool = False, **options) -> NeuralNetClassifier:
    torch.manual_seed(0)
    layers = [nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)]
    # skorch's default criterion takes probabilities.
    module = nn.Sequential(*layers, nn.Softmax(dim=1)) if probabilities else nn.Sequential(*layers)
    options = {"max_epochs": 2, "lr": 0.1, "verbose": 0, "iterator_train__shuffle": True, "train_split": None} | options
    return NeuralNetClassifier(
        module, criterion=nn.NLLLoss if probabilities else nn.CrossEntropyLoss, batch_size=64, callbacks=list(callbacks), **options
    )


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(p, q) for p, q in pairs) and [m.training for m in a.modules()] == [m.training for m in b.modules()]


def test_training_is_the_same_bit_for_bit() -> None:
    plain = classifier().fit(X, y)
    after_plain = torch.rand(())
    callback = DiagnosisCallback(every=3)
    watched = classifier(callback).fit(X, y)
    assert torch.equal(after_plain, torch.rand(())) and len(callback.diagnoses) == 8
    assert same(plain.module_, watched.module_)
    assert plain.history[:, "train_loss"] == watched.history[:, "train_loss"]


def test_history_and_tensorboard_show_what_was_measured(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    callback = DiagnosisCallback(every=7, batch=500)
    net = classifier(callback, TensorBoard(SummaryWriter(tmp_path))).fit(X, y)
    assert [found.step for found in callback.diagnoses] == [0, 7, 14, 20]
    rows = [row for epoch in net.history for row in epoch["batches"]]
    recorded = {step: {k: v for k, v in row.items() if k.startswith("counterpoise/")} for step, row in enumerate(rows)}
    assert {step: row for step, row in recorded.items() if row} == {d.step: scalars(d) for d in callback.diagnoses[:-1]}
    events = EventAccumulator(str(tmp_path)).Reload()
    shown = {(tag, e.step): e.value for tag in events.Tags()["scalars"] if tag.startswith("counterpoise/") for e in events.Scalars(tag)}
    expected = {(tag, d.step): pytest.approx(value, rel=1e-6) for d in callback.diagnoses for tag, value in scalars(d).items()}
    assert shown == expected and ("counterpoise/share/3", 0) in shown
    assert [e.value for e in events.Scalars("Loss/train_loss")] == pytest.approx(net.history[:, "train_loss"], rel=1e-6)


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_diagnosis_is_what_examine_says_of_the_module_then(probabilities) -> None:
    probe = torch.from_numpy(X), torch.from_numpy(y)
    callback = DiagnosisCallback(every=1000, probe=probe)
    net = classifier(callback, probabilities=probabilities).fit(X, y)
    eps = torch.finfo(torch.float32).eps
    loss = nn.CrossEntropyLoss() if not probabilities else lambda p, t: nn.functional.nll_loss((p + eps).log(), t, reduction="none")
    by_hand = examine(net.module_.eval(), loss, probe)
    last = callback.diagnoses[-1]
    assert last.step == 20 and last.per_group.equals(by_hand.per_group)
    assert (last.logit_pressure is None) == probabilities  # pull and push are those of logits


def test_the_probe_is_of_the_training_part() -> None:
    held_out = predefined_split(torch.utils.data.TensorDataset(torch.from_numpy(X[:40]), torch.from_numpy(y[:40])))
    callback = DiagnosisCallback(every=4, batch=200, groups=np.arange(600) // 100)
    classifier(callback, train_split=held_out).fit(X[40:], y[40:])
    first = callback.diagnoses[0]
    assert first.shares.names == tuple("012345") and first.per_group["count"].sum() == 200
    assert [d.step for d in callback.diagnoses] == [0, 4, 8, 12, 16, 20]  # batches of the held-out part are no steps


def test_a_regression_is_measured_by_ranges() -> None:
    data, target = load_diabetes(return_X_y=True)
    data, target = data.astype(np.float32), (target[:, None] / 100).astype(np.float32)
    torch.manual_seed(0)
    callback = DiagnosisCallback(every=5, batch=400)
    NeuralNetRegressor(nn.Linear(10, 1), max_epochs=2, verbose=0, callbacks=[callback], train_split=None).fit(data, target)
    assert callback.diagnoses[0].kind == "range" and len(callback.diagnoses[0].per_group) == 10


def test_nets_with_a_callback_are_cloned_pickled_and_trained_on() -> None:
    callback = DiagnosisCallback(every=10, batch=32, params="head", seed=3)
    net = classifier(callback)
    (copied,) = clone(net).callbacks
    assert copied is not callback and copied.get_params() == callback.get_params()
    assert callback.get_params()["every"] == 10 and callback.get_params()["params"] == "head"
    net.fit(X, y)
    net.partial_fit(X, y)
    assert [found.step for found in callback.diagnoses] == [0, 10, 20, 30, 40]
    loaded = dict(pickle.loads(pickle.dumps(net)).callbacks_)["DiagnosisCallback"]
    assert [found.step for found in loaded.diagnoses] == [0, 10, 20, 30, 40] and loaded.plot()
    other = classifier(callback)
    other.fit(X, y)  # another module: a new list
    assert [found.step for found in callback.diagnoses] == [0, 10, 20]


@pytest.mark.parametrize("weight", [None, np.where(y > 4, 3.0, 1.0)], ids=["plain", "weighted"])
@pytest.mark.parametrize("head_share", [0.0, 0.5])
def test_our_perceptron_takes_it(weight, head_share) -> None:
    options = {"max_steps": 40, "random_state": 0, "head_share": head_share}
    plain = MLPClassifier(**options).fit(X, y, weight)
    callback = DiagnosisCallback(every=10, batch=640)
    watched = MLPClassifier(**options, callbacks=[callback]).fit(X, y, weight)
    assert same(plain.module_, watched.module_)
    assert [found.step for found in callback.diagnoses] == [0, 10, 20, 30, 40]
    # A row's weight is part of its loss: at the end it is that of the module, times the weight.
    scaled = np.ones(640) if weight is None else weight * 640 / weight.sum()
    loss = nn.functional.cross_entropy(watched.module_(torch.from_numpy(X)), torch.from_numpy(y), reduction="none").detach().numpy()
    np.testing.assert_allclose(callback.diagnoses[-1].sketch.losses.numpy(), loss * scaled, rtol=1e-4, atol=1e-6)


def test_our_regressor_takes_it() -> None:
    data, target = load_diabetes(return_X_y=True)
    callback = DiagnosisCallback(every=10, batch=100)
    MLPRegressor(max_steps=10, random_state=0, callbacks=[callback]).fit(data, target)
    assert [found.step for found in callback.diagnoses] == [0, 10] and callback.diagnoses[0].kind == "range"


def test_a_loss_of_the_whole_batch_is_refused() -> None:
    with pytest.raises(
        InputError, match="loss: got a loss that returns one number for the batch; expected one that returns a loss per example"
    ):
        MLPClassifier(max_steps=10, loss=nn.CrossEntropyLoss(reduction="sum"), callbacks=[DiagnosisCallback(loss=whole)]).fit(X, y)


def whole(output, batch) -> torch.Tensor:
    return nn.functional.cross_entropy(output[0], batch[1])
