"""``record``: training is the same bit for bit, the numbers are those of ``examine``, and what cannot be measured is named."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.diagnostics import Recorder, examine, group_shares, record, sketch_gradients
from tests.batteries.diagnoses import snapshot
from tests.pergrad.models import (
    ARCHITECTURES,
    CLASSES,
    LAYERS,
    TOKENS,
    WIDTH,
    Attentive,
    Case,
    Checkpointed,
    Noisy,
    Tied,
    error,
    mlp,
    truth,
)

CE = nn.CrossEntropyLoss()
N = 12

# A table of positions is added to all examples at once: their gradients by it arrive as one sum.
NOT_SEEN = {
    "transformer encoder": ("positions.weight",),
    "transformer encoder, sequences first": ("positions.weight",),
    "as many positions as examples": ("positions.weight",),
    "and sequences first": ("positions.weight",),
    "twice as many positions": ("positions.weight",),
    "bert": ("model.bert.embeddings.position_embeddings.weight",),
    "gpt-2": ("model.transformer.wpe.weight",),
    "gpt-2, as many positions": ("model.transformer.wpe.weight",),
    "tied where no hook sees it": ("table.weight",),
    "tied for one example": ("layer.weight",),
    "bag of tokens, offsets": ("bag.weight",),
    "position by position": ("layer.bias", "layer.weight"),
    "unpadded": ("layer.bias", "layer.weight"),
    "unpadded, in step": ("layer.bias", "layer.weight"),
    "routed": ("experts.0.bias", "experts.0.weight", "experts.1.bias", "experts.1.weight"),
}
NEXT_STEP = "input changed in place"


def without_dropout(model: nn.Module) -> nn.Module:
    """In training mode, without what makes it differ from eval mode."""
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if isinstance(layer, nn.MultiheadAttention):
            layer.dropout = 0.0
        layer.training = not isinstance(layer, nn.modules.batchnorm._BatchNorm)
    for name in ("attention_probs_dropout_prob", "attn_pdrop"):
        config = getattr(getattr(model, "model", None), "config", None)
        if hasattr(config, name):
            setattr(config, name, 0.0)
    return model


def step_of(model: nn.Module, inputs: tuple[Tensor, ...], target: Tensor, groups: Tensor, **options: Any) -> Recorder:
    """One pass; a second one if the first could not be measured."""
    with record(model, **options) as recorder:
        for _ in range(2):
            for p in model.parameters():
                p.grad = None
            recorder.batch(groups)
            F.cross_entropy(model(*inputs), target).backward()
            if recorder.steps:
                break
    return recorder


def test_examples_in_another_order_are_not_taken_for_others() -> None:
    """Sorted within the model, where the sum over the batch would show nothing."""
    model, inputs, target, groups = next(case for case in LAYERS if case.name == "sorted").build()
    recorder = step_of(model.train(), inputs, target, groups)
    assert recorder.steps == [] and recorder.skipped


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("case", [case for case in ARCHITECTURES + LAYERS if case.name != "sorted"], ids=lambda case: case.name)
def test_every_architecture(case: Case) -> None:
    """Norms parameter by parameter, shares and group sums are those of one derivative per example; the rest is named."""
    model, inputs, target, groups = case.build()
    without_dropout(model)
    expected = truth(model, inputs, target)
    recorder = step_of(model, inputs, target, groups, every=1)
    assert recorder.steps == ([0] if case.name != NEXT_STEP else [1]), recorder.skipped
    d = recorder.diagnoses[0]
    assert d.sketch.missing == NOT_SEEN.get(case.name, ())
    assert d.sketch.blocks is not None
    kept = [i for i, name in enumerate(expected.names) if name not in d.sketch.missing]
    assert error(d.sketch.blocks.norms_sq[:, kept], expected.norms_sq[:, kept]) < 1e-9
    g = torch.cat([expected.parts[i] for i in kept], dim=1)
    mu = g.mean(dim=0)
    share = [float(g[groups == k].sum(dim=0) @ mu / len(g) / (mu @ mu)) for k in range(3)]
    np.testing.assert_allclose(recorder.shares[0].share, share, rtol=1e-8, atol=1e-10)
    assert d.sketch.coverage == pytest.approx(g.shape[1] / expected.matrix.shape[1])
    assert bool(d.sketch.missing) == any("Not measured" in note for note in d.notes)


# ---- bit for bit ----------------------------------------------------------------------------------------------------


class Mixture(nn.Module):
    """Dropout, attention with dropout, a recurrent layer, random numbers of all kinds, and a counter in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(9, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.2, batch_first=True)
        self.recurrent, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.times = 0

    def forward(self, x: Tensor) -> Tensor:
        self.times += 1
        self.calls += 1
        noise = random.random() + float(np.random.rand())
        return self.head(self.recurrent(self.block(self.tokens(x)))[1][0]) * (1 + 0.01 * noise + 0.01 * self.times)


