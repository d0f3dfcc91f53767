"""A study whose cells are cheap and whose numbers depend on the cell alone; run as a program it is what gets killed.

    python fake_study.py --out DIR [--resume] [--arms 3] [--repeats 2] [--folds 5] [--seconds .02] [--jobs 1] [--engine local]

Every computed cell adds a line to ``DIR/computed.log``, so that a test can count how often each was computed.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

from counterpoise._seeding import generator
from counterpoise.studies._runner import run_cells
from counterpoise.studies._store import Store, results_frame
from counterpoise.studies._types import NO_DROP, Arm, CellId, CellResult, Protocol

PROTOCOL = Protocol(task="binary", folds=5, repeats=2)


def header(protocol: Protocol = PROTOCOL, data_hash: str = "d" * 32, **other: object) -> dict[str, object]:
    return {"data_hash": data_hash, "protocol": protocol.to_dict(), "protocol_hash": protocol.hash, "seed": protocol.seed, **other}


def arms(count: int = 3) -> list[Arm]:
    return [Arm("linear", f"remedy{i}", "data") for i in range(count)]


def cells(count: int = 3, repeats: int = 2, folds: int = 5, drops: tuple[int, ...] = (NO_DROP,)) -> list[CellId]:
    return [CellId(d, r, k, arm.hash) for d in drops for r in range(repeats) for k in range(folds) for arm in arms(count)]


def result(cell: CellId, n: int = 200, dtype: str = "float64") -> CellResult:
    """Numbers that depend on the cell and nothing else."""
    rng = generator(0, cell.drop + 1, cell.repeat, cell.fold, cell.arm)
    scores = rng.standard_normal(n).astype(dtype)
    metrics = {"auroc": float(rng.random()), "log_loss": float(rng.random())}
    return CellResult(scores, [float(rng.random())], metrics, {"C": float(rng.random())}, 0.25, 0.2, 4, 0, 100.0, {"prior": [0.9, 0.1]})


@dataclass(frozen=True)
class FakeWork:
    seconds: float = 0.0
    log: str | None = None

    def __call__(self, cell: CellId) -> CellResult:
        if self.log:
            with open(self.log, "a") as file:  # one short append: lines of several processes do not mix
                file.write(f"{cell.drop} {cell.repeat} {cell.fold} {cell.arm} {os.getpid()}\n")
        time.sleep(self.seconds)
        return result(cell)


def computed(log: Path) -> list[str]:
    """The cells that were computed, as often as they were."""
    return [line.rpartition(" ")[0] for line in log.read_text().splitlines()]


def make_store(folder: Path, count: int = 3, repeats: int = 2, folds: int = 5) -> Store:
    store = Store.join(folder, header())
    store.add_arms(arms(count))
    store.add_cells(cells(count, repeats, folds))
    return store


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    for name, default in (("arms", 3), ("repeats", 2), ("folds", 5), ("jobs", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=0.02)
    parser.add_argument("--engine", default="local")
    options = parser.parse_args()
    with make_store(options.out, options.arms, options.repeats, options.folds) as store:
        work = FakeWork(options.seconds, str(options.out / "computed.log"))
        run_cells(store, work, jobs=options.jobs, engine=options.engine)
        results_frame(store).write_parquet(options.out / "results.parquet")


if __name__ == "__main__":
    main()
