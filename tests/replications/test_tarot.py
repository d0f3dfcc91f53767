from __future__ import annotations

import numpy as np
import pytest
import torch

from counterpoise.replications import tarot as module


@pytest.fixture(scope="module")
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUICK_STRONG", 65)
        patch.setattr(module, "QUICK_UPDATES", 2)
        return module.run(quick=True, seeds=(0, 1))


def test_a_quick_run_has_findings_for_all_claims(quick) -> None:
    assert quick.slug == "tarot" and quick.quick and quick.seeds == (0, 1)
    assert {finding.claim for finding in quick.findings} == {claim.key for claim in module.CLAIMS}
    names = [(finding.claim, finding.name) for finding in quick.findings]
    assert len(set(names)) == len(names)
    judged, signal, orders, seeds = quick.tables.values()
    assert [row["schedule"] for row in judged] == ["start", *module.SCHEDULES] and len(signal) == 8 and len(orders) == 4
    assert len(seeds) == 2 and quick.figure.axes
    assert all(name in quick.summary() for name in module.MEMBERS)


def test_the_exact_part_holds(quick) -> None:
    assert quick.verdicts["schedules"] == quick.verdicts["rewards"] == "replicated"
    assert module.schedules_differ() == [] and module.largest_difference_of_rewards() < 1e-12


def test_the_same_seed_is_the_same_run() -> None:
    runs = [("apart", True, "uni"), ("nested", False, "var")]
    found = []
    for _ in range(2):
        start = module.imitate(3, (2, 4))[1]
        weights, silent, _ = module.reinforce({name: value.repeat(2, 1, 1) for name, value in start.items()}, runs, 3, 2)
        found.append((weights, silent, module.rates(weights, ["apart", "nested"], 3)))
    assert all(torch.equal(found[0][0][name], value) for name, value in found[1][0].items())
    np.testing.assert_array_equal(found[0][1], found[1][1])
    np.testing.assert_array_equal(found[0][2], found[1][2])


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("x y -", 5), ("x y - abs", 5), ("y abs", 2), ("x neg y max 2 *", -4), ("1 2 +", 3), ("0", 0), ("x y min y y * +", 2),
        ("x y", None), ("+", None), ("x -", None),
    ],
)  # fmt: skip
def test_programs_are_read_as_postfix_expressions(program, value) -> None:
    tokens = [module.TOKENS.index(word) for word in program.split()]
    padded = np.array([tokens + [module.END] * (module.LONGEST - len(tokens))])
    found, valid = module.values(padded, np.array([3]), np.array([-2]))
    assert valid[0] == (value is not None)
    if value is not None:
        assert found[0, 0] == value


SOLUTIONS = [
    "x y max", "x y min", "x y - abs", "x y - 0 max", "y x - 0 max", "x abs y *", "x y abs *", "x abs y abs +", "x abs y abs max",
    "x abs y abs min", "x abs y -", "x y max 1 +", "x y + abs", "x 0 max y +", "x y 2 * max", "x y * abs",
]  # fmt: skip


def _padded(program: str) -> list[int]:
    tokens = [module.TOKENS.index(word) for word in program.split()]
    return tokens + [module.END] * (module.LONGEST - len(tokens))


def test_every_problem_has_a_solution_and_tiers_tell_half_solutions_apart() -> None:
    programs = np.array([_padded(program) for program in SOLUTIONS])
    for inputs in module.INPUTS:
        tiers, valid = module.passes(programs, np.arange(module.PROBLEMS), inputs)
        assert tiers.all() and valid.all()
    # max(x, y): "x" is right where x > y, "y" where x < y.
    half = np.array([_padded("x"), _padded("y")])
    tiers, _ = module.passes(half, np.zeros(2, dtype=np.int64), "apart")
    assert tiers.tolist() == [[True, False, False, False], [False, True, False, False]]
    tiers, _ = module.passes(half, np.zeros(2, dtype=np.int64), "nested")
    assert tiers.tolist() == [[True, True, False, False], [False, False, False, False]]