def loop(model: nn.Module, recorder: Recorder | None, *, kind: str = "plain") -> list[Tensor]:
    """20 steps; the losses of all."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for step in range(20):
        x = torch.randint(9, (N, TOKENS), generator=generator)
        y = x.sum(dim=1) % 3
        if recorder is not None:
            recorder.batch(y)
        with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
            loss = F.cross_entropy(model(x), y)
        factor = {"accumulated": 1 / 4, "scaled": 1024.0}.get(kind, 1.0)
        (loss * factor).backward()
        losses.append(loss.detach())
        if kind == "accumulated" and step % 4 != 3:
            continue
        if kind == "scaled":
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.div_(factor)
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("kind", ["plain", "accumulated", "scaled", "autocast"])
def test_training_is_the_same_bit_for_bit(kind: str) -> None:
    options: dict[str, Any] = {"accumulated": {"loss_scale": 1 / 4}, "scaled": {"loss_scale": lambda: 1024.0}}.get(kind, {})
    found = []
    for recorded in (False, True):
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        model = Mixture()
        if recorded:
            with record(model, every=4, **options) as recorder:
                losses = loop(model, recorder, kind=kind)
            assert recorder.steps == [0, 4, 8, 12, 16] and not recorder.skipped
            assert all(not d.sketch.missing for d in recorder.diagnoses)
        else:
            losses = loop(model, None, kind=kind)
        state = snapshot(model)
        found.append((losses, {k: v for k, v in state.items() if "identity" not in k}, model.times))
    assert all(torch.equal(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert found[0][2] == found[1][2] == 20
    for key, value in found[0][1].items():
        other = found[1][1][key]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, key


@pytest.mark.parametrize(("factor", "reduction"), [(1.0, "mean"), (1 / 8, "mean"), (65536.0, "mean"), (1.0, "sum")])
def test_numbers_of_examine(factor: float, reduction: str) -> None:
    torch.manual_seed(0)
    model = mlp().double()
    x, y = torch.randn(N, WIDTH, dtype=torch.float64), torch.arange(N) % 3
    expected = sketch_gradients(model, CE, (x, y))
    with record(model.train(), loss_scale=factor, reduction=reduction) as recorder:
        recorder.batch(y)
        (factor * F.cross_entropy(model(x), y, reduction=reduction)).backward()
    (d,) = recorder.diagnoses
    torch.testing.assert_close(d.sketch.norms_sq, expected.norms_sq)
    torch.testing.assert_close(d.sketch.S, expected.S)
    np.testing.assert_allclose(recorder.shares[0].share, group_shares(expected).share, rtol=1e-9)
    np.testing.assert_allclose(recorder.shares[0].norm, group_shares(expected).norm, rtol=1e-9)
    assert d.engine == "record" and d.step == 0 and "at step 0" in d.headline


def test_half_precision_forward() -> None:
    torch.manual_seed(0)
    model = mlp().train()
    x, y = torch.randn(40, WIDTH), torch.arange(40) % 3
    expected = sketch_gradients(model, CE, (x, y))
    with record(model) as recorder:
        recorder.batch(y)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
    assert not recorder.skipped and not recorder.diagnoses[0].sketch.missing
    assert error(recorder.diagnoses[0].sketch.norms_sq, expected.norms_sq) < 0.05


# ---- what cannot be measured ----------------------------------------------------------------------------------------------------


def steps(
    model: nn.Module, inputs: tuple[Tensor, ...], *, count: int = 3, zero: str = "first", loss: Any = None, **options: Any
) -> Recorder:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    y = torch.arange(len(inputs[0])) % 3
    with record(model.train(), every=1, **options) as recorder:
        for _ in range(count):
            if zero == "first":
                optimizer.zero_grad()
            recorder.batch(y)
            output = model(*inputs)
            if zero == "between":
                optimizer.zero_grad()
            (F.cross_entropy if loss is None else loss)(output, y).backward()
            optimizer.step()
    return recorder


@pytest.mark.parametrize("zero", ["first", "between"])
def test_weight_used_where_no_hook_sees_it(zero: str) -> None:
    """Wherever the user resets the gradients."""
    torch.manual_seed(0)
    recorder = steps(Tied(functional=True), (torch.randint(9, (N, TOKENS)),), zero=zero)
    assert recorder.steps == [0, 1, 2]
    for d in recorder.diagnoses:
        assert d.sketch.missing == ("table.weight",) and 0 < d.sketch.coverage < 1
    assert recorder.diagnoses[0].sketch.S is None and recorder.diagnoses[1].sketch.S is not None


def test_what_would_draw_other_random_numbers_when_run_once_more() -> None:
    torch.manual_seed(0)
    recorder = steps(Noisy(), (torch.randn(N, WIDTH),))
    assert [d.sketch.missing for d in recorder.diagnoses] == [("shift",)] * 3

    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.LSTM(WIDTH, 4, 2, dropout=0.5, batch_first=True), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layers(x)[0][:, -1])

    recorder = steps(Stacked(), (torch.randn(N, TOKENS, WIDTH),))
    assert recorder.steps == [0, 1, 2] and all(name.startswith("layers") for name in recorder.diagnoses[0].sketch.missing)


class Doubled(nn.Module):
    """Changes an input in place after a layer has used it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.layer.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = x + 1
        y = self.layer(h)
        h.mul_(2)
        return self.head(y.tanh() + h)


