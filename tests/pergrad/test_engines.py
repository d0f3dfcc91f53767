"""Every engine gives the gradients that one derivative per example gives, on every architecture that it takes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise._pergrad import GradientSketch
from counterpoise.diagnostics import sketch_gradients
from tests.pergrad.models import (
    ARCHITECTURES,
    CLASSES,
    GROUPS,
    LAYERS,
    ROWS,
    WIDTH,
    Case,
    Checkpointed,
    Idle,
    Noisy,
    error,
    mlp,
    truth,
    truth_of,
)

EXACT, SINGLE = 1e-10, 1e-5
CASES = ARCHITECTURES + LAYERS
SLOW_IN_VMAP = "ignore:There is a performance drop"
COMPLEX = "ignore:Complex modules are a new feature"

pytestmark = [pytest.mark.filterwarnings(SLOW_IN_VMAP), pytest.mark.filterwarnings(COMPLEX)]
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def measured(case: Case, dtype: torch.dtype = torch.float64, **options: Any) -> tuple[GradientSketch, Any, Tensor]:
    model, inputs, target, groups = case.build(dtype)
    sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (*inputs, target), groups=groups, batch_size=4, **options)
    return sketch, truth(*(case.build(torch.float64))[:3]), groups


@each
def test_hooks(case: Case) -> None:
    sketch, expected, groups = measured(case)
    assert sketch.parameter_names == expected.names
    assert sketch.coverage == 1.0 and not sketch.missing
    assert sketch.blocks is not None
    assert error(sketch.blocks.norms_sq, expected.norms_sq) < EXACT
    assert error(sketch.norms_sq, expected.norms_sq.sum(dim=1)) < EXACT
    assert error(sketch.group_sums, expected.sums(groups, GROUPS)) < EXACT
    assert error(sketch.along, expected.matrix @ expected.matrix.mean(dim=0)) < EXACT
    assert error(sketch.losses, expected.losses) < EXACT
    assert sketch.index.tolist() == list(range(ROWS)) and torch.equal(sketch.groups, groups)
    assert (sketch.engine == "ghost" and not sketch.notes) == case.by_hooks, (sketch.engine, sketch.notes)


@each
def test_gramian(case: Case) -> None:
    sketch, expected, groups = measured(case, gramian=True)
    gramian = expected.matrix @ expected.matrix.T
    assert error(sketch.gramian, gramian) < EXACT
    assert sketch.gramian is not None
    # The rows of the Gramian add up to what forward mode gives along the mean gradient.
    assert error(sketch.along, gramian.mean(dim=1)) < EXACT
    assert error(sketch.group_sums, expected.sums(groups, GROUPS)) < EXACT


@each
def test_vmap(case: Case) -> None:
    if not case.vmap:
        with pytest.raises(InputError, match="engine: 'vmap' cannot measure this model"):
            measured(case, engine="vmap")
        return
    sketch, expected, groups = measured(case, engine="vmap")
    assert sketch.engine == "vmap" and sketch.blocks is not None
    assert error(sketch.blocks.norms_sq, expected.norms_sq) < EXACT
    assert error(sketch.group_sums, expected.sums(groups, GROUPS)) < EXACT
    assert error(sketch.along, expected.matrix @ expected.matrix.mean(dim=0)) < EXACT


@each
def test_jvp(case: Case) -> None:
    if not case.jvp:
        with pytest.raises(InputError, match="engine: 'jvp' cannot measure this model"):
            measured(case, engine="jvp")
        return
    sketch, expected, groups = measured(case, engine="jvp")
    assert sketch.engine == "jvp" and sketch.norms_sq is None and sketch.S is None
    assert error(sketch.group_sums, expected.sums(groups, GROUPS)) < EXACT
    assert error(sketch.along, expected.matrix @ expected.matrix.mean(dim=0)) < EXACT


@pytest.mark.parametrize("case", ARCHITECTURES, ids=lambda case: case.name)
@pytest.mark.parametrize("engine", ["ghost", "groups", "loop"])
def test_single_precision(case: Case, engine: str) -> None:
    sketch, expected, groups = measured(case, torch.float32, engine=engine)
    assert error(sketch.group_sums, expected.sums(groups, GROUPS)) < SINGLE
    if engine != "groups":
        assert error(sketch.norms_sq, expected.norms_sq.sum(dim=1)) < SINGLE
        assert error(sketch.along, expected.matrix @ expected.matrix.mean(dim=0)) < SINGLE


@pytest.mark.parametrize("engine", ["ghost", "vmap", "groups", "loop", "jvp"])
@pytest.mark.parametrize("batch_size", [1, 2, 3, ROWS])
def test_any_size_of_batch(engine: str, batch_size: int) -> None:
    case = ARCHITECTURES[0]
    model, inputs, target, groups = case.build()
    sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (*inputs, target), groups=groups, engine=engine, batch_size=batch_size)
    assert error(sketch.group_sums, truth(model, inputs, target).sums(groups, GROUPS)) < EXACT


def test_head_alone() -> None:
    for case in (ARCHITECTURES[0], ARCHITECTURES[2], ARCHITECTURES[6]):
        sketch, expected, groups = measured(case, engine="last_layer")
        head = [i for i, name in enumerate(expected.names) if name in sketch.parameter_names]
        assert sketch.engine == "last_layer"
        assert [expected.parts[i].shape[1] for i in head][-1] == CLASSES
        assert error(sketch.norms_sq, expected.norms_sq[:, head].sum(dim=1)) < EXACT
        columns = torch.cat([expected.parts[i] for i in head], dim=1)
        assert error(sketch.group_sums, torch.stack([columns[groups == k].sum(dim=0) for k in range(GROUPS)])) < EXACT


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ("last_1", ["4.weight", "4.bias"]),
        ("last_2", ["2.weight", "4.weight", "4.bias"]),
        ("bias", ["0.bias", "4.bias"]),
        ("^0", ["0.weight", "0.bias"]),
    ],
)
def test_part_of_the_parameters(params: str, names: list[str]) -> None:
    case = ARCHITECTURES[0]
    sketch, expected, _ = measured(case, params=params)
    assert list(sketch.parameter_names) == names
    assert error(sketch.norms_sq, expected.norms_sq[:, [expected.names.index(name) for name in names]].sum(dim=1)) < EXACT
    assert sketch.coverage == 1.0


# ---- wherever hooks and a few examples could be deceived ----------------------------------------------------------------------


class Centered(nn.Module):
    """Subtracts the mean of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return self.head(h - h.mean(0))


