from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.losses import ARLLoss, FocalLoss, zero_out_unimodal


def predictions(modalities: int = 3, rows: int = 6, classes: int = 4) -> tuple[Tensor, list[Tensor], Tensor]:
    source = torch.Generator().manual_seed(0)
    fused, *alone = torch.randn(1 + modalities, rows, classes, generator=source).unbind()
    return fused, alone, torch.randint(classes, (rows,), generator=source)


@pytest.mark.parametrize("modalities", [2, 3, 5])
def test_the_loss_is_the_formula(modalities: int) -> None:
    fused, alone, y = predictions(modalities)
    wanted = F.cross_entropy(fused, y) + 2.5 * sum(F.cross_entropy(part, y) for part in alone)
    torch.testing.assert_close(ARLLoss(2.5)(fused, alone, y), wanted)
    torch.testing.assert_close(ARLLoss(0.0)(fused, alone, y), F.cross_entropy(fused, y))
    focal = FocalLoss(multilabel=False)
    wanted = focal(fused, y) + 4 * sum(focal(part, y) for part in alone)
    torch.testing.assert_close(ARLLoss(base_loss=focal)(fused, alone, y), wanted)
    wanted = F.mse_loss(fused, 0 * fused) + 4 * sum(F.mse_loss(part, 0 * part) for part in alone)
    torch.testing.assert_close(ARLLoss(base_loss=nn.MSELoss())(fused, alone, torch.zeros_like(fused)), wanted)


def test_gamma_is_1_in_the_warm_up() -> None:
    fused, alone, y = predictions()
    loss, warm, cold = ARLLoss(3.0, warmup_steps=2), ARLLoss(1.0), ARLLoss(3.0)
    first, after = warm(fused, alone, y), cold(fused, alone, y)
    found = [loss(fused, alone, y)]
    loss.eval()
    torch.testing.assert_close(loss(fused, alone, y), first)  # counts no step
    loss.train()
    resumed = ARLLoss(3.0, warmup_steps=2)
    resumed.load_state_dict(loss.state_dict())
    found += [resumed(fused, alone, y), resumed(fused, alone, y)]
    torch.testing.assert_close(found, [first, first, after])


def test_absent_rows_cost_nothing() -> None:
    fused, alone, y = predictions()
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, False]]).repeat(2, 1)
    holes = [torch.where(mask[:, [m]], part, float("nan")).requires_grad_() for m, part in enumerate(alone)]
    found = ARLLoss(4.0)(fused, holes, y, mask)
    wanted = F.cross_entropy(fused, y) + 4 * (F.cross_entropy(alone[0], y) + F.cross_entropy(alone[1][mask[:, 1]], y[mask[:, 1]]))
    torch.testing.assert_close(found, wanted)
    found.backward()
    assert all(torch.isfinite(part.grad).all() for part in holes)
    assert not holes[2].grad.any() and not holes[1].grad[1].any()
    whole = torch.ones(6, 3, dtype=torch.bool)
    torch.testing.assert_close(ARLLoss()(fused, alone, y, whole), ARLLoss()(fused, alone, y))


def test_ignored_targets_are_the_base_losss_own_business() -> None:
    fused, alone, y = predictions()
    y[0] = -100
    assert torch.isfinite(ARLLoss()(fused, alone, y))
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[1:, 0] = False  # a modality whose only row is ignored costs nothing
    torch.testing.assert_close(ARLLoss()(fused, alone, y, mask), ARLLoss()(fused, alone[1:], y))


def test_gamma_has_the_precision_of_the_loss() -> None:
    fused, alone, y = predictions()
    fused, alone = fused.double(), [part.double() for part in alone]
    late = ARLLoss(4.1, warmup_steps=1).eval()
    late.steps.fill_(1)
    torch.testing.assert_close(late(fused, alone, y), ARLLoss(4.1)(fused, alone, y), rtol=1e-14, atol=0)


