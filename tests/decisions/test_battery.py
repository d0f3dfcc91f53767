from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

from counterpoise.decisions import PriorThresholdClassifier
from tests.batteries.decisions import DECISION_CHECKS, parametrize_with_checks

CASES: list[Callable[[Any], Any]] = [PriorThresholdClassifier]


@pytest.mark.parametrize("check", DECISION_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_battery(make: Callable[[Any], Any], check: Callable[[Callable[[Any], Any]], None]) -> None:
    check(make)


@parametrize_with_checks([make(inner) for make in CASES for inner in (LogisticRegression(), GaussianNB())])
def test_scikit_learn_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
