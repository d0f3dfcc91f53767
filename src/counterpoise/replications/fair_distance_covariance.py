"""Distance-covariance penalties (Machine Learning with Multitype Protected Attributes: Intersectional Fairness through Regularisation).

The paper penalizes the dependence of predictions on all protected attributes together, by the distance covariance with the attributes
side by side (CCdCov) or the joint one (JdCov), and says that both cure fairness gerrymandering, in classification and in regression. Three
tests: predictions that depend on the exclusive-or of two attributes, which no single attribute shows; recidivism scores on COMPAS (three
races by sex); claim frequencies of a motor portfolio (ten regions by gender) with the strength the paper chose.

To know when reading: COMPAS is scored without race and sex among the features, the motor portfolio with region and gender among them, as in
the released code. The sum of single distance covariances, the penalty that is said not to suffice, is trained, too. Splits of one table
share rows, so intervals over seeds are those of training and splitting, not of new people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from counterpoise._seeding import generator
from counterpoise._stats import mean_interval

from ._data import columns_from
from ._types import Claim, Finding, Replication, Verdict
from ._work import Work, rows_where

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "fair-distance-covariance"

KINDS = {"ccdcov": "CCdCov", "jdcov": "JdCov", "dcov_sum": "sum of single dCov"}

ROWS, DRAWS, QUICK_DRAWS, NOISE = 400, 50, 20, 0.5  # of the exclusive-or
UNSEEN, SEEN = 3.0, 10.0  # z-scores

STRENGTHS = (5.0, 20.0)  # on COMPAS
TEST_SHARE = 0.3
HIDDEN, LEARNING_RATE, EPOCHS, BATCH = (32,), 5e-3, 12, 256
RACES = ("African-American", "Caucasian", "Hispanic")

MOTOR_STRENGTH = 40.0
MOTOR_HIDDEN, MOTOR_LEARNING_RATE, MOTOR_STEPS, MOTOR_BATCH = (64, 64), 1e-3, 1500, 512
JSD_RATIO, RPS_INCREASE = 0.25, 0.03

CLAIMS = (
    Claim(
        "gerrymandering",
        "Joint distance covariances see predictions that depend on a combination of attributes alone; the sum of single ones does not.",
        f"z-score of the mean of {DRAWS} draws: above {SEEN:g} for CCdCov and JdCov, within {UNSEEN:g} of 0 for the sum",
    ),
    *(
        Claim(
            f"compas-{kind}",
            f"A {KINDS[kind]} penalty makes scores more equal between intersections in classification (COMPAS).",
            f"95 % intervals of the change in JSD and in the largest gap of cell means below 0 at lambda {STRENGTHS[-1]:g}, and both means "
            "fall from lambda to lambda",
        )
        for kind in ("ccdcov", "jdcov")
    ),
    *(
        Claim(
            f"motor-{kind}",
            f"A {KINDS[kind]} penalty makes rates more equal between intersections in regression, at a small price (motor portfolio).",
            f"95 % interval of the JSD at lambda {MOTOR_STRENGTH:g} over that without penalty below {JSD_RATIO:g}, and that of the "
            f"increase in RPS below {RPS_INCREASE:.0%}",
        )
        for kind in ("ccdcov", "jdcov")
    ),
    Claim("price", f"What equality costs on COMPAS: accuracy and AUC at lambda {STRENGTHS[-1]:g}."),
    Claim("one-at-a-time", f"What the sum of single penalties reaches on COMPAS at lambda {STRENGTHS[-1]:g}, against the joint ones."),
)

SEEDS, QUICK_SEEDS = tuple(range(5)), (0, 1)

Row = Mapping[str, Any]
Interval = tuple[float, float, float]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """The exclusive-or, then ``seeds`` splits of COMPAS and of ``french-motor/pg15training``; a quick run trains on less, for less."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    folder = None if data_dir is None else str(data_dir)
    for name in ("compas", "french-motor/pg15training"):
        columns_from(folder, name)  # a set that is missing is said before anything runs
    [bits] = work.map(exclusive_or, [{"draws": QUICK_DRAWS if quick else DRAWS}])
    settings = [("none", 0.0), *((kind, lam) for kind in KINDS for lam in STRENGTHS)]
    how = {"epochs": EPOCHS // 4 if quick else EPOCHS, "data_dir": folder}
    compas = work.map(on_compas, [{"kind": kind, "lam": lam, "seed": seed} | how for seed in seeds for kind, lam in settings])
    how = {"steps": MOTOR_STEPS // 20 if quick else MOTOR_STEPS, "every": 20 if quick else 1, "data_dir": folder}
    settings = [("none", 0.0), ("ccdcov", MOTOR_STRENGTH), ("jdcov", MOTOR_STRENGTH)]
    motor = work.map(on_motor, [{"kind": kind, "lam": lam, "seed": seed} | how for seed in seeds for kind, lam in settings])
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(bits, compas, motor),
        notes=_notes(compas),
        tables={
            "Exclusive-or: z-scores": [{name: f"{bits['z'][kind]:+.1f}" for kind, name in KINDS.items()}],
            "COMPAS, test means over seeds": _compas_table(compas),
            "Motor portfolio, test means over seeds": _motor_table(motor),
        },
        figure=_figure(bits, compas),
        seeds=seeds,
        quick=quick,
    )


# ---- predictions that depend on a combination alone --------------------------------------------------------------------------------------


def exclusive_or(draws: int) -> dict[str, Any]:
    """z-score of the mean penalty over draws, under the spread of as many draws in which predictions do not depend on the attributes."""
    import torch

    from counterpoise.losses import DistanceCovariancePenalty

    penalties = {
        "ccdcov": DistanceCovariancePenalty("ccdcov"),
        "jdcov": DistanceCovariancePenalty("jdcov"),
        "dcov_sum": DistanceCovariancePenalty("dcov_sum"),
    }
    values: dict[str, dict[bool, list[float]]] = {kind: {True: [], False: []} for kind in KINDS}
    for draw in range(draws):
        for dependent in (True, False):
            rng = generator(draw, SLUG, "exclusive-or", int(dependent))
            a, b, other = rng.integers(2, size=(3, ROWS))
            yhat = torch.from_numpy((a ^ (b if dependent else other)) + NOISE * rng.normal(size=ROWS))
            for kind, found in values.items():
                found[dependent].append(float(penalties[kind](yhat, [torch.from_numpy(a), torch.from_numpy(b)])))
    z = {kind: float((np.mean(found[True]) - np.mean(found[False])) / np.std(found[False], ddof=1)) for kind, found in values.items()}
    return {"z": z}


# ---- one fit -----------------------------------------------------------------------------------------------------------------------------


def compas_table(data_dir: str | None) -> pl.DataFrame:
    """Rows of the usual filter of the original analysis, of the three largest races."""
    import polars as pl

    return columns_from(data_dir, "compas").filter(
        pl.col("days_b_screening_arrest").is_between(-30, 30),
        pl.col("is_recid") != -1,
        pl.col("c_charge_degree") != "O",
        pl.col("score_text") != "N/A",
        pl.col("race").is_in(RACES),
    )


def on_compas(kind: str, lam: float, seed: int, epochs: int, data_dir: str | None) -> dict[str, Any]:
    """Test scores of one split and one setting."""
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import StandardScaler

    from counterpoise.engines import FairPenaltyClassifier

    table = compas_table(data_dir)
    features = ["age", "priors_count", "juv_fel_count", "juv_misd_count", "juv_other_count"]
    X = np.column_stack([table[features].to_numpy().astype(np.float64), table["c_charge_degree"].to_numpy() == "F"])
    y, attributes = table["two_year_recid"].to_numpy().astype(np.int64), table[["race", "sex"]]
    train, test = train_test_split(np.arange(len(y)), test_size=TEST_SHARE, random_state=seed)
    scaler = StandardScaler().fit(X[train])
    model = FairPenaltyClassifier(
        HIDDEN,
        penalty=_kind(kind),
        lam=lam,
        lr=LEARNING_RATE,
        weight_decay=0.0,
        batch_size=BATCH,
        max_steps=epochs * -(-len(train) // BATCH),
        random_state=seed,
    )
    p = model.fit(scaler.transform(X[train]), y[train], attributes=attributes[train]).predict_proba(scaler.transform(X[test]))[:, 1]
    scores = {"accuracy": float(((p > 0.5) == y[test]).mean()), "auc": float(roc_auc_score(y[test], p))}
    return scores | _equality(p, attributes[test])


def on_motor(kind: str, lam: float, seed: int, steps: int, every: int, data_dir: str | None) -> dict[str, Any]:
    """Test scores of one split and one setting, on every so many rows; counts of material damage, and the year or less exposed to it."""
    import polars as pl
    from sklearn.compose import make_column_transformer
    from sklearn.model_selection import train_test_split
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from counterpoise.engines import FairPenaltyRegressor
    from counterpoise.engines._calibrate import poisson_rps

    table = columns_from(data_dir, "french-motor/pg15training").gather_every(every)
    numbers = ["Age", "Group1", "Bonus", "Poldur", "Value", "Density"]
    levels = ["Type", "Category", "Occupation", "Gender", "Group2"]
    exposure = table["Exppdays"].to_numpy().astype(np.float64) / 365
    counts = table["Numtppd"].to_numpy().astype(np.float64)
    attributes = table.select(pl.col("Group2").cast(pl.String), pl.col("Gender"))
    train, test = train_test_split(np.arange(len(counts)), test_size=TEST_SHARE, random_state=seed)
    encode = make_column_transformer((StandardScaler(), numbers), (OneHotEncoder(sparse_output=False, dtype=np.float32), levels))
    X = encode.fit(table[train]).transform(table)
    model = FairPenaltyRegressor(
        MOTOR_HIDDEN,
        loss="poisson",
        penalty=_kind(kind),
        lam=lam,
        lr=MOTOR_LEARNING_RATE,
        batch_size=MOTOR_BATCH,
        max_steps=steps,
        random_state=seed,
    )
    model.fit(X[train], (counts / exposure)[train], attributes=attributes[train], sample_weight=exposure[train])
    rate = model.predict(X[test])
    return {"rps": float(poisson_rps(rate * exposure[test], counts[test]).mean())} | _equality(rate, attributes[test])


def _kind(kind: str) -> Any:
    return "ccdcov" if kind == "none" else kind


def _equality(p: np.ndarray[Any, Any], attributes: pl.DataFrame) -> dict[str, float]:
    from counterpoise import Groups
    from counterpoise.metrics import between_group_variance_share, jensen_shannon_by_group

    cells = Groups.from_columns(attributes, attributes.columns)
    means = [float(p[cells.members(k)].mean()) for k in range(len(cells))]
    return {
        "jsd": jensen_shannon_by_group(p, cells, estimator="hist"),
        "jsd_kde": jensen_shannon_by_group(p, cells),
        "gap": max(means) - min(means),
        "uf": between_group_variance_share(p, cells),
    }


# ---- what it says ------------------------------------------------------------------------------------------------------------------------


def values_of(rows: Sequence[Row], metric: str, kind: str, lam: float) -> np.ndarray[Any, Any]:
    return np.array([row[metric] for row in rows_where(rows, kind=kind, lam=lam)])


def change(rows: Sequence[Row], metric: str, kind: str, lam: float, baseline: str = "none", base_lam: float = 0.0) -> Interval:
    """(mean, low, high) of the paired difference over seeds."""
    return mean_interval(values_of(rows, metric, kind, lam) - values_of(rows, metric, baseline, base_lam))


def more_equal(rows: Sequence[Row], kind: str) -> Verdict:
    """Both measures fall for sure at the strongest penalty, and their means from strength to strength."""
    intervals = [change(rows, metric, kind, STRENGTHS[-1]) for metric in ("jsd", "gap")]
    falling = all(
        bool((np.diff([values_of(rows, metric, k, lam).mean() for k, lam in (("none", 0.0), *((kind, s) for s in STRENGTHS))]) < 0).all())
        for metric in ("jsd", "gap")
    )
    if all(high < 0 for _, _, high in intervals):
        return "replicated" if falling else "not replicated"
    return "not replicated" if any(low >= 0 for _, low, _ in intervals) else "undecided"


def ratios(rows: Sequence[Row], metric: str, kind: str) -> Interval:
    """(mean, low, high) over seeds of the penalized value over that without penalty."""
    return mean_interval(values_of(rows, metric, kind, MOTOR_STRENGTH) / values_of(rows, metric, "none", 0.0))


def equal_at_a_small_price(jsd: Interval, rps: Interval) -> Verdict:
    if jsd[2] < JSD_RATIO and rps[2] - 1 < RPS_INCREASE:
        return "replicated"
    return "not replicated" if jsd[1] >= JSD_RATIO or rps[1] - 1 >= RPS_INCREASE else "undecided"


def _findings(bits: Row, compas: Sequence[Row], motor: Sequence[Row]) -> tuple[Finding, ...]:
    claims = {claim.key: claim for claim in CLAIMS}
    z, strong = bits["z"], STRENGTHS[-1]
    findings = [
        claims["gerrymandering"].holds(
            abs(z["dcov_sum"]) < UNSEEN and min(z["ccdcov"], z["jdcov"]) > SEEN,
            "z-scores of the exclusive-or: " + ", ".join(f"{name} {z[kind]:+.1f}" for kind, name in KINDS.items()) + ".",
        )
    ]
    for kind in ("ccdcov", "jdcov"):
        jsd, gap = (change(compas, metric, kind, strong) for metric in ("jsd", "gap"))
        findings.append(
            claims[f"compas-{kind}"].judged(
                more_equal(compas, kind),
                f"COMPAS, {KINDS[kind]} at lambda {strong:g} against none: JSD {_signed(jsd)}, largest gap of cell means {_signed(gap)}.",
                estimate=jsd[0],
                low=jsd[1],
                high=jsd[2],
                unit="bits",
            )
        )
    for kind in ("ccdcov", "jdcov"):
        jsd, rps = ratios(motor, "jsd_kde", kind), ratios(motor, "rps", kind)
        findings.append(
            claims[f"motor-{kind}"].judged(
                equal_at_a_small_price(jsd, rps),
                f"Motor portfolio, {KINDS[kind]} at lambda {MOTOR_STRENGTH:g}: JSD {jsd[0]:.3f} ({jsd[1]:.3f} to {jsd[2]:.3f}) times, "
                f"RPS {100 * (rps[0] - 1):+.2f} % ({100 * (rps[1] - 1):+.2f} to {100 * (rps[2] - 1):+.2f}).",
                estimate=jsd[0],
                low=jsd[1],
                high=jsd[2],
                unit="JSD over that without penalty",
            )
        )
    accuracy = {kind: change(compas, "accuracy", kind, strong) for kind in KINDS}
    auc = {kind: change(compas, "auc", kind, strong) for kind in KINDS}
    findings.append(
        claims["price"].reported(
            accuracy["ccdcov"],
            f"COMPAS at lambda {strong:g} against none: "
            + "; ".join(f"{name}: accuracy {_signed(accuracy[kind])}, AUC {_signed(auc[kind])}" for kind, name in KINDS.items())
            + ".",
        )
    )
    against = {kind: change(compas, "jsd", "dcov_sum", strong, kind, strong) for kind in ("ccdcov", "jdcov")}
    findings.append(
        claims["one-at-a-time"].reported(
            against["ccdcov"],
            f"COMPAS at lambda {strong:g}, JSD after the sum of single penalties minus that after the joint ones: "
            + "; ".join(f"{KINDS[kind]} {_signed(interval)}" for kind, interval in against.items())
            + ".",
        )
    )
    return tuple(findings)


def _signed(interval: Interval) -> str:
    estimate, low, high = interval
    return f"{estimate:+.3f} ({low:+.3f} to {high:+.3f})"


def _notes(compas: Sequence[Row]) -> tuple[str, ...]:
    lost = change(compas, "accuracy", "ccdcov", STRENGTHS[-1])
    return (
        f"Equality is not free: on COMPAS, CCdCov at lambda {STRENGTHS[-1]:g} changes accuracy by {100 * lost[0]:+.1f} points "
        f"({100 * lost[1]:+.1f} to {100 * lost[2]:+.1f}).",
        "Whether one needs a joint penalty depends on the data: where differences show in single attributes, as here, the sum of single "
        "penalties does about as well. It is blind to an exclusive-or.",
        "The penalty asks for demographic parity. Where groups differ in their outcomes, that contradicts calibration within groups.",
        "JSD is from 50 bins on COMPAS and from a kernel density of width 0.15 on the motor portfolio, whose rates vary by less than that: "
        "there it measures means more than shapes.",
    )


def _compas_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    shown = {"accuracy": "accuracy", "auc": "AUC", "jsd": "JSD", "jsd_kde": "JSD, kernel density", "gap": "largest gap", "uf": "UF"}
    settings = [("none", 0.0), *((kind, lam) for kind in KINDS for lam in STRENGTHS)]
    return [
        {"penalty": f"{KINDS[kind]}, lambda {lam:g}" if lam else "none"}
        | {name: f"{values_of(rows, metric, kind, lam).mean():.3f}" for metric, name in shown.items()}
        for kind, lam in settings
    ]


def _motor_table(rows: Sequence[Row]) -> list[dict[str, Any]]:
    shown = {"rps": "RPS", "jsd_kde": "JSD, kernel density", "jsd": "JSD, 50 bins", "gap": "largest gap", "uf": "UF"}
    settings = [("none", 0.0), ("ccdcov", MOTOR_STRENGTH), ("jdcov", MOTOR_STRENGTH)]
    return [
        {"penalty": f"{KINDS[kind]}, lambda {lam:g}" if lam else "none"}
        | {name: f"{values_of(rows, metric, kind, lam).mean():.5f}" for metric, name in shown.items()}
        for kind, lam in settings
    ]


def _figure(bits: Row, compas: Sequence[Row]) -> Figure:
    """Left: who sees the exclusive-or. Right: what equality costs on COMPAS."""
    from counterpoise.report import _plots as plots

    looks = {"ccdcov": (plots.BLUE, "o"), "jdcov": (plots.RED, "s"), "dcov_sum": (plots.GRAY, "D")}
    height, bottom, top = 330, 58, 74
    with plots.style():
        fig = plots.figure(plots.WIDTH, height)
        ax = plots.axes(fig, 146, bottom, 150, height - bottom - top)
        plots.plain_rows(ax, len(KINDS))
        plots.rules_between(ax, len(KINDS))
        ax.axvspan(-UNSEEN, UNSEEN, color=plots.BAND, zorder=0)
        for place, (kind, name) in enumerate(KINDS.items()):
            color, marker = looks[kind]
            ax.plot(bits["z"][kind], place, marker=marker, ms=9, color=color, mec=plots.PAPER, zorder=3)
            plots.row_text(fig, ax, place, 10, name)
        ax.set_xlim(min(-6, *bits["z"].values()) - 1, max(bits["z"].values()) * 1.1)
        ax.set_xlabel("z-score; gray: not seen")
        fig.text(10 / plots.WIDTH, 1 - 18 / height, "Seen: exclusive-or of two attributes", va="center", weight="bold")
        ax = plots.axes(fig, 400, bottom, plots.WIDTH - 400 - 40, height - bottom - top)
        start = (values_of(compas, "jsd", "none", 0.0).mean(), 100 * values_of(compas, "accuracy", "none", 0.0).mean())
        for kind, (color, marker) in looks.items():
            points = [start] + [
                (values_of(compas, "jsd", kind, lam).mean(), 100 * values_of(compas, "accuracy", kind, lam).mean()) for lam in STRENGTHS
            ]
            ax.plot(*zip(*points, strict=True), color=color, lw=1.5, marker=marker, ms=7, mec=plots.PAPER, mew=1, zorder=3)
        ax.plot(*start, marker="o", ms=9, color=plots.INK, mec=plots.PAPER, zorder=4)
        ax.annotate("no penalty", start, (-6, 8), textcoords="offset points", ha="right", color=plots.INK)
        ax.margins(0.1, 0.16)
        ax.tick_params(length=3, color=plots.RULE)
        ax.set_xlabel("difference between intersections (JSD, bits)")
        ax.set_ylabel("accuracy, %")
        fig.text(346 / plots.WIDTH, 1 - 18 / height, "Paid: accuracy on COMPAS, lambda 0, 5, 20", va="center", weight="bold")
        entries = [(name, {"marker": looks[kind][1], "ms": 7, "color": looks[kind][0]}) for kind, name in KINDS.items()]
        plots.key(fig, 352, height - 46, entries)
        return fig
