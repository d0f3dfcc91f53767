"""A page with everything on it: numbers of the size that a study of a rare class gives, made up but consistent with each other."""

import numpy as np

from counterpoise.report import (
    Alarms,
    AtK,
    Calibration,
    CalibrationCurve,
    DiagnosisPart,
    Difference,
    Expectation,
    GroupRow,
    GroupsTable,
    HeadlineRow,
    QuestionPanel,
    RangeRow,
    RangesTable,
    StudyView,
    ThresholdPanel,
    Undecided,
)

# estimate, half-width per (learner, arm): decisions (balanced accuracy), ranking (AUROC), probabilities (log loss, positive is better)
DIFFERENCES = {
    ("linear", "prior"): ((-0.004, 0.007), (0.0, 0.0), (0.0, 0.0)),
    ("linear", "weights"): ((0.003, 0.011), (0.001, 0.004), (-0.214, 0.012)),
    ("linear", "over"): ((0.002, 0.012), (0.0, 0.004), (-0.217, 0.013)),
    ("linear", "under"): ((-0.006, 0.019), (-0.004, 0.009), (-0.236, 0.031)),
    ("linear", "smote"): ((0.004, 0.013), (0.001, 0.005), (-0.221, 0.014)),
    ("linear", "placebo"): ((-0.001, 0.008), (0.0, 0.003), (0.0001, 0.0008)),
    ("trees", "prior"): ((-0.019, 0.017), (0.0, 0.0), (0.0, 0.0)),
    ("trees", "weights"): ((0.004, 0.023), (-0.008, 0.011), (-0.031, 0.009)),
    ("trees", "over"): ((-0.008, 0.025), (-0.006, 0.014), (-0.024, 0.008)),
    ("trees", "under"): ((0.001, 0.026), (-0.011, 0.017), (-0.264, 0.033)),
    ("trees", "smote"): ((0.031, 0.021), (0.004, 0.015), (-0.013, 0.006)),
    ("trees", "balanced-forest"): ((0.006, 0.027), (0.002, 0.015), (-0.196, 0.02)),
    ("trees", "placebo"): ((-0.007, 0.021), (-0.004, 0.009), (-0.002, 0.003)),
    ("mlp", "prior"): ((-0.006, 0.012), (0.0, 0.0), (0.0, 0.0)),
    ("mlp", "weights"): ((0.003, 0.018), (-0.003, 0.008), (-0.162, 0.016)),
    ("mlp", "focal"): ((-0.002, 0.016), (0.001, 0.007), (-0.071, 0.008)),
    ("mlp", "placebo"): ((0.002, 0.014), (-0.001, 0.006), (-0.001, 0.002)),
}
ABSOLUTE = {"linear": (0.901, 0.923, 0.071), "trees": (0.897, 0.942, 0.052), "mlp": (0.899, 0.938, 0.057)}
STAGES = {
    "prior": "decision",
    "weights": "loss",
    "over": "data",
    "under": "data",
    "smote": "data",
    "balanced-forest": "data",
    "focal": "loss",
    "placebo": "data",
}
QUESTIONS = (
    ("decisions", "Decisions: right and wrong at the tuned threshold", "balanced accuracy", 0.01),
    ("ranking", "Ranking: positives above negatives", "AUROC", 0.005),
    ("probabilities", "Probabilities: as they come, before prior correction", "log loss", 0.0007),
)


def judge(estimate, half, rope):
    low, high = estimate - half, estimate + half
    if half == 0:
        return "identical predictions"
    if -rope < low and high < rope:
        return "no difference"
    return "helps" if low > 0 else "harms" if high < 0 else "undecided"


def sentence(arm, estimate, half, verdict, metric, rope):
    low, high = (f"{value:+.3f}".replace("-", "\N{MINUS SIGN}") for value in (estimate - half, estimate + half))
    return {
        "helps": f"Use it: {arm} raises {metric} by {estimate:.2f} (at least {estimate - half:.2f}).",
        "harms": f"Avoid: makes {metric} worse by about {-estimate:.2g}.",
        "no difference": f"Does not matter: any difference is smaller than {rope:g}. Keep the simpler one.",
        "undecided": f"This data can not tell: between {low} and {high}. Until then keep the baseline.",
        "identical predictions": "Identical predictions: the arm changes nothing here.",
    }[verdict]


def differences():
    found = {}
    for (learner, arm), values in DIFFERENCES.items():
        for (question, _, metric, rope), (estimate, half) in zip(QUESTIONS, values, strict=True):
            verdict = judge(estimate, half, rope)
            found[learner, arm, question] = Difference(
                arm=arm,
                learner=learner,
                estimate=estimate,
                low=estimate - half,
                high=estimate + half,
                verdict=verdict,
                sentence=sentence(arm, estimate, half, verdict, metric, rope),
                provisional=learner != "linear",
                is_placebo=arm == "placebo",
            )
    return found


