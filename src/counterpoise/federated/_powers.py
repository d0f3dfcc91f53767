"""The two expensive powers of Paillier, in a module that imports nothing heavy: processes of a pool start with it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

__all__ = ["decrypted", "random_powers"]


def random_powers(n: int, count: int) -> list[int]:
    """``count`` numbers :math:`r^n \\bmod n^2` with secret random r, each good for one encryption."""
    import gmpy2

    bases = [gmpy2.mpz(1 + secrets.randbelow(n - 1)) for _ in range(count)]
    # This call lets other threads of the process run: a client computes powers while it trains.
    return [int(power) for power in gmpy2.powmod_base_list(bases, gmpy2.mpz(n), gmpy2.mpz(n) ** 2)]


def decrypted(key: tuple[int, int], ciphertexts: Sequence[int]) -> list[int]:
    """Plaintexts under the key (p, q), by phe's decryption with the Chinese remainder theorem."""
    from phe import paillier

    p, q = key
    private = paillier.PaillierPrivateKey(paillier.PaillierPublicKey(p * q), p, q)
    return [int(private.raw_decrypt(ciphertext)) for ciphertext in ciphertexts]
