from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

from counterpoise.decisions import PriorScoreThreshold, PriorThresholdClassifier
from tests.batteries.decisions import DECISION_CHECKS, parametrize_with_checks, probabilities_agree_with_decisions


def prior_score(estimator: Any) -> Any:
    return PriorScoreThreshold(0.25).to_estimator(estimator)


CASES: list[Callable[[Any], Any]] = [PriorThresholdClassifier, prior_score]
ONLY_THRESHOLDS = (prior_score,)


@pytest.mark.parametrize("check", DECISION_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_battery(make: Callable[[Any], Any], check: Callable[[Callable[[Any], Any]], None]) -> None:
    if make in ONLY_THRESHOLDS and check is probabilities_agree_with_decisions:
        pytest.skip("it leaves the probabilities as they are")
    check(make)


# scikit-learn's checks expect decisions where the probability is largest: a prior of 1/2.
HALF = PriorScoreThreshold(0.5)


@parametrize_with_checks(
    [make(inner) for make in (PriorThresholdClassifier, HALF.to_estimator) for inner in (LogisticRegression(), GaussianNB())]
    + [HALF.to_estimator()]
)
def test_scikit_learn_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
