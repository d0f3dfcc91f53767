from __future__ import annotations

import copy
import io
import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.losses import GuidedLossScaling

OBJECTS = 6


def problem(dtype: torch.dtype = torch.float64, rows: int = 400, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits and boxes that take gradients, and their losses: many anchors, few objects."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    boxes = torch.randn(OBJECTS, 4, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = (torch.arange(rows) < OBJECTS).to(dtype)
    loss_cls = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / OBJECTS
    return logits, boxes, loss_cls, F.smooth_l1_loss(boxes, torch.zeros_like(boxes), reduction="sum", beta=0.11) / OBJECTS


def scalars(*values: float, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.tensor(value, dtype=dtype, requires_grad=True) for value in values]


# ---- what it is -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_the_value_is_the_guides_and_the_gradient_the_losss_own(dtype, tolerance, scale) -> None:
    logits, boxes, loss_cls, loss_box = problem(dtype)
    (raw,) = torch.autograd.grad(loss_cls, logits, retain_graph=True)
    (raw_box,) = torch.autograd.grad(loss_box, boxes, retain_graph=True)
    scaled = GuidedLossScaling(scale)(loss_cls, loss_box)
    assert scaled.item() == pytest.approx(scale * loss_box.item(), rel=tolerance) and scaled.dtype == dtype
    (scaled + loss_box).backward()
    torch.testing.assert_close(logits.grad, scale * (loss_box / loss_cls).detach() * raw, rtol=tolerance, atol=0)
    torch.testing.assert_close(boxes.grad, raw_box, rtol=0, atol=0)  # nothing flows through the weight


def test_arguments_are_left_alone() -> None:
    # Leaves that are used twice: a product in place would raise, or change what comes after it.
    loss_cls, loss_box = scalars(8.0, 2.0)
    losses = {"cls": loss_cls, "box": loss_box}
    module = GuidedLossScaling()
    first, second, both = module(loss_cls, loss_box), module(loss_cls, loss_box), module(losses, guide="box")
    assert loss_cls.item() == 8.0 and loss_box.item() == 2.0 and losses == {"cls": loss_cls, "box": loss_box}
    assert first.item() == second.item() == both["cls"].item() == 2.0 and both["box"] is loss_box
    (loss_cls + first).backward()
    assert loss_cls.grad.item() == 1.25 and loss_box.grad is None


def test_the_first_loss_may_be_the_guide() -> None:
    _, _, loss_cls, loss_box = problem()
    for reference in ("second", 1):
        assert GuidedLossScaling(reference=reference)(loss_cls, loss_box).item() == pytest.approx(loss_box.item())
    assert GuidedLossScaling(reference=0)(loss_box, loss_cls).item() == pytest.approx(loss_box.item())


def test_a_dict_is_scaled_to_its_guide_in_its_order() -> None:
    cls, center, box = scalars(100.0, 0.5, 4.0)
    scaled = GuidedLossScaling(scale=2.0)({"cls": cls, "box": box, "center": center}, guide="box")
    assert list(scaled) == ["cls", "box", "center"]
    assert [loss.item() for loss in scaled.values()] == pytest.approx([8.0, 4.0, 8.0])
    sum(scaled.values()).backward()
    assert (cls.grad.item(), center.grad.item(), box.grad.item()) == pytest.approx((0.08, 16.0, 1.0))


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_guide_alone_guides_nothing(ema) -> None:
    (box,) = scalars(4.0)
    assert GuidedLossScaling(ema=ema)({"box": box}, guide="box") == {"box": box}


def test_the_ratio_has_bounds() -> None:
    cls, box = scalars(10.0, 1.0)
    assert GuidedLossScaling(max_ratio=0.05)(cls, box).item() == pytest.approx(0.5)
    assert GuidedLossScaling(floor=0.3)(cls, box).item() == pytest.approx(3.0)
    assert GuidedLossScaling(max_ratio=0.5, floor=0.01)(cls, box).item() == pytest.approx(1.0)
    assert GuidedLossScaling(eps=100.0)(cls, box).item() == pytest.approx(0.1)


# ---- nothing, and precision -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"floor": 0.5}, {"ema": 0.9}])
def test_a_loss_of_zero_stays_zero(options) -> None:
    cls, box = scalars(0.0, 3.0)
    scaled = GuidedLossScaling(**options)(cls, box)
    scaled.backward()
    assert scaled.item() == 0.0 and cls.grad.item() == options.get("floor", 0.0)
    tiny, huge = scalars(1e-40, 1e30)
    assert math.isfinite(GuidedLossScaling(**options)(tiny, huge).item())


def test_a_reference_of_zero_switches_the_other_loss_off_and_says_so_once() -> None:
    cls, box = scalars(5.0, 0.0)
    module = GuidedLossScaling()
    with pytest.warns(UserWarning, match=r"^loss_ref is 0, so what it guides is scaled to 0") as caught:
        scaled = module(cls, box)
    assert [warning.filename for warning in caught] == [__file__]
    scaled.backward()
    assert scaled.item() == 0.0 and cls.grad.item() == 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(cls, box)
        assert GuidedLossScaling(floor=0.1)(cls, box).item() == pytest.approx(0.5)
    with pytest.warns(UserWarning, match="^box is 0"):
        GuidedLossScaling()({"cls": cls, "box": box}, guide="box")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype) -> None:
    # 3e-4 / 6e4 is 0 in half precision.
    cls, box = scalars(6e4, 3e-4, dtype=dtype)
    scaled = GuidedLossScaling()(cls, box)
    scaled.backward()
    assert scaled.dtype == torch.float32 and scaled.item() == pytest.approx(box.item(), rel=1e-6)
    assert cls.grad.dtype == dtype
    single = GuidedLossScaling()(cls.float(), box.float())
    torch.testing.assert_close(scaled, single)


