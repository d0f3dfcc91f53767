"""What norms of all per-example gradients and their sums by group cost, beside a plain backward pass and beside the peers.

Two widths of a small CNN and a small transformer, one thread. Every measurement is a process of its own that holds the model and the batch;
methods take turns. Time is CPU time of the process per call, median over the calls and then over the runs, ratios within one run; extra
memory is the peak of three calls above what stood before, what a call returns included. Before anything is timed, every method is compared
with a loop over the examples in float64. BackPACK has no rule for GroupNorm, so it, and ours again, run on the CNN without it.

The bars are about ours without what the peers do not do: no sketch, no leverage, and no comparison of a few examples with a loop, which
``sketch_gradients`` makes before it trusts its hooks unless told not to. These have rows of their own, without bars. What a method gives
differs: the loop and vmap end with norms and group sums, too; opacus' GradSampleModule and BackPACK's BatchGrad end when the gradients of
all examples lie in memory ("norms and sums": computed from these), and the bars are about that; opacus' ghost clipping, BatchL2Grad and
one backward per group give one of the two.

    python3.11 -m venv PEERS && PEERS/bin/pip install -c constraints.txt -e . 'opacus>=1.6,<1.7' backpack-for-pytorch==1.7.1 torchjd==0.18.0
    python benchmarks/per_example_gradients.py --peers PEERS/bin/python      # without --peers: those that this interpreter has
    python benchmarks/per_example_gradients.py --case transformer --runs 1

On a GPU a ResNet-18, a CNN and a larger transformer; one process, with the peers in the same environment:

    python benchmarks/per_example_gradients.py --device cuda
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _device import CPU, add_device, announce, clock, machine, met, peak_bytes
from _ending import keep, said
from _networks import resnet
from torch import Tensor, nn
from torch.nn import functional as F

# Bars: ours (norms and group sums) over the other one, median of the runs.
PLAIN_TIME = 2.0  # forward and backward of the mean loss
GRAD_SAMPLE_TIME, GRAD_SAMPLE_MEMORY = 0.5, 0.3  # opacus GradSampleModule
GHOST_TIME, GHOST_MEMORY = 1.15, 0.6  # opacus ghost clipping, which has no group sums
BATCH_GRAD_TIME = 0.5  # BackPACK BatchGrad
LOOP_TIME = 1 / 2.5  # one backward per example, narrow CNN

GROUPS = 10
VOCABULARY, TOKENS, WIDTH, HEADS, HIDDEN = 5000, 64, 128, 4, 256
CHECKED = 4 * GROUPS  # examples that are compared with the loop on a GPU
CHUNKS = 64, 16  # examples at once under vmap
SKETCH = 256
EXACT = 1e-10  # largest relative error against the loop, float64
SECONDS, CALLS = 1.0, 5  # at least, per process
MIB = 2**20

SAID = {"cpu": "time", "extra": "memory"}
Found = dict[str, Any]
Call = Callable[[Tensor, Tensor], Found]


# -- models -----------------------------------------------------------------------------------------------------------------------------


def cnn(width: int, normalize: bool = True, image: tuple[int, ...] = (1, 16, 16)) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(image[0], width, 3, padding=1),
        *([nn.GroupNorm(4, width)] if normalize else []),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * (image[1] // 4) ** 2, 64),
        nn.ReLU(),
        nn.Linear(64, GROUPS),
    )


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_hidden = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def attend(self, x: Tensor) -> Tensor:
        by_head = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return self.out(F.scaled_dot_product_attention(*by_head).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.before_attention(x))
        return x + self.hidden(self.before_hidden(x))


class Transformer(nn.Module):
    def __init__(self, width: int = WIDTH, heads: int = HEADS, hidden: int = HIDDEN, blocks: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(blocks)))
        self.head = nn.Linear(width, GROUPS)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.embedding(tokens)).mean(1))


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    batch: int
    text: bool = False
    normalized: bool = True
    image: tuple[int, ...] = (1, 16, 16)
    tokens: int = TOKENS

    @property
    def methods(self) -> dict[str, Method]:
        return METHODS if self.normalized else BARE_METHODS

    def build(self, device: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, Tensor]:
        """Model, inputs, and classes, which are the groups too."""
        with torch.device(device):
            torch.manual_seed(0)
            model = self.make().to(dtype)
            y = torch.randperm(self.batch) % GROUPS
            X = torch.randint(VOCABULARY, (self.batch, self.tokens)) if self.text else torch.randn(self.batch, *self.image, dtype=dtype)
        return model, X, y


CASES = {
    "cnn-16": Case("CNN, w = 16", lambda: cnn(16), 256),
    "cnn-64": Case("CNN, w = 64", lambda: cnn(64), 256),
    "cnn-16-bare": Case("CNN without GroupNorm, w = 16", lambda: cnn(16, normalize=False), 256, normalized=False),
    "cnn-64-bare": Case("CNN without GroupNorm, w = 64", lambda: cnn(64, normalize=False), 256, normalized=False),
    "transformer": Case("transformer", Transformer, 64, text=True),
}
COLOR = (3, 32, 32)
GPU_CASES = {
    "gpu-resnet": Case("ResNet-18 with GroupNorm", resnet, 256, image=COLOR),
    "gpu-transformer": Case("transformer, 4 blocks of width 512", lambda: Transformer(512, 8, 2048, 4), 64, text=True, tokens=128),
    "gpu-cnn-bare": Case("CNN without GroupNorm, w = 64", lambda: cnn(64, False, COLOR), 256, normalized=False, image=COLOR),
}
ALL_CASES = CASES | GPU_CASES


# -- methods: each takes a model once, and then batches; what it leaves on the parameters is dropped when it begins -----------------------


def forget(model: nn.Module) -> None:
    for parameter in model.parameters():
        for name in ("grad", "grad_sample", "_norm_sample", "grad_batch", "batch_l2"):
            if hasattr(parameter, name):
                setattr(parameter, name, None)


def reduce_rows(rows: list[Tensor], y: Tensor) -> Found:
    """Norms and group sums from the gradients of all examples, parameter by parameter."""
    members = F.one_hot(y, GROUPS).T.to(rows[0].dtype)
    norms = torch.stack([torch.linalg.vector_norm(row.flatten(1), dim=1) for row in rows])
    return {"norms_sq": norms.square().sum(0), "sums": torch.cat([members @ row.flatten(1) for row in rows], dim=1)}


def plain(model: nn.Module) -> Call:
    def call(X: Tensor, y: Tensor) -> Found:
        forget(model)
        F.cross_entropy(model(X), y).backward()
        return {"mean": [parameter.grad for parameter in model.parameters()]}

    return call


def ours(model: nn.Module, **options: Any) -> Call:
    from counterpoise.diagnostics import sketch_gradients

    loss = nn.CrossEntropyLoss(reduction="none")

    def call(X: Tensor, y: Tensor) -> Found:
        sketch = sketch_gradients(model, loss, (X, y), groups=y, engine="ghost", **options)
        return {"norms_sq": sketch.norms_sq, "sums": sketch.group_sums, "sketch": sketch.S}

    return call


def loop(model: nn.Module) -> Call:
    parameters = list(model.parameters())

    def call(X: Tensor, y: Tensor) -> Found:
        sums = [[torch.zeros_like(parameter) for parameter in parameters] for _ in range(GROUPS)]
        norms = []
        for x, label in zip(X.split(1), y.split(1), strict=True):
            gradients = torch.autograd.grad(F.cross_entropy(model(x), label), parameters)
            norms.append(nn.utils.get_total_norm(gradients))
            torch._foreach_add_(sums[int(label)], gradients)
        return {"norms_sq": torch.stack(norms).square(), "sums": torch.stack([torch.cat([s.flatten() for s in group]) for group in sums])}

    return call


def chunked_vmap(model: nn.Module, chunk: int) -> Call:
    from torch.func import functional_call, grad, vmap

    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, (x[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))

    def call(X: Tensor, y: Tensor) -> Found:
        norms, sums = [], 0
        for x, label in zip(X.split(chunk), y.split(chunk), strict=True):
            part = reduce_rows(list(gradients(weights, x, label).values()), label)
            norms.append(part["norms_sq"])
            sums = sums + part["sums"]
        return {"norms_sq": torch.cat(norms), "sums": sums}

    return call


def by_group(model: nn.Module) -> Call:
    parameters = list(model.parameters())

    def call(X: Tensor, y: Tensor) -> Found:
        sums = []
        for group in range(GROUPS):
            members = y == group
            gradients = torch.autograd.grad(F.cross_entropy(model(X[members]), y[members], reduction="sum"), parameters)
            sums.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return {"sums": torch.stack(sums)}

    return call


def grad_sample_module(model: nn.Module, reduced: bool = False) -> Call:
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model, loss_reduction="sum")

    def call(X: Tensor, y: Tensor) -> Found:
        forget(model)
        F.cross_entropy(wrapped(X), y, reduction="sum").backward()
        rows = [parameter.grad_sample for parameter in model.parameters()]
        return reduce_rows(rows, y) if reduced else {"rows": rows}

    return call


def expanded_weights(model: nn.Module) -> Call:
    """opacus' grad_sample_mode="ew", which it calls beta."""
    from opacus.grad_sample import GradSampleModuleExpandedWeights

    wrapped = GradSampleModuleExpandedWeights(model, loss_reduction="sum")

    def call(X: Tensor, y: Tensor) -> Found:
        forget(model)
        F.cross_entropy(wrapped(X), y, reduction="sum").backward()
        return {"rows": [parameter.grad_sample for parameter in model.parameters()]}

    return call


