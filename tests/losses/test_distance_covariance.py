from __future__ import annotations

import itertools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist

from counterpoise._errors import InputError
from counterpoise.losses import DistanceCovariancePenalty, distance_covariance, joint_distance_covariance
from counterpoise.losses._distances import Attribute, variance
from tests.processes import in_processes

CLOSE = {"rtol": 1e-10, "atol": 1e-14}


def by_definition(*xs: np.ndarray, c: float | None, unbiased: bool = True) -> float:
    """The sums of the definition, element by element of the centered matrices."""
    n = len(xs[0])
    matrices = []
    for x in xs:
        x = x.reshape(n, -1)
        A = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in x] for a in x])
        if unbiased:
            U = A.sum(1)[:, None] / (n - 2) + A.sum(0) / (n - 2) - A - A.sum() / ((n - 1) * (n - 2))
            np.fill_diagonal(U, 0)
        else:
            U = A.mean(1)[:, None] + A.mean(0) - A - A.mean()
        matrices.append(U)
    product = np.prod([U + (c or 0) for U in matrices], axis=0).sum()
    q = len(xs)
    if unbiased:
        return float(product / (n * (n - 3)) - n / (n - 3) * (c or 0) ** q)
    return float(product / n**2 - (c or 0) ** q)


def rows(n: int, seed: int = 0, step: float | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A column, one that depends on it, and codes of three levels; with ``step``, both columns have many ties."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=g, dtype=torch.float64)
    z = x**2 + torch.randn(n, generator=g, dtype=torch.float64)
    if step:
        x, z = (x / step).round() * step, (z / step).round() * step
    return x, z, torch.randint(3, (n,), generator=g)


def value_and_gradients(function, *xs):
    xs = [x.clone().requires_grad_() for x in xs]
    value = function(*xs)
    return value, torch.autograd.grad(value, xs)


# ---- the functions ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("method", ["dense", "sorted"])
@pytest.mark.parametrize("step", [None, 0.5])
def test_values_are_those_of_the_definition(step, method, unbiased) -> None:
    x, z, codes = rows(37, step=step)
    levels = torch.nn.functional.one_hot(codes).double()
    options = {"unbiased": unbiased, "method": method}
    for other in (z, levels):
        expected = by_definition(x.numpy(), other.numpy(), c=None, unbiased=unbiased)
        assert distance_covariance(x, other, **options).item() == pytest.approx(expected, rel=1e-10)
        assert distance_covariance(other, x, **options).item() == pytest.approx(expected, rel=1e-10)
    for c in (0.0, 0.3, 1.0):
        expected = by_definition(x.numpy(), codes.numpy(), levels.numpy(), c=c, unbiased=unbiased)
        assert joint_distance_covariance(x, codes, levels, c=c, **options).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("n", [4, 5, 31, 32, 33, 64, 65, 200])
@pytest.mark.parametrize("step", [None, 0.5])
def test_sorting_and_matrices_agree_in_both_gradients(step, n, unbiased) -> None:
    x, z, _ = rows(n, seed=n, step=step)
    fast, slow = (
        value_and_gradients(lambda x, z, m=method: distance_covariance(x, z, unbiased=unbiased, method=m), x, z)
        for method in ("sorted", "dense")
    )
    torch.testing.assert_close(fast, slow, **CLOSE)


def test_gradients_are_those_of_the_values() -> None:
    x, z, codes = rows(9)
    wide = torch.stack([z, x.flip(0)], dim=1)
    for method in ("dense", "sorted"):
        assert torch.autograd.gradcheck(
            lambda x, z, m=method: distance_covariance(x, z, method=m), (x.requires_grad_(), z.requires_grad_())
        )
    assert torch.autograd.gradcheck(distance_covariance, (wide.detach().requires_grad_(), codes))
    assert torch.autograd.gradcheck(lambda *xs: joint_distance_covariance(*xs, c=0.5), (x, wide.detach().requires_grad_(), codes))


def test_second_derivatives_are_refused_where_they_are_not_known() -> None:
    x, z, _ = (part.requires_grad_() if part.is_floating_point() else part for part in rows(12))
    (gradient,) = torch.autograd.grad(distance_covariance(x, z), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()
    (gradient,) = torch.autograd.grad(distance_covariance(x, z, method="dense"), x, create_graph=True)
    assert torch.autograd.grad(gradient[0], z)[0].abs().sum() > 0


def test_unbiased_estimates_of_independent_columns_are_0_on_average() -> None:
    g = torch.Generator().manual_seed(0)
    draws = torch.stack([distance_covariance(*torch.randn(2, 30, generator=g, dtype=torch.float64)) for _ in range(400)])
    assert (draws < 0).any() and draws.mean().abs() < 4 * draws.std() / 20
    biased = distance_covariance(*torch.randn(2, 30, generator=g), unbiased=False)
    assert biased > 0


def test_the_sign_of_the_triple_product_is_the_authors() -> None:
    a, b = torch.tensor([0.0, 0, 1, 1]).repeat(25), torch.tensor([0.0, 1, 0, 1]).repeat(25)
    together = (a == b).double()
    # c = 0 leaves the term of three: of three pairwise independent bits its sign says which combinations occur.
    assert joint_distance_covariance(together, a, b, c=0.0) == pytest.approx(by_definition(*(v.numpy() for v in (together, a, b)), c=0.0))


def test_dtypes() -> None:
    x, z, codes = rows(40)
    assert distance_covariance(x, codes).dtype == torch.float64
    assert distance_covariance(x.float(), codes).dtype == distance_covariance(codes, codes.flip(0)).dtype == torch.float32
    assert distance_covariance(x.half(), z.bfloat16()).dtype == torch.float32
    assert joint_distance_covariance(x.half(), codes, z).dtype == torch.float64
    # A mean of 1e4 costs float32 its digits only in the rows themselves.
    far = (1e4 + x).float()
    torch.testing.assert_close(distance_covariance(far, z.float()), distance_covariance(far.double(), z.float().double()).float())


@pytest.mark.parametrize(("arguments", "options", "message"), [
    ((torch.zeros(3), torch.zeros(3)), {}, "x: got 3 rows of input; expected at least 4. The unbiased estimate"),
    ((torch.zeros(0), torch.zeros(0)), {"unbiased": False}, "x: got 0 rows"),
    ((torch.zeros(5), torch.zeros(6)), {}, "z: got 6 rows; expected 5 rows"),
    ((torch.zeros(5), torch.tensor([[0.0, 1], [0, float("nan")]]).repeat(3, 1)[:5]), {}, "column 1 of z"),
    ((torch.zeros(5), torch.zeros(5, 2, 2)), {}, "z: got shape"),
    ((torch.zeros(5), [0.0] * 5), {}, "z: got 'list'; expected a tensor"),
    ((torch.zeros(5), torch.zeros(5, dtype=torch.complex64)), {}, "real numbers"),
    ((torch.zeros(5), torch.zeros(5)), {"method": "fast"}, "method: got 'fast'"),
    ((torch.rand(5, 2), torch.rand(5, 2)), {"method": "sorted"}, "method: got 'sorted'"),
    ((torch.rand(5), torch.rand(5, 2).requires_grad_()), {"method": "sorted"}, 'method="auto" falls back'),
])  # fmt: skip
def test_bad_input(arguments, options, message) -> None:
    with pytest.raises(InputError) as error:
        distance_covariance(*arguments, **options)
    assert message in str(error.value)


def test_bad_input_of_the_joint_one() -> None:
    with pytest.raises(InputError, match="at least two"):
        joint_distance_covariance(torch.zeros(5))
    with pytest.raises(InputError, match="c: got -1"):
        joint_distance_covariance(torch.zeros(5), torch.zeros(5), c=-1)
    with pytest.raises(InputError, match="NaN or infinity in xs"):
        joint_distance_covariance(torch.zeros(5), torch.full((5,), float("inf")))


# ---- the penalty ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ccdcov", "jdcov", "dcov_sum"])
@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("scale", [None, "equal_dvar"])
def test_all_ways_agree(kind, unbiased, scale) -> None:
    y, z, codes = rows(80, seed=3)
    other = (codes + torch.arange(80) % 2) % 3
    few = (z * 2).round() / 2
    for attributes in ({"a": codes, "b": other, "c": few}, {"a": codes, "c": z}, {"c": z}, {"a": codes}):
        found = []
        for options in ({}, {"method": "dense"}, {"method": "dense", "block_size": 13}):
            penalty = DistanceCovariancePenalty(kind, c=0.7, unbiased=unbiased, scale=scale, **options)
            found.append(value_and_gradients(lambda y, p=penalty, a=attributes: p(y, a), y))
        torch.testing.assert_close(found[1], found[0], **CLOSE)
        torch.testing.assert_close(found[2], found[0], **CLOSE)


def test_kinds_are_the_functions_of_the_columns() -> None:
    y, z, codes = rows(50)
    levels = torch.nn.functional.one_hot(codes).double()
    together = torch.cat([levels, z[:, None]], dim=1)
    torch.testing.assert_close(DistanceCovariancePenalty("ccdcov")(y, [codes, z]), distance_covariance(y, together))
    torch.testing.assert_close(DistanceCovariancePenalty("jdcov", c=0.5)(y, [codes, z]), joint_distance_covariance(y, levels, z, c=0.5))
    expected = distance_covariance(y, levels) + distance_covariance(y, z)
    torch.testing.assert_close(DistanceCovariancePenalty("dcov_sum")(y, [codes, z]), expected)
    # Numbers of levels are names, unless one says otherwise.
    torch.testing.assert_close(DistanceCovariancePenalty()(y, codes * 1000 - 7), distance_covariance(y, levels))
    torch.testing.assert_close(DistanceCovariancePenalty(attribute_encoding="as_is")(y, codes), distance_covariance(y, codes))
    two = torch.stack([codes, codes.flip(0)], dim=1)
    torch.testing.assert_close(DistanceCovariancePenalty("jdcov")(y, two), DistanceCovariancePenalty("jdcov")(y, list(two.T)))
    torch.testing.assert_close(DistanceCovariancePenalty()(y, codes > 0), distance_covariance(y, torch.stack([codes > 0, codes == 0], 1)))


def test_equal_variances_are_equal() -> None:
    y, z, codes = rows(60)
    penalty = DistanceCovariancePenalty("dcov_sum", scale="equal_dvar")
    # d(s, s) = 1 after scaling, so the penalty of y = s is d(s, s) / sqrt(d(s, s)) of the unscaled one.
    torch.testing.assert_close(penalty(z, z), distance_covariance(z, z).sqrt())
    levels = torch.nn.functional.one_hot(codes).double()
    expected = distance_covariance(y, levels) / distance_covariance(levels, levels).sqrt()
    torch.testing.assert_close(penalty(y, codes), expected)
    torch.testing.assert_close(penalty(y, 1000 * z), penalty(y, z))


@pytest.mark.parametrize("kind", ["ccdcov", "jdcov", "dcov_sum"])
@pytest.mark.parametrize("method", ["auto", "dense"])
def test_a_level_of_one_row_has_no_variance_to_divide_by(kind, method) -> None:
    """Centering leaves rounding errors of it, which would become as large as everything else."""
    y, z, codes = rows(128)
    lonely = torch.zeros(128, dtype=torch.int64)
    lonely[5] = 1
    for scale in (None, "equal_dvar"):
        penalty = DistanceCovariancePenalty(kind, scale=scale, method=method)
        for alone in (lonely, 0.1 + 0.1 * lonely.double(), torch.stack([lonely, 3 * lonely], dim=1).double()):
            found = value_and_gradients(lambda y, p=penalty, a=alone: p(y, [a]), y)
            torch.testing.assert_close(found[0], torch.zeros_like(found[0]), rtol=0, atol=1e-12)
            torch.testing.assert_close(found[1][0], torch.zeros_like(y), rtol=0, atol=1e-12)
        together, without = (value_and_gradients(lambda y, p=penalty, a=a: p(y, a), y) for a in ([lonely, codes, z], [codes, z]))
        if scale == "equal_dvar" or kind != "ccdcov":  # side by side the distances of all add up, also those of one row
            torch.testing.assert_close(together, without, **CLOSE)


@pytest.mark.parametrize("far", [1e3, 1e6, 1e9])
def test_variances_beside_a_number_far_away(far) -> None:
    """It is centered away. Of squares of the distances to it, few digits or none would be left of the others."""
    z = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z[3] = far
    exact = z.numpy().astype(np.longdouble)
    A = np.abs(exact[:, None] - exact)
    U = A.sum(1)[:, None] / 98 + A.sum(0) / 98 - A - A.sum() / (99 * 98)
    np.fill_diagonal(U, 0)
    expected = float((U**2).sum() / (100 * 97))
    assert variance(Attribute(z[:, None]), unbiased=True).item() == pytest.approx(expected, rel=1e-6)
    y = torch.linspace(0, 1, 100, dtype=torch.float64)
    unscaled = DistanceCovariancePenalty("ccdcov", method="dense")(y, z)
    scaled = DistanceCovariancePenalty("ccdcov", scale="equal_dvar", method="dense")(y, z)
    torch.testing.assert_close(scaled, unscaled / expected**0.5, rtol=1e-5, atol=1e-8)


def test_intersections_are_seen_by_the_joint_kinds_only() -> None:
    a, b = torch.tensor([0, 0, 1, 1]).repeat(100), torch.tensor([0, 1, 0, 1]).repeat(100)
    g = torch.Generator().manual_seed(0)
    y = (a != b) + 0.5 * torch.randn(400, generator=g)
    null = {kind: [] for kind in ("dcov_sum", "ccdcov", "jdcov")}
    for kind, values in null.items():
        penalty = DistanceCovariancePenalty(kind)
        values += [penalty(y[torch.randperm(400, generator=g)], [a, b]).item() for _ in range(40)]
        z_score = (penalty(y, [a, b]).item() - np.mean(values)) / np.std(values)
        assert abs(z_score) < 3 if kind == "dcov_sum" else z_score > 10


def test_minimizing_it_makes_predictions_independent() -> None:
    a, b = torch.tensor([0, 0, 1, 1]).repeat(50), torch.tensor([0, 1, 0, 1]).repeat(50)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(1))
    weight = torch.tensor(2.0, requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        DistanceCovariancePenalty()(noise + weight * (a != b), [a, b]).backward()
        optimizer.step()
    assert weight.abs() < 0.3


@pytest.mark.parametrize("kind", ["ccdcov", "jdcov", "dcov_sum"])
def test_constants_contribute_0(kind) -> None:
    y, z, codes = rows(30)
    penalty = DistanceCovariancePenalty(kind)
    flat = torch.full((30,), 0.1, requires_grad=True)
    value = penalty(flat, [codes, z])
    value.backward()
    assert torch.equal(flat.grad, torch.zeros(30))
    if kind != "jdcov":
        assert value.item() == 0.0
    else:
        torch.testing.assert_close(value.double(), joint_distance_covariance(torch.nn.functional.one_hot(codes), z), rtol=1e-5, atol=0)
    with pytest.warns(UserWarning, match=r"attributes\['where'\] has a single value") as seen:
        constant = penalty(y, {"sex": codes, "where": torch.zeros(30)})
    assert seen[0].filename == __file__
    torch.testing.assert_close(constant, penalty(y, {"sex": codes}))
    with pytest.warns(UserWarning, match="single value"):
        assert penalty(y, torch.ones(30, dtype=torch.int64)).item() == 0.0


def test_equal_rows_of_several_numbers_have_finite_gradients() -> None:
    x = torch.rand(10, 3, dtype=torch.float64).repeat(2, 1).requires_grad_()
    distance_covariance(x, torch.arange(20.0)).backward()
    assert torch.isfinite(x.grad).all()


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Watches how many numbers the largest tensor has."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numbers = max(self.numbers, out.numel())
        return out


def test_memory_stays_with_the_block() -> None:
    n = 1500
    g = torch.Generator().manual_seed(0)
    y, z = torch.rand(n, generator=g), torch.rand(n, 2, generator=g)
    with Largest() as largest:
        bounded = DistanceCovariancePenalty(block_size=50)(y, z)
    assert n < largest.numbers <= 50 * n
    torch.testing.assert_close(bounded, DistanceCovariancePenalty()(y, z))


def test_attributes_can_be_looked_at_without_their_distances() -> None:
    penalty = DistanceCovariancePenalty(scale="equal_dvar")
    with Largest() as largest, pytest.warns(UserWarning, match=r"attributes\[1\] has a single value") as seen:
        penalty.check_attributes([torch.rand(1000, 2), torch.zeros(1000)], 1000)
    assert largest.numbers <= 2000 and seen[0].filename == __file__
    with pytest.raises(InputError, match="NaN or infinity in attributes"):
        penalty.check_attributes(torch.full((5,), float("nan")), 5)
    with pytest.raises(InputError, match=r"attributes: got shape \(5,\); expected shape \(6,\)"):
        penalty.check_attributes(torch.zeros(5), 6)


def test_compiles_to_the_same_numbers() -> None:
    y, z, codes = rows(40)
    loss = DistanceCovariancePenalty()
    found = [value_and_gradients(lambda y, f=f: f(y, [codes, z]), y) for f in (loss, torch.compile(loss, backend="eager"))]
    torch.testing.assert_close(found[1], found[0])


# ---- several processes ------------------------------------------------------------------------------------------------------------------

SHARES = (21, 2)  # rows of the two processes, of which one has too few for a penalty of its own
PENALTIES = {
    "ccdcov": {"kind": "ccdcov"},
    "jdcov": {"kind": "jdcov", "c": 0.5},
    "dcov_sum": {"kind": "dcov_sum"},
    "dense": {"kind": "jdcov", "method": "dense", "block_size": 5},
    "biased": {"kind": "ccdcov", "unbiased": False, "scale": "equal_dvar"},
}


def shared() -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Inputs (n, 2), targets, and attributes of all kinds."""
    y, z, codes = rows(sum(SHARES))
    attributes = {"codes": codes, "yes": codes > 0, "age": z, "place": torch.stack([y.round(), z.round()], dim=1)}
    return torch.stack([y, z], dim=1), (y > 0).double(), attributes


def penalized(part: slice, model: torch.nn.Module, options: dict[str, Any]) -> dict[str, Any]:
    """One step's loss and penalty on some rows, with the gradients in the predictions and in the parameters."""
    x, targets, attributes = shared()
    predictions = model(x[part]).squeeze(1).sigmoid()
    predictions.retain_grad()
    psi = DistanceCovariancePenalty(**options)(predictions, {name: values[part] for name, values in attributes.items()})
    weight = len(targets[part]) / len(targets) * (1 if part == slice(None) else 2)  # so that a mean over processes is one over rows
    (weight * torch.nn.functional.binary_cross_entropy(predictions, targets[part]) + 3 * psi).backward()
    return {"psi": psi.detach(), "grad": predictions.grad, "parameters": torch.cat([p.grad.flatten() for p in model.parameters()])}


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()


def one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(0, SHARES[0]) if rank == 0 else slice(SHARES[0], None)
    found: dict[str, Any] = {}
    for name, options in PENALTIES.items():
        found[name] = penalized(part, torch.nn.parallel.DistributedDataParallel(network()), options | {"gather": True})
    try:  # on both: none is left waiting for the other
        DistanceCovariancePenalty(gather=True)(torch.full((3,), float("nan") if rank else 0.5), torch.zeros(3))
    except InputError as error:
        found["error"] = str(error)
    if rank == 0:
        found["alone"] = penalized(part, network(), {})
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_penalize_the_rows_of_all(tmp_path) -> None:
    in_processes(one_process, str(tmp_path))
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, options in PENALTIES.items():
        whole = penalized(slice(None), network(), options)
        parts = [part[name] for part in found]
        for part in parts:
            torch.testing.assert_close(part["psi"], whole["psi"], rtol=1e-12, atol=1e-15)
            torch.testing.assert_close(part["parameters"], whole["parameters"], rtol=1e-10, atol=1e-14)  # DDP's mean
        torch.testing.assert_close(torch.cat([part["grad"] for part in parts]) / 2, whole["grad"], rtol=1e-10, atol=1e-14)
    assert all("NaN or infinity in predictions" in part["error"] for part in found)
    rows_of_one = penalized(slice(0, SHARES[0]), network(), {})
    torch.testing.assert_close(found[0]["alone"]["psi"], rows_of_one["psi"])
    assert rows_of_one["psi"] != found[0]["ccdcov"]["psi"]


def test_gathering_is_nothing_in_one_process() -> None:
    y, z, codes = rows(30)
    found = [value_and_gradients(lambda y, g=gather: DistanceCovariancePenalty(gather=g)(y, [codes, z]), y) for gather in (False, True)]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert repr(DistanceCovariancePenalty(gather=True)).endswith("method='auto', gather=True)")


# ---- bad input --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    ({"kind": "dcov"}, "Did you mean"), ({"c": -0.1}, "c: got -0.1"), ({"attribute_encoding": "one-hot"}, "attribute_encoding"),
    ({"method": "slow"}, "method: got"), ({"scale": "dvar"}, "scale: got"), ({"block_size": 0}, "block_size: got 0"),
])  # fmt: skip
def test_bad_options(options, message) -> None:
    with pytest.raises(InputError) as error:
        DistanceCovariancePenalty(**options)
    assert message in str(error.value)


