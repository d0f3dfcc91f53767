"""``nn.MultiheadAttention``, replayed so that the gradients at its four projections are seen; its raw weights pass the hooks by.

The part between the projections is torch's own function, called with identities in their place, so that masks, dropout and all options are
exactly the layer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from counterpoise._precision import single

from ._uses import GivenRows, OuterUse, Use

__all__ = ["replay_attention"]

NAMES = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask", "average_attn_weights", "is_causal")


def replay_attention(
    layer: Any, places: Mapping[str, int], args: tuple[Any, ...], kwargs: Mapping[str, Any], grads: list[Tensor | None]
) -> list[Use] | None:
    """The uses of one call; None for what is left to the layer's own backward (bias_k and bias_v, inputs without a batch)."""
    given = dict(zip(NAMES, args, strict=False)) | dict(kwargs)
    if layer.bias_k is not None or given["query"].ndim != 3:
        return None
    inputs = [single(given[name].detach()) for name in ("query", "key", "value")]
    same = given["query"] is given["key"] is given["value"]
    sequence = [x.transpose(0, 1) if layer.batch_first else x for x in inputs]
    E = layer.embed_dim
    if layer._qkv_same_embed_dim:
        weights = single(layer.in_proj_weight.detach()).chunk(3)
    else:
        weights = tuple(single(getattr(layer, f"{name}_proj_weight").detach()) for name in "qkv")
    biases = (None,) * 3 if layer.in_proj_bias is None else single(layer.in_proj_bias.detach()).chunk(3)
    out_weight = single(layer.out_proj.weight.detach())
    identity = torch.eye(E, dtype=out_weight.dtype, device=out_weight.device)
    with torch.enable_grad():
        projected = [F.linear(x, w, b).requires_grad_() for x, w, b in zip(sequence, weights, biases, strict=True)]
        query, key, value = projected
        attended, scores = F.multi_head_attention_forward(
            query,
            key,
            value,
            E,
            layer.num_heads,
            None,
            None,
            None,
            None,
            layer.add_zero_attn,
            layer.dropout,
            identity,
            None,
            training=layer.training,
            key_padding_mask=given.get("key_padding_mask"),
            need_weights=given.get("need_weights", True),
            attn_mask=given.get("attn_mask"),
            use_separate_proj_weight=True,
            q_proj_weight=identity,
            k_proj_weight=identity,
            v_proj_weight=identity,
            average_attn_weights=given.get("average_attn_weights", True),
            is_causal=given.get("is_causal", False),
        )
        g_out, g_scores = grads[0], grads[1] if len(grads) > 1 else None
        if g_out is None and g_scores is None:
            return []
        results, by = [], []
        if g_out is not None:
            g_out = single(g_out.transpose(0, 1) if layer.batch_first else g_out)
            results.append(F.linear(attended, out_weight))
            by.append(g_out)
        if g_scores is not None and scores is not None:
            results.append(scores)
            by.append(single(g_scores))
        found = torch.autograd.grad(results, projected, by, allow_unused=True)
    bs = [(torch.zeros_like(p) if g is None else g).transpose(0, 1) for p, g in zip(projected, found, strict=True)]
    xs = [x.transpose(0, 1) for x in sequence]
    uses: list[Use] = []
    weight, bias = places.get("in_proj_weight"), places.get("in_proj_bias")
    if layer._qkv_same_embed_dim and same:
        uses.append(OuterUse(weight, bias, xs[0], torch.cat(bs, dim=2)))
    else:
        if layer._qkv_same_embed_dim and weight is not None:

            def packed(rows: slice) -> Tensor:
                return torch.cat([torch.bmm(b[rows].mT, x[rows]) for x, b in zip(xs, bs, strict=True)], dim=1)

            uses.append(GivenRows(weight, packed, 3 * E * E * bs[0].element_size()))
        elif not layer._qkv_same_embed_dim:
            uses += [OuterUse(places.get(f"{n}_proj_weight"), None, x, b) for n, x, b in zip("qkv", xs, bs, strict=True)]
        if bias is not None:
            total = torch.cat([b.sum(dim=1) for b in bs], dim=1)
            uses.append(GivenRows(bias, lambda rows: total[rows], total.shape[1] * total.element_size()))
    if g_out is not None:
        a = attended.detach().transpose(0, 1)
        uses.append(OuterUse(places.get("out_proj.weight"), places.get("out_proj.bias"), a, g_out.transpose(0, 1)))
    return [use for use in uses if use.places]
