"""What merging holds in memory: processes of their own, which report their highest resident size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

LAYERS, WIDTH, MODELS = 8, 768, 8
MODEL = LAYERS * WIDTH * WIDTH * 4 + 8 * WIDTH * WIDTH * 4  # bytes, the embedding included
SHARD = 8 * WIDTH * WIDTH * 4  # the largest file

SCRIPT = """
import json, sys, torch
from torch import nn
from counterpoise.weights import SelfPositioning, merge

def resident(what):
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(what))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(8 * {width}, {width})
        self.layers = nn.Sequential(*(nn.Linear({width}, {width}, bias=False) for _ in range({layers})))
    def forward(self, words):
        return self.layers(self.embed(words))

job, base, out, *models = sys.argv[1:]
small = nn.Linear(2, 2)  # what a first use loads is no part of the account
SelfPositioning().fit(small, [nn.Linear(2, 2)], [torch.ones(2, 2)], lambda model, x: model(x).square().mean(), steps=1)
if job == "fit":
    with torch.device("meta"):
        net = Net()
    net.load_state_dict(torch.load(out), assign=True)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the highest so far is forgotten
start = resident("VmRSS")
if job == "fit":
    result = SelfPositioning().fit(net, models, [torch.arange(4)], lambda model, words: model(words).square().mean(), steps=2)
    assert len(result.history) == 2
else:
    merge(base, models, job, out=out)
print(json.dumps(resident("VmHWM") - start))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    paths = []
    for k in range(MODELS + 1):
        folder = root / f"model-{k}"
        folder.mkdir()
        layers = {f"layers.{i}.weight": torch.randn(WIDTH, WIDTH, generator=generator) * 0.01 for i in range(LAYERS)}
        embed = {"embed.weight": torch.randn(8 * WIDTH, WIDTH, generator=generator) * 0.01}
        files = {"model-00001-of-00002.safetensors": embed, "model-00002-of-00002.safetensors": layers}
        for file, tensors in files.items():
            save_file(tensors, folder / file)
        held = {name: file for file, tensors in files.items() for name in tensors}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": held}))
        if k == 0:
            torch.save(layers | embed, root / "base.pt")
        paths.append(folder)
    return paths


def grown(job: str, base: Path, out: Path, models: list[Path]) -> int:
    """Bytes by which the resident memory of a new process grows beyond what importing takes."""
    script = SCRIPT.format(width=WIDTH, layers=LAYERS)
    command = [sys.executable, "-c", script, job, str(base), str(out), *map(str, models)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("job", ["slerp", "ties"])
def test_models_in_files_are_never_in_memory_together(job, folders, tmp_path) -> None:
    base, *models = folders
    grew = grown(job, base, tmp_path / "out", models)
    assert grew < 2 * MODEL + SHARD  # the bar
    assert (tmp_path / "out" / "model-00002-of-00002.safetensors").is_file()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_the_search_holds_one_more_model_and_one_gradient(folders) -> None:
    base, *models = folders
    # What the allocator does not give back differs from run to run by a tenth: the smaller of two.
    grew = min(grown("fit", base, base.parent / "base.pt", models) for _ in range(2))
    # The base is there before. Task vectors of eight models, 300 MB, are more than what is kept.
    assert grew < MODEL + 3 * SHARD