def test_input_changed_in_place_is_copied_from_the_next_step_on() -> None:
    torch.manual_seed(0)
    recorder = steps(Doubled(), (torch.randn(N, WIDTH),))
    assert recorder.steps == [1, 2]
    ((step, reason),) = recorder.skipped
    assert step == 0 and "changed in place" in reason
    assert not recorder.diagnoses[0].sketch.missing


def test_penalty_on_the_parameters() -> None:
    model = mlp()
    recorder = steps(
        model, (torch.randn(N, WIDTH),), loss=lambda o, t: F.cross_entropy(o, t) + sum(p.square().sum() for p in model.parameters())
    )
    assert recorder.steps == [] and all("is the sum of what was seen" in reason for _, reason in recorder.skipped)


def test_gradients_that_are_not_finite() -> None:
    """As in the first steps of a GradScaler."""
    model, y = mlp().train(), torch.arange(N) % 3
    with record(model, every=1) as recorder:
        for factor in (float("inf"), 1.0):
            model.zero_grad()
            recorder.batch(y)
            (factor * F.cross_entropy(model(torch.randn(N, WIDTH)), y)).backward()
    assert recorder.steps == [1] and recorder.skipped == [(0, "gradients are not finite")]


def test_two_calls_before_backward() -> None:
    model = mlp().train()
    with record(model, every=1) as recorder:
        (model(torch.randn(N, WIDTH)).sum() + model(torch.randn(N, WIDTH)).sum()).backward()
    assert recorder.steps == []
    assert recorder.skipped[0] == (0, "no backward pass came before the next call of the model")


def test_cancelling_gradients_are_not_taken_for_unseen_ones() -> None:
    torch.manual_seed(0)
    x, y, model = torch.randn(40, WIDTH), torch.randint(3, (40,)), nn.Linear(WIDTH, 3)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, tolerance_grad=1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    recorder = step_of(model.train(), (x,), y, y)
    assert recorder.steps == [0] and not recorder.diagnoses[0].sketch.missing
    assert recorder.shares[0].settled


@pytest.mark.parametrize("whole", [False, True])
def test_reentrant_checkpoints(whole: bool) -> None:
    """Whose backward passes end before the whole one does."""

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)])
            self.reentrant = True

        def forward(self, x: Tensor) -> Tensor:
            x = x.clone().requires_grad_()
            for part in self.parts:
                x = torch.utils.checkpoint.checkpoint(part, x, use_reentrant=self.reentrant)
            return x

    torch.manual_seed(0)
    model = (Whole() if whole else Checkpointed(reentrant=True)).double().train()
    x, y = torch.randn(N, WIDTH, dtype=torch.float64), torch.arange(N) % CLASSES
    plain = copy.deepcopy(model)
    plain.reentrant = False
    expected = truth(plain, (x,), y)
    recorder = step_of(model, (x,), y, y)
    assert not recorder.diagnoses[0].sketch.missing
    assert error(recorder.diagnoses[0].sketch.blocks.norms_sq, expected.norms_sq) < 1e-9


@pytest.mark.parametrize("positions", [N, TOKENS])
def test_sequences_first(positions: int) -> None:
    """Of the inputs themselves; as many positions as examples, too."""

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.block = nn.Linear(WIDTH, 8), nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.layer(x)).mean(0))

    torch.manual_seed(0)
    model = First().double().train()
    x, y = torch.randn(positions, N, WIDTH, dtype=torch.float64), torch.arange(N) % 3
    recorder = step_of(model, (x,), y, y)
    assert not recorder.skipped and not recorder.diagnoses[0].sketch.missing
    assert error(recorder.diagnoses[0].sketch.norms_sq, truth(model, (x,), y).norms_sq.sum(dim=1)) < 1e-9


# ---- the loop ----------------------------------------------------------------------------------------------------


