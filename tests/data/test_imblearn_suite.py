"""imbalanced-learn's own tests of its SMOTE family, run with our classes in the place of theirs.

The files come with the installed package. Tests that are expected to differ are listed in ``EXPECTED`` with the reason; one that differs
without being listed fails here, and so does one that is listed and passes.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import imblearn
import pytest

from counterpoise import data as ours

FOLDER = Path(imblearn.__file__).parent / "over_sampling"
FILES = {
    "smote": "_smote/tests/test_smote.py",
    "smote_nc": "_smote/tests/test_smote_nc.py",
    "smoten": "_smote/tests/test_smoten.py",
    "borderline": "_smote/tests/test_borderline_smote.py",
    "adasyn": "tests/test_adasyn.py",
}
SAMPLERS = ("SMOTE", "SMOTENC", "SMOTEN", "BorderlineSMOTE", "ADASYN")
EXPECTED: dict[str, str] = {}  # file::test -> why it differs; ten at most

# Their tests are written for runs in which a warning is no error, and ours warns where theirs is silent.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not FOLDER.joinpath(FILES["smote"]).is_file(), reason="imbalanced-learn was installed without its tests"),
]


def load(name: str) -> ModuleType:
    """Their module, with our classes under the names it imported."""
    spec = importlib.util.spec_from_file_location(f"imblearn_suite_{name}", FOLDER / FILES[name])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    replaced = [sampler for sampler in SAMPLERS if hasattr(module, sampler)]
    assert replaced, f"{name} tests none of our classes"
    for sampler in replaced:
        setattr(module, sampler, getattr(ours, sampler))
    return module


def collect() -> list[str]:
    """Put their tests and fixtures into this module, where pytest finds them."""
    found = []
    for name in FILES:
        if not (FOLDER / FILES[name]).is_file():
            continue
        for member, value in vars(load(name)).items():
            if member.startswith("test_"):
                found.append(f"{name}::{member}")
                if found[-1] in EXPECTED:
                    value = pytest.mark.xfail(reason=EXPECTED[found[-1]], strict=True)(value)
                globals()[f"test_{name}__{member.removeprefix('test_')}"] = value
            elif type(value).__name__ in ("FixtureFunctionDefinition", "FixtureFunction"):
                assert member not in globals(), f"two fixtures are called {member}"
                globals()[member] = value
    return found


FOUND = collect()


def test_what_is_expected_to_differ_exists_and_is_little() -> None:
    assert set(EXPECTED) <= set(FOUND) and len(EXPECTED) <= 10


def test_our_classes_are_the_ones_under_test() -> None:
    for name in FILES:
        module = load(name)
        used = [getattr(module, sampler) for sampler in SAMPLERS if hasattr(module, sampler)]
        assert all(sampler.__module__.startswith("counterpoise.") for sampler in used)
