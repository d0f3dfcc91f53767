"""Networks of a size that a GPU is used for."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two convolutions around which the input goes."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        stride = n_out // n_in
        self.convolutions = nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(8, n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.GroupNorm(8, n_out),
        )
        self.around = nn.Identity() if stride == 1 else nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convolutions(x) + self.around(x))


def resnet(classes: int = 10, width: int = 64) -> nn.Module:
    """ResNet-18 for 3 x 32 x 32 images, with GroupNorm: 11 million parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.GroupNorm(8, width), nn.ReLU()]
    for n_in, n_out in ((1, 1), (1, 1), (1, 2), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8)):
        layers.append(Residual(n_in * width, n_out * width))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes))
