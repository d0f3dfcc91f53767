"""Tiers for the tests of HumanEval, without a model, and what the schedules of TAROT pay for them.

    COUNTERPOISE_DATA=FOLDER python examples/tiered_code_rewards.py

FOLDER holds code-problems/HumanEval.jsonl.gz. A test is a call and what it must return. How hard is it? The reference solution passes all
of them, so it is changed in one place at a time - another comparison, another sign, a number that is off by one - and a test that most of
these near misses pass is an easy one. Solutions are source code that nobody here has read: they run in the sandbox, which refuses if this
machine isolates nothing.

What to look at: the tests of one problem with the share of near misses that pass them; which tiers count under two schedules, early and
late; and in a group of near misses, as a policy might write them, which tiers the advantages of GRPO come from.
"""

import ast
import gzip
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from counterpoise.diagnostics import tier_signal
from counterpoise.reinforcement import (
    PORTFOLIO,
    IsolationError,
    Sandbox,
    TieredCase,
    TieredReward,
    TieredSuite,
    tier_by_difficulty,
)

PATH = Path(os.environ.get("COUNTERPOISE_DATA", ".")) / "code-problems" / "HumanEval.jsonl.gz"
PROBLEMS, NEAR_MISSES, TESTS = 5, 6, 6
ANSWER = "\nprint(repr(eval(input())))\n"  # a program reads a call and prints what it returns
TIERS = ("basic", "medium", "high", "edge")


def read():
    """Of the first problems with enough literal tests: source of the solution, and (call, result) of each test."""
    if not PATH.is_file():
        sys.exit(f"{PATH} is not there: set COUNTERPOISE_DATA to a folder with code-problems/HumanEval.jsonl.gz (see the top of this file)")
    with gzip.open(PATH, "rt", encoding="utf-8") as file:
        problems = [json.loads(line) for line in file]
    found = []
    for problem in problems:
        solution = problem["prompt"] + problem["canonical_solution"]
        tests = [pair for node in ast.walk(ast.parse(problem["test"])) if (pair := literal(node, problem["entry_point"]))][:TESTS]
        if len(tests) >= 6 and len(near_misses(solution)) >= 2 * NEAR_MISSES:
            found.append((problem["entry_point"], solution, tests))
    return found[:PROBLEMS]


def literal(node, name):
    """(call, result) of ``assert candidate(...) == literal``."""
    if not (isinstance(node, ast.Assert) and isinstance(node.test, ast.Compare) and isinstance(node.test.left, ast.Call)):
        return None
    try:
        result = repr(ast.literal_eval(node.test.comparators[0]))
    except ValueError:
        return None
    return ast.unparse(node.test.left).replace("candidate", name, 1), result


def near_misses(source):
    """The solution with one comparison, sign or number changed, in all places where there is one."""
    swaps = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.Add: ast.Sub, ast.Sub: ast.Add}
    changed = []
    for place in range(sum(1 for _ in ast.walk(ast.parse(source)))):
        tree = ast.parse(source)
        node = list(ast.walk(tree))[place]
        if isinstance(node, ast.Compare) and type(node.ops[0]) in swaps:
            node.ops[0] = swaps[type(node.ops[0])]()
        elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in swaps:
            node.op = swaps[type(node.op)]()
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            node.value += 1
        else:
            continue
        changed.append(ast.unparse(tree))
    return changed


def measure(sandbox, solution, tests):
    """Near misses that end on the first test, and whether the solution and each of them pass each test: (tests, 1 + near misses)."""
    changed = near_misses(solution)
    first = sandbox.run_many([(program + ANSWER, tests[0][0]) for program in changed])
    programs = [solution, *(program for program, result in zip(changed, first, strict=True) if result.status != "timeout")][
        : NEAR_MISSES + 1
    ]
    results = sandbox.run_many([(program + ANSWER, call) for call, _ in tests for program in programs])
    right = [result.ok and result.stdout.strip() == tests[i // len(programs)][1] for i, result in enumerate(results)]
    return [f"```python\n{program}{ANSWER}```" for program in programs], np.reshape(right, (len(tests), len(programs)))


def main():
    problems = read()
    try:
        sandbox = Sandbox(timeout=0.5)
    except IsolationError as refusal:
        sys.exit(str(refusal))
    with sandbox:
        groups, suites, paid = [], [], []
        for name, solution, tests in problems:
            completions, passed = measure(sandbox, solution, tests)
            assert passed[:, 0].all(), f"{name}: the reference solution fails"
            tiers = tier_by_difficulty(passed[:, 1:])
            groups.append(completions)
            suites.append(TieredSuite(TieredCase(call, result, tier) for (call, result), tier in zip(tests, tiers, strict=True)))
            of_tier = np.array([[tier == other for tier in tiers] for other in TIERS], dtype=float)
            paid.append(np.where(of_tier.any(axis=1), passed.T @ of_tier.T * list(PORTFOLIO["var"].weights.values()), np.nan))
            if len(groups) == 1:
                print(f"{name}: {len(tests)} tests, {len(completions) - 1} near misses of its solution")
                for (call, result), tier, rate in zip(tests, tiers, passed[:, 1:].mean(axis=1), strict=True):
                    print(f"  {rate:4.0%} pass  {tier or '-':6}  {call[:60]} == {result[:20]}")
        counts = {tier: sum(test.tier == tier for suite in suites for test in suite) for tier in TIERS}
        print(f"tests of {len(suites)} problems: " + ", ".join(f"{count} {tier}" for tier, count in counts.items()))
        reward = TieredReward(PORTFOLIO["uni"], sandbox)
        for name in ("var_asce_normal", "var_asce_rev"):
            reward.schedule = PORTFOLIO[name].replaced(normalize=True)  # verdicts are kept: no program is run again
            for epoch in (0.1, 0.9):  # as a trainer would ask for them
                state = SimpleNamespace(epoch=epoch, global_step=0)
                found = np.array([reward(g, [suite] * len(g), state) for g, suite in zip(groups, suites, strict=True)], dtype=float)
                silent = int(np.isnan(found).all(axis=1).sum())
                stage = " + ".join(PORTFOLIO[name].allowed(epoch))
                print(
                    f"{name:16} epoch {epoch}: {stage:28} near misses {np.nanmean(found[:, 1:]):.2f}, no test of {silent} problems counts"
                )
    print(tier_signal(np.stack(paid)).summary())


if __name__ == "__main__":
    main()
