r"""Cement, a margin for hard negative captions that grows with how concrete the edit is (arXiv:2604.13313).

What is unbalanced: an edited caption has to compete in the softmax with all other captions of the batch, and the summed push of those many
easy negatives outweighs that of the hard one. With similarities :math:`s_{ij} = \lambda \cos(x_i, t_j)` of images and captions, the hard
negative :math:`t_i'` of image i and the concreteness :math:`c_i` in [0, 1] of what was edited in it,

.. math::
    L_i = -\log \frac{e^{s_{ii}}}{e^{s_{ii}} + e^{s_{ii'} + m_i} + \sum_{j \neq i} e^{s_{ij}}}, \qquad m_i = m_{max} \, g(c_i) .

At fixed similarities the push of easy over hard negatives, R, falls by exactly :math:`e^{-m_i}`. The margin is no pure re-allocation: the
probability of the positive falls too, so that the pull on it grows. The abstract of the paper says "margin-based" and "tied to
concreteness"; this form of the margin is our reading of it, and so is its sign: an edit of a concrete word changes the picture and deserves
the larger margin, while a caption with an abstract word exchanged may still be true, and a margin would push a true caption away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from counterpoise._dist import gather_rows, world_size
from counterpoise._errors import bad_input, check_choice, check_range, described
from counterpoise._precision import single

from ._conr import unit_rows
from ._contrastive_shares import ContrastiveShares, shares_of

__all__ = ["CementLoss"]

Adapt = Literal["linear", "constant", "fitted"] | Callable[[Tensor], Tensor]

GRID = 101  # points in [0, 1] at which the fitted curve is kept
BLOCK = 128  # rows of logits that are looked at in one go, on a CPU
AT_ONCE = 2**23  # logits elsewhere
SAME = 8  # units of rounding by which an embedding may differ from its copy


class CementLoss(nn.Module):
    r"""InfoNCE of images and captions, in which hard negative captions get a margin (formula at the top of the module).

    Without hard negatives it is the loss of CLIP, the mean over both directions. The direction from text to image has no hard negative and
    stays plain. Margins take no gradient.

    Parameters
    ----------
    margin : float >= 0, default 3.0
        :math:`m_{max}`, in units of logits: at a scale of 100 a cosine of 0.03. The default is our choice; the paper's is not known to us.
    adapt : {"linear", "constant", "fitted"} or callable, default "linear"
        g: c itself; 1; or :math:`s_{min} + 1 - \hat s(c)`, where :math:`\hat s` is the similarity expected of a negative with that
        concreteness, from :meth:`fit`: the more alike negatives of this concreteness tend to be, the smaller their margin. A callable takes
        the tensor of c and returns one of numbers >= 0; ``lambda c: 1 - c`` turns the sign around.
    hard_columns : {"own", "all"}, default "own"
        Whether an image is compared with its own hard negatives only, or with those of all images, as in NegCLIP (only its own get the
        margin). "own" adds no communication between processes.
    symmetric : bool, default True
        Take the mean with the direction from text to image.
    normalize : bool, default True
        Divide embeddings by their length; without, s are inner products.
    gather : bool, default False
        Where torch.distributed is in use, compare the rows of this process with those of all processes, through which gradients flow;
        "mean" is then scaled so that the gradients that DDP averages are those of one large batch. All processes have to call.
    fill : float in [0, 1], optional
        Concreteness of hard negatives whose own is NaN. Default: NaN is an error.
    reduction : {"mean", "sum", "none"}, default "mean"

    Shapes
    ------
    image (B, D), text (B, D), hard_text (B, D) or (B, H, D) or None. logit_scale: a number > 0, or a tensor with one, learned or not, and
    then ``scale_is_log`` has to say whether it is the logarithm, as CLIP's parameter is. concreteness (B,) or (B, H), what
    :class:`counterpoise.data.ConcreteNegatives` gives; not needed with ``adapt="constant"``. hard_mask (B,) or (B, H) of bool: True where
    there is a hard negative; where there is none, embedding and concreteness do not matter. duplicate_mask (B, B) of bool, with ``gather``
    (B, B of all): True where captions i and j are the same, so that neither is a negative of the other's image; the diagonal does not
    matter. Output: a scalar; with ``reduction="none"`` (B,), in the type of image; half precision is computed, and returned, in float32.

    A hard negative whose embedding is that of the positive caption is no negative and is left out; :attr:`identical` counts them.

    Raises
    ------
    InputError
        If shapes do not match, concreteness is missing or not in [0, 1], ``logit_scale`` is a tensor and ``scale_is_log`` is not given,
        there is nothing to compare with (one row without a hard negative), a curve was not fitted, or a parameter is out of its range.
        (Values are not looked at inside ``torch.compile``.)

    Examples
    --------
    >>> image, text = torch.eye(2), torch.eye(2)
    >>> edited = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    >>> loss = CementLoss(margin=2.0)
    >>> loss(image, text, edited, 5.0, concreteness=torch.tensor([1.0, 0.0]))  # edits of a concrete and of an abstract word
    tensor(0.4117)
    >>> loss.last.hard, loss.last.easy  # what they push, beside what the other caption pushes
    (tensor([0.7297, 0.2676]), tensor([0.0018, 0.0049]))
    """

    expected: Tensor

    def __init__(
        self,
        margin: float = 3.0,
        adapt: Adapt = "linear",
        hard_columns: Literal["own", "all"] = "own",
        symmetric: bool = True,
        reduction: Literal["mean", "sum", "none"] = "mean",
        *,
        normalize: bool = True,
        gather: bool = False,
        fill: float | None = None,
    ) -> None:
        super().__init__()
        check_range("margin", margin, low=0)
        if not callable(adapt):
            check_choice("adapt", adapt, ("linear", "constant", "fitted"), "A callable of the concreteness will do as well.")
        check_choice("hard_columns", hard_columns, ("own", "all"))
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        if fill is not None:
            check_range("fill", fill, low=0, high=1)
        self.margin, self.adapt, self.hard_columns, self.symmetric, self.reduction = (
            float(margin),
            adapt,
            hard_columns,
            symmetric,
            reduction,
        )
        self.normalize, self.gather, self.fill = normalize, gather, fill
        # Similarity expected at c = 0, 0.01, ..., 1; NaN until it is fitted.
        self.register_buffer("expected", torch.full((GRID if adapt == "fitted" else 0,), torch.nan))
        self._last: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._identical: Tensor | None = None

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        hard_text: Tensor | None,
        logit_scale: Tensor | float,
        concreteness: Tensor | None = None,
        hard_mask: Tensor | None = None,
        duplicate_mask: Tensor | None = None,
        *,
        scale_is_log: bool | None = None,
    ) -> Tensor:
        _check(image, text, hard_text, concreteness, hard_mask)
        with torch.autocast(image.device.type, enabled=False):
            scale = _scale(logit_scale, scale_is_log)
            x, t = (_unit(rows) if self.normalize else single(rows) for rows in (image, text))
            x, t = x * scale, t.to(x.dtype)
            all_x, all_t, first, processes = (x, t, 0, 1) if not self.gather or world_size() == 1 else _gathered(x, t)
            n_all = len(all_t)
            hard = self._hard(x, t, hard_text, concreteness, hard_mask)
            self._check_rows(n_all, hard)
            positive = (x * t).sum(dim=1)
            same = _duplicates(len(x), n_all, first, duplicate_mask, x.device)
            easy, from_text = _log_sums(x, all_t, same, first)
            n_easy = torch.full_like(positive, n_all - 1, dtype=torch.int64)
            if same is not None:
                n_easy = n_easy - same.sum(dim=1)
            if self.hard_columns == "all" and hard.rows is not None:
                others = self._hard_of_others(x, hard.rows, hard.there, first)
                easy = torch.logaddexp(easy, others.logsumexp(dim=1))
                n_easy = n_easy + (others > _least(x)).sum(dim=1)
            losses = torch.cat([positive[:, None], easy[:, None], hard.logits], dim=1).logsumexp(dim=1) - positive
            if self.symmetric:
                if processes > 1:
                    from_text, _ = _log_sums(t, all_x, same, first)
                losses = (losses + torch.logaddexp(positive, from_text) - positive) / 2
        self._identical = hard.identical
        self._last = positive.detach(), _log_sum(hard.logits.detach()), easy.detach(), n_easy
        if self.reduction == "none":
            return losses
        return losses.sum() if self.reduction == "sum" else losses.sum() * (processes / n_all)

    @property
    def last(self) -> ContrastiveShares | None:
        """Shares of the softmax of each image, margins included, in the last call; None before the first."""
        return None if self._last is None else shares_of(*self._last)

    @property
    def identical(self) -> int:
        """Hard negatives of the last call that were the caption itself, and were left out."""
        return 0 if self._identical is None else int(self._identical)

    @torch.no_grad()
    def fit(self, concreteness: Tensor, similarity: Tensor) -> CementLoss:
        r"""Fit what ``adapt="fitted"`` needs: :math:`\hat s(c)`, the similarity expected at a concreteness, by isotonic regression.

        Parameters
        ----------
        concreteness : Tensor, shape (n,), in [0, 1]
        similarity : Tensor, shape (n,)
            Cosines, such as those of captions and their hard negatives under the model before training. The curve falls, so that the margin
            rises: from :math:`m_{max} (1 - \hat s(0) + \hat s(1))`, cut off at 0, to :math:`m_{max}`.

        Raises
        ------
        InputError
            If ``adapt`` is another one, there is not one similarity for each concreteness, a concreteness is not in [0, 1], or a similarity
            is not finite.
        """
        from sklearn.isotonic import IsotonicRegression

        if self.adapt != "fitted":
            bad_input("adapt", self.adapt, "'fitted'", "Nothing else is fitted.")
        c, s = (part.detach().double().flatten().cpu() for part in (concreteness, similarity))
        if len(c) != len(s) or not len(c):
            bad_input("concreteness and similarity", f"{len(c)} and {len(s)} numbers", "as many of one as of the other")
        if not bool(((c >= 0) & (c <= 1)).all()):
            bad_input("concreteness", c[~((c >= 0) & (c <= 1))][0].item(), "numbers in [0, 1]")
        if not bool(torch.isfinite(s).all()):
            bad_input("similarity", s[~torch.isfinite(s)][0].item(), "finite numbers")
        curve = IsotonicRegression(increasing=False, out_of_bounds="clip").fit(c.numpy(), s.numpy())
        self.expected.copy_(torch.from_numpy(curve.predict(torch.linspace(0, 1, GRID, dtype=torch.float64).numpy())))
        return self

    def extra_repr(self) -> str:
        adapt = self.adapt if isinstance(self.adapt, str) else getattr(self.adapt, "__name__", repr(self.adapt))
        kinds = f"adapt={adapt}, hard_columns={self.hard_columns!r}, symmetric={self.symmetric}, normalize={self.normalize}"
        return f"margin={self.margin:g}, {kinds}, gather={self.gather}, fill={self.fill}, reduction={self.reduction!r}"

    def _hard(self, x: Tensor, t: Tensor, hard_text: Tensor | None, concreteness: Tensor | None, hard_mask: Tensor | None) -> _Hard:
        """Own hard negatives of each image; ``x`` is scaled."""
        if hard_text is None:
            return _Hard(None, x.new_empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.bool, device=x.device), None)
        n, width = len(x), hard_text.shape[-1]
        given = hard_text.reshape(n, -1, width) if n else hard_text.reshape(0, 1, width)
        per_row = given.shape[1]
        there = (
            torch.ones(n, per_row, dtype=torch.bool, device=x.device) if hard_mask is None else hard_mask.reshape(n, per_row).to(x.device)
        )
        # What stands where there is none may be anything, also NaN.
        given = single(given) if hard_mask is None else torch.where(there[:, :, None], single(given), 0)
        rows = (_unit(given.reshape(-1, width)).reshape(n, per_row, width) if self.normalize else given).to(x.dtype)
        with torch.no_grad():
            tolerance = SAME * torch.finfo(t.dtype).eps * t.abs().amax(dim=1)[:, None]
            same = there & ((rows - t[:, None]).abs().amax(dim=2) <= tolerance)
            there = there & ~same
            margins = self._margins(concreteness, there, x)
        logits = torch.einsum("bd,bhd->bh", x, rows) + margins
        return _Hard(rows, logits.masked_fill(~there, _least(x)), there, same.sum())

    def _margins(self, concreteness: Tensor | None, there: Tensor, like: Tensor) -> Tensor:
        """m of each hard negative, (B, H); where there is none, any number."""
        if self.adapt == "constant":
            return like.new_full(there.shape, self.margin)
        if concreteness is None:
            bad_input("concreteness", None, "a number in [0, 1] for each hard negative", "adapt='constant' needs none.")
        c = concreteness.detach().reshape(there.shape).to(like)
        if self.fill is not None:
            c = torch.where(torch.isnan(c), self.fill, c)
        fine = (c >= 0) & (c <= 1)
        checked = not torch.compiler.is_compiling()
        if checked and not bool((fine | ~there).all()):
            hint = (
                "fill= says what to take where a caption has none." if bool(torch.isnan(c[there]).any()) else "(rating - 1) / 4 maps 1..5."
            )
            bad_input("concreteness", c[there & ~fine][0].item(), "numbers in [0, 1]", hint)
        c = torch.where(fine & there, c, 0)
        if self.adapt == "linear":
            g = c
        elif self.adapt == "fitted":
            if checked and bool(torch.isnan(self.expected[0])):
                bad_input("adapt", "fitted, without a curve", "a call of fit(concreteness, similarity) before the first")
            g = (self.expected[-1] + 1 - _interpolated(c, self.expected)).clamp(min=0)
        else:
            g = self.adapt(c)
            if not isinstance(g, Tensor) or g.shape != c.shape:
                bad_input(
                    "adapt", type(g).__name__ if not isinstance(g, Tensor) else f"shape {tuple(g.shape)}", f"a tensor {tuple(c.shape)}"
                )
            if checked and not bool(((g >= 0) & torch.isfinite(g) | ~there).all()):
                bad_input("adapt", g[there & ~((g >= 0) & torch.isfinite(g))][0].item(), "a function of c whose values are finite and >= 0")
        return self.margin * g.detach().to(like)

    def _hard_of_others(self, x: Tensor, rows: Tensor, there: Tensor, first: int) -> Tensor:
        """Logits (B, H of all) of the hard negatives of the other images."""
        if self.gather and world_size() > 1:
            rows, there = _all(rows), _all(there.byte()).bool()
        per_row = rows.shape[1]
        logits = x @ rows.flatten(0, 1).T
        itself = torch.arange(first, first + len(x), device=x.device)[:, None]
        owner = torch.arange(len(rows), device=x.device).repeat_interleave(per_row)[None]
        return logits.masked_fill_((owner == itself) | ~there.flatten()[None], _least(x))

    def _check_rows(self, n_all: int, hard: _Hard) -> None:
        if n_all == 0:
            bad_input("image", "an input of no rows", "at least one pair of image and text")
        if n_all == 1 and not torch.compiler.is_compiling() and not bool(hard.there.any()):
            bad_input("image", "one row, and no hard negative that differs from its caption", "something to compare with")


class _Hard(NamedTuple):
    """Embeddings (B, H, D), logits with margins (B, H), where there is one, and how many were the caption itself."""

    rows: Tensor | None
    logits: Tensor
    there: Tensor
    identical: Tensor | None


def _least(x: Tensor) -> float:
    """Stands for minus infinity, whose differences are NaN."""
    return torch.finfo(x.dtype).min


def _log_sum(logits: Tensor) -> Tensor:
    return logits.logsumexp(dim=1) if logits.shape[1] else logits.new_full((len(logits),), _least(logits))


def _scale(logit_scale: Tensor | float, is_log: bool | None) -> Tensor | float:
    if isinstance(logit_scale, Tensor):
        if logit_scale.numel() != 1:
            bad_input("logit_scale", f"shape {tuple(logit_scale.shape)}", "a number, or a tensor with one")
        if is_log is None:
            bad_input(
                "scale_is_log", None, "True or False beside a tensor logit_scale",
                "CLIP models keep the logarithm as their parameter: scale_is_log=True.",
            )  # fmt: skip
        scale: Tensor = single(logit_scale).reshape(())
        scale = scale.exp() if is_log else scale
        if not torch.compiler.is_compiling() and not bool((scale > 0) & torch.isfinite(scale)):
            bad_input(
                "logit_scale",
                logit_scale.item(),
                "a finite scale > 0",
                "Is it the logarithm? Then scale_is_log=True." if not is_log else "",
            )
        return scale
    check_range("logit_scale", logit_scale, low=float("-inf") if is_log else 0, open_low=not is_log)
    return torch.tensor(logit_scale, dtype=torch.float64).exp().item() if is_log else float(logit_scale)


def _duplicates(n: int, n_all: int, first: int, duplicate_mask: Tensor | None, device: torch.device) -> Tensor | None:
    """(n, n_all): True for other captions that are the row's own."""
    if duplicate_mask is None:
        return None
    if duplicate_mask.dtype != torch.bool or tuple(duplicate_mask.shape) != (n, n_all):
        found = described(duplicate_mask)
        bad_input("duplicate_mask", found, f"a mask of bool, shape {(n, n_all)}")
    itself = torch.arange(first, first + n, device=device)[:, None]
    return duplicate_mask.to(device).scatter(1, itself, False)