def headline(found):
    rows = []
    for learner, absolute in ABSOLUTE.items():
        metrics = dict(zip(("balanced accuracy", "AUROC", "log loss"), absolute, strict=True))
        rows.append(
            HeadlineRow("nothing", learner, "", {}, metrics, {"linear": 1.2, "trees": 14.6, "mlp": 88.0}[learner], is_baseline=True)
        )
        at_half = metrics | {"balanced accuracy": absolute[0] - 0.19}
        rows.append(HeadlineRow("nothing@0.5", learner, "", {}, at_half, 1.1, note="shown only"))
        for owner, arm in DIFFERENCES:
            if owner == learner:
                own = {question: found[learner, arm, question] for question, *_ in QUESTIONS}
                values = {
                    "balanced accuracy": absolute[0] + own["decisions"].estimate,
                    "AUROC": absolute[1] + own["ranking"].estimate,
                    "log loss": absolute[2] - own["probabilities"].estimate,
                }
                seconds = {"linear": 1.4, "trees": 17.9, "mlp": 92.0}[learner]
                rows.append(
                    HeadlineRow(arm, learner, STAGES[arm], own, values, seconds, is_recommended=(learner, arm) == ("trees", "smote"))
                )
    return tuple(rows)


def threshold_panel():
    t = np.linspace(-7, 3, 201)
    positive, negative = 260, 10_923
    recall = 1 / (1 + np.exp(1.1 * (t + 1.1)))
    false_rate = 1 / (1 + np.exp(1.5 * (t + 5.0)))
    precision = recall * positive / (recall * positive + false_rate * negative)
    chosen = int(np.argmax(recall + 1 - false_rate))
    true = 100 * precision[chosen]
    return ThresholdPanel(
        arm="smote",
        learner="trees",
        threshold=t,
        precision=precision,
        recall=recall,
        balanced_accuracy=(recall + 1 - false_rate) / 2,
        chosen=float(t[chosen]),
        per_100_alarms=Alarms(true, 100 - true, 100 * (1 - recall[chosen])),
        default=0.0,
        at_k=(AtK(50, 0.86, 0.165), AtK(100, 0.79, 0.304), AtK(260, 0.61, 0.61), AtK(1000, 0.228, 0.877)),
        positive="cancer",
    )


def calibration_part():
    predicted = np.array([0.004, 0.02, 0.06, 0.13, 0.24, 0.37, 0.52, 0.68, 0.83, 0.95])
    count = np.array([9650, 620, 280, 170, 120, 95, 80, 70, 58, 40])
    before = CalibrationCurve("as they come", predicted, np.clip(predicted**1.9 * 0.83, 0, 1), count, 0.065, 0.0141)
    after = CalibrationCurve(
        "after prior correction", predicted, np.clip(predicted * 0.97 + 0.004 * np.sin(9 * predicted), 0, 1), count, 0.051, 0.0121
    )
    return Calibration("smote", "trees", (before, after), "Ten bins of equal width.")


def diagnosis_part():
    return DiagnosisPart(
        headline="Class 'normal' is 97.7 % of the rows and 99.1 % of the step at the start of training.",
        sentences=(
            "Served worst by a plain linear head: class 'cancer', recall 41.2 % at 0.5.",
            "Shares differ by a factor of 110.1, mostly through 'many' (88 % of the spread).",
        ),
        names=("normal", "cancer"),
        counts=np.array([10923, 260]),
        pi=np.array([0.9768, 0.0232]),
        share=np.array([0.991, 0.009]),
        fit_share=np.array([0.5, 0.5]),
        correct=np.array([0.997, 0.412]),
        correct_name="recall",
        loss=np.array([0.021, 2.31]),
    )


