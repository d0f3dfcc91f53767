"""From the columns of a table to the matrix a learner takes, fitted on training rows only.

    raw X --clean--> numbers without gaps, categories as codes --(a remedy draws rows)--> --encode--> one-hot or target-encoded columns

The two steps are apart because resamplers that invent rows (SMOTE) work on cleaned rows: a synthetic row has a category, not 0.4 of one.
Text becomes a block of latent semantic features beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from counterpoise._seeding import generator

__all__ = ["ONE_HOT_LEVELS", "Preprocess"]

ONE_HOT_LEVELS = 20  # categories with more levels are target-encoded
TEXT_TERMS = 5_000
TEXT_COMPONENTS = 100

FloatArray = npt.NDArray[np.floating]


class Preprocess:
    """Imputation (median, with indicators), scaling, one-hot or target encoding, and TF-IDF with truncated SVD for text.

    Args:
        levels: for every column of X the number of its categories, 0 for a numeric column.
        scale: standardise the numeric columns (linear models and nets; trees do not need it).
        task: ``binary``, ``multiclass`` or ``regression``; the target encoder needs it.
        seed: seed of the target encoder's internal folds and of the SVD.
    """

    def __init__(self, levels: Sequence[int], *, scale: bool, task: str, seed: int = 0) -> None:
        self.levels = tuple(int(count) for count in levels)
        self.scale = scale
        self.task = task
        self.seed = seed
        counts = np.asarray(self.levels, dtype=np.int64)
        self._numeric = np.flatnonzero(counts == 0)
        self._one_hot = np.flatnonzero((counts > 0) & (counts <= ONE_HOT_LEVELS))
        self._target = np.flatnonzero(counts > ONE_HOT_LEVELS)
        self._parts: dict[str, Any] = {}

    # -- saving: the fitted scikit-learn parts by name, and what is needed to build the rest anew ---------------------------------------

    def get_config(self) -> dict[str, Any]:
        return {"levels": list(self.levels), "scale": self.scale, "task": self.task, "seed": self.seed}

    def get_parts(self) -> dict[str, Any]:
        return dict(self._parts)

    @classmethod
    def from_parts(cls, parts: dict[str, Any], config: dict[str, Any]) -> Preprocess:
        preprocess = cls(**config)
        preprocess._parts = dict(parts)
        return preprocess

    # -----------------------------------------------------------------------------------------------------------------------------------

    @property
    def cleaned_categorical(self) -> npt.NDArray[np.bool_]:
        """Which columns of the cleaned matrix are category codes; the others are numbers. Order: numeric (with indicators), categories."""
        width = len(self._parts["imputer"].get_feature_names_out()) if "imputer" in self._parts else 0
        return np.arange(width + len(self._one_hot) + len(self._target)) >= width

    def fit(self, X: FloatArray, text: npt.NDArray[np.object_] | None = None) -> tuple[FloatArray, FloatArray | None]:
        """Fit all that does not look at the target on the training rows; returns them cleaned, and their text features."""
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.impute import SimpleImputer
        from sklearn.preprocessing import OneHotEncoder, StandardScaler

        self._parts = {}
        if len(self._numeric):
            numeric = X[:, self._numeric]
            self._parts["imputer"] = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True).fit(numeric)
            if self.scale:
                self._parts["scaler"] = StandardScaler(copy=False).fit(self._filled(numeric)[:, : len(self._numeric)])
        if len(self._one_hot):
            # The levels are those of the whole table, so that a fold without one of them still has its column; nothing of y is used.
            categories = [np.arange(self.levels[column] + 1, dtype=X.dtype) for column in self._one_hot]
            encoder = OneHotEncoder(categories=categories, sparse_output=False, handle_unknown="ignore", dtype=X.dtype)
            self._parts["onehot"] = encoder.fit(self._codes(X, self._one_hot)[:1])
        cleaned = self.clean(X)
        if text is None:
            return cleaned, None
        self._parts["vectorizer"] = TfidfVectorizer(max_features=TEXT_TERMS, sublinear_tf=True, dtype=np.float64)
        return cleaned, self._fit_text(text).astype(X.dtype)

    def fit_encode(self, cleaned: FloatArray, y: npt.NDArray[np.generic], rows: npt.NDArray[np.int64] | None = None) -> FloatArray:
        """Encode the rows a model is fitted on. ``rows`` are their row numbers: equal for copies that a remedy drew, negative for rows it
        invented.

        The target encoder is fitted here, cross-fitted, so that neither a row's own target colors it nor that of its copies. An invented
        row carries the target of its source; it is left out of the fit and gets the code of a real row of its category and class.
        """
        from sklearn.preprocessing import TargetEncoder

        if not len(self._target):
            return self.encode(cleaned)
        kinds = {"binary": "binary", "multiclass": "multiclass", "regression": "continuous"}
        categories = cleaned[:, -len(self._target) :]
        real = np.ones(len(y), dtype=bool) if rows is None or (rows < 0).all() else rows >= 0
        encoder = TargetEncoder(
            target_type=kinds[self.task], cv=_target_folds(y[real], self.task, self.seed, None if rows is None else rows[real])
        )
        coded = encoder.fit_transform(categories[real], y[real]).astype(cleaned.dtype)
        if not real.all():
            classes = np.zeros(len(y), dtype=np.int64) if self.task == "regression" else y.astype(np.int64)
            whole = np.empty((len(y), coded.shape[1]), dtype=cleaned.dtype)
            whole[real] = coded
            whole[~real] = _codes_of_invented(categories, classes, real, coded, encoder.transform(categories[~real]), self.seed)
            coded = whole
        encoder.cv = 5  # the folds have served; without their row numbers the encoder is small and can be saved
        self._parts["target"] = encoder
        return np.hstack([self._encode_known(cleaned), coded])

    def transform(self, X: FloatArray, text: npt.NDArray[np.object_] | None = None) -> FloatArray:
        """Raw rows to the encoded matrix."""
        encoded = self.encode(self.clean(X))
        if text is None:
            return encoded
        return np.hstack([encoded, self._transform_text(text).astype(encoded.dtype)])

    def clean(self, X: FloatArray) -> FloatArray:
        """Numbers imputed and scaled with indicators behind them, then categories as codes (missing or unseen = one code more)."""
        blocks = []
        if len(self._numeric):
            numeric = X if len(self._numeric) == X.shape[1] else X[:, self._numeric]
            filled = self._filled(numeric)
            if "scaler" in self._parts:
                filled[:, : len(self._numeric)] = self._parts["scaler"].transform(filled[:, : len(self._numeric)])
            blocks.append(filled)
        blocks += [self._codes(X, columns) for columns in (self._one_hot, self._target) if len(columns)]
        if len(blocks) == 1:
            return np.asarray(blocks[0])
        return np.hstack(blocks) if blocks else np.empty((len(X), 0), dtype=X.dtype)

    def encode(self, cleaned: FloatArray) -> FloatArray:
        """Cleaned rows (real or synthetic) to the encoded matrix, without text."""
        known = self._encode_known(cleaned)
        if not len(self._target):
            return known
        coded = self._parts["target"].transform(cleaned[:, -len(self._target) :]).astype(cleaned.dtype)
        return np.hstack([known, coded])

    # -----------------------------------------------------------------------------------------------------------------------------------

    def _filled(self, numeric: FloatArray) -> FloatArray:
        """A copy without gaps, with indicators behind; where there is no gap and no indicator, imputing is the identity and is left out."""
        imputer = self._parts["imputer"]
        if not imputer.indicator_.features_.size and not np.isnan(numeric).any():
            return np.array(numeric)
        return np.asarray(imputer.transform(numeric))

    def _codes(self, X: FloatArray, columns: npt.NDArray[np.int64]) -> FloatArray:
        codes = X[:, columns]
        missing = np.asarray(self.levels)[columns].astype(X.dtype)
        return np.where(np.isnan(codes), missing, codes)

    def _encode_known(self, cleaned: FloatArray) -> FloatArray:
        """Numbers as they are, small categories one-hot; without the target-encoded columns at the end."""
        width = cleaned.shape[1] - len(self._one_hot) - len(self._target)
        if not len(self._one_hot):
            return cleaned[:, :width]
        one_hot = self._parts["onehot"].transform(cleaned[:, width : width + len(self._one_hot)])
        return np.hstack([cleaned[:, :width], one_hot])

    def _fit_text(self, text: npt.NDArray[np.object_]) -> FloatArray:
        from sklearn.decomposition import TruncatedSVD

        try:
            terms = self._parts["vectorizer"].fit_transform(text)
        except ValueError:  # only stop words or nothing at all in these rows
            del self._parts["vectorizer"]
            return np.zeros((len(text), 0))
        components = min(TEXT_COMPONENTS, terms.shape[1] - 1)
        if components < 1:
            return np.asarray(terms.todense())
        self._parts["svd"] = TruncatedSVD(components, random_state=self.seed)
        return np.asarray(self._parts["svd"].fit_transform(terms))

    def _transform_text(self, text: npt.NDArray[np.object_]) -> FloatArray:
        if "vectorizer" not in self._parts:
            return np.zeros((len(text), 0))
        terms = self._parts["vectorizer"].transform(text)
        return np.asarray(self._parts["svd"].transform(terms) if "svd" in self._parts else terms.todense())


def _target_folds(y: npt.NDArray[np.generic], task: str, seed: int, rows: npt.NDArray[np.int64] | None) -> Any:
    """Folds in which the target encoder is cross-fitted: five, fewer where a class is rare; copies of a row share a fold."""
    from sklearn.model_selection import KFold, PredefinedSplit, StratifiedKFold

    alone = np.arange(len(y))
    ids = alone if rows is None else np.where(rows < 0, -1 - alone, rows)
    _, first, place = np.unique(ids, return_index=True, return_inverse=True)
    rarest = 0 if task == "regression" else int(np.unique(y[first], return_counts=True)[1].min())
    splitter = KFold(5, shuffle=True, random_state=seed)
    if rarest >= 2:
        splitter = StratifiedKFold(min(5, rarest), shuffle=True, random_state=seed)
    if len(first) == len(y):
        return splitter
    folds = np.empty(len(first), dtype=np.int64)
    for fold, (_, held) in enumerate(splitter.split(first, y[first])):
        folds[held] = fold
    return PredefinedSplit(folds[place])


def _codes_of_invented(
    categories: FloatArray,
    classes: npt.NDArray[np.int64],
    real: npt.NDArray[np.bool_],
    coded: FloatArray,
    otherwise: FloatArray,
    seed: int,
) -> FloatArray:
    """The codes of real rows drawn at random from the same category and class; ``otherwise`` where there is none.

    Not their mean: a value that no real row has would tell trees which rows were invented.
    """
    result = np.array(otherwise, dtype=coded.dtype)
    per_column = coded.shape[1] // categories.shape[1]  # one output per column, or one per class
    cells = categories.astype(np.int64) * (int(classes.max()) + 1) + classes[:, None]
    for column in range(categories.shape[1]):
        known, invented = cells[real, column], cells[~real, column]
        count = np.bincount(known, minlength=int(cells[:, column].max()) + 1)
        start = np.cumsum(count) - count
        found = np.flatnonzero(count[invented])
        at = invented[found]
        drawn = start[at] + (generator(seed, "codes", column).random(len(at)) * count[at]).astype(np.int64)
        outputs = slice(column * per_column, (column + 1) * per_column)
        result[found, outputs] = coded[np.argsort(known, kind="stable")[drawn], outputs]
    return result
