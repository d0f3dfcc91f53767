"""The client's part of EdgeDetect (arXiv:2604.14663) as a Flower mod: the update stays, its encrypted signs leave."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor

from counterpoise._errors import InputError, bad_input
from counterpoise._extras import require
from counterpoise._seeding import seed_integer
from counterpoise.gradients import median_binarize

from ._checkpoint import write_whole
from ._feedback import Residual, vote_with_feedback
from ._paillier import PaillierAggregator, PaillierKeyHolder, key_of
from ._records import DECRYPT, KEY, RECORD, ROWS, TRAIN, Instructions, Receipt, bytes_of, rows_record, votes_in

if TYPE_CHECKING:
    from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
else:
    app = require("flwr.app", "federated", "Federated training")
    ConfigRecord, Error, Message, RecordDict = app.ConfigRecord, app.Error, app.Message, app.RecordDict

__all__ = ["edgedetect_mod"]

LOG = logging.getLogger("flwr")  # Flower's own
PRIVATE = "edgedetect.key"  # in the state of the node that holds the key
TRUSTED = "edgedetect.trusted"  # the fingerprint of the first key, in the state of a client
RESIDUAL = "edgedetect.residual"
JOBS = "edgedetect-jobs"  # in the node's configuration: processes for encryption and decryption


def edgedetect_mod(
    msg: Message,
    context: Context,
    call_next: Callable[[Message, Context], Message],
    *,
    trusted_key: str | Collection[str] = "first",
    folder: str | Path | None = None,
) -> Message:
    """Replace what a client has trained by its votes, packed and encrypted: for ``ClientApp(mods=[edgedetect_mod])``.

    With options it is ``mods=[functools.partial(edgedetect_mod, trusted_key="0f3c...")]``.

    The app trains as for FedAvg: it gets weights as an ArrayRecord and replies with the trained ones, under the same names. The mod takes
    the difference, binarizes it (:func:`counterpoise.gradients.median_binarize`), encrypts the signs with the key of this round's
    message, and sends ciphertexts in place of the weights; metrics pass as they are, so a client should not put into them what the server
    must not see. While the app trains, the powers that encryption needs are computed in a thread.

    On the one node that the server asks for it, the mod also makes a key pair and decrypts one total of each round
    (:class:`PaillierKeyHolder`). Asked again, it gives the same key. The private key is in that node's ``context.state``, which never
    leaves the node, or in its ``folder``.

    With ``error_feedback`` of the strategy, the client adds to its update what its earlier votes could not say. That residual never
    leaves the client. It moves on with every vote that is sent: a client that is not asked, or fails, keeps it as it is. A vote that is
    lost, refused, or of a round without a step counts as said: the weights have not followed it, so the client's next update says it again.

    Parameters
    ----------
    msg : flwr.app.Message
        From :class:`EdgeDetectStrategy`. Evaluation and queries pass untouched.
    context : flwr.app.Context
        ``node_config["edgedetect-jobs"]`` is the number of processes for powers and decryption, 1 if it is missing.
    call_next : callable
        The rest of the app. It must come last in the list of mods if others change the weights.
    trusted_key : str or collection of str, default "first"
        Keys that this client encrypts for, by their fingerprint (:class:`PaillierKeyHolder` has it, and the key holder's log), which has to
        come from the key holder itself: **this alone protects against a server that hands out a key of its own.** "first": the key of the
        client's first round, for as long as Flower keeps the node's state, which is one run. "any": whatever the server says. Votes in
        the clear count as another key.
    folder : path, optional
        A folder on this node, for what has to outlive the run: the residual, and the key if this node holds it (``key.json``, as ``file``
        of :class:`PaillierKeyHolder`). The clients of a simulation can share one. Default: the node's state, which ends with the run.

    Returns
    -------
    flwr.app.Message

    Raises
    ------
    InputError
        If a training message is not from :class:`EdgeDetectStrategy` (then the update is not sent at all), the key is too short, the app's
        reply has other arrays than it got, the update has a value that is not finite, or the key is not a trusted one; the message names
        client and tensor. Flower reports it to the server as a failed client.
    StoreError
        If a file in the folder cannot be written, or ``key.json`` holds no key.
    """
    own = None if folder is None else Path(folder)
    trusted = _fingerprints(trusted_key)
    if msg.metadata.message_type.partition(".")[0] != "train":
        return call_next(msg, context)
    if RECORD not in msg.content:
        bad_input("message", "training instructions of another strategy", "those of EdgeDetectStrategy", "The update has not been sent.")
    instructions = Instructions.from_record(msg.content.config_records[RECORD])
    if instructions.stage == KEY:
        return Message(_key(instructions, context, own), reply_to=msg)
    if instructions.stage == DECRYPT:
        return _decrypted(instructions, msg, context, own)
    if instructions.stage != TRAIN:
        bad_input(f"{RECORD}.stage", instructions.stage, f"one of {TRAIN}, {KEY}, {DECRYPT}")
    return _trained(instructions, msg, context, call_next, trusted, own)


def client_name(context: Context) -> str:
    """The partition in a simulation, which is the same in every run, else the node."""
    return str(context.node_config.get("partition-id", context.node_id))


def _fingerprints(trusted_key: str | Collection[str]) -> str | tuple[str, ...]:
    """ "first", "any", or fingerprints, checked."""
    if isinstance(trusted_key, str) and trusted_key in ("first", "any"):
        return trusted_key
    given = (trusted_key,) if isinstance(trusted_key, str) or not isinstance(trusted_key, Collection) else tuple(trusted_key)
    for one in given or ("",):
        if not isinstance(one, str) or not re.fullmatch("[0-9a-f]{32}", one):
            bad_input("trusted_key", one, '"first", "any", or fingerprints of 32 hexadecimal digits', "PaillierKeyHolder(...).fingerprint")
    return given


def _check_key(found: str, trusted: str | tuple[str, ...], context: Context, client: str) -> None:
    """Refuse a key that this client does not trust; ``found`` is empty where votes would be sent in the clear."""
    if trusted == "any":
        return
    first = trusted == "first"
    if first:
        if TRUSTED not in context.state:
            LOG.info("Client %s votes %s", client, f"under the key {found}" if found else "in the clear")
            context.state[TRUSTED] = ConfigRecord({"fingerprint": found})
        trusted = (str(context.state.config_records[TRUSTED]["fingerprint"]),)
    if found not in trusted:
        wanted = " or ".join(f"key {one}" if one else "votes in the clear" for one in trusted) + (
            ", as in its first round" if first else ""
        )
        hint = "Nothing was sent. Ask the key holder, not the server, for its key's fingerprint; if it has changed, give it as trusted_key."
        bad_input(f"client {client}", f"key {found}" if found else "votes in the clear", wanted, hint)


def _trained(
    instructions: Instructions,
    msg: Message,
    context: Context,
    call_next: Callable[[Message, Context], Message],
    trusted: str | tuple[str, ...],
    folder: Path | None,
) -> Message:
    name = client_name(context)
    del msg.content[RECORD]  # the app sees a message as from FedAvg
    before = _weights(msg.content, instructions.names, f"client {name}, message")
    sizes = sum(tensor.numel() for tensor in before.values())
    jobs = int(context.node_config.get(JOBS, 1))
    aggregator = None
    if instructions.modulus:
        aggregator = PaillierAggregator(_public_key(instructions), instructions.codec, jobs=jobs, insecure=instructions.insecure)
    _check_key("" if aggregator is None else aggregator.fingerprint, trusted, context, name)
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
    if instructions.error_feedback:
        signs = _with_residual(update, instructions, ties, context, folder)
    else:
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


def _with_residual(
    update: list[Tensor], instructions: Instructions, ties: torch.Generator, context: Context, folder: Path | None
) -> Tensor:
    """The votes with error feedback; what they leave is kept, for this training, and what was before, in case the round is asked again."""
    file = None if folder is None else folder / f"residual-{quote(client_name(context), safe='')}.npz"
    kept: Any = None
    if file is not None and file.exists():
        kept = file.read_bytes()
    elif file is None and RESIDUAL in context.state:
        kept = context.state.config_records[RESIDUAL]["npz"]
    at = instructions.training, instructions.server_round
    before = None if kept is None else Residual.from_bytes(kept, str(file or "residual")).at(*at)
    if before is None or [rest.shape for rest in before] != [delta.shape for delta in update]:
        before = [torch.zeros_like(delta) for delta in update]
    signs, after = vote_with_feedback(update, before, instructions.threshold, instructions.ties, ties)
    content = Residual(*at, before, after).to_bytes()
    if file is None:
        context.state[RESIDUAL] = ConfigRecord({"npz": content})
    else:
        write_whole(file, content, private=True)
    return signs


# ---- the node that holds the key --------------------------------------------------------------------------------------------------------


def _key(instructions: Instructions, context: Context, folder: Path | None) -> RecordDict:
    """This node's key, made if it has none: the private part stays, the answer is the modulus and the last round it was used in."""
    file = None if folder is None else folder / "key.json"
    holder = None if file is not None else _kept(instructions, context)
    if holder is None:
        holder = PaillierKeyHolder(instructions.codec, file=file, insecure=instructions.insecure)
    LOG.info("This node holds the key %s", holder.fingerprint)
    if file is None:
        _keep(context, holder)
    answer: dict[str, Any] = {"modulus": bytes_of(holder.public_key.n), "token": instructions.token, "last_round": holder.last_round}
    return RecordDict({RECORD: ConfigRecord(answer)})


def _decrypted(instructions: Instructions, msg: Message, context: Context, folder: Path | None) -> Message:
    file = None if folder is None else folder / "key.json"
    jobs = int(context.node_config.get(JOBS, 1))
    holder = None
    if file is None:
        holder = _kept(instructions, context, jobs)
    elif file.exists():
        holder = PaillierKeyHolder(instructions.codec, file=file, jobs=jobs, insecure=instructions.insecure)
    if holder is None:
        bad_input("message", "a total to decrypt", "a node that was asked for a key before", "The server has asked the wrong node.")
    # The key is this node's own: a total for another one cannot be decrypted, whatever the server says.
    if instructions.modulus != bytes_of(holder.public_key.n):
        bad_input("message", "a total under another key", "one under this node's key")
    total = votes_in(msg.content, instructions, holder.fingerprint, instructions.clients)
    before = holder.last_round
    try:
        votes = holder.decrypt(total, instructions.server_round)
    except InputError as error:
        if holder.last_round == before:
            raise
        # The round is used up. Flower keeps the state of a node that answers, not of one that fails.
        answer = Message(Error(code=0, reason=str(error)), reply_to=msg)
    else:
        receipt = Receipt(instructions.server_round, instructions.token, holder.fingerprint, len(votes))
        answer = Message(RecordDict({RECORD: receipt.record(), ROWS: rows_record(votes.numpy())}), reply_to=msg)
    if file is None:
        _keep(context, holder)
    return answer


def _kept(instructions: Instructions, context: Context, jobs: int = 1) -> PaillierKeyHolder | None:
    """The key holder that this node was before, None if it was none, or had a key of another size."""
    kept: Any = context.state.config_records.get(PRIVATE)
    if kept is None:
        return None
    private = key_of(*(int.from_bytes(kept[part], "big") for part in ("p", "q")))
    if private.public_key.n.bit_length() != instructions.modulus_bits:
        return None
    holder = PaillierKeyHolder(instructions.codec, private, jobs=jobs, insecure=instructions.insecure)
    holder.last_round = int(kept["last_round"])
    return holder


def _keep(context: Context, holder: PaillierKeyHolder) -> None:
    p, q = holder._private_key.p, holder._private_key.q
    context.state[PRIVATE] = ConfigRecord({"p": bytes_of(p), "q": bytes_of(q), "last_round": holder.last_round})


def _public_key(instructions: Instructions) -> Any:
    paillier = require("phe.paillier", "he", "Encryption of votes")
    return paillier.PaillierPublicKey(int.from_bytes(instructions.modulus, "big"))
