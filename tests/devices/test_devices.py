"""The same result on every device, in every type of numbers, within the tolerances that the table of cases states."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import torch

from tests.devices.cases import DOUBLE, GROUPS, NO_TENSORS, Case, Place, numbers

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # torch.vmap of layers without a rule of their own
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),  # torch's own forward mode uses it
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk"),  # of cuDNN, after a copy of the model
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS, but there was no current CUDA context"),  # in a thread of autograd's
]


def cases() -> tuple[list[Any], dict[str, str]]:
    """All cases, and the packages without which a group of them cannot be made."""
    found, missing = [], {}
    for group, make in GROUPS.items():
        try:
            found += [pytest.param(case, id=f"{group}-{case.name}") for case in make()]
        except ModuleNotFoundError as error:
            missing[group] = str(error.name)
    return found, missing


CASES, MISSING = cases()


def run(case: Case, place: Place) -> dict[str, torch.Tensor]:
    try:
        return numbers(case.run(place))
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """Convolutions and recurrent layers of cuDNN multiply in TF32 by default, with 10 bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        flags.__enter__()
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags.__exit__(None, None, None)


@cache
def reference(case: Case, rounded: torch.dtype, device: str = "cpu") -> dict[str, torch.Tensor]:
    return run(case, Place(device, rounded if case.by_type else DOUBLE, rounded))


def compare(case: Case, device: str, dtype: torch.dtype) -> None:
    expected, found = reference(case, dtype, device if case.by_device else "cpu"), run(case, Place(device, dtype, dtype))
    assert expected and found.keys() == expected.keys()
    wrong = [f"{name}: {text}" for name in expected if (text := difference(found[name], expected[name], case.within(dtype)))]
    assert not wrong, "\n".join(wrong)


def difference(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> str:
    """What is wrong, relative to the largest number; nothing if nothing is."""
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)}, not {tuple(expected.shape)}"
    a, b = found.double(), expected.double()
    finite = b.isfinite()
    if not torch.equal(a.nan_to_num(7.5)[~finite], b.nan_to_num(7.5)[~finite]):
        return f"{a} where {b} is not finite"
    a, b = a[finite], b[finite]
    if not len(b):
        return ""
    largest = b.abs().max()
    error = (a - b).abs().max() / (largest if largest > 0 else 1.0)
    # Numbers that are 0 but for rounding, such as a covariance of what is independent, have no size of their own.
    return "" if error <= tolerance or (a - b).abs().max() <= 1e-14 else f"{error:.2g} > {tolerance:.2g} of {largest:.3g}"


@pytest.mark.parametrize("room", NO_TENSORS)
def test_everything_public_is_in_the_table(room: str) -> None:
    if MISSING:
        pytest.skip(f"groups that need other packages: {MISSING}")
    public = set(importlib.import_module(f"counterpoise.{room}").__all__)
    tested = {name for param in CASES for case in param.values for where, name in [c.split(".") for c in case.covers] if where == room}
    assert tested <= public and set(NO_TENSORS[room]) <= public
    assert not tested & set(NO_TENSORS[room])
    assert tested | set(NO_TENSORS[room]) == public


@pytest.mark.parametrize("group", GROUPS)
def test_the_cases_of_a_group_can_be_made(group: str) -> None:
    if group in MISSING:
        pytest.skip(f"needs {MISSING[group]}")


def pairs(*more: torch.dtype) -> list[Any]:
    return [
        pytest.param(case, dtype, id=f"{param.id}-{str(dtype).removeprefix('torch.')}")
        for param in CASES
        for case in param.values
        for dtype in (*more, *case.dtypes)
    ]


@pytest.mark.parametrize(("case", "dtype"), pairs())
def test_cpu(case: Case, dtype: torch.dtype) -> None:
    compare(case, "cpu", dtype)


NO_GPU = [pytest.param(None, None, marks=pytest.mark.skip(reason="needs a GPU: torch.cuda.is_available() is False"), id="none")]


@pytest.mark.parametrize(("case", "dtype"), pairs(DOUBLE) if torch.cuda.is_available() else NO_GPU)
def test_cuda(case: Case, dtype: torch.dtype) -> None:
    compare(case, "cuda", dtype)
