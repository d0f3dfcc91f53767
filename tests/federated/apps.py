"""Small federations: the app of a client, and what it is started with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from counterpoise.federated import EdgeDetectStrategy, edgedetect_mod

__all__ = ["TINY", "app_of", "arrays", "drawn", "strategy"]

TINY = {"modulus_bits": 256, "insecure": True}  # small keys: the protocol is the same

Weights = dict[str, npt.NDArray]
Train = Callable[[Weights, int, int], Weights]


def arrays() -> ArrayRecord:
    """Two tensors that are voted on, 19 coordinates, a running mean and a counter."""
    weights = {
        "layer.weight": np.zeros((3, 4), np.float32),
        "layer.bias": np.zeros(7, np.float32),
        "norm.running_mean": np.full(2, 5.0, np.float32),
        "norm.num_batches_tracked": np.array(3),
    }
    return ArrayRecord({name: Array(value) for name, value in weights.items()})


def drawn(weights: Weights, client: int, server_round: int) -> Weights:
    """A training that depends on the weights, the client and the round alone."""
    draw = np.random.default_rng([client, server_round])
    return {name: value + (0.1 * value + draw.normal(size=value.shape)).astype(value.dtype) for name, value in weights.items()}


def app_of(train: Train = drawn, mods: Sequence[Callable] = (edgedetect_mod,)) -> ClientApp:
    app = ClientApp(mods=list(mods))

    @app.train()
    def _(msg: Message, context: Context) -> Message:
        assert set(msg.content) == {"arrays", "config"}  # what FedAvg sends, and nothing else
        weights = {name: array.numpy() for name, array in msg.content["arrays"].items()}
        client = context.node_config["partition-id"]
        trained = train(weights, client, msg.content["config"]["server-round"])
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(np.asarray(value)) for name, value in trained.items()}),
                "metrics": MetricRecord({"num-examples": 10 * (client + 1), "loss": float(client)}),
            }
        )
        return Message(content, reply_to=msg)

    @app.evaluate()
    def _(msg: Message, context: Context) -> Message:
        total = float(sum(array.numpy().sum() for array in msg.content["arrays"].values()))
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1, "total": total})}), reply_to=msg)

    return app


def strategy(max_clients: int = 5, **options) -> EdgeDetectStrategy:
    return EdgeDetectStrategy(max_clients, **(TINY | options))
