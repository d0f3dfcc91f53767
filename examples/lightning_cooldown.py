"""A Lightning training whose batches are drawn at a temperature: a large and a small domain, half of the steps at 5, half at 1.

    python examples/lightning_cooldown.py

Return the loader from ``train_dataloader`` and set ``use_distributed_sampler=False``: the sampler shards itself among processes, and
Lightning would shard the shards again. Lightning calls the sampler's ``set_epoch`` before every epoch; the steps of the schedule go on from
epoch to epoch.
"""

import logging
import warnings

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from counterpoise.data import TemperatureSampler
from counterpoise.schedules import Cooldown

STEPS, BATCH = 40, 16
SIZES = {"large": 300, "small": 20}

warnings.filterwarnings("ignore", message=".*does not have many workers")  # a few hundred rows need none
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

domains = np.repeat(list(SIZES), list(SIZES.values()))


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)
        self.drawn = []

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        X = torch.randn(len(domains), 8, generator=generator)
        data = TensorDataset(X, (X[:, 0] > 0).long(), torch.from_numpy(domains == "small"))
        schedule = Cooldown(tau_hi=5.0, tau_lo=1.0, switch=0.5, total_steps=STEPS)
        sampler = TemperatureSampler(domains, tau=schedule, batch_size=BATCH, generator=0)
        return DataLoader(data, batch_size=BATCH, sampler=sampler)

    def training_step(self, batch, _):
        x, y, small = batch
        self.drawn.append(int(small.sum()))
        return nn.functional.cross_entropy(self.layer(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


if __name__ == "__main__":
    net = Net()
    trainer = Trainer(
        max_steps=STEPS,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(net)
    hot, cold = net.drawn[: STEPS // 2], net.drawn[STEPS // 2 :]
    print(
        f"of {BATCH} examples in a batch, {np.mean(hot):.1f} were of the small domain in the first half, {np.mean(cold):.1f} in the second"
    )
