"""Where the examples are in a layer's tensors, what a batch in any order gives, and when a rule of a layer does not apply."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._pergrad import Collector, ParameterSpace, Watch, find_layouts, take
from counterpoise._pergrad._layouts import guess_layout
from counterpoise._pergrad._rules import rule_of
from counterpoise._pergrad._uses import chunks
from tests.pergrad.models import ARCHITECTURES, CLASSES, LAYERS, ROWS, WIDTH, Case, Unpadded, error, truth


def space_of(model: nn.Module) -> ParameterSpace:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    return ParameterSpace([name for name, _ in named], [p for _, p in named])


def case_named(name: str) -> Case:
    return next(case for case in ARCHITECTURES + LAYERS if case.name == name)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((7, 3), 0), ((3, 7), 1), ((21, 3), "flat"), ((3, 5), None), ((1, 7, 2), 1), ((7, 7), 0), ((), None), ((3, 3, 7), None)],
)
def test_guess(shape: tuple[int, ...], layout: object) -> None:
    assert guess_layout(torch.zeros(shape), 7) == layout


def test_layouts_by_what_moves_with_the_batch() -> None:
    model, (tokens,), _, _ = case_named("and sequences first").build()
    layouts = find_layouts(model, space_of(model), lambda rows: model(tokens[rows]), ROWS)
    assert layouts["tokens", 0] == (0, 0)
    assert layouts["positions", 0] == (None, None)  # as many positions as examples, and none of either
    assert layouts["encoder.layers.0.linear1", 0] == (1, 1)
    assert layouts["head", 0] == (0, 0)


def test_layouts_of_frames_and_of_a_layer_called_twice() -> None:
    model, (x,), _, _ = case_named("images of a sequence").build()
    layouts = find_layouts(model, space_of(model), lambda rows: model(x[rows]), ROWS)
    assert layouts["convolution", 0] == ("flat", "flat") and layouts["linear", 0] == ("flat", "flat") and layouts["head", 0] == (0, 0)
    model, (x,), _, _ = case_named("layer called twice").build()
    layouts = find_layouts(model, space_of(model), lambda rows: model(x[rows]), ROWS)
    assert set(layouts) == {("layer", 0), ("layer", 1), ("head", 0)}


@pytest.mark.parametrize("passive", [False, True])
def test_tensors_that_are_not_where_they_were_are_given_up(passive: bool) -> None:
    """Found on examples of full length, used on others: 32 rows are not of 10 examples. Nothing is raised in somebody's backward."""
    torch.manual_seed(0)
    model = Unpadded()
    x, full = torch.randn(ROWS, 5, WIDTH), torch.full((ROWS,), 5)
    lengths = full.clone()
    lengths[4:] = 2
    space = space_of(model)
    layouts = find_layouts(model, space, lambda rows: model(x[rows], full[rows]), ROWS)
    assert layouts["layer", 0] == ("flat", "flat")
    ids = torch.zeros(ROWS, dtype=torch.int64)
    with Watch(model, space, layouts, passive=passive) as watch:
        watch.begin(Collector(space, ids, 1), ROWS)
        model(x, lengths).sum().backward()
        watch.finish()
    assert watch.broken == {space.names.index("layer.weight"), space.names.index("layer.bias")}


@pytest.mark.parametrize("name", ["cnn", "transformer encoder", "lstm", "bag of tokens, mean", "class token and positions"])
def test_groups_in_any_order(name: str) -> None:
    model, inputs, target, groups = case_named(name).build()
    space = space_of(model)
    groups = groups[torch.randperm(ROWS, generator=torch.Generator().manual_seed(3))]
    sums = torch.zeros(3, space.total, dtype=torch.float64)
    collector = Collector(space, groups, 3, sums=sums, gramian=True)
    layouts = find_layouts(model, space, lambda rows: model(*(x[rows] for x in inputs)), ROWS)
    with Watch(model, space, layouts) as watch:
        watch.begin(collector, ROWS)
        F.cross_entropy(model(*inputs), target, reduction="none").sum().backward()
        watch.finish()
    expected = truth(model, inputs, target)
    assert error(sums, expected.sums(groups, 3)) < 1e-10
    assert error(collector.norms_sq, expected.norms_sq) < 1e-10
    assert error(collector.gramian, expected.matrix @ expected.matrix.T) < 1e-10
    assert not watch.broken