def contrastive(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output @ output.T, torch.arange(len(output)), reduction="none")


def divided(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction="none") / len(target)


def hardest(output: Tensor, target: Tensor) -> Tensor:
    losses = F.cross_entropy(output, target, reduction="none")
    return losses * (losses >= losses.median())


@pytest.mark.parametrize("engine", ["auto", "ghost", "vmap", "jvp", "groups", "loop"])
@pytest.mark.parametrize(("model", "loss"), [(Centered, nn.CrossEntropyLoss()), (mlp, contrastive), (mlp, divided), (mlp, hardest)])
def test_examples_that_depend_on_each_other(engine: str, model: Callable[[], nn.Module], loss: Any) -> None:
    torch.manual_seed(0)
    data = torch.randn(ROWS, WIDTH), torch.randint(CLASSES, (ROWS,))
    with pytest.raises(InputError, match="examples whose loss depends on the others in their batch"):
        sketch_gradients(model(), loss, data, engine=engine)


@pytest.mark.parametrize("rows", [2, 3])
def test_division_by_few(rows: int) -> None:
    data = torch.randn(rows, WIDTH), torch.arange(rows)
    with pytest.raises(InputError, match="depends on the others"):
        sketch_gradients(mlp(), divided, data)


@pytest.mark.parametrize("gate", [1.0, 0.02])
@pytest.mark.parametrize("special", range(0, 60, 7))
def test_one_example_in_sixty_that_is_different(special: int, gate: float) -> None:
    """Its second use of the weight is seen by no hook, and it is not among the few that are compared one by one."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer(x).tanh()
            return self.head(h + gate * (x[:, :1] > 5).to(x.dtype) * F.linear(h, self.layer.weight))

    torch.manual_seed(special)
    model = Gated().double()
    x, y = torch.randn(60, WIDTH, dtype=torch.float64), torch.arange(60) % CLASSES
    x[special, 0] = 7.0
    sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), batch_size=16)
    assert error(sketch.norms_sq, truth(model, (x,), y).norms_sq.sum(dim=1)) < EXACT
    assert sketch.notes and "layer.weight" in sketch.notes[0]


def test_well_fitted_examples_are_not_called_dependent() -> None:
    """Their losses are differences of large numbers: rounding makes them differ between batches."""
    torch.manual_seed(0)
    x, y = torch.randn(64, 20), torch.arange(64) % 4
    model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        model[2].weight *= 3
        assert F.cross_entropy(model(x), y) < 1e-6
    sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y))
    assert sketch.engine == "ghost"


def test_reentrant_checkpoint() -> None:
    """Its backward is one of its own, which torch.autograd.grad does not allow."""
    torch.manual_seed(0)
    model, x, y = Checkpointed(reentrant=True).double(), torch.randn(ROWS, WIDTH, dtype=torch.float64), torch.arange(ROWS) % CLASSES
    plain = copy.deepcopy(model)
    plain.reentrant = False
    expected = truth(plain, (x,), y)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for engine in ("ghost", "groups", "loop"):
        sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), engine=engine, batch_size=4)
        assert error(sketch.group_sums, expected.sums(y, CLASSES)) < EXACT
        assert sketch.norms_sq is None or error(sketch.norms_sq, expected.norms_sq.sum(dim=1)) < EXACT
    assert all(bool((p.grad == 1).all()) for p in model.parameters())


@pytest.mark.parametrize("how", ["wrapped", "in place", "a part"])
def test_compiled(how: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(ROWS, WIDTH), torch.arange(ROWS) % CLASSES
    model = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    expected = truth(model, (x,), y)
    if how == "wrapped":
        compiled = torch.compile(model, backend="eager")
    elif how == "in place":
        compiled = model
        compiled.compile(backend="eager")
    else:
        compiled = nn.Sequential(torch.compile(model[0], backend="eager"), *model[1:])
    compiled(x)
    sketch = sketch_gradients(compiled, nn.CrossEntropyLoss(), (x, y))
    assert sketch.engine == "ghost" and not sketch.notes
    assert error(sketch.norms_sq, expected.norms_sq.sum(dim=1)) < SINGLE


def test_half_precision_is_computed_in_single() -> None:
    torch.manual_seed(0)
    model = mlp().bfloat16()
    x, y = torch.randn(40, WIDTH), torch.arange(40) % CLASSES
    sketch = sketch_gradients(model, lambda o, t: F.cross_entropy(o.float(), t, reduction="none"), (x.bfloat16(), y))
    assert sketch.engine == "ghost" and not sketch.notes
    assert sketch.group_sums is not None and sketch.group_sums.dtype == torch.float32
    twin = mlp()
    twin.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    expected = truth(twin, (x.bfloat16().float(),), y)
    assert error(sketch.norms_sq, expected.norms_sq.sum(dim=1)) < 0.05


def test_autocast() -> None:
    torch.manual_seed(0)
    model, x, y = mlp(), torch.randn(40, WIDTH), torch.arange(40) % CLASSES

    def forward(model: nn.Module, batch: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = model(batch[0])
        return out.float()

    sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), forward=forward, batch_size=16)
    assert sketch.engine == "ghost" and not sketch.notes
    assert error(sketch.norms_sq, truth(model, (x,), y).norms_sq.sum(dim=1)) < 0.1


def test_dropout_is_the_same_in_both_passes() -> None:
    """The inner products with the mean gradient take a second pass, which has to drop what the first did."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 30), nn.Dropout(0.5), nn.ReLU(), nn.Linear(30, CLASSES)).double().train()
    x, y = torch.randn(50, WIDTH, dtype=torch.float64), torch.arange(50) % CLASSES
    for engine in ("ghost", "vmap", "loop"):
        sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), train_mode=True, engine=engine, batch_size=20)
        assert sketch.along is not None and sketch.group_sums is not None
        mean = sketch.group_sums.sum(dim=0) / 50
        assert float(sketch.along.sum()) == pytest.approx(50 * float(mean @ mean), rel=1e-12)
        assert not torch.equal(sketch.losses, sketch_gradients(model, nn.CrossEntropyLoss(), (x, y)).losses)


