r"""LoRA adapters of one model merged where they act: in the space of the products :math:`V_i = s_i B_i A_i`.

Averages of the factors are no averages of the products. Sums of products are exact with concatenated ranks:
:math:`\sum_i c_i s_i B_i A_i = [B_1 \dots B_K]\,[c_1 s_1 A_1; \dots; c_K s_K A_K]`; and inner products need no product either:
:math:`\langle B_i A_i, B_j A_j \rangle = \langle B_i^T B_j, A_i A_j^T \rangle`, of rank-sized matrices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from counterpoise._dist import all_reduce_mean_
from counterpoise._errors import bad_input, check_choice, check_range
from counterpoise._extras import require
from counterpoise._pergrad import untouched
from counterpoise.weights import MergeResult
from counterpoise.weights._merge import LINEAR, any_sign, coefficients_of, moving, slice_of
from counterpoise.weights._positioning import RATES, forever, search
from counterpoise.weights._slerp import RULES, Rule, positive

try:
    from peft import PeftModel, get_peft_model_state_dict
    from peft.tuners.lora import LoraLayer
except ImportError:
    require("peft", "text", "engines.peft")
    raise

__all__ = ["adapter_gram", "merge_adapters", "position_adapters"]

MORE = ("use_dora", "modules_to_save", "lora_bias", "trainable_token_indices", "target_parameters")  # than two matrices per layer


def adapter_gram(model: PeftModel, adapters: Sequence[str]) -> Tensor:
    r""":math:`\langle V_i, V_j \rangle` of the adapters' products, over all layers, (K, K), float64.

    Lengths are the roots of the diagonal; divided by these, it holds the cosines between the adapters.
    """
    layers = _layers(model, adapters)
    gram = torch.zeros(len(adapters), len(adapters), dtype=torch.float64)
    for layer in layers:
        factors = [_factors(layer, name) for name in adapters]
        for i, first in enumerate(factors):
            for j, second in enumerate(factors[: i + 1]):
                if first is None or second is None:
                    continue
                (A, B), (other_A, other_B) = first, second
                product = ((B.T @ other_B) * (A @ other_A.T)).sum() * layer.scaling[adapters[i]] * layer.scaling[adapters[j]]
                gram[i, j] += product.cpu()
                if i != j:
                    gram[j, i] += product.cpu()
    return gram


def merge_adapters(
    model: PeftModel,
    adapters: Sequence[str],
    method: Literal["average", "arithmetic", "slerp", "multislerp"] = "average",
    weights: Sequence[float] | Tensor | None = None,
    scale: float = 1.0,
    *,
    rule: Rule = "mean",
    name: str = "merged",
) -> Tensor:
    r"""Add an adapter to ``model`` that is the merge of others: :math:`\sum_i c_i s_i B_i A_i`, exactly, of rank :math:`\sum_i r_i`.

    Parameters
    ----------
    model : peft.PeftModel
        With the adapters loaded (``load_adapter``). It is changed: the merged adapter is added, frozen, and not made active.
    adapters : names of K LoRA adapters
        Of any ranks, and on any layers; without DoRA, biases, and fully trained modules, tokens or
        parameters.
    method, weights, scale, rule
        As in :func:`counterpoise.weights.merge`.
    name : str, default "merged"
        Of the new adapter: ``model.set_adapter(name)``, ``model.save_pretrained(folder, selected_adapters=[name])``.

    Returns
    -------
    tensor (K,): the coefficients c.
    """
    check_choice("method", method, LINEAR)
    check_choice("rule", rule, RULES)
    check_range("scale", scale)
    _check(model, adapters, name)
    if weights is None:
        w = torch.ones(len(adapters), dtype=torch.float64)
    else:
        w = any_sign(weights, len(adapters)) if method == "arithmetic" else positive("weights", weights, len(adapters))
    c = scale * coefficients_of(method, lambda: adapter_gram(model, adapters), list(adapters), w, rule)
    _add(model, adapters, c, name)
    return c


def position_adapters(
    model: PeftModel,
    adapters: Sequence[str],
    probe: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    steps: int = 200,
    mu: float = 0.01,
    rule: Rule = "mean",
    *,
    lr: float | None = None,
    optimizer: Literal["adam", "sgd"] = "adam",
    name: str = "merged",
) -> MergeResult:
    r"""Self Positioning of LoRA adapters: search where between them the probe loss is lowest, and add that adapter to ``model``.

    All adapters are active at once, each multiplied by its coefficient: a step is one forward and backward pass through the adapted model
    and trains K + 1 numbers; nothing the size of the model is merged, copied, or differentiated.

    Parameters
    ----------
    model, adapters, name
        As in :func:`merge_adapters`. Modes, active adapters and what requires gradients are afterwards as they were.
    probe, loss_fn, steps, mu, rule
        As in :meth:`counterpoise.weights.SelfPositioning.fit`.
    lr, optimizer
        As in :class:`counterpoise.weights.SelfPositioning`.

    Returns
    -------
    MergeResult
        Its ``state_dict`` is that of the adapter.
    """
    check_choice("rule", rule, RULES)
    check_choice("optimizer", optimizer, tuple(RATES))
    check_range("steps", steps, low=1, integer=True)
    check_range("mu", mu, low=0.0)
    rate = RATES[optimizer] if lr is None else lr
    check_range("lr", rate, low=0.0, open_low=True)
    _check(model, adapters, name)
    gram = adapter_gram(model, adapters)
    kept = moving(gram, list(adapters), depth=3)
    if not kept:
        bad_input("adapters", f"{len(adapters)} adapters that change nothing", "at least one that was trained")
    own = [adapters[k] for k in kept]
    with untouched(model, evaluate=True), _together(model, own) as scaled:
        batches = forever(probe)

        def evaluate(d: Tensor) -> tuple[float, Tensor]:
            d = d.clone().requires_grad_()
            scaled(d)
            with torch.enable_grad():
                loss = loss_fn(model, next(batches))
                if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                    bad_input("loss_fn", type(loss).__name__, "a function that returns a scalar with a graph to the adapters")
                (slope,) = torch.autograd.grad(loss, d)
            means = [torch.cat([loss.detach().double().reshape(1), slope.to(loss.device)])]
            all_reduce_mean_(means)
            return float(means[0][0]), means[0][1:].cpu()

        found = search(slice_of(gram, kept), evaluate, own, steps=steps, mu=mu, rule=rule, lr=rate, optimizer=optimizer, scale=1.0)
    found = found.among(kept, len(adapters))
    _add(model, adapters, found.coefficients, name)
    state = {key: value.detach().clone() for key, value in get_peft_model_state_dict(model, adapter_name=name).items()}
    return MergeResult(state, found.weights, found.scale, found.coefficients, found.history, found.stopped)


# ---- layers -----------------------------------------------------------------------------------------------------------------------------


def _check(model: PeftModel, adapters: Sequence[str], name: str) -> None:
    if not isinstance(model, PeftModel):
        bad_input("model", type(model).__name__, "a peft.PeftModel with the adapters loaded")
    if isinstance(adapters, str) or not adapters or len(set(adapters)) < len(adapters):
        bad_input("adapters", adapters, "different names of at least one adapter")
    for adapter in adapters:
        check_choice("adapters", adapter, tuple(model.peft_config))
        config: Any = model.peft_config[adapter]
        if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
            bad_input("adapters", f"{adapter}, of type {config.peft_type}", "LoRA adapters")
        odd = [word for word in MORE if getattr(config, word, None)]
        odd += ["bias"] if config.bias != "none" else []
        odd += ["a variant of LoRA"] if not odd and any(adapter in getattr(layer, "lora_variant", ()) for layer in model.modules()) else []
        if odd:
            bad_input("adapters", f"{adapter} with {', '.join(odd)}", "adapters that are products of two matrices alone")
    configs: list[Any] = [model.peft_config[adapter] for adapter in adapters]
    kinds = {type(config.target_modules).__name__ for config in configs}
    if len(kinds) > 1:
        bad_input("adapters", f"target_modules of types {', '.join(sorted(kinds))}", "names in all adapters, or a pattern in all")
    if name in model.peft_config:
        bad_input("name", name, "a name that no adapter has yet", "model.delete_adapter removes one.")


def _layers(model: PeftModel, adapters: Sequence[str]) -> list[Any]:
    return [layer for layer in model.modules() if isinstance(layer, LoraLayer) and any(name in layer.scaling for name in adapters)]


def _factors(layer: Any, name: str) -> tuple[Tensor, Tensor] | None:
    """A (r, in) and B (out, r) in float64, or None where the adapter does not touch the layer."""
    if name in layer.lora_A:
        A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
    elif name in layer.lora_embedding_A:
        A, B = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
    else:
        return None
    return A.detach().double().flatten(1), B.detach().double().flatten(1)


def _add(model: PeftModel, adapters: Sequence[str], c: Tensor, name: str) -> None:
    configs: list[Any] = [model.peft_config[adapter] for adapter in adapters]
    ranks = sum(max(config.r, *config.rank_pattern.values()) if config.rank_pattern else config.r for config in configs)
    # The new adapter takes over the first one's scaling: alpha / r, which is 1, or alpha / sqrt(r).
    own = math.sqrt(ranks) if configs[0].use_rslora else 1.0
    with torch.random.fork_rng(devices=[]):  # its matrices are drawn before they are set
        model.add_weighted_adapter(list(adapters), [float(value) / own for value in c], name, combination_type="cat")


@contextmanager
def _together(model: PeftModel, adapters: Sequence[str]) -> Iterator[Callable[[Tensor], None]]:
    """All adapters active; gives a function that multiplies each by its coefficient."""
    layers = _layers(model, adapters)
    tuner: Any = model.base_model
    before = [{name: layer.scaling[name] for name in adapters if name in layer.scaling} for layer in layers]
    active = list(model.active_adapters)

    def scaled(d: Tensor) -> None:
        for layer, own in zip(layers, before, strict=True):
            layer.scaling.update({name: d[adapters.index(name)] * value for name, value in own.items()})

    try:
        tuner.set_adapter(list(adapters))
        yield scaled
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.scaling.update(own)
        tuner.set_adapter(active)
