"""A remedy of your own in a study: what it takes is one method.

    python examples/own_remedy.py

The idea to be tested: majority rows that a quick model finds trivial teach nothing, so leave half of them out. Is it better than doing
nothing, than weights, than thinning the majority as imbalanced-learn does? The study answers; the remedy only says which rows to train on.
"""

from dataclasses import dataclass

import numpy as np
from imblearn.under_sampling import TomekLinks
from sklearn.linear_model import LogisticRegression

import counterpoise
from counterpoise.studies import Draw, Range, Remedy


@dataclass(frozen=True)
class SkipEasy(Remedy):
    """Leaves out a share of the majority rows: those a logistic model is surest about."""

    def draw(self, training, params, seed):
        # ``training`` holds the rows of this one fit: X without gaps, y as codes (1 = the rarer class). Test rows never come here.
        confidence = LogisticRegression(max_iter=1000).fit(training.X, training.y).decision_function(training.X)
        majority = np.flatnonzero(training.y == 0)
        easiest = majority[np.argsort(confidence[majority])]
        skipped = easiest[: round(params["share"] * len(majority))]
        return Draw(np.setdiff1d(np.arange(len(training.y)), skipped))


# ``space`` lists what can be tuned, with the value used when nothing is. ``stage`` says where in a training step it acts:
# "data" draws rows (the method ``draw``), "loss" weighs them (``weights``), "model" replaces the estimator (``estimator``).
skip_easy = SkipEasy("skip-easy", "data", "majority rows that are no question", space={"share": Range(0.1, 0.9, 0.5)}, needs_rows=True)

if __name__ == "__main__":
    study = counterpoise.study(
        "breast-cancer",
        learners=["linear"],
        remedies=[skip_easy, TomekLinks(), "weights"],  # yours, one of imbalanced-learn, and one that comes built in
        repeats=2,
    )
    print(study.recommendation.summary())
    for verdict in study.verdicts("probabilities"):
        print(f"{verdict.arm:12s} {verdict.sentence()}")
    print(study.results.select("remedy", "repeat", "fold", "auroc", "log_loss", "fits").filter(study.results["remedy"] == "skip-easy"))
