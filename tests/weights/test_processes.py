"""Two processes with half of the probe each search as one process with all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from counterpoise.weights import SelfPositioning

SCRIPT = """
import json, sys, torch
from torch import distributed as dist
sys.path.insert(0, sys.argv[3])
from tests.weights.test_processes import search, statistics
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
rows = slice(rank * 8, rank * 8 + 8)
print(json.dumps([search(rows), statistics(rows)]))
dist.destroy_process_group()
"""


def search(rows: slice) -> list[float]:
    draw = torch.Generator().manual_seed(0)
    nets = [torch.nn.Linear(4, 3).double() for _ in range(3)]
    for net in nets:
        for p in net.parameters():
            p.data = torch.randn(p.shape, generator=draw, dtype=p.dtype)
    x, y = torch.randn(16, 4, generator=draw, dtype=torch.float64), torch.randn(16, 3, generator=draw, dtype=torch.float64)

    def loss_fn(model, batch):
        return ((model(batch[0]) - batch[1]) ** 2).mean()

    result = SelfPositioning().fit(nets[0], nets[1:], [(x[rows], y[rows])], loss_fn, steps=6)
    return [*result.weights.tolist(), result.scale, *(row["loss"] for row in result.history)]


def statistics(rows: slice) -> list[float]:
    """Of batch normalization, which each process estimates on its part of the probe."""
    draw = torch.Generator().manual_seed(0)
    base = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    x = torch.randn(16, 3, generator=draw, dtype=torch.float64)
    model = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in base.state_dict().items()}
    state = SelfPositioning().fit(base, [model], [x[rows]], lambda net, batch: net(batch).square().mean(), steps=2).state_dict
    return [*state["running_mean"].tolist(), *state["running_var"].tolist()]


def test_two_processes_are_one(tmp_path) -> None:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", SCRIPT]
    running = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store"), root], stdout=subprocess.PIPE, text=True, cwd=root)
        for rank in (0, 1)
    ]
    found = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in running]
    wanted = search(slice(None))
    assert found[0] == found[1]
    torch.testing.assert_close(torch.tensor(found[0][0]), torch.tensor(wanted))
    halves = torch.tensor([statistics(slice(0, 8)), statistics(slice(8, 16))])
    torch.testing.assert_close(torch.tensor(found[0][1]), halves.mean(dim=0))
