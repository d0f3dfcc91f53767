r"""Asymmetric gradients of modalities (arXiv:2507.10203), and the published ways beside them: uniform, inverse, OGM, OGM-GE.

What is unbalanced: encoders of several modalities share one head and one loss, and the encoder that learns fastest takes the loss away from
the others. Here the gradient that enters encoder m is multiplied by a factor; the forward pass stays as it is:

.. math:: \frac{\partial L}{\partial h_m} \leftarrow (1 + k_m) \frac{\partial L}{\partial h_m}, \qquad
          k = \mathrm{softmax}_m\Bigl(T \, q_m \sum_{j \ne m} d_j\Bigr) .

OGM and OGM-GE (Peng et al. 2022, arXiv:2203.15332) hold the stronger encoders back instead, :math:`1 - \tanh(\alpha \rho_m)` where
:math:`\rho_m > 1`; GE adds noise as large as the gradient.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from counterpoise._dist import all_reduce_sum
from counterpoise._errors import bad_input, check_choice, check_range

from ._modalities import (
    CLAMP,
    TEMPERATURE,
    _weights,
    check_clamp,
    check_finite,
    check_unimodal,
    classes,
    numbers,
    residual_variance,
    shares,
    totals,
)

__all__ = ["AsymmetricGradient", "scale_gradient"]

MODES = ("arl", "uniform", "inverse", "ogm", "ogm-ge", "off")
TASKS = ("classification", "regression")
ALPHA = 0.1  # of OGM: the authors' README, for VGGSound


def scale_gradient(x: Tensor, scale: float | Tensor) -> Tensor:
    r"""``x``, whose gradient is multiplied by ``scale`` on its way back.

    Parameters
    ----------
    x : Tensor
        Any shape.
    scale : float or Tensor that broadcasts to x
        A tensor is read when the gradient passes. It gets no gradient itself.

    Returns
    -------
    Tensor
        The values of x, bit for bit. The gradient keeps the type of x, and can be differentiated again.

    Raises
    ------
    InputError
        If the scale is not a finite number, or a tensor that does not broadcast to x.

    Examples
    --------
    >>> x = torch.ones(2, requires_grad=True)
    >>> scale_gradient(x, 1.5).sum().backward()
    >>> x.grad
    tensor([1.5000, 1.5000])
    """
    if isinstance(scale, Tensor):
        try:
            fits = torch.broadcast_shapes(x.shape, scale.shape) == x.shape  # type: ignore[no-untyped-call]
        except RuntimeError:
            fits = False
        if not fits:
            bad_input("scale", f"shape {tuple(scale.shape)}", f"a shape that broadcasts to that of x, {tuple(x.shape)}")
        return _ScaleGradient.apply(x, scale.data)  # type: ignore[no-any-return, no-untyped-call]
    check_range("scale", scale)
    return _ScaleGradient.apply(x, float(scale))  # type: ignore[no-any-return, no-untyped-call]


class _ScaleGradient(torch.autograd.Function):
    """y = x, and dL/dx = scale dL/dy."""

    generate_vmap_rule = True  # for gradients of single examples

    @staticmethod
    def forward(x: Tensor, scale: float | Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, scale = inputs
        ctx.number = None if isinstance(scale, Tensor) else scale
        if ctx.number is None:
            ctx.save_for_backward(scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        scale = ctx.saved_tensors[0] if ctx.number is None else ctx.number
        return (grad * scale).to(grad.dtype), None


class _ScaleAndBlur(torch.autograd.Function):
    """y = x, and dL/dx = scale dL/dy + blur std(dL/dy) noise, where blur is 0 or 1."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, noise: Tensor, blur: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        scale, noise, blur = ctx.saved_tensors
        spread = grad.std(correction=min(1, grad.numel() - 1))
        return (grad * scale + blur * spread * noise).to(grad.dtype), None, None, None


