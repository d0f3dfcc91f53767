"""What server, clients and key holder write to each other, inside Flower's messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from counterpoise._errors import bad_input
from counterpoise._extras import require

from ._codec import SlotCodec
from ._paillier import EncryptedVotes

if TYPE_CHECKING:
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
else:
    app = require("flwr.app", "federated", "Federated training")
    Array, ArrayRecord, ConfigRecord, RecordDict = app.Array, app.ArrayRecord, app.ConfigRecord, app.RecordDict

__all__ = ["MODEL", "RECORD", "ROWS", "Instructions", "Receipt", "array_in", "bytes_of", "rows_record", "votes_in"]

RECORD = "edgedetect"  # of instructions, and of receipts
ROWS = "edgedetect.rows"  # of ciphertexts, or of totals
MODEL = "arrays"  # of the weights, Flower's own name

TRAIN, KEY, DECRYPT = "train", "key", "decrypt"


@dataclass(frozen=True)
class Instructions:
    """From the server: what to do, and the numbers of this round.

    ``token`` is new in every message, and comes back with the answer. ``modulus`` is empty while there is no key, and where votes are sent
    in the clear. ``training`` names the training, whose rounds are counted from 1. With a total to decrypt, ``server_round`` is the number
    that the key holder has to see grow.
    """

    stage: str
    server_round: int
    token: bytes
    max_clients: int
    modulus_bits: int
    insecure: bool
    modulus: bytes = b""
    names: tuple[str, ...] = ()
    threshold: str = "median"
    ties: str = "random"
    seed: int = 0
    d: int = 0
    clients: int = 0
    training: str = ""
    error_feedback: bool = False

    @property
    def codec(self) -> SlotCodec:
        return SlotCodec(self.max_clients, self.modulus_bits)

    def record(self) -> ConfigRecord:
        return ConfigRecord(asdict(self) | {"names": list(self.names)})

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Instructions:
        found = _read(cls, record)
        return cls(**found | {"names": tuple(found["names"])})


@dataclass(frozen=True)
class Receipt:
    """From a client: which message this answers, under which key, and how many coordinates its rows hold."""

    server_round: int
    token: bytes
    fingerprint: str
    d: int

    def record(self) -> ConfigRecord:
        return ConfigRecord(asdict(self))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Receipt:
        return cls(**_read(cls, record))


def bytes_of(number: int) -> bytes:
    """A key's number on the wire, highest byte first."""
    return int(number).to_bytes((int(number).bit_length() + 7) // 8, "big")


def rows_record(rows: npt.NDArray[Any]) -> ArrayRecord:
    return ArrayRecord({ROWS: Array(np.ascontiguousarray(rows))})


def array_in(content: RecordDict) -> npt.NDArray[Any]:
    """The array that :func:`rows_record` has put into a message; an error for anything else."""
    record = content.array_records.get(ROWS)
    if record is None or list(record) != [ROWS] or len(content.array_records) != 1:
        bad_input("message", f"arrays {list(content.array_records)}", f"{ROWS!r} alone", "Clients need the mod edgedetect_mod.")
    try:
        array: object = record[ROWS].numpy()
    except Exception as error:  # a stranger's bytes: what NumPy raises over them includes BadZipFile, TokenError and MemoryError
        bad_input("message", f"{ROWS!r} that cannot be read ({type(error).__name__})", "a NumPy array")
    if not isinstance(array, np.ndarray):
        bad_input("message", f"{ROWS!r} of type {type(array).__name__}", "a NumPy array")
    return array


def votes_in(content: RecordDict, receipt: Receipt | Instructions, fingerprint: str, clients: int) -> EncryptedVotes:
    """Ciphertexts in a message, not yet checked."""
    return EncryptedVotes(array_in(content), receipt.d, clients, fingerprint)


def _read(cls: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass, all of them there, of the right types."""
    kinds = {"int": int, "str": str, "bytes": bytes, "bool": bool, "tuple[str, ...]": list}
    names = {field.name: kinds[str(field.type)] for field in fields(cls)}
    if set(record) != set(names):
        bad_input(RECORD, f"fields {sorted(record)}", f"{sorted(names)}", "Server and clients need the same version of counterpoise.")
    for name, kind in names.items():
        if type(record[name]) is not kind:
            bad_input(f"{RECORD}.{name}", type(record[name]).__name__, kind.__name__)
    return {name: record[name] for name in names}
