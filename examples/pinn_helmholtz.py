"""A physics-informed network in a plain loop: the boundary is drowned by the residual, until the terms are weighed.

    python examples/pinn_helmholtz.py         # 600 steps of each, half a minute
    python examples/pinn_helmholtz.py 4000    # nearer to the end of training

The Helmholtz equation u_xx + u_yy + u = q on the square [-1, 1]^2 with u = 0 on its border; q is such that u = sin(pi x) sin(2 pi y). The
loss has two terms, the mean squared residual of the equation and the squared error on the border. The same network is trained twice, on the
plain sum and with weights from the sizes of their gradients. What to look at: the loss on the boundary, which the plain sum leaves high,
and the error, which a real problem cannot show, having no solution to compare with.
"""

import math
import sys

import torch

from counterpoise.diagnostics import gradient_imbalance
from counterpoise.gradients import GradientAnnealing, backward
from counterpoise.nn import GatedMLP

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 600
RATE = 3e-3
POINTS = 128  # inside, and on each of the four sides; drawn anew at every step


def solution(x):
    return torch.sin(math.pi * x[:, :1]) * torch.sin(2 * math.pi * x[:, 1:])


def source(x):
    return (1 - math.pi**2 - 4 * math.pi**2) * solution(x)


def draw(generator):
    """Points inside (n, 2) and on the border (4 n, 2)."""
    inside = 2 * torch.rand(POINTS, 2, generator=generator) - 1
    border = 2 * torch.rand(4, POINTS, 2, generator=generator) - 1
    border[0, :, 0], border[1, :, 0], border[2, :, 1], border[3, :, 1] = -1, 1, -1, 1
    return inside, border.flatten(0, 1)


def losses_of(model, inside, border):
    # Derivatives travel with the forward pass: no graph of a graph, and one ordinary backward pass later.
    u, _, (u_xx, u_yy) = model.derivatives(inside)
    residual = u_xx + u_yy + u - source(inside)
    return {"residual": residual.square().mean(), "boundary": 4 * model(border).square().mean()}


def error(model):
    """Relative error on a grid."""
    x = torch.cartesian_prod(torch.linspace(-1, 1, 60), torch.linspace(-1, 1, 60))
    with torch.no_grad():
        return float((model(x) - solution(x)).norm() / solution(x).norm())


def train(aggregator=None, seed=0):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = GatedMLP(2, 1, hidden_features=50, num_layers=3, normalize=(0.0, 1 / math.sqrt(3)))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    # The learning rate ends at a quarter: for longer trainings it falls more slowly.
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.25 ** (1 / STEPS))
    compared = [*model.hidden.parameters(), *model.output.parameters()]  # the encoders are trained, but not asked
    for step in range(STEPS + 1):
        losses = losses_of(model, *draw(generator))
        if step % (STEPS // 4) == 0:
            weight = aggregator.lambdas[1].item() if aggregator is not None and step else 1.0
            values = "  ".join(f"{name} {loss.item():9.3g}" for name, loss in losses.items())
            print(f"{step:6d}  {values}  weight {weight:6.1f}  error {error(model):.3f}")
        if step == STEPS // 4 and aggregator is None:
            print(gradient_imbalance(losses, model.named_parameters()).summary().splitlines()[0])
        optimizer.zero_grad()
        if aggregator is None:
            sum(losses.values()).backward()
        else:
            backward(losses, aggregator, params=compared)  # new weights at every tenth call
        optimizer.step()
        schedule.step()
    return error(model)


if __name__ == "__main__":
    print(f"{STEPS} steps on the sum of both losses:")
    plain = train()
    print(f"\n{STEPS} steps with weights from the gradients:")
    weighed = train(GradientAnnealing(reference=0))
    print(f"\nrelative error: sum {plain:.3f}, weighed {weighed:.3f}")
