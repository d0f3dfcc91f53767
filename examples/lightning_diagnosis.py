"""Whose training step is it? A Lightning training on pictures, one class of which is rare, with the shares in its own TensorBoard.

    python examples/lightning_diagnosis.py [FOLDER]
    tensorboard --logdir FOLDER

Pictures of clothes from $COUNTERPOISE_DATA/fashion-mnist-5class, or the digits that come with scikit-learn if that is not there. Of class 4
(shirts) one picture in twenty is kept, of the others all. What to look at: the mean loss falls from the start, as it should. Meanwhile that
of the rare class rises: its share of the step is below zero, so each is made against it. Without FOLDER the events are thrown away.
"""

import logging
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from counterpoise.engines.lightning import DiagnosisCallback

STEPS, EVERY, RARE = 200, 20, 4

warnings.filterwarnings("ignore", message=".*does not have many workers")  # a few thousand small pictures need none
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
logging.getLogger("counterpoise").setLevel(logging.INFO)  # hints, when they are new


def pictures():
    """(n, 1, side, side) in [0, 1] and their classes 0 to 4."""
    path = Path(os.environ.get("COUNTERPOISE_DATA", "")) / "fashion-mnist-5class" / "fashion5.npz"
    if path.is_file():
        with np.load(path) as file:
            return torch.from_numpy(file["X"])[:, None].float() / 255, torch.from_numpy(file["y"]).long()
    X, y = load_digits(n_class=5, return_X_y=True)
    return torch.from_numpy(X).reshape(-1, 1, 8, 8).float() / 16, torch.from_numpy(y)


class Net(LightningModule):
    """As one would write it without any diagnosis."""

    def __init__(self, side):
        super().__init__()
        half = (side + 1) // 2
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Flatten(),
            nn.Linear(16 * half * half, 5),
        )
        self.loss_fn = nn.CrossEntropyLoss()  # which the callback finds under this name

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch):
        x, y = batch
        loss = self.loss_fn(self(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def train(folder):
    torch.manual_seed(0)
    X, y = pictures()
    rare = torch.nonzero(y == RARE)[:, 0]
    kept = torch.cat([torch.nonzero(y != RARE)[:, 0], rare[::20]])
    X, y = X[kept], y[kept]

    # 64 examples of the training data would be taken by default. Three of them would be of the rare class: too few to speak for it, so
    # the probe is larger here.
    diagnosis = DiagnosisCallback(every=EVERY, batch=1024)
    trainer = Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        callbacks=[diagnosis],
        logger=TensorBoardLogger(folder, name="", version=""),
        log_every_n_steps=5,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(X.shape[-1]), DataLoader(TensorDataset(X, y), batch_size=64, shuffle=True))
    return diagnosis


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        diagnosis = train(sys.argv[1] if len(sys.argv) > 1 else temporary)
    print(f"\n{'step':>4s}  {'of the rows':>11s}  {'of the step':>11s}  {'its loss':>8s}  mean loss    (class {RARE})")
    for found in diagnosis.diagnoses:
        table = found.per_group
        rare = table.row(RARE, named=True)
        share = "no direction" if found.shares.settled else f"{rare['share']:.1%}"
        print(f"{found.step:4d}  {rare['pi']:11.1%}  {share:>11s}  {rare['loss']:8.2f}  {table['loss'] @ table['pi']:9.2f}")
    print(f"\n{diagnosis.diagnoses[-1].headline}")