def _log_sums(x: Tensor, t: Tensor, same: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
    """Log-sums of exp(x t^T) over each row (n,) and each column (N,), without positives (of row i in column ``first + i``) and ``same``."""
    rows, columns = _LogSums.apply(x, t, same, first)  # type: ignore[no-untyped-call]
    return rows, columns


class _LogSums(torch.autograd.Function):
    """Keeps the logits and nothing else of their size: what else is needed is made for some rows at a time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, t: Tensor, same: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
        s = x @ t.T
        s.scatter_(1, torch.arange(first, first + len(x), device=s.device)[:, None], _least(s))
        if same is not None:
            s.masked_fill_(same, _least(s))
        rows = torch.cat([block.logsumexp(dim=1) for block in torch.split(s, _block(s))]) if len(s) else s.new_empty(0)
        columns = torch.cat([block.logsumexp(dim=0) for block in torch.split(s, _block(s.T), dim=1)])
        ctx.save_for_backward(x, t, s, rows, columns)
        return rows, columns

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_rows: Tensor, by_columns: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, t, s, rows, columns = ctx.saved_tensors
        by_x, by_t = torch.empty_like(x), torch.zeros_like(t)
        pieces = (torch.split(part, _block(s)) for part in (s, x, rows, by_rows, by_x))
        for block, own, row, by_row, out in zip(*pieces, strict=True):
            by_s = (block - row[:, None]).exp_().mul_(by_row[:, None])
            by_s.addcmul_((block - columns).exp_(), by_columns)
            out.copy_(by_s @ t)
            by_t.addmm_(by_s.T, own)
        return by_x, by_t, None, None


def _block(s: Tensor) -> int:
    """Rows of logits that are looked at in one go."""
    return BLOCK if s.device.type == "cpu" else max(BLOCK, AT_ONCE // max(s.shape[1], 1))


def _unit(rows: Tensor) -> Tensor:
    """:func:`unit_rows`, which keeps only its result for the backward pass."""
    found: Tensor = _Unit.apply(single(rows))  # type: ignore[no-untyped-call]
    return found


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        unit = unit_rows(rows)
        # The length as an inner product, whose squares cannot overflow. A row that is zero has no gradient.
        ctx.save_for_backward(unit, torch.nan_to_num(1 / (unit * rows).sum(dim=1, keepdim=True), posinf=0.0))
        return unit

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, by_unit: Tensor) -> Tensor:
        unit, inverse = ctx.saved_tensors
        along = (by_unit * unit).sum(dim=1, keepdim=True)
        return torch.addcmul(by_unit, unit, along, value=-1).mul_(inverse)


def _interpolated(c: Tensor, curve: Tensor) -> Tensor:
    """Values of a curve given at equal steps of [0, 1]."""
    place = c * (len(curve) - 1)
    low = place.floor().clamp(max=len(curve) - 2)
    curve = curve.to(c)
    return torch.lerp(curve[low.long()], curve[low.long() + 1], place - low)


@_disable_dynamo  # torch.compiler.disable loads the compiler at once
def _gathered(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, int, int]:
    (all_x, first), (all_t, _) = gather_rows(x), gather_rows(t)
    return all_x, all_t, first, world_size()


@_disable_dynamo
def _all(rows: Tensor) -> Tensor:
    return gather_rows(rows)[0]


# ---- before the computation -------------------------------------------------------------------------------------------------------------


def _check(image: Tensor, text: Tensor, hard_text: Tensor | None, concreteness: Tensor | None, hard_mask: Tensor | None) -> None:
    shape = tuple(image.shape)
    if image.ndim != 2 or not image.is_floating_point():
        bad_input("image", described(image), "floating-point embeddings (B, D)")
    if tuple(text.shape) != shape or not text.is_floating_point():
        bad_input("text", described(text), f"floating-point embeddings of the shape of image, {shape}")
    if hard_text is None:
        for name, given in (("concreteness", concreteness), ("hard_mask", hard_mask)):
            if given is not None:
                bad_input(name, described(given), "None where hard_text is None")
        return
    fits = hard_text.ndim in (2, 3) and len(hard_text) == shape[0] and hard_text.shape[-1] == shape[1]
    if not fits or not hard_text.is_floating_point():
        bad_input("hard_text", described(hard_text), f"floating-point embeddings of shape {shape} or (B, H, D), for image {shape}")
    wanted = tuple(hard_text.shape[:-1])
    for name, given in (("concreteness", concreteness), ("hard_mask", hard_mask)):
        if given is not None and tuple(given.shape) not in ((shape[0],) if len(wanted) == 1 or wanted[1] == 1 else wanted, wanted):
            bad_input(name, f"shape {tuple(given.shape)}", f"shape {wanted}, one for each hard negative")
    if hard_mask is not None and hard_mask.dtype != torch.bool:
        bad_input("hard_mask", f"a tensor of {hard_mask.dtype}", "a mask of bool")