def opacus_ghost(model: nn.Module) -> Call:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(model, loss_reduction="sum")

    def call(X: Tensor, y: Tensor) -> Found:
        forget(model)
        F.cross_entropy(wrapped(X), y, reduction="sum").backward()
        return {"norms_sq": wrapped.get_norm_sample().square()}

    return call


def opacus_ghost_step(model: nn.Module) -> Call:
    """Its own loss: norms, and a second backward pass for the clipped gradient."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(model, loss_reduction="sum", max_grad_norm=1.0)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(model.parameters(), lr=0.1),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        expected_batch_size=None,
        loss_reduction="sum",
    )
    loss = DPLossFastGradientClipping(wrapped, optimizer, nn.CrossEntropyLoss(reduction="sum"), loss_reduction="sum")

    def call(X: Tensor, y: Tensor) -> Found:
        forget(model)
        loss(wrapped(X), y).backward()
        return {"norms_sq": wrapped.per_sample_gradient_norms.square()}

    return call


def batch_grad(model: nn.Module, reduced: bool = False, save_memory: bool = False) -> Call:
    from backpack import backpack, extend
    from backpack.core.derivatives.convnd import weight_jac_t_save_memory
    from backpack.extensions import BatchGrad

    wrapped, loss = extend(model), extend(nn.CrossEntropyLoss(reduction="sum"))

    def call(X: Tensor, y: Tensor) -> Found:
        forget(model)
        with backpack(BatchGrad()), weight_jac_t_save_memory(save_memory):
            loss(wrapped(X), y).backward()
        rows = [getattr(parameter, "grad_batch", None) for parameter in model.parameters()]
        return reduce_rows(rows, y) if reduced else {"rows": rows}

    return call


def batch_l2(model: nn.Module) -> Call:
    from backpack import backpack, extend
    from backpack.extensions import BatchL2Grad

    wrapped, loss = extend(model), extend(nn.CrossEntropyLoss(reduction="sum"))

    def call(X: Tensor, y: Tensor) -> Found:
        forget(model)
        with backpack(BatchL2Grad()):
            loss(wrapped(X), y).backward()
        return {"norms_sq": torch.stack([parameter.batch_l2 for parameter in model.parameters()]).sum(0)}

    return call


def torchjd_examples(model: nn.Module) -> Call:
    from torchjd.autogram import Engine

    engine = Engine(model, batch_dim=0)

    def call(X: Tensor, y: Tensor) -> Found:
        return {"gramian": engine.compute_gramian(F.cross_entropy(model(X), y, reduction="none"))}

    return call


def torchjd_groups(model: nn.Module) -> Call:
    from torchjd.autogram import Engine

    engine = Engine(model, batch_dim=None)

    def call(X: Tensor, y: Tensor) -> Found:
        losses = F.cross_entropy(model(X), y, reduction="none")
        return {"group_gramian": engine.compute_gramian(losses.new_zeros(GROUPS).index_add(0, y, losses))}

    return call


@dataclass(frozen=True)
class Method:
    prepare: Callable[[nn.Module], Call]
    gives: str
    package: str = ""  # of the peer; none: runs in this interpreter
    time: float | None = None  # bars
    memory: float | None = None
    only: str = ""  # the case its bars are about; all, if empty


OURS, PLAIN = "ours", "plain"
BARE = {"sketch_dim": 0, "leverage": False, "check": False}  # what is not asked of the peers either
METHODS = {
    PLAIN: Method(plain, "mean gradient", time=PLAIN_TIME),
    OURS: Method(lambda model: ours(model, **BARE), "norms, group sums"),
    "ours, checked": Method(lambda model: ours(model, **BARE | {"check": True}), "norms, group sums"),
    "ours, sketch 256": Method(lambda model: ours(model, **BARE | {"sketch_dim": SKETCH}), "norms, group sums, inner products"),
    "ours, by default": Method(ours, "norms, group sums, inner products, leverage"),
    "loop": Method(loop, "norms, group sums", time=LOOP_TIME, only="cnn-16"),
    **{f"vmap, chunks of {n}": Method(lambda model, n=n: chunked_vmap(model, n), "norms, group sums") for n in CHUNKS},
    "one backward per group": Method(by_group, "group sums"),
    "opacus GradSampleModule": Method(grad_sample_module, "all gradients", "opacus", GRAD_SAMPLE_TIME, GRAD_SAMPLE_MEMORY),
    "opacus GradSampleModule, norms and sums": Method(lambda model: grad_sample_module(model, True), "norms, group sums", "opacus"),
    "opacus expanded weights": Method(expanded_weights, "all gradients", "opacus"),
    "opacus ghost": Method(opacus_ghost, "norms", "opacus", GHOST_TIME, GHOST_MEMORY),
    "opacus ghost, its step": Method(opacus_ghost_step, "norms, clipped gradient", "opacus"),
    "TorchJD autogram": Method(torchjd_examples, "Gramian", "torchjd"),
    "TorchJD autogram, groups": Method(torchjd_groups, "Gramian of the groups", "torchjd"),
}
BARE_METHODS = {name: METHODS[name] for name in (PLAIN, OURS)} | {
    "BackPACK BatchGrad": Method(batch_grad, "all gradients", "backpack", BATCH_GRAD_TIME),
    "BackPACK BatchGrad, saving memory": Method(lambda model: batch_grad(model, save_memory=True), "all gradients", "backpack"),
    "BackPACK BatchGrad, norms and sums": Method(lambda model: batch_grad(model, reduced=True), "norms, group sums", "backpack"),
    "BackPACK BatchL2Grad": Method(batch_l2, "norms", "backpack"),
}


# -- one method in a process of its own -------------------------------------------------------------------------------------------------


def kilobytes(name: str) -> int:
    """A line of this process's status (Linux)."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def peak_resident(call: Callable[[], Any], calls: int = 3) -> int:
    """Peak of the process above what stood before; over some calls, since what is freed is not always there for the next one."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide what is needed now
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = kilobytes("VmRSS")
    for _ in range(calls):
        call()
    return 1024 * (kilobytes("VmHWM") - before)


def spent(call: Callable[[], Any], seconds: float, calls: int) -> dict[str, Any]:
    """CPU and wall seconds of each call."""
    found: dict[str, Any] = {"cpu": [], "wall": []}
    while len(found["cpu"]) < calls or sum(found["cpu"]) < seconds:
        wall, cpu = time.perf_counter(), time.process_time()
        kept = call()
        found["cpu"].append(time.process_time() - cpu)
        found["wall"].append(time.perf_counter() - wall)
        del kept
    return found


def measure(case: Case, method: Method, seconds: float, calls: int) -> dict[str, Any]:
    model, X, y = case.build(CPU)
    call = method.prepare(model)
    call(X[: 2 * GROUPS], y[: 2 * GROUPS])  # what libraries set up once
    forget(model)
    extra = peak_resident(lambda: call(X, y))
    # glibc gives freed memory back to the system until a large block has been freed. Training has freed one; without, the small models
    # would be timed at getting zeroed pages.
    torch.ones(31 * MIB // 4)
    call(X, y)
    times = spent(lambda: call(X, y), seconds, calls)
    return {key: median(values) for key, values in times.items()} | {
        "calls": len(times["cpu"]),
        "extra": extra,
        "torch": torch.__version__,
    }


def error(found: Any, truth: Tensor) -> float:
    return float((found - truth).abs().max() / truth.abs().max()) if found.shape == truth.shape else float("inf")


@cache
def gradients_by_loop(case: Case, device: str) -> Found:
    model, X, y = case.build(device, torch.float64)
    return loop(model)(X, y)


def check(case: Case, method: Method, device: str = CPU) -> dict[str, float]:
    """Largest relative errors against the loop, in float64."""
    model, X, y = case.build(device, torch.float64)
    truth = gradients_by_loop(case, device)
    found = method.prepare(model)(X, y)
    if "rows" in found:
        found |= reduce_rows(found["rows"], y)
    errors = {}
    if "mean" in found:
        errors["mean gradient"] = error(torch.cat([gradient.flatten() for gradient in found["mean"]]), truth["sums"].sum(0) / len(y))
    if "gramian" in found:
        members = F.one_hot(y, GROUPS).T.double()
        found |= {"norms_sq": found["gramian"].diagonal(), "group_gramian": members @ found["gramian"] @ members.T}
    if "norms_sq" in found:
        errors["norms"] = error(found["norms_sq"].double().sqrt(), truth["norms_sq"].sqrt())
    if "sums" in found:
        errors["group sums"] = error(found["sums"].double(), truth["sums"])
    if "group_gramian" in found:
        errors["Gramian of the groups"] = error(found["group_gramian"], truth["sums"] @ truth["sums"].T)
    return errors


def left_out_by_backpack() -> list[str]:
    """Parameters of the CNN *with* GroupNorm that get no gradients, although nothing is raised."""
    model, X, y = CASES["cnn-16"].build(CPU)
    rows = batch_grad(model)(X, y)["rows"]
    return [name for (name, _), row in zip(model.named_parameters(), rows, strict=True) if row is None]


# -- a GPU: one process --------------------------------------------------------------------------------------------------------------------


def measure_on_gpu(key: str, methods: dict[str, Method], options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of all methods in turn, and what differs from the loop; a method that fails is said to, and left out."""
    case, device, now = ALL_CASES[key], options.device, clock(options.device)
    rows, missed = [], []
    failed: set[str] = set()
    extra: dict[str, int] = {}

    def one(name: str) -> dict[str, Any]:
        model, X, y = case.build(device)
        call = methods[name].prepare(model)
        call(X[: 2 * GROUPS], y[: 2 * GROUPS])  # what libraries set up once
        forget(model)
        if name in extra:
            call(X, y)  # the allocator warms up
        else:
            extra[name] = peak_bytes(lambda: call(X, y), device)
        times: list[float] = []
        while not times or sum(times) < options.seconds:
            began = now()
            kept = call(X, y)
            times.append(now() - began)
            del kept
        return {"wall": median(times), "calls": len(times), "extra": extra[name]} | machine(device)

    def attempt(name: str, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as problem:  # the others are measured all the same
            failed.add(name)
            print(f"failed: {case.name}, {name}: {type(problem).__name__}: {str(problem)[:200]!r}", flush=True)
            return None
        finally:
            gc.collect()
            torch.cuda.empty_cache()

    for name, method in methods.items():
        errors = attempt(name, lambda method=method: check(replace(case, batch=CHECKED), method, device)) or {}
        say(f"{case.name}, {name}: relative error of " + ", ".join(f"{what} {value:.0e}" for what, value in errors.items()))
        missed += [f"{case.name}, {name}: {what} differ by {value:.0e}" for what, value in errors.items() if not value <= EXACT]
    for run in range(options.runs):
        for name in methods if run % 2 == 0 else reversed(methods):
            found = None if name in failed else attempt(name, lambda name=name: one(name))
            if found:
                rows.append({"case": key, "run": run, "method": name} | found)
                say(f"{case.name}, run {run + 1}, {name}: {1e3 * found['wall']:.1f} ms, {found['extra'] / MIB:.0f} MiB")
    return [row for row in rows if row["method"] not in failed], missed


def main_on_gpu(options: argparse.Namespace) -> int:
    warnings.simplefilter("ignore")  # of the peers, about their hooks
    announce(options.device)
    missed = []
    for key in options.case or GPU_CASES:
        case = ALL_CASES[key]
        methods = {name: method for name, method in case.methods.items() if not method.package or importlib.util.find_spec(method.package)}
        rows, wrong = measure_on_gpu(key, methods, options)
        done = {row["method"] for row in rows}
        judge(key, {name: method for name, method in methods.items() if name in done}, rows, options.device)
        keep("per_example_gradients", rows)
        missed += wrong
    return said(missed, met(options.device))


# -- many runs --------------------------------------------------------------------------------------------------------------------------


def in_fresh_process(python: str, *arguments: str) -> Any:
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run([python, __file__, *arguments], capture_output=True, text=True, env=os.environ | one_thread)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed in {python}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)


