"""A replication that takes no time: what the harness is tested with."""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib.figure

from counterpoise import CounterpoiseError
from counterpoise.replications import Claim, Replication, Work

CLAIMS = (Claim("grows", "it grows with the seed", "lower limit > 0"), Claim("note", "a side effect"))


def piece(seed: int, arm: str) -> dict[str, float]:
    log = os.environ.get("TOY_LOG")
    if log:
        with Path(log).open("a") as file:
            file.write(f"{seed} {arm}\n")
    if os.environ.get("TOY_FAILS_AT") == str(seed):
        raise CounterpoiseError("the set 'toys' is not there")
    return {"value": seed / 3 + (arm == "b"), "first": seed}


def run(*, seeds=None, quick=False, data_dir=None, work=None) -> Replication:
    seeds = tuple(seeds or ((0, 1) if quick else range(4)))
    rows = (work or Work()).map(piece, [{"seed": seed, "arm": arm} for seed in seeds for arm in "ab"])
    figure = matplotlib.figure.Figure()
    figure.add_subplot().plot([row["value"] for row in rows])
    findings = (CLAIMS[0].above((1.0, 0.5, 1.5), 0.0, "by 1 | or so"), CLAIMS[1].reported(None, "nothing else"))
    return Replication("toy", CLAIMS, findings, notes=("Nobody gained.",), figure=figure, seeds=seeds)
