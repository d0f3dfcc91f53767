"""Recurrent layers, replayed step by step so that the gradient at every gate is seen; the layer itself only returns the last word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from counterpoise._precision import single

from ._uses import OuterUse, Use

__all__ = ["replay"]


def replay(layer: Any, places: Mapping[str, int], args: tuple[Any, ...], grads: list[Tensor | None]) -> list[Use]:
    """The uses of an ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` in one call, given the gradients of its outputs (sequence, then states)."""
    x, hx = args[0], args[1] if len(args) > 1 else None
    lengths: Tensor | None = None
    g_out = grads[0]
    if isinstance(x, PackedSequence):
        if g_out is not None:
            g_out, _ = pad_packed_sequence(PackedSequence(g_out, x.batch_sizes, x.sorted_indices, x.unsorted_indices))
        x, lengths = pad_packed_sequence(x)
    elif layer.batch_first:
        x = x.transpose(0, 1)
        g_out = None if g_out is None else g_out.transpose(0, 1)
    x = single(x.detach())
    steps, n = x.shape[:2]
    alive = None if lengths is None else (torch.arange(steps)[:, None] < lengths[None]).to(x.device)[:, :, None]

    directions = 2 if layer.bidirectional else 1
    lstm, gru = layer.mode == "LSTM", layer.mode == "GRU"
    width = layer.proj_size or layer.hidden_size
    states = hx if lstm and hx is not None else (hx, None)
    h0 = _initial(states[0], layer.num_layers * directions, n, width, x)
    c0 = _initial(states[1], layer.num_layers * directions, n, layer.hidden_size, x) if lstm else None

    watched: list[Tensor] = []  # gate inputs whose gradients are wanted
    make: list[Any] = []
    last_h: list[Tensor] = []
    last_c: list[Tensor] = []
    with torch.enable_grad():
        sequence = x
        for level in range(layer.num_layers):
            outs = []
            for direction in range(directions):
                suffix = f"l{level}" + ("_reverse" if direction else "")
                weight = {name: single(getattr(layer, f"{name}_{suffix}").detach()) for name in ("weight_ih", "weight_hh")}
                bias = {
                    name: single(getattr(layer, f"{name}_{suffix}").detach()) if layer.bias else None for name in ("bias_ih", "bias_hh")
                }
                project = single(getattr(layer, f"weight_hr_{suffix}").detach()) if layer.proj_size else None
                at = level * directions + direction
                h, c = h0[at], c0[at] if c0 is not None else None
                gates_x = F.linear(sequence, weight["weight_ih"], bias["bias_ih"])
                gates_x = gates_x if gates_x.requires_grad else gates_x.requires_grad_()
                order = range(steps - 1, -1, -1) if direction else range(steps)
                before, hidden_gates, raw, projected, out = [h] * steps, [h] * steps, [h] * steps, [h] * steps, [h] * steps
                for t in order:
                    before[t] = h
                    gates_h = F.linear(h, weight["weight_hh"], bias["bias_hh"])
                    if gru:
                        gates_h = gates_h if gates_h.requires_grad else gates_h.requires_grad_()
                        hidden_gates[t] = gates_h
                    new_h, new_c, raw[t] = _cell(layer.mode, gates_x[t], gates_h, h, c)
                    if project is not None:
                        new_h = projected[t] = F.linear(raw[t], project)
                    out[t] = new_h
                    if alive is not None:
                        h = torch.where(alive[t], new_h, h)
                        c = torch.where(alive[t], new_c, c) if new_c is not None and c is not None else None
                        out[t] = torch.where(alive[t], new_h, torch.zeros_like(new_h))
                    else:
                        h, c = new_h, new_c
                outs.append(torch.stack(out))
                last_h.append(h)
                if c is not None:
                    last_c.append(c)
                make.append(
                    (suffix, sequence, gates_x, before, hidden_gates if gru else None, raw, projected if project is not None else None)
                )
                watched += [gates_x, *(hidden_gates if gru else ()), *(projected if project is not None else ())]
            sequence = outs[0] if directions == 1 else torch.cat(outs, dim=2)
        results = [sequence, torch.stack(last_h), *([torch.stack(last_c)] if lstm else [])]
        kept = [(r, g) for r, g in zip(results, [g_out, *grads[1:]], strict=True) if g is not None]
        if not kept:
            return []
        found = torch.autograd.grad([r for r, _ in kept], watched, [single(g) for _, g in kept], allow_unused=True)
    by_gate = {id(gate): torch.zeros_like(gate) if g is None else g for gate, g in zip(watched, found, strict=True)}

    uses: list[Use] = []
    for suffix, sequence, gates_x, before, hidden_gates, raw, projected in make:
        b = by_gate[id(gates_x)].transpose(0, 1)
        place = {name: places.get(f"{name}_{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")}
        uses.append(OuterUse(place["weight_ih"], place["bias_ih"], sequence.detach().transpose(0, 1), b))
        b_h = b if hidden_gates is None else torch.stack([by_gate[id(gate)] for gate in hidden_gates], dim=1)
        uses.append(OuterUse(place["weight_hh"], place["bias_hh"], torch.stack(before, dim=1).detach(), b_h))
        if projected is not None:
            b_r = torch.stack([by_gate[id(gate)] for gate in projected], dim=1)
            uses.append(OuterUse(place["weight_hr"], None, torch.stack(raw, dim=1).detach(), b_r))
    return [use for use in uses if use.places]


def _initial(given: Tensor | None, layers: int, n: int, width: int, like: Tensor) -> Tensor:
    return like.new_zeros(layers, n, width) if given is None else single(given.detach())


def _cell(mode: str, x: Tensor, y: Tensor, h: Tensor, c: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
    """(new h, new c, h before any projection) from the gates' inputs x (of the input) and y (of the state)."""
    if mode == "LSTM":
        assert c is not None
        i, f, g, o = (x + y).chunk(4, dim=1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return h, c, h
    if mode == "GRU":
        (xr, xz, xn), (yr, yz, yn) = x.chunk(3, dim=1), y.chunk(3, dim=1)
        z = (xz + yz).sigmoid()
        h = (1 - z) * (xn + (xr + yr).sigmoid() * yn).tanh() + z * h
        return h, None, h
    h = (x + y).tanh() if mode == "RNN_TANH" else (x + y).relu()
    return h, None, h


def is_recurrent(layer: nn.Module) -> bool:
    return type(layer) in (nn.LSTM, nn.GRU, nn.RNN)
