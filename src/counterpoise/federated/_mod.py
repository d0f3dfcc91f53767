"""The client's part of EdgeDetect (arXiv:2604.14663) as a Flower mod: the update stays, its encrypted signs leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from counterpoise._errors import bad_input
from counterpoise._extras import require
from counterpoise._seeding import seed_integer
from counterpoise.gradients import median_binarize

from ._paillier import PaillierAggregator, PaillierKeyHolder
from ._records import DECRYPT, KEY, RECORD, ROWS, TRAIN, Instructions, Receipt, bytes_of, rows_record, votes_in

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
else:
    app = require("flwr.app", "federated", "Federated training")
    ConfigRecord, Message, RecordDict = app.ConfigRecord, app.Message, app.RecordDict

__all__ = ["edgedetect_mod"]

PRIVATE = "edgedetect.key"  # in the state of the node that holds the key
JOBS = "edgedetect-jobs"  # in the node's configuration: processes for encryption and decryption


def edgedetect_mod(msg: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Replace what a client has trained by its votes, packed and encrypted: for ``ClientApp(mods=[edgedetect_mod])``.

    The app trains as for FedAvg: it gets weights as an ArrayRecord and replies with the trained ones, under the same names. The mod takes
    the difference, binarizes it (:func:`counterpoise.gradients.median_binarize`), encrypts the signs with the key of this round's
    message, and sends ciphertexts in place of the weights; metrics pass as they are, so a client should not put into them what the server
    must not see. While the app trains, the powers that encryption needs are computed in a thread.

    On the one node that the server asks for it, the mod also makes a key pair and decrypts one total of each round
    (:class:`PaillierKeyHolder`). The private key is in that node's ``context.state``, which never leaves the node.

    Parameters
    ----------
    msg : flwr.app.Message
        From :class:`EdgeDetectStrategy`. Evaluation and queries pass untouched.
    context : flwr.app.Context
        ``node_config["edgedetect-jobs"]`` is the number of processes for powers and decryption, 1 if it is missing.
    call_next : callable
        The rest of the app. It must come last in the list of mods if others change the weights.

    Returns
    -------
    flwr.app.Message

    Raises
    ------
    InputError
        If a training message is not from :class:`EdgeDetectStrategy` (then the update is not sent at all), the key is too short, the app's
        reply has other arrays than it got, or the update has a value that is not finite; the message names client and tensor. Flower
        reports it to the server as a failed client.
    """
    if msg.metadata.message_type.partition(".")[0] != "train":
        return call_next(msg, context)
    if RECORD not in msg.content:
        bad_input("message", "training instructions of another strategy", "those of EdgeDetectStrategy", "The update has not been sent.")
    instructions = Instructions.from_record(msg.content.config_records[RECORD])
    if instructions.stage == KEY:
        return Message(_new_key(instructions, context), reply_to=msg)
    if instructions.stage == DECRYPT:
        return Message(_decrypted(instructions, msg.content, context), reply_to=msg)
    if instructions.stage != TRAIN:
        bad_input(f"{RECORD}.stage", instructions.stage, f"one of {TRAIN}, {KEY}, {DECRYPT}")
    return _trained(instructions, msg, context, call_next)


def client_name(context: Context) -> str:
    """The partition in a simulation, which is the same in every run, else the node."""
    return str(context.node_config.get("partition-id", context.node_id))