def test_losses_of_unlike_precision_work_together() -> None:
    cls, box = scalars(8.0, dtype=torch.float16) + scalars(2.0)
    assert GuidedLossScaling()(cls, box).dtype == torch.float32 and GuidedLossScaling()(cls, box).item() == 2.0
    assert GuidedLossScaling(reference=0)(cls, box).dtype == torch.float64


def test_autocast_changes_nothing() -> None:
    logits, _, loss_cls, loss_box = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scaled = GuidedLossScaling()(loss_cls, loss_box)
    assert scaled.dtype == torch.float32 and scaled.item() == pytest.approx(loss_box.item(), rel=1e-6)
    scaled.backward()
    assert torch.isfinite(logits.grad).all()


# ---- smoothing --------------------------------------------------------------------------------------------------------------------------


def test_the_ratio_is_smoothed_over_steps() -> None:
    module = GuidedLossScaling(ema=0.75)
    weights = [(module(*scalars(cls, box)) / cls).item() for cls, box in ((10.0, 1.0), (10.0, 5.0), (10.0, 3.0))]
    assert weights == pytest.approx([0.1, 0.75 * 0.1 + 0.25 * 0.5, 0.75 * 0.2 + 0.25 * 0.3])


def test_a_batch_without_foreground_uses_the_average_and_does_not_enter_it() -> None:
    module = GuidedLossScaling(ema=0.5)
    module(*scalars(10.0, 1.0))
    assert module(*scalars(20.0, 0.0)).item() == pytest.approx(2.0)
    assert module(*scalars(0.0, 5.0)).item() == 0.0
    assert module(*scalars(10.0, 3.0)).item() == pytest.approx(10 * (0.5 * 0.1 + 0.5 * 0.3))


def test_evaluation_uses_the_average_and_leaves_it() -> None:
    module = GuidedLossScaling(ema=0.5)
    module(*scalars(10.0, 1.0))
    module.eval()
    assert module(*scalars(10.0, 9.0)).item() == pytest.approx(1.0)
    assert module.train()(*scalars(10.0, 3.0)).item() == pytest.approx(2.0)
    assert GuidedLossScaling(ema=0.5).eval()(*scalars(10.0, 9.0)).item() == pytest.approx(9.0)


def test_the_losses_of_a_dict_are_smoothed_by_name() -> None:
    module = GuidedLossScaling(ema=0.5)
    one, two, three, four = scalars(1.0, 2.0, 4.0, 8.0)
    module({"a": two, "box": one, "b": four}, guide="box")
    scaled = module({"b": four, "a": four, "c": three, "box": one}, guide="box")  # another order, and a new one
    assert scaled["b"].item() == pytest.approx(1.0)
    assert scaled["a"].item() == pytest.approx(8 * (0.5 / 2 + 0.5 / 8))
    assert scaled["c"].item() == pytest.approx(1.0)


def test_the_average_survives_saving() -> None:
    module = GuidedLossScaling(ema=0.9)
    module(*scalars(10.0, 1.0))
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = GuidedLossScaling(ema=0.9)
    other.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(module)
    expected = module(*scalars(10.0, 5.0)).item()
    assert expected != pytest.approx(5.0)
    assert other(*scalars(10.0, 5.0)).item() == copied(*scalars(10.0, 5.0)).item() == expected


def test_without_smoothing_there_is_no_state() -> None:
    module = GuidedLossScaling()
    module(*scalars(10.0, 1.0))
    assert module.state_dict() == {"_extra_state": {}} and not list(module.parameters())
    assert module(*scalars(10.0, 5.0)).item() == pytest.approx(5.0)


