from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from counterpoise._errors import InputError
from counterpoise.gradients import GroupLoss
from counterpoise.gradients._ghost import Ghost, ghost_gramian
from counterpoise.gradients._ghost._layouts import Looks, coefficients, judge
from counterpoise.gradients._ghost._uses import ProductUse

B, M, CLASSES = 12, 4, 5
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


# -- what is measured against: one backward pass per group -------------------------------------------------------------------------------


def rows_gramian(losses: Tensor, params: Sequence[Tensor]) -> Tensor:
    rows = []
    for loss in losses:
        found = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g.to_dense() for p, g in zip(params, found, strict=True)]
        rows.append(torch.cat([part.flatten().double() for part in parts]))
    jacobian = torch.stack(rows)
    return jacobian @ jacobian.T


def off(found: Tensor, truth: Tensor) -> float:
    """Largest error relative to the lengths of the two gradients."""
    lengths = truth.diagonal().sqrt()
    return float(((found - truth).abs() / (lengths[:, None] * lengths).clamp(min=1e-300)).max())


def named(model: nn.Module) -> tuple[list[str], list[Tensor]]:
    parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return [name for name, _ in parameters], [p for _, p in parameters]


def group_losses(model: nn.Module, x: Tensor, group: Tensor | None = None, **options: bool) -> Tensor:
    output = model(x)
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(output.shape[1], (len(output),), generator=generator)
    group = torch.arange(len(output)) * 7 % M if group is None else group
    return GroupLoss(nn.CrossEntropyLoss(reduction="none"), M, **options)(output, target, group)


def agrees(model: nn.Module, losses: Tensor, tolerance: float) -> Ghost:
    """The ghost, compared on all parameters that are not left, and on all with the rows of those that are."""
    _, params = named(model)
    ghost = ghost_gramian(losses, params)
    kept = [p for i, p in enumerate(params) if i not in ghost.left]
    assert off(ghost.gramian, rows_gramian(losses, kept)) < tolerance
    if ghost.left:
        whole = ghost.gramian + rows_gramian(losses, [params[i] for i in ghost.left])
        assert off(whole, rows_gramian(losses, params)) < tolerance
    return ghost


# -- models ------------------------------------------------------------------------------------------------------------------------------


class Of(nn.Module):
    """A function with parameters."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(part))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def mlp(**options: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16, **options), nn.ReLU(), nn.Linear(16, 7, **options), nn.Tanh(), nn.Linear(7, CLASSES, **options))


def cnn() -> nn.Module:
    """Strides, padding, dilation, groups, 1 x 1, all normalizations."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, groups=4, dilation=2, padding=(1, 2)),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 6, 1, bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, CLASSES),
    )
    net[4].running_mean.normal_()
    net[4].eval()
    return net


def transformer(batch_first: bool, tied: bool = False, dropout: float = 0.0) -> nn.Module:
    def run(self: Of, tokens: Tensor) -> Tensor:
        x = self.words(tokens) * 4.0 + self.positions
        x = torch.cat([self.start.expand(len(x), -1, -1), x], dim=1)
        x = self.layer(x) if batch_first else self.layer(x.transpose(0, 1)).transpose(0, 1)
        return self.head((x * self.scale).mean(1))

    net = Of(
        run,
        words=nn.Embedding(11, 16, padding_idx=0),
        positions=torch.randn(7, 16),
        start=torch.randn(1, 1, 16),
        layer=nn.TransformerEncoderLayer(16, 2, 32, dropout=dropout, batch_first=batch_first),
        scale=torch.rand(16),
        head=nn.Linear(16, 11, bias=False),
    )
    if tied:
        net.head.weight = net.words.weight
    return net


def recurrent(kind: type) -> nn.Module:
    return Of(
        lambda self, x: self.head(self.cells(x)[0][:, -1]), cells=kind(8, 6, num_layers=2, batch_first=True), head=nn.Linear(6, CLASSES)
    )


def unrolled(self: Of, x: Tensor) -> Tensor:
    state = None
    for t in range(x.shape[1]):
        state = self.cell(x[:, t], state)
    return self.head(state[0])


def sharing() -> nn.Module:
    layer = nn.Linear(8, 8)
    return nn.Sequential(layer, nn.ReLU(), layer, nn.Tanh(), layer, nn.ReLU(), nn.Linear(8, CLASSES))


