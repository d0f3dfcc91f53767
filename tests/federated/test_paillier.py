from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle

import numpy as np
import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.federated import EncryptedVotes, PaillierAggregator, PaillierKeyHolder, SlotCodec

pytest.importorskip("phe")
pytest.importorskip("gmpy2")

CODEC = SlotCodec(max_clients=5, modulus_bits=256)  # small keys: the arithmetic is the same
ROUNDS = itertools.count(1)  # of the shared key holder, which decrypts one total in each


@pytest.fixture(scope="module")
def holder() -> PaillierKeyHolder:
    return PaillierKeyHolder(CODEC, insecure=True)


@pytest.fixture
def server(holder) -> PaillierAggregator:
    return PaillierAggregator(holder.public_key, CODEC, insecure=True)


def signs(clients: int, d: int = 200, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randint(0, 2, (clients, d), generator=torch.Generator().manual_seed(seed), dtype=torch.int8) - 1


def encrypted(server: PaillierAggregator, votes: torch.Tensor) -> list[EncryptedVotes]:
    return [server.encrypt(own) for own in votes]


@pytest.mark.parametrize(("clients", "d"), [(3, 1), (3, 85), (4, 86), (5, 200)])
def test_the_sum_is_exact(holder, server, clients, d) -> None:
    votes = signs(clients, d)
    sent = encrypted(server, votes)
    total = server.add(sent)
    found = holder.decrypt(total, next(ROUNDS))
    assert found.dtype == torch.int32 and torch.equal(found, votes.sum(dim=0, dtype=torch.int32))
    assert all(one.rows.shape == (CODEC.blocks(d), 64) and one.rows.dtype == np.uint8 and one.nbytes == CODEC.nbytes(d) for one in sent)
    assert total.clients == clients and total.d == d


def test_partial_sums_can_be_added() -> None:
    holder = PaillierKeyHolder(CODEC, insecure=True)
    server = PaillierAggregator(holder.public_key, CODEC, insecure=True)
    votes = signs(5)
    sent = encrypted(server, votes)
    total = server.add([server.add(sent[:2]), server.add(sent[2:])])
    assert total.clients == 5 and torch.equal(holder.decrypt(total, 1), votes.sum(dim=0, dtype=torch.int32))


def test_it_is_the_encryption_of_phe(holder, server) -> None:
    from phe import paillier

    votes = signs(1)[0]
    numbers = server.checked(server.encrypt(votes))
    assert [holder._private_key.raw_decrypt(number) for number in numbers] == CODEC.encode(votes)
    theirs = [holder.public_key.raw_encrypt(block) for block in CODEC.encode(votes)]
    assert isinstance(holder.public_key, paillier.PaillierPublicKey)
    rows = np.stack([np.frombuffer(number.to_bytes(64, "big"), dtype=np.uint8) for number in theirs])
    mixed = server.add([EncryptedVotes(rows, len(votes), 1, server.fingerprint), *encrypted(server, signs(2, seed=1))])
    assert torch.equal(holder.decrypt(mixed, next(ROUNDS)), (votes + signs(2, seed=1).sum(dim=0)).int())


def test_the_same_votes_look_different_every_time(server) -> None:
    votes = torch.ones(85, dtype=torch.int8)
    rows = np.concatenate([server.encrypt(votes).rows for _ in range(20)])
    assert len({row.tobytes() for row in rows}) == 20
    assert 100 < rows.mean() < 155  # bytes of 0 to 255, as random ones are


def test_powers_are_taken_from_the_pool_once_each(holder, server) -> None:
    server.precompute(4)
    assert server.pooled == 4
    powers = list(server._pool)
    n = int(holder.public_key.n)
    server.encrypt(signs(1, 85 * 3)[0])
    assert server.pooled == 1
    server.encrypt(signs(1, 85 * 3)[0])  # two more are computed
    assert server.pooled == 0
    assert len(set(powers)) == 4 and all(0 < power < n * n for power in powers)


@pytest.mark.parametrize("jobs", [1, 2])
def test_several_processes_give_the_same_sums(jobs) -> None:
    holder = PaillierKeyHolder(CODEC, jobs=jobs, insecure=True)
    server = PaillierAggregator(holder.public_key, CODEC, jobs=jobs, insecure=True)
    votes = signs(3, 500)
    server.precompute(7)
    assert server.pooled == 7 and len(set(server._pool)) == 7
    assert torch.equal(holder.decrypt(server.add(encrypted(server, votes)), next(ROUNDS)), votes.sum(dim=0, dtype=torch.int32))


# ---- what must not happen with secrets --------------------------------------------------------------------------------------------------


def test_the_pool_does_not_travel(server) -> None:
    server.precompute(3)
    powers = {str(power) for power in server._pool}
    copy = pickle.loads(pickle.dumps(server))
    assert copy.pooled == 0 and copy.fingerprint == server.fingerprint and server.pooled == 3
    assert not any(power in str(copy.__dict__) for power in powers)


def first_ciphertext(server: PaillierAggregator, queue) -> None:
    queue.put((server.pooled, server.encrypt(torch.ones(85, dtype=torch.int8)).rows.tobytes()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_uses_other_powers(server) -> None:
    server.precompute(2)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=first_ciphertext, args=(server, queue))
    process.start()
    pooled, theirs = queue.get(timeout=30)
    process.join()
    assert pooled == 0 and server.pooled == 2
    assert server.encrypt(torch.ones(85, dtype=torch.int8)).rows.tobytes() != theirs


def test_a_private_key_is_not_pickled_nor_shown(holder, server) -> None:
    with pytest.raises(TypeError, match="its private key stays where it is"):
        pickle.dumps(holder)
    p = str(holder._private_key.p)
    assert p not in repr(holder) and p not in repr(server) and p not in str(server.__dict__)
    assert not any("Private" in type(value).__name__ for value in server.__dict__.values())


# ---- what is refused --------------------------------------------------------------------------------------------------------------------


def test_ciphertexts_are_added_once(server) -> None:
    sent = encrypted(server, signs(3))
    with pytest.raises(InputError, match=r"votes\[3\]: got ciphertexts that were added before"):
        server.add([*sent, sent[0]])
    server.add(sent)  # nothing was remembered of the call that failed
    assert server.seen(sent[1])
    with pytest.raises(InputError, match=r"votes\[0\]: got ciphertexts that were added before"):
        server.add([sent[1], *encrypted(server, signs(2, seed=1))])


def test_more_clients_than_slots_can_count(server) -> None:
    sent = encrypted(server, signs(6))
    with pytest.raises(InputError, match="6 clients; expected at most max_clients = 5"):
        server.add(sent)
    partial = server.add(sent[:4])
    with pytest.raises(InputError, match="6 clients"):
        server.add([partial, *sent[4:]])


def test_other_keys_and_other_packings(holder, server) -> None:
    other = PaillierKeyHolder(CODEC, insecure=True)
    stranger = PaillierAggregator(other.public_key, CODEC, insecure=True).encrypt(signs(1)[0])
    with pytest.raises(InputError, match=r"votes\[1\]: got key '.{8}'; expected key"):
        server.add([*encrypted(server, signs(1)), stranger])
    wide = SlotCodec(max_clients=4, modulus_bits=256)  # as many bits, another promise
    assert wide.bits == CODEC.bits
    with pytest.raises(InputError, match="packed for another number"):
        server.add([PaillierAggregator(holder.public_key, wide, insecure=True).encrypt(signs(1)[0])])
    with pytest.raises(InputError, match="total: got key"):
        other.decrypt(server.add(encrypted(server, signs(3))), next(ROUNDS))


def test_malformed_votes(server) -> None:
    good = server.encrypt(signs(1)[0])

    def with_rows(rows, d=200, clients=1) -> EncryptedVotes:
        return EncryptedVotes(rows, d, clients, server.fingerprint)

    n = int(server.public_key.n)
    zero, multiple, large = (np.array(good.rows) for _ in range(3))
    zero[1] = 0
    multiple[1] = np.frombuffer((3 * n).to_bytes(64, "big"), dtype=np.uint8)
    large[1] = 255
    for wrong, message in (
        (good.rows, "expected EncryptedVotes"),
        (with_rows(good.rows[:-1]), r"expected uint8 of shape \(3, 64\)"),
        (with_rows(good.rows[:, 1:]), r"uint8 of shape \(3, 63\)"),
        (with_rows(good.rows.astype(np.float32)), "got float32 of shape"),
        (with_rows(good.rows, d=100), r"expected uint8 of shape \(2, 64\) for d = 100"),
        (with_rows(good.rows, d=0), "d: got 0"),
        (with_rows(None), "expected uint8"),
        (with_rows(good.rows, clients=0), "0 clients; expected at least 1"),
        (with_rows(zero), "a number that is no ciphertext"),
        (with_rows(multiple), "a number that is no ciphertext"),
        (with_rows(large), "a number that is no ciphertext"),
    ):
        with pytest.raises(InputError, match=message):
            server.add([wrong])
    with pytest.raises(InputError, match="votes: got no votes; expected those of at least one client"):
        server.add([])
    with pytest.raises(InputError, match=r"votes\[1\]: got 199 coordinates; expected the 200"):
        server.add([good, server.encrypt(signs(1, 199)[0])])


def test_totals_of_few_clients_are_not_decrypted(holder, server) -> None:
    for clients in (1, 2):
        with pytest.raises(InputError, match=f"total: got {clients} clients; expected at least 3"):
            holder.decrypt(server.add(encrypted(server, signs(clients))), next(ROUNDS))
    many = server.add(encrypted(server, signs(3)))
    with pytest.raises(InputError, match="6 clients; expected at most max_clients"):
        holder.decrypt(EncryptedVotes(many.rows, many.d, 6, many.fingerprint), next(ROUNDS))


def test_one_total_in_a_round() -> None:
    holder = PaillierKeyHolder(CODEC, insecure=True)
    server = PaillierAggregator(holder.public_key, CODEC, insecure=True)
    first, second, third = (server.add(encrypted(server, signs(3, seed=seed))) for seed in range(3))
    holder.decrypt(first, server_round=4)
    for at in (4, 3):
        with pytest.raises(InputError, match=f"server_round: got {at}; expected a round after 4"):
            holder.decrypt(second, server_round=at)
    holder.decrypt(third, server_round=5)


def test_a_client_that_stuffs_its_slots_is_noticed_where_the_total_cannot_be(holder, server) -> None:
    import gmpy2

    n = int(server.public_key.n)
    stuffed = [int(gmpy2.powmod(7, n, n * n) * (1 + n * (7 << 3 * i)) % (n * n)) for i in range(3)]  # a slot of 7, of 5 clients
    rows = np.stack([np.frombuffer(number.to_bytes(64, "big"), dtype=np.uint8) for number in stuffed])
    votes = [EncryptedVotes(rows, 200, 1, server.fingerprint), *encrypted(server, -torch.ones(2, 200, dtype=torch.int8))]
    with pytest.raises(InputError, match=r"a slot (that counts more votes than clients|above max_clients)"):
        holder.decrypt(server.add(votes), next(ROUNDS))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PaillierKeyHolder(CODEC), "modulus_bits: got 256; expected at least 2048. 3072 has a security of 128 bits"),
        (lambda: PaillierKeyHolder(SlotCodec(2, 256), insecure=True), "max_clients: got 2; expected at least 3 with encryption"),
        (lambda: PaillierKeyHolder(CODEC, jobs=0, insecure=True), "jobs: got 0"),
    ],
)
def test_bad_options(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_the_key_has_the_size_of_the_codec(holder) -> None:
    with pytest.raises(InputError, match="modulus_bits: got 256; expected at least 2048"):
        PaillierAggregator(holder.public_key, CODEC)
    with pytest.raises(InputError, match="a modulus of 256 bits; expected the codec's 512"):
        PaillierAggregator(holder.public_key, SlotCodec(5, 512), insecure=True)


def test_a_key_of_full_size_needs_no_leave() -> None:
    codec = SlotCodec(max_clients=3)
    holder = PaillierKeyHolder(codec)
    server = PaillierAggregator(holder.public_key, codec)
    votes = signs(3, 1100)
    assert holder.public_key.n.bit_length() == 2048 and server.encrypt(votes[0]).rows.shape == (2, 512)
    assert torch.equal(holder.decrypt(server.add(encrypted(server, votes)), next(ROUNDS)), votes.sum(dim=0, dtype=torch.int32))
