from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise import CounterpoiseError, Groups
from counterpoise.diagnostics import GradientSketch, coherence
from counterpoise.diagnostics._coherence import FOLDED


def gradients(m: int = 40, p: int = 12, seed: int = 0, common: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(m, p, generator=generator, dtype=torch.float64)
    return (common + noise) * torch.logspace(-0.5, 0.5, m, dtype=torch.float64)[:, None]


def by_pairs(g: torch.Tensor) -> tuple[float, float]:
    """alpha and its unbiased form, from all inner products."""
    gram = (g @ g.T).numpy()
    m = len(gram)
    off = gram.sum() - np.trace(gram)
    return gram.mean() / np.trace(gram) * m, off / (m * (m - 1)) / (np.trace(gram) / m)


def sketch(g: torch.Tensor, ids: torch.Tensor | None = None, names: tuple[str, ...] = ("all",), **given: object) -> GradientSketch:
    m = len(g)
    return GradientSketch(
        losses=torch.ones(m, dtype=torch.float64),
        groups=torch.zeros(m, dtype=torch.int64) if ids is None else ids,
        index=torch.arange(m),
        group_names=names,
        norms_sq=(g**2).sum(dim=1),
        **given,
    )


# ---- values that are known ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("m", [2, 5, 64])
def test_orthogonal_equal_and_opposite_gradients(m) -> None:
    orthonormal = torch.linalg.qr(torch.randn(80, m, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q.T
    assert coherence(orthonormal).m_coherence == pytest.approx(1, abs=1e-12)
    assert coherence(orthonormal).alpha_unbiased == pytest.approx(0, abs=1e-13)
    equal = orthonormal[:1].repeat(m, 1)
    assert coherence(equal).m_coherence == pytest.approx(m, rel=1e-12) and coherence(equal).noise_scale == pytest.approx(0, abs=1e-12)
    opposite = torch.cat([orthonormal, -orthonormal])
    assert coherence(opposite).m_coherence == pytest.approx(0, abs=1e-12)
    assert coherence(opposite).alpha_unbiased == pytest.approx(-1 / (2 * m - 1)) and coherence(opposite).noise_scale == float("inf")


def test_two_running_sums_are_all_pairs() -> None:
    g = gradients()
    report = coherence(g)
    alpha, unbiased = by_pairs(g)
    assert report.alpha == pytest.approx(alpha, rel=1e-12) and report.m_coherence == pytest.approx(40 * alpha, rel=1e-12)
    assert report.alpha_unbiased == pytest.approx(unbiased, rel=1e-12)
    assert report.noise_scale == pytest.approx(1 / unbiased - 1, rel=1e-12)
    assert report.m_coherence == pytest.approx(1 + 39 * report.alpha_unbiased, rel=1e-12)


def test_linear_regression() -> None:
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    y, w = torch.randn(30, generator=generator, dtype=torch.float64), torch.ones(4, dtype=torch.float64)

    def loss(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ w - y) ** 2 / 2

    residual = X @ w - y
    expected = ((X.T @ residual) ** 2).sum() / (30 * (residual**2 * (X**2).sum(dim=1)).sum())
    rows = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(w, X, y)
    assert coherence(rows).alpha == pytest.approx(float(expected), rel=1e-12)


def test_the_whole_is_the_weighted_mean_of_its_blocks() -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    X, y = gradients(20, 4), torch.arange(20) % 3

    def loss(parameters: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, parameters, x[None]), y[None])

    parts = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(dict(model.named_parameters()), X, y)
    report = coherence(parts, groups=y, per_block=True)
    whole = torch.cat([part.detach().reshape(20, -1) for part in parts.values()], dim=1)
    assert report.alpha == pytest.approx(by_pairs(whole)[0], rel=1e-12)
    blocks = report.blocks
    assert blocks["block"].to_list() == list(parts)
    for name, alpha, unbiased in blocks.select("block", "alpha", "alpha_unbiased").iter_rows():
        assert (alpha, unbiased) == pytest.approx(by_pairs(parts[name].detach().reshape(20, -1)), rel=1e-10)
    assert blocks["weight"].sum() == pytest.approx(1, rel=1e-12)
    assert (blocks["weight"] * blocks["alpha"]).sum() == pytest.approx(report.alpha, rel=1e-12)
    assert (blocks["weight"] * blocks["alpha_unbiased"]).sum() == pytest.approx(report.alpha_unbiased, rel=1e-12)


def test_groups() -> None:
    g = gradients()
    labels = ["a" if i < 10 else "b" if i < 39 else None for i in range(40)]
    report = coherence(g, groups=labels)
    assert report.names == ("a", "b", "(none)") and report.alpha == pytest.approx(coherence(g).alpha, rel=1e-12)
    parts = [g[:10], g[10:39], g[39:]]
    for part, row in zip(parts[:2], report.per_group.iter_rows(named=True), strict=False):
        assert (row["alpha"], row["alpha_unbiased"]) == pytest.approx(by_pairs(part), rel=1e-10)
        assert row["low"] < row["alpha_unbiased"] < row["high"] and row["count"] == len(part)
    single = report.per_group.row(2, named=True)
    assert single["alpha"] == 1 and np.isnan([single["alpha_unbiased"], single["low"], single["noise_scale"]]).all()
    assert any("(none)" in note for note in report.notes)
    for k in range(3):
        for other in range(3):
            size = np.sqrt(float((parts[k] ** 2).sum(dim=1).mean() * (parts[other] ** 2).sum(dim=1).mean()))
            expected = float(parts[k].mean(dim=0) @ parts[other].mean(dim=0)) / size
            if k != other:
                assert report.cross[k, other] == pytest.approx(expected, rel=1e-10)
    np.testing.assert_array_equal(np.diag(report.cross), report.per_group["alpha_unbiased"].to_numpy())
    given = coherence(g, groups=Groups.from_labels(labels))
    assert given.per_group.equals(report.per_group, null_equal=True)


# ---- estimates -------------------------------------------------------------------------------------------------------------------------


def test_the_unbiased_form_does_not_depend_on_how_many_there_are() -> None:
    g = gradients(400, common=0.1)
    truth = by_pairs(g)[1]
    rng = np.random.default_rng(0)
    # A ratio of two estimates: its parts are unbiased.
    pairs, norms, plain = [], [], []
    for _ in range(2000):
        part = g[rng.choice(400, 4, replace=False)]
        report, q = coherence(part), float((part**2).sum(dim=1).mean())
        pairs.append(report.alpha_unbiased * q)
        norms.append(q)
        plain.append(report.alpha * q)
    target = truth * float((g**2).sum(dim=1).mean())
    error = 3 * np.std(pairs) / np.sqrt(2000)
    assert abs(np.mean(pairs) - target) < error
    assert abs(np.mean(plain) - target) > 10 * error


def test_intervals_cover() -> None:
    rng = np.random.default_rng(0)
    population = gradients(20_000, 6, common=0.3)
    truth = by_pairs_of_sums(population)
    covered = 0
    for _ in range(100):
        low, high = coherence(population[rng.choice(20_000, 80, replace=False)]).ci
        covered += low <= truth <= high
    assert 0.9 <= covered / 100 <= 0.99


def by_pairs_of_sums(g: torch.Tensor) -> float:
    m, q = len(g), float((g**2).sum())
    return (float((g.sum(dim=0) ** 2).sum()) - q) / ((m - 1) * q)


def test_without_anything_in_common_the_interval_holds_zero() -> None:
    reports = [coherence(gradients(60, 50, seed, common=0.0)) for seed in range(20)]
    assert sum(report.ci[0] <= 0 <= report.ci[1] for report in reports) >= 18
    assert any("the examples have nothing in common" in hint for hint in reports[0].hints)
    apart = torch.cat([gradients(30, 12, 0, common=3.0), -gradients(30, 12, 0, common=3.0)])
    assert "though examples of one group do" in coherence(apart, groups=[0] * 30 + [1] * 30).summary()


def test_long_rows_are_folded_for_the_interval_only() -> None:
    g = gradients(50, 3 * FOLDED, common=0.3)
    report = coherence(g)
    assert report.alpha_unbiased == pytest.approx(by_pairs(g)[1], rel=1e-10)
    exact = coherence(sketch(g, gramian=g @ g.T))
    assert exact.alpha_unbiased == pytest.approx(report.alpha_unbiased, rel=1e-10)
    assert report.ci[1] - report.ci[0] == pytest.approx(exact.ci[1] - exact.ci[0], rel=0.25)
    assert report.ci == coherence(g).ci  # repeatable


def test_micro_batches_tell_about_their_examples() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.full((30,), 0.2, dtype=torch.float64)
    truth = float((mean**2).sum() / ((mean**2).sum() + 30))
    for b in (4, 25):
        micro = (mean + torch.randn(2000, b, 30, generator=generator, dtype=torch.float64)).mean(dim=1)
        report = coherence(micro, batch_size=b)
        assert report.m == 2000 * b and any(f"micro-batches of {b}" in note for note in report.notes)
        assert report.alpha_unbiased == pytest.approx(truth, rel=0.1) and report.noise_scale == pytest.approx(1 / truth - 1, rel=0.1)
        assert report.ci[0] < truth < report.ci[1]
        # The formula by which micro-batches of any kind are converted.
        of_batches = coherence(micro).alpha_unbiased
        assert report.alpha_unbiased == pytest.approx(1 / (1 + b * (1 / of_batches - 1)), rel=1e-10)
        groups = torch.arange(2000) % 2
        halves = coherence(micro, groups=groups, batch_size=b)
        assert halves.per_group["count"].to_list() == [1000 * b] * 2
        assert halves.cross[0, 1] == pytest.approx(truth, rel=0.15)


def test_sums_are_taken_in_double_precision() -> None:
    g = gradients(3000, 40, common=0.0).float() * 1e3
    assert coherence(g).alpha_unbiased == pytest.approx(by_pairs(g.double())[1], rel=1e-9)
    half = gradients(300, 40).half()
    assert coherence(half).alpha == pytest.approx(by_pairs(half.double())[0], rel=1e-9)


# ---- sketches --------------------------------------------------------------------------------------------------------------------------


def test_a_sketch_has_what_its_gradients_have() -> None:
    g, ids = gradients(), torch.arange(40) % 3
    ids[5] = -1
    labels = ["xyz"[k] if k >= 0 else None for k in ids.tolist()]
    expected = coherence(g, groups=labels)
    member = torch.nn.functional.one_hot(torch.where(ids < 0, 3, ids), 4).double()
    sums = member.T @ g
    for given in ({"group_sums": sums, "S": g}, {"group_sums": sums}, {"gramian": g @ g.T}, {"S": g}):
        report = coherence(sketch(g, ids, ("x", "y", "z"), **given))
        assert report.names == expected.names
        assert report.alpha == pytest.approx(expected.alpha, rel=1e-10)
        np.testing.assert_allclose(report.cross, expected.cross, rtol=1e-9)
        if given.keys() & {"S", "gramian"}:
            np.testing.assert_allclose(report.per_group["low"], expected.per_group["low"], rtol=1e-8)
        else:
            assert np.isnan(report.ci).all()
    other = coherence(sketch(g, ids, ("x", "y", "z"), group_sums=sums, S=g), groups=["u"] * 20 + ["v"] * 20)
    np.testing.assert_allclose(other.cross, coherence(g, groups=["u"] * 20 + ["v"] * 20).cross, rtol=1e-9)


def test_projections_keep_what_is_known_exactly() -> None:
    g = gradients(60, 400)
    generator = torch.Generator().manual_seed(0)
    S = g @ torch.randn(400, 512, generator=generator, dtype=torch.float64) / np.sqrt(512)
    S *= (g.norm(dim=1) / S.norm(dim=1))[:, None]
    projected = coherence(sketch(g, S=S))
    assert projected.alpha == pytest.approx(by_pairs(g)[0], rel=0.2) and projected.alpha != pytest.approx(by_pairs(g)[0], rel=1e-6)
    assert "length 512" in projected.notes[0]
    halves = ["a"] * 30 + ["b"] * 30
    exact = coherence(sketch(g, S=S, group_sums=g.sum(dim=0, keepdim=True)), groups=halves)
    assert exact.alpha == pytest.approx(by_pairs(g)[0], rel=1e-10)
    along = coherence(sketch(g, S=S, along=g @ g.mean(dim=0)))
    assert along.alpha == pytest.approx(by_pairs(g)[0], rel=1e-10)


def test_blocks_of_a_sketch() -> None:
    from counterpoise._pergrad import Blocks

    g = gradients()
    slices = (slice(0, 5), slice(5, 12))
    norms = torch.stack([(g[:, part] ** 2).sum(dim=1) for part in slices], dim=1)
    given = sketch(g, group_sums=g.sum(dim=0, keepdim=True), blocks=Blocks(("weight", "bias"), slices, norms))
    report = coherence(given, per_block=True)
    for row, part in zip(report.blocks.iter_rows(named=True), slices, strict=True):
        assert (row["alpha"], row["alpha_unbiased"]) == pytest.approx(by_pairs(g[:, part]), rel=1e-10)
    assert coherence(given).blocks is None


# ---- what can be wrong -----------------------------------------------------------------------------------------------------------------


def test_gradients_that_are_not_finite() -> None:
    g = gradients()
    g[7, 2], g[31, 0] = float("nan"), float("-inf")
    rest = torch.cat([g[:7], g[8:31], g[32:]])
    for x in (g, {"a": g[:, :3], "b": g[:, 3:]}, sketch(g, S=g), sketch(g, S=g, group_sums=g.sum(dim=0, keepdim=True))):
        with pytest.raises(CounterpoiseError, match=r'x: got nan or inf in the gradient of example 7, 31; .* on_nonfinite="skip"'):
            coherence(x)
        report = coherence(x, on_nonfinite="skip")
        assert report.skipped == (7, 31) and report.m == 38
        assert report.alpha == pytest.approx(by_pairs(rest)[0], rel=1e-10)
        assert "Left out, not finite: 7, 31." in report.summary()
    with pytest.raises(CounterpoiseError, match="no gradient that is finite"):
        coherence(torch.full((3, 2), float("nan")), on_nonfinite="skip")


def test_examples_are_named_by_their_place_in_the_data() -> None:
    g = gradients()
    g[3] = float("nan")
    moved = dataclasses.replace(sketch(g, S=g), index=torch.arange(100, 140))
    with pytest.raises(CounterpoiseError, match="example 103;"):
        coherence(moved)


def test_all_zero() -> None:
    report = coherence(torch.zeros(6, 3), groups=[0, 0, 0, 1, 1, 1])
    assert report.converged and np.isnan([report.alpha, report.m_coherence, report.alpha_unbiased, report.noise_scale, *report.ci]).all()
    assert "zero" in report.summary() and report.plot() is not None
    half = coherence(torch.cat([torch.zeros(6, 3), gradients(6, 3).float()]), groups=[0] * 6 + [1] * 6)
    assert not half.converged and np.isnan(half.per_group["alpha"][0]) and np.isfinite(half.per_group["alpha"][1])


def test_one_example() -> None:
    report = coherence(torch.ones(1, 3))
    assert report.alpha == 1 and report.m == 1 and "One example" in report.summary()
    with pytest.raises(CounterpoiseError, match="alpha_unbiased: got one example; expected at least two"):
        _ = report.alpha_unbiased
    assert report.to_frame().height == 2
    with pytest.raises(CounterpoiseError, match="one micro-batch"):
        coherence(torch.ones(1, 3), batch_size=8)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (torch.ones(5), {}, r"x: got shape \(5,\); expected one row per example.*vmap"),
        (torch.ones(0, 5), {}, "at least one"),
        (torch.ones(4, 3, dtype=torch.int64), {}, "floating-point"),
        ({"a": torch.ones(4, 3), "b": torch.ones(3, 3)}, {}, "the same number of examples"),
        ([[1.0]], {}, "x: got 'list'"),
        (torch.ones(4, 3), {"groups": [0, 1]}, "groups: got 2 labels; expected one for each of the 4 rows"),
        (torch.ones(4, 3), {"per_block": True}, "per_block: got True; expected gradients parameter by parameter"),
        (torch.ones(4, 3), {"batch_size": 0}, "batch_size: got 0"),
        (torch.ones(4, 3), {"on_nonfinite": "drop"}, "on_nonfinite: got 'drop'"),
        (sketch(torch.ones(4, 3)), {}, "expected one with S or a gramian"),
        (sketch(torch.ones(4, 3), S=torch.ones(4, 3)), {"per_block": True}, "They were not recorded"),
        (dataclasses.replace(sketch(torch.ones(4, 3)), norms_sq=None), {}, "without norms_sq .*ghost"),
    ],
)
def test_bad_input(x, options, message) -> None:
    with pytest.raises(CounterpoiseError, match=message):
        coherence(x, **options)


# ---- what people see -------------------------------------------------------------------------------------------------------------------


def test_words_and_pictures() -> None:
    unanimous, torn = gradients(50, 12, 0, common=2.0), gradients(50, 12, 1, common=0.0)
    g = torch.cat([unanimous, torn])
    before, state = g.clone(), torch.get_rng_state()
    report = coherence({"w": g[:, :8], "b": g[:, 8:]}, groups=["clean"] * 50 + ["noisy"] * 50, per_block=True)
    assert torch.equal(g, before) and torch.equal(torch.get_rng_state(), state)
    text = report.summary()
    assert text.startswith("100 examples, m-coherence ") and "1 if they have nothing in common, 100 if all agree" in text
    assert "By group: clean 0." in text and "'noisy' is less of one mind" in text and "within groups" in text
    frame = report.to_frame()
    assert frame["what"].to_list() == ["all", "group", "group", "block", "block"]
    assert frame["name"].to_list() == ["", "clean", "noisy", "w", "b"]
    figure = report.plot()
    assert "m-coherence" in figure.texts[0].get_text() and len(figure.axes) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.m = 3