def test_hooks_are_gone_afterwards_and_after_a_failure() -> None:
    torch.manual_seed(0)
    model, y = mlp().train(), torch.arange(N) % 3
    before = snapshot(model)
    hooks = {key: value for key, value in before.items() if "hooks" in key}

    def left() -> dict[str, Any]:
        return {key: value for key, value in snapshot(model).items() if "hooks" in key}

    for where in ("before backward", "groups", "never"):
        try:
            with record(model, every=1) as recorder:
                recorder.batch(y[: 3 if where == "groups" else N])
                loss = F.cross_entropy(model(torch.randn(N, WIDTH)), y)
                if where == "before backward":
                    raise KeyError
                loss.backward()
        except (KeyError, InputError):
            assert where != "never"
        assert left() == hooks


def test_every_and_the_order_of_steps() -> None:
    model, x = mlp().train(), torch.randn(N, WIDTH)
    with record(model, every=3, groups=lambda x: (x[:, 0] > 0).long()) as recorder:
        for step in range(8):
            model.zero_grad()
            model(x).sum().backward()
            model.eval()
            model(x)  # validation is no step
            model.train()
            with torch.no_grad():
                model(x)
            assert recorder.seen == step + 1
    assert recorder.steps == [0, 3, 6] and len(recorder.shares) == 3
    frame = recorder.to_frame()
    assert frame["step"].to_list() == [0, 0, 3, 3, 6, 6] and set(frame["group"]) == {"0", "1"}
    assert len(recorder.diagnoses) == 3 and recorder.diagnoses[1] is recorder.diagnoses[1]
    assert recorder.diagnoses[2].step == 6


def test_groups_that_appear_later_keep_the_names_of_the_others() -> None:
    model = mlp().train()
    with record(model, every=1) as recorder:
        for ids in (torch.arange(N) % 2, torch.arange(N) % 3 - 1, None):
            model.zero_grad()
            if ids is not None:
                recorder.batch(ids)
            model(torch.randn(N, WIDTH)).sum().backward()
    assert [s.names for s in recorder.shares] == [("0", "1"), ("0", "1", "(none)"), ("0", "1")]


def test_part_of_the_parameters() -> None:
    recorder = steps(mlp(), (torch.randn(N, WIDTH),), params="^4", sketch_dim=0)
    assert recorder.diagnoses[0].sketch.parameter_names == ("4.weight", "4.bias")
    assert recorder.diagnoses[0].sketch.S is None


def norm_in_training() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (mlp, {"every": 0}, "every: got 0"),
        (mlp, {"reduction": "none"}, "reduction: got 'none'"),
        (mlp, {"sketch_dim": -1}, "sketch_dim: got -1"),
        (mlp, {"params": "head"}, "params: got 'head'"),
        (norm_in_training, {}, "batch normalization in training mode"),
        (lambda: torch.compile(mlp(), backend="eager"), {}, "compiled code"),
        (lambda: nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager")), {}, "compiled code .its layer '0'"),
        (lambda: "net", {}, "model: got 'str'"),
    ],
)
def test_bad_input(model: Callable[[], Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), record(model(), **options):
        pass


def test_bad_groups_and_nothing_recorded() -> None:
    model = mlp().train()
    with record(model) as recorder:
        recorder.batch(torch.zeros(N - 1))
        with pytest.raises(InputError, match="one whole number for each of the 12 examples"):
            model(torch.randn(N, WIDTH))
    with pytest.raises(InputError, match="no measured step"):
        recorder.to_frame()


def test_learned_positions_in_a_transformer_do_not_stop_the_rest() -> None:
    torch.manual_seed(0)
    model = without_dropout(Attentive(batch_first=True, norm_first=True))
    recorder = steps(model, (torch.randint(9, (N, TOKENS)),))
    assert recorder.steps == [0, 1, 2]
    assert all(d.sketch.missing == ("positions.weight",) and d.sketch.coverage > 0.9 for d in recorder.diagnoses)


def test_same_moment_as_examine() -> None:
    torch.manual_seed(0)
    model, x, y = mlp(), torch.randn(N, WIDTH), torch.arange(N) % 3
    expected = examine(model, CE, (x, y)).per_group["share"]
    np.testing.assert_allclose(steps(model, (x,), count=1).shares[0].share, expected, rtol=1e-4)


def test_overhead() -> None:
    """A step that is not measured costs next to nothing, one in fifty a small multiple of a step: leniently, on a busy machine."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )
    x, y = torch.randn(128, 1, 8, 8), torch.arange(128) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def seconds(recorder: Recorder | None) -> float:
        began = time.process_time()
        for _ in range(50):
            if recorder is not None:
                recorder.batch(y)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        return time.process_time() - began

    seconds(None)
    plain = min(seconds(None) for _ in range(2))
    with record(model, every=50) as recorder:
        seconds(recorder)  # with what is found out once
        recorded = min(seconds(recorder) for _ in range(2))
    assert len(recorder.steps) == 3
    assert recorded < 1.3 * plain