def attending(self: Of, x: Tensor) -> Tensor:
    return self.head(torch.einsum("qd,bd->bqd", self.project(self.queries).tanh(), x).mean(1))


def gated(self: Of, x: Tensor) -> Tensor:
    x = self.conv(x)
    return self.head((x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]).mean((2, 3)))


def by_class(self: Of, tokens: Tensor) -> Tensor:
    """A vector per example, added to all positions, of which there are a multiple of the examples."""
    return self.head(F.relu(self.inner(self.words(tokens) + self.kind(tokens[:, 0])[:, None])).mean(1))


def transposed_left(self: Of, x: Tensor) -> Tensor:
    """Examples in columns."""
    return (self.second @ torch.relu(self.first @ x.T + self.bias)).T


def middle(self: Of, x: Tensor) -> Tensor:
    """(4, b, 3, 8): examples between other positions."""
    x = F.relu(self.inner(x.reshape(B, 4, 3, 8).transpose(0, 1)))
    return self.head(x.mean((0, 2)))


def in_frames(self: Of, x: Tensor) -> Tensor:
    """(b * frames, 3, 8, 8): a convolution sees examples frame by frame."""
    x = self.norm(self.conv(x.flatten(0, 1))).relu().mean((2, 3))
    return self.head(x.unflatten(0, (B, -1)).mean(1))


def with_factors(self: Of, x: Tensor) -> Tensor:
    x = torch.addmm(self.bias, x, self.weight, beta=0.5, alpha=3.0)
    return torch.add(torch.sub(F.linear(x, self.table[2:7]), self.shift, alpha=2.0), self.shift, alpha=0.3)


def encoded_and_decoded(self: Of, x: Tensor) -> Tensor:
    return self.head(F.linear(F.linear(x, self.weight).tanh(), self.weight.T))


def low_rank(self: Of, x: Tensor) -> Tensor:
    return torch.einsum("btd,do->bto", x, self.weight + self.down @ self.up).mean(1) * self.temperature.exp()


def sized(*shape: int) -> Callable[[torch.dtype], Tensor]:
    return lambda dtype: torch.randn(B, *shape, dtype=dtype)


images, vectors, sequences = sized(3, 16, 16), sized(8), sized(B, 8)


def tokens(dtype: torch.dtype) -> Tensor:
    return torch.randint(11, (B, 7))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    inputs: Callable[[torch.dtype], Tensor] = vectors
    left: tuple[str, ...] = ()


def flat_conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(8, 8, 3, padding="same"),
        nn.ReLU(),
        nn.Conv1d(8, 4, 3, padding_mode="circular", padding=1),
        nn.Flatten(),
        nn.Linear(40, CLASSES),
    )


