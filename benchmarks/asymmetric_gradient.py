"""What asymmetric gradients cost in a training step, beside the plain step and beside OGM-GE as published.

Two residual networks (an "audio" one on spectrograms, a "visual" one on pictures), a linear head on both, batches of 64, SGD with momentum,
one thread. One run takes steps of every arm in turn, in one process; the CPU time of an arm is the median of its steps,
and ratios are to the plain step of the same run. *Ours*: AsymmetricGradient with ARLLoss, and its modes "ogm" and "ogm-ge" with the plain
loss, the unimodal logits included. *Published*: ``train_epoch`` of the authors' ``main.py`` (commit 343dc1d) on the same networks, with
modulation Normal, OGM and OGM_GE, over a loader of as many batches; its ratios are to its own Normal.

    git clone https://github.com/GeWu-Lab/OGM-GE_CVPR2022 peers/OGM-GE && git -C peers/OGM-GE checkout 343dc1d
    python benchmarks/asymmetric_gradient.py         # --peer FOLDER if it is elsewhere
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _ending import finish
from torch import Tensor, nn

from counterpoise.gradients import AsymmetricGradient
from counterpoise.losses import ARLLoss, zero_out_unimodal

OVERHEAD = 1.05  # bar: step with ARL over the plain step, median of the runs
OGM_OVERHEAD = 1.05  # bar: step with mode "ogm" over the plain step; so with "ogm-ge"
OURS_OVER_THEIRS = 1.0  # bar: overhead (ratio - 1) of mode "ogm-ge" over that of OGM_GE as published

BATCH, CLASSES, WIDTH, STEPS = 64, 6, 32, 8
SOUND, PICTURE = (1, 64, 48), (3, 64, 64)
PEER = Path("peers/OGM-GE")
OURS = {"plain": None, "arl": "arl", "ogm": "ogm", "ogm-ge": "ogm-ge"}
THEIRS = ("Normal", "OGM", "OGM_GE")


# -- networks -----------------------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
        same = stride == 1 and inside == outside
        self.around = nn.Identity() if same else nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        return (self.second(self.first(x)) + self.around(x)).relu_()


class ResNet(nn.Sequential):
    """Pictures (n, channels, h, w) to features (n, 8 * width): eight blocks in four stages, as in ResNet-18."""

    def __init__(self, channels: int, width: int) -> None:
        stem = [nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
        blocks, inside = [], width
        for stage in range(4):
            for at in range(2):
                blocks.append(Block(inside, width * 2**stage, 2 if stage and not at else 1))
                inside = width * 2**stage
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Fusion(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.fc_out = nn.Linear(2 * features, CLASSES)


class TwoModalities(nn.Module):
    """The names are those that the authors' loop looks for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.audio_net, self.visual_net = ResNet(SOUND[0], width), ResNet(PICTURE[0], width)
        self.fusion_module = Fusion(8 * width)

    def forward(self, sound: Tensor, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, v = self.audio_net(sound), self.visual_net(picture)
        return a, v, self.fusion_module.fc_out(torch.cat([a, v], dim=1))


def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Spectrograms without their channel, pictures, classes."""
    source = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(BATCH, *SOUND[1:], generator=source),
            torch.randn(BATCH, *PICTURE, generator=source),
            torch.randint(CLASSES, (BATCH,), generator=source),
        )
        for _ in range(count)
    ]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)


# -- one step of an arm -------------------------------------------------------------------------------------------------------------------


def ours(arm: str, width: int) -> Callable[[tuple[Tensor, Tensor, Tensor]], None]:
    model = TwoModalities(width).train()
    head = model.fusion_module.fc_out
    optimizer = sgd(model)
    mode = OURS[arm]
    asymmetric = None if mode is None else AsymmetricGradient(2, mode)  # type: ignore[arg-type]
    criterion = ARLLoss() if mode == "arl" else None

    def step(batch: tuple[Tensor, Tensor, Tensor]) -> None:
        sound, picture, target = batch
        optimizer.zero_grad()
        features = (model.audio_net(sound.unsqueeze(1)), model.visual_net(picture))
        if asymmetric is not None:
            features = asymmetric(*features)
        fused = head(torch.cat(features, dim=1))
        if asymmetric is None:
            loss = nn.functional.cross_entropy(fused, target)
        else:
            unimodal = zero_out_unimodal(head, features)
            asymmetric.update(unimodal, target)
            loss = nn.functional.cross_entropy(fused, target) if criterion is None else criterion(fused, unimodal, target)
        loss.backward()
        optimizer.step()
        loss.item()  # as the authors' loop does

    return step


def published(peer: Path, modulation: str, width: int, batch_of: list[Any]) -> Callable[[], float]:
    """A function that takes one epoch of ``train_epoch`` over the batches; returns seconds of CPU for a batch."""
    main = their_main(peer)
    model = Wrapped(TwoModalities(width))
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 70, 0.1)
    args = types.SimpleNamespace(
        modulation=modulation, fusion_method="concat", alpha=0.1, use_tensorboard=False, modulation_starts=0, modulation_ends=50
    )

    def epoch() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            began = time.process_time()
            main.train_epoch(args, 0, model, torch.device("cpu"), batch_of, optimizer, scheduler)
            return (time.process_time() - began) / len(batch_of)

    return epoch


class Wrapped(nn.Module):
    """The model under the name ``module``, as their DataParallel has it; on a CPU that does nothing else."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(*inputs)


def their_main(peer: Path) -> Any:
    """``main.py`` of the clone, unchanged. What it imports for reading audio and video, which is not used here, is replaced by names."""
    if "ogm_main" in sys.modules:
        return sys.modules["ogm_main"]
    stand_ins = {
        "dataset.CramedDataset": ["CramedDataset"], "dataset.VGGSoundDataset": ["VGGSound"], "dataset.dataset": ["AVDataset"],
        "models.basic_model": ["AVClassifier"], "utils.utils": ["setup_seed", "weight_init"], "torch.utils.tensorboard": ["SummaryWriter"],
    }  # fmt: skip
    before = dict(sys.modules)
    for name, members in stand_ins.items():
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, None)
        sys.modules[name] = module
        parent = name.partition(".")[0]
        if parent != "torch":
            sys.modules[parent] = types.ModuleType(parent)
    spec = importlib.util.spec_from_file_location("ogm_main", peer / "main.py")
    assert spec is not None and spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    for name in {*stand_ins, *(name.partition(".")[0] for name in stand_ins)} - {"torch"}:
        if name in before:
            sys.modules[name] = before[name]
        else:
            del sys.modules[name]
    sys.modules["ogm_main"] = main
    return main