# ---- several processes ------------------------------------------------------------------------------------------------------------------

LOSSES = [(10.0, 1.0), (2.0, 5.0)]  # of the two processes: their own ratios are 0.1 and 2.5


def one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    groups = dist.new_group([0]), dist.new_group([1])
    found = {}
    for name, options in (("together", {}), ("alone", {"sync": False}), ("group", {"process_group": groups[rank]})):
        cls, box = scalars(*LOSSES[rank])
        GuidedLossScaling(**options)(cls, box).backward()
        found[name] = cls.grad.item()
    broken = float("nan") if rank else 1.0
    try:
        GuidedLossScaling()(*scalars(1.0, broken))
    except InputError as error:  # on both: none is left waiting for the other
        found["error"] = str(error)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_scale_alike_unless_told_otherwise(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        assert found["together"] == pytest.approx(6.0 / 12.0)
        assert found["alone"] == found["group"] == pytest.approx(LOSSES[rank][1] / LOSSES[rank][0])
        assert "loss_ref: got nan" in found["error"]


# ---- compilation, and bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [None, 0.5])
def test_compiled_it_gives_the_same_numbers(ema) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    torch._dynamo.reset()
    plain, compiled = (GuidedLossScaling(ema=ema) for _ in range(2))
    step = torch.compile(compiled, fullgraph=True)
    for cls, box in ((10.0, 1.0), (4.0, 3.0)):
        own, other = scalars(cls, box), scalars(cls, box)
        plain(*own).backward()
        step(*other).backward()
        torch.testing.assert_close(other[0].grad, own[0].grad)


ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: GuidedLossScaling()(torch.ones(3), ONE), r"loss_cls: got shape \(3,\); expected a scalar. Reduce it"),
        (lambda: GuidedLossScaling()(ONE, torch.ones(1)), r"loss_ref: got shape \(1,\)"),
        (lambda: GuidedLossScaling()(ONE, 1.0), "loss_ref: got 1.0; expected a floating-point tensor"),
        (lambda: GuidedLossScaling()(ONE, torch.tensor(1)), "loss_ref: got a tensor of torch.int64"),
        (lambda: GuidedLossScaling()(ONE), "loss_ref: got None"),
        (lambda: GuidedLossScaling()(ONE, ONE * math.nan), r"loss_ref: got nan; .* divide the sum by max\(1, n\)"),
        (lambda: GuidedLossScaling()(ONE * math.nan, ONE), "loss_cls: got nan; expected a finite loss >= 0"),
        (lambda: GuidedLossScaling()(ONE * math.inf, ONE), r"loss_cls: got inf; expected a finite loss >= 0\.$"),
        (lambda: GuidedLossScaling()(-ONE, ONE), "loss_cls: got -1.0; expected a finite loss >= 0"),
        (lambda: GuidedLossScaling()({"cls": ONE, "box": ONE}), "guide: got None; expected one of the losses: cls, box"),
        (lambda: GuidedLossScaling()({"cls": ONE, "box": ONE}, guide="bbox"), "guide: got 'bbox'"),
        (lambda: GuidedLossScaling()({"cls": torch.ones(2), "box": ONE}, guide="box"), "cls: got shape"),
        (lambda: GuidedLossScaling()({"cls": ONE}, ONE), "loss_ref: got a second argument beside a dict"),
        (lambda: GuidedLossScaling()(ONE, ONE, guide="box"), "guide: got 'box'; expected a name only where"),
        (lambda: GuidedLossScaling(scale=0.0), "scale: got 0.0; expected a number > 0"),
        (lambda: GuidedLossScaling(reference="first"), "reference: got 'first'; expected one of second, 0, 1"),
        (lambda: GuidedLossScaling(eps=0.0), "eps: got 0.0"),
        (lambda: GuidedLossScaling(floor=-0.1), "floor: got -0.1"),
        (lambda: GuidedLossScaling(floor=0.5, max_ratio=0.5), "max_ratio: got 0.5; expected a number > 0.5"),
        (lambda: GuidedLossScaling(ema=1.0), r"ema: got 1.0; expected a number in \[0, 1\)"),
        (lambda: GuidedLossScaling(ema=-0.1), "ema: got -0.1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_what_it_prints() -> None:
    assert repr(GuidedLossScaling()) == "GuidedLossScaling(scale=1, reference='second', sync=True)"
    assert "max_ratio=5, ema=0.9, floor=0.1" in repr(GuidedLossScaling(max_ratio=5, ema=0.9, floor=0.1))
