"""Merging files against mergekit, and a search against a grid.

Files: eight models and their base, safetensors of one file each, merged into a file: the mean ("linear"), TIES, and spherical
interpolation. mergekit's slerp takes two models, so that its multislerp stands beside our nested slerp of eight (angles are per tensor
there, of the whole model here: one more pass over the files). Every run is a fresh process; the clock starts after imports, memory is how
far the highest resident size grows from there; mapped files count in it. Mean and TIES are compared value by value (where several entries
are as large as the last that TIES keeps, we keep all of them, and mergekit some).

Search: four views of scikit-learn's digits, a perceptron tuned to each, and a probe of 32,000 noisy held-out pictures of all views, as many
as in the paper. Two models: a grid of 20 positions, five weights by four scales; four models: five by five by five weights by four scales.
Self Positioning is given the fewest steps, of 5, 10, 20, ..., that end at the loss of the best of the grid or below. Both move the same
model; the grid's forward passes have no gradients.

    python -m venv peers/mergekit && peers/mergekit/bin/pip install git+https://github.com/arcee-ai/mergekit@a6e4028
    python benchmarks/merging.py --peer peers/mergekit/bin/python
    python benchmarks/merging.py --part search
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _ending import finish

TIME = 1.0  # bar: our time over the peer's, median of the runs, for each method
MEMORY = 2.0  # bar: growth of the peak over one model, shards (here: the one file that is written) not counted
SEARCH = {2: 1 / 2, 4: 1 / 10}  # bars: time of the search over that of the grid, by number of models
SAME, APART = 1e-6, 1e-4  # values that differ by more than the one: no more than this part of all

MODELS, LAYERS, WIDTH = 8, 12, 1024
PEER_METHODS = {"average": "linear", "ties": "ties", "slerp": "multislerp"}
DENSITY = 0.2
PROBE, BATCH, NOISE, STEPS = 32_000, 256, 0.15, 150
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
SCALES = {2: (0.7, 1.0, 1.3, 1.6), 4: (1.0, 1.4, 1.8, 2.2)}


# -- files --------------------------------------------------------------------------------------------------------------------------------


def make_models(folder: Path, layers: int, width: int) -> int:
    """The base and eight models; bytes of one."""
    import torch
    from safetensors.torch import save_file

    draw = torch.Generator().manual_seed(0)
    shapes = {"embed.weight": (4 * width, width)}
    for layer in range(layers):
        shapes |= {f"layers.{layer}.up.weight": (2 * width, width), f"layers.{layer}.down.weight": (width, 2 * width)}
        shapes[f"layers.{layer}.norm.weight"] = (width,)
    base = {name: torch.randn(shape, generator=draw) * 0.02 for name, shape in shapes.items()}
    save_file(base, folder / "base.safetensors")
    for k in range(MODELS):
        tuned = {name: tensor + 0.002 * torch.randn(tensor.shape, generator=draw) for name, tensor in base.items()}
        save_file(tuned, folder / f"model-{k}.safetensors")
    return sum(tensor.nbytes for tensor in base.values())


def resident(what: str) -> int:
    """Bytes resident in this process: now (VmRSS), or at most so far (VmHWM). That of getrusage would include the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))


def one_ours(method: str, folder: Path) -> dict[str, float]:
    import torch

    from counterpoise.weights import merge

    torch.set_num_threads(1)
    models = [folder / f"model-{k}.safetensors" for k in range(MODELS)]
    before, began = resident("VmRSS"), time.perf_counter()
    options = {"density": DENSITY} if method == "ties" else {}
    merge(folder / "base.safetensors", models, method, **options, out=folder / "ours" / "model.safetensors")  # type: ignore[call-overload]
    return {"seconds": time.perf_counter() - began, "growth": resident("VmHWM") - before}


def one_peer(method: str, folder: Path) -> dict[str, float]:
    """What ``mergekit-pytorch`` does with a configuration of one method."""
    import torch
    from mergekit.graph import Executor
    from mergekit.options import MergeOptions
    from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, plan_flat_merge

    torch.set_num_threads(1)
    parameters = {"weight": 1.0} | ({"density": DENSITY} if method == "ties" else {})
    models = [{"model": str(folder / f"model-{k}.safetensors"), "parameters": parameters} for k in range(MODELS)]
    config: dict[str, Any] = {"merge_method": PEER_METHODS[method], "models": models}
    if method != "average":
        config["base_model"] = str(folder / "base.safetensors")
    before, began = resident("VmRSS"), time.perf_counter()
    options = MergeOptions()
    tasks = plan_flat_merge(RawPyTorchMergeConfig.model_validate(config), str(folder / "peer"), False, False, options)
    Executor(tasks, math_device="cpu", storage_device="cpu").execute()
    return {"seconds": time.perf_counter() - began, "growth": resident("VmHWM") - before}