CASES = {
    "mlp": Case(mlp),
    "mlp without bias": Case(lambda: mlp(bias=False)),
    "frozen trunk": Case(lambda: nn.Sequential(nn.Linear(8, 16).requires_grad_(False), nn.ReLU(), nn.Linear(16, CLASSES))),
    "cnn": Case(cnn, images),
    "transposed convolutions": Case(
        lambda: nn.Sequential(
            nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(4, CLASSES, 2, groups=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ),
        images,
    ),
    "conv1d": Case(flat_conv1d, sized(8, 10)),
    "conv3d": Case(lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.Flatten(), nn.Linear(108, CLASSES)), sized(2, 5, 5, 5)),
    "frames": Case(lambda: Of(in_frames, conv=nn.Conv2d(3, 4, 3), norm=nn.GroupNorm(2, 4), head=nn.Linear(4, CLASSES)), sized(3, 3, 8, 8)),
    "layer norms": Case(
        lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.RMSNorm(16), nn.Linear(16, 6, bias=False), nn.LayerNorm(6))
    ),
    "layer norm over two": Case(
        lambda: nn.Sequential(nn.Linear(8, 6), nn.LayerNorm((B, 6)), nn.Flatten(), nn.Linear(6 * B, CLASSES)), sequences
    ),
    "batch norms of one dimension": Case(
        lambda: nn.Sequential(
            nn.Linear(8, 6), nn.BatchNorm1d(6).eval(), nn.Linear(6, 6), nn.BatchNorm1d(6, affine=False).eval(), nn.Linear(6, 5)
        )
    ),
    "batch statistics of inputs": Case(lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, CLASSES))),
    "instance norm": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.AdaptiveAvgPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES)
        ),
        images,
        left=("1.weight", "1.bias"),
    ),
    "prelu": Case(lambda: nn.Sequential(nn.Linear(8, 8), nn.PReLU(8), nn.Linear(8, CLASSES)), left=("1.weight",)),
    "positions first": Case(lambda: Of(lambda self, x: self.net(x.transpose(0, 1)).mean(0), net=mlp()), sequences),
    "examples in the middle": Case(lambda: Of(middle, inner=nn.Linear(8, 6), head=nn.Linear(6, CLASSES)), sized(96)),
    "embedding": Case(
        lambda: Of(lambda self, x: self.head(self.words(x).mean(1)), words=nn.Embedding(11, 6), head=nn.Linear(6, 5)), tokens
    ),
    "sparse embedding": Case(
        lambda: Of(lambda self, x: self.head(self.words(x).mean(1)), words=nn.Embedding(11, 6, sparse=True), head=nn.Linear(6, 5)), tokens
    ),
    "embedding by frequency": Case(
        lambda: Of(
            lambda self, x: self.head(self.words(x).mean(1)), words=nn.Embedding(11, 6, scale_grad_by_freq=True), head=nn.Linear(6, 5)
        ),
        tokens,
        left=("words.weight",),
    ),
    "embedded positions": Case(
        lambda: Of(
            lambda self, x: self.head(F.relu(self.words(x) + self.places(torch.arange(7))).mean(1)),
            words=nn.Embedding(11, 6),
            places=nn.Embedding(9, 6),
            head=nn.Linear(6, 5),
        ),
        tokens,
    ),
    "embedded classes": Case(
        lambda: Of(by_class, words=nn.Embedding(11, 6), kind=nn.Embedding(11, 6), inner=nn.Linear(6, 6), head=nn.Linear(6, 5)),
        lambda dtype: torch.randint(11, (B, 2 * B)),
    ),
    "transformer, examples first": Case(lambda: transformer(True), tokens),
    "transformer, positions first": Case(lambda: transformer(False), tokens),
    "transformer, tied": Case(lambda: transformer(True, tied=True), tokens),
    "gru": Case(lambda: recurrent(nn.GRU), sized(3, 8)),
    "lstm cell": Case(lambda: Of(unrolled, cell=nn.LSTMCell(8, 6), head=nn.Linear(6, CLASSES)), sized(3, 8)),
    "one layer three times": Case(sharing),
    "weight norm and spectral norm": Case(
        lambda: nn.Sequential(weight_norm(nn.Linear(8, 16)), nn.ReLU(), spectral_norm(nn.Linear(16, CLASSES)))
    ),
    "weight norm of a convolution": Case(
        lambda: nn.Sequential(weight_norm(nn.Conv2d(3, 4, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)),
        images,
    ),
    "a table made of another": Case(
        lambda: Of(lambda self, x: self.head(F.embedding(x, self.table.T * 2).mean(1)), table=torch.randn(6, 11), head=nn.Linear(6, 5)),
        tokens,
    ),
    "two towers": Case(
        lambda: Of(
            lambda self, x: self.left(self.words(x).mean(1)) @ self.right(self.others(x).mean(1)).T,
            words=nn.Embedding(11, 6),
            others=nn.Embedding(11, 6),
            left=nn.Linear(6, 6),
            right=nn.Linear(6, 6),
        ),
        tokens,
    ),
    "low rank updates": Case(
        lambda: Of(low_rank, weight=torch.randn(8, 5), down=torch.randn(8, 2), up=torch.randn(2, 5), temperature=torch.tensor(0.3)),
        sequences,
    ),
    "learned queries": Case(lambda: Of(attending, queries=torch.randn(2 * B, 8), project=nn.Linear(8, 8), head=nn.Linear(8, CLASSES))),
    "gates": Case(lambda: Of(gated, conv=nn.Conv2d(3, 6, 5), gate=nn.Linear(6, 6), head=nn.Linear(6, CLASSES)), images),
    "examples in columns": Case(
        lambda: Of(transposed_left, first=torch.randn(6, 8), bias=torch.randn(6, 1), second=torch.randn(CLASSES, 6))
    ),
    "factors and parts of parameters": Case(
        lambda: Of(with_factors, bias=torch.randn(6), weight=torch.randn(8, 6), table=torch.randn(9, 6), shift=torch.randn(CLASSES))
    ),
    "tied to its transpose": Case(lambda: Of(encoded_and_decoded, weight=torch.randn(6, 8), head=nn.Linear(8, CLASSES))),
    "bilinear": Case(lambda: Of(lambda self, x: self.layer(x, x), layer=nn.Bilinear(8, 8, CLASSES)), left=("layer.weight",)),
    "attention": Case(
        lambda: Of(lambda self, x: self.layer(x, x, x)[0].mean(1), layer=nn.MultiheadAttention(8, 2, batch_first=True)), sequences
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_equals_one_pass_per_group(case, dtype) -> None:
    torch.manual_seed(0)
    model, x = case.make(), case.inputs(torch.float32)
    exact = copy.deepcopy(model).double()
    model, x = model.to(dtype), x.to(dtype) if x.is_floating_point() else x
    names, params = named(model)
    losses = group_losses(model, x)
    ghost = ghost_gramian(losses, params)
    assert [names[i] for i in ghost.left] == list(case.left), ghost.notes
    exact_losses, exact_params = group_losses(exact, x.double() if x.is_floating_point() else x), named(exact)[1]
    kept = [p for i, p in enumerate(exact_params) if i not in ghost.left]
    assert off(ghost.gramian, rows_gramian(exact_losses, kept)) < TOLERANCE[dtype]
    if ghost.left:
        whole = ghost.gramian + rows_gramian(losses, [params[i] for i in ghost.left])
        assert off(whole, rows_gramian(exact_losses, exact_params)) < TOLERANCE[dtype]
    assert len(ghost.notes) == bool(case.left)
    assert ghost.passes == 2
    again = ghost_gramian(losses, params)
    assert torch.equal(again.gramian, ghost.gramian) and again.left == ghost.left
    assert again.passes == 1


def test_dropout_is_that_of_the_forward_pass() -> None:
    model = transformer(True, dropout=0.5).double()
    assert not agrees(model, group_losses(model, tokens(torch.float64)), 1e-10).left


def test_recurrent_kernels_are_left_or_exact() -> None:
    torch.manual_seed(0)
    for dtype, tolerance in TOLERANCE.items():
        model = recurrent(nn.LSTM).to(dtype)
        names, _ = named(model)
        ghost = agrees(model, group_losses(model, sequences(dtype)), tolerance)
        assert all(names[i].startswith("cells.") for i in ghost.left)


def test_many_examples_per_group_and_many_groups() -> None:
    torch.manual_seed(0)
    model = mlp()
    x = torch.randn(200, 8)
    for m in (1, 2, 60):
        losses = GroupLoss(nn.CrossEntropyLoss(reduction="none"), m)(model(x), torch.arange(200) % CLASSES, torch.randint(m, (200,)))
        params = named(model)[1]
        assert off(ghost_gramian(losses, params).gramian, rows_gramian(losses, params)) < 1e-5


def test_both_ways_of_adding_up_agree() -> None:
    """Wide layers with few rows go over pairs of rows, narrow ones with many over sums of groups."""
    torch.manual_seed(0)
    for model, x in ((nn.Linear(200, CLASSES).double(), torch.randn(B, 200)), (nn.Linear(3, CLASSES).double(), torch.randn(500, 3))):
        agrees(model, group_losses(model, x.double()), 1e-10)


@pytest.mark.parametrize("name", ["cnn", "transformer, tied", "embedding"])
def test_one_block_at_a_time(name, monkeypatch) -> None:
    """Large parameters are formed some rows at a time."""
    monkeypatch.setattr("counterpoise.gradients._ghost._sums.AT_ONCE", 50)
    torch.manual_seed(0)
    model = CASES[name].make().double()
    assert not agrees(model, group_losses(model, CASES[name].inputs(torch.float64)), 1e-10).left


def test_pairs_of_many_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, CLASSES))
    ghost = agrees(model, group_losses(model, torch.randn(150, 300)), 1e-5)
    assert ghost.bytes < 300 * 300 * 4  # gradients of 4 groups would be four times that


