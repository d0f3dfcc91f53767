"""Twelve tasks, one trunk: does combining gradients help? Tox21 in a plain loop, and the same as a Lightning module.

    COUNTERPOISE_DATA=FOLDER python examples/multi_task_molecules.py [STEPS]

FOLDER holds molecule-tasks/tox21.csv.gz, the file datasets/tox21.csv.gz of https://github.com/deepchem/deepchem: 8,014 molecules and twelve
tests of toxicity, of which each molecule has had some. 3 to 16 % of what was measured is positive, and the losses are means over what was
measured. A molecule is the counts of short pieces of its SMILES string.

What to look at: a third of the pairs of tasks are in conflict, and yet no way of combining their gradients ends above the spread over seeds
of the plain sum; MGDA, which follows the shortest gradients, ends below it. Where that is so, the sum is the cheapest. The last line is one
training in a plain loop and as a LightningModule: the same.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from counterpoise.gradients import MGDA, SAMGS, PCGrad, backward

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 150
SEEDS, BATCH, RATE = (0, 1, 2), 128, 1e-3
WAYS = {"sum": None, "PCGrad": PCGrad, "MGDA": MGDA, "SAM-GS": lambda: SAMGS(gamma=0.9)}

warnings.filterwarnings("ignore", message=".*does not have many workers")  # a few thousand short rows need none
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def molecules():
    """Counts of pieces (n, 1024), labels (n, 12) with NaN where nothing was measured, names of the tasks."""
    path = Path(os.environ.get("COUNTERPOISE_DATA", "")) / "molecule-tasks" / "tox21.csv.gz"
    if not path.is_file():
        sys.exit(f"{path} is not there: set COUNTERPOISE_DATA to a folder that holds molecule-tasks/tox21.csv.gz (deepchem's Tox21).")
    frame = pl.read_csv(path)
    tasks = [name for name in frame.columns if name.startswith(("NR-", "SR-"))]
    pieces = HashingVectorizer(analyzer="char", ngram_range=(1, 4), lowercase=False, n_features=1024, norm="l2", alternate_sign=False)
    X = torch.from_numpy(pieces.transform(frame["smiles"].to_list()).toarray().astype("float32"))
    return X * 10, torch.from_numpy(frame.select(tasks).to_numpy().astype("float32")), tasks


class Net(nn.Module):
    def __init__(self, tasks):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(1024, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.heads = nn.ModuleDict({task: nn.Linear(64, 1) for task in tasks})

    def forward(self, x):
        z = self.trunk(x)
        return torch.cat([head(z) for head in self.heads.values()], dim=1)

    def losses(self, x, y):
        """One for each task: the mean over the molecules on which it was measured."""
        known = ~y.isnan()
        each = nn.functional.binary_cross_entropy_with_logits(self(x), y.nan_to_num(), reduction="none") * known
        return dict(zip(self.heads, each.sum(dim=0) / known.sum(dim=0).clamp(min=1), strict=True))


def mean_auc(scores, y):
    """Over the tasks, in percent."""
    found = []
    for score, label in zip(scores.T, y.T, strict=True):
        known = ~np.isnan(label)
        found.append(roc_auc_score(label[known], score[known]))
    return 100 * float(np.mean(found))


def train(way, X, y, tasks, seed):
    """A plain loop. Returns the network, and how many pairs of tasks were in conflict, of 66, on average."""
    torch.manual_seed(seed)
    net, aggregator = Net(tasks), way() if way else None
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    generator, conflicts = torch.Generator().manual_seed(seed), []
    for _ in range(STEPS):
        rows = torch.randint(len(X), (BATCH,), generator=generator)
        losses = net.losses(X[rows], y[rows])
        optimizer.zero_grad()
        if aggregator is None:
            sum(losses.values()).backward()
        else:  # in place of backward(); everything else stays
            report = backward(losses, aggregator, params=net.trunk.parameters())
            conflicts.append(len(report.conflicts))
        nn.utils.clip_grad_norm_(net.trunk.parameters(), 1.0)  # SAM-GS needs it; the same for all
        optimizer.step()
    return net, float(np.mean(conflicts)) if conflicts else float("nan")


class MultiTask(LightningModule):
    """The same in Lightning, which leaves the backward pass to us with ``automatic_optimization = False``."""

    def __init__(self, net, aggregator):
        super().__init__()
        self.automatic_optimization = False
        self.net, self.aggregator = net, aggregator

    def training_step(self, batch):
        losses = self.net.losses(*batch)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        report = backward(losses, self.aggregator, params=self.net.trunk.parameters())
        nn.utils.clip_grad_norm_(self.net.trunk.parameters(), 1.0)
        optimizer.step()
        self.log("conflicts", float(len(report.conflicts)))

    def configure_optimizers(self):
        return torch.optim.Adam(self.net.parameters(), RATE)


def train_with_lightning(way, X, y, tasks, seed):
    seed_everything(seed, verbose=False)
    net = Net(tasks)
    generator = torch.Generator().manual_seed(seed)
    rows = torch.cat([torch.randint(len(X), (BATCH,), generator=generator) for _ in range(STEPS)])  # as in the plain loop
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(MultiTask(net, way()), DataLoader(TensorDataset(X[rows], y[rows]), batch_size=BATCH))
    return net


def main():
    X, y, tasks = molecules()
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
    test, rest = order[:1600], order[1600:]
    print(f"{len(rest)} molecules to train on, {len(test)} to test on, {len(tasks)} tasks, {STEPS} steps, seeds {len(SEEDS)}")
    print(f"{'':8}  mean AUC of the tasks      pairs in conflict, of 66")
    for name, way in WAYS.items():
        nets = [train(way, X[rest], y[rest], tasks, seed) for seed in SEEDS]
        with torch.no_grad():
            scores = [mean_auc(net(X[test]).numpy(), y[test].numpy()) for net, _ in nets]
        conflicts = np.mean([conflict for _, conflict in nets])
        print(
            f"{name:8}  {np.mean(scores):5.1f}  ({min(scores):.1f} to {max(scores):.1f})"
            + ("" if way is None else f"      {conflicts:5.1f}")
        )
        if name == "PCGrad":
            plain = nets[0][0]
    torch.manual_seed(0)
    net = train_with_lightning(PCGrad, X[rest], y[rest], tasks, 0)
    with torch.no_grad():
        print(f"Lightning, PCGrad, seed 0: {mean_auc(net(X[test]).numpy(), y[test].numpy()):.1f}", end="")
        print(f"; plain loop: {mean_auc(plain(X[test]).numpy(), y[test].numpy()):.1f}")


if __name__ == "__main__":
    main()
