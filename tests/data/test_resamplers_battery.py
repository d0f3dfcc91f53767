from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from imblearn import combine, over_sampling

from counterpoise.data import ADASYN, SMOTE, SMOTEENN, SMOTEN, SMOTENC, BorderlineSMOTE, SMOTETomek
from tests.batteries.resamplers import (
    CATEGORICAL,
    COLUMNS,
    RESAMPLER_CHECKS,
    ResamplerCase,
    mixed,
    mixed_distances,
    nominal,
    nominal_distances,
    parametrize_with_checks,
)

CONTINUOUS = tuple(column for column in range(COLUMNS) if column not in CATEGORICAL)
ours_nc, theirs_nc = partial(SMOTENC, list(CATEGORICAL)), partial(over_sampling.SMOTENC, list(CATEGORICAL))
borderline_2 = {"kind": "borderline-2"}

CASES = [
    ResamplerCase("smote", SMOTE, peer=over_sampling.SMOTE),
    ResamplerCase("smote-feature-gap", partial(SMOTE, gap="feature")),
    ResamplerCase("smote-approximate", partial(SMOTE, neighbors="approximate"), peer=over_sampling.SMOTE),
    ResamplerCase("borderline-1", BorderlineSMOTE, peer=over_sampling.BorderlineSMOTE, needs_border=True),
    # A gap towards another class is a product of two numbers; ours is multiplied out before the step, theirs after.
    ResamplerCase(
        "borderline-2",
        partial(BorderlineSMOTE, **borderline_2),
        peer=partial(over_sampling.BorderlineSMOTE, **borderline_2),
        from_all=True,
        needs_border=True,
        exact=False,
    ),
    ResamplerCase("adasyn", ADASYN, peer=over_sampling.ADASYN, rounds=True),
    ResamplerCase("smotenc", ours_nc, mixed, theirs_nc, CONTINUOUS, mixed_distances),
    ResamplerCase("smotenc-feature-gap", partial(ours_nc, gap="feature"), mixed, None, CONTINUOUS, mixed_distances),
    ResamplerCase("smoten", SMOTEN, nominal, None, (), nominal_distances),
    ResamplerCase("smote-tomek", SMOTETomek, peer=combine.SMOTETomek, cleans=True),
    ResamplerCase("smote-enn", SMOTEENN, peer=combine.SMOTEENN, cleans=True),
]


@pytest.mark.parametrize("check", RESAMPLER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_battery(case: ResamplerCase, check: Callable[[ResamplerCase], None]) -> None:
    check(case)


@pytest.mark.filterwarnings("ignore:X. a sparse matrix is not really efficient")
@parametrize_with_checks(
    [
        SMOTE(random_state=0),
        BorderlineSMOTE(random_state=0),
        ADASYN(random_state=0),
        SMOTEN(random_state=0),
        SMOTEENN(random_state=0),
        SMOTETomek(random_state=0),
    ]
)
def test_imbalanced_learn_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