def test_unimodal_logits_of_any_head() -> None:
    source = torch.Generator().manual_seed(0)
    parts = [torch.randn(5, width, generator=source, requires_grad=True) for width in (2, 3, 4)]
    head = nn.Sequential(nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3))
    found = zero_out_unimodal(lambda *h: head(torch.cat(h, dim=1)), parts)
    for m, logits in enumerate(found):
        padded = torch.cat([part if j == m else 0 * part for j, part in enumerate(parts)], dim=1)
        torch.testing.assert_close(logits, head(padded))
        logits.sum().backward(retain_graph=True)
        assert parts[m].grad is not None and all(parts[j].grad is None for j in range(3) if j > m)
        for part in parts:
            part.grad = None
    assert all(parameter.grad is not None for parameter in head.parameters())
    linear = nn.Linear(9, 3)
    for a, b in zip(zero_out_unimodal(linear, parts), zero_out_unimodal(lambda *h: linear(torch.cat(h, dim=1)), parts), strict=True):
        torch.testing.assert_close(a, b)
    named = zero_out_unimodal(linear, {"a": parts[0], "b": parts[1], "c": parts[2]})
    torch.testing.assert_close(named, zero_out_unimodal(linear, parts))

    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).tanh()

    own = Adapted(9, 3)
    for a, b in zip(zero_out_unimodal(own, parts), zero_out_unimodal(lambda *h: own(torch.cat(h, dim=1)), parts), strict=True):
        torch.testing.assert_close(a, b)


FUSED, ALONE, Y = predictions(2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ARLLoss(-1.0), "gamma"),
        (lambda: ARLLoss(warmup_steps=-1), "warmup_steps"),
        (lambda: ARLLoss(base_loss="ce"), "base_loss"),
        (lambda: ARLLoss(base_loss=nn.CrossEntropyLoss(reduction="none")), "base_loss"),
        (lambda: ARLLoss()(FUSED, ALONE[:1], Y), "unimodal: got 1 of them"),
        (lambda: ARLLoss()(FUSED, [ALONE[0], ALONE[1][:3]], Y), "the same shape"),
        (lambda: ARLLoss()(FUSED[:0], [part[:0] for part in ALONE], Y[:0]), "an empty batch"),
        (lambda: ARLLoss()(FUSED, ALONE, Y[:3]), "target: got 3 rows; expected 6"),
        (lambda: ARLLoss()(FUSED, ALONE, Y + 4), r"target: got \d; expected classes 0\.\.3"),
        (lambda: ARLLoss()(FUSED, ALONE, Y - 4), r"target: got -\d; expected classes 0\.\.3"),
        (lambda: ARLLoss()(FUSED, ALONE, Y, torch.ones(6, 3, dtype=torch.bool)), r"mask: .*\(6, 2\)"),
        (lambda: ARLLoss()(FUSED.long(), ALONE, Y), "floating-point"),
        (lambda: zero_out_unimodal(nn.Linear(4, 3), [FUSED]), "features: got 1 of them"),
        (lambda: zero_out_unimodal(nn.Linear(4, 3), [FUSED, FUSED]), r"widths \[4, 4\], together 8; expected the 4 columns"),
        (lambda: zero_out_unimodal(nn.Linear(8, 3), [FUSED, FUSED[:2]]), r"batch sizes \[6, 2\]"),
        (lambda: zero_out_unimodal(nn.ModuleList([nn.Linear(4, 3)]), [FUSED, FUSED]), "head: got 1 modules; expected 2"),
    ],
)
def test_bad_input_is_said_in_one_sentence(call, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("base_loss", [nn.CrossEntropyLoss(), FocalLoss(multilabel=False)])
def test_predictions_that_are_not_finite_are_named(value: float, base_loss: nn.Module) -> None:
    fused, alone, y = predictions()
    loss = ARLLoss(base_loss=base_loss)
    broken = fused.clone()
    broken[[1, 4], 2] = value
    with pytest.raises(InputError, match="fused: got values that are not finite in 2 rows; expected finite predictions"):
        loss(broken, alone, y)
    with pytest.raises(InputError, match=r"unimodal\[1\]: got values that are not finite in 2 rows"):
        loss(fused, [alone[0], broken, alone[2]], y)
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[1, 1] = False  # one of the two is not there
    with pytest.raises(InputError, match=r"unimodal\[1\]: got values that are not finite in 1 rows"):
        loss(fused, [alone[0], broken, alone[2]], y, mask)
    with pytest.raises(InputError, match="fused: got values that are not finite in 2 rows"):
        loss(broken.half(), [part.half() for part in alone], y, mask)
    mask[4, 1] = False
    assert bool(torch.isfinite(loss(fused, [alone[0], broken, alone[2]], y, mask)))


def test_one_wait_for_the_device_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything about values is asked for at once."""
    fused, alone, y = predictions()
    waits = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__"):
        original = getattr(Tensor, name)
        monkeypatch.setattr(Tensor, name, lambda self, original=original: waits.append(1) or original(self))
    ARLLoss()(fused, alone, y)
    assert len(waits) == 1
