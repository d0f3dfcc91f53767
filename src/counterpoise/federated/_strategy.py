r"""EdgeDetect (arXiv:2604.14663) as a Flower strategy: steps along the sum of encrypted one-bit votes.

What is unbalanced: a few clients - with much data, with long updates, poisoned - have most of a federated average. Every client gets one
vote per coordinate instead, and the server learns nothing but the sum of votes. With :math:`V = \frac{1}{K} \sum_k s_k` of round r,

.. math:: v \leftarrow \mu v + V , \qquad w \leftarrow w + \eta_r \, (V + \mu v) ,

Nesterov's momentum, and :math:`\eta_r` falling from ``server_lr`` to a hundredth of it along half a cosine.
"""

from __future__ import annotations

import logging
import math
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from counterpoise._errors import CounterpoiseError, InputError, bad_input, check_choice, check_range
from counterpoise._extras import require
from counterpoise._seeding import generator

from ._checkpoint import RoundState
from ._codec import SlotCodec
from ._paillier import FEWEST, EncryptedVotes, PaillierAggregator, check_key_size
from ._records import DECRYPT, KEY, MODEL, RECORD, ROWS, TRAIN, Instructions, Receipt, array_in, bytes_of, rows_record, votes_in

if TYPE_CHECKING:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Result, Strategy
else:
    app = require("flwr.app", "federated", "Federated training")
    Array, ArrayRecord, ConfigRecord, Message = app.Array, app.ArrayRecord, app.ConfigRecord, app.Message
    MetricRecord, RecordDict = app.MetricRecord, app.RecordDict
    Strategy = require("flwr.serverapp.strategy", "federated", "Federated training").Strategy

__all__ = ["EdgeDetectStrategy"]

LOG = logging.getLogger("flwr")  # Flower's own
FINAL = 0.01  # of server_lr, in the last round
BUFFERS = ("*running_mean", "*running_var", "*num_batches_tracked")
POLL = 0.2  # seconds between looks for nodes
EXAMPLES = "num-examples"  # Flower's key of the weights of metrics


