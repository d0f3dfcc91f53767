"""What a replication is made of: claims with criteria fixed beforehand, findings with verdicts, and the record of one run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from counterpoise._errors import InputError, check_choice

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["REPORTED", "VERDICTS", "Claim", "Finding", "Replication", "Verdict"]

Verdict = Literal["replicated", "not replicated", "undecided", "reported"]
REPORTED = "reported"  # a finding without a criterion: shown as large as the others, decides nothing
VERDICTS: tuple[Verdict, ...] = ("replicated", "not replicated", "undecided", "reported")


@dataclass(frozen=True)
class Claim:
    """One claim of a paper and what must be seen for it to count as replicated.

    Attributes:
        key: short name, unique in the paper.
        text: the claim in our own words.
        criterion: what must hold, with its numbers; an empty string for what is only reported.
    """

    key: str
    text: str
    criterion: str = ""

    # ---- the verdict of an interval, or of a fact ----------------------------------------------------------------------------------

    def above(self, interval: tuple[float, float, float], bound: float, text: str, **more: Any) -> Finding:
        """``interval`` is (estimate, low, high): replicated if all of it lies above ``bound``, not replicated if all of it lies below (or
        on it), undecided otherwise."""
        estimate, low, high = interval
        verdict: Verdict = "replicated" if low > bound else "not replicated" if high <= bound else "undecided"
        return self._finding(verdict, text, estimate, low, high, bound, more)

    def below(self, interval: tuple[float, float, float], bound: float, text: str, **more: Any) -> Finding:
        """The mirror image of :meth:`above`: replicated if all of the interval lies below ``bound``."""
        estimate, low, high = interval
        verdict: Verdict = "replicated" if high < bound else "not replicated" if low >= bound else "undecided"
        return self._finding(verdict, text, estimate, low, high, bound, more)

    def holds(self, fact: bool, text: str, **more: Any) -> Finding:
        """For identities and counts, which no sampling makes uncertain: replicated or not."""
        return self._finding("replicated" if fact else "not replicated", text, more.pop("estimate", None), None, None, None, more)

    def judged(self, verdict: Verdict, text: str, **more: Any) -> Finding:
        """A verdict reached by a rule that the criterion spells out, such as "two of three sets"."""
        check_choice("verdict", verdict, VERDICTS)
        return self._finding(verdict, text, more.pop("estimate", None), more.pop("low", None), more.pop("high", None), None, more)

    def reported(self, interval: tuple[float, float, float] | None, text: str, **more: Any) -> Finding:
        """What was seen, without a criterion."""
        estimate, low, high = interval if interval is not None else (None, None, None)
        return self._finding("reported", text, estimate, low, high, None, more)

    def _finding(
        self,
        verdict: Verdict,
        text: str,
        estimate: float | None,
        low: float | None,
        high: float | None,
        bound: float | None,
        more: dict[str, Any],
    ) -> Finding:
        if not self.criterion and verdict != "reported":
            raise InputError(f"Claim {self.key!r} has no criterion, so its findings can only be reported; got {verdict!r}.")
        if any(value is not None and math.isnan(value) for value in (estimate, low, high)) and verdict != "reported":
            verdict = "undecided"
        return Finding(self.key, verdict, text, _float(estimate), _float(low), _float(high), _float(bound), **more)


@dataclass(frozen=True)
class Finding:
    """What a run says about one claim.

    Attributes:
        claim: key of the :class:`Claim`.
        verdict: replicated, not replicated, undecided or reported.
        text: one sentence with the numbers.
        estimate, low, high: the quantity that was judged and its 95 % interval, where it has one.
        bound: what it was compared with.
        unit: of these numbers.
        name: which of several findings on one claim this is ("mammography, tree").
    """

    claim: str
    verdict: Verdict
    text: str
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    bound: float | None = None
    unit: str = ""
    name: str = ""


@dataclass(frozen=True)
class Replication:
    """The record of one run of ``counterpoise replicate``.

    Attributes:
        slug: of the paper.
        claims: all claims of the module, in its order.
        findings: at least one for every claim.
        notes: sentences that a reader needs beside the findings: what helped no one, what costs, what surprised.
        tables: title -> rows (list of dicts, all with the same keys) behind the findings.
        figure: the picture.
        seconds: computing time, added up over processes. environment: versions and machine. seeds: as run.
        quick: a smoke run, whose verdicts do not count.
    """

    slug: str
    claims: tuple[Claim, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()
    tables: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    figure: Figure | None = field(default=None, compare=False, repr=False)
    seconds: float = 0.0
    environment: Mapping[str, str] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    quick: bool = False

    def __post_init__(self) -> None:
        keys = [claim.key for claim in self.claims]
        if len(set(keys)) < len(keys):
            raise InputError(f"{self.slug}: two claims have the same key.")
        unknown = {finding.claim for finding in self.findings} - set(keys)
        silent = set(keys) - {finding.claim for finding in self.findings}
        if unknown or silent:
            raise InputError(f"{self.slug}: findings without a claim: {sorted(unknown)}; claims without a finding: {sorted(silent)}.")

    def verdict_of(self, claim: str) -> Verdict:
        """The verdict on one claim: that of its findings, the least favorable first; what is only reported decides nothing."""
        own = {finding.verdict for finding in self.findings if finding.claim == claim}
        order: tuple[Verdict, ...] = ("not replicated", "undecided", "replicated")
        return next((verdict for verdict in order if verdict in own), "reported")

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Claim -> verdict, for the claims that have a criterion."""
        return {claim.key: self.verdict_of(claim.key) for claim in self.claims if claim.criterion}

    @property
    def verdict(self) -> str:
        """All claims in a few words: ``replicated``, ``not replicated``, ``undecided``, or how many of each."""
        given = list(self.verdicts.values())
        if not given:
            return "reported"
        if len(set(given)) == 1:
            return given[0]
        parts = [(verdict, given.count(verdict)) for verdict in VERDICTS if verdict in given]
        return ", ".join(f"{count} of {len(given)} {verdict}" for verdict, count in parts)

    def summary(self) -> str:
        """One line per finding."""
        lines = [f"{self.slug}: {self.verdict}" + (" (quick run: does not count)" if self.quick else "")]
        for finding in self.findings:
            lines.append(f"  {finding.verdict}: {finding.text}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def to_frame(self) -> pl.DataFrame:
        """One row per finding."""
        import polars as pl

        numbers = dict.fromkeys(("estimate", "low", "high", "bound"), pl.Float64)
        return pl.DataFrame([asdict(finding) for finding in self.findings], schema_overrides=numbers)

    def to_json(self) -> str:
        """Everything but the figure."""
        content = {name: getattr(self, name) for name in ("slug", "quick", "seconds", "seeds", "environment", "notes", "tables")}
        content |= {"verdict": self.verdict, "verdicts": self.verdicts}
        content |= {"claims": [asdict(claim) for claim in self.claims], "findings": [asdict(finding) for finding in self.findings]}
        return json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Replication:
        """What :meth:`to_json` wrote; it has no figure."""
        content = json.loads(text)
        return cls(
            slug=content["slug"],
            claims=tuple(Claim(**claim) for claim in content["claims"]),
            findings=tuple(Finding(**finding) for finding in content["findings"]),
            notes=tuple(content["notes"]),
            tables=content["tables"],
            seconds=content["seconds"],
            environment=content["environment"],
            seeds=tuple(content["seeds"]),
            quick=content["quick"],
        )


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _plain(value: Any) -> Any:
    """For JSON: NumPy numbers as Python's, NaN as null, floats with seven digits (what follows is noise of the last run)."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, (str, bytes)):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value
