"""Ten networks of computers learn together to tell attacks from ordinary traffic; one of them lies. Averages, or encrypted votes?

    COUNTERPOISE_DATA=FOLDER python examples/federated_intrusion.py [ROUNDS] [cic-ids2017-sample]

FOLDER holds nsl-kdd/KDDTrain+_20Percent.txt.gz (NSL-KDD, KDDTrain+_20Percent.txt of https://github.com/defcom17/NSL_KDD, compressed):
25,192 connections, half of them ordinary, 11 of the rarest of four kinds of attacks. Every kind is split over ten clients in shares of
its own, so each of them sees other traffic. The one with most data sends -5 times what it has learned. CIC-IDS2017 is newer: 43,419
connections of the sample with 16 kinds, cic-ids2017-sample/cicids2017_improved_16class.csv.gz.

Flower runs the clients in processes of their own. With FedAvg, the server averages their weights, and reads every one of them. With
EdgeDetectStrategy and edgedetect_mod each client sends one encrypted sign per weight; one of the clients holds the key; the server learns
how many signs were positive, and steps along them.

What to look at: FedAvg is lost within a round, since an average believes whoever is loudest. The votes do not notice. Their upload is a
quarter of the weights', with encryption and all; without encryption it would be a thirty-second. And how many rounds it takes to find the
rare attacks: accuracy is high long before macro F1 is.
"""

import logging
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from sklearn.metrics import f1_score
from torch import nn

from counterpoise.datasets import load
from counterpoise.federated import EdgeDetectStrategy, edgedetect_mod

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 12
NAME = sys.argv[2] if len(sys.argv) > 2 else "nsl-kdd"
FILES = {"nsl-kdd": "KDDTrain+_20Percent.txt.gz", "cic-ids2017-sample": "cicids2017_improved_16class.csv.gz"}
CLIENTS, HELD_OUT, BATCH = 10, 6000, 64

logging.getLogger("flwr").setLevel(logging.ERROR)


def network(inputs, classes):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, classes))


# ---- the clients: an app as for FedAvg; only the mod is new -----------------------------------------------------------------------------


def votes_or_weights(msg, context, call_next):
    """Here two strategies are compared. In earnest it is mods=[edgedetect_mod], which sends nothing at all to another strategy."""
    return edgedetect_mod(msg, context, call_next) if "edgedetect" in msg.content else call_next(msg, context)


def client_app(disks, poisoned):
    app = ClientApp(mods=[votes_or_weights])

    @app.train()
    def train(msg, context):
        client, server_round = context.node_config["partition-id"], msg.content["config"]["server-round"]
        with np.load(disks / f"{client}.npz") as own:  # this client's data, which never leave it
            X, y, classes = torch.from_numpy(own["X"]), torch.from_numpy(own["y"]), int(own["classes"])
        net = network(X.shape[1], classes)
        before = msg.content["arrays"].to_torch_state_dict()
        net.load_state_dict(before)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        draw = torch.Generator().manual_seed(100 * server_round + client)  # by the round: an interrupted training ends the same
        for rows in torch.randperm(len(X), generator=draw).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X[rows]), y[rows]).backward()
            optimizer.step()
        after = net.state_dict()
        if client == poisoned:
            after = {name: before[name] - 5 * (value - before[name]) for name, value in after.items()}
        content = {"arrays": ArrayRecord(after), "metrics": MetricRecord({"num-examples": len(X)})}
        return Message(RecordDict(content), reply_to=msg)

    return app


# ---- the server: it has rows to measure by, and no others -------------------------------------------------------------------------------


