"""The files around the package agree with each other."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import counterpoise

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
}


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for lines in (PROJECT["dependencies"], *extras) for line in lines]


def test_the_version_is_one() -> None:
    assert counterpoise.__version__ == PROJECT["version"] == importlib.metadata.version("counterpoise")


def test_constraints_are_plain_pins() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(PINS) > 100


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_every_requirement_is_pinned_inside_its_range(requirement) -> None:
    if requirement.name != "counterpoise":  # [all] names the other extras
        assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


def test_all_brings_every_extra_that_users_need() -> None:
    extras = set(PROJECT["optional-dependencies"])
    named = Requirement(PROJECT["optional-dependencies"]["all"][0]).extras
    assert named == extras - {"all", "bench", "docs", "test"}


def test_everything_that_is_imported_is_declared() -> None:
    distributions = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in requirements()}
    undeclared = set()
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for name in {module.partition(".")[0] for module in modules} - set(sys.stdlib_module_names):
                # An extra that is not installed has no distribution to ask, but its own name.
                if not {canonicalize_name(owner) for owner in distributions.get(name, [name])} & declared:
                    undeclared.add(f"{name} in {path.relative_to(ROOT)}")
    assert not undeclared
