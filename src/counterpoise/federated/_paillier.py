r"""Sums of votes that nobody sees one by one: packed votes under Paillier's encryption.

A block m of votes is sent as :math:`c = (1 + n m)\, r^n \bmod n^2` with a fresh secret r, and
:math:`\prod_k c_k = \mathrm{Enc}(\sum_k m_k)`: who multiplies needs only the public modulus n. Keys and decryption are those of ``phe``,
powers those of ``gmpy2``. :math:`r^n` does not depend on the votes: computed beforehand, it leaves two multiplications for each block.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from torch import Tensor

from counterpoise._errors import InputError, StoreError, bad_input, check_range
from counterpoise._extras import require

from ._checkpoint import write_whole
from ._codec import SlotCodec
from ._powers import decrypted, random_powers

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["EncryptedVotes", "PaillierAggregator", "PaillierKeyHolder"]

SECURE_BITS = 2048  # about 112 bits of security
FEWEST = 3  # clients in a total: with two, each of them learns the other's votes


@dataclass(frozen=True, eq=False)
class EncryptedVotes:
    """Ciphertexts of one client's votes, or of a sum of several clients'.

    Attributes
    ----------
    rows : NDArray[uint8], shape (blocks, 2 L / 8)
        Ciphertexts, one in each row, highest byte first.
    d : int
        Coordinates.
    clients : int
        How many clients are in it.
    fingerprint : str
        Of the public key and the packing; only votes of the same one are added.
    """

    rows: npt.NDArray[np.uint8]
    d: int
    clients: int
    fingerprint: str

    @property
    def nbytes(self) -> int:
        """Bytes of the ciphertexts."""
        return int(self.rows.nbytes)


class PaillierAggregator:
    r"""Encrypts votes (a client), and adds what others have encrypted (the server). It never has the private key.

    **What it protects against, and what not.** The server is honest but curious: it follows the protocol and looks at everything it gets.
    The holder of the private key is somebody else, a client or a third party, and the two do not collude: together they can decrypt single
    votes. Under these assumptions the server sees ciphertexts and the total; the key holder and the clients see the total. The total itself
    is not hidden: with few clients it says much. Everybody can subtract his own vote: of two clients each would learn the other's, so fewer
    than 3 are refused, and of three each learns the sum of the other two. What a server that lies can do is in :class:`PaillierKeyHolder`.
    Ciphertexts can be changed without the key (that is how they are added): messages have to come over a channel that authenticates their
    sender, such as Flower's TLS with node keys. A client that does not keep to the protocol can put other numbers into its slots; totals
    that cannot be are found at decryption, totals that can be are not.

    Parameters
    ----------
    public_key : phe.PaillierPublicKey
        Of the key holder.
    codec : SlotCodec
        The same for all; its ``modulus_bits`` are those of the key.
    jobs : int, default 1
        Processes for powers that are computed beforehand (joblib).
    insecure : bool, default False
        Accept a modulus below 2048 bits, for tests.

    Attributes
    ----------
    fingerprint : str
        Of key and packing.
    pooled : int
        Powers that are ready.

    Raises
    ------
    InputError
        If the key is too short or not of the codec's size, ``max_clients`` is below 3, or votes cannot be added: of another key or packing,
        another d, malformed, already added, or of more clients than ``max_clients``.
    MissingExtraError
        Without the packages of ``counterpoise[he]``.

    Notes
    -----
    The powers in the pool are secrets, each for one encryption: two ciphertexts with the same one give the difference of their votes
    away. So the pool is not copied with the object, neither by pickling nor by a fork.

    With a modulus of 2048 bits a power takes 10 to 30 ms on one core, the rest of an encryption 10 µs.

    Examples
    --------
    >>> import torch
    >>> from counterpoise.federated import PaillierKeyHolder
    >>> codec = SlotCodec(max_clients=3, modulus_bits=256)
    >>> holder = PaillierKeyHolder(codec, insecure=True)  # 256 bits are for examples
    >>> votes = torch.tensor([[1, -1, 1], [1, 1, -1], [1, -1, -1]], dtype=torch.int8)
    >>> clients = [PaillierAggregator(holder.public_key, codec, insecure=True) for _ in votes]
    >>> server = PaillierAggregator(holder.public_key, codec, insecure=True)
    >>> total = server.add([client.encrypt(own) for client, own in zip(clients, votes)])
    >>> holder.decrypt(total, server_round=1)
    tensor([ 3, -1, -1], dtype=torch.int32)
    """

    def __init__(self, public_key: Any, codec: SlotCodec, *, jobs: int = 1, insecure: bool = False) -> None:
        _packages()
        check_key_size(public_key.n, codec, insecure)
        check_range("jobs", jobs, low=1, integer=True)
        self.public_key = public_key
        self.codec = codec
        self.jobs = jobs
        self.fingerprint = fingerprint(public_key.n, codec)
        self._pool: list[int] = []
        self._owner = os.getpid()
        self._added: set[bytes] = set()

    @property
    def pooled(self) -> int:
        return len(self._pool) if self._owner == os.getpid() else 0

    def precompute(self, blocks: int) -> None:
        """Put powers for ``blocks`` more ciphertexts into the pool; ``codec.blocks(d)`` of them make one upload."""
        check_range("blocks", blocks, low=1, integer=True)
        shares = [share.stop - share.start for share in _shares(blocks, self.jobs)]
        self._own_pool().extend(_in_processes(random_powers, int(self.public_key.n), shares))

    def encrypt(self, signs: Tensor | npt.NDArray[np.int8]) -> EncryptedVotes:
        """The votes (d,) of one client, int8 of -1 and +1; powers that the pool does not have are computed."""
        import gmpy2

        blocks = self.codec.encode(signs)
        pool = self._own_pool()
        if len(pool) < len(blocks):
            self.precompute(len(blocks) - len(pool))
        n = gmpy2.mpz(self.public_key.n)
        square = n * n
        ciphertexts = [int((1 + n * block) * pool.pop() % square) for block in blocks]
        return EncryptedVotes(self._rows(ciphertexts), len(signs), 1, self.fingerprint)

    def add(self, votes: Iterable[EncryptedVotes]) -> EncryptedVotes:
        """The encrypted sum. Nothing is added, nor remembered, if one of them is refused."""
        import gmpy2

        given = list(votes)
        if not given:
            bad_input("votes", "no votes", "those of at least one client")
        seen: set[bytes] = set()
        square = gmpy2.mpz(self.public_key.n) ** 2
        totals: list[Any] = []
        for i, one in enumerate(given):
            numbers = self.checked(one, f"votes[{i}]")
            if one.d != given[0].d:
                bad_input(f"votes[{i}]", f"{one.d} coordinates", f"the {given[0].d} of votes[0]")
            digest = _digest(one)
            if digest in seen or digest in self._added:
                bad_input(
                    f"votes[{i}]", "ciphertexts that were added before", "every client's once", "A message was sent or replayed twice."
                )
            seen.add(digest)
            totals = [total * number % square for total, number in zip(totals or [gmpy2.mpz(1)] * len(numbers), numbers, strict=True)]
        clients = sum(one.clients for one in given)
        if clients > self.codec.max_clients:
            bad_input("votes", f"{clients} clients", f"at most max_clients = {self.codec.max_clients}", "More would overflow the slots.")
        self._added |= seen
        return EncryptedVotes(self._rows([int(total) for total in totals]), given[0].d, clients, self.fingerprint)

    def seen(self, one: EncryptedVotes) -> bool:
        """Whether these ciphertexts were added before."""
        return _digest(one) in self._added

    def checked(self, one: EncryptedVotes, where: str = "votes") -> list[int]:
        """The ciphertexts as numbers; an error for what is no ciphertext of this key and packing."""
        return ciphertexts_of(one, int(self.public_key.n), self.codec, self.fingerprint, where)

    def _rows(self, ciphertexts: Sequence[int]) -> npt.NDArray[np.uint8]:
        width = self.codec.row_bytes()
        raw = b"".join(ciphertext.to_bytes(width, "big") for ciphertext in ciphertexts)
        return np.frombuffer(raw, dtype=np.uint8).reshape(-1, width)

    def _own_pool(self) -> list[int]:
        if self._owner != os.getpid():  # a fork: these powers are also the other process's
            self._pool, self._owner = [], os.getpid()
        return self._pool

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pool": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._owner = os.getpid()

    def __repr__(self) -> str:
        return f"PaillierAggregator({self.codec}, key {self.fingerprint[:8]}, {self.pooled} powers ready)"


class PaillierKeyHolder:
    """Has the private key, and decrypts one total of each round, of three clients or more; nothing else.

    It belongs to a client or a third party, not to the server (:class:`PaillierAggregator` says what is assumed of whom). Rounds have to
    grow: the difference of two totals, with and without a client, would be that client's votes. A round is used up by a total that turns
    out to be impossible, too.

    **What it cannot see.** A ciphertext does not show how many clients are in it, nor from which round they are. That is the server's word:
    a server that lies can send one client's ciphertexts as a total of three, or two totals of nearly the same votes as two rounds. The
    counts of a total are at most the number of clients it is said to have, and that is all there is to check. Against such a server the
    key would have to be shared among several holders (threshold decryption) and votes signed by their clients, which this is not.

    Parameters
    ----------
    codec : SlotCodec
        The same for all; ``modulus_bits`` is the size of a new key.
    private_key : phe.PaillierPrivateKey, optional
        Default: a new one, from the operating system's random numbers.
    file : path, optional
        Keeps the key and the last round (JSON, readable by this user alone). If the file exists, its key is used: with the same key over
        several trainings, clients can be told its fingerprint once (``trusted_key`` of :func:`edgedetect_mod`).
    jobs : int, default 1
        Processes for the decryption (joblib).
    insecure : bool, default False
        Accept a modulus below 2048 bits, for tests.

    Attributes
    ----------
    public_key : phe.PaillierPublicKey
        For everybody.
    fingerprint : str
        Of key and packing. Clients compare it, over a channel that is not the server's.
    last_round : int
        The last one of which a total was decrypted, 0 before the first.

    Raises
    ------
    InputError
        If the key is too short, both a key and a file that exists are given, or a total is of fewer than 3 clients or more than
        ``max_clients``, of another key or packing, malformed, impossible, or of a round that is not larger than the last.
    StoreError
        If the file holds no key, or cannot be written.
    TypeError
        If it is pickled: a private key does not travel by accident.

    Examples
    --------
    >>> holder = PaillierKeyHolder(SlotCodec(max_clients=5, modulus_bits=256), insecure=True)
    >>> holder.public_key.n.bit_length(), len(holder.fingerprint), holder.last_round
    (256, 32, 0)
    """

    def __init__(
        self, codec: SlotCodec, private_key: Any = None, *, file: str | Path | None = None, jobs: int = 1, insecure: bool = False
    ) -> None:
        paillier = _packages()
        check_range("jobs", jobs, low=1, integer=True)
        self.last_round = 0
        self._file = None if file is None else Path(file)
        found = self._file is not None and self._file.exists()
        if self._file is not None and found:
            if private_key is not None:
                bad_input("private_key", "a key", f"none, since {self._file} has one", "Move the file away for another key.")
            private_key, self.last_round = _read_key(self._file)
        if private_key is None:
            check_key_size(1 << (codec.modulus_bits - 1), codec, insecure)  # before a key is searched for
            private_key = paillier.generate_paillier_keypair(n_length=codec.modulus_bits)[1]
        check_key_size(private_key.public_key.n, codec, insecure)
        self.codec = codec
        self.jobs = jobs
        self.public_key = private_key.public_key
        self.fingerprint = fingerprint(self.public_key.n, codec)
        self._private_key = private_key
        if not found:
            self._keep()

    def decrypt(self, total: EncryptedVotes, server_round: int) -> Tensor:
        r""":math:`\sum_k s_k` for each coordinate, (d,), int32, in [-K, K]; ``server_round`` has to grow from call to call."""
        check_range("server_round", server_round, low=1, integer=True)
        if not isinstance(total.clients, int) or total.clients < FEWEST:
            bad_input("total", f"{total.clients} clients", f"at least {FEWEST}", "Of fewer, a total gives single votes away.")
        if total.clients > self.codec.max_clients:
            bad_input("total", f"{total.clients} clients", f"at most max_clients = {self.codec.max_clients}")
        numbers = ciphertexts_of(total, int(self.public_key.n), self.codec, self.fingerprint, "total")
        with contextlib.nullcontext() if self._file is None else _alone_in(self._file.parent):
            if self._file is not None:  # which another process may have used
                self.last_round = max(self.last_round, _read_key(self._file)[1])
            if server_round <= self.last_round:
                bad_input(
                    "server_round", server_round, f"a round after {self.last_round}",
                    "One total of a round is decrypted: the difference of two would be single votes.",
                )  # fmt: skip
            self.last_round = int(server_round)  # NumPy's integers go into no file
            self._keep()  # before anything is known about the total: a process that is killed has used up its round
        key = int(self._private_key.p), int(self._private_key.q)
        blocks = _in_processes(decrypted, key, [numbers[share] for share in _shares(len(numbers), self.jobs)])
        counts = self._counts(blocks, total)
        if counts is None:  # neither where nor by how much: that would say something about votes
            bad_input(
                "total", "a slot that counts more votes than clients", f"counts of at most {total.clients}",
                "A client has put in more than its vote, and encryption hides which one: train without some of them to find it.",
            )  # fmt: skip
        return 2 * counts - total.clients

    def _counts(self, blocks: list[int], total: EncryptedVotes) -> Tensor | None:
        """Votes for +1, None if there cannot be as many."""
        try:
            counts = self.codec.decode(blocks, total.d)
        except InputError:
            return None
        return None if bool((counts > total.clients).any()) else counts

    def _keep(self) -> None:
        if self._file is not None:
            p, q = (f"{int(part):x}" for part in (self._private_key.p, self._private_key.q))
            write_whole(self._file, json.dumps({"p": p, "q": q, "last_round": self.last_round}).encode(), private=True)

    def __reduce__(self) -> NoReturn:
        raise TypeError("A PaillierKeyHolder is not pickled: its private key stays where it is.")

    def __repr__(self) -> str:
        return f"PaillierKeyHolder({self.codec}, key {self.fingerprint[:8]})"


def key_of(p: int, q: int) -> Any:
    """The private key of two primes."""
    paillier = _packages()
    return paillier.PaillierPrivateKey(paillier.PaillierPublicKey(p * q), p, q)


def _read_key(file: Path) -> tuple[Any, int]:
    try:
        kept = json.loads(file.read_text("utf-8"))
        return key_of(int(kept["p"], 16), int(kept["q"], 16)), int(kept["last_round"])
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise StoreError(f"{file} holds no key of a key holder ({type(error).__name__}); move it away for a new one.") from error


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No two processes at once, where the system can lock a folder."""
    with contextlib.ExitStack() as stack:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network file systems cannot
                held = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, held)
                fcntl.flock(held, fcntl.LOCK_EX)
        yield


