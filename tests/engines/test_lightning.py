"""Lightning: a small CNN on pictures, with and without the callback, and what TensorBoard shows."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from counterpoise._errors import InputError
from counterpoise.diagnostics import examine
from counterpoise.engines._diagnosing import scalars

lightning = pytest.importorskip("lightning.pytorch", reason="needs the extra: pip install 'counterpoise[lightning]'")

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger  # noqa: E402

from counterpoise.engines.lightning import DiagnosisCallback  # noqa: E402

COUNTS = (300, 150, 75, 40, 20)  # of the five classes: the first is fifteen times the last


@pytest.fixture(scope="module")
def pictures(data_folder) -> tuple[torch.Tensor, torch.Tensor]:
    with np.load(data_folder / "fashion-mnist-5class" / "fashion5.npz") as file:
        X, y = file["X"], file["y"]
    rows = np.concatenate([np.flatnonzero(y == k)[:count] for k, count in enumerate(COUNTS)])
    return torch.from_numpy(X[rows]).float()[:, None, ::2, ::2] / 255, torch.from_numpy(y[rows]).long()


class Augmented(Dataset):
    """Pictures moved sideways by each of the three random generators."""

    def __init__(self, pictures) -> None:
        self.X, self.y = pictures

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int):
        shift = random.randrange(2) + np.random.randint(2) + int(torch.randint(2, ()))
        return self.X[i].roll(shift, dims=2), self.y[i]


class Net(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(6 * 36, 5)
        )
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch):
        x, y = batch
        loss = self.criterion(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def fit(pictures, callback=None, *, model=None, data=None, **options):
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    model = model or Net()
    loader = data or DataLoader(Augmented(pictures), batch_size=32, shuffle=True)
    settings = {"max_epochs": 2, "logger": False, "accelerator": "cpu", "log_every_n_steps": 1} | options
    trainer = lightning.Trainer(
        callbacks=[callback] if callback else [],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(model, loader)
    return model, (random.random(), np.random.rand(), torch.rand(()).item())


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16-mixed", "accumulate_grad_batches": 2}, {"precision": "bf16-true"}],
    ids=lambda o: str(sorted(o.items())),
)
def test_training_is_the_same_bit_for_bit(options, pictures) -> None:
    plain, after_plain = fit(pictures, **options)
    callback = DiagnosisCallback(every=5)
    watched, after_watched = fit(pictures, callback, **options)
    assert len(callback.diagnoses) >= 4
    assert after_plain == after_watched
    for (name, a), b in zip(plain.state_dict().items(), watched.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    for a, b in zip(plain.parameters(), watched.parameters(), strict=True):
        assert b.requires_grad and (a.grad is None) == (b.grad is None) and (a.grad is None or torch.equal(a.grad, b.grad))
    assert [m.training for m in plain.modules()] == [m.training for m in watched.modules()]


def test_steps_are_those_of_the_optimizer(pictures) -> None:
    callback = DiagnosisCallback(every=4)
    fit(pictures, callback, accumulate_grad_batches=3)  # 19 batches: 7 steps in each of two epochs
    assert [found.step for found in callback.diagnoses] == [0, 4, 8, 12, 14]
    fit(pictures, callback, max_steps=3)  # a new training starts a new list
    assert [found.step for found in callback.diagnoses] == [0, 3]


def test_tensorboard_shows_what_was_measured(pictures, tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    callback = DiagnosisCallback(every=10, batch=300)
    fit(pictures, callback, logger=TensorBoardLogger(tmp_path, name="", version=""))
    assert [found.step for found in callback.diagnoses] == [0, 10, 20, 30, 38]
    events = EventAccumulator(str(tmp_path)).Reload()
    shown = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"] if tag.startswith("counterpoise/")}
    expected: dict[str, dict[int, float]] = {}
    for found in callback.diagnoses:
        for tag, value in scalars(found).items():
            expected.setdefault(tag, {})[found.step] = pytest.approx(value, rel=1e-6)
    assert shown == expected
    assert {f"counterpoise/{name}" for name in ("norm", "noise", "coherence", "conflict", "loss/0", "share/4")} <= set(shown)
    assert len(events.Scalars("train_loss")) == 38  # the trainer's own numbers are all there
    first = callback.diagnoses[0]
    assert sum(shown[f"counterpoise/share/{k}"][0] for k in range(5)) == pytest.approx(1, abs=1e-5)
    assert first.per_group["count"].to_list() == sorted(first.per_group["count"].to_list(), reverse=True)


def test_a_diagnosis_is_what_examine_says_of_the_model_then(pictures) -> None:
    X, y = pictures
    callback = DiagnosisCallback(every=1000, probe=(X, y))
    model, _ = fit(pictures, callback)
    by_hand = examine(model.eval(), model.criterion, (X, y))
    last = callback.diagnoses[-1]
    assert last.step == 38 and last.per_group.equals(by_hand.per_group)
    assert callback.diagnoses[0].per_group["loss"].mean() > last.per_group["loss"][0]  # it has learned


def test_every_logger_is_told(pictures, tmp_path) -> None:
    import csv

    callback = DiagnosisCallback(every=10)
    loggers = [CSVLogger(tmp_path, name=name) for name in ("a", "b")]
    fit(pictures, callback, logger=loggers, max_epochs=1)
    for name in ("a", "b"):
        with open(tmp_path / name / "version_0" / "metrics.csv", newline="") as file:
            rows = {int(row["step"]): row for row in csv.DictReader(file) if row["counterpoise/norm"]}
        assert {step: float(row["counterpoise/norm"]) for step, row in rows.items()} == {d.step: d.shares.norm for d in callback.diagnoses}


def test_only_the_first_process_measures(pictures, monkeypatch) -> None:
    callback = DiagnosisCallback(every=5)
    monkeypatch.setattr(lightning.Trainer, "is_global_zero", False)
    fit(pictures, callback, max_epochs=1)
    assert callback.diagnoses == []


def test_a_step_of_ones_own(pictures) -> None:
    class Two(Net):
        """No forward, dictionaries as batches, two terms in the loss."""

        forward = lightning.LightningModule.forward

        def training_step(self, batch):
            return self.criterion(self.layers(batch["image"]), batch["label"]) + 1e-3 * self.layers(batch["image"]).square().mean()

    X, y = pictures
    rows = [{"image": x, "label": label} for x, label in zip(X, y, strict=True)]
    callback = DiagnosisCallback(
        every=10,
        groups="label",
        forward=lambda module, batch: module.layers(batch["image"]),
        loss=lambda z, batch: nn.functional.cross_entropy(z, batch["label"], reduction="none") + 1e-3 * z.square().mean(dim=1),
    )
    fit(pictures, callback, model=Two(), data=DataLoader(rows, batch_size=32, shuffle=True), max_epochs=1)
    assert len(callback.diagnoses) == 3 and len(callback.diagnoses[0].sketch) == 64
    with pytest.raises(InputError, match=r"forward: got None; expected a function .*, since Two defines no forward of its own"):
        fit(pictures, DiagnosisCallback(), model=Two(), data=DataLoader(rows, batch_size=32))


def test_errors_come_before_the_first_step(pictures) -> None:
    class Silent(Net):
        def __init__(self) -> None:
            super().__init__()
            self.hidden_loss = self.criterion
            del self.criterion

        def training_step(self, batch):
            pytest.fail("training has begun")

    with pytest.raises(InputError, match="loss_fn: got None; expected a loss, since Silent holds none as loss_fn, criterion, loss"):
        fit(pictures, DiagnosisCallback(), model=Silent())
    with pytest.raises(InputError, match=r"groups: got .* expected one id for each of the 585 training examples"):
        fit(pictures, DiagnosisCallback(groups=[0, 1], loss_fn=nn.CrossEntropyLoss()), model=Silent())


def test_sharded_parameters_are_refused(pictures) -> None:
    from lightning.pytorch.strategies import FSDPStrategy

    class Trainer:
        strategy = FSDPStrategy.__new__(FSDPStrategy)

    with pytest.raises(InputError, match="strategy: got 'FSDPStrategy'; expected one in which every process holds all parameters"):
        DiagnosisCallback().on_train_start(Trainer(), Net())