def _trained(instructions: Instructions, msg: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    name = client_name(context)
    del msg.content[RECORD]  # the app sees a message as from FedAvg
    before = _weights(msg.content, instructions.names, f"client {name}, message")
    sizes = sum(tensor.numel() for tensor in before.values())
    jobs = int(context.node_config.get(JOBS, 1))
    aggregator = None
    if instructions.modulus:
        aggregator = PaillierAggregator(_public_key(instructions), instructions.codec, jobs=jobs, insecure=instructions.insecure)
    with ThreadPoolExecutor(1) as thread:
        powers = None if aggregator is None else thread.submit(aggregator.precompute, aggregator.codec.blocks(sizes))
        reply = call_next(msg, context)
        if powers is not None:
            powers.result()
    if reply.has_error():
        return reply
    after = _weights(reply.content, instructions.names, f"client {name}, reply")
    update = _difference(before, after, name)
    ties = torch.Generator().manual_seed(seed_integer(instructions.seed, "ties", instructions.server_round, name))
    signs = median_binarize(update, instructions.threshold, instructions.ties, ties)  # type: ignore[arg-type]
    if aggregator is None:
        rows, key = np.packbits(signs.numpy() > 0)[None], ""
    else:
        votes = aggregator.encrypt(signs)
        rows, key = votes.rows, votes.fingerprint
    content = RecordDict(dict(reply.content.metric_records))
    content[RECORD] = Receipt(instructions.server_round, instructions.token, key, len(signs)).record()
    content[ROWS] = rows_record(rows)
    return Message(content, reply_to=msg)


def _weights(content: RecordDict, names: tuple[str, ...], where: str) -> dict[str, Tensor]:
    """Those tensors of a message's only ArrayRecord that are voted on."""
    records: list[ArrayRecord] = list(content.array_records.values())
    if len(records) != 1 or not set(names) <= set(records[0]):
        found = f"{len(records)} ArrayRecords" if len(records) != 1 else f"arrays {list(records[0])}"
        bad_input(where, found, f"one ArrayRecord with {', '.join(names)}", "Reply with the state of the model, under the names it had.")
    return {name: torch.from_numpy(records[0][name].numpy()) for name in names}


def _difference(before: Mapping[str, Tensor], after: Mapping[str, Tensor], client: str) -> list[Tensor]:
    """New minus old, in single precision at least."""
    update = []
    for name, old in before.items():
        new = after[name]
        if new.shape != old.shape or not new.is_floating_point():
            bad_input(f"client {client}, {name}", f"{new.dtype} of shape {tuple(new.shape)}", f"{old.dtype} of shape {tuple(old.shape)}")
        exact = torch.promote_types(old.dtype, torch.float32)
        update.append(new.to(exact) - old.to(exact))
        if not bool(torch.isfinite(update[-1]).all()):
            bad_input(f"client {client}, {name}", "nan or inf", "finite weights", "Its training diverged; it does not vote in this round.")
    return update


# ---- the node that holds the key --------------------------------------------------------------------------------------------------------


def _new_key(instructions: Instructions, context: Context) -> RecordDict:
    """A new key pair; the private part stays in the node's state, the modulus is the answer."""
    holder = PaillierKeyHolder(instructions.codec, insecure=instructions.insecure)
    _keep(context, holder)
    return RecordDict({RECORD: ConfigRecord({"modulus": bytes_of(holder.public_key.n), "token": instructions.token})})


def _decrypted(instructions: Instructions, content: RecordDict, context: Context) -> RecordDict:
    from phe import paillier

    if PRIVATE not in context.state:
        bad_input("message", "a total to decrypt", "a node that was asked for a key before", "The server has asked the wrong node.")
    kept: Any = context.state.config_records[PRIVATE]
    p, q = (int.from_bytes(kept[part], "big") for part in ("p", "q"))
    private = paillier.PaillierPrivateKey(paillier.PaillierPublicKey(p * q), p, q)
    jobs = int(context.node_config.get(JOBS, 1))
    holder = PaillierKeyHolder(instructions.codec, private, jobs=jobs, insecure=instructions.insecure)
    holder.last_round = None if kept["round"] < 0 else kept["round"]
    # The key is this node's own: a total for another one cannot be decrypted, whatever the server says.
    if instructions.modulus != bytes_of(p * q):
        bad_input("message", "a total under another key", "one under this node's key")
    total = votes_in(content, instructions, holder.fingerprint, instructions.clients)
    votes = holder.decrypt(total, instructions.server_round)
    _keep(context, holder)
    receipt = Receipt(instructions.server_round, instructions.token, holder.fingerprint, len(votes))
    return RecordDict({RECORD: receipt.record(), ROWS: rows_record(votes.numpy())})


def _keep(context: Context, holder: PaillierKeyHolder) -> None:
    private = holder._private_key
    last = -1 if holder.last_round is None else holder.last_round
    context.state[PRIVATE] = ConfigRecord({"p": bytes_of(private.p), "q": bytes_of(private.q), "round": last})


def _public_key(instructions: Instructions) -> Any:
    paillier = require("phe.paillier", "he", "Encryption of votes")
    return paillier.PaillierPublicKey(int.from_bytes(instructions.modulus, "big"))