def fingerprint(n: int, codec: SlotCodec) -> str:
    """Of a public key and of the packing: what has to agree for votes to be added."""
    content = f"{int(n):x} {codec.max_clients} {codec.modulus_bits}"
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def _digest(one: EncryptedVotes) -> bytes:
    return hashlib.blake2b(one.rows.tobytes(), digest_size=16).digest()


def check_key_size(n: int, codec: SlotCodec, insecure: bool) -> None:
    """Refuse a modulus that is short, or not the codec's, and packings for fewer than three clients."""
    size = int(n).bit_length()
    if size < SECURE_BITS and not insecure:
        bad_input(
            "modulus_bits", size, f"at least {SECURE_BITS}", "3072 has a security of 128 bits. insecure=True accepts less, for tests."
        )
    if size != codec.modulus_bits:
        bad_input("public_key", f"a modulus of {size} bits", f"the codec's {codec.modulus_bits}", f"SlotCodec(..., modulus_bits={size})")
    if codec.max_clients < FEWEST:
        bad_input("max_clients", codec.max_clients, f"at least {FEWEST} with encryption", "Of fewer, a total gives single votes away.")


def ciphertexts_of(one: Any, n: int, codec: SlotCodec, wanted: str, where: str) -> list[int]:
    """The rows as numbers; an error for what is no ciphertext of this key and packing."""
    import gmpy2

    if not isinstance(one, EncryptedVotes):
        bad_input(where, type(one).__name__, "EncryptedVotes", "encrypt makes them.")
    if one.fingerprint != wanted:
        bad_input(where, f"key {one.fingerprint[:8]!r}", f"key {wanted[:8]!r}", "Encrypted for another key, or packed for another number.")
    shape = (codec.blocks(one.d), codec.row_bytes())
    if not isinstance(one.rows, np.ndarray) or one.rows.dtype != np.uint8 or one.rows.shape != shape:
        found = f"{getattr(one.rows, 'dtype', '')} of shape {getattr(one.rows, 'shape', '?')}"
        bad_input(where, found, f"uint8 of shape {shape} for d = {one.d}")
    if one.clients < 1:
        bad_input(where, f"{one.clients} clients", "at least 1")
    numbers = [int.from_bytes(row.tobytes(), "big") for row in one.rows]
    for number in numbers:
        if not 0 < number < n * n or gmpy2.gcd(number, n) != 1:
            bad_input(where, "a number that is no ciphertext", "units below the square of the modulus")
    return numbers


def _shares(count: int, jobs: int) -> list[slice]:
    """``count`` items, in their order, as equally as can be; no empty share.

    >>> _shares(5, 2), _shares(1, 4)
    ([slice(0, 3, None), slice(3, 5, None)], [slice(0, 1, None)])
    """
    ends = [-(-count * k // jobs) for k in range(jobs + 1)]
    return [slice(start, end) for start, end in pairwise(ends) if end > start]


def _in_processes(function: Callable[[Any, Any], list[int]], first: Any, tasks: Sequence[Any]) -> list[int]:
    """``function(first, task)`` of all tasks, each in a process if there is more than one, joined."""
    if len(tasks) == 1:
        return function(first, tasks[0])
    from joblib import Parallel, delayed

    return [number for part in Parallel(n_jobs=len(tasks))(delayed(function)(first, task) for task in tasks) for number in part]


def _packages() -> Any:
    require("gmpy2", "he", "Encryption of votes")
    return require("phe.paillier", "he", "Encryption of votes")
