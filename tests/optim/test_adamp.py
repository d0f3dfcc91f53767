from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise import CounterpoiseError
from counterpoise.optim import SGDP, AdamP, ProjectedUpdate, _projection
from counterpoise.optim._projection import parts, radial, rows_of

OPTIMIZERS = {
    "adamp": AdamP,
    "adamp-nesterov": lambda params, **options: AdamP(params, nesterov=True, **options),
    "sgdp": lambda params, lr=0.1, **options: SGDP(params, lr, momentum=0.9, dampening=0.1, **options),
    "sgdp-nesterov": lambda params, lr=0.1, **options: SGDP(params, lr, momentum=0.9, nesterov=True, **options),
    "sgdp-plain": lambda params, lr=0.1, **options: SGDP(params, lr, **options),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """A weight that is scale invariant per channel, one per layer, and one that is not."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        normed = nn.Sequential(nn.Linear(6, 15, bias=False), nn.BatchNorm1d(15), nn.Linear(15, 8, bias=False), nn.LayerNorm(8))
        return nn.Sequential(*normed, nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def trained(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 8, first: int = 0) -> list[Tensor]:
    dtype = next(net.parameters()).dtype
    for t in range(first, first + steps):
        optimizer.zero_grad()
        F.cross_entropy(net(random(20, 6, seed=t).to(dtype)), torch.arange(20) % 3).backward()
        optimizer.step()
    return [p.detach().clone() for p in net.parameters()]


def one_step(p: Tensor, gradient: Tensor, make: Callable[..., torch.optim.Optimizer], **options: Any) -> tuple[Tensor, Any]:
    w = nn.Parameter(p.clone())
    optimizer = make([w], **options)
    w.grad = gradient.clone()
    optimizer.step()
    return w.detach(), optimizer


def orthogonal(p: Tensor, seed: int = 1, to: str = "channel") -> Tensor:
    """A random gradient orthogonal to every row of p, or only to p as a whole."""
    g = random(*p.shape, seed=seed)
    if to == "layer":
        return g - p * (g * p).sum() / (p * p).sum()
    rows, flat = g.flatten(1), p.flatten(1)
    return (rows - flat * (rows * flat).sum(1, keepdim=True) / (flat * flat).sum(1, keepdim=True)).view_as(p)


def close(a: Any, b: Any, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# ---- what it is without the projection --------------------------------------------------------------------------------------------------


def test_without_invariant_weights_adamp_is_adamw() -> None:
    options = {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    ours, theirs = network(), network()
    found = trained(ours, AdamP(ours.parameters(), invariance="none", **options))
    close(found, trained(theirs, torch.optim.AdamW(theirs.parameters(), **options)))


@pytest.mark.parametrize("nesterov", [False, True])
def test_without_invariant_weights_sgdp_is_sgd(nesterov) -> None:
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov}
    ours, theirs = network(), network()
    found = trained(ours, SGDP(ours.parameters(), invariance="none", **options))
    close(found, trained(theirs, torch.optim.SGD(theirs.parameters(), **options)))


@every_optimizer
@pytest.mark.parametrize("shape", [(), (5,)])
def test_vectors_are_never_projected(make, shape) -> None:
    p, g = random(*shape), random(*shape, seed=1)
    expected, _ = one_step(p, g, make, weight_decay=0.1, invariance="none")
    for invariance in ("auto", "channel", "layer"):
        close(one_step(p, g, make, weight_decay=0.1, invariance=invariance)[0], expected)


def test_dampening_acts_at_the_first_step_and_decay_is_that_of_the_long_run() -> None:
    p, g = random(3, 4), random(3, 4, seed=1)
    after, optimizer = one_step(p, g, SGDP, lr=0.5, momentum=0.8, dampening=0.3, weight_decay=0.01, invariance="none")
    close(after, (1 - 0.5 * 0.01 / 0.2) * p - 0.5 * 0.7 * g)
    close(next(iter(optimizer.state.values()))["momentum_buffer"], 0.7 * g)
    close(one_step(p, g, SGDP, lr=0.5, dampening=0.3, invariance="none")[0], p - 0.35 * g)


# ---- the projection ---------------------------------------------------------------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("shape", [(4, 9), (4, 3, 2, 2)])
def test_a_step_has_no_radial_component(make, shape) -> None:
    p, g = random(*shape), random(*shape, seed=1)
    moved = one_step(p, g, make, invariance="channel", lr=0.01)[0] - p
    # The epsilon beside the length leaves some 1e-8 of it.
    assert float((moved * p).flatten(1).sum(1).abs().max()) < 1e-7 * float(moved.norm())
    moved = one_step(p, g, make, invariance="layer", lr=0.01)[0] - p
    assert abs(float((moved * p).sum())) < 1e-7 * float(moved.norm())
    assert float((moved * p).flatten(1).sum(1).abs().max()) > 1e-3 * float(moved.norm())


@every_optimizer
@pytest.mark.parametrize("kind", ["channel", "layer"])
def test_which_weights_are_invariant_is_seen_in_the_gradient(make, kind) -> None:
    p = random(4, 9)
    g = orthogonal(p, to=kind)
    expected, _ = one_step(p, g, make, invariance=kind, weight_decay=0.1)
    assert torch.equal(one_step(p, g, make, weight_decay=0.1)[0], expected)
    plain, _ = one_step(p, g, make, invariance="none", weight_decay=0.1)
    assert not torch.equal(expected, plain)
    assert torch.equal(one_step(p, g + p, make, weight_decay=0.1)[0], one_step(p, g + p, make, invariance="none", weight_decay=0.1)[0])
    assert torch.equal(one_step(p, g, make, delta=0.0, weight_decay=0.1)[0], plain)  # no cosine is below 0


def test_one_channel_that_is_not_orthogonal_turns_the_channel_view_off() -> None:
    p = random(4, 9)
    g = orthogonal(p)
    g[2] += 3 * p[2]
    close(one_step(p, g, AdamP)[0], one_step(p, g, AdamP, invariance="none")[0])


def test_the_threshold_is_delta_over_the_root_of_the_row_length() -> None:
    p = torch.zeros(1, 16, dtype=torch.float64)
    p[0, 0] = 1.0
    for cosine, projected in ((0.9, True), (1.1, False)):
        g = torch.zeros_like(p)
        g[0, 0], g[0, 1] = cosine * 0.1 / 4, (1 - (cosine * 0.1 / 4) ** 2) ** 0.5
        along, invariant = radial(g[None], p[None], g[None], delta=0.1, eps=1e-8, invariance="auto")
        assert bool(invariant) == projected and (float(along) != 0) == projected


def test_weight_decay_of_invariant_weights_is_a_share() -> None:
    p, zero = random(3, 4), torch.zeros(3, 4, dtype=torch.float64)
    for make, per_step in ((AdamP, 0.1), (OPTIMIZERS["sgdp"], 1.0)):
        after, _ = one_step(p, zero, make, lr=0.1, weight_decay=1.0, wd_ratio=0.25, invariance="channel")
        close(after, p * (1 - per_step * 0.25))


def test_a_zero_gradient_counts_as_orthogonal() -> None:
    """Momentum goes on, without its radial component: as in the package, whose cosine of a zero gradient is 0."""
    p, g, zero = random(3, 4), random(3, 4, seed=1), torch.zeros(3, 4, dtype=torch.float64)
    for make in OPTIMIZERS.values():
        w = nn.Parameter(p.clone())
        optimizer = make([w], lr=0.1)
        w.grad = g + 5 * p
        optimizer.step()
        before = w.detach().clone()
        w.grad = zero
        optimizer.step()
        moved = w.detach() - before
        assert float((moved * before).sum(1).abs().max()) < 1e-7 * float((g * p).sum(1).abs().max())


def test_a_row_of_zeros_moves_and_stays_finite() -> None:
    p = random(3, 4)
    p[1] = 0
    for make in OPTIMIZERS.values():
        for invariance in ("auto", "channel", "layer"):
            after, _ = one_step(p, orthogonal(random(3, 4)), make, lr=0.1, invariance=invariance)
            assert bool(torch.isfinite(after).all()) and bool((after[1] != 0).any())


@every_optimizer
def test_of_one_row_channel_and_layer_are_the_same(make) -> None:
    p, g = random(1, 7), random(1, 7, seed=1)
    close(one_step(p, g, make, invariance="channel")[0], one_step(p, g, make, invariance="layer")[0])


def test_only_sgdp_without_nesterovs_projects_what_it_keeps() -> None:
    p, g = random(3, 4), random(3, 4, seed=1)
    for make, name, raw in (
        (AdamP, "exp_avg", 0.1 * g),
        (OPTIMIZERS["adamp-nesterov"], "exp_avg", 0.1 * g),
        (OPTIMIZERS["sgdp-nesterov"], "momentum_buffer", g),
    ):
        close(next(iter(one_step(p, g, make, invariance="channel")[1].state.values()))[name], raw)
    buffer = next(iter(one_step(p, g, OPTIMIZERS["sgdp"], invariance="channel")[1].state.values()))["momentum_buffer"]
    unit = p / p.norm(dim=1, keepdim=True)
    close(buffer, 0.9 * (g - unit * (unit * g).sum(1, keepdim=True)), 1e-7)


# ---- how it is computed -----------------------------------------------------------------------------------------------------------------


@every_optimizer
def test_together_is_one_by_one(make, monkeypatch) -> None:
    """Many tensors of one shape, more than are computed at once, some of which join later."""
    monkeypatch.setitem(_projection.TOGETHER, "cpu", 3 * 20)
    found = []
    for foreach in (None, True, False):
        params = [nn.Parameter(random(5, 4, seed=i)) for i in range(8)] + [nn.Parameter(random(7, seed=i)) for i in range(3)]
        params += [nn.Parameter(random(0, 4)), nn.Parameter(random(2, 3, 2, 2))]
        optimizer = make(params, lr=0.1, weight_decay=0.1, foreach=foreach)
        for t in range(5):
            for i, p in enumerate(params):
                p.grad = (
                    None if t < i % 3 else orthogonal(p.detach(), seed=10 * t + i) if i % 2 and p.ndim > 1 else random(*p.shape, seed=t)
                )
            optimizer.step()
        found.append([p.detach() for p in params])
    close(found[0], found[2])
    close(found[1], found[2])


def test_parts_hold_tensors_of_one_shape_type_and_place() -> None:
    shapes = [(4, 4), (4,), (4, 4), (2, 8), (4, 4), (4,)]
    tensors = [torch.zeros(shape) for shape in shapes] + [torch.zeros(4, 4, dtype=torch.float64)]
    assert sorted(parts(tensors, True)) == [[0, 2, 4], [1, 5], [3], [6]] == sorted(parts(tensors, None))
    assert list(parts(tensors, False)) == [[i] for i in range(7)]
    big = [torch.zeros(_projection.TOGETHER["cpu"] // 2) for _ in range(5)]
    assert list(parts(big, True)) == [[0, 1], [2, 3], [4]]


def test_rows_are_channels_in_single_precision_at_least() -> None:
    for shape, expected in (((), (1, 1)), ((5,), (1, 5)), ((3, 5), (3, 5)), ((3, 2, 4, 1), (3, 8))):
        tensors = [random(*shape, seed=i) for i in range(2)]
        assert rows_of(tensors).shape == (2, *expected) and rows_of(tensors[:1]).shape == (1, *expected)
        assert torch.equal(rows_of(tensors)[1].flatten(), tensors[1].flatten())
    dtypes = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
    assert all(rows_of([torch.ones(2, 2, dtype=dtype)]).dtype == single for dtype, single in dtypes.items())


@every_optimizer
def test_half_precision_is_computed_in_single_and_rounded_once(make) -> None:
    dtype = torch.bfloat16
    p = random(4, 300).to(dtype)
    g = orthogonal(p.double()).to(dtype)
    for foreach in (None, False):
        w = [nn.Parameter(p.clone()) for _ in range(2)]
        optimizer = make(w, lr=0.1, weight_decay=0.1, foreach=foreach)
        for x in w:
            x.grad = g.clone()
        optimizer.step()
        expected, _ = one_step(p.double(), g.double(), make, lr=0.1, weight_decay=0.1)
        assert w[0].dtype == dtype and torch.equal(w[0], w[1])
        torch.testing.assert_close(w[0].detach().double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 4)


def test_memory_layout_does_not_matter() -> None:
    p, g = random(4, 3, 5, 5), random(4, 3, 5, 5, seed=1)
    for make in OPTIMIZERS.values():
        for foreach in (None, False):
            expected, _ = one_step(p, g, make, invariance="channel", foreach=foreach)
            last = p.to(memory_format=torch.channels_last)
            found, _ = one_step(last, g.to(memory_format=torch.channels_last), make, invariance="channel", foreach=foreach)
            close(found, expected)
            close(one_step(p, g.to(memory_format=torch.channels_last), make, invariance="channel", foreach=foreach)[0], expected)


@every_optimizer
def test_capturable_and_a_rate_in_a_tensor_change_no_number(make) -> None:
    found = []
    for lr, capturable in ((0.01, False), (0.01, True), (torch.tensor(0.01, dtype=torch.float64), True), (torch.tensor([0.01]), False)):
        net = network()
        optimizer = make(net.parameters(), lr=lr, weight_decay=0.1, capturable=capturable)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        trained(net, optimizer, 3)
        scheduler.step()
        found.append(trained(net, optimizer, 3, first=3))
    close(found[1], found[0])
    close(found[2], found[0])
    close(found[3], found[0], 1e-6)  # 0.01 in single precision


def test_a_step_compiles_to_one_graph_that_a_changed_rate_leaves_alone() -> None:
    expected, net = network(), network()
    reference = AdamP(expected.parameters(), lr=0.01, weight_decay=0.1)
    optimizer = AdamP(net.parameters(), lr=torch.tensor(0.01, dtype=torch.float64), weight_decay=0.1, capturable=True)
    trained(expected, reference, 2)
    trained(net, optimizer, 2)
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    step = torch.compile(optimizer.step, backend=backend, fullgraph=True)
    for t in range(2, 5):
        for model, move in ((expected, reference.step), (net, step)):
            model.zero_grad()
            F.cross_entropy(model(random(20, 6, seed=t)), torch.arange(20) % 3).backward()
            move()
        reference.param_groups[0]["lr"] *= 0.5
        optimizer.param_groups[0]["lr"].mul_(0.5)
    close([p.detach() for p in net.parameters()], [p.detach() for p in expected.parameters()])
    assert len(graphs) == 1


def shards(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for make in (
        AdamP,
        lambda params, **options: AdamP(params, foreach=True, **options),
        OPTIMIZERS["sgdp"],
        lambda params, lr=0.01: ProjectedUpdate(torch.optim.AdamW(params, lr=lr)),
    ):
        whole, split = network(), network()
        fully_shard(split, mesh=init_device_mesh("cpu", (2,)))
        expected = trained(whole, make(whole.parameters(), lr=0.02), 4)
        trained(split, make(split.parameters(), lr=0.02), 4)
        close([p.full_tensor().detach() for p in split.parameters()], expected)
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_weights_spread_over_two_processes_take_the_same_steps(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(shards, (str(tmp_path),), nprocs=2)


# ---- states of others -------------------------------------------------------------------------------------------------------------------


def as_the_package_saves(state: dict[str, Any]) -> dict[str, Any]:
    """The state dict of ``adamp`` 0.3.0: the step is a whole number, the buffer is called momentum, groups know no options of ours."""
    state = copy.deepcopy(state)
    for kept in state["state"].values():
        if "step" in kept:
            kept["step"] = int(kept["step"])
        if "momentum_buffer" in kept:
            kept["momentum"] = kept.pop("momentum_buffer")
    for group in state["param_groups"]:
        for name in ("invariance", "foreach", "maximize", "capturable"):
            del group[name]
    return state


@pytest.mark.parametrize("capturable", [False, True])
@every_optimizer
def test_the_packages_state_goes_on_where_it_was(make, capturable) -> None:
    net = network()
    optimizer = make(net.parameters(), lr=0.01, weight_decay=0.1)
    trained(net, optimizer, 3)
    saved, other = as_the_package_saves(optimizer.state_dict()), copy.deepcopy(net)
    resumed = make(other.parameters(), lr=5.0, capturable=capturable)
    resumed.load_state_dict(saved)
    close(trained(other, resumed, 3, first=3), trained(net, optimizer, 3, first=3))
    assert resumed.param_groups[0]["invariance"] == "auto" and resumed.param_groups[0]["capturable"] == capturable
    assert resumed.param_groups[0].keys() == optimizer.param_groups[0].keys()
    assert all(resumed.state[q].keys() == optimizer.state[p].keys() for p, q in zip(net.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("base", [torch.optim.Adam, torch.optim.AdamW])
def test_the_state_of_torchs_adam_can_be_loaded(base, amsgrad) -> None:
    net = network()
    optimizer = base(net.parameters(), lr=0.01, amsgrad=amsgrad)
    trained(net, optimizer, 3)
    other = copy.deepcopy(net)
    resumed = AdamP(other.parameters(), invariance="none")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert all(set(state) == {"step", "exp_avg", "exp_avg_sq"} for state in resumed.state.values())
    found = trained(other, resumed, 3, first=3)
    last = copy.deepcopy(other)
    back = base(last.parameters(), amsgrad=amsgrad)
    back.load_state_dict(resumed.state_dict())
    trained(last, back, 1)
    if not amsgrad:
        plain = torch.optim.AdamW(net.parameters(), weight_decay=0.0)
        plain.load_state_dict(optimizer.state_dict())
        plain.param_groups[0]["weight_decay"] = optimizer.param_groups[0]["weight_decay"]
        close(found, trained(net, plain, 3, first=3))


@pytest.mark.parametrize("steps", [0, 3])
def test_the_state_of_torchs_sgd_can_be_loaded(steps) -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    trained(net, optimizer, steps)
    if not steps:  # as torch's SGD leaves it when it is saved between two buffers
        optimizer.state[next(net.parameters())]["momentum_buffer"] = None
    other = copy.deepcopy(net)
    resumed = SGDP(other.parameters(), lr=1.0, invariance="none")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    found = trained(other, resumed, 3, first=steps)
    if not steps:
        optimizer.state.clear()
    close(found, trained(net, optimizer, 3, first=steps))


# ---- what is refused --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr: got -1.0; expected a number >= 0"),
        ({"eps": -1e-8}, "eps: got"),
        ({"weight_decay": -0.1}, "weight_decay: got"),
        ({"delta": -0.1}, "delta: got"),
        ({"wd_ratio": 1.5}, r"wd_ratio: got 1.5; expected a number in \[0, 1\]"),
        ({"invariance": "chanel"}, "Did you mean 'channel'"),
    ],
)
def test_options_out_of_their_range(options, message) -> None:
    w = nn.Parameter(random(2, 2))
    for make in (AdamP, lambda params, lr=0.1, **more: SGDP(params, lr, **more)):
        with pytest.raises(CounterpoiseError, match=message):
            make([w], **options)
        with pytest.raises(CounterpoiseError, match=message):
            make([{"params": [w], **options}])
        optimizer = make([nn.Parameter(random(2))])
        with pytest.raises(CounterpoiseError, match=message):
            optimizer.add_param_group({"params": [w], **options})
        assert len(optimizer.param_groups) == 1


def test_decays_of_one_are_refused() -> None:
    w = nn.Parameter(random(2, 2))
    for betas, message in (((0.9, 1.0), r"betas\[1\]: got 1.0"), ((-0.1, 0.9), r"betas\[0\]: got -0.1"), (0.9, "betas: got 0.9")):
        with pytest.raises(CounterpoiseError, match=message):
            AdamP([w], betas=betas)
    with pytest.raises(CounterpoiseError, match=r"momentum: got 1; expected a number in \[0, 1\)"):
        SGDP([w], 0.1, momentum=1)
    with pytest.raises(CounterpoiseError, match="dampening: got"):
        SGDP([w], 0.1, momentum=0.9, dampening=-1)


@every_optimizer
def test_complex_parameters_and_sparse_gradients_are_refused(make) -> None:
    with pytest.raises(CounterpoiseError, match=r"params: got a parameter of torch.complex64, shape \(2, 2\); expected real parameters"):
        make([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])
    optimizer = make([nn.Parameter(random(2))])
    with pytest.raises(CounterpoiseError, match="params: got"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, dtype=torch.complex128))]})
    assert len(optimizer.param_groups) == 1
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = make(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(CounterpoiseError, match=r"a sparse one of shape \(4, 2\)"):
        optimizer.step()