def test_losses_that_are_leaves() -> None:
    leaf = torch.ones(3, requires_grad=True)
    losses = GroupLoss(lambda output, target: output, 2)(leaf, None, torch.tensor([0, 1, 1]))
    assert ghost_gramian(losses, [leaf]).left == (0,)


def test_examples_in_no_group_and_groups_without_examples() -> None:
    torch.manual_seed(0)
    for case in (CASES["mlp"], CASES["cnn"], CASES["transformer, tied"]):
        model = case.make()
        losses = group_losses(model, case.inputs(torch.float32), torch.tensor([-1, 0, 0, 2, 2, 2, -1, 0, 2, 2, 0, -1]))
        ghost = ghost_gramian(losses, named(model)[1])
        truth = rows_gramian(losses, named(model)[1])
        assert (ghost.gramian[[1, 3]] == 0).all() and (ghost.gramian[:, [1, 3]] == 0).all()
        assert ghost.gramian[0, 0] > 0
        assert (ghost.gramian - truth).abs().max() < 1e-5 * truth.max()


def test_no_example_in_any_group() -> None:
    model = mlp()
    ghost = ghost_gramian(group_losses(model, vectors(torch.float32), torch.full((B,), -1)), named(model)[1])
    assert (ghost.gramian == 0).all() and not ghost.left and ghost.passes == 0