def test_chunks_cover_every_row_once() -> None:
    space = space_of(nn.Linear(2, 1))
    for n, row_bytes in ((10, 1), (10, 2**22), (7, 2**21), (1, 2**30), (5, 0)):
        collector = Collector(space, torch.zeros(n, dtype=torch.int64), 1)
        rows = [i for part in chunks(collector, row_bytes) for i in range(part.start, part.stop)]
        assert rows == list(range(n))


def test_rules_are_for_plain_layers_only() -> None:
    class Other(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    patched = nn.Linear(3, 3)
    patched.forward = lambda x: x  # type: ignore[method-assign]
    assert rule_of(nn.Linear(3, 3)) is not None
    for layer in (
        Other(3, 3),
        patched,
        nn.Linear(3, 3, dtype=torch.complex64),
        nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
        nn.BatchNorm1d(3, affine=False),
        nn.Bilinear(3, 3, 3),
    ):
        assert rule_of(layer) is None


def test_parameters_in_their_columns() -> None:
    phase = nn.Parameter(torch.zeros(2, 3, dtype=torch.complex64))
    space = ParameterSpace(["a", "b", "c"], [nn.Parameter(torch.zeros(2, 2)), phase, nn.Parameter(torch.zeros(()))])
    assert space.slices == (slice(0, 4), slice(4, 16), slice(16, 17)) and space.total == 17
    assert space.dtype == torch.float32
    assert ParameterSpace(["a"], [nn.Parameter(torch.zeros(2, dtype=torch.float64))]).dtype == torch.float64
    assert ParameterSpace(["a"], [nn.Parameter(torch.zeros(2, dtype=torch.float16))]).dtype == torch.float32


def test_take_finds_the_examples_in_a_batch() -> None:
    batch = {"x": torch.arange(8).view(4, 2), "scale": torch.ones(2), "text": ["a", "b", "c", "d"], "n": 4, "two": ("u", "v")}
    for rows in (slice(1, 3), torch.tensor([1, 2])):
        some = take(batch, rows, 4)
        assert some["x"].tolist() == [[2, 3], [4, 5]] and some["text"] == ["b", "c"]
        assert some["scale"] is batch["scale"] and some["n"] == 4 and some["two"] == ("u", "v")
    pair = torch.zeros(2, 3), torch.zeros(2)
    assert len(take(pair, slice(0, 1), 2)) == 2  # the pair itself is not a list of two examples
    assert take({"x": torch.zeros(3).numpy()}, torch.tensor([0, 2]), 3)["x"].shape == (2,)


def test_one_example() -> None:
    for name in ("mlp", "cnn", "transformer encoder, sequences first", "gpt-2", "lstm, packed"):
        model, inputs, target, _ = case_named(name).build()
        inputs, target = tuple(x[:1] for x in inputs), target[:1]
        space = space_of(model)
        collector = Collector(space, torch.zeros(1, dtype=torch.int64), 1)
        with Watch(model, space, None) as watch:
            watch.begin(collector, 1)
            F.cross_entropy(model(*inputs), target).backward()
            watch.finish()
        expected = truth(model, inputs, target).norms_sq
        trusted = [i for i in range(len(space.names)) if i not in watch.broken]
        assert error(collector.norms_sq[:, trusted], expected[:, trusted]) < 1e-10
        assert len(watch.broken) == 0


def test_classes_of_the_case_table() -> None:
    assert CLASSES > 2 and len({case.name for case in ARCHITECTURES + LAYERS}) == len(ARCHITECTURES + LAYERS)
