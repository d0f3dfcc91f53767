"""Sums of one-bit votes under encryption: packed, one by one with ``phe``, and Flower's secure aggregation by masks.

Ten clients vote on 100,000 coordinates with a key of 2,048 bits. Packed: every client encrypts its whole upload (powers included, none
computed beforehand), the server adds, the key holder decrypts, and every total is compared with the integer sum. One by one: the same three
operations of ``phe`` on a sample of the coordinates, scaled to all of them, in turn with ours. Everything on one core. Flower's SecAgg+
runs through Flower's own workflow and mod, in one process; its bytes, messages and seconds stand beside ours, without a bar: it is another
protocol, with other assumptions.

    python benchmarks/paillier.py                        # about five minutes on one idle core
    python benchmarks/paillier.py --d 2000 --clients 3 --runs 1 --sample 20 --part packed
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _ending import finish

THROUGHPUT = 200.0  # bar: values per second, ours over phe's one by one, of encryption, decryption and the whole; median of the runs
WIRE = 2.1  # bar: bits on the wire for each coordinate, over the bits of a slot
BITS = 2048


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    found = call()
    return found, time.perf_counter() - began


def votes_of(clients: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], dtype=np.int8), (clients, d))


# -- packed, and one by one ---------------------------------------------------------------------------------------------------------------


def packed(holder: Any, codec: Any, votes: np.ndarray) -> dict[str, Any]:
    """Seconds of one client's encryption (mean), of adding and of decrypting all clients', and whether the sums are right."""
    from counterpoise.federated import PaillierAggregator

    uploads, encrypting, online = [], 0.0, 0.0
    for own in votes:
        client = PaillierAggregator(holder.public_key, codec)
        _, powers = timed(lambda client=client: client.precompute(codec.blocks(votes.shape[1])))
        upload, rest = timed(lambda client=client, own=own: client.encrypt(own))
        uploads.append(upload)
        encrypting += powers + rest
        online += rest
    server = PaillierAggregator(holder.public_key, codec)
    total, adding = timed(lambda: server.add(uploads))
    sums, decrypting = timed(lambda: holder.decrypt(total, server_round=1))
    return {
        "encrypt": encrypting / len(votes),
        "encrypt, powers ready": online / len(votes),
        "add": adding,
        "decrypt": decrypting,
        "bytes": uploads[0].nbytes,
        "differ": int((sums.numpy() != votes.sum(axis=0, dtype=np.int32)).sum()),
    }


def one_by_one(holder: Any, votes: np.ndarray, sample: int) -> dict[str, Any]:
    """The same for a sample of the coordinates, each number a ciphertext of phe; seconds are scaled to all coordinates."""
    d = votes.shape[1]
    columns = np.linspace(0, d - 1, sample).astype(int)
    few = votes[:, columns]
    mine, encrypting = timed(lambda: [holder.public_key.encrypt(int(vote)) for vote in few[0]])
    others = [[holder.public_key.encrypt(int(vote)) for vote in own] for own in few[1:]]

    def add() -> list[Any]:
        totals = mine
        for own in others:
            totals = [total + vote for total, vote in zip(totals, own, strict=True)]
        return totals

    totals, adding = timed(add)
    key = holder._private_key  # the same key, in phe's own hands
    sums, decrypting = timed(lambda: [key.decrypt(total) for total in totals])
    scale = d / sample
    return {
        "encrypt": encrypting * scale,
        "add": adding * scale,
        "decrypt": decrypting * scale,
        "bytes": d * 2 * BITS // 8,
        "differ": int((np.array(sums) != few.sum(axis=0, dtype=np.int32)).sum()),
    }


def compare(d: int, clients: int, runs: int, sample: int) -> tuple[list[dict[str, Any]], list[str]]:
    from counterpoise.federated import PaillierKeyHolder, SlotCodec

    codec = SlotCodec(clients, BITS)
    found = []
    for run in range(runs):
        holder = PaillierKeyHolder(codec)
        votes = votes_of(clients, d, run)
        row = {"part": "packed", "run": run, "d": d, "clients": clients, "sample": sample}
        row |= {"ours": packed(holder, codec, votes), "phe": one_by_one(holder, votes, sample)}
        found.append(row)
        print(f"  run {run + 1}: encryption {row['ours']['encrypt']:.2f} s packed, {row['phe']['encrypt']:.0f} s one by one", flush=True)

    def median(who: str, what: str) -> float:
        return float(np.median([row[who][what] for row in found]))

    def whole(row: dict[str, Any], who: str) -> float:
        return float(row[who]["encrypt"] + row[who]["add"] + row[who]["decrypt"])

    ratios = {what: float(np.median([row["phe"][what] / row["ours"][what] for row in found])) for what in ("encrypt", "add", "decrypt")}
    ratios["all three"] = float(np.median([whole(row, "phe") / whole(row, "ours") for row in found]))
    size = found[0]["ours"]["bytes"]
    print(
        f"\n{clients} clients, {d:,} coordinates, {BITS} bits, one core; medians of {runs} runs, one by one scaled from {sample} values\n"
    )
    print("| seconds | packed | phe, one by one | ratio |\n|---|---|---|---|")
    print(f"| a client's encryption | {median('ours', 'encrypt'):.2f} | {median('phe', 'encrypt'):,.0f} | {ratios['encrypt']:.0f} |")
    print(f"| the same, powers ready | {median('ours', 'encrypt, powers ready'):.4f} | | |")
    print(f"| adding all clients' | {median('ours', 'add'):.3f} | {median('phe', 'add'):,.1f} | {ratios['add']:.0f} |")
    print(f"| decrypting the total | {median('ours', 'decrypt'):.2f} | {median('phe', 'decrypt'):,.0f} | {ratios['decrypt']:.0f} |")
    print(f"| all three | | | {ratios['all three']:.0f} |")
    print(f"| bytes of an upload | {size:,} | {found[0]['phe']['bytes']:,} | {found[0]['phe']['bytes'] / size:.0f} |")
    wire = 8 * size / d
    differ = sum(row[who]["differ"] for row in found for who in ("ours", "phe"))
    print(f"\n{wire:.2f} bits per coordinate, {wire / codec.bits:.3f} times the {codec.bits} bits of a slot; {differ} totals differ\n")
    missed = [f"{what}: {ratios[what]:.0f} < {THROUGHPUT:g}" for what in ("encrypt", "decrypt", "all three") if ratios[what] < THROUGHPUT]
    missed += [f"{wire / codec.bits:.3f} bits on the wire for a bit of a slot > {WIRE}"] if wire > WIRE * codec.bits else []
    missed += [f"{differ} totals are not the sums"] if differ else []
    return found, missed


# -- whole rounds through Flower, on the same grid ----------------------------------------------------------------------------------------


def edgedetect_round(votes: np.ndarray) -> dict[str, Any]:
    """A round of EdgeDetectStrategy whose clients' updates are the votes."""
    from flwr.app import Array, ArrayRecord, Message, RecordDict
    from flwr.clientapp import ClientApp

    from counterpoise.federated import EdgeDetectStrategy, edgedetect_mod
    from counterpoise.federated._local_grid import LocalGrid

    app = ClientApp(mods=[edgedetect_mod])

    @app.train()
    def train(msg: Any, context: Any) -> Any:
        arrays = ArrayRecord({"w": Array(votes[context.node_config["partition-id"]].astype(np.float32))})
        return Message(RecordDict({"arrays": arrays}), reply_to=msg)

    grid = counting(LocalGrid(app, len(votes)))
    strategy = EdgeDetectStrategy(len(votes), server_lr=1.0, threshold="zero", modulus_bits=BITS)
    start = ArrayRecord({"w": Array(np.zeros(votes.shape[1], np.float32))})
    result, seconds = timed(lambda: strategy.start(grid, start, num_rounds=1))
    sums = np.rint(result.arrays["w"].numpy() * len(votes)).astype(np.int32)
    return measured(grid, seconds, int((sums != votes.sum(axis=0, dtype=np.int32)).sum()))