def check_all(key: str, methods: dict[str, Method], pythons: dict[str, str]) -> list[str]:
    """What differs from the loop."""
    missed = []
    for name, method in methods.items():
        errors = in_fresh_process(pythons[method.package], "--check", name, "--case", key)
        say(f"{CASES[key].name}, {name}: relative error of " + ", ".join(f"{what} {value:.0e}" for what, value in errors.items()))
        wrong = {what: value for what, value in errors.items() if not value <= EXACT}
        missed += [f"{CASES[key].name}, {name}: {what} differ from the loop by {value:.0e} > {EXACT:.0e}" for what, value in wrong.items()]
    return missed


def measure_all(key: str, methods: dict[str, Method], pythons: dict[str, str], options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for run in range(options.runs):
        for name in methods if run % 2 == 0 else reversed(methods):
            where = ["--one", name, "--case", key, "--seconds", str(options.seconds), "--calls", str(options.calls)]
            one = in_fresh_process(pythons[methods[name].package], *where)
            rows.append({"case": key, "run": run, "method": name, "load": os.getloadavg()[0]} | one)
            say(f"{CASES[key].name}, run {run + 1}, {name}: {1e3 * one['cpu']:.0f} ms of CPU, {one['extra'] / MIB:.0f} MiB")
    return rows


def judge(key: str, methods: dict[str, Method], rows: list[dict[str, Any]], device: str = CPU) -> list[str]:
    """Print the table of a case and say what was missed."""
    case = ALL_CASES[key]
    missed = []
    by = {name: sorted((row for row in rows if row["method"] == name), key=lambda row: row["run"]) for name in methods}

    def middle(name: str, what: str) -> float:
        return median(row[what] for row in by[name])

    def ratio(above: str, below: str, what: str) -> float:
        return median(one[what] / other[what] for one, other in zip(by[above], by[below], strict=True))

    def against(name: str, what: str, bar: float | None) -> str:
        """Ours over that method, and the bar if there is one."""
        found = ratio(OURS, name, what)
        if bar is None or device != CPU:
            return f"{found:.2f}"
        if not found <= bar:
            missed.append(f"{case.name}: ours takes {found:.2f} of the {SAID[what]} of {name} > {bar:.3g}")
        return f"{found:.2f} (bar {bar:.3g})"

    times = ["cpu", "wall"] if device == CPU else ["wall"]
    heads = ["CPU, ms", "wall, ms"] if device == CPU else ["ms"]
    heads = [case.name, "gives", *heads, "over plain", "ours / it", "extra, MiB", "ours / it"]
    print("\n| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for name, method in methods.items():
        time_bar, memory_bar = (method.time, method.memory) if method.only in ("", key) else (None, None)
        cells = [
            *(f"{1e3 * middle(name, what):.1f}" for what in times),
            f"{ratio(name, PLAIN, times[0]):.2f}",
            against(name, times[0], time_bar),
            f"{middle(name, 'extra') / MIB:.0f}",
            against(name, "extra", memory_bar),
        ]
        print(f"| {name} | {method.gives} | " + " | ".join(cells) + " |")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", metavar="PYTHON", default=sys.executable, help="interpreter of an environment with the peers")
    parser.add_argument("--case", choices=ALL_CASES, action="append", help="default: all of the device")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of CPU per process, at least")
    parser.add_argument("--calls", type=int, default=CALLS, help="per process, at least")
    add_device(parser)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--check", help=argparse.SUPPRESS)
    parser.add_argument("--packages", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--left-out", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device != CPU:
        return main_on_gpu(options)
    chosen = options.case or list(CASES)
    if options.packages or options.left_out or options.one or options.check:
        print(json.dumps(run_here(options, chosen[0])))
        return 0
    python = str(Path(options.peers) / "bin" / "python") if Path(options.peers).is_dir() else options.peers
    there = in_fresh_process(python, "--packages")
    pythons = {"": sys.executable} | {package: python for package, version in there.items() if version}
    found, missed = [], []
    for key in chosen:
        methods = {name: method for name, method in CASES[key].methods.items() if method.package in pythons}
        missed += check_all(key, methods, pythons)
        rows = measure_all(key, methods, pythons, options)
        missed += judge(key, methods, rows)
        found += rows
    keep("per_example_gradients", found)
    print(f"\nload of the machine: {min(row['load'] for row in found):.1f} to {max(row['load'] for row in found):.1f}")
    absent = sorted(there.keys() - pythons.keys())
    for package in absent:
        print(f"skipped: {package} is not in {python}; its bars were not judged")
    if len(versions := {row["torch"] for row in found}) > 1:
        missed.append(f"ours and the peers had different versions of torch: {', '.join(sorted(versions))}")
    if "backpack" in pythons:
        names = in_fresh_process(python, "--left-out")
        print(f"BackPACK on the CNN with GroupNorm: no error, and no gradients of {', '.join(names) or 'nothing'}")
    print("\n".join(f"MISSED {line}" for line in missed) or ("all bars that were judged met" if absent else "all bars met"))
    return 1 if missed else 0


def run_here(options: argparse.Namespace, key: str) -> Any:
    """What a process of its own was started for."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the peers, about their hooks
    if options.packages:
        return {package: importlib.util.find_spec(package) is not None for package in ("opacus", "backpack", "torchjd")}
    if options.left_out:
        return left_out_by_backpack()
    case = CASES[key]
    if options.check:
        return check(case, case.methods[options.check])
    return measure(case, case.methods[options.one], options.seconds, options.calls)


if __name__ == "__main__":
    sys.exit(main())