class AsymmetricGradient(nn.Module):
    r"""Scales the gradients that enter the encoders of M modalities, by what ``update`` has found out about them.

    Put it between encoders and head, and call ``update`` with the unimodal logits before ``loss.backward()``; a step then has the factors
    of its own batch::

        features = asymmetric(image_encoder(x), sound_encoder(z))
        unimodal = zero_out_unimodal(head, features)
        asymmetric.update(unimodal)
        criterion(head(torch.cat(features, dim=1)), unimodal, target).backward()  # criterion: losses.ARLLoss

    Everything that flows into an encoder is scaled, unimodal losses included; the head is not. Features are not copied, and autograd does
    not let the head write into them: no ``nn.ReLU(inplace=True)`` at its beginning. Until the first ``update``, and in ``eval()``, all
    factors are 1 and there is no noise. A factor acts like another learning rate of the encoder: tune the learning rate anew for every
    mode.

    Parameters
    ----------
    num_modalities : int >= 2
        M.
    mode : str, default "arl"
        Which factors:

        - "arl": :math:`1 + k_m`, see :func:`arl_weights`.
        - "uniform": :math:`1 + 1/M`: a larger step for all encoders. What the authors' released code does, which never uses its weights.
        - "inverse": ARL turned round, :math:`k = \mathrm{softmax}(-T q_m \sum_{j \ne m} d_j)`; with two modalities their weights are
          swapped. A control: if it does as well, the asymmetry is not what helps.
        - "ogm": :math:`1 - \tanh(\alpha \rho_m)` where :math:`\rho_m > 1`, else 1; :math:`\rho_m` is the mean probability of the true
          class by modality m over the mean of the others'. (The authors' form has two modalities.)
        - "ogm-ge": that, and normal noise with the standard deviation of the gradient that enters. The authors add theirs to the gradients
          of 4-dimensional convolution weights; here it is added where this module stands, to the gradient of the features.
        - "off": 1.
    temperature : float >= 0, default 8.0
        T of "arl" and "inverse".
    clamp : float in (0, 1], default 0.3
        See :func:`counterpoise.diagnostics.modality_statistics`.
    alpha : float >= 0, default 0.1 (the README of OGM-GE, for VGGSound; 0.8 for CREMA-D)
        Of "ogm" and "ogm-ge".
    generator : torch.Generator, optional
        Of the noise of "ogm-ge", on the device of the features; torch's own if None.
    task : {"classification", "regression"}, default "classification"
        Regression is an extension that is not in the paper: "arl" and "inverse" take the running variance of the residuals
        :math:`s_m - y` for the entropy, and ``update`` needs the targets.
    ema : float in [0, 1), default 0.9
        How much of the variance of residuals is kept from one update to the next; the first is taken as it is.
    warmup_steps : int >= 0, default 0
        Updates in training mode that change no factor yet. The paper leaves five epochs alone.
    sync : bool, default True
        Where torch.distributed is in use, take statistics of the whole batch over all processes, so that factors are the same everywhere:
        one exchange of 2 M sums and M counts (for a regression three more). False: each process has its own factors, with the noise of its
        part.
    process_group : torch.distributed.ProcessGroup, optional
        The processes of ``sync``; by default all.

    Shapes
    ------
    ``forward(*features)``: M tensors of any shapes; returns the same values as a tuple. ``update(unimodal, target=None, mask=None)``: M
    logits (B, C), classes (B,) (or numbers (B, C) of a regression), and which modalities are there (B, M); returns ``weights``. A modality
    that no row has gets weight 0, and no factor other than 1. ``weights`` (M,): :math:`k_m`, for OGM the factors; ``scale`` (M,): the
    factors. Both are buffers, so ``state_dict()`` goes on where it was.

    Raises
    ------
    InputError
        If the number of modalities or of rows differs, a logit is not finite, a class is not in 0..C-1, a mode needs targets and got none,
        or a parameter is out of its range. (Values are not looked at inside ``torch.compile``.)

    Examples
    --------
    >>> asymmetric = AsymmetricGradient(2)
    >>> image, sound = torch.ones(4, 3, requires_grad=True), torch.ones(4, 3, requires_grad=True)
    >>> features = asymmetric(image, sound)
    >>> asymmetric.update([5.0 * features[0], 0.1 * features[1]])
    tensor([0.0210, 0.9790])
    >>> sum(part.sum() for part in features).backward()
    >>> image.grad[0, 0], sound.grad[0, 0]
    (tensor(1.0210), tensor(1.9790))
    """

    weights: Tensor
    scale: Tensor
    updates: Tensor
    blur: Tensor
    variance: Tensor

    def __init__(
        self,
        num_modalities: int,
        mode: Literal["arl", "uniform", "inverse", "ogm", "ogm-ge", "off"] = "arl",
        temperature: float = TEMPERATURE,
        clamp: float = CLAMP,
        alpha: float = ALPHA,
        generator: torch.Generator | None = None,
        *,
        task: Literal["classification", "regression"] = "classification",
        ema: float = 0.9,
        warmup_steps: int = 0,
        sync: bool = True,
        process_group: Any = None,
    ) -> None:
        super().__init__()
        check_range("num_modalities", num_modalities, low=2, integer=True)
        check_choice("mode", mode, MODES)
        check_range("temperature", temperature, low=0)
        check_clamp(clamp)
        check_range("alpha", alpha, low=0)
        check_choice("task", task, TASKS)
        check_range("ema", ema, low=0)
        if ema >= 1:
            bad_input("ema", ema, "a number in [0, 1)", "0.9 remembers about ten updates.")
        check_range("warmup_steps", warmup_steps, low=0, integer=True)
        if task == "regression" and mode in ("ogm", "ogm-ge"):
            bad_input("mode", mode, 'a mode for regression: "arl", "uniform", "inverse" or "off"', "OGM compares probabilities of classes.")
        self.num_modalities, self.mode, self.task = int(num_modalities), mode, task
        self.temperature, self.clamp, self.alpha, self.ema = float(temperature), float(clamp), float(alpha), float(ema)
        self.generator, self.warmup_steps = generator, int(warmup_steps)
        self.sync, self.process_group = sync, process_group
        self.register_buffer("weights", torch.full((num_modalities,), 1.0 if mode in ("ogm", "ogm-ge") else 0.0))
        self.register_buffer("scale", torch.ones(num_modalities))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        if mode == "ogm-ge":
            self.register_buffer("blur", torch.zeros(()))
        if task == "regression":
            self.register_buffer("variance", torch.full((num_modalities,), torch.nan))

    @property
    def needs_target(self) -> bool:
        """Whether ``update`` needs the targets."""
        return self.mode in ("ogm", "ogm-ge") or (self.task == "regression" and self.mode in ("arl", "inverse"))

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        if len(features) != self.num_modalities:
            bad_input(
                "features",
                f"{len(features)} of them",
                f"{self.num_modalities}, one for each modality",
                "Pass them as asymmetric(h_0, h_1).",
            )
        if not self.training or self.mode == "off":
            return features
        # Without the version counter of the buffer: an update between this and the backward pass is what is wanted.
        factors = self.scale.data.unbind()
        if self.mode == "ogm-ge":
            apply = _ScaleAndBlur.apply
            return tuple(apply(x, factor, self._noise(x), self.blur.data) for x, factor in zip(features, factors, strict=True))  # type: ignore[no-untyped-call]
        return tuple(_ScaleGradient.apply(x, factor) for x, factor in zip(features, factors, strict=True))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, unimodal: Any, target: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Find the factors of the next backward pass from the unimodal logits of a batch. In ``eval()`` nothing changes."""
        if self.needs_target and target is None:
            why = (
                f'Mode "{self.mode}" looks at the probability of the true class'
                if self.task == "classification"
                else "A regression has residuals in the place of entropies"
            )
            bad_input("target", None, "the targets of the batch", f"{why}: update(unimodal, target).")
        stacked, present = check_unimodal(unimodal, mask, self.num_modalities)
        if not self.training:
            return self.weights.clone()
        found, factor = (part.to(self.scale.device) for part in self._factors(stacked, present, target))
        late = self.updates >= self.warmup_steps
        self.updates.add_(1)
        self.weights.copy_(torch.where(late, found, self.weights))
        self.scale.data.copy_(torch.where(late, factor, self.scale))
        if self.mode == "ogm-ge":
            self.blur.data.copy_(late)
        return self.weights.clone()

    def extra_repr(self) -> str:
        own = {
            "arl": f", temperature={self.temperature:g}, clamp={self.clamp:g}",
            "inverse": f", temperature={self.temperature:g}, clamp={self.clamp:g}",
            "ogm": f", alpha={self.alpha:g}",
            "ogm-ge": f", alpha={self.alpha:g}",
        }.get(self.mode, "")
        more = (f", warmup_steps={self.warmup_steps}" if self.warmup_steps else "") + (
            ", task='regression'" if self.task == "regression" else ""
        )
        return f"{self.num_modalities}, mode={self.mode!r}{own}{more}"

    def _noise(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, device=x.device, dtype=x.dtype)

    def _factors(self, stacked: Tensor, present: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights and factors, each (M,)."""
        a, second = totals(stacked, present)
        y = None
        if self.needs_target:
            assert target is not None
            y = classes(target, stacked) if self.task == "classification" else numbers(target, stacked)
            if self.task == "classification":
                true = stacked.softmax(dim=-1).gather(2, y.expand(len(stacked), -1)[:, :, None])[:, :, 0]
                second = (true * present.T).sum(dim=1)
        # Of all processes, so that what is not finite on one of them is an error on all.
        a, second, rows = self._added(torch.stack([a, second, present.sum(dim=0).to(a.dtype)]))
        check_finite(a, [f"modality {m}" for m in range(len(a))])
        there = rows > 0
        a, second = a / rows.clamp(min=1), second / rows.clamp(min=1)
        if self.mode in ("off", "uniform"):
            k = there.to(a.dtype) / there.sum().clamp(min=1) * (self.mode == "uniform")
            return k, 1 + k
        if self.mode in ("ogm", "ogm-ge"):
            factor = self._held_back(second, there)
            return torch.where(there, factor, 0.0), factor
        if self.task == "regression":
            assert y is not None
            second = self._smoothed(residual_variance(stacked, y, present, self.process_group, self.sync), there)
        d, _, q = shares(a, second, there, self.clamp)
        sign = -1.0 if self.mode == "inverse" else 1.0
        k = _weights(sign * self.temperature * q * (d.sum() - d), there)
        return k, 1 + k

    def _added(self, sums: Tensor) -> Tensor:
        return all_reduce_sum(sums, self.process_group) if self.sync else sums

    def _held_back(self, score: Tensor, there: Tensor) -> Tensor:
        """Coefficients of OGM, from mean probabilities of the true class."""
        others = (torch.where(there, score, 0.0).sum() - score) / (there.sum() - 1).clamp(min=1)
        ratio = score / others.clamp(min=torch.finfo(score.dtype).tiny)
        return torch.where(there & (ratio > 1) & (there.sum() > 1), 1 - torch.tanh(self.alpha * ratio), torch.ones_like(ratio))

    def _smoothed(self, variance: Tensor, there: Tensor) -> Tensor:
        """The running variance; that of a modality stays where no row has it."""
        before = self.variance.to(variance)
        mixed = torch.where(before.isnan(), variance, self.ema * before + (1 - self.ema) * variance)
        smoothed = torch.where(there, mixed, before)
        self.variance.copy_(smoothed)
        return smoothed.nan_to_num(0.0)