def secaggplus_round(votes: np.ndarray) -> dict[str, Any]:
    """A round of Flower's SecAgg+, in its older API, with every client's key shared among all."""
    from flwr.app import Context, RecordDict
    from flwr.client import NumPyClient
    from flwr.client.mod import secaggplus_mod
    from flwr.clientapp import ClientApp
    from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.server import LegacyContext, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow

    from counterpoise.federated._local_grid import LocalGrid

    class Client(NumPyClient):
        def __init__(self, own: np.ndarray) -> None:
            self.own = own

        def fit(self, parameters: Any, config: Any) -> Any:
            return [self.own.astype(np.float32)], 1, {}

    app = ClientApp(client_fn=lambda context: client_of(context), mods=[secaggplus_mod])

    def client_of(context: Any) -> Any:
        return Client(votes[context.node_config["partition-id"]]).to_client()

    ends: list[Any] = []

    class Average(FedAvg):
        def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
            ends.append(parameters_to_ndarrays(results[0][1].parameters)[0])
            return super().aggregate_fit(server_round, results, failures)

    grid = counting(LocalGrid(app, len(votes)))
    strategy = Average(
        fraction_evaluate=0.0,
        min_fit_clients=len(votes),
        min_available_clients=len(votes),
        initial_parameters=ndarrays_to_parameters([np.zeros(votes.shape[1], np.float32)]),
    )
    context = LegacyContext(Context(1, 1, {}, RecordDict(), {}), ServerConfig(num_rounds=1), strategy)
    workflow = SecAggPlusWorkflow(1.0, 0.6, max_weight=1.0, clipping_range=1.0)
    _, seconds = timed(lambda: DefaultWorkflow(fit_workflow=workflow)(grid, context))
    sums = np.rint(np.asarray(ends[0]) * len(votes)).astype(np.int32)
    return measured(grid, seconds, int((sums != votes.sum(axis=0, dtype=np.int32)).sum()))


