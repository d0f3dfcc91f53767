"""A model of your own in a study: any estimator or pipeline with scikit-learn's manners, and one whose settings are tuned.

python examples/own_learner.py
"""

from sklearn.ensemble import ExtraTreesClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import counterpoise
from counterpoise.studies import Choice, Learner

# The short way: the object itself, with a name. It is cloned for every fit, and a random_state it leaves open is set by the study.
pipeline = make_pipeline(StandardScaler(), SelectKBest(k=10), LogisticRegression(C=0.1))


# The long way: a function that builds the estimator for given settings, and the settings to try.
def build(task, params, seed):
    return ExtraTreesClassifier(n_estimators=10, min_samples_leaf=params["leaf"], random_state=seed)


extra_trees = Learner("extra-trees", build, {"leaf": Choice((1, 5))})

if __name__ == "__main__":
    study = counterpoise.study(
        "breast-cancer",
        learners={"selected": pipeline, "extra-trees": extra_trees},
        remedies=["over", "weights"],
        repeats=1,
        folds=3,
        trials=2,  # both arms of a learner try equally many settings; what has no settings tries other seeds
    )
    print(study.recommendation.summary())
    for row in study.table():
        print(f"{row['learner']:12s} {row['arm']:12s} balanced accuracy {row['metric']['decisions']:.3f}")
    for learner, arm, reason in study.plan.not_applicable:
        print(f"not applicable: {learner}/{arm} ({reason})")