def test_one_example() -> None:
    for case in (CASES["mlp"], CASES["cnn"]):
        model = case.make().double()
        losses = group_losses(model, case.inputs(torch.float64)[:1], torch.tensor([2]))
        ghost = agrees(model, losses, 1e-10)
        assert not ghost.left and ghost.passes == 1


def test_parameters_that_are_not_asked_for_or_not_reached() -> None:
    torch.manual_seed(0)
    model = cnn().double()
    losses = group_losses(model, images(torch.float64))
    params = [model[6].weight, nn.Parameter(torch.zeros(3)), model[0].bias]
    ghost = ghost_gramian(losses, params)
    assert not ghost.left
    assert off(ghost.gramian, rows_gramian(losses, params)) < 1e-10


def test_inputs_that_require_gradients() -> None:
    model = mlp().double()
    agrees(model, group_losses(model, vectors(torch.float64).requires_grad_()), 1e-10)


def test_hooks_of_the_user_count() -> None:
    """Those on activations are seen; a hook on a parameter's gradient belongs to a pass of its own."""
    model = mlp().double()
    model[4].bias.register_hook(lambda g: 3 * g)
    model[1].register_forward_hook(lambda layer, args, out: out.register_hook(lambda g: 2 * g) and None)
    ghost = agrees(model, group_losses(model, vectors(torch.float64)), 1e-10)
    assert ghost.left == (5,) and "a hook on its gradient" in ghost.notes[0]


def test_gradients_that_cancel() -> None:
    """In single precision, the rounding of the rows would stay where they add up to something 1,000 times shorter."""
    torch.manual_seed(0)
    x = torch.randn(32, 300).repeat_interleave(2, dim=0)
    x += 1e-3 * torch.randn_like(x)
    target = torch.where(torch.arange(64)[:, None] % 2 == 0, 1.0, -1.0) * torch.randn(200)
    layer = nn.Linear(300, 200, bias=False)
    nn.init.zeros_(layer.weight)
    group_loss, group = GroupLoss(lambda output, target: (output - target).square().sum(1), 2), torch.arange(64) // 32
    found = ghost_gramian(group_loss(layer(x), target, group), [layer.weight]).gramian
    exact = copy.deepcopy(layer).double()
    truth = rows_gramian(group_loss(exact(x.double()), target.double(), group), [exact.weight])
    assert off(found, truth) < 1e-6


# -- which rows are whose ----------------------------------------------------------------------------------------------------------------


def looked(owner: Tensor, b: int, *, dtype: torch.dtype = torch.float32, mix: Tensor | None = None, silent: Tensor | None = None) -> tuple:
    """Arguments of ``judge`` for rows that belong to ``owner``, with ``mix`` (R, b) of the other examples."""
    generator = torch.Generator().manual_seed(1)
    parts = torch.randn(len(owner), b, 6, generator=generator, dtype=torch.float64)  # what each example's loss gives to each row
    share = F.one_hot(owner, b).double() if mix is None else mix
    if silent is not None:
        share = share * ~silent[:, None]
    c = coefficients(b, torch.zeros(1, dtype=torch.float64))
    plain, weighted = ((parts * (share * w)[:, :, None]).sum(1).to(dtype) for w in (torch.ones(b), c))
    looks = Looks()
    return looks(plain), looks(weighted), plain.double().norm(dim=1), c


