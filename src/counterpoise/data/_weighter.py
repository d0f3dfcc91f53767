r"""Sample weights from the likelihood of appearance (DatasetEquity, arXiv:2308.09878): what looks rare counts more, without labels.

What is unbalanced: rows that look common (highway in sunshine) outweigh those that look rare (night, snow) *inside* the same classes, where
class counts do not see it. Rows are clustered by how they look; with the relative size :math:`p_i` of a row's cluster,

.. math:: w_i = \frac{\eta + (1 - p_i)^\gamma}{\eta + 1} .
"""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils import Tags, check_array, get_tags
from sklearn.utils.validation import _check_feature_names_in, check_is_fitted, validate_data

from counterpoise._errors import bad_input, check_choice, check_range, listing
from counterpoise._likelihood import ETA, GAMMA, check_likelihood, check_strength, cluster_likelihood, dequity, mean_scale

from ._checks import check_names, check_squares, naming_text
from ._clusters import METHODS, Clusters, find_clusters
from ._tables import names_of, plain_table

__all__ = ["LikelihoodWeighter"]


class LikelihoodWeighter(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    r"""Weights of rows by how rare their appearance is, for any estimator that takes ``sample_weight``.

    1. Embeddings: ``X`` itself, or what ``encoder`` makes of it; columns are standardized and reduced to ``n_components`` by PCA.
    2. Clusters: DBSCAN by default. With N rows and :math:`n_k` of them in cluster k, the likelihood of its rows is :math:`p = n_k / N`.
    3. Weights :math:`w = (\eta + (1 - p)^\gamma) / (\eta + 1)`, scaled to mean 1.

    Weights of two rows differ at most by the factor :math:`(\eta + 1) / \eta`, 2 by default. Many small clusters make every p small and all
    weights equal: look at :func:`counterpoise.diagnostics.appearance_clusters` before training, and at its exemplars, since rare may mean
    garbage. Fit on training rows only.

    Parameters
    ----------
    encoder : transformer or callable, optional
        A scikit-learn transformer, which is cloned and fitted on ``X``, or a function from ``X`` to embeddings (n, d), an array or a
        tensor: a pre-trained network in evaluation mode. Default: ``X`` holds the embeddings.
    method : {"dbscan", "hdbscan", "kmeans"}, default "dbscan"
        How clusters are found. The first two leave rows that belong nowhere as noise (label -1).
    n_components : int or None, default 16
        Dimensions kept by PCA; None keeps all.
    standardize : bool, default True
        Whether columns are scaled to variance 1. Leave it off where they share a unit that matters, such as pixels.
    eps : float, optional
        Radius of DBSCAN, in the space of the reduced embeddings. Default: the knee of the curve of the sorted distances to the
        ``min_samples``-th neighbor, looked for among its upper half.
    min_samples : int, default 5 (scikit-learn's)
        Rows within ``eps``, itself included, that make a row a core point of DBSCAN; smallest cluster of HDBSCAN.
    n_clusters : int, default 8 (scikit-learn's)
        Clusters of k-means.
    noise : {"pooled", "singleton"}, default "pooled"
        Likelihood of noise: as if it were one cluster, or 1 / N for every row.
    eta : float >= 0, default 1.0 (the authors' code)
        Caps the ratio of two weights at :math:`(\eta + 1) / \eta`. The authors' scripts also use 0.3 and 0.5.
    gamma : float >= 0, default 5.0 (the authors' code)
        How fast the weight falls as a cluster grows; 0 gives equal weights. The authors' scripts also use 2.0.
    normalize : {"mean", "none"}, default "mean"
        Whether weights are scaled to mean 1. The paper's are not, which makes its learning rate smaller in effect.
    max_samples : int, default 5000
        Rows that PCA and clusters are fitted on; where there are more, as many are drawn and the others assigned, so a group needs more
        than ``min_samples`` rows among those drawn to be seen. Time grows with its square, memory does not.
    random_state : int, Generator or None, default None
        Draws the rows, and starts k-means and a randomized PCA. Up to ``max_samples`` rows with DBSCAN or HDBSCAN, nothing depends on it
        but the signs of a randomized PCA.

    Attributes
    ----------
    labels_ : array of int64, shape (n,)
        Cluster of each row, 0 the largest; -1 is noise.
    likelihood_ : array of float64, shape (n,)
        Relative size of the cluster.
    sample_weight_ : array of float64, shape (n,)
        The weights.
    eps_ : float or None
        Radius in use (DBSCAN).
    encoder_ : transformer, callable or None
        The fitted encoder.
    n_features_in_, feature_names_in_
        Of ``X``, where it is a table.

    Raises
    ------
    InputError
        If an embedding is not finite (the row is named) or its square overflows (the column is named), there are fewer than two rows, a
        parameter is out of its range, or ``eta = 0`` and all rows look alike, so that all weights would be 0.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X = np.concatenate([rng.normal(0, 1, (180, 2)), rng.normal(9, 0.5, (20, 2))])
    >>> weighter = LikelihoodWeighter().fit(X)
    >>> weighter.sample_weight_[[0, -1]].round(2)
    array([0.93, 1.47])
    >>> weighter.predict([[0.0, 0.5], [9.0, 9.0], [50.0, 50.0]])
    array([ 0,  1, -1])
    """

    labels_: npt.NDArray[np.int64]
    likelihood_: npt.NDArray[np.float64]
    sample_weight_: npt.NDArray[np.float64]
    eps_: float | None

    def __init__(
        self,
        encoder: Any = None,
        *,
        method: Literal["dbscan", "hdbscan", "kmeans"] = "dbscan",
        n_components: int | None = 16,
        standardize: bool = True,
        eps: float | None = None,
        min_samples: int = 5,
        n_clusters: int = 8,
        noise: Literal["pooled", "singleton"] = "pooled",
        eta: float = ETA,
        gamma: float = GAMMA,
        normalize: Literal["mean", "none"] = "mean",
        max_samples: int = 5000,
        random_state: int | np.random.Generator | None = None,
    ) -> None:
        self.encoder = encoder
        self.method = method
        self.n_components = n_components
        self.standardize = standardize
        self.eps = eps
        self.min_samples = min_samples
        self.n_clusters = n_clusters
        self.noise = noise
        self.eta = eta
        self.gamma = gamma
        self.normalize = normalize
        self.max_samples = max_samples
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find the clusters of ``X``, shape (n, d) or whatever the encoder takes, and the weights of its rows; ``y`` is not used."""
        self._fit(X)
        return self

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Cluster of each row, shape (n,): that of the nearest core point; -1 where none is near enough."""
        check_is_fitted(self)
        embeddings = self._embed(X, reset=False)
        return self._clusters.assign(self._clusters.reduce(embeddings))

    def transform(self, X: Any) -> npt.NDArray[np.float64]:
        """Likelihood and weight of each row, shape (n, 2), on the scale of the training rows; noise where none was is as rare as can be."""
        labels = self.predict(X)
        p = self._likelihoods[labels]
        return np.stack([p, dequity(p, self.eta, self.gamma) * self._scale], axis=1)

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Names of the two columns of :meth:`transform`."""
        check_is_fitted(self)
        _check_feature_names_in(self, input_features)
        return np.array(["likelihood", "sample_weight"], dtype=object)

    def _fit(self, X: Any) -> npt.NDArray[np.float64]:
        """As :meth:`fit`; returns the reduced rows, which the diagnosis looks at."""
        self._check_parameters()
        self.encoder_ = clone(self.encoder).fit(X) if hasattr(self.encoder, "transform") else self.encoder
        embeddings = self._embed(X, reset=True)
        clusters, reduced, labels = find_clusters(
            embeddings,
            method=self.method,
            n_components=self.n_components,
            standardize=self.standardize,
            eps=self.eps,
            min_samples=self.min_samples,
            n_clusters=self.n_clusters,
            max_samples=self.max_samples,
            rng=np.random.default_rng(self.random_state),
        )
        likelihoods = cluster_likelihood(labels, self.noise)
        p = likelihoods[labels]  # noise, -1, is the last entry
        check_likelihood(p, self.eta, self.gamma)
        raw = dequity(p, self.eta, self.gamma)
        if not raw.mean() >= np.finfo(np.float64).tiny:
            bad_input("gamma", self.gamma, f"less, since with eta={self.eta:g} all weights come out as 0", "Or raise eta.")
        self._clusters: Clusters = clusters
        self._likelihoods = likelihoods
        self._scale = mean_scale(raw) if self.normalize == "mean" else 1.0
        self.labels_, self.likelihood_, self.eps_ = labels, p, clusters.eps
        self.sample_weight_ = raw * self._scale
        return reduced

    def _embed(self, X: Any, reset: bool) -> npt.NDArray[Any]:
        """Finite embeddings (n, d)."""
        rules: dict[str, Any] = {"dtype": [np.float64, np.float32], "ensure_all_finite": False, "ensure_min_samples": 2 if reset else 1}
        embeddings: npt.NDArray[Any]
        if self.encoder_ is None:
            X = plain_table(X)
            check_names(X)
            with naming_text(X, "Encode it first, or pass an encoder that does."):
                embeddings = validate_data(self, X, reset=reset, **rules)
            names = names_of(X if hasattr(X, "columns") else embeddings)
        else:
            encode = getattr(self.encoder_, "transform", self.encoder_)
            embeddings = check_array(plain_table(encode(X)), input_name="embeddings", **rules)
            names = names_of(embeddings)
            for name in ("n_features_in_", "feature_names_in_"):
                if hasattr(self.encoder_, name):
                    setattr(self, name, getattr(self.encoder_, name))
        rows = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if len(rows):
            kind = "NaN" if np.isnan(embeddings[rows[0]]).any() else "inf"
            bad_input("X", f"{kind} in row {listing(rows)}", "finite embeddings", "Impute these rows, or leave them out.")
        check_squares(embeddings, names, terms=embeddings.size, dtype=np.float64)  # variances are sums over all rows, in double
        return embeddings

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        if hasattr(self.encoder, "transform"):
            tags.input_tags = get_tags(self.encoder).input_tags
        return tags

    def _check_parameters(self) -> None:
        if not (self.encoder is None or hasattr(self.encoder, "transform") or callable(self.encoder)):
            bad_input("encoder", type(self.encoder).__name__, "a scikit-learn transformer, or a function from X to embeddings (n, d)")
        check_choice("method", self.method, METHODS)
        check_choice("noise", self.noise, ("pooled", "singleton"))
        check_choice("normalize", self.normalize, ("mean", "none"))
        check_strength(self.eta, self.gamma)
        if self.n_components is not None:
            check_range("n_components", self.n_components, low=1, integer=True)
        if self.eps is not None:
            check_range("eps", self.eps, low=0, open_low=True)
        check_range("min_samples", self.min_samples, low=1, integer=True)
        check_range("n_clusters", self.n_clusters, low=1, integer=True)
        check_range("max_samples", self.max_samples, low=2, integer=True)