@pytest.mark.parametrize("check", [True, False])
def test_dropout_in_a_layer_that_cannot_be_run_once_more(check: bool) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, WIDTH), torch.arange(50) % CLASSES
    sketch = sketch_gradients(Noisy(), nn.CrossEntropyLoss(), (x, y), train_mode=True, check=check)
    assert sketch.coverage == 1.0
    assert sketch.engine == "vmap" or any("shift" in note for note in sketch.notes)


def test_gradients_at_a_fixed_point_of_training_are_still_right() -> None:
    """Sums cancel there; norms do not."""
    torch.manual_seed(0)
    x, y = torch.randn(40, WIDTH, dtype=torch.float64), torch.randint(CLASSES, (40,))
    model = nn.Linear(WIDTH, CLASSES).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y))
    expected = truth(model, (x,), y)
    assert sketch.engine == "ghost" and not sketch.notes
    assert error(sketch.norms_sq, expected.norms_sq.sum(dim=1)) < EXACT


def test_parameter_that_is_never_used_has_no_gradient() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(ROWS, WIDTH), torch.arange(ROWS) % CLASSES
    for engine in ("ghost", "vmap", "loop"):
        sketch = sketch_gradients(Idle(), nn.CrossEntropyLoss(), (x, y), engine=engine)
        assert sketch.blocks is not None
        norms = dict(zip(sketch.blocks.names, sketch.blocks.norms_sq.T, strict=True))
        assert "frozen.weight" not in norms
        assert all(not norms[name].any() for name in ("unused.weight", "unused.bias", "ignored.weight", "ignored.bias"))
        assert all(norms[name].all() for name in ("layer.weight", "head.bias"))


