from __future__ import annotations

import json
import math

import numpy as np
import pytest

from counterpoise import CounterpoiseError
from counterpoise.replications import Claim, Replication

GAIN = Claim("gain", "it gains", "lower limit above 0")
SEEN = Claim("seen", "a side effect")


def replication(*findings, claims=(GAIN,), **more) -> Replication:
    return Replication("some-paper", claims, findings, **more)


@pytest.mark.parametrize(
    ("interval", "above", "below"),
    [
        ((0.2, 0.1, 0.3), "replicated", "not replicated"),
        ((-0.2, -0.3, -0.1), "not replicated", "replicated"),
        ((0.0, -0.1, 0.1), "undecided", "undecided"),
        ((0.1, 0.0, 0.2), "undecided", "not replicated"),  # a limit on the bound is not beyond it
        ((-0.1, -0.2, 0.0), "not replicated", "undecided"),
        ((math.nan, math.nan, math.nan), "undecided", "undecided"),
        ((0.1, -math.inf, math.inf), "undecided", "undecided"),
    ],
)
def test_the_verdict_of_an_interval(interval, above, below) -> None:
    assert GAIN.above(interval, 0.0, "x").verdict == above
    assert GAIN.below(interval, 0.0, "x").verdict == below


def test_the_bound_is_kept_beside_the_numbers() -> None:
    finding = GAIN.above((np.float32(0.5), 0.25, 0.75), -0.01, "half", unit="AUROC", name="set")
    assert (finding.estimate, finding.low, finding.high, finding.bound) == (0.5, 0.25, 0.75, -0.01)
    assert (finding.unit, finding.name, finding.text, finding.claim) == ("AUROC", "set", "half", "gain")


def test_a_claim_without_a_criterion_is_only_reported() -> None:
    assert SEEN.reported((1.0, 0.0, 2.0), "one").verdict == "reported"
    with pytest.raises(CounterpoiseError, match="'seen' has no criterion"):
        SEEN.above((1.0, 0.5, 2.0), 0.0, "one")


def test_a_verdict_that_does_not_exist_is_refused() -> None:
    with pytest.raises(CounterpoiseError, match=r"verdict: got 'proved'; expected one of replicated"):
        GAIN.judged("proved", "x")


def test_the_least_favorable_finding_decides_a_claim() -> None:
    yes, no, open_ = (GAIN.judged(verdict, "x") for verdict in ("replicated", "not replicated", "undecided"))
    assert replication(yes, yes).verdict == "replicated"
    assert replication(yes, open_).verdict == "undecided"
    assert replication(yes, open_, no).verdict == "not replicated"


def test_several_claims_are_counted_and_what_is_reported_is_not() -> None:
    other = Claim("other", "it loses nothing", "x")
    found = replication(
        GAIN.judged("replicated", "x"), other.judged("not replicated", "x"), SEEN.reported(None, "x"), claims=(GAIN, other, SEEN)
    )
    assert found.verdict == "1 of 2 replicated, 1 of 2 not replicated"
    assert found.verdicts == {"gain": "replicated", "other": "not replicated"}
    assert replication(SEEN.reported(None, "x"), claims=(SEEN,)).verdict == "reported"


def test_no_claim_without_a_finding_and_no_finding_without_a_claim() -> None:
    with pytest.raises(CounterpoiseError, match=r"claims without a finding: \['gain'\]"):
        replication()
    with pytest.raises(CounterpoiseError, match=r"findings without a claim: \['seen'\]"):
        replication(GAIN.holds(True, "x"), SEEN.reported(None, "x"))
    with pytest.raises(CounterpoiseError, match="the same key"):
        replication(GAIN.holds(True, "x"), claims=(GAIN, GAIN))


def test_json_there_and_back() -> None:
    found = replication(
        GAIN.above((1 / 3, 0.1, math.inf), 0, "a third"),
        notes=("none helped",),
        tables={"all": [{"arm": "a", "value": np.float64(0.25), "n": np.int64(3)}]},
        seeds=(0, 1),
        seconds=1.5,
        environment={"torch": "2"},
    )
    content = json.loads(found.to_json())
    assert content["verdict"] == "replicated" and content["findings"][0]["high"] is None
    again = Replication.from_json(found.to_json())
    assert again.to_json() == found.to_json()
    assert again.findings[0].estimate == pytest.approx(1 / 3, abs=1e-7) and again.tables["all"][0] == {"arm": "a", "value": 0.25, "n": 3}


def test_the_summary_has_every_finding_and_says_when_it_does_not_count() -> None:
    found = replication(GAIN.holds(False, "it lost 3 points"), notes=("no one gained",), quick=True)
    assert found.summary().splitlines() == [
        "some-paper: not replicated (quick run: does not count)",
        "  not replicated: it lost 3 points",
        "  note: no one gained",
    ]
    assert found.to_frame()["verdict"].to_list() == ["not replicated"]