def server_app(X, y, classes, told):
    app = ServerApp()

    def measured(server_round, arrays):
        net = network(X.shape[1], classes)
        net.load_state_dict(arrays.to_torch_state_dict())
        with torch.no_grad():
            found = net(torch.from_numpy(X)).argmax(dim=1).numpy()
        f1 = f1_score(y, found, average="macro", labels=np.unique(y), zero_division=0)
        return MetricRecord({"f1": float(f1), "accuracy": float((found == y).mean())})

    @app.main()
    def main(grid, context):
        start = ArrayRecord(network(X.shape[1], classes).state_dict())
        everybody = {"min_train_nodes": CLIENTS, "min_available_nodes": CLIENTS}
        average = FedAvg(fraction_evaluate=0.0, **everybody)
        told["FedAvg"] = average.start(grid, start, num_rounds=ROUNDS, evaluate_fn=measured)
        # Add checkpoint="round.safetensors" and kill the process at any time: the same command goes on where it was.
        votes = EdgeDetectStrategy(max_clients=CLIENTS, server_lr=0.02, modulus_bits=2048)
        told["votes"] = votes.start(grid, start, num_rounds=ROUNDS, evaluate_fn=measured)

    return app


# ---- the data, and who has which --------------------------------------------------------------------------------------------------------


def traffic():
    """Features (n, columns), one-hot or logarithms, and kinds of traffic."""
    path = Path(os.environ.get("COUNTERPOISE_DATA", "")) / NAME / FILES[NAME]
    if not path.is_file():
        sys.exit(f"{path} is not there: set COUNTERPOISE_DATA to a folder that holds {NAME}/{FILES[NAME]}.")
    data = load(NAME)
    kinds, y = np.unique(data.frame[data.target].to_numpy().astype(str), return_inverse=True)
    frame = data.frame.drop(data.target)
    names = [name for name in frame.columns if frame[name].dtype == pl.String]
    numbers = frame.drop(names).to_numpy().astype(np.float64)
    numbers = np.sign(numbers) * np.log1p(np.abs(numbers))
    named = [frame.select(names).to_dummies().to_numpy()] if names else []
    return np.concatenate([numbers, *named], axis=1).astype(np.float32), y.astype(np.int64), kinds


if __name__ == "__main__":
    X, y, kinds = traffic()
    draw = np.random.default_rng(0)
    test, train = np.split(draw.permutation(len(X)), [HELD_OUT])
    X = (X - X[train].mean(axis=0)) / np.maximum(X[train].std(axis=0), 1e-6)
    owner = np.zeros(len(train), dtype=int)
    for kind in range(len(kinds)):  # each kind has its own shares
        rows = np.flatnonzero(y[train] == kind)
        owner[rows] = draw.choice(CLIENTS, len(rows), p=draw.dirichlet([0.5] * CLIENTS))
    sizes = np.bincount(owner, minlength=CLIENTS)
    poisoned = int(sizes.argmax())
    print(
        f"{CLIENTS} clients with {sizes.min():,} to {sizes.max():,} connections; number {poisoned}, with the most, is poisoned.", flush=True
    )

    told = {}
    with tempfile.TemporaryDirectory() as folder:
        for client in range(CLIENTS):
            own = train[owner == client]
            np.savez(Path(folder) / f"{client}.npz", X=X[own], y=y[own], classes=len(kinds))
        run_simulation(
            server_app(X[test], y[test], len(kinds), told),
            client_app(Path(folder), poisoned),
            num_supernodes=CLIENTS,
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {"log_to_driver": False, "include_dashboard": False},
            },
        )

    print("\nmacro F1   FedAvg   votes")
    for at in range(1, ROUNDS + 1):
        reached = [told[name].evaluate_metrics_serverapp[at]["f1"] for name in ("FedAvg", "votes")]
        print(f"round {at:<3}  {reached[0]:6.3f}  {reached[1]:6.3f}")
    last = told["votes"].evaluate_metrics_serverapp[ROUNDS]
    d = sum(array.numpy().size for array in told["votes"].arrays.values())
    size = told["votes"].train_metrics_clientapp[1]["bytes-per-client"]
    print(f"\nvotes: macro F1 {last['f1']:.3f}, accuracy {last['accuracy']:.1%}")
    print(f"upload of a client: {4 * d:,} bytes of weights in the open, {size:,} bytes of encrypted votes")
