"""Steps per second of a physics-informed network: derivatives carried forward, against differentiating twice, and against DeepXDE.

The Helmholtz equation of the paper (arXiv:2001.04536): 50 x 3 units with tanh, plain and gated, Adam, the sum of the mean squared residual
at 128 points inside and of the squared error at 512 on the border, the same points at every step. ``taylor`` carries derivatives
forward (``GatedMLP.derivatives``), ``compiled`` does so under ``torch.compile``, ``nested`` is plain torch with ``autograd.grad`` twice,
and DeepXDE its own ``Model.train`` on the same points and weights. ``annealed`` steps through ``backward(losses, GradientAnnealing())``.
One thread; blocks of steps of each in turn; DeepXDE in fresh processes, between them. Errors are those after a training of each from five
seeds.

    python benchmarks/pinn.py --deepxde PYTHON    # interpreter of an environment with torch and DeepXDE (pip install deepxde)
    python benchmarks/pinn.py                     # without that peer: its bars are missed
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from _ending import finish

OVER_DEEPXDE = 2.0  # bar: our steps per second (taylor, eager) over DeepXDE's, median of the runs, both networks
OVER_NESTED = 1.0  # bar: taylor is not slower than nested, both networks
NOISE = 2.0  # bar: difference of the mean log errors of ours and DeepXDE's, in standard errors of that difference

WIDTH, LAYERS, INSIDE, SIDE, RATE = 50, 3, 128, 128, 1e-3
NETWORKS = ("plain", "gated")


def points() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    inside = rng.uniform(-1, 1, (INSIDE, 2))
    border = rng.uniform(-1, 1, (4, SIDE, 2))
    border[0, :, 0], border[1, :, 0], border[2, :, 1], border[3, :, 1] = -1, 1, -1, 1
    return inside.astype(np.float32), border.reshape(-1, 2).astype(np.float32)


def solution(x: np.ndarray) -> np.ndarray:
    return np.sin(math.pi * x[:, :1]) * np.sin(4 * math.pi * x[:, 1:])


def grid() -> np.ndarray:
    line = np.linspace(-1, 1, 100, dtype=np.float32)
    return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)


def error(values: np.ndarray) -> float:
    exact = solution(grid())
    return float(np.linalg.norm(values - exact) / np.linalg.norm(exact))


# -- ours, and plain torch ----------------------------------------------------------------------------------------------------------------


class Training:
    """One network with its optimizer, and a step of it. ``kind``: taylor, compiled, nested or annealed."""

    def __init__(self, network: str, kind: str, seed: int = 0) -> None:
        import torch

        from counterpoise.gradients import GradientAnnealing
        from counterpoise.replications import pinn_pathologies

        self.model = pinn_pathologies.network(network == "gated", 2, 0.0, 1.0, seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)
        self.inside, self.border = (torch.from_numpy(part) for part in points())
        self.source = pinn_pathologies.source(self.inside)
        self.aggregator = GradientAnnealing() if kind == "annealed" else None
        self.bent: Callable[[], Any] = self.nested if kind == "nested" else self.forward
        self.derivatives = torch.compile(self.model.derivatives) if kind == "compiled" else self.model.derivatives

    def forward(self) -> tuple[Any, Any]:
        u, _, bend = self.derivatives(self.inside)
        return u, bend.sum(dim=0)

    def nested(self) -> tuple[Any, Any]:
        import torch

        x = self.inside.requires_grad_()
        u = self.model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        bends = [torch.autograd.grad(slope[:, j].sum(), x, create_graph=True)[0] for j in range(2)]
        return u, bends[0][:, :1] + bends[1][:, 1:]

    def step(self) -> None:
        from counterpoise.gradients import backward

        u, laplacian = self.bent()
        residual = (laplacian + u - self.source).square().mean()
        boundary = 4 * self.model(self.border).square().mean()
        self.optimizer.zero_grad()
        if self.aggregator is None:
            (residual + boundary).backward()
        else:
            backward({"residual": residual, "boundary": boundary}, self.aggregator)
        self.optimizer.step()

    def error(self) -> float:
        import torch

        with torch.no_grad():
            return error(self.model(torch.from_numpy(grid())).numpy())


def timed(trainings: dict[str, Training], steps: int) -> dict[str, float]:
    """Milliseconds per step of each, one block after the other."""
    found = {}
    for name, training in trainings.items():
        began = time.perf_counter()
        for _ in range(steps):
            training.step()
        found[name] = (time.perf_counter() - began) / steps * 1000
    return found


# -- DeepXDE, in its own environment ------------------------------------------------------------------------------------------------------


def deepxde_here(network: str, steps: int, seed: int) -> dict[str, float]:
    os.environ["DDE_BACKEND"] = "pytorch"
    import deepxde as dde
    import torch

    torch.set_num_threads(1)
    dde.config.set_random_seed(seed)
    inside, border = points()

    def equation(x: Any, u: Any) -> Any:
        bends = [dde.grad.hessian(u, x, i=j, j=j) for j in range(2)]
        q = (1 - 17 * math.pi**2) * torch.sin(math.pi * x[:, :1]) * torch.sin(4 * math.pi * x[:, 1:])
        return bends[0] + bends[1] + u - q

    class Gated(dde.nn.pytorch.NN):
        def __init__(self) -> None:
            super().__init__()
            sizes = [2] + [WIDTH] * (LAYERS - 1)
            self.encoders = torch.nn.ModuleList(torch.nn.Linear(2, WIDTH) for _ in range(2))
            self.hidden = torch.nn.ModuleList(torch.nn.Linear(size, WIDTH) for size in sizes)
            self.out = torch.nn.Linear(WIDTH, 1)
            for layer in [*self.encoders, *self.hidden, self.out]:
                torch.nn.init.xavier_normal_(layer.weight)
                torch.nn.init.zeros_(layer.bias)
            for layer in self.encoders:
                torch.nn.init.xavier_normal_(layer.bias[None])

        def forward(self, x: Any) -> Any:
            u, v = (torch.tanh(layer(x)) for layer in self.encoders)
            h = x
            for layer in self.hidden:
                z = torch.tanh(layer(h))
                h = z * u + (1 - z) * v
            return self.out(h)

    # Boundary points as a set of their own, so that the residual is asked inside only, as in ours.
    boundary = dde.icbc.PointSetBC(border, np.zeros((len(border), 1), dtype=np.float32))
    square = dde.geometry.Rectangle([-1, -1], [1, 1])
    data = dde.data.PDE(square, equation, [boundary], num_domain=0, num_boundary=0, anchors=inside)
    net = Gated() if network == "gated" else dde.nn.FNN([2] + [WIDTH] * LAYERS + [1], "tanh", "Glorot normal")
    model = dde.Model(data, net)
    model.compile("adam", lr=RATE, loss_weights=[1, 4])
    model.train(iterations=10, display_every=10_000, verbose=0)
    began = time.perf_counter()
    model.train(iterations=steps, display_every=10_000, verbose=0)
    return {"ms": (time.perf_counter() - began) / steps * 1000, "error": error(model.predict(grid()))}


def deepxde(python: str, network: str, steps: int, seed: int = 0) -> dict[str, float]:
    command = [python, __file__, "--deepxde-here", network, str(steps), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


# -- many runs ----------------------------------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepxde", metavar="PYTHON", help="interpreter of an environment with torch and DeepXDE")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200, help="in a block")
    parser.add_argument("--train", type=int, default=2000, help="steps of a training whose error is compared; 0: none")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--deepxde-here", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.deepxde_here:
        network, steps, seed = options.deepxde_here
        print(json.dumps(deepxde_here(network, int(steps), int(seed))))
        return 0
    import torch

    torch.set_num_threads(1)
    kinds = ("taylor", "compiled", "nested", "annealed")
    rows: list[dict[str, Any]] = []
    for network in NETWORKS:
        trainings = {kind: Training(network, kind) for kind in kinds}
        timed(trainings, 20)  # compiled and warm
        for run in range(options.runs):
            ms = timed(trainings, options.steps)
            if options.deepxde:
                ms["deepxde"] = deepxde(options.deepxde, network, options.steps)["ms"]
            rows.append({"part": "time", "network": network, "run": run, "ms": ms})
        print(f"  {network}: timed", flush=True)
        for seed in range(options.seeds if options.train else 0):
            errors = {}
            for kind in ("taylor", "nested", "annealed"):
                training = Training(network, kind, seed)
                timed({kind: training}, options.train)
                errors[kind] = training.error()
            if options.deepxde:
                errors["deepxde"] = deepxde(options.deepxde, network, options.train, seed)["error"]
            rows.append({"part": "error", "network": network, "seed": seed, "steps": options.train, "error": errors})
            print(f"  {network}: error of seed {seed}", flush=True)
    missed = report(rows, options)
    return finish("pinn", rows, missed)


def report(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[str]:
    missed = [] if options.deepxde else ["DeepXDE was not measured: --deepxde PYTHON"]
    names = ["taylor", "compiled", "nested", "annealed"] + ["deepxde"] * bool(options.deepxde)
    print(
        "\n| ms per step | "
        + " | ".join(names)
        + " | taylor faster than nested | than DeepXDE | compiled faster than DeepXDE | annealed over taylor |"
    )
    print("|---" * (len(names) + 5) + "|")
    for network in NETWORKS:
        own = [row["ms"] for row in rows if row["part"] == "time" and row["network"] == network]
        nested, annealed = (float(np.median([ms[a] / ms[b] for ms in own])) for a, b in (("nested", "taylor"), ("annealed", "taylor")))
        peer = {kind: float(np.median([ms["deepxde"] / ms[kind] for ms in own])) for kind in ("taylor", "compiled") if options.deepxde}
        cells = [f"{np.median([ms[name] for ms in own]):.2f}" for name in names]
        cells += [f"{nested:.2f}", *(f"{peer[kind]:.2f}" if peer else "" for kind in ("taylor", "compiled")), f"{annealed:.2f}"]
        print(f"| {network} | " + " | ".join(cells) + " |")
        if nested < OVER_NESTED:
            missed.append(f"{network}: {nested:.2f} times the steps of nested per second < {OVER_NESTED}")
        if peer and peer["taylor"] < OVER_DEEPXDE:
            missed.append(f"{network}: {peer['taylor']:.2f} times the steps of DeepXDE per second < {OVER_DEEPXDE}")
    errors = [row for row in rows if row["part"] == "error"]
    if not errors:
        return missed
    names = ["taylor", "nested", *(["deepxde"] if options.deepxde else []), "annealed"]
    print(f"\n| relative error after {options.train} steps, by seed | " + " | ".join(names) + " | difference to DeepXDE, standard errors |")
    print("|---" * (len(names) + 2) + "|")
    for network in NETWORKS:
        own = [row["error"] for row in errors if row["network"] == network]
        logs = {name: np.log([row[name] for row in own]) for name in names}
        cells = [f"{', '.join(f'{row[name]:.3g}' for row in own)} (mean {math.exp(logs[name].mean()):.3g})" for name in names]
        away = ""
        if options.deepxde and len(own) > 1:
            spread = math.sqrt(sum(float(logs[name].var(ddof=1)) for name in ("taylor", "deepxde")) / len(own))
            distance = float(logs["taylor"].mean() - logs["deepxde"].mean()) / spread
            away = f"{distance:+.1f}"
            if abs(distance) > NOISE:
                missed.append(f"{network}: errors of ours and DeepXDE's differ by {distance:+.1f} standard errors")
        print(f"| {network} | " + " | ".join(cells) + f" | {away} |")
    return missed


if __name__ == "__main__":
    sys.exit(main())
