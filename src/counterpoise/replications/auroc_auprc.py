"""A closer look at AUROC and AUPRC (arXiv:2401.06091): the two are closely related, and AUPRC favors groups with more positives.

Re-tested: the identities of Theorem 1 on scores of real models, with and without ties, against scikit-learn; what every atomic mistake is
worth, by swapping it and scoring again; and whom a greedy repair of mistakes serves, guided by either metric, where two groups are ranked
equally well but one has five times the positives. Beyond the paper: choosing among random forests on COMPAS by either metric.

What to know when reading the result: guided by AUROC the group with more positives gains more, too, since it owns more of the mistakes. The
claim is that AUPRC is more skewed, not that AUROC is neutral. The survey of the literature in the paper is not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, spearmanr, t

from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval, nadeau_bengio
from counterpoise.diagnostics import mistake_leverage
from counterpoise.metrics import auroc_auprc_decomposition, log_tpr_auc

from ._data import load_from
from ._types import Claim, Finding, Replication
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
Interval = tuple[float, float, float]

SLUG = "auroc-auprc"

IDENTITY_ERROR = 1e-12  # of either metric against scikit-learn's
SETS = ("mammography", "breast-cancer", *(f"digit {k}" for k in range(10)))
CLASSIFIERS = ("logistic", "forest", "neighbors")
QUICK_SETS = ("breast-cancer", "digit 8")

MISTAKE_ROWS, MISTAKE_PREVALENCE, MISTAKE_SHIFT = 1000, 0.2, 1.0
AUROC_SPREAD, AUPRC_ERROR = 1e-9, 1e-12  # of the gains, measured by swapping

GROUP_ROWS, COMMON_POSITIVES, RARE_POSITIVES = 1000, 50, 10
WITHIN_AUROC, FIXES = 0.85, 50

HIGH_PREVALENCES, HIGH_ROWS, HIGH_SHIFT = (0.5, 0.9, 0.99), 20_000, 1.2

DEPTHS, LEAVES, FEATURES = (2, 4, 6, 10, None), (1, 5, 20, 60), (0.3, 0.6, 1.0)  # 60 random forests
TREES = 30
RACES = ("African-American", "Caucasian")  # 51 % and 39 % positive

SEEDS, QUICK_SEEDS = tuple(range(20)), (0, 1)
FEW = 5  # seeds of the exact parts, and of Theorem 2
SPLITS = 10  # of COMPAS

CLAIMS = (
    Claim(
        "identity",
        "AUROC and AUPRC are related in simple terms: one minus the mean, over the positives' scores, of the false positive rate; and one "
        "minus that of the false positive rate over the firing rate, times the share of negatives.",
        f"On the scores of {len(CLASSIFIERS)} classifiers on {len(SETS)} problems, as they come, rounded to two decimals, and with all "
        f"ties broken: both averages are within {IDENTITY_ERROR:g} of scikit-learn's metrics.",
    ),
    Claim(
        "mistakes",
        "Repairing any atomic mistake adds the same to AUROC; to AUPRC it adds the more, the higher the mistake is ranked.",
        f"Every mistake among {MISTAKE_ROWS} scores swapped and scored by scikit-learn, {FEW} seeds: AUROC gains times positives times "
        f"negatives within {AUROC_SPREAD:g} of 1; AUPRC gains within {AUPRC_ERROR:g} of T / (P k (k - 1)).",
    ),
    Claim(
        "groups",
        "AUPRC unduly favors improvements for the groups in which positives are more frequent.",
        f"Two groups of {GROUP_ROWS} rows with {COMMON_POSITIVES} and {RARE_POSITIVES} positives, calibrated, AUROC {WITHIN_AUROC} within "
        f"each; {FIXES} greedy repairs, {len(SEEDS)} seeds. The gain in AUROC of the first group minus that of the second, guided by AUPRC "
        "minus guided by AUROC: the 95 % interval lies above 0.",
    ),
    Claim("front", "How much more the highest mistakes are worth to AUPRC."),
    Claim("auroc-skew", "The same difference between the groups where the repairs are guided by AUROC."),
    Claim("log-tpr", "Where positives are common, AUPRC is about 1 plus the odds against them times the area under the log-TPR ROC curve."),
    Claim("compas", "Choosing among 60 random forests by AUPRC instead of AUROC: AUROC within the two largest groups of COMPAS."),
)


def run(
    *,
    seeds: Sequence[int] | None = None,
    quick: bool = False,
    data_dir: str | Path | None = None,
    work: Work | None = None,
) -> Replication:
    """All parts; a quick run leaves out what needs a file: mammography and COMPAS."""
    chosen = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    folder = None if data_dir is None else str(data_dir)
    identities = work.map(
        identity,
        [{"data": data, "classifier": name, "data_dir": folder} for data in (QUICK_SETS if quick else SETS) for name in CLASSIFIERS],
    )
    swaps = work.map(mistakes, [{"seed": seed} for seed in chosen[: 1 if quick else FEW]])
    drifts = work.map(drift, [{"seed": seed, "arm": arm} for seed in chosen for arm in ("auprc", "auroc")])
    common = work.map(
        high_prevalence, [{"seed": seed, "prevalence": prevalence} for prevalence in HIGH_PREVALENCES for seed in chosen[:FEW]]
    )
    compas = [] if quick else work.map(select_on_compas, [{"seed": seed, "data_dir": folder} for seed in chosen[:SPLITS]])
    tables: dict[str, Sequence[Row]] = {
        "largest difference to scikit-learn": _identity_table(identities),
        f"gain in AUROC within each group after {FIXES} repairs, mean over seeds": _drift_table(drifts),
    }
    if compas:
        tables["COMPAS: AUROC of the chosen forest on test rows, mean over splits"] = _compas_table(compas)
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=tuple(_findings(identities, swaps, drifts, common, compas)),
        notes=_notes(drifts),
        tables=tables,
        figure=_figure(swaps[0], drifts),
        seeds=chosen,
        quick=quick,
    )


# ---- the pieces -------------------------------------------------------------------------------------------------------------------------


def identity(data: str, classifier: str, data_dir: str | None) -> dict[str, Any]:
    """Largest differences to scikit-learn on the held-out half, for three ways to write the same scores; and how many rows are tied."""
    from sklearn.metrics import average_precision_score, roc_auc_score
    from sklearn.model_selection import train_test_split

    X, y = _table(data, data_dir)
    X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.5, stratify=y, random_state=0)
    plain = _classifier(classifier).fit(X_train, y_train).predict_proba(X_test)[:, 1]
    unbroken = np.empty(len(plain))
    unbroken[np.argsort(plain, kind="stable")] = np.arange(len(plain))
    found: dict[str, Any] = {}
    for way, score in (("as they come", plain), ("rounded", np.round(plain, 2)), ("no ties", unbroken)):
        parts = auroc_auprc_decomposition(y_test, score)
        by_identity = (1 - parts.weight @ parts.auroc_loss, 1 - (1 - parts.prevalence) * parts.weight @ (parts.fpr / parts.firing_rate))
        theirs = (roc_auc_score(y_test, score), average_precision_score(y_test, score))
        ours = ((parts.auroc, by_identity[0]), (parts.auprc, by_identity[1]))
        errors = [max(abs(value - reference) for value in values) for values, reference in zip(ours, theirs, strict=True)]
        found[way] = {"auroc": errors[0], "auprc": errors[1], "tied": 1 - len(np.unique(score)) / len(score)}
    return found


def mistakes(seed: int) -> dict[str, Any]:
    """Every atomic mistake swapped, scored by scikit-learn, and put back."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    rng = generator(seed, SLUG, "mistakes")
    y = rng.permutation(MISTAKE_ROWS) < MISTAKE_PREVALENCE * MISTAKE_ROWS
    score = rng.normal(size=MISTAKE_ROWS) + MISTAKE_SHIFT * y
    found = mistake_leverage(y, score)
    before = np.array([roc_auc_score(y, score), average_precision_score(y, score)])
    gains = np.empty((len(found.pairs), 2))
    for m, pair in enumerate(found.pairs):
        swapped = score.copy()
        swapped[pair] = score[pair[::-1]]
        gains[m] = np.array([roc_auc_score(y, swapped), average_precision_score(y, swapped)]) - before
    scaled = gains[:, 0] * y.sum() * (~y).sum()
    true = np.cumsum(y[np.argsort(-score)])[found.rank - 1]
    closed = true / (found.rank * (found.rank - 1.0)) / y.sum()
    tenth = max(len(closed) // 10, 1)
    return {
        "mistakes": len(closed),
        "auroc_low": float(scaled.min()),
        "auroc_high": float(scaled.max()),
        "auprc_error": float(np.abs(gains[:, 1] - closed).max()),
        "rank_correlation": float(spearmanr(closed, found.rank).statistic),
        "first_over_last": float(closed[:tenth].sum() / closed[-tenth:].sum()),
        "first_tenth": found.first_tenth,
        "gain": (closed / closed.mean()).round(5).tolist(),
    }


def drift(seed: int, arm: str) -> dict[str, Any]:
    """Gain in AUROC within either group when the best mistake is repaired again and again; all are equal to AUROC: one at random."""
    y, score, common = two_groups(seed)
    before = _within(y, score, common)
    rng = generator(seed, SLUG, "auroc")
    repaired = 0
    for _ in range(FIXES):
        found = mistake_leverage(y, score)
        best = int(np.argmax(found.gain_auprc)) if arm == "auprc" else int(rng.integers(len(found.pairs)))
        pair = found.pairs[best]
        score[pair] = score[pair[::-1]]
        repaired += int(common[pair[1]])
    gain = [after - first for after, first in zip(_within(y, score, common), before, strict=True)]
    return {"common": gain[0], "rare": gain[1], "difference": gain[0] - gain[1], "repaired_in_common": repaired / FIXES}


def two_groups(seed: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Labels, scores, and who is in the group with more positives. Scores are the true log-odds of a row in its group."""
    rng = generator(seed, SLUG, "groups")
    common = np.arange(2 * GROUP_ROWS) < GROUP_ROWS
    y = np.concatenate([rng.permutation(GROUP_ROWS) < positives for positives in (COMMON_POSITIVES, RARE_POSITIVES)])
    shift = np.sqrt(2) * norm.ppf(WITHIN_AUROC)  # of N(shift, 1) against N(0, 1)
    prevalence = np.where(common, COMMON_POSITIVES, RARE_POSITIVES) / GROUP_ROWS
    latent = rng.normal(size=2 * GROUP_ROWS) + shift * y
    return y, shift * latent - shift**2 / 2 + np.log(prevalence / (1 - prevalence)), common


def high_prevalence(seed: int, prevalence: float) -> dict[str, Any]:
    """AUPRC and what Theorem 2 makes of the area under ln TPR; None where a negative is on top, and the area is infinite."""
    rng = generator(seed, SLUG, "high", int(1000 * prevalence))
    y = rng.random(HIGH_ROWS) < prevalence
    score = rng.normal(size=HIGH_ROWS) + HIGH_SHIFT * y
    found = auroc_auprc_decomposition(y, score)
    area = log_tpr_auc(y, score)
    approximation = 1 + (1 - found.prevalence) / found.prevalence * area
    return {"auprc": found.auprc, "approximation": approximation if np.isfinite(area) else None}


def select_on_compas(seed: int, data_dir: str | None) -> dict[str, Any]:
    """60 forests on half of the rows, chosen on a quarter by either metric, judged on the last quarter within each group."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import train_test_split

    table = load_from(data_dir, "compas")
    frame = table.frame
    numbers = frame.select("age", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count").to_numpy()
    flags = np.stack([frame["sex"].to_numpy() == "Male", frame["c_charge_degree"].to_numpy() == "F"], axis=1)
    X, y, race = np.hstack([numbers, flags]), frame[table.target].to_numpy() == 1, frame["race"].to_numpy()
    rows = np.arange(len(y))
    train, rest = train_test_split(rows, test_size=0.5, stratify=y, random_state=seed_integer(seed, SLUG, "compas"))
    valid, test = train_test_split(rest, test_size=0.5, stratify=y[rest], random_state=seed_integer(seed, SLUG, "compas"))
    best: dict[str, tuple[float, int, Any]] = {}
    settings = [(depth, leaf, part) for depth in DEPTHS for leaf in LEAVES for part in FEATURES]
    for number, (depth, leaf, part) in enumerate(settings):
        model = RandomForestClassifier(
            TREES, max_depth=depth, min_samples_leaf=leaf, max_features=part, random_state=seed_integer(seed, SLUG, "forest", number)
        ).fit(X[train], y[train])
        score = model.predict_proba(X[rest])[:, 1]
        place = dict(zip(rest.tolist(), score.tolist(), strict=True))
        held, judged = (np.array([place[row] for row in part_of.tolist()]) for part_of in (valid, test))
        found = auroc_auprc_decomposition(y[valid], held)
        for metric in ("auroc", "auprc"):
            value = getattr(found, metric)
            if metric not in best or value > best[metric][0]:
                best[metric] = (value, number, judged)
    result: dict[str, Any] = {"same": best["auroc"][1] == best["auprc"][1]}
    for metric, (_, number, judged) in best.items():
        result[f"{metric}_setting"] = number
        for name in RACES:
            own = race[test] == name
            result[f"{metric}_{name}"] = auroc_auprc_decomposition(y[test][own], judged[own]).auroc
    return result


def _table(data: str, data_dir: str | None) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    if data.startswith("digit "):
        from sklearn.datasets import load_digits

        digits = load_digits()
        return digits.data, digits.target == int(data.removeprefix("digit "))
    table = load_from(data_dir, data)
    return table.frame.drop(table.target).to_numpy(), table.frame[table.target].to_numpy() == table.positive


def _classifier(name: str) -> Any:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if name == "forest":
        return RandomForestClassifier(50, random_state=0)
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000) if name == "logistic" else KNeighborsClassifier(5))


def _within(y: npt.NDArray[np.bool_], score: npt.NDArray[np.float64], common: npt.NDArray[np.bool_]) -> tuple[float, float]:
    return tuple(auroc_auprc_decomposition(y[own], score[own]).auroc for own in (common, ~common))  # type: ignore[return-value]


# ---- what was found ---------------------------------------------------------------------------------------------------------------------

WAYS = ("as they come", "rounded", "no ties")


def _findings(
    identities: Sequence[Row], swaps: Sequence[Row], drifts: Sequence[Row], common: Sequence[Row], compas: Sequence[Row]
) -> list[Finding]:
    claim = {claim.key: claim for claim in CLAIMS}
    worst = max(row[way][metric] for row in identities for way in WAYS for metric in ("auroc", "auprc"))
    tied = max(row["rounded"]["tied"] for row in identities)
    low, high = min(row["auroc_low"] for row in swaps), max(row["auroc_high"] for row in swaps)
    spread = max(high - 1, 1 - low)
    error = max(row["auprc_error"] for row in swaps)
    count = sum(row["mistakes"] for row in swaps)
    found = [
        claim["identity"].holds(
            worst <= IDENTITY_ERROR,
            f"Largest difference to scikit-learn {worst:.1e} over {len(identities)} models, three ways to write their scores, up to "
            f"{tied:.1%} of the rows sharing a score with an earlier one.",
            estimate=worst,
        ),
        claim["mistakes"].holds(
            spread <= AUROC_SPREAD,
            f"{count} swaps: gain in AUROC times positives times negatives within {spread:.1e} of 1.",
            estimate=spread,
            name="AUROC",
        ),
        claim["mistakes"].holds(
            error <= AUPRC_ERROR, f"{count} swaps: gain in AUPRC within {error:.1e} of the closed form.", estimate=error, name="AUPRC"
        ),
    ]
    difference = mean_interval(paired(drifts, "difference", "auprc", "auroc"))
    found.append(
        claim["groups"].above(
            difference,
            0.0,
            f"Guided by AUPRC instead of AUROC, the group with more positives gains {_small(difference)} more in AUROC relative to the "
            f"other; {_mean(drifts, 'repaired_in_common', arm='auprc'):.0%} of the repairs against "
            f"{_mean(drifts, 'repaired_in_common', arm='auroc'):.0%} are its own.",
        )
    )
    ratios = mean_interval([row["first_over_last"] for row in swaps])
    found.append(
        claim["front"].reported(
            ratios,
            f"The first tenth of the mistakes is worth {ratios[0]:.0f} times the last tenth to AUPRC, and "
            f"{np.mean([row['first_tenth'] for row in swaps]):.0%} of all; rank correlation of gain and rank "
            f"{np.mean([row['rank_correlation'] for row in swaps]):.4f}.",
            unit="times",
        )
    )
    skew = mean_interval([row["difference"] for row in rows_where(drifts, arm="auroc")])
    found.append(
        claim["auroc-skew"].reported(
            skew, f"Guided by AUROC the group with more positives gains {_small(skew)} more than the other: not 0."
        )
    )
    for prevalence in HIGH_PREVALENCES:
        rows = [row for row in rows_where(common, prevalence=prevalence) if row["approximation"] is not None]
        if rows:
            off = mean_interval([row["approximation"] - row["auprc"] for row in rows])
            text = f"At {prevalence:.0%} positives the approximation is off by {_small(off)}, where AUPRC is {_mean(rows, 'auprc'):.4f}."
            found.append(claim["log-tpr"].reported(off, text, name=f"{prevalence:.0%} positive"))
        else:
            text = f"At {prevalence:.0%} positives a negative was on top in every draw, and the area is infinite."
            found.append(claim["log-tpr"].reported(None, text, name=f"{prevalence:.0%} positive"))
    return found + _compas_findings(claim["compas"], compas)


def _compas_findings(claim: Claim, compas: Sequence[Row]) -> list[Finding]:
    if not compas:
        return [claim.reported(None, "Left out of a quick run: it needs the COMPAS file.")]
    same = sum(row["same"] for row in compas)
    found = []
    for name in RACES:
        interval = _over_splits([row[f"auprc_{name}"] - row[f"auroc_{name}"] for row in compas])
        text = (
            f"{name}: AUROC {_small(interval)} when chosen by AUPRC instead of AUROC ({len(compas)} splits, {same} with the same choice)."
        )
        found.append(claim.reported(interval, text, name=name))
    gap = _over_splits(
        [(r[f"auprc_{RACES[0]}"] - r[f"auroc_{RACES[0]}"]) - (r[f"auprc_{RACES[1]}"] - r[f"auroc_{RACES[1]}"]) for r in compas]
    )
    text = f"Difference between the two groups: {_small(gap)}; the group with more positives is {RACES[0]}."
    return [*found, claim.reported(gap, text, name="difference")]


def _over_splits(values: Sequence[float]) -> Interval:
    """The corrected resampled t: the splits share rows. A quarter is tested, a half trained on."""
    if len(values) < 2:
        return float(np.mean(values)), float("-inf"), float("inf")
    (estimate,), (se,), df = nadeau_bengio([list(values)], 0.25 / 0.5)
    half = float(t.ppf(0.975, df) * se)
    return float(estimate), float(estimate) - half, float(estimate) + half


def _notes(drifts: Sequence[Row]) -> tuple[str, ...]:
    share = _mean(drifts, "repaired_in_common", arm="auroc")
    return (
        f"AUROC is not neutral, only less skewed: guided by it, {share:.0%} of the repairs went to the group with more positives, which "
        "owns more of the mistakes. Where a group must not be left behind, look at every group alone (make_group_scorer).",
        "That a class is rare is no reason to choose by AUPRC. A single list that is read from the top is one.",
        "AUPRC depends on the prevalence: never average it over groups, folds or sets whose prevalences differ, and show the prevalence "
        "beside it.",
    )


def _mean(rows: Sequence[Row], value: str, **where: Any) -> float:
    return float(np.mean([row[value] for row in rows_where(rows, **where)]))


def _small(interval: Interval) -> str:
    estimate, low, high = interval
    if not np.isfinite([low, high]).all():
        return f"{estimate:+.5f}"
    return f"{estimate:+.5f} ({low:+.5f} to {high:+.5f})"


def _identity_table(rows: Sequence[Row]) -> list[Row]:
    return [
        {"problem": row["data"], "classifier": row["classifier"], "scores": way, "tied rows": round(row[way]["tied"], 4)}
        | {metric.upper(): row[way][metric] for metric in ("auroc", "auprc")}
        for row in rows
        for way in WAYS
    ]


def _drift_table(rows: Sequence[Row]) -> list[Row]:
    columns = ("common", "rare", "difference", "repaired_in_common")
    return [{"guided by": arm.upper()} | {name: _mean(rows, name, arm=arm) for name in columns} for arm in ("auprc", "auroc")]


def _compas_table(rows: Sequence[Row]) -> list[Row]:
    return [{"chosen by": metric.upper()} | {name: _mean(rows, f"{metric}_{name}") for name in RACES} for metric in ("auprc", "auroc")]


def _figure(swap: Row, drifts: Sequence[Row]) -> Figure:
    """What each mistake is worth, from the top down; and whom 50 repairs serve, guided by either metric."""
    from counterpoise.report import _plots as plots

    height, bottom, top = 320, 56, 66
    with plots.style():
        fig = plots.figure(plots.WIDTH, height)
        ax = plots.axes(fig, 66, bottom, 286, height - bottom - top)
        gain = np.asarray(swap["gain"])
        x = np.arange(1, len(gain) + 1) / len(gain)
        ax.axhline(1, color=plots.GRAY, lw=2.4, zorder=2)
        ax.plot(x, gain, "o", ms=4, color=plots.BLUE, mew=0, zorder=3)
        ax.set_yscale("log")
        ax.set_ylabel("times the mean mistake")
        ax.set_xlim(0, 1.02)
        ax.set_xticks([0, 0.5, 1], ["top", "mistakes by rank", "bottom"])
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.annotate(
            "AUPRC", (x[len(gain) // 8], gain[len(gain) // 8]), (10, 8), textcoords="offset points", color=plots.BLUE, weight="bold"
        )
        ax.annotate("AUROC: all alike", (0.62, 1), (0, 8), textcoords="offset points", color=plots.GRAY, weight="bold")
        fig.text(10 / plots.WIDTH, 1 - 14 / height, "What repairing a mistake is worth", va="center", weight="bold")

        right = plots.axes(fig, 488, bottom, plots.WIDTH - 488 - 24, height - bottom - top)
        plots.plain_rows(right, 3)
        right.axvline(0, color=plots.RULE, lw=1.2, zorder=0)
        extra = {arm: [r["difference"] for r in rows_where(drifts, arm=arm)] for arm in ("auprc", "auroc")}
        extra["difference"] = paired(drifts, "difference", "auprc", "auroc")
        for row, (arm, color) in enumerate((("auprc", plots.BLUE), ("auroc", plots.GRAY), ("difference", plots.INK))):
            values = 1000 * np.array(extra[arm])
            estimate, low, high = mean_interval(values)
            plots.row_text(fig, right, row, 388, arm.upper() if row < 2 else arm, color=color, weight="bold")
            right.plot(values, np.full(len(values), row + 0.26), "|", ms=7, mew=1, color=color, alpha=0.7)
            if np.isfinite([low, high]).all():
                right.plot([low, high], [row, row], color=color, lw=3, solid_capstyle="butt")
            right.plot(estimate, row, "o", ms=9, color=color, mec=plots.PAPER, mew=1)
        right.locator_params(axis="x", nbins=5, steps=[1, 2, 5, 10])
        right.set_xlabel("extra AUROC, thousandths")
        fig.text(388 / plots.WIDTH, 1 - 14 / height, f"Whom {FIXES} repairs serve, guided by", va="center", weight="bold")
        words = "right of 0: the group with more positives gains more"
        fig.text(388 / plots.WIDTH, 1 - 36 / height, words, va="center", color=plots.MUTED, fontsize=plots.TEXT - 0.5)
        return fig
