"""Seeding rules: every random stream is named, so adding one never changes another.

A stream is ``SeedSequence(seed, spawn_key=(...))`` whose key is made of small integers and of the stable hash of names
(an arm's name, a layer's name). Two streams with different keys are independent; the same key gives the same numbers on every
machine, in every process, whatever ran before.
"""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["key_of", "seed_sequence", "generator", "seed_integer"]


def key_of(name: str | int) -> int:
    """An integer below 2**32 that stands for ``name`` in a spawn key; integers stand for themselves."""
    if isinstance(name, (int, np.integer)):
        return int(name)
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")


def seed_sequence(seed: int, *key: str | int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=tuple(key_of(part) for part in key))


def generator(seed: int, *key: str | int) -> np.random.Generator:
    """A NumPy generator for the stream ``key`` of ``seed``."""
    return np.random.default_rng(seed_sequence(seed, *key))


def seed_integer(seed: int, *key: str | int) -> int:
    """An integer in [0, 2**31) for libraries that take ``random_state`` or ``manual_seed``."""
    return int(seed_sequence(seed, *key).generate_state(1, dtype=np.uint32)[0] >> 1)
