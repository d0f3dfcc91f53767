"""Random projections: unbiased inner products, one projection however the numbers come in, and sketches that add up."""

from __future__ import annotations

import multiprocessing
import pickle
import socket
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise._pergrad import GradientSketch, Projection
from counterpoise.diagnostics import sketch_gradients
from tests.pergrad.models import ARCHITECTURES, CLASSES, LAYERS, WIDTH, Case, truth

DRAWS = 200

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:Complex modules are a new feature"),
]


def vector_case() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
    return model, torch.randn(24, WIDTH, dtype=torch.float64), torch.arange(24) % CLASSES


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_products_give_what_adding_up_gives(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU sketches are made by products instead: the same numbers."""
    generator = torch.Generator().manual_seed(0)
    g, x = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((3, rows * 30), (3, 4, 30)))
    added = Projection(16, 1)
    expected = added.dense("w", g, rows), added.outer("w", x, x[:, :, :20])
    monkeypatch.setattr(Projection, "_by_products", lambda self, device, width: True)
    products = Projection(16, 1)
    torch.testing.assert_close((products.dense("w", g, rows), products.outer("w", x, x[:, :, :20])), expected)
    assert products._matrices and not products._entries


def test_inner_products_of_outer_products_are_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 2, size, generator=generator, dtype=torch.float64) for size in (4, 5))
    g = torch.einsum("nti,nto->noi", a, b).flatten(1)
    drawn = torch.stack([(s := Projection(64, seed).outer("w", a, b)) @ s.T for seed in range(DRAWS)])
    deviation = (drawn.mean(dim=0) - g @ g.T).abs()
    assert bool((deviation < 4 * drawn.std(dim=0) / DRAWS**0.5).all())


@pytest.mark.parametrize("rows", [1, 5])
def test_inner_products_of_rows_are_unbiased(rows: int) -> None:
    g = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = torch.stack([(s := Projection(16, seed).dense("b", g, rows)) @ s.T for seed in range(DRAWS)])
    deviation = (drawn.mean(dim=0) - g @ g.T).abs()
    assert bool((deviation < 4 * drawn.std(dim=0) / DRAWS**0.5).all())


def test_table_and_formed_matrix_are_projected_as_the_outer_product() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, b = torch.randint(7, (3, 4), generator=generator), torch.randn(3, 4, 5, generator=generator, dtype=torch.float64)
    projection = Projection(32, 1)
    # A table's gradient has the tokens as rows: what is "out" for a linear layer.
    hot = F.one_hot(tokens, 7).double()
    expected = projection.outer("t", b, hot)
    torch.testing.assert_close(projection.lookup("t", tokens, b, 7), expected)
    torch.testing.assert_close(projection.dense("t", torch.einsum("nto,nti->noi", hot, b).flatten(1), 7), expected)


def test_signs_depend_on_seed_and_name_alone() -> None:
    g = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    first = Projection(8, 3)
    first.dense("other", g, 1)
    assert torch.equal(first.dense("b", g, 1), Projection(8, 3).dense("b", g, 1))
    assert not torch.equal(first.dense("b", g, 1), Projection(8, 4).dense("b", g, 1))
    assert not torch.equal(first.dense("b", g, 1), first.dense("c", g, 1))
    state = torch.get_rng_state()
    Projection(8, 0).outer("w", g[:, None], g[:, None])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("case", [*ARCHITECTURES[:10], LAYERS[5], LAYERS[14]], ids=lambda case: case.name)
def test_whole_networks(case: Case) -> None:
    """Cosines between examples are good to about 1 / sqrt(r), whatever layers they come from."""
    model, inputs, target, groups = case.build()
    expected = truth(model, inputs, target)
    lengths = expected.matrix.norm(dim=1)
    exact = expected.matrix @ expected.matrix.T / (lengths[:, None] * lengths)
    errors = []
    for seed in range(6):
        sketch = sketch_gradients(
            model, nn.CrossEntropyLoss(), (*inputs, target), groups=groups, sketch_dim=1024, seed=seed, leverage=False, check=seed == 0
        )
        assert sketch.S is not None
        torch.testing.assert_close(sketch.S.norm(dim=1).double(), lengths, rtol=1e-6, atol=0)
        errors.append((sketch.S @ sketch.S.T / (lengths[:, None] * lengths) - exact).square().mean().sqrt())
    assert float(torch.stack(errors).mean()) < 2.5 / 1024**0.5


def test_batches_share_one_projection() -> None:
    model, x, y = vector_case()
    whole = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), seed=2)
    parts = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), seed=2, batch_size=5)
    torch.testing.assert_close(whole.S, parts.S)


@pytest.mark.parametrize("case", ARCHITECTURES + LAYERS, ids=lambda case: case.name)
def test_the_projection_does_not_depend_on_the_engine(case: Case) -> None:
    """Whether a matrix is formed or not: so sketches of batches and processes that were measured in different ways still add up."""
    model, inputs, target, groups = case.build()
    found = [
        sketch_gradients(model, nn.CrossEntropyLoss(), (*inputs, target), groups=groups, engine=engine, sketch_dim=64, leverage=False).S
        for engine in ("auto" if not case.by_hooks else "ghost", "loop")
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-12)


# ---- merging ------------------------------------------------------------------------------------------------------------------------


def test_halves_merge_to_the_whole() -> None:
    model, x, y = vector_case()
    ids = torch.where(torch.arange(24) == 20, -1, y % 3)  # the second half only has an example of no group
    whole = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), groups=ids)
    halves = [
        sketch_gradients(model, nn.CrossEntropyLoss(), (x[rows], y[rows]), groups=ids[rows]) for rows in (slice(0, 12), slice(12, 24))
    ]
    # As it comes from another process.
    merged = halves[0].merge(replace(pickle.loads(pickle.dumps(replace(halves[1], parameters=()))), parameters=halves[0].parameters))
    assert merged.names == whole.names == ("0", "1", "2", "(none)")
    for name in ("losses", "groups", "norms_sq", "S", "group_sums"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), rtol=1e-10, atol=1e-14)
    assert merged.blocks is not None and whole.blocks is not None
    torch.testing.assert_close(merged.blocks.norms_sq, whole.blocks.norms_sq)
    assert merged.along is None and merged.gramian is None and len(merged) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed=1"),
        ({"engine": "vmap"}, "engine='vmap'"),
        ({"groups": None}, "group_names"),
        ({"params": "weight"}, "parameter_names"),
        ({"sketch_dim": 8}, "a projection of width 8"),
    ],
)
def test_what_does_not_belong_together_is_not_merged(options: dict[str, Any], message: str) -> None:
    model, x, y = vector_case()
    here = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y))
    other = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), **options)
    with pytest.raises(InputError, match=message):
        here.merge(other)


def _measure(rank: int, port: int, results: Any) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        model, x, y = vector_case()
        rows = slice(0, 14) if rank == 0 else slice(14, 24)
        ids = torch.where(torch.arange(24) == 20, -1, y)[rows]
        sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (x[rows], y[rows]), groups=ids)
        found = sketch.gather()
        failed = ""
        try:
            replace(sketch, seed=rank).gather()
        except InputError as error:
            failed = str(error)
        results.put(pickle.dumps((replace(found, parameters=()), failed)))
    finally:
        dist.destroy_process_group()


def test_two_processes() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=_measure, args=(rank, port, results)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = [pickle.loads(results.get()) for _ in workers]
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    model, x, y = vector_case()
    whole = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y), groups=torch.where(torch.arange(24) == 20, -1, y))
    for sketch, failed in found:
        assert sketch.names == whole.names
        for name in ("losses", "groups", "norms_sq", "S", "group_sums"):
            torch.testing.assert_close(getattr(sketch, name), getattr(whole, name), rtol=1e-10, atol=1e-14)
        assert "sketches that differ between processes" in failed


def test_one_process_gathers_itself() -> None:
    model, x, y = vector_case()
    sketch = sketch_gradients(model, nn.CrossEntropyLoss(), (x, y))
    assert sketch.gather() is sketch


def test_rows_must_fit() -> None:
    with pytest.raises(InputError, match=r"norms_sq: got '?2 rows"):
        GradientSketch(torch.zeros(3), torch.zeros(3, dtype=torch.int64), torch.arange(3), ("a",), norms_sq=torch.zeros(2))