def in_fresh_process(python: str, who: str, method: str, folder: Path) -> dict[str, float]:
    for name in ("ours", "peer"):
        for file in (folder / name).glob("*"):
            file.unlink()
    command = [python, __file__, "--one", who, "--method", method, "--folder", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{who}, {method}: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def merged_tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def compare_files(runs: int, layers: int, width: int, peer: str | None) -> tuple[list[dict[str, Any]], list[str]]:
    found: list[dict[str, Any]] = []
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = make_models(folder, layers, width)
        for run in range(runs):
            for method in PEER_METHODS:
                row: dict[str, Any] = {"part": "files", "run": run, "method": method, "model": size}
                row["ours"] = in_fresh_process(sys.executable, "ours", method, folder)
                ours = merged_tensors(folder / "ours") if run == 0 and method != "slerp" else {}
                if peer:
                    row["peer"] = in_fresh_process(peer, "peer", method, folder)
                    if ours:
                        theirs = merged_tensors(folder / "peer")
                        apart = sum(int(((ours[name] - theirs[name]).abs() > SAME).sum()) for name in ours)
                        row["apart"] = apart / sum(tensor.numel() for tensor in ours.values())
                found.append(row)
    print(f"\n{MODELS} models of {size / 2**20:.0f} MiB; median of {runs} runs\n")
    print("| | ours, s | mergekit, s | ours / mergekit | ours, memory / model | mergekit, memory / model |\n|---|---|---|---|---|---|")
    for method, theirs in PEER_METHODS.items():
        rows = [row for row in found if row["method"] == method]
        seconds, growth = (median([row["ours"][what] for row in rows]) for what in ("seconds", "growth"))
        cells = [method if method == theirs else f"{method} ({theirs})", f"{seconds:.1f}", "", "", f"{growth / size:.2f}", ""]
        if peer:
            ratio = median([row["ours"]["seconds"] / row["peer"]["seconds"] for row in rows])
            cells[2] = f"{median([row['peer']['seconds'] for row in rows]):.1f}"
            cells[3], cells[5] = f"{ratio:.2f}", f"{median([row['peer']['growth'] for row in rows]) / size:.2f}"
            if ratio > TIME:
                missed.append(f"{method}: {ratio:.2f} of the peer's time > {TIME:g}")
            apart = max((row["apart"] for row in rows if "apart" in row), default=0.0)
            if apart > APART:
                missed.append(f"{method}: {apart:.1e} of the values differ > {APART:g}")
        if growth - size > MEMORY * size:  # the file that is written is the shard
            missed.append(f"{method}: memory grows by {growth / size:.2f} models > {MEMORY:g} and the file that is written")
        print(f"| {' | '.join(cells)} |")
    if not peer:
        print("\nno --peer: times are ours alone")
    return found, missed


# -- search -------------------------------------------------------------------------------------------------------------------------------


def digits() -> tuple[Any, Any, Any, Any]:
    """A base, four models, and the probe: pictures and digits, views in turn."""
    import copy

    import torch
    from sklearn.datasets import load_digits
    from torch import nn

    X, y = load_digits(return_X_y=True)
    X, y = torch.from_numpy(X / 16).float(), torch.from_numpy(y).long()
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(X), generator=draw)
    train, held = order[:1197], order[1197:]
    mixed = torch.randperm(64, generator=draw)
    views = [
        lambda x: x,
        lambda x: x.view(-1, 8, 8).transpose(1, 2).reshape(-1, 64),
        lambda x: 1 - x,
        lambda x: x[:, mixed],
    ]

    def batch(rows: Any, view: int, count: int) -> tuple[Any, Any]:
        at = rows[torch.randint(len(rows), (count,), generator=draw)]
        return views[view](X[at]) + NOISE * torch.randn(count, 64, generator=draw), y[at]

    def tuned(model: nn.Module, chosen: list[int], steps: int) -> nn.Module:
        model = copy.deepcopy(model)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for step in range(steps):
            x, labels = batch(train, chosen[step % len(chosen)], 64)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), labels).backward()
            optimizer.step()
        return model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    base = tuned(base, [0, 1, 2, 3], 60)
    return base, [tuned(base, [view], STEPS) for view in range(4)], batch, held