def test_positions_within_an_example_are_averaged() -> None:
    """As reduction="mean" does for losses per token."""
    torch.manual_seed(0)
    model, x = nn.Linear(WIDTH, CLASSES).double(), torch.randn(ROWS, 5, WIDTH, dtype=torch.float64)
    y = torch.randint(CLASSES, (ROWS, 5))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.transpose(1, 2), target, reduction="none")

    sketch = sketch_gradients(model, loss, (x, y), groups=None)
    expected = truth_of(model, lambda: loss(model(x), y).mean(dim=1))
    assert error(sketch.norms_sq, expected.norms_sq.sum(dim=1)) < EXACT


def test_lists_of_things_that_are_not_tensors_stay_with_their_examples() -> None:
    torch.manual_seed(0)
    model = nn.EmbeddingBag(9, CLASSES, mode="sum").double()
    texts = ["ab", "c", "abc", "ddd", "e", "fa", "bb", "h"]
    y = torch.tensor([1, 0, 3, 2, 1, 0, 3, 2])

    def forward(model: nn.Module, batch: Any) -> Tensor:
        return torch.cat([model(torch.tensor([[ord(letter) - 97 for letter in text]])) for text in batch["text"]])

    def loss(output: Tensor, batch: Any) -> Tensor:
        return F.cross_entropy(output, batch["y"], reduction="none")

    data = [{"y": y[:5], "text": texts[:5]}, {"y": y[5:], "text": texts[5:]}]
    sketch = sketch_gradients(model, None, data, groups="y", forward=forward, loss=loss)
    expected = truth_of(model, lambda: loss(forward(model, {"text": texts}), {"y": y}))
    assert error(sketch.losses, expected.losses) < EXACT
    assert error(sketch.norms_sq, expected.norms_sq.sum(dim=1)) < EXACT


def test_loss_with_a_penalty_on_a_weight() -> None:
    torch.manual_seed(0)
    model, x, y = mlp().double(), torch.randn(ROWS, WIDTH, dtype=torch.float64), torch.arange(ROWS) % CLASSES

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="none") + 0.1 * model[2].weight.square().sum()

    expected = truth_of(model, lambda: loss(model(x), y))
    for engine in ("ghost", "vmap"):
        sketch = sketch_gradients(model, loss, (x, y), engine=engine, batch_size=4)
        assert error(sketch.norms_sq, expected.norms_sq.sum(dim=1)) < EXACT