def study_view(**changes):
    found = differences()
    panels = tuple(
        QuestionPanel(
            question=question,
            title=title,
            metric=metric,
            rows=tuple(found[learner, arm, question] for learner, arm in DIFFERENCES),
            rope=rope,
            note="AUROC says nothing about the few highest scores; precision and recall at k below do." if question == "ranking" else "",
        )
        for question, title, metric, rope in QUESTIONS
    )
    content = dict(
        title="mammography",
        command="counterpoise study mammography --target class --budget 10m --seed 0 --out runs/mammo",
        recommendation="Use boosted trees with SMOTE and the tuned threshold: balanced accuracy rises by about 0.03 (at least 0.01).",
        reasons=(
            "SMOTE is the only remedy that earned “helps” on decisions. It makes the probabilities worse; prior correction repairs most "
            "of that. If you need probabilities, keep the baseline.",
        ),
        expectation=Expectation(
            "hold-out", "balanced accuracy", 0.912, 0.894, 0.018, -0.002, 0.038, 2236, 52, "not contradicted", "It was opened twice."
        ),
        warnings=("The hold-out was opened a second time, on 2 May, for another recommendation. Its confirmation counts for less.",),
        data="11,183 rows, 6 features, 260 positive (2.3 %): one cancer for every 42 normal rows.",
        questions=panels,
        headline=headline(found),
        metrics=("balanced accuracy", "AUROC", "log loss"),
        diagnosis=diagnosis_part(),
        threshold=threshold_panel(),
        calibration=calibration_part(),
        groups=(
            GroupsTable(
                column="clinic",
                rows=(
                    GroupRow("north", 4180, 103, 0.913, 0.902),
                    GroupRow("south", 3920, 91, 0.868, 0.907),
                    GroupRow("harbor", 2610, 55, 0.745, 0.911, is_worst=True),
                    GroupRow("mobile unit", 473, 11, judged=False),
                ),
                worst=0.745,
                gap=0.168,
                note="The worst of several groups looks worse by chance alone; its interval (0.61 to 0.84) allows for that.",
            ),
        ),
        undecided=(
            Undecided("weights", "trees", "decisions", -0.019, 0.027, 5.3, 1118),
            Undecided("over", "trees", "decisions", -0.033, 0.017, 6.3, 1378),
            Undecided("weights", "linear", "decisions", -0.008, 0.014, 1.4, 104),
        ),
        protocol=(
            ("splits", "5 folds x 5 repeats, stratified, the same for all arms; copies of a row stay in one fold (3,335 copies)"),
            ("hold-out", "20 % of the rows, locked before anything else"),
            ("inside each training fold", "imputing, scaling, encoding, resampling, tuning and the threshold"),
            ("tuning", "8 trials and 3 inner folds for every arm, the baseline included"),
            ("intervals", "row interval, simultaneous over 17 comparisons per question (max-t), 95 %"),
            ("seed", "0"),
        ),
        versions=(
            ("counterpoise", "0.1.0"),
            ("scikit-learn", "1.9.1"),
            ("imbalanced-learn", "0.14.2"),
            ("torch", "2.13.0"),
            ("numpy", "2.4.6"),
        ),
        notices=("3,335 rows are exact copies of an earlier row.", "Column 'scan_date' was dropped: dates need --time or --keep."),
        not_applicable=(("linear", "balanced-forest", "a forest is compared with the plain forest of the same size"),),
        failed=(("mlp", "smote", "ValueError: Expected n_neighbors <= n_samples_fit, but n_neighbors = 6, n_samples_fit = 4"),),
        footer="Made by counterpoise 0.1.0 on 2 May 2026.",
    )
    return StudyView(**(content | changes))


def regression_view():
    rows = (
        Difference("weights", "linear", -310.0, -540.0, -80.0, "harms", "Avoid: makes the error worse by about 310."),
        Difference("weights", "trees", 120.0, -260.0, 500.0, "undecided", "This data can not tell: between -260 and +500."),
        Difference("placebo", "trees", -40.0, -190.0, 110.0, "no difference", "Does not matter.", is_placebo=True),
    )
    panel = QuestionPanel("error", "Error: how far off predictions are", "mean absolute error", rows, rope=480.0, unit="dollars")
    return StudyView(
        title="california housing",
        command="counterpoise study california-housing --target price",
        recommendation="Keep boosted trees as they are.",
        questions=(panel,),
        headline=(
            HeadlineRow("nothing", "trees", values={"MAE": 31_240.0}, seconds=12.0, is_baseline=True, is_recommended=True),
            HeadlineRow("weights", "trees", "loss", {"error": rows[1]}, {"MAE": 31_120.0}, 13.0),
        ),
        metrics=("MAE",),
        primary="error",
        expectation=Expectation(
            "bias-corrected cross-validation", "mean absolute error", value=31_300.0, note="An upper limit of what to hope for."
        ),
        data="20,640 rows, 8 features, a continuous target.",
        ranges=RangesTable(
            (
                RangeRow("many", "100,000 to 250,000", 14_020, 22_300.0, 1_150.0, 22_250.0),
                RangeRow("medium", "250,000 to 400,000", 5_100, 44_900.0, -9_800.0, 44_700.0),
                RangeRow("few", "400,000 to 500,001", 1_520, 91_200.0, -61_000.0, 91_900.0),
            ),
            unit="dollars",
        ),
    )