class EdgeDetectStrategy(Strategy):
    r"""One vote per client and coordinate; the server sees their encrypted sum. Clients need :func:`edgedetect_mod`.

    **Who sees what.** The server is honest but curious, and does not collude with the key holder, one of the nodes. The server gets
    ciphertexts, adds them, and has the total decrypted by the key holder, which answers once in a round and for three clients or more. So
    no single update leaves its client in readable form; totals, metrics and, of course, the weights are seen.
    :class:`PaillierAggregator` has the assumptions in full. Nodes must be authenticated (Flower's TLS and node keys): what the strategy
    refuses by itself are messages that are malformed, of another key, round or node, answered twice or replayed.

    **What it does not do.** A poisoned client that keeps to the protocol has one vote like the others. One that does not can encrypt larger
    numbers than a vote: what makes a total impossible is noticed, and the round makes no step; what does not is not noticed. Who it was
    stays hidden - finding out would take totals of fewer clients, which is what encryption is there to prevent. After ``patience`` such
    rounds the training ends with an error, and whoever runs it has to decide which clients to leave out.

    **The key** is made once and kept by its holder; after a round that failed the same node is asked for it first, and has the same one.
    Where the holder is gone for good, another node makes a new key, which clients accept only if they have been told to
    (``trusted_key`` of :func:`edgedetect_mod`): by its fingerprint if it is known, or by "any".

    Parameters
    ----------
    max_clients : int
        Most clients in a round; slots are as wide as their count needs. If more nodes are there, as many are drawn.
    min_clients : int, default 3
        With fewer votes a round makes no step. At least 3 with encryption.
    min_available_nodes : int, optional
        Nodes to wait for before the first round. Default: ``max_clients``. Later rounds go on with those that are left.
    server_lr : float > 0, default 2e-2 (ours)
        Step :math:`\eta_1` for a unanimous vote. Votes have no unit: tune it, it is worth more than any other option.
    momentum : float in [0, 1), default 0 (ours)
        :math:`\mu`; the notes on the paper have 0.9, for which ``server_lr`` has to be about ten times smaller.
    aggregate : {"mean", "majority"}, default "mean"
        V is the mean of the votes, or the sign of their sum, 0 for as many votes for as against.
    threshold, ties : default "median", "random"
        How clients binarize: :func:`counterpoise.gradients.median_binarize`.
    keep : sequence of str, default names of running statistics
        Patterns of arrays that are not voted on and stay as they were. Arrays of integers never are. Models whose normalization has no
        running statistics (LayerNorm, GroupNorm) are the better choice.
    encrypt : bool, default True
        Without it votes are sent in the clear, one bit each: the server sees every client's.
    modulus_bits : int >= 2048, default 3072
        Of the key: 128 bits of security; the paper's 2048 have about 112.
    key_holder : int, optional
        Node that holds the key and does not train, such as a third party's. Default: the client with the smallest id, which also trains.
    error_feedback : bool, default False
        Clients add to an update what their earlier votes could not say, and keep that to themselves: with
        :math:`e \leftarrow \delta + e - c \, s` and c the mean of :math:`|\delta + e|` over each tensor, the vote s is that of
        :math:`\delta + e`. What happens to votes that are lost is in :func:`edgedetect_mod`. On NSL-KDD it
        did harm rather than good: macro F1 0.77 in place of 0.79.
    patience : int >= 1, default 5
        Rounds in a row without a step after which ``start`` gives up.
    evaluate : bool, default False
        Also ask all clients for an evaluation after each round, averaged by their "num-examples".
    seed : int, default 0
        Of clients drawn and of random ties.
    checkpoint : path, optional
        File for the last finished round. ``start`` goes on from there if it exists: see Notes.
    insecure : bool, default False
        Accept a modulus below 2048 bits, for tests.

    Attributes
    ----------
    refused : list of (round, node, reason)
        Messages that were not counted.

    Raises
    ------
    InputError
        If an option is out of its range, there is nothing to vote on, or a checkpoint is of another run.
    CounterpoiseError
        If too few nodes are there within the timeout, none can hold the key, or ``patience`` rounds in a row made no step; the message says
        why the last one did not. The checkpoint is kept: the same command goes on behind these rounds.
    MissingExtraError
        Without the packages of ``counterpoise[federated,he]``.

    Notes
    -----
    **After an interruption**, ``start`` with the same arguments continues behind the last finished round and ends with the same weights,
    bit for bit on a CPU, as if nothing had happened - if the clients' training depends on the weights, their data and the round
    (``msg.content["config"]["server-round"]``) alone. Sums of votes do not depend on the order of clients. Where fewer clients are drawn
    than there are, nodes must have the same ids as before, which those of a simulation do not. With ``error_feedback``, clients need a
    ``folder`` (:func:`edgedetect_mod`), since Flower forgets a node's state with the run. A key holder without one makes a new key.

    Metrics of a round: "clients" whose votes count, "failed", "refused", "server-lr", "bytes-per-client" (votes, on the wire), "stepped"
    (0 if there was no step); and the clients' own, averaged.

    Examples
    --------
    >>> strategy = EdgeDetectStrategy(max_clients=10, server_lr=0.01, checkpoint="round.safetensors")
    >>> strategy.codec
    SlotCodec(max_clients=10, modulus_bits=3072)
    """

    def __init__(
        self,
        max_clients: int,
        *,
        min_clients: int = FEWEST,
        min_available_nodes: int | None = None,
        server_lr: float = 2e-2,
        momentum: float = 0.0,
        aggregate: Literal["mean", "majority"] = "mean",
        threshold: Literal["median", "zero", "median_per_tensor"] = "median",
        ties: Literal["random", "positive"] = "random",
        keep: Sequence[str] = BUFFERS,
        encrypt: bool = True,
        modulus_bits: int = 3072,
        key_holder: int | None = None,
        error_feedback: bool = False,
        patience: int = 5,
        evaluate: bool = False,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        insecure: bool = False,
    ) -> None:
        check_range("max_clients", max_clients, low=1, integer=True)
        fewest = FEWEST if encrypt else 1
        check_range("min_clients", min_clients, low=fewest, high=max(max_clients, fewest), integer=True)
        if min_available_nodes is not None:
            check_range("min_available_nodes", min_available_nodes, low=min_clients, integer=True)
        check_range("server_lr", server_lr, low=0.0, open_low=True)
        check_range("momentum", momentum, low=0.0)
        if momentum >= 1:
            bad_input("momentum", momentum, "a number in [0, 1)")
        check_range("patience", patience, low=1, integer=True)
        check_choice("aggregate", aggregate, ("mean", "majority"))
        check_choice("threshold", threshold, ("median", "zero", "median_per_tensor"))
        check_choice("ties", ties, ("random", "positive"))
        self.codec = SlotCodec(max_clients, modulus_bits)
        if encrypt:
            require("phe", "he", "Encryption of votes")
            check_key_size(1 << (modulus_bits - 1), self.codec, insecure)
        self.min_clients = min_clients
        self.min_available_nodes = max_clients if min_available_nodes is None else min_available_nodes
        self.server_lr = float(server_lr)
        self.momentum = float(momentum)
        self.aggregate = aggregate
        self.threshold, self.ties = threshold, ties
        self.keep = tuple(keep)
        self.encrypt = encrypt
        self.key_holder = key_holder
        self.error_feedback = error_feedback
        self.patience = patience
        self.evaluate = evaluate
        self.seed = int(seed)
        self.checkpoint = None if checkpoint is None else Path(checkpoint)
        self.insecure = insecure
        self.refused: list[tuple[int, int, str]] = []
        self._grid: Grid | None = None
        self._timeout: float | None = None
        self._aggregator: PaillierAggregator | None = None
        self._holder: int | None = None
        self._holders: list[int] = []  # all of this training, the first one first
        self._ahead = 0  # of the rounds that the key holder counts, over several trainings
        self._stopped = 0  # rounds in a row without a step
        self._asked: dict[int, bytes] = {}  # node -> token of this round
        self._rounds: int | None = None
        self._before = 0  # rounds that were finished when this process started
        self._state: RoundState | None = None

    # ---- the whole training ---------------------------------------------------------------------------------------------------------

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Flower's ``Strategy.start``, behind the rounds that the checkpoint has finished; the result is that of all of them."""
        check_range("num_rounds", num_rounds, low=0, integer=True)
        self._rounds, self._timeout = num_rounds, timeout
        self._aggregator = self._holder = None
        self._holders, self._ahead, self._stopped = [], 0, 0
        self.refused.clear()
        state = self._begin(initial_arrays)
        self._before = state.server_round
        if self._before:
            LOG.info("Resuming behind round %s", self._before)

        def evaluated(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            at = server_round + self._before
            if evaluate_fn is None or at in state.metrics["server"]:
                return None
            found = evaluate_fn(at, arrays)
            if found is not None:
                state.metrics["server"][at] = dict(found)
                self._save()
            return None

        arrays = _record_of(state.weights)
        result = super().start(grid, arrays, num_rounds - self._before, timeout, train_config, evaluate_config, evaluated)
        result.arrays = _record_of(state.weights)
        for kind, history in (
            ("train", result.train_metrics_clientapp),
            ("evaluate", result.evaluate_metrics_clientapp),
            ("server", result.evaluate_metrics_serverapp),
        ):
            history.clear()
            history.update({at: MetricRecord(row) for at, row in sorted(state.metrics[kind].items())})
        return result

    def _begin(self, initial_arrays: ArrayRecord) -> RoundState:
        weights = {name: array.numpy() for name, array in initial_arrays.items()}
        names = self._voted(weights)
        if not sum(weights[name].size for name in names):
            bad_input("initial_arrays", list(weights), "at least one floating-point array that `keep` does not name")
        names_of = ("server_lr", "momentum", "aggregate", "threshold", "ties", "error_feedback", "seed", "min_clients")
        options = {name: getattr(self, name) for name in names_of}
        options |= {"max_clients": self.codec.max_clients, "num_rounds": self._rounds, "keep": list(self.keep)}
        state = RoundState.load(self.checkpoint) if self.checkpoint is not None else None
        if state is None:
            state = RoundState(0, weights, None, options, training=secrets.token_hex(16))
        else:
            state.check_same(options, weights, self.checkpoint or Path())
        self._state = state
        return state

    def _voted(self, weights: dict[str, npt.NDArray[Any]]) -> tuple[str, ...]:
        """Names of the arrays that are voted on."""
        return tuple(
            name
            for name, value in weights.items()
            if np.issubdtype(value.dtype, np.floating) and not any(fnmatchcase(name, pattern) for pattern in self.keep)
        )

    def summary(self) -> None:
        wire = f"Paillier, {self.codec.modulus_bits} bits, {self.codec.slots} votes in a ciphertext" if self.encrypt else "in the clear"
        LOG.info("\t├──> Votes: %s of %s to %s clients, %s", self.aggregate, self.min_clients, self.codec.max_clients, wire)
        LOG.info("\t└──> Step: %g, momentum %g", self.server_lr, self.momentum)

    # ---- a round: questions ---------------------------------------------------------------------------------------------------------

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        self._grid = grid
        if self._state is None:  # a loop of somebody else's, without start
            self._begin(arrays)
        at = server_round + self._before
        ids = self._nodes(grid, self.min_available_nodes if server_round == 1 else self.min_clients)
        if self.encrypt:
            ids = self._with_key(grid, ids, at)
        if len(ids) > self.codec.max_clients:
            chosen = generator(self.seed, "clients", at).choice(len(ids), self.codec.max_clients, replace=False)
            ids = [ids[i] for i in sorted(chosen)]
        config["server-round"] = at
        self._asked = {node: secrets.token_bytes(16) for node in ids}
        instructions = self._instructions(TRAIN, at)
        messages = []
        for node, token in self._asked.items():
            content = RecordDict({MODEL: arrays, "config": config, RECORD: replace(instructions, token=token).record()})
            messages.append(Message(content, dst_node_id=node, message_type="train"))
        return messages

    def _nodes(self, grid: Grid, wanted: int) -> list[int]:
        """Ids of all nodes, in order, once there are enough."""
        began = time.monotonic()
        extra = 1 if self.key_holder is not None else 0
        while len(ids := sorted(grid.get_node_ids())) < wanted + extra:
            if self._timeout is not None and time.monotonic() - began > self._timeout:
                raise CounterpoiseError(f"{len(ids)} nodes after {self._timeout:g} s; {wanted + extra} are needed.")
            time.sleep(POLL)
        return ids

    def _instructions(self, stage: str, at: int) -> Instructions:
        assert self._state is not None
        names = self._voted(self._state.weights)
        modulus = b"" if self._aggregator is None else bytes_of(self._aggregator.public_key.n)
        return Instructions(
            stage, at, secrets.token_bytes(16), self.codec.max_clients, self.codec.modulus_bits, self.insecure, modulus, names,
            self.threshold, self.ties, self.seed, self._d, training=self._state.training, error_feedback=self.error_feedback,
        )  # fmt: skip

    @property
    def _d(self) -> int:
        """Coordinates that are voted on."""
        assert self._state is not None
        return sum(self._state.weights[name].size for name in self._voted(self._state.weights))

    # ---- the key holder -------------------------------------------------------------------------------------------------------------

    def _with_key(self, grid: Grid, ids: list[int], at: int) -> list[int]:
        """The nodes that train; a key holder is found first if there is none, or it has left. Those that were it before come first."""
        if self._holder not in ids:
            self._aggregator, reason = None, ""
            before = [node for node in self._holders if node in ids]
            for node in [*before, *(node for node in ids if node not in before)] if self.key_holder is None else [self.key_holder]:
                try:
                    self._aggregator = self._ask_for_key(grid, node, at)
                except InputError as error:
                    LOG.warning("Node %s cannot hold the key: %s", node, error)
                    reason = str(error)
                    continue
                self._holder = node
                self._holders += [] if node in self._holders else [node]
                LOG.info("Node %s holds the key %s", node, self._aggregator.fingerprint)
                break
            if self._aggregator is None:
                asked = f"node {self.key_holder}" if self.key_holder is not None else f"{len(ids)} nodes"
                advice = "Clients need edgedetect_mod and counterpoise[he]."
                raise CounterpoiseError(f"No key: {asked} did not make one. {advice} The last: {reason}")
        return [node for node in ids if node != self.key_holder]

    def _ask_for_key(self, grid: Grid, node: int, at: int) -> PaillierAggregator:
        from phe import paillier

        instructions = self._instructions(KEY, at)
        content = self._ask(grid, node, RecordDict({RECORD: instructions.record()}))
        record = content.config_records.get(RECORD)
        modulus = None if record is None else record.get("modulus")
        if record is None or not isinstance(modulus, bytes):
            bad_input("key", "an answer without a modulus", "the modulus in bytes")
        if record.get("token") != instructions.token:
            bad_input("key", "an answer to another question", "one to this question", "A replay?")
        last = record.get("last_round")
        if type(last) is not int or not 0 <= last < 2**62:
            bad_input("key", f"last_round={last!r}", "the number of the last round that was decrypted, or 0")
        self._ahead = max(0, last - at + 1)  # another training before this one, or this round before an interruption
        return PaillierAggregator(paillier.PaillierPublicKey(int.from_bytes(modulus, "big")), self.codec, insecure=self.insecure)

    def _decrypt(self, total: EncryptedVotes, at: int) -> Tensor:
        """Sums of votes (d,), from the key holder."""
        assert self._grid is not None and self._holder is not None
        instructions = replace(self._instructions(DECRYPT, at + self._ahead), clients=total.clients)
        content = self._ask(self._grid, self._holder, RecordDict({RECORD: instructions.record(), ROWS: rows_record(total.rows)}))
        receipt = Receipt.from_record(content.config_records.get(RECORD, {}))
        votes = array_in(content)
        if (receipt.token, receipt.d) != (instructions.token, total.d) or votes.dtype != np.int32 or votes.shape != (total.d,):
            bad_input("totals", f"{votes.dtype} of shape {votes.shape}", f"int32 of shape ({total.d},), for this round")
        sums = votes.astype(np.int64)  # the smallest number of 32 bits has no absolute value
        if (np.abs(sums) > total.clients).any() or ((sums + total.clients) % 2).any():
            bad_input("totals", "sums that votes cannot have", f"sums of {total.clients} votes of -1 and +1")
        return torch.from_numpy(votes.copy())

    def _ask(self, grid: Grid, node: int, content: RecordDict) -> RecordDict:
        replies = list(grid.send_and_receive([Message(content, dst_node_id=node, message_type="train")], timeout=self._timeout))
        if len(replies) != 1 or replies[0].has_error() or replies[0].metadata.src_node_id != node:
            reason = _line(replies[0].error.reason) if replies and replies[0].has_error() else "no answer"
            raise InputError(f"node {node}: {reason}")
        return replies[0].content

    # ---- a round: answers -----------------------------------------------------------------------------------------------------------

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        assert self._state is not None
        at = server_round + self._before
        votes: dict[int, EncryptedVotes] = {}
        contents, failed, refused = [], 0, 0
        reason = ""  # of the last message that does not count
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                failed += 1
                reason = _line(reply.error.reason)
                LOG.warning("Round %s: node %s failed: %s", at, node, reason)
                continue
            try:
                votes[node] = self._accepted(reply, at, votes)
                contents.append(reply.content)
            except InputError as error:
                refused += 1
                reason = str(error)
                self.refused.append((at, node, str(error)))
                LOG.warning("Round %s: a message of node %s is refused: %s", at, node, error)
        clients = len(votes)
        size = next((one.nbytes for one in votes.values()), 0)
        self._asked = {}
        lr = self._rate(at)
        total = None
        if clients < self.min_clients:
            reason = f"{clients} votes; {self.min_clients} are needed." + (f" {reason}" if reason else "")
        else:
            try:
                total = self._total(list(votes.values()), at)
            except InputError as error:
                reason = f"the total was not decrypted: {error}"
        if total is None:
            LOG.warning("Round %s: no step: %s", at, reason)
            self._stopped += 1
            self._holder = None  # which may be why; the next round asks for the key again
        else:
            self._step(total, clients, lr)
            self._stopped = 0
        metrics = _averaged(contents)
        metrics |= {"clients": clients, "failed": failed, "refused": refused, "server-lr": lr, "bytes-per-client": size}
        metrics["stepped"] = int(total is not None)
        self._state.server_round = at
        self._state.metrics["train"][at] = metrics
        self._save()
        if self._stopped >= self.patience:
            raise CounterpoiseError(f"{self._stopped} rounds in a row made no step; why the last one, {at}, did not: {reason}")
        return (_record_of(self._state.weights) if total is not None else None), MetricRecord(metrics)

    def _accepted(self, reply: Message, at: int, votes: dict[int, EncryptedVotes]) -> EncryptedVotes:
        """The votes in a message; an InputError says why it is refused."""
        node = reply.metadata.src_node_id
        if node not in self._asked:
            bad_input("message", f"node {node}", "a node that was asked in this round")
        if node in votes:
            bad_input("message", f"a second answer of node {node}", "one in a round")
        receipt = Receipt.from_record(reply.content.config_records.get(RECORD, {}))
        if receipt.server_round != at or not secrets.compare_digest(receipt.token, self._asked[node]):
            bad_input("message", f"an answer for round {receipt.server_round}", f"one to this node's question of round {at}", "A replay?")
        if receipt.d != self._d:
            bad_input("message", f"{receipt.d} coordinates", f"the model's {self._d}")
        one = votes_in(reply.content, receipt, receipt.fingerprint, clients=1)
        if self._aggregator is None:
            if receipt.fingerprint or one.rows.dtype != np.uint8 or one.rows.shape != (1, -(-self._d // 8)):
                bad_input("message", f"{one.rows.dtype} of shape {one.rows.shape}", "one bit for each coordinate, not encrypted")
            return one
        self._aggregator.checked(one, "message")
        same = any(np.array_equal(one.rows, other.rows) for other in votes.values())
        if same or self._aggregator.seen(one):
            bad_input("message", "ciphertexts that were sent before", "fresh ones", "A replay?")
        return one

    def _total(self, votes: list[EncryptedVotes], at: int) -> Tensor:
        """Sums of votes (d,); an InputError if the key holder is gone or refuses."""
        if self._aggregator is None:
            bits = [torch.from_numpy(np.unpackbits(one.rows[0], count=self._d).astype(np.int32)) for one in votes]
            return 2 * torch.stack(bits).sum(dim=0, dtype=torch.int32) - len(bits)
        return self._decrypt(self._aggregator.add(votes), at)

    def _rate(self, at: int) -> float:
        if self._rounds is None or self._rounds < 2:
            return self.server_lr
        low = FINAL * self.server_lr
        return low + 0.5 * (self.server_lr - low) * (1 + math.cos(math.pi * (at - 1) / (self._rounds - 1)))

    def _step(self, total: Tensor, clients: int, lr: float) -> None:
        """Move the weights along the vote, in single precision at least."""
        state = self._state
        assert state is not None
        vote = total.double() / clients if self.aggregate == "mean" else total.double().sign()
        momentum = torch.zeros_like(vote) if state.momentum is None else torch.from_numpy(state.momentum)
        momentum = self.momentum * momentum + vote
        step = lr * (vote + self.momentum * momentum)
        names = self._voted(state.weights)
        parts = torch.split(step, [state.weights[name].size for name in names])
        for name, part in zip(names, parts, strict=True):
            old = state.weights[name]
            state.weights[name] = (old.astype(np.float64) + part.numpy().reshape(old.shape)).astype(old.dtype)
        state.momentum = momentum.numpy()

    def _save(self) -> None:
        if self.checkpoint is not None and self._state is not None:
            self._state.save(self.checkpoint)

    # ---- evaluation by clients ------------------------------------------------------------------------------------------------------

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        if not self.evaluate:
            return []
        config["server-round"] = server_round + self._before
        content = RecordDict({MODEL: arrays, "config": config})
        ids = [node for node in sorted(grid.get_node_ids()) if node != self.key_holder]
        return [Message(content, dst_node_id=node, message_type="evaluate") for node in ids]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        assert self._state is not None
        metrics = _averaged([reply.content for reply in replies if not reply.has_error()])
        if not metrics:
            return None
        self._state.metrics["evaluate"][server_round + self._before] = metrics
        self._save()
        return MetricRecord(metrics)


def _line(reason: str | None) -> str:
    """What a node says about its failure, as one line of a log: it is a stranger's text."""
    words = " ".join(str(reason).split())
    return words if len(words) <= 500 else words[:497] + "..."


def _averaged(contents: list[RecordDict]) -> dict[str, Any]:
    """The clients' own metrics, weighted by their number of examples as FedAvg does; none unless all have one that is a number of such."""
    records: list[Any] = [next(iter(content.metric_records.values())) for content in contents if len(content.metric_records) == 1]
    if not contents or len(records) < len(contents) or not all(EXAMPLES in record for record in records):
        return {}
    weights = [record[EXAMPLES] for record in records]
    if not all(isinstance(w, int | float) and math.isfinite(w) and w >= 0 for w in weights):
        return {}
    common = set.intersection(*(set(record) for record in records)) - {EXAMPLES}
    scalars = sorted(name for name in common if not any(isinstance(record[name], list) for record in records))
    whole = sum(weights) or 1
    return {name: sum(w * record[name] for w, record in zip(weights, records, strict=True)) / whole for name in scalars}


def _record_of(weights: dict[str, npt.NDArray[Any]]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.array(value, order="C")) for name, value in weights.items()})