def test_coefficients_differ() -> None:
    c = coefficients(256, torch.zeros(1))
    assert c.min() == 0.5 and c.max() == 1 and len(c.unique()) == 256
    assert torch.equal(c, coefficients(256, torch.zeros(1)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-3), (torch.bfloat16, 0.15)], ids=str)
@pytest.mark.parametrize("b", [2, 3, 8, 256])
@pytest.mark.parametrize(("positions", "stride"), [(1, 1), (6, 6), (6, 1), (6, 2), (6, 3)])
def test_regular_layouts_are_found(positions, stride, b, dtype, tolerance) -> None:
    owner = torch.arange(b * positions) // stride % b
    finding = judge(*looked(owner, b, dtype=dtype), tolerance)
    assert finding.stride == stride and finding.known


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 0.15)], ids=str)
@pytest.mark.parametrize("b", [4, 8, 256])
@pytest.mark.parametrize("positions", [1, 6])
def test_other_orders_are_no_layout(positions, b, dtype, tolerance) -> None:
    owner = torch.randperm(b * positions, generator=torch.Generator().manual_seed(b)) % b
    finding = judge(*looked(owner, b, dtype=dtype), tolerance)
    assert finding.stride is None and not finding.coupled


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-7), (torch.float32, 1e-3)], ids=str)
@pytest.mark.parametrize("b", [8, 256])
def test_a_mean_over_the_batch_couples(b, dtype, tolerance) -> None:
    mix = torch.eye(b, dtype=torch.float64) - 1 / b
    finding = judge(*looked(torch.arange(b), b, dtype=dtype, mix=mix), tolerance)
    assert finding.stride is None and finding.coupled


@pytest.mark.parametrize("b", [4, 8, 256])
def test_rows_of_all_examples_are_none_of_one(b) -> None:
    finding = judge(*looked(torch.zeros(2 * b, dtype=torch.long), b, mix=torch.ones(2 * b, b, dtype=torch.float64)), 1e-3)
    assert finding.stride is None and not finding.coupled


def test_what_says_little_is_not_remembered() -> None:
    b, owner = 8, torch.arange(8).repeat_interleave(3)
    nothing = judge(*looked(owner, b, silent=torch.ones(24, dtype=torch.bool)), 1e-3)
    assert nothing.stride == 3 and not nothing.known
    one_row = judge(*looked(owner, b, silent=torch.arange(24) != 7), 1e-3)
    assert not one_row.known
    last_positions = judge(*looked(owner, b, silent=torch.arange(24) % 3 != 2), 1e-3)
    assert last_positions.stride == 3 and last_positions.known