def counting(grid: Any) -> Any:
    """Counts how often the server sends something to its clients and waits."""
    grid.exchanges = 0
    original = grid.send_and_receive

    def counted(messages: Any, *, timeout: float | None = None) -> Any:
        found = list(messages)
        grid.exchanges += bool(found)
        return original(found, timeout=timeout)

    grid.send_and_receive = counted
    return grid


def measured(grid: Any, seconds: float, differ: int) -> dict[str, Any]:
    clients = len(grid.contexts)
    return {
        "seconds": seconds,
        "received": grid.received / clients,
        "sent": grid.sent / clients,
        "exchanges": grid.exchanges,
        "differ": differ,
    }


def compare_rounds(d: int, clients: int, runs: int) -> tuple[list[dict[str, Any]], list[str]]:
    logging.disable(logging.WARNING)
    kinds = {"EdgeDetect, packed Paillier": edgedetect_round, "SecAgg+ (masks), Flower": secaggplus_round}
    found = []
    for run in range(runs):
        votes = votes_of(clients, d, run)
        for kind, one in kinds.items():
            found.append({"part": "rounds", "run": run, "d": d, "clients": clients, "kind": kind} | one(votes))
            print(f"  run {run + 1}, {kind}: {found[-1]['seconds']:.1f} s", flush=True)
    print(f"\nA round through Flower, {clients} clients in one process and on one core, {d:,} coordinates; medians of {runs} runs\n")
    print("| | from a client, bytes | to a client, bytes | exchanges | seconds |\n|---|---|---|---|---|")
    for kind in kinds:
        rows = [row for row in found if row["kind"] == kind]
        received, sent, seconds = (float(np.median([row[what] for row in rows])) for what in ("received", "sent", "seconds"))
        print(f"| {kind} | {received:,.0f} | {sent:,.0f} | {rows[0]['exchanges']} | {seconds:.1f} |")
    print()
    return found, [f"{row['kind']}, run {row['run'] + 1}: {row['differ']} sums differ" for row in found if row["differ"]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("packed", "rounds", "both"), default="both")
    parser.add_argument("--d", type=int, default=100_000)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sample", type=int, default=200, help="values that phe encrypts one by one for each client")
    options = parser.parse_args()
    found: list[dict[str, Any]] = []
    missed: list[str] = []
    if options.part in ("packed", "both"):
        rows, wrong = compare(options.d, options.clients, options.runs, options.sample)
        found, missed = found + rows, missed + wrong
    if options.part in ("rounds", "both"):
        rows, wrong = compare_rounds(options.d, options.clients, options.runs)
        found, missed = found + rows, missed + wrong
    return finish("paillier", found, missed)


if __name__ == "__main__":
    sys.exit(main())
