"""What is trained: linear models, boosted trees, a net, a forest - or any scikit-learn estimator of the user's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from counterpoise._errors import InputError, bad_input, check_choice

if TYPE_CHECKING:
    from torch import nn

__all__ = ["BUILT_IN", "Choice", "Learner", "Range", "as_learner", "space_json"]


@dataclass(frozen=True)
class Range:
    """A number to tune: ``low`` to ``high``, on a log scale if ``log``, ``default`` where nothing is tuned (a budget of one trial)."""

    low: float
    high: float
    default: Any
    log: bool = False
    integer: bool = False


@dataclass(frozen=True)
class Choice:
    """One of a few values; the first is the default."""

    options: tuple[Any, ...]

    @property
    def default(self) -> Any:
        return self.options[0]


Space = Mapping[str, Range | Choice]


def space_json(space: Space) -> str:
    return json.dumps({name: repr(dimension) for name, dimension in sorted(space.items())})


@dataclass(frozen=True)
class Learner:
    """A model family under one name.

    ``build(task, params, seed)`` returns an unfitted estimator; ``params`` holds a value for every dimension of ``space``. Nets
    (``takes_loss``) are also given ``loss``, ``max_steps`` and what a remedy changes in the net.
    """

    name: str
    build: Callable[..., Any]
    space: Space = field(default_factory=dict)
    scale: bool = False
    takes_loss: bool = False
    takes_weights: bool = True
    code_version: str = "1"
    about: str = ""


def _linear(task: str, params: Mapping[str, Any], seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    if task == "regression":
        return Ridge(alpha=1.0 / params["C"])
    return LogisticRegression(C=params["C"], max_iter=1000)


def _trees(task: str, params: Mapping[str, Any], seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    return kind(
        learning_rate=params["learning_rate"],
        max_leaf_nodes=params["max_leaf_nodes"],
        l2_regularization=params["l2_regularization"],
        early_stopping=False,
        random_state=seed,
    )


def _mlp(
    task: str, params: Mapping[str, Any], seed: int, *, loss: nn.Module | None = None, max_steps: int | None = None, **options: Any
) -> Any:
    from counterpoise import engines

    kind = "Regressor" if task == "regression" else "Classifier"
    options |= {"lr": params["lr"], "weight_decay": params["weight_decay"], "max_steps": max_steps, "random_state": seed}
    if "penalty" in options:  # of dependence on protected attributes, beside the usual loss
        return getattr(engines, f"FairPenalty{kind}")(**options)
    return getattr(engines, f"MLP{kind}")(loss=loss, **options)


def _forest(task: str, params: Mapping[str, Any], seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(n_estimators=FOREST_SIZE, random_state=seed)


FOREST_SIZE = 100  # scikit-learn's and imbalanced-learn's default

BUILT_IN: dict[str, Learner] = {
    "linear": Learner(
        "linear",
        _linear,
        {"C": Range(1e-3, 1e2, 1.0, log=True)},
        scale=True,
        about="LogisticRegression / Ridge on standardised columns",
    ),
    "trees": Learner(
        "trees",
        _trees,
        {
            "learning_rate": Range(0.02, 0.3, 0.1, log=True),
            "max_leaf_nodes": Range(7, 63, 31, integer=True),
            "l2_regularization": Range(1e-3, 10.0, 0.0, log=True),
        },
        about="HistGradientBoosting, early stopping off",
    ),
    "mlp": Learner(
        "mlp",
        _mlp,
        {"lr": Range(3e-4, 3e-2, 1e-3, log=True), "weight_decay": Range(1e-6, 1e-2, 1e-6, log=True)},
        scale=True,
        takes_loss=True,
        about="two hidden layers of 64, Adam, equal steps for every arm",
    ),
    "forest": Learner("forest", _forest, about="RandomForest of 100 trees, the yardstick of the balanced forest"),
}


def as_learner(value: Any, name: str | None = None) -> Learner:
    """A built-in learner by name, a :class:`Learner`, or any scikit-learn estimator or pipeline (its search space is empty)."""
    if isinstance(value, Learner):
        return value
    if isinstance(value, str):
        check_choice("learners", value, list(BUILT_IN), "Your own scikit-learn estimator is passed as an object, from Python.")
        return BUILT_IN[value]
    if not hasattr(value, "fit") or not hasattr(value, "get_params"):
        bad_input("learners", type(value).__name__, "a name, a Learner, or a scikit-learn estimator with fit and get_params")
    return _users(value, name or type(value).__name__)


def _users(estimator: Any, name: str) -> Learner:
    from sklearn.base import clone
    from sklearn.utils.validation import has_fit_parameter

    if name in BUILT_IN:
        raise InputError(
            f"learners: the name {name!r} is taken by a built-in learner; give yours another: learners={{'my-{name}': estimator}}."
        )

    def build(task: str, params: Mapping[str, Any], seed: int) -> Any:
        copy = clone(estimator)
        seeded = {key: seed for key, value in copy.get_params().items() if key.endswith("random_state") and value is None}
        return copy.set_params(**seeded)

    return Learner(
        name, build, takes_weights=has_fit_parameter(estimator, "sample_weight"), code_version=repr(estimator), about=repr(estimator)
    )
