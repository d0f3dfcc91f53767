"""Small tables and small studies for the tests of a study, and the loop a data scientist would write by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

import counterpoise
from counterpoise.studies import Study

FloatArray = npt.NDArray[np.float64]

BY_TIME = ["seconds", "cpu_seconds", "peak_rss_mb"]  # columns of the results that no seed fixes


def small_study(data: Any, *args: Any, out: Path, **options: Any) -> Study:
    """One learner, one remedy, one repeat, one process, unless told otherwise."""
    return counterpoise.study(data, *args, out=out, **({"learners": "linear", "remedies": ["weights"], "repeats": 1, "jobs": 1} | options))


def numbers(n: int = 240, positives: int = 60, columns: int = 4, seed: int = 0) -> pl.DataFrame:
    """Numbers ``x0`` ..., of which the first two tell something about ``y`` ("yes" is rarer)."""
    rng = np.random.default_rng(seed)
    y = np.zeros(n, dtype=bool)
    y[rng.permutation(n)[:positives]] = True
    X = rng.normal(size=(n, columns))
    X[:, 0] += 1.2 * y
    X[:, 1] -= 0.8 * y
    return pl.DataFrame({f"x{j}": X[:, j] for j in range(columns)} | {"y": np.where(y, "yes", "no")})


def mixed(n: int = 300, seed: int = 0) -> pl.DataFrame:
    """Numbers with gaps, categories with gaps, a category of 60 levels, short texts, a target."""
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.3
    amount = rng.normal(size=n) + y
    amount[rng.random(n) < 0.15] = np.nan
    color = rng.choice(np.array(["red", "green", "blue"], dtype=object), n)
    color[y & (rng.random(n) < 0.5)] = "red"
    color[rng.random(n) < 0.1] = None
    shop = rng.integers(0, 60, n)
    words = np.array(["late", "broken", "fine", "great", "slow", "blue", "warm", "round", "parcel", "shop", "again", "never"])
    text = [" ".join(rng.choice(words[:6] if flag else words[4:], 8)) + f" {i}" for i, flag in enumerate(y)]
    return pl.DataFrame(
        {
            "amount": pl.Series(amount, nan_to_null=True),
            "age": rng.integers(18, 90, n),
            "color": color.tolist(),
            "shop": [f"shop {code}" for code in shop],
            "note": text,
            "y": np.where(y, "yes", "no"),
        }
    )


def outer(study: Study) -> list[tuple[int, int, Any, Any]]:
    """(repeat, fold, training rows, test rows) in the order of the results."""
    splits = study.splits
    return [
        (repeat, fold, splits.train_index(repeat, fold), splits.test_index(repeat, fold))
        for repeat in range(study.plan.repeats)
        for fold in range(study.protocol.folds)
    ]


def cells(study: Study, remedy: str = "nothing", learner: str | None = None) -> pl.DataFrame:
    """The finished cells of one arm, by repeat and fold."""
    frame = study.results.filter((pl.col("remedy") == remedy) & (pl.col("drop") == -1))
    return (frame if learner is None else frame.filter(pl.col("learner") == learner)).sort("repeat", "fold")


def threshold_by_hand(y: npt.NDArray[Any], score: FloatArray) -> float:
    """All midpoints tried one by one: the middle of the (first) longest run of the best balanced accuracy."""
    ordered = np.unique(score)
    candidates = [ordered[0] - 1, *((ordered[1:] + ordered[:-1]) / 2), ordered[-1] + 1]
    values = np.array([((score > candidate)[y == 1].mean() + (score <= candidate)[y == 0].mean()) / 2 for candidate in candidates])
    best = np.append(values >= values.max() - 1e-12, False)
    runs: list[list[int]] = [[]]
    for position, good in enumerate(best):
        if good:
            runs[-1].append(position)
        elif runs[-1]:
            runs.append([])
    longest = max(runs, key=len)
    return float(candidates[longest[(len(longest) - 1) // 2]])


def equal_results(first: pl.DataFrame, second: pl.DataFrame, keys: Sequence[str] = ("learner", "remedy", "drop", "repeat", "fold")) -> bool:
    """Whether two tables of results say the same but for the times."""
    drop = [name for name in BY_TIME if name in first.columns]
    return first.drop(drop).sort(keys).equals(second.drop(drop).sort(keys), null_equal=True)
