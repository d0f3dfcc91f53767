"""The federation of ``apps`` in Flower's own simulation, with Ray: ``python -m tests.federated.simulated FILE``."""

from __future__ import annotations

import sys

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation

from tests.federated.apps import app_of, arrays, drawn, strategy

CLIENTS, ROUNDS = 4, 2


def train(weights, client, server_round):
    if client == 3 and server_round == 2:
        raise RuntimeError("out of battery")
    return drawn(weights, client, server_round)


def main(file: str) -> None:
    server = ServerApp()

    @server.main()
    def _(grid: Grid, context: Context) -> None:
        chosen = strategy(CLIENTS)
        result = chosen.start(grid, arrays(), num_rounds=ROUNDS)
        clients = [row["clients"] for row in result.train_metrics_clientapp.values()]
        np.savez(file, clients=clients, **{name: array.numpy() for name, array in result.arrays.items()})

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2, "include_dashboard": False}}
    run_simulation(server, app_of(train), num_supernodes=CLIENTS, backend_config=resources)


if __name__ == "__main__":
    main(sys.argv[1])
