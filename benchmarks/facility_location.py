"""Facility location against submodlib-py and apricot-select, and the memory that a coreset of half a pool saves.

*Time*: n/2 picks of n rows of 64 normal numbers, from l1 similarities in float32 that are in memory already; wall time with one thread.
Ours and the peers, which live in an environment of their own, take turns in every run; ratios are within a run, the median counts. What the
picks are worth is computed here from all similarities. apricot compiles anew in every fit, and so it is timed.

*Memory*: three steps of a small causal language model with LoRA in the last attention, on a whole pool of 64 sequences, and on the 32 that
MiniBatchCoreset chooses by their gradients at the LoRA matrix, taken of 16 sequences at a time. Peak of a fresh process above what
it held before the model was made: weights, gradients and the optimizer's state are among it.

    python benchmarks/facility_location.py                           # makes the environment of the peers where temporary files go
    python benchmarks/facility_location.py --peers PEERS/bin/python   # one that is there: submodlib-py==0.0.3 apricot-select==0.6.1 nose
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

OVER_APRICOT = 5.0  # bar: time of apricot over ours, every size
WITHIN_SUBMODLIB = 3.0  # bar: our time over that of submodlib-py at the largest size
SAME = 1e-6  # bar: relative difference in value between ours and submodlib-py
MEMORY = 1.5  # bar: peak of training on the whole pool over that of the coreset

SIZES, COLUMNS = (128, 512, 1024), 64
OURS, SUBMODLIB, APRICOT = "counterpoise", "submodlib-py", "apricot-select"
REQUIREMENTS = ("submodlib-py==0.0.3", "apricot-select==0.6.1", "nose==1.3.7", "numpy<2.5")
POOL, PART, BUDGET, LENGTH, WORDS, WIDTH, LAYERS, HEADS, RANK, STEPS = 64, 16, 32, 128, 1000, 256, 4, 4, 8, 3
MIB = 2**20
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
RESULTS = Path(__file__).parent / "results" / "facility_location.jsonl"


# -- one arm: a process that answers one line of JSON for each line it is given; it imports only what it times ---------------------------


def answer() -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # peers print
    for line in sys.stdin:
        arm, path = json.loads(line)
        similarity = np.load(path)
        began = time.perf_counter()
        picks = ARMS[arm](similarity, len(similarity) // 2)
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "picks": [int(pick) for pick in picks]}), file=out, flush=True)


def ours(similarity: Any, budget: int) -> Any:
    from counterpoise.data import facility_location

    return facility_location(similarity.max() - similarity, budget, "precomputed").indices.tolist()


def submodlib(similarity: Any, budget: int) -> Any:
    from submodlib import FacilityLocationFunction

    function = FacilityLocationFunction(n=len(similarity), sijs=similarity, separate_rep=False, mode="dense")
    how = {"stopIfZeroGain": False, "stopIfNegativeGain": False, "show_progress": False}
    return [pick for pick, _ in function.maximize(budget=budget, optimizer="LazyGreedy", **how)]


def apricot(similarity: Any, budget: int) -> Any:
    from apricot import FacilityLocationSelection

    return FacilityLocationSelection(budget, metric="precomputed", optimizer="lazy").fit(similarity).ranking


ARMS = {OURS: ours, SUBMODLIB: submodlib, APRICOT: apricot}


class Arm:
    """A process of its own, imports done."""

    def __init__(self, name: str, python: str, warm: str) -> None:
        self.name = name
        command = [python, __file__, "--answer"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD)
        self(warm)

    def __call__(self, path: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps([self.name, path]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended with {self.process.wait()}.")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def peers_python(given: str | None) -> str:
    """The interpreter that has the peers; made where temporary files go, once, if none is given."""
    if given is not None:
        return str(Path(given) / "bin" / "python") if Path(given).is_dir() else given
    folder = Path(tempfile.gettempdir()) / "counterpoise-peers-facility-location"
    python = folder / "bin" / "python"
    if subprocess.run([str(python), "-c", "import submodlib, apricot"], capture_output=True).returncode if python.exists() else True:
        print(f"installing {', '.join(REQUIREMENTS)} in {folder}")
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    return str(python)


def value(similarity: Any, picks: list[int]) -> float:
    return float(similarity[:, picks].max(axis=1).astype(np.float64).sum())


def compare_time(runs: int, sizes: tuple[int, ...], peers: str, rows: list[dict[str, Any]]) -> list[str]:
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for n in (8, *sizes):
            x = np.random.default_rng(n).normal(size=(n, COLUMNS))
            distances = np.stack([np.abs(x - row).sum(axis=1) for row in x]).astype(np.float32)
            paths[n] = f"{folder}/{n}.npy"
            np.save(paths[n], distances.max() - distances)
        arms = [Arm(name, sys.executable if name == OURS else peers, paths[8]) for name in ARMS]
        found = [
            {"part": "time", "run": run, "n": n, "arm": arm.name} | arm(paths[n])
            for n in sizes
            for run in range(runs)
            for arm in (arms if run % 2 else arms[::-1])
        ]
        for arm in arms:
            arm.close()
        print("| n | arm | seconds | over ours | value |\n|---|---|---|---|---|")
        for n in sizes:
            similarity = np.load(paths[n])
            by_arm = {name: [row for row in found if row["n"] == n and row["arm"] == name] for name in ARMS}
            worth = {name: value(similarity, by_arm[name][0]["picks"]) for name in ARMS}
            over = {
                name: median(row["seconds"] / own["seconds"] for row, own in zip(by_arm[name], by_arm[OURS], strict=True)) for name in ARMS
            }
            for name in ARMS:
                seconds = median(row["seconds"] for row in by_arm[name])
                print(f"| {n:,} | {name} | {seconds:.4f} | {over[name]:.2f} | {worth[name]:.6g} |")
            if over[APRICOT] < OVER_APRICOT:
                missed.append(f"n = {n}: {APRICOT} takes {over[APRICOT]:.2f} of our time, not {OVER_APRICOT:g}")
            if n == sizes[-1] and 1 / over[SUBMODLIB] > WITHIN_SUBMODLIB:
                missed.append(f"n = {n}: ours takes {1 / over[SUBMODLIB]:.2f} of the time of {SUBMODLIB}, not {WITHIN_SUBMODLIB:g}")
            if abs(worth[OURS] / worth[SUBMODLIB] - 1) > SAME:
                missed.append(f"n = {n}: values {worth[OURS]!r} and {worth[SUBMODLIB]!r}")
    rows += [{key: item for key, item in row.items() if key != "picks"} for row in found]
    return missed


# -- memory -------------------------------------------------------------------------------------------------------------------------------


def peak(kind: str) -> dict[str, Any]:
    """Three steps of training, in this process."""
    import torch
    from torch import Tensor, nn
    from torch.nn import functional as F

    from counterpoise.data import MiniBatchCoreset
    from counterpoise.diagnostics import gradient_features

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.lora_a, self.lora_b = nn.Linear(WIDTH, RANK, bias=False), nn.Linear(RANK, WIDTH, bias=False)
            self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            h = self.before(x)
            parts = (self.query(h), self.key(h), self.value(h) + self.lora_b(self.lora_a(h)))
            q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in parts)
            x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            return x + self.mlp(self.between(x))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.blocks = nn.Embedding(WORDS, WIDTH), nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.head = nn.Linear(WIDTH, WORDS)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.blocks(self.embed(ids)))

    def losses(model: nn.Module, ids: Tensor) -> Tensor:
        return F.cross_entropy(model(ids[:, :-1]).transpose(1, 2), ids[:, 1:], reduction="none").mean(dim=1)

    torch.set_num_threads(1)
    torch.manual_seed(0)
    # What the first call of everything loads is not what a step needs.
    warm = nn.Linear(2, 2)
    gradient_features(warm, lambda model, x: model(x).sum(dim=1), torch.ones(2, 2), "")
    F.cross_entropy(warm(torch.ones(2, 2)), torch.zeros(2, dtype=torch.int64)).backward()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = Model()
    optimizer = torch.optim.Adam(model.parameters())
    coreset = MiniBatchCoreset(BUDGET, [700, 300, 60, 30])
    rng = torch.Generator().manual_seed(0)
    sources = torch.repeat_interleave(torch.arange(4), torch.tensor([41, 17, 4, 2]))
    began = time.process_time()
    for _ in range(STEPS):
        pool = torch.randint(0, WORDS, (POOL, LENGTH + 1), generator=rng)
        if kind == "coreset":
            parts = [gradient_features(model, losses, part, f"blocks.{LAYERS - 1}.lora_b") for part in pool.split(PART)]
            pool = pool[coreset(torch.cat(parts), sources)]
        optimizer.zero_grad()
        losses(model, pool).mean().backward()
        optimizer.step()
    cpu = time.process_time() - began
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": after - before, "process": after, "cpu": cpu / STEPS}


def compare_memory(runs: int, rows: list[dict[str, Any]]) -> list[str]:
    kinds = ("whole", "coreset")
    found = []
    for run in range(runs):
        for kind in kinds if run % 2 else kinds[::-1]:
            command = [sys.executable, __file__, "--peak", kind]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | ONE_THREAD)
            found.append({"part": "memory", "run": run, "arm": kind} | json.loads(done.stdout.splitlines()[-1]))
    rows += found
    middle = {
        kind: {name: median(row[name] for row in found if row["arm"] == kind) for name in ("peak", "process", "cpu")} for kind in kinds
    }
    print("\n| trained on | peak, MiB | whole process, MiB | CPU s a step |\n|---|---|---|---|")
    for kind, text in (("whole", f"the pool of {POOL}"), ("coreset", f"{BUDGET} of {POOL}")):
        numbers = middle[kind]
        print(f"| {text} | {numbers['peak'] / MIB:.0f} | {numbers['process'] / MIB:.0f} | {numbers['cpu']:.2f} |")
    ratio = middle["whole"]["peak"] / middle["coreset"]["peak"]
    print(f"\nThe whole pool takes {ratio:.2f} times the memory.")
    return [] if ratio >= MEMORY else [f"memory: the whole pool takes {ratio:.2f} times that of the coreset, not {MEMORY:g}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter of an environment with the peers")
    parser.add_argument("--part", choices=("time", "memory"), help="one part only")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--peak", choices=("whole", "coreset"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        answer()
        return 0
    if options.peak:
        print(json.dumps(peak(options.peak)))
        return 0
    rows: list[dict[str, Any]] = []
    missed = []
    if options.part != "memory":
        missed += compare_time(options.runs, tuple(options.sizes), peers_python(options.peers), rows)
    if options.part != "time":
        missed += compare_memory(options.runs, rows)
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
        file.writelines(json.dumps({"at": stamp} | row) + "\n" for row in rows)
    print("\n" + ("\n".join(f"MISSED {line}" for line in missed) if missed else "all bars met"))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