def test_hook_that_changes_the_gradient_of_a_parameter() -> None:
    """As those who freeze a part of a table do: training moves along what the hook returns."""
    torch.manual_seed(0)
    model, x, y = mlp().double(), torch.randn(ROWS, WIDTH, dtype=torch.float64), torch.arange(ROWS) % CLASSES
    model[0].weight.register_hook(lambda g: g * (torch.arange(7) < 3)[:, None])
    expected = truth(model, (x,), y)
    assert not expected.parts[0].view(ROWS, 7, WIDTH)[:, 3:].any()
    sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), batch_size=4)
    assert error(sketch.norms_sq, expected.norms_sq.sum(dim=1)) < EXACT
    with pytest.raises(InputError, match="hooks that change its gradient"):
        sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), engine="vmap")


class Force(nn.Module):
    """The output is a gradient itself: layers are passed backward twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.energy, self.head = nn.Linear(WIDTH, 8), nn.Linear(8, 1), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (force,) = torch.autograd.grad(self.energy(self.layer(x).tanh()).sum(), x, create_graph=True)
        return self.head(force)


def test_gradient_within_the_model() -> None:
    torch.manual_seed(0)
    model, x, y = Force().double(), torch.randn(ROWS, WIDTH, dtype=torch.float64), torch.arange(ROWS) % CLASSES
    sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), batch_size=4)
    assert error(sketch.norms_sq, truth(model, (x,), y).norms_sq.sum(dim=1)) < EXACT


class Graph(nn.Module):
    """Nodes that are joined by a matrix: no node passes without the others."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor, joined: Tensor) -> Tensor:
        return self.head(joined @ x)


def test_examples_that_cannot_be_taken_apart() -> None:
    data = torch.randn(ROWS, WIDTH), torch.rand(ROWS, ROWS), torch.arange(ROWS) % CLASSES
    with pytest.raises(InputError, match="cannot pass through the model without the others"):
        sketch_gradients(Graph(), nn.CrossEntropyLoss(), data)


def test_errors_of_the_model_itself_are_its_own() -> None:
    class Wrong(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x[:, :2])

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sketch_gradients(Wrong(WIDTH, CLASSES), nn.CrossEntropyLoss(), (torch.randn(ROWS, WIDTH), torch.arange(ROWS) % CLASSES))


def test_one_output_squeezed_away() -> None:
    """One example alone loses the dimension of the batch, which the loss does not take."""
    torch.manual_seed(0)
    x, y = torch.randn(ROWS, WIDTH, dtype=torch.float64), (torch.arange(ROWS) % 2).double()

    class One(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).squeeze()

    model = One(WIDTH, 1).double()
    expected = truth_of(model, lambda: F.binary_cross_entropy_with_logits(model(x), y, reduction="none"))
    for engine in ("auto", "loop", "groups"):
        sketch = sketch_gradients(model, nn.BCEWithLogitsLoss(), (x, y), engine=engine, batch_size=3)
        assert error(sketch.group_sums, expected.sums(y.long(), 2)) < EXACT


@pytest.mark.parametrize("padding_idx", [None, 0])
def test_random_directions_of_forward_mode(padding_idx: int | None) -> None:
    """Which pays no heed to the row of the padding by itself, nor to parts without gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, WIDTH, padding_idx=padding_idx), nn.Flatten(), nn.Linear(3 * WIDTH, CLASSES)).double()
    nn.init.normal_(model[0].weight)
    x, y = torch.randint(3, (ROWS, 3)), torch.arange(ROWS) % CLASSES
    sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), engine="jvp", sketch_dim=400)
    expected = truth(model, (x,), y)
    assert sketch.S is not None and sketch.norms_sq is not None
    assert float((sketch.norms_sq / expected.norms_sq.sum(dim=1) - 1).abs().max()) < 0.3
    assert float((sketch.S @ sketch.S.mean(dim=0) - expected.matrix @ expected.matrix.mean(dim=0)).abs().max()) < 0.3 * float(
        expected.norms_sq.sum(dim=1).max()
    )

    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.body(x)
            return self.head(h)

    data = torch.randn(ROWS, WIDTH), y
    with pytest.raises(InputError, match="forward and backward derivatives differ"):
        sketch_gradients(Part(), nn.CrossEntropyLoss(), data, engine="jvp", sketch_dim=16)
