"""A training that kills its process where it is told to, as a power cut would: nothing is asked to stop, nothing can tidy up.

Without a point it runs to its end, from where the checkpoint in the folder stands, and writes its weights, metrics and rounds trained.
With ``error_feedback``, clients keep their residuals in folders of their own.
"""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from counterpoise.federated import EdgeDetectStrategy, edgedetect_mod
from counterpoise.federated._local_grid import LocalGrid
from tests.federated.apps import TINY

ROUNDS, CLIENTS = 6, 4


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


def train(folder: Path, point: str = "", at: int = 0, error_feedback: bool = False) -> None:
    trained: list[list[int]] = []

    def kill(where: str, server_round: int) -> None:
        if (where, server_round) == (point, at):
            os.kill(os.getpid(), signal.SIGKILL)

    app = ClientApp(mods=[partial(edgedetect_mod, folder=folder / "nodes")] if error_feedback else [edgedetect_mod])

    @app.train()
    def _(msg: Message, context: Context) -> Message:
        client, server_round = context.node_config["partition-id"], msg.content["config"]["server-round"]
        net = model()
        net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        draw = torch.Generator().manual_seed(1000 * server_round + client)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            x = torch.randn(16, 5, generator=draw)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), (x[:, 0] > client / 4).long() + (x[:, 1] > 1)).backward()
            optimizer.step()
        trained.append([server_round, client])
        if client == 2:
            kill("training", server_round)
        metrics = MetricRecord({"num-examples": 48})
        return Message(RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics}), reply_to=msg)

    def evaluated(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        kill("before the evaluation is saved", server_round)
        return MetricRecord({"norm": float(sum(array.numpy().astype(float).sum() for array in arrays.values()))})

    replace = os.replace

    def replaced(source: str | Path, target: str | Path) -> None:
        if Path(target).suffix == ".safetensors":
            kill("before the file is in place", trained[-1][0] if trained else 0)
        replace(source, target)

    os.replace = replaced
    torch.set_num_threads(1)
    options = TINY | {"error_feedback": error_feedback, "checkpoint": folder / "round.safetensors"}
    strategy = EdgeDetectStrategy(CLIENTS, momentum=0.9, server_lr=0.01, seed=3, **options)
    result = strategy.start(LocalGrid(app, CLIENTS), ArrayRecord(model().state_dict()), num_rounds=ROUNDS, evaluate_fn=evaluated)
    np.savez(folder / "end.npz", **{name: array.numpy() for name, array in result.arrays.items()})
    found = {
        "train": {at: dict(row) for at, row in result.train_metrics_clientapp.items()},
        "server": {at: dict(row) for at, row in result.evaluate_metrics_serverapp.items()},
        "trained": sorted({r for r, _ in trained}),
    }
    (folder / "end.json").write_text(json.dumps(found))
