r"""First values of a layer that decides for every anchor, pixel or token (Chen et al. 2019, arXiv:1909.04868, "optimal bias").

What is unbalanced: with a thousand background anchors per object and all scores at 1/2, background makes nearly all of the first gradients.
Let :math:`\pi` be the mean of the labels of one sigmoid. The sum of its cross-entropy over all anchors has the derivative
:math:`\sum (\sigma(b) - y)` with respect to a bias b, which is 0 at

.. math:: \sigma(b) = \pi, \qquad b = -\log \frac{1 - \pi}{\pi} .

So nothing pulls at the bias in the first step, and no anchor has to be left out. For a softmax the same holds at
:math:`b_c = \log \pi_c`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch import distributed as dist

from counterpoise._dist import all_reduce_sum, world_size
from counterpoise._errors import bad_input, check_choice, check_range, listing

__all__ = ["Prior", "estimate_prior", "prior_bias_"]

Layer = TypeVar("Layer", bound=nn.Module)
Labels = Tensor | npt.NDArray[Any] | Sequence[Any]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Prior:
    """How often each class occurs among all labels that are not ignored.

    Attributes:
        per_class: (C,) float64, share of each foreground class: the mean label of its sigmoid.
        foreground: their sum, the share of labels that are not background.
        counts: (C + 1,) int64, how often each label value occurs, background included; (C,) if there is none.
        shares: float64, the same as shares, which sum to 1 (after smoothing): the prior of a softmax.
    """

    per_class: Tensor
    foreground: float
    counts: Tensor
    shares: Tensor

    @property
    def mean(self) -> float:
        """One number for all C sigmoids, foreground / C, as in the paper."""
        return self.foreground / len(self.per_class)


def estimate_prior(
    labels: Iterable[Labels],
    num_classes: int,
    ignore_index: int = -1,
    background: int | None = 0,
    process_group: Any = None,
    *,
    min_count: int = 0,
) -> Prior:
    """Count the labels of a training set: one pass, no forward pass of a network.

    Parameters
    ----------
    labels : iterable of integer arrays or tensors of any shape, or one of them
        What the loss will see: labels of anchors *after matching*, of pixels, of tokens, one item per image or batch.
    num_classes : int >= 1
        C, the number of foreground classes; 1 for objectness.
    ignore_index : int, default -1
        The label of anchors that take no part in the loss. (Token classification in transformers has -100.)
    background : int or None, default 0
        The label of background. The other labels of 0..C are the foreground classes, in their order; the last one, C, is background in
        some detectors. None: the labels are the classes 0..C-1, and there is no background.
    process_group : torch.distributed.ProcessGroup, optional
        Processes that each count a part of the set; by default all of them, where torch.distributed is in use. Counts are summed before
        they are divided, so parts may differ in size.
    min_count : int >= 0, default 0
        Smoothing: a label value that occurs less often counts as this often.

    Raises
    ------
    InputError
        If a label is not an integer in 0..C, a class does not occur (unless ``min_count`` is set), or nothing is labeled.

    Examples
    --------
    >>> images = [torch.tensor([[0, 0, 1], [0, -1, 0]]), torch.tensor([[0, 2, 0], [0, 0, 2]])]
    >>> prior = estimate_prior(images, num_classes=2)
    >>> prior.counts, round(prior.foreground, 3), round(prior.mean, 3)
    (tensor([8, 1, 2]), 0.273, 0.136)
    >>> prior_bias_(nn.Conv2d(16, 2, 1), prior.per_class).bias.detach()
    tensor([-2.3026, -1.5041])
    """
    check_range("num_classes", num_classes, low=1, integer=True)
    check_range("ignore_index", ignore_index, integer=True)
    check_range("min_count", min_count, low=0, integer=True)
    n_labels = num_classes if background is None else num_classes + 1
    if background is not None:
        check_range("background", background, low=0, high=num_classes, integer=True)
    if 0 <= ignore_index < n_labels:
        bad_input("ignore_index", ignore_index, f"a number outside the labels 0..{n_labels - 1}")

    counts = torch.zeros(n_labels, dtype=torch.int64)
    for item in [labels] if isinstance(labels, (Tensor, np.ndarray)) else labels:
        counts += _count(item, n_labels, ignore_index)
    counts = _sum_over_processes(counts, process_group)

    classes = [label for label in range(n_labels) if label != background]
    missing = [label for label in classes if not counts[label]]
    total = int(counts.sum())
    if not total or (missing and not min_count):
        found = f"no label of class {listing(missing)} among {total:,}"
        hint = "min_count=1 counts every class at least once."
        if background == 0 and missing == [n_labels - 1]:
            hint += " A classifier without a background class, with labels 0..K-1, takes background=None."
        bad_input("labels", found, "labels of every class", hint if total else "")
    smoothed = counts.clamp(min=min_count).double()
    shares = smoothed / smoothed.sum()
    per_class = shares[classes]
    return Prior(per_class, float(per_class.sum()), counts, shares)


def prior_bias_(module: Layer, prior: float | Tensor | Sequence[float] | Prior, link: Literal["sigmoid", "softmax"] = "sigmoid") -> Layer:
    r"""Set the bias of a classifying layer, in place, so that before training it predicts the prior.

    Sigmoid: :math:`b = \log \pi - \log(1 - \pi)`. Softmax: :math:`b_c = \log \pi_c`. The weights are left alone; in a new layer they
    should be small (the paper draws them from :math:`N(0, 0.01^2)`), or they drown the bias. One call for each layer that classifies.

    Parameters
    ----------
    module : torch.nn.Linear or a convolution, with a bias
        Its outputs are the logits.
    prior : float, tensor of shape (C,), or Prior
        What :func:`estimate_prior` returned; or numbers in (0, 1): the share of each class among all that the loss counts, such as
        ``estimate_prior(...).per_class`` or ``.mean``. A convolution with several anchors per place, A C outputs with the classes of an
        anchor side by side, takes (C,) too. A softmax needs the share of every class, background included: ``estimate_prior(...).shares``.
    link : {"sigmoid", "softmax"}, default "sigmoid"

    Returns
    -------
    module
        The same object.

    Raises
    ------
    InputError
        If there is no bias, a prior lies outside (0, 1), or their number does not fit the bias.

    Notes
    -----
    A prior of 1e-5 makes the bias -11.5, of whose sigmoid half precision keeps few digits: use losses that take logits.

    Examples
    --------
    >>> prior_bias_(nn.Linear(4, 3), 0.01).bias.detach()
    tensor([-4.5951, -4.5951, -4.5951])
    >>> prior_bias_(nn.Linear(4, 2), [0.9, 0.1], link="softmax")(torch.zeros(4)).softmax(0).detach()
    tensor([0.9000, 0.1000])
    """
    check_choice("link", link, ("sigmoid", "softmax"))
    if not isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        bad_input("module", type(module).__name__, "a torch.nn.Linear or a convolution", "Pass the layer that makes the logits.")
    if module.bias is None:
        bad_input("module", f"{type(module).__name__} without a bias", "a layer with a bias", "Create it with bias=True.")
    if isinstance(prior, Prior):
        prior = prior.shares if link == "softmax" else prior.per_class
    shares = prior.detach().cpu().double() if isinstance(prior, Tensor) else torch.tensor(prior, dtype=torch.float64)
    if shares.ndim > 1:
        bad_input("prior", f"shape {tuple(shares.shape)}", "a number or one per class, shape (C,)")
    if link == "softmax" and (shares.ndim == 0 or len(shares) < 2):
        bad_input("prior", shares.tolist(), "one share per class for a softmax", "The same bias for all classes would change nothing.")
    allowed = (shares > 0) & (shares < 1)
    if not bool(allowed.all()):
        bad_input("prior", shares[~allowed].flatten()[0].item(), "shares in (0, 1)", "estimate_prior counts them.")
    outputs = len(module.bias)
    anchors, rest = divmod(outputs, shares.numel())
    if shares.ndim and (rest or (anchors > 1 and isinstance(module, nn.Linear))):
        fitting = f"{outputs} shares, one per output" + ("" if isinstance(module, nn.Linear) else ", or one per class")
        bad_input("prior", f"{len(shares)} shares for {outputs} outputs", fitting)
    bias = shares.log() if link == "softmax" else torch.logit(shares)
    with torch.no_grad():
        module.bias.copy_(bias.repeat(anchors) if shares.ndim else bias.expand(outputs))
    return module


def _count(item: Labels, n_labels: int, ignore_index: int) -> Tensor:
    """How often each label 0..n_labels-1 occurs in one array, (n_labels,)."""
    if not isinstance(item, Tensor):
        try:
            array = np.asarray(item)
        except ValueError:
            bad_input("labels", "an item of rows of different lengths", "items that are arrays of labels")
        if array.dtype.kind not in "iub" and array.size:
            bad_input("labels", f"an item of {array.dtype}", "integer labels", _ABOUT_ITEMS)
        item = torch.from_numpy(array.astype(np.int64))
    elif item.is_floating_point() or item.is_complex():
        bad_input("labels", f"a tensor of {item.dtype}", "integer labels", _ABOUT_ITEMS)
    flat = item.detach().flatten()
    flat = (flat.to(torch.uint8) if flat.dtype == torch.bool else flat)[flat != ignore_index].long()
    if not flat.numel():
        return torch.zeros(n_labels, dtype=torch.int64)
    low, high = (int(bound) for bound in flat.aminmax())
    if low < 0 or high >= n_labels:
        bad_input("labels", low if low < 0 else high, f"labels 0..{n_labels - 1}, or {ignore_index} for what is ignored")
    return torch.bincount(flat, minlength=n_labels).cpu()


_ABOUT_ITEMS = "From a loader of pairs take (labels for _, labels in loader)."


def _sum_over_processes(counts: Tensor, group: Any) -> Tensor:
    if world_size(group) == 1:
        return counts
    on_gpus = dist.get_backend(group) == "nccl"  # which sums nothing else
    return all_reduce_sum(counts.cuda() if on_gpus else counts, group).cpu()