# -- many runs ----------------------------------------------------------------------------------------------------------------------------


def compare(peer: Path, steps: int, width: int, run: int) -> dict[str, float]:
    """Milliseconds of a step of each arm. The first round warms up and is not counted."""
    data = batches(2, run)
    own = {arm: ours(arm, width) for arm in OURS}
    theirs = {f"published {name}": published(peer, name, width, data[:1]) for name in THEIRS}
    spent: dict[str, list[float]] = {name: [] for name in (*own, *theirs)}
    for at in range(steps + 1):
        order = [*own, *theirs]
        for name in order if at % 2 else order[::-1]:
            if name in theirs:
                seconds = theirs[name]()
            else:
                began = time.process_time()
                own[name](data[at % len(data)])
                seconds = time.process_time() - began
            if at:
                spent[name].append(seconds)
    return {name: 1000 * float(np.median(values)) for name, values in spent.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, default=PEER, metavar="FOLDER", help="clone of OGM-GE_CVPR2022, with main.py")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--width", type=int, default=WIDTH, help="channels of the first stage")
    options = parser.parse_args()
    if not (options.peer / "main.py").is_file():
        print(f"no main.py in {options.peer}: git clone https://github.com/GeWu-Lab/OGM-GE_CVPR2022, or --peer FOLDER", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    rows = []
    for run in range(options.runs):
        found = compare(options.peer, options.steps, options.width, run)
        rows.append({"run": run, "steps": options.steps, "width": options.width, "ms": found})
        print(f"  run {run + 1} of {options.runs}: plain {found['plain']:.0f} ms, ARL {found['arl']:.0f} ms", flush=True)

    def ratios(arm: str) -> list[float]:
        base = "published Normal" if arm.startswith("published") else "plain"
        return [row["ms"][arm] / row["ms"][base] for row in rows]

    print("\n| step | ms | over the plain step, runs | median |\n|---|---|---|---|")
    for arm in rows[0]["ms"]:
        ms = np.median([row["ms"][arm] for row in rows])
        print(f"| {arm} | {ms:.0f} | {', '.join(f'{ratio:.3f}' for ratio in ratios(arm))} | {np.median(ratios(arm)):.3f} |")
    missed = [
        f"{arm}: {np.median(ratios(arm)):.3f} of the plain step > {bar}"
        for arm, bar in (("arl", OVERHEAD), ("ogm", OGM_OVERHEAD), ("ogm-ge", OGM_OVERHEAD))
        if np.median(ratios(arm)) > bar
    ]
    mine, published_one = (float(np.median(ratios(arm))) - 1 for arm in ("ogm-ge", "published OGM_GE"))
    if mine > OURS_OVER_THEIRS * published_one:
        missed.append(f"overhead of ogm-ge, {mine:.3f}, above that as published, {published_one:.3f}")
    return finish("asymmetric_gradient", rows, missed)


if __name__ == "__main__":
    sys.exit(main())
