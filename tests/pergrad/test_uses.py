"""The gradients of a convolution's weight, example by example: by patches, and as those of one convolution with a group per example."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from counterpoise._pergrad._uses import GROUPED, by_groups, by_patches, groups_are_faster
from counterpoise.diagnostics import sketch_gradients

N = 5
LAYERS = {
    "plain": lambda: nn.Conv2d(8, 16, 3, padding=1),
    "strided": lambda: nn.Conv2d(16, 8, 3, stride=(2, 1), padding=(1, 2), bias=False),
    "grouped": lambda: nn.Conv2d(16, 16, (3, 2), groups=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1),
    "dilated, padded on one side": lambda: nn.Conv2d(8, 8, (2, 3), padding="same", dilation=(1, 2)),
    "circular": lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
    "few columns": lambda: nn.Conv2d(1, 16, 3, padding=1),
    "last rows not reached": lambda: nn.Conv2d(8, 8, 2, stride=3),
}


def passed(layer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """An input, gradients of the output, and the gradients of the weight by one backward per example."""
    generator = torch.Generator().manual_seed(0)
    layer.to(dtype)
    x = torch.randn(N, layer.in_channels, 9, 8, generator=generator, dtype=dtype)
    b = torch.randn(layer(x).shape, generator=generator, dtype=dtype)
    rows = [torch.autograd.grad(layer(x[i : i + 1]), layer.weight, b[i : i + 1])[0].flatten() for i in range(N)]
    return x, b, torch.stack(rows)


@pytest.mark.filterwarnings("ignore:Using padding=.same.")  # of torch, about a copy
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_both_ways_give_the_gradients_of_the_loop(name: str, dtype: torch.dtype, tolerance: float) -> None:
    layer = LAYERS[name]()
    x, b, truth = passed(layer, dtype)
    for way in (by_patches, by_groups):
        for given in ((x, b), (x.to(memory_format=torch.channels_last), b.to(memory_format=torch.channels_last))):
            with torch.no_grad():
                found = way(layer)(*given)
            assert float((found - truth).abs().max() / truth.abs().max()) < tolerance, way.__name__


def test_groups_where_they_were_measured_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    for layer in (LAYERS["plain"](), LAYERS["grouped"](), LAYERS["depthwise"](), nn.Conv2d(64, 64, 3)):
        assert groups_are_faster(layer, x) and layer.weight.numel() <= GROUPED
    for layer in (LAYERS["few columns"](), nn.Conv2d(8, 12, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(128, 128, 3), nn.Conv1d(8, 8, 3)):
        assert not groups_are_faster(layer, x)
    assert not groups_are_faster(LAYERS["plain"](), x.double())
    assert not groups_are_faster(LAYERS["plain"](), x.to("meta"))
    with monkeypatch.context() as patched:
        patched.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert not groups_are_faster(LAYERS["plain"](), x)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not groups_are_faster(LAYERS["plain"](), x)


def test_a_float32_model_whose_convolutions_go_by_groups() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(16 * 5 * 4, 3)
    )
    data = torch.randn(12, 1, 9, 8), torch.arange(12) % 3
    assert groups_are_faster(model[2], data[0]) == torch.backends.cpu.get_cpu_capability().startswith("AVX")
    found, loop = (sketch_gradients(model, nn.CrossEntropyLoss(), data, engine=engine) for engine in ("ghost", "loop"))
    assert found.missing == ()
    for name in ("norms_sq", "group_sums", "S", "along"):
        ours, truth = getattr(found, name), getattr(loop, name)
        assert float((ours - truth).abs().max() / truth.abs().max()) < 1e-5, name