def test_rows_that_are_not_finite_are_looked_past() -> None:
    plain, weighted, lengths, c = looked(torch.arange(24) // 3, 8)
    plain[4], weighted[4], lengths[4] = torch.nan, torch.inf, torch.nan
    assert judge(plain, weighted, lengths, c, 1e-3).stride == 3
    plain, weighted, lengths, c = looked(torch.arange(24) // 3, 8)
    nothing_seen = judge(plain, torch.full_like(weighted, torch.inf), lengths, c, 1e-3)
    assert nothing_seen.stride is None and not nothing_seen.known


def test_layouts_are_remembered_by_shape() -> None:
    model, group_loss = mlp(), GroupLoss(nn.CrossEntropyLoss(reduction="none"), M)
    passes = []
    for b in (B, B, 7, B, 7):
        losses = group_loss(model(torch.randn(b, 8)), torch.zeros(b, dtype=torch.long), torch.arange(b) % M)
        passes.append(ghost_gramian(losses, named(model)[1]).passes)
    assert passes == [2, 1, 2, 1, 1]


def test_only_so_many_shapes_are_remembered(monkeypatch) -> None:
    monkeypatch.setattr("counterpoise.gradients._ghost._gramian.REMEMBERED", 2)
    model, group_loss = mlp(), GroupLoss(nn.CrossEntropyLoss(reduction="none"), M)
    for b in (5, 6, 7, 8):
        losses = group_loss(model(torch.randn(b, 8)), torch.zeros(b, dtype=torch.long), torch.arange(b) % M)
        ghost_gramian(losses, named(model)[1])
    assert len(group_loss._layouts) == 2


def shuffled(self: Of, x: Tensor) -> Tensor:
    order = x.sum(1).argsort()
    return self.head(self.inner(x[order]).relu()[order.argsort()])


def test_an_order_that_depends_on_values_is_looked_at_each_time() -> None:
    """The first batch is in order by chance; the second one is not, and has the same graph."""
    torch.manual_seed(0)
    model, group_loss = (
        Of(shuffled, inner=nn.Linear(8, 6), head=nn.Linear(6, CLASSES)).double(),
        GroupLoss(nn.CrossEntropyLoss(reduction="none"), M),
    )
    x = vectors(torch.float64)
    for batch, left in ((x[x.sum(1).argsort()], ()), (x, (0, 1))):
        losses = group_loss(model(batch), torch.arange(B) % CLASSES, torch.arange(B) % M)
        assert agrees(model, losses, 1e-10).left == left


# -- examples that depend on each other --------------------------------------------------------------------------------------------------


def with_batch_statistics() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


def centered(self: Of, x: Tensor) -> Tensor:
    x = self.inner(x)
    return self.head((x - x.mean(0)).tanh())


def test_batch_statistics_are_refused() -> None:
    model = with_batch_statistics()
    losses = group_losses(model, vectors(torch.float32))
    with pytest.raises(InputError, match=r"NativeBatchNormBackward0 in training mode.*model\.eval\(\).*GroupLoss\(allow_coupled=True\)"):
        ghost_gramian(losses, named(model)[1])
    model.eval()
    agrees(model, group_losses(model, vectors(torch.float32)), 1e-5)


def test_other_coupling_is_refused_too() -> None:
    model = Of(centered, inner=nn.Linear(8, 6), head=nn.Linear(6, CLASSES))
    with pytest.raises(InputError, match=r"examples that depend on each other \(AddmmBackward0\)"):
        ghost_gramian(group_losses(model, vectors(torch.float32)), named(model)[1])


@pytest.mark.parametrize("make", [with_batch_statistics, lambda: Of(centered, inner=nn.Linear(8, 6), head=nn.Linear(6, CLASSES))])
def test_coupling_that_is_allowed_is_exact(make) -> None:
    model = make().double()
    losses = group_losses(model, vectors(torch.float64), allow_coupled=True)
    assert agrees(model, losses, 1e-10).left == (0, 1)
    assert ghost_gramian(losses, named(model)[1]).passes == 1


# -- precision ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer, positions first", "transformer, tied", "weight norm and spectral norm"])
def test_autocast(name) -> None:
    torch.manual_seed(0)
    model = CASES[name].make()
    x = CASES[name].inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        losses = group_losses(model, x)
        ghost = ghost_gramian(losses, named(model)[1])
    assert not ghost.left
    assert off(ghost.gramian, rows_gramian(losses, named(model)[1])) < 0.03
    assert torch.equal(ghost_gramian(losses, named(model)[1]).gramian, ghost.gramian)  # also outside


def test_models_in_half_precision() -> None:
    torch.manual_seed(0)
    model = mlp().to(torch.bfloat16)
    losses = group_losses(model, vectors(torch.bfloat16))
    ghost = ghost_gramian(losses, named(model)[1])
    assert not ghost.left
    assert off(ghost.gramian, rows_gramian(losses, named(model)[1])) < 0.03


def test_a_scale_against_underflow() -> None:
    torch.manual_seed(0)
    model, x, target, group = mlp(), vectors(torch.float32), torch.arange(B) % CLASSES, torch.arange(B) % M
    group_loss = GroupLoss(lambda output, target: 1e-7 * F.cross_entropy(output.float(), target, reduction="none"), M)
    exact = ghost_gramian(group_loss(model(x), target, group), named(model)[1]).gramian
    torch.testing.assert_close(
        ghost_gramian(group_loss(model(x), target, group), named(model)[1], scale=2.0**16).gramian, exact, rtol=1e-6, atol=0
    )
    with torch.autocast("cpu", torch.float16):
        losses = group_loss(model(x), target, group)
    assert off(ghost_gramian(losses, named(model)[1], scale=2.0**16).gramian, exact) < 0.02
    assert off(ghost_gramian(losses, named(model)[1]).gramian, exact) > 0.1


def test_overflow_shows() -> None:
    model = mlp()
    x = vectors(torch.float32)
    x[3] = torch.inf
    assert not ghost_gramian(group_losses(model, x), named(model)[1]).gramian.isfinite().all()


# -- graphs that cannot be read, or not again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing(use_reentrant) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), nn.Linear(6, CLASSES)).double()
    model = Of(lambda self, x: self.net[2](checkpoint(self.net[1], self.net[0](x).relu(), use_reentrant=use_reentrant)), net=net)
    losses = group_losses(model, vectors(torch.float64))
    if use_reentrant:
        with pytest.raises(InputError, match=r"reentrant checkpointing; expected checkpoint\(\.\.\., use_reentrant=False\)"):
            ghost_gramian(losses, named(model)[1])
        return
    ghost = agrees(model, losses, 1e-10)
    names = named(model)[0]
    assert {names[i] for i in ghost.left} == {"net.1.0.weight", "net.1.2.weight"}
    assert all("checkpointed" in note for note in ghost.notes)


def test_saved_tensors_on_another_device() -> None:
    model = mlp().double()
    with torch.autograd.graph.save_on_cpu():
        losses = group_losses(model, vectors(torch.float64))
    agrees(model, losses, 1e-10)


def test_compiled_models() -> None:
    torch.manual_seed(0)
    trunk, head = nn.Sequential(nn.Linear(8, 6), nn.ReLU()).double(), nn.Linear(6, CLASSES).double()
    model = nn.Sequential(torch.compile(trunk, backend="aot_eager"), head)
    ghost = agrees(model, group_losses(model, vectors(torch.float64)), 1e-10)
    assert ghost.left == (0, 1) and "CompiledFunctionBackward" in ghost.notes[0]


def test_graphs_that_are_gone() -> None:
    model = mlp()
    losses = group_losses(model, vectors(torch.float32))
    losses.sum().backward()
    with pytest.raises(InputError, match=r"^losses: got a graph that was already used"):
        ghost_gramian(losses, named(model)[1])


def test_refuses_other_losses() -> None:
    model = mlp()
    params = named(model)[1]
    with pytest.raises(InputError, match=r"^losses: got a tensor of shape \(4,\); expected the tensor that GroupLoss returned, as it is"):
        ghost_gramian(2 * group_losses(model, vectors(torch.float32)), params)
    with torch.no_grad():
        losses = group_losses(model, vectors(torch.float32))
    with pytest.raises(InputError, match=r"^losses: got a tensor without a graph"):
        ghost_gramian(losses, params)


# -- nothing is left behind --------------------------------------------------------------------------------------------------------------


def test_nothing_changes() -> None:
    torch.manual_seed(0)
    model = transformer(True, dropout=0.1)
    _, params = named(model)
    x = tokens(torch.float32)
    losses = group_losses(model, x)
    losses.sum().backward(retain_graph=True)
    before = [p.grad.clone() for p in params]
    values = [p.detach().clone() for p in params]
    state = torch.get_rng_state()
    ghost_gramian(losses, params)
    assert torch.equal(torch.get_rng_state(), state)
    for p, grad, value in zip(params, before, values, strict=True):
        assert torch.equal(p.grad, grad) and torch.equal(p, value)
    for p in params:
        p.grad = None
    ghost_gramian(losses, params)
    assert all(p.grad is None for p in params)
    losses.sum().backward()
    for p, grad in zip(params, before, strict=True):
        assert torch.equal(p.grad, grad)


def test_hooks_go_also_after_an_error(monkeypatch) -> None:
    model = mlp()
    losses = group_losses(model, vectors(torch.float32))
    calls = []

    def fails(self, b, members):
        calls.append(self)
        raise ZeroDivisionError

    monkeypatch.setattr(ProductUse, "contribution", fails)
    with pytest.raises(ZeroDivisionError):
        ghost_gramian(losses, named(model)[1])
    assert len(calls) == 1
    losses.sum().backward(retain_graph=True)
    assert len(calls) == 1
    monkeypatch.undo()
    agrees(model, losses, 1e-5)
