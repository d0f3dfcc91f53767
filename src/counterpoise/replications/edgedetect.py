"""EdgeDetect: one-bit votes of clients around the median, under homomorphic encryption (arXiv:2604.14663).

The paper says that the signs of an update around its median, encrypted, cut the upload of a round from 450 to 14 MB (32 times) and train an
intrusion detector as well as centralized training, also with poisoned clients. No code was released; the operator is taken word for word
from the same author's arXiv:2604.16606. Re-tested here

- by arithmetic: whether packed, encrypted votes add up exactly, and what they weigh on the wire. *Element by element, as described, a bit
  becomes a ciphertext of 4,096 bits*; packing is ours;
- on NSL-KDD (the training file's 20 %, five kinds of traffic, 11 rows of the rarest): ten clients with classes split by a Dirichlet
  distribution of 0.5, a network of 64 and 32 units, one local epoch of SGD with momentum in each of 40 rounds, 6,000 rows held out.
  The step of a vote is chosen by macro F1 on a fifth of the training rows;
- on the balanced sample of CIC-IDS2017 (16 classes, five of them with fewer than 100 rows), the paper's data set, with the same federation;
- against a client that sends -5 times its update, and against the threshold 0 of signSGD, which is what the median competes with.

The votes of the learning runs are added in the clear: encryption is exact, which is tested, and one run through Flower's strategy with
encryption must end with the same weights. FedAvg is not tuned; it takes the mean weighted by rows. What this cannot say: speed and energy
on the paper's hardware, and the paper's own sampling of CIC-IDS2017, of which this is a case-control sample.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval

from ._data import load_from
from ._types import Claim, Finding, Replication, Verdict
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

SLUG = "edgedetect"

# ---- the federation
NSL, CIC = "nsl-kdd", "cic-ids2017-sample"
CLIENTS, DIRICHLET, ROUNDS = 10, 0.5, 40
HELD_OUT, VALIDATION = 6000, 0.2
UNITS, BATCH, RATE, MOMENTUM = (64, 32), 64, 0.05, 0.9
STEPS = (4e-3, 1e-2, 2e-2, 4e-2)  # of a unanimous vote, in the first round; a hundredth of it in the last
RATES = (0.05, 0.02, 0.01)  # of centralized training, falling along half a cosine
POISON = -5.0  # times its update, of the client with most rows

# ---- criteria
WORSE, MUCH_WORSE, LEVEL = -0.03, -0.08, 0.90  # macro F1 of the vote minus FedAvg's: its mean, its interval
CENTRAL = -0.02  # of the vote minus centralized training's, "equal"
ROBUST = 0.3  # of the poisoned vote minus poisoned FedAvg's
BETTER_THAN_ZERO = 0.01  # of the median minus the threshold 0
COSINE = 0.83  # of the vote with the mean update; the paper has 0.87 +- 0.04
SMALLER = 31.0  # bytes of float32 over bytes of votes; the paper has 450 / 14 MB

SUMS = ((3, 2048), (10, 2048), (50, 2048), (10, 3072))  # clients and bits of the key whose packed sums are compared
COORDINATES = 2000
FLOWER_ROUNDS = 3

SEEDS, QUICK_SEEDS = tuple(range(5)), (0, 1)
QUICK_ROUNDS, QUICK_ROWS, QUICK_BITS, QUICK_STEPS = 3, 3000, 512, (2e-2,)

FEDAVG, MEDIAN, ZERO, CENTRALIZED = "FedAvg", "median vote", "zero vote", "centralized"
POISONED_AVG, POISONED = "FedAvg, poisoned", "median vote, poisoned"
NESTEROV, FEEDBACK, UNTUNED = "median vote, Nesterov 0.9", "median vote, error feedback", "median vote, step 4e-3"
TUNED = {MEDIAN: STEPS, ZERO: STEPS, CENTRALIZED: RATES}
NSL_ARMS = (FEDAVG, MEDIAN, ZERO, POISONED_AVG, POISONED, CENTRALIZED, NESTEROV, FEEDBACK, UNTUNED)
CIC_ARMS = (FEDAVG, MEDIAN, CENTRALIZED)

CLAIMS = (
    Claim(
        "exact",
        "The server adds encrypted votes and learns their sum, exactly.",
        "Packed under Paillier, totals of "
        + ", ".join(f"{clients} clients ({bits} bits)" for clients, bits in SUMS)
        + f" equal the integer sums of {COORDINATES:,} votes each in every coordinate.",
    ),
    Claim(
        "wire",
        "With encryption, an upload is 32 times smaller than float32 (450 to 14 MB).",
        f"Bytes of float32 over bytes of ciphertexts, ten clients and 2,048 bits, is at least {SMALLER:g}; judged for the encryption "
        "element by element that the paper describes, and for our packing.",
    ),
    Claim(
        "preserved",
        "Votes cost no accuracy against averaging the updates.",
        f"NSL-KDD, macro F1 of the median vote minus FedAvg's over seeds: mean above {WORSE:g}, {LEVEL:.0%} interval above {MUCH_WORSE:g}. "
        "Not replicated if the mean is not; undecided if only the interval is not.",
    ),
    Claim(
        "poisoned",
        "Votes withstand poisoned clients.",
        f"NSL-KDD, the client with most rows sends {POISON:g} times its update: macro F1 of the vote minus FedAvg's is above {ROBUST:g} "
        "(95 % interval).",
    ),
    Claim(
        "importance",
        "The median as threshold keeps what is important in an update.",
        f"NSL-KDD, macro F1 of the median vote minus that of the vote with threshold 0 (signSGD) is above {BETTER_THAN_ZERO:g} "
        "(95 % interval); each with the step that suits it.",
    ),
    Claim(
        "cosine",
        "The vote points where the mean update does: cosine 0.87 +- 0.04.",
        f"NSL-KDD, mean over rounds, 95 % interval over seeds above {COSINE:g}.",
    ),
    Claim(
        "centralized",
        "On CIC-IDS2017, the federation reaches the macro F1 of centralized training (97.9 %).",
        f"CIC-IDS2017 sample of 16 classes, macro F1 of the median vote minus that of centralized training is above {CENTRAL:g} (95 % "
        "interval).",
    ),
    Claim(
        "flower",
        "The encrypted training through Flower is the one that was tested.",
        "Same weights, bit for bit, as with votes in the clear in one process.",
    ),
    Claim("step", "What the step, momentum and error feedback are worth."),
    Claim("accuracy", "What accuracy says about the same models."),
)

Array = npt.NDArray[np.float32]


# ---- data -------------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def table(name: str, folder: str | None) -> tuple[Array, npt.NDArray[np.int64]]:
    """Features, categories one-hot and the rest as sign(x) log(1 + |x|), and classes in order of their names."""
    import polars as pl

    dataset = load_from(folder, name)
    y = np.unique(dataset.frame[dataset.target].to_numpy().astype(str), return_inverse=True)[1]
    frame = dataset.frame.drop(dataset.target)
    if name == CIC:  # ports and protocol numbers are names
        frame = frame.with_columns(pl.col("Protocol").cast(pl.String))
    names = [column for column in frame.columns if frame[column].dtype == pl.String]
    numbers = frame.drop(names).to_numpy().astype(np.float64)
    parts = [np.sign(numbers) * np.log1p(np.abs(numbers)), frame.select(names).to_dummies().to_numpy()]
    return np.concatenate(parts, axis=1).astype(np.float32), y.astype(np.int64)


class Federation:
    """Training rows of ten clients, rows to choose steps by, and rows held out; all of them standardized by the training rows."""

    def __init__(self, name: str, seed: int, folder: str | None, rows: int | None, tuning: bool) -> None:
        from sklearn.model_selection import train_test_split

        X, y = table(name, folder)
        self.classes = int(y.max()) + 1
        if rows is not None:  # a smoke run
            kept = generator(seed, SLUG, name, "rows").permutation(len(X))[:rows]
            X, y = X[kept], y[kept]
        # Stratified where every class has two rows; with fewer, at random.
        held = min(HELD_OUT, len(X) // 4)
        train, test = _split(train_test_split, y, held, seed_integer(seed, SLUG, name, "held out"))
        if tuning:
            own, other = _split(train_test_split, y[train], round(VALIDATION * len(train)), seed_integer(seed, SLUG, name, "validation"))
            train, test = train[own], train[other]
        mean, scale = X[train].mean(axis=0), X[train].std(axis=0)
        X = (X - mean) / np.where(scale > 0, scale, 1).astype(np.float32)
        self.X, self.y, self.test_X, self.test_y = X[train], y[train], X[test], y[test]
        self.members = self._clients(seed, name)
        self.sizes = np.array([len(own) for own in self.members], dtype=np.float64)

    def _clients(self, seed: int, name: str) -> list[npt.NDArray[np.int64]]:
        """Rows of each client: every class is split by shares of its own."""
        draw = generator(seed, SLUG, name, "clients")
        owner = np.zeros(len(self.y), dtype=np.int64)
        for k in range(self.classes):
            rows = np.flatnonzero(self.y == k)
            owner[rows] = draw.choice(CLIENTS, len(rows), p=draw.dirichlet([DIRICHLET] * CLIENTS))
        return [np.flatnonzero(owner == client) for client in range(CLIENTS)]


def _split(
    split: Callable[..., Any], y: npt.NDArray[np.int64], held: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    stratify = y if np.bincount(y)[np.unique(y)].min() >= 2 else None
    train, test = split(np.arange(len(y)), test_size=held, random_state=seed, stratify=stratify)
    return train, test


# ---- a network, and training it ---------------------------------------------------------------------------------------------------------


class Network:
    """A perceptron with its parameters in one vector: 200 local epochs a minute on one core, in NumPy."""

    def __init__(self, inputs: int, classes: int) -> None:
        sizes = [inputs, *UNITS, classes]
        self.shapes = [shape for a, b in pairwise(sizes) for shape in ((a, b), (b,))]
        self.d = sum(math.prod(shape) for shape in self.shapes)

    def initial(self, seed: int) -> Array:
        """Uniform within the inverse square root of the inputs, as torch's linear layers are."""
        draw = generator(seed, SLUG, "network")
        bound = [1 / math.sqrt(self.shapes[2 * (i // 2)][0]) for i in range(len(self.shapes))]
        parts = [draw.uniform(-b, b, math.prod(shape)) for b, shape in zip(bound, self.shapes, strict=True)]
        return np.concatenate(parts).astype(np.float32)

    def views(self, w: Array) -> list[Array]:
        parts, start = [], 0
        for shape in self.shapes:
            size = math.prod(shape)
            parts.append(w[start : start + size].reshape(shape))
            start += size
        return parts

    def epoch(self, w: Array, X: Array, y: npt.NDArray[np.int64], order: npt.NDArray[np.int64], lr: float = RATE) -> Array:
        """Weights after one epoch of SGD from ``w``, whose values are left alone."""
        w = w.copy()
        v = np.zeros_like(w)
        gradient = np.empty_like(w)
        weights, slots = self.views(w), self.views(gradient)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            self._gradient(weights, slots, X[rows], y[rows])
            v *= MOMENTUM
            v += gradient
            w -= np.float32(lr) * v
        return w

    def _gradient(self, weights: list[Array], slots: list[Array], x: Array, y: npt.NDArray[np.int64]) -> None:
        """Of the mean cross-entropy, into ``slots``."""
        kept = [x]
        for layer in range(0, len(weights), 2):
            x = x @ weights[layer] + weights[layer + 1]
            if layer < len(weights) - 2:
                np.maximum(x, 0, out=x)
            kept.append(x)
        x = np.exp(x - x.max(axis=1, keepdims=True))
        x /= x.sum(axis=1, keepdims=True)
        x[np.arange(len(y)), y] -= 1
        x /= len(y)
        for layer in range(len(weights) - 2, -1, -2):
            below = kept[layer // 2]
            np.matmul(below.T, x, out=slots[layer])
            x.sum(axis=0, out=slots[layer + 1])
            if layer:
                x = (x @ weights[layer].T) * (below > 0)

    def predict(self, w: Array, x: Array) -> npt.NDArray[np.int64]:
        weights = self.views(w)
        for layer in range(0, len(weights), 2):
            x = x @ weights[layer] + weights[layer + 1]
            if layer < len(weights) - 2:
                x = np.maximum(x, 0)
        classes: npt.NDArray[np.int64] = x.argmax(axis=1)
        return classes


def scores(truth: npt.NDArray[np.int64], found: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Macro F1 over the classes that occur, and accuracy."""
    from sklearn.metrics import f1_score

    return float(f1_score(truth, found, average="macro", labels=np.unique(truth), zero_division=0)), float((truth == found).mean())


def epoch_order(seed: int, client: int, server_round: int, rows: int) -> npt.NDArray[np.int64]:
    return generator(seed, SLUG, "order", client, server_round).permutation(rows)


def rate(step: float, server_round: int, rounds: int) -> float:
    """Half a cosine from ``step`` to a hundredth of it, as in the strategy."""
    low = 0.01 * step
    return low + 0.5 * (step - low) * (1 + math.cos(math.pi * (server_round - 1) / max(rounds - 1, 1)))


def signs_of(
    update: list[Array], threshold: str, seed: int, server_round: int, client: int, residuals: dict[int, list[Tensor]] | None = None
) -> npt.NDArray[np.int8]:
    """The votes of a client, layer by layer, with the ties that the Flower mod draws; with error feedback if there are residuals."""
    import torch

    from counterpoise.federated._feedback import vote_with_feedback
    from counterpoise.gradients import median_binarize

    ties = torch.Generator().manual_seed(seed_integer(seed, "ties", server_round, str(client)))
    parts = [torch.from_numpy(np.ascontiguousarray(part)) for part in update]
    if residuals is None:
        return median_binarize(parts, threshold, generator=ties).numpy()  # type: ignore[arg-type]
    before = residuals.get(client, [torch.zeros_like(part) for part in parts])
    signs, residuals[client] = vote_with_feedback(parts, before, threshold, "random", ties)
    return signs.numpy()


def train(
    arm: str, data: str, seed: int, rounds: int, step: float = 0.0, rows: int | None = None, folder: str | None = None, tuning: bool = False
) -> dict[str, Any]:
    """One training; macro F1 after each round, and what the end is like. ``step`` is that of votes, or the rate of centralized training."""
    federation = Federation(data, seed, folder, rows, tuning)
    network = Network(federation.X.shape[1], federation.classes)
    w = network.initial(seed)
    told: dict[str, list[float]] = {"cosine": [], "agreement": [], "median": []}
    curve = []
    memory = Memory(network.d)
    for at in range(1, rounds + 1):
        with np.errstate(all="ignore"):  # a poisoned average may leave the range of numbers
            if arm == CENTRALIZED:
                order = epoch_order(seed, 0, at, len(federation.X))
                w = network.epoch(w, federation.X, federation.y, order, rate(step, at, rounds))
            else:
                updates = client_updates(network, federation, w, seed, at)
                if arm in (POISONED, POISONED_AVG):
                    updates[federation.sizes.argmax()] *= np.float32(POISON)
                if not np.isfinite(updates).all():
                    w = np.full_like(w, np.nan)
                else:
                    w = server_step(arm, w, updates, network, federation, seed, at, rate(step, at, rounds), memory, told)
            if not np.isfinite(w).all():
                break
            f1, accuracy = scores(federation.test_y, network.predict(w, federation.test_X))
        curve.append(round(f1, 5))
    if len(curve) < rounds:  # nobody uses such a model: every row is of the most frequent class
        f1, accuracy = scores(federation.test_y, np.full_like(federation.test_y, np.bincount(federation.y).argmax()))
        curve += [round(f1, 5)] * (rounds - len(curve))
    means = {name: float(np.mean(values)) if values else None for name, values in told.items()}
    digest = hashlib.blake2b(w.tobytes(), digest_size=16).hexdigest()
    return {"f1": f1, "accuracy": accuracy, "curve": curve, "d": network.d, "weights": digest} | means


class Memory:
    """What the server's momentum and the clients' error feedback (for which see the strategy) keep from round to round."""

    def __init__(self, d: int) -> None:
        self.velocity = np.zeros(d)
        self.residuals: dict[int, list[Tensor]] = {}  # by client


def server_step(
    arm: str, w: Array, updates: Array, network: Network, federation: Federation, seed: int, at: int, lr: float, memory: Memory,
    told: dict[str, list[float]],
) -> Array:  # fmt: skip
    """New weights from all updates (K, d)."""
    mean: npt.NDArray[np.float64] = (federation.sizes / federation.sizes.sum()) @ updates
    moved: Array
    if arm in (FEDAVG, POISONED_AVG):
        moved = (w + mean).astype(np.float32)
        return moved

    def votes_of(threshold: str, residuals: dict[int, list[Tensor]] | None = None) -> npt.NDArray[np.int8]:
        return np.stack([signs_of(network.views(row), threshold, seed, at, client, residuals) for client, row in enumerate(updates)])

    votes = votes_of("zero" if arm == ZERO else "median", memory.residuals if arm == FEEDBACK else None)
    momentum = 0.9 if arm == NESTEROV else 0.0
    vote = votes.sum(axis=0, dtype=np.int32).astype(np.float64) / CLIENTS
    memory.velocity = momentum * memory.velocity + vote
    told["cosine"].append(float(vote @ mean / (np.linalg.norm(vote) * np.linalg.norm(mean))))
    if arm == MEDIAN:
        told["agreement"].append(float((votes == votes_of("zero")).mean()))
        told["median"].append(float((np.abs(np.median(updates, axis=1)) / np.abs(updates).mean(axis=1)).mean()))
    moved = (w.astype(np.float64) + lr * (vote + momentum * memory.velocity)).astype(np.float32)
    return moved


def client_updates(network: Network, federation: Federation, w: Array, seed: int, server_round: int) -> Array:
    """New weights minus ``w`` of every client, (K, d); a client without rows has zeros."""
    updates = np.zeros((CLIENTS, len(w)), dtype=np.float32)
    for client, own in enumerate(federation.members):
        order = epoch_order(seed, client, server_round, len(own))
        updates[client] = network.epoch(w, federation.X[own], federation.y[own], order) - w
    return updates


# ---- encryption -------------------------------------------------------------------------------------------------------------------------


def packed_sum(clients: int, bits: int, coordinates: int, insecure: bool) -> dict[str, Any]:
    """Whether encrypted totals are the sums, and the bytes of one client's upload."""
    import torch

    from counterpoise.federated import PaillierAggregator, PaillierKeyHolder, SlotCodec

    codec = SlotCodec(clients, bits)
    holder = PaillierKeyHolder(codec, insecure=insecure)
    server = PaillierAggregator(holder.public_key, codec, insecure=insecure)
    votes = torch.from_numpy(generator(clients, SLUG, "votes").choice(np.array([-1, 1], dtype=np.int8), (clients, coordinates)))
    total = holder.decrypt(server.add([server.encrypt(own) for own in votes]), server_round=1)
    return {"differ": int((total != votes.sum(dim=0, dtype=torch.int32)).sum()), "slots": codec.slots, "slot bits": codec.bits}


def through_flower(
    seed: int, rounds: int, bits: int, insecure: bool, rows: int | None, folder: str | None, step: float, error_feedback: bool = False
) -> dict[str, Any]:
    """The median vote on NSL-KDD with Flower's strategy and mod, encrypted: a digest of the weights, and what the server received."""
    from flwr.app import Array as FlowerArray
    from flwr.app import ArrayRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    from counterpoise.federated import EdgeDetectStrategy, edgedetect_mod
    from counterpoise.federated._local_grid import LocalGrid

    federation = Federation(NSL, seed, folder, rows, tuning=False)
    network = Network(federation.X.shape[1], federation.classes)
    names = [f"{kind}{layer}" for layer in range(len(UNITS) + 1) for kind in ("weight", "bias")]

    def record(w: Array) -> ArrayRecord:
        return ArrayRecord({name: FlowerArray(np.ascontiguousarray(part)) for name, part in zip(names, network.views(w), strict=True)})

    def vector(arrays: ArrayRecord) -> Array:
        return np.concatenate([arrays[name].numpy().ravel() for name in names])

    app = ClientApp(mods=[edgedetect_mod])

    @app.train()
    def _(msg: Message, context: Context) -> Message:
        client, at = int(context.node_config["partition-id"]), int(msg.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        own = federation.members[client]
        w = network.epoch(
            vector(msg.content.array_records["arrays"]), federation.X[own], federation.y[own], epoch_order(seed, client, at, len(own))
        )
        return Message(RecordDict({"arrays": record(w)}), reply_to=msg)

    strategy = EdgeDetectStrategy(CLIENTS, server_lr=step, seed=seed, modulus_bits=bits, error_feedback=error_feedback, insecure=insecure)
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.ERROR)  # progress is told by the runner of replications
    try:
        result = strategy.start(LocalGrid(app, CLIENTS), record(network.initial(seed)), num_rounds=rounds)
    finally:
        log.setLevel(level)
    digest = hashlib.blake2b(vector(result.arrays).tobytes(), digest_size=16).hexdigest()
    bytes_each = [int(row["bytes-per-client"]) for row in result.train_metrics_clientapp.values()]  # type: ignore[arg-type]
    return {"weights": digest, "bytes": bytes_each[0], "refused": len(strategy.refused)}


# ---- the whole --------------------------------------------------------------------------------------------------------------------------

Rows = Sequence[Mapping[str, Any]]
Interval = tuple[float, float, float]


def run(
    *,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    data_dir: str | Path | None = None,
    work: Work | None = None,
) -> Replication:
    """Sums, one run through Flower, and both federations."""
    chosen = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    rounds = QUICK_ROUNDS if quick else ROUNDS
    common: dict[str, Any] = {
        "rounds": rounds,
        "rows": QUICK_ROWS if quick else None,
        "folder": None if data_dir is None else str(data_dir),
    }
    sums = work.map(
        packed_sum,
        [
            {"clients": clients, "bits": QUICK_BITS if quick else bits, "coordinates": COORDINATES, "insecure": quick}
            for clients, bits in (SUMS[:2] if quick else SUMS)
        ],
    )
    steps = _chosen_steps(work, chosen, common, quick)
    learned = work.map(
        train,
        [
            {"arm": arm, "data": data, "seed": seed, "step": _step_of(arm, data, seed, steps)} | common
            for data, arms in ((NSL, NSL_ARMS), (CIC, CIC_ARMS))
            for seed in chosen
            for arm in arms
        ],
    )
    step = steps[NSL, MEDIAN, chosen[0]]
    flower_rounds = 2 if quick else FLOWER_ROUNDS
    short = common | {"rounds": flower_rounds}
    (here,) = work.map(train, [{"arm": MEDIAN, "data": NSL, "seed": chosen[0], "step": step} | short])
    security = {"bits": QUICK_BITS if quick else 2048, "insecure": quick}
    (flower,) = work.map(through_flower, [{"seed": chosen[0], "step": step} | security | short])
    sizes = _sizes(learned[0]["d"])
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=tuple(_findings(sums, learned, sizes, here, flower)),
        notes=_notes(steps),
        tables={
            "Upload of one client, NSL-KDD network": sizes,
            "Learning, mean over seeds": [_row(learned, data, arm) for data, arms in ((NSL, NSL_ARMS), (CIC, CIC_ARMS)) for arm in arms],
            "Macro F1 by seed": [
                {"data": data, "arm": arm}
                | {f"seed {seed}": value for seed, value in zip(chosen, _values(learned, data, arm), strict=True)}
                for data, arms in ((NSL, NSL_ARMS), (CIC, CIC_ARMS))
                for arm in arms
            ],
            "Steps chosen": [{"data": data, "arm": arm, "seed": seed, "step": step} for (data, arm, seed), step in steps.items()],
        },
        figure=_figure(learned, sizes),
        seeds=chosen,
        quick=quick,
    )


def _chosen_steps(work: Work, seeds: Sequence[int], common: Mapping[str, Any], quick: bool) -> dict[tuple[str, str, int], float]:
    """By macro F1 on validation rows of the same seed: (data, arm, seed) -> step."""
    tried = {NSL: (MEDIAN, ZERO, CENTRALIZED), CIC: (MEDIAN, CENTRALIZED)}
    tasks = [
        {"arm": arm, "data": data, "seed": seed, "step": step, "tuning": True} | dict(common)
        for data, arms in tried.items()
        for arm in arms
        for seed in seeds
        for step in (QUICK_STEPS if quick else TUNED[arm])
    ]
    rows = work.map(train, tasks)
    steps = {}
    for data, arms in tried.items():
        for arm in arms:
            for seed in seeds:
                own = rows_where(rows, arm=arm, data=data, seed=seed)
                steps[data, arm, seed] = float(max(own, key=lambda row: row["f1"])["step"])
    return steps


def _step_of(arm: str, data: str, seed: int, steps: Mapping[tuple[str, str, int], float]) -> float:
    fixed = {UNTUNED: 4e-3, NESTEROV: 2e-2, FEDAVG: 0.0, POISONED_AVG: 0.0}
    return fixed[arm] if arm in fixed else steps[data, MEDIAN if arm in (POISONED, FEEDBACK) else arm, seed]


def _sizes(d: int) -> list[dict[str, Any]]:
    """Bytes of one client's upload of d coordinates, ten clients, 2,048 bits."""
    from counterpoise.federated import SlotCodec

    ciphertext = SlotCodec(CLIENTS).row_bytes()
    forms = {
        "float32": 4 * d,
        "one bit, in the clear": -(-d // 8),
        "a ciphertext per vote": d * ciphertext,
        **{f"packed, {clients} clients": SlotCodec(clients).nbytes(d) for clients in (3, CLIENTS, 50, 100, 1000)},
    }
    return [
        {"form": form, "bytes": size, "bits per coordinate": 8 * size / d, "float32 over it": 4 * d / size} for form, size in forms.items()
    ]


# ---- what was found ---------------------------------------------------------------------------------------------------------------------


def _findings(sums: Rows, learned: Rows, sizes: Rows, here: Mapping[str, Any], flower: Mapping[str, Any]) -> list[Finding]:
    claim = {claim.key: claim for claim in CLAIMS}
    differ = sum(row["differ"] for row in sums)
    of = {row["form"]: row["float32 over it"] for row in sizes}
    packed = f"packed, {CLIENTS} clients"
    found = [
        claim["exact"].holds(
            differ == 0,
            f"{differ} of {len(sums) * COORDINATES:,} packed, encrypted totals differ from the sums of the votes.",
            estimate=float(differ),
        )
    ]
    for form, name in (("a ciphertext per vote", "as described"), (packed, "packed")):
        ratio = of[form]
        text = f"Claimed: 32 times smaller than float32. One bit in the clear: {of['one bit, in the clear']:.0f} times smaller. " + (
            f"Encrypted vote by vote: {ratio:.4f}x, {1 / ratio:.0f} times LARGER." if ratio < 1 else f"Packed and encrypted: {ratio:.1f}x."
        )
        found.append(claim["wire"].holds(ratio >= SMALLER, text, estimate=ratio, unit="x", name=name))
    nsl = rows_where(learned, data=NSL)
    found += [
        _preserved(claim["preserved"], nsl),
        claim["poisoned"].above(
            mean_interval(paired(nsl, "f1", POISONED, POISONED_AVG)),
            ROBUST,
            f"One client of {CLIENTS} sends {POISON:g} times its update: macro F1 {_mean(learned, NSL, POISONED):.3f} by vote, "
            f"{_mean(learned, NSL, POISONED_AVG):.3f} by FedAvg.",
            unit="macro F1",
        ),
        claim["importance"].above(
            mean_interval(paired(nsl, "f1", MEDIAN, ZERO)),
            BETTER_THAN_ZERO,
            f"Macro F1 with the median {_mean(learned, NSL, MEDIAN):.3f}, with threshold 0 {_mean(learned, NSL, ZERO):.3f}; on average "
            f"over rounds {_told(learned, 'agreement'):.1%} of the votes are the same, and the median is {_told(learned, 'median'):.1%} of "
            "the mean size of an entry away from 0.",
            unit="macro F1",
        ),
        claim["cosine"].above(
            mean_interval([row["cosine"] for row in rows_where(nsl, arm=MEDIAN)]),
            COSINE,
            f"Cosine of vote and mean update, mean over rounds: {_told(learned, 'cosine'):.2f} (the paper: 0.87).",
        ),
        claim["centralized"].above(
            mean_interval(paired(rows_where(learned, data=CIC), "f1", MEDIAN, CENTRALIZED)),
            CENTRAL,
            f"CIC-IDS2017 sample, macro F1: median vote {_mean(learned, CIC, MEDIAN):.3f}, FedAvg {_mean(learned, CIC, FEDAVG):.3f}, "
            f"centralized {_mean(learned, CIC, CENTRALIZED):.3f}.",
            unit="macro F1",
        ),
        claim["flower"].holds(
            flower["weights"] == here["weights"] and flower["refused"] == 0,
            f"Weights after encrypted rounds through Flower {'are' if flower['weights'] == here['weights'] else 'are not'} those of votes "
            f"in the clear, bit for bit; {flower['bytes']:,} bytes of votes per client and round.",
        ),
    ]
    for arm in (UNTUNED, NESTEROV, FEEDBACK):
        interval = mean_interval(paired(nsl, "f1", arm, MEDIAN))
        text = f"{arm}: macro F1 {_mean(learned, NSL, arm):.3f}, {_in(interval)} against the median vote with a step that was chosen."
        found.append(claim["step"].reported(interval, text, name=arm, unit="macro F1"))
    for arm in (MEDIAN, UNTUNED):
        accuracy = mean_interval(_values(learned, NSL, arm, "accuracy"))
        text = f"{arm}: accuracy {accuracy[0]:.1%} at macro F1 {_mean(learned, NSL, arm):.3f}."
        found.append(claim["accuracy"].reported(accuracy, text, name=arm))
    return found


def _preserved(claim: Claim, nsl: Rows) -> Finding:
    mean, low, high = mean_interval(paired(nsl, "f1", MEDIAN, FEDAVG), LEVEL)
    text = (
        f"Macro F1 of the median vote minus FedAvg's: {_in((mean, low, high))}, {LEVEL:.0%} interval; "
        f"{_mean(nsl, NSL, MEDIAN):.3f} against {_mean(nsl, NSL, FEDAVG):.3f}."
    )
    verdict: Verdict = "not replicated" if mean <= WORSE else "replicated" if low > MUCH_WORSE else "undecided"
    return claim.judged(verdict, text, estimate=mean, low=low, high=high, unit="macro F1")


def _notes(steps: Mapping[tuple[str, str, int], float]) -> tuple[str, ...]:
    own = [step for (_, arm, _), step in steps.items() if arm in (MEDIAN, ZERO)]
    return (
        "What is saved by sending one bit is lost to encryption: a ciphertext has 4,096 bits. Packed, an encrypted vote takes 2 b bits for "
        "K < 2^b clients, 16 / b times less than float32: 4 for ten clients, 1.6 for a thousand. For models of millions of parameters use "
        "secure aggregation by masks.",
        "That votes withstand a poisoned client comes from the bound on what one client can add, not from the median; encryption works "
        "against it, since the server cannot see whether a ciphertext holds a vote or a larger number.",
        f"Rare classes decide macro F1: of {HELD_OUT:,} rows held out, two or three are of the rarest. Accuracy hides all of it.",
        "The step of a vote has no natural size. It was chosen for each seed on validation rows; FedAvg was taken as it is. In "
        f"{sum(step == max(STEPS) for step in own)} of {len(own)} choices it was the largest that was tried: a larger one may be better.",
    )


def _values(learned: Rows, data: str, arm: str, value: str = "f1") -> list[float]:
    return [float(row[value]) for row in sorted(rows_where(learned, data=data, arm=arm), key=lambda row: row["seed"])]


def _mean(learned: Rows, data: str, arm: str, value: str = "f1") -> float:
    return float(np.mean(_values(learned, data, arm, value)))


def _told(learned: Rows, value: str) -> float:
    return _mean(learned, NSL, MEDIAN, value)


def _in(interval: Interval) -> str:
    mean, low, high = interval
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def _row(learned: Rows, data: str, arm: str) -> dict[str, Any]:
    values = _values(learned, data, arm)
    return {
        "data": data,
        "arm": arm,
        "macro F1": float(np.mean(values)),
        "lowest": min(values),
        "highest": max(values),
        "accuracy": _mean(learned, data, arm, "accuracy"),
    }


# ---- the picture ------------------------------------------------------------------------------------------------------------------------


def _figure(learned: Rows, sizes: Rows) -> Figure:
    from counterpoise.report import _plots

    with _plots.style():
        height = 300
        fig = _plots.figure(_plots.WIDTH, height)
        _draw_rounds(_plots.axes(fig, 40, 48, 216, 206), learned)
        _draw_sizes(_plots.axes(fig, 556, 48, 112, 206), sizes)
        for x, text in ((8, "NSL-KDD, macro F1 after each round"), (404, "Upload per client and round, bytes")):
            fig.text(x / _plots.WIDTH, 1 - 12 / height, text, va="top", weight="bold")
        return fig


def _draw_rounds(ax: Axes, learned: Rows) -> None:
    from counterpoise.report import _plots

    ax.spines["left"].set_visible(True)
    looks = {
        MEDIAN: (_plots.BLUE, "-", "median vote"),
        FEDAVG: (_plots.INK, "-", "FedAvg"),
        POISONED: (_plots.BLUE, ":", "vote, poisoned"),
        POISONED_AVG: (_plots.RED, ":", "FedAvg, poisoned"),
    }
    ends = []
    for arm, (color, line, word) in looks.items():
        curve = np.mean([row["curve"] for row in rows_where(learned, data=NSL, arm=arm)], axis=0)
        ax.plot(np.arange(1, len(curve) + 1), curve, color=color, ls=line, lw=2)
        ends.append((float(curve[-1]), len(curve), word, color))
    last = -np.inf
    for value, rounds, word, color in sorted(ends):
        last = max(value, last + 0.08)
        ax.annotate(
            word, (rounds, last), (8, 0), textcoords="offset points", va="center", color=color, weight="bold", annotation_clip=False
        )
    ax.set_ylim(0, 1)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("round")


def _draw_sizes(ax: Axes, sizes: Rows) -> None:
    from counterpoise.report import _plots

    by_form = {row["form"]: row["bytes"] for row in sizes}
    shown = ("float32", "one bit, in the clear", "a ciphertext per vote", f"packed, {CLIENTS} clients")
    _plots.plain_rows(ax, len(shown))
    ax.set_xscale("log")
    for row, form in enumerate(shown):
        size = by_form[form]
        color = _plots.RED if size > by_form["float32"] else _plots.BLUE if form.startswith("packed") else _plots.GRAY
        ax.barh(row, size, height=0.55, color=color)
        ax.annotate(form, (0, row), (-8, 0), xycoords=ax.get_yaxis_transform(), textcoords="offset points", ha="right", va="center")
        ax.annotate(f"{size:,}", (size, row), (6, 0), textcoords="offset points", va="center", color=_plots.MUTED)
    ax.set_xlim(3e2, 1e7)
    ax.set_xticks([1e3, 1e5, 1e7], ["1 kB", "100 kB", "10 MB"])
    ax.minorticks_off()
