"""Whether one set of scores ranks better than another on the same rows: a paired bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from counterpoise._errors import check_choice, check_range
from counterpoise._seeding import generator
from counterpoise._stats import Design

from ._curves import aurocs, average_precisions
from ._inputs import BoolArray, FloatArray, read_positive, read_score

__all__ = ["MetricInterval", "paired_metric_ci"]

Values = Callable[[Any, BoolArray, FloatArray], FloatArray]
NAMED: dict[str, Values] = {"roc_auc": aurocs, "average_precision": average_precisions}


class MetricInterval(NamedTuple):
    """(estimate, low, high) of a difference; the interval excludes 0 where the data tell the two apart."""

    estimate: float
    low: float
    high: float


def paired_metric_ci(
    y: Any,
    s1: Any,
    s2: Any,
    metric: str | Callable[[Any, Any], float],
    n_boot: int = 2000,
    stratified: bool = True,
    seed: int = 0,
    *,
    level: float = 0.95,
    pos_label: Any = None,
) -> MetricInterval:
    """How much better the first scores are than the second, metric(y, s1) - metric(y, s2), with its interval.

    Both are scored on the same resamples of the rows (percentile bootstrap), so what makes a sample hard for both cancels. The interval is
    about other rows from the same source and these two fixed models, not about models trained anew; for that, run a study. With fewer than
    about 20 positives it is too narrow.

    Parameters
    ----------
    y : array-like, shape (n,)
        Labels of two classes, as in :func:`auroc_auprc_decomposition`.
    s1, s2 : array-like, shape (n,)
        Scores of the same rows; the scales may differ.
    metric : {"roc_auc", "average_precision"} or callable
        Names are scikit-learn's. A callable is called with labels 0 and 1 and scores, of the rows drawn.
    n_boot : int, default 2000
        Resamples.
    stratified : bool, default True
        Whether the class sizes stay as they are, as where cases and controls were collected. False draws from all rows; a draw without
        one of the classes is left out.
    seed : int, default 0
        Of the resamples.
    level : float, default 0.95
        Coverage.
    pos_label : label, optional
        The positive one.

    Returns
    -------
    MetricInterval
        ``(estimate, low, high)``.

    Raises
    ------
    InputError
        As in :func:`auroc_auprc_decomposition`; for an unknown metric, or fewer than 100 resamples.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> y = rng.random(400) < 0.2
    >>> good, poor = y + rng.normal(size=400), y + 3 * rng.normal(size=400)
    >>> [round(value, 2) for value in paired_metric_ci(y, good, poor, "roc_auc")]
    [0.16, 0.06, 0.25]
    """
    if not callable(metric):
        check_choice("metric", metric, NAMED, "A callable metric(y, score) will do too.")
    check_range("n_boot", n_boot, low=100, integer=True)
    check_range("level", level, low=0.5, high=1.0)
    positive = read_positive(y, pos_label)
    first, second = read_score(s1, len(positive), "s1"), read_score(s2, len(positive), "s2")
    values = _by_rows(metric) if callable(metric) else NAMED[metric]
    whole = np.ones((1, len(positive)))
    estimate = float((values(first, positive, whole) - values(second, positive, whole))[0])
    design = Design(positive if stratified else np.zeros(len(positive), dtype=np.int64))
    draws = []
    for weights in design.resamples(int(n_boot), generator(seed, "paired_metric_ci")):
        drawn = weights[weights[:, positive].any(axis=1) & weights[:, ~positive].any(axis=1)]
        draws.append(values(first, positive, drawn) - values(second, positive, drawn))
    low, high = np.quantile(np.concatenate(draws), [(1 - level) / 2, (1 + level) / 2])
    return MetricInterval(estimate, float(low), float(high))


def _by_rows(metric: Callable[[Any, Any], float]) -> Values:
    """A metric of labels and scores under rows of counts (b, n)."""

    def values(score: Any, positive: BoolArray, weights: FloatArray) -> FloatArray:
        labels = positive.astype(np.int64)
        drawn = (np.repeat(np.arange(len(labels)), counts) for counts in weights.astype(np.int64))
        return np.array([metric(labels[rows], score[rows]) for rows in drawn], dtype=np.float64)

    return values