def search(models: int, probe: int) -> dict[str, Any]:
    import torch
    from torch.nn import functional as F
    from torch.utils.data import DataLoader, TensorDataset

    from counterpoise.weights import SelfPositioning
    from counterpoise.weights._models import Models
    from counterpoise.weights._positioning import MergedModel
    from counterpoise.weights._slerp import slerp_coefficients

    torch.set_num_threads(1)
    base, tuned, batch, held = digits()
    own = tuned[:models]
    parts = [batch(held, view, probe // models) for view in range(models)]
    X, y = torch.cat([x for x, _ in parts]), torch.cat([labels for _, labels in parts])

    def loss_fn(model: Any, rows: Any) -> Any:
        return F.cross_entropy(model(rows[0]), rows[1])

    @torch.no_grad()
    def whole(network: Any) -> float:
        return float(F.cross_entropy(network(X), y))

    began = time.perf_counter()
    opened = Models(base, own)
    gram = opened.gram()
    moved = MergedModel(base, opened, list(range(models)))
    best = float("inf")
    count = 0
    for shares in itertools.product(SHARES, repeat=models - 1):
        # The weights whose nested rule takes these steps along the arcs.
        a = [1.0]
        for t in shares:
            a.append(t / (1 - t) * sum(a) / len(a))
        c = slerp_coefficients(gram, torch.tensor(a, dtype=torch.float64), "mean")
        for scale in SCALES[models]:
            moved.move(scale * c)
            best = min(best, whole(moved.network))
            count += 1
    grid = time.perf_counter() - began
    loader = DataLoader(TensorDataset(X, y), batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(0))
    for steps in (5, 10, 20, 40, 80, 160, 320):
        began = time.perf_counter()
        result = SelfPositioning().fit(base, own, loader, loss_fn, steps=steps, mu=0.0)
        spent = time.perf_counter() - began
        moved.move(result.coefficients)
        reached = whole(moved.network)
        if reached <= best:
            break
    return {
        "part": "search", "models": models, "positions": count, "grid": grid, "grid_loss": best,
        "steps": steps, "seconds": spent, "loss": reached, "reached": reached <= best,
    }  # fmt: skip


def compare_search(runs: int, probe: int) -> tuple[list[dict[str, Any]], list[str]]:
    found = [{"run": run} | search(models, probe) for run in range(runs) for models in SEARCH]
    missed = []
    print(f"\nprobe of {probe:,} examples; median of {runs} runs\n")
    print("| models | positions of the grid | grid, s | its loss | steps | search, s | its loss | search / grid |\n" + "|---" * 8 + "|")
    for models, bar in SEARCH.items():
        rows = [row for row in found if row["models"] == models]
        ratio = median([row["seconds"] / row["grid"] for row in rows])
        grid, seconds = (median([row[name] for row in rows]) for name in ("grid", "seconds"))
        row = rows[0]
        print(
            f"| {models} | {row['positions']} | {grid:.2f} | {row['grid_loss']:.4f} | {row['steps']} | {seconds:.3f} | {row['loss']:.4f} "
            f"| {ratio:.3f} |"
        )
        if not all(row["reached"] for row in rows):
            missed.append(f"{models} models: the loss of the grid was not reached")
        elif ratio > bar:
            missed.append(f"{models} models: {ratio:.3f} of the grid's time > {bar:g}")
    return found, missed


def median(values: list[float]) -> float:
    import statistics

    return statistics.median(values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("files", "search", "both"), default="both")
    parser.add_argument("--peer", help="python of an environment that has mergekit")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--probe", type=int, default=PROBE)
    parser.add_argument("--one", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps((one_ours if options.one == "ours" else one_peer)(options.method, options.folder)))
        return 0
    peer = options.peer
    if peer is None and options.part != "search":
        default = Path("peers/mergekit/bin/python")
        peer = str(default) if default.is_file() else None
    found: list[dict[str, Any]] = []
    missed: list[str] = []
    if options.part in ("files", "both"):
        rows, wrong = compare_files(options.runs, options.layers, options.width, peer)
        found, missed = found + rows, missed + wrong
    if options.part in ("search", "both"):
        rows, wrong = compare_search(options.runs, options.probe)
        found, missed = found + rows, missed + wrong
    return finish("merging", found, missed)


if __name__ == "__main__":
    sys.exit(main())