@pytest.mark.parametrize(("predictions", "attributes", "message"), [
    (torch.rand(5, 1), torch.zeros(5), "squeeze"),
    (torch.zeros(5, dtype=torch.int64), torch.zeros(5), "floating-point"),
    (torch.rand(3), torch.zeros(3), "at least 4"),
    (torch.tensor([0.0, 1, 2, float("nan")]), torch.zeros(4), "NaN or infinity in predictions"),
    (torch.rand(5), {"age": torch.tensor([0.0, 1, 2, 3, float("nan")])}, "attributes['age']: got NaN or infinity"),
    (torch.rand(5), {"x": torch.full((5, 2), float("inf"))}, "column 0 of attributes['x']"),
    (torch.rand(5), [torch.zeros(6)], "attributes[0]: got shape (6,)"),
    (torch.rand(5), [], "at least one attribute"),
    (torch.rand(5), {"sex": ["f", "m"]}, "ProtectedAttributeEncoder"),
])  # fmt: skip
def test_bad_rows(predictions, attributes, message) -> None:
    with warnings.catch_warnings(), pytest.raises(InputError) as error:
        warnings.simplefilter("ignore")
        DistanceCovariancePenalty()(predictions, attributes)
    assert message in str(error.value)


def test_no_fast_form_is_said() -> None:
    y, z, _ = rows(50)
    with pytest.raises(InputError, match="few combinations, at most 25 in 50 rows"):
        DistanceCovariancePenalty("jdcov", method="sorted")(y, [z, y])


@pytest.mark.parametrize(("kind", "unbiased"), list(itertools.product(["ccdcov", "jdcov"], [True, False])))
def test_huge_and_tiny_predictions(kind, unbiased) -> None:
    _, z, codes = rows(28)
    for scale in (1e30, 1e-30):
        y = (scale * torch.tensor([-1.0, 0, 0, 1]).repeat(7)).requires_grad_()
        value = DistanceCovariancePenalty(kind, unbiased=unbiased)(y, [codes, z])
        value.backward()
        assert torch.isfinite(value) and torch.isfinite(y.grad).all()