def test_nested_tiers_nest_and_tiers_apart_do_not() -> None:
    """Over all expressions of at most four tokens that pass the edge tier of some problem."""
    programs = np.concatenate(
        [
            np.concatenate([codes, np.full((len(codes), module.LONGEST - n), module.END)], axis=1)
            for n in range(1, 5)
            for codes in [np.stack(np.meshgrid(*[np.arange(len(module.TOKENS))] * n, indexing="ij"), axis=-1).reshape(-1, n)]
        ]
    )
    without = {}
    for inputs in module.INPUTS:
        both = [module.passes(programs, np.full(len(programs), problem), inputs)[0] for problem in range(module.PROBLEMS)]
        edge = np.concatenate([tiers[tiers[:, 3]] for tiers in both])
        without[inputs] = 1 - edge[:, 0].mean()
    assert without["nested"] == 0 and without["apart"] > 0.2


def test_arms_share_start_and_draws_and_nothing_else() -> None:
    start = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in module.new_policy(torch.Generator().manual_seed(0)).items()}
    run = ("apart", True, "uni")
    alike, _, _ = module.reinforce(start, [run, run], 0, 3)
    assert all(torch.equal(value[0], value[1]) for value in alike.values())
    other, _, _ = module.reinforce(start, [run, ("nested", False, "edge_only")], 0, 3)
    torch.testing.assert_close(other["out"][0], alike["out"][0], rtol=1e-4, atol=1e-6)
    assert not torch.equal(other["out"][0], other["out"][1])


def test_log_probabilities_are_those_of_what_was_sampled() -> None:
    weights = module.new_policy(torch.Generator().manual_seed(1))
    draws = torch.rand(64, module.LONGEST, generator=torch.Generator().manual_seed(2))
    programs, mean = module.sample(weights, draws)
    state, tokens, total, length = torch.zeros(1, 64, module.WIDTH), torch.full((1, 64), module.START), torch.zeros(64), torch.zeros(64)
    for position in range(module.LONGEST):
        state, log_p = module.step(weights, state, tokens)
        before, tokens = tokens, programs[..., position]
        alive = (before != module.END)[0]
        total += torch.where(alive, log_p[0, torch.arange(64), tokens[0]], 0.0)
        length += alive
    torch.testing.assert_close(mean[0], total / length)


def _rows(weak: float, strong: float) -> list[dict[str, object]]:
    levels = {"weak": 0.2, "strong": 0.5}
    gains = {"weak": weak, "strong": strong}
    return [
        {"seed": seed, "policy": policy, "inputs": inputs, "normalized": normalized, "schedule": name, "silent": 0.1, "effective": 0.5}
        | dict.fromkeys((*module.TIERS, "all"), levels[policy] + (name == module.FORWARD) * (gains[policy] + 0.002 * (seed - 3.5)))
        for seed in range(8)
        for policy in module.POLICIES
        for inputs, normalized in module.SETTINGS
        for name in ("start", *module.SCHEDULES)
    ]


@pytest.mark.parametrize(
    ("weak", "strong", "verdicts"),
    [
        (0.1, -0.1, ("replicated", "replicated", "replicated")),
        (-0.1, -0.3, ("replicated", "not replicated", "replicated")),  # as in the pilot
        (0.1, 0.2, ("not replicated", "replicated", "not replicated")),
        (0.0, 0.0, ("not replicated", "undecided", "undecided")),
    ],
)
def test_verdicts_follow_their_intervals(weak, strong, verdicts) -> None:
    findings = {finding.claim: finding for finding in module._findings(_rows(weak, strong))}
    assert tuple(findings[key].verdict for key in ("interaction", "weak", "strong")) == verdicts
    assert ("Not supported at this scale" in findings["interaction"].text) == (verdicts[0] == "not replicated")


def test_the_bootstrap_is_that_of_a_mean() -> None:
    values = np.random.default_rng(0).normal(0.3, 1.0, 200)
    mean, low, high = module.bootstrap(values)
    half = 1.645 * values.std() / np.sqrt(200)
    assert (mean, low, high) == pytest.approx((values.mean(), values.mean() - half, values.mean() + half), abs=0.01)
