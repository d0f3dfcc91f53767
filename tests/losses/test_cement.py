from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.losses import CementLoss

B, H, D = 6, 3, 5


def pairs(n: int = B, per_row: int = 0, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images, texts, hard texts (n, D) or (n, per_row, D), and concreteness."""
    g = torch.Generator().manual_seed(seed)
    image, text = (torch.randn(n, D, generator=g, dtype=torch.float64).to(dtype) for _ in range(2))
    shape = (n, per_row) if per_row else (n,)
    hard = torch.randn(*shape, D, generator=g, dtype=torch.float64).to(dtype)
    return image, text, hard, torch.rand(*shape, generator=g, dtype=torch.float64).to(dtype)


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def by_cross_entropy(
    image: Tensor, text: Tensor, hard: Tensor | None, scale: float, margins: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the similarities with the hard ones as more columns, (B,) from image to text and back."""
    s = scale * unit(image) @ unit(text).T
    columns = [s]
    if hard is not None:
        hard = hard if hard.ndim == 3 else hard[:, None]
        columns.append(scale * (unit(image)[:, None] * unit(hard)).sum(dim=2) + margins)
    diagonal = torch.arange(len(s))
    return F.cross_entropy(torch.cat(columns, dim=1), diagonal, reduction="none"), F.cross_entropy(s.T, diagonal, reduction="none")


def gradient(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs, retain_graph=True)


# ---- what it is -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_row", [0, 1, H])
@pytest.mark.parametrize(("adapt", "g"), [("linear", lambda c: c), ("constant", torch.ones_like), (lambda c: 1 - c**2, lambda c: 1 - c**2)])
def test_it_is_the_cross_entropy_of_the_logits_with_margins(adapt: Any, g: Any, per_row: int) -> None:
    image, text, hard, c = (part.requires_grad_(k < 3) for k, part in enumerate(pairs(per_row=per_row)))
    margins = 2.5 * g(c.detach())
    there, back = by_cross_entropy(image, text, hard, 7.0, margins if per_row else margins[:, None])
    for symmetric, expected in ((True, (there + back) / 2), (False, there)):
        loss = CementLoss(2.5, adapt, symmetric=symmetric, reduction="none")(image, text, hard, 7.0, c)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13)
        for a, b in zip(gradient(loss.mean(), image, text, hard), gradient(expected.mean(), image, text, hard), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_reductions() -> None:
    image, text, hard, c = pairs()
    each = CementLoss(reduction="none")(image, text, hard, 7.0, c)
    assert CementLoss()(image, text, hard, 7.0, c).item() == pytest.approx(each.mean().item(), rel=1e-14)
    assert CementLoss(reduction="sum")(image, text, hard, 7.0, c).item() == pytest.approx(each.sum().item(), rel=1e-14)


def test_without_hard_negatives_it_is_infonce() -> None:
    image, text, hard, c = pairs()
    expected = sum(by_cross_entropy(image, text, None, 7.0)) / 2
    nowhere = torch.zeros(B, dtype=torch.bool)
    found = [
        CementLoss(reduction="none")(image, text, None, 7.0),
        CementLoss(reduction="none")(image, text, torch.full_like(hard, torch.nan), 7.0, torch.full_like(c, torch.nan), nowhere),
        CementLoss(reduction="none", hard_columns="all")(image, text, hard, 7.0, c, nowhere),
    ]
    for loss in found:
        torch.testing.assert_close(loss, expected, rtol=1e-13, atol=1e-14)


def test_hard_negatives_that_are_missing_take_no_part() -> None:
    image, text, hard, c = pairs(per_row=H)
    mask = torch.rand(B, H, generator=torch.Generator().manual_seed(1)) < 0.6
    assert 0 < mask.sum() < B * H
    c[~mask], hard[~mask] = 17.0, torch.nan
    hard.requires_grad_()
    margins = torch.where(mask, 3 * c, -torch.inf)
    expected, _ = by_cross_entropy(image, text, torch.where(mask[:, :, None], hard.detach(), 1.0), 7.0, margins)
    loss = CementLoss(symmetric=False, reduction="none")(image, text, hard, 7.0, c, mask)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-13)
    (found,) = gradient(loss.sum(), hard)
    assert torch.isfinite(found).all() and not found[~mask].any() and found[mask].any(dim=1).all()


def test_a_hard_negative_that_is_the_caption_itself_is_left_out_and_counted() -> None:
    image, text, hard, c = pairs()
    hard[[1, 4]] = 3.0 * text[[1, 4]]  # the same direction
    loss = CementLoss(reduction="none")
    found = loss(image, text, hard, 7.0, c)
    assert loss.identical == 2
    mask = torch.tensor([True, False, True, True, False, True])
    torch.testing.assert_close(found, CementLoss(reduction="none")(image, text, hard, 7.0, c, mask), rtol=0, atol=0)
    hard[1] += 1e-4
    loss(image, text, hard, 7.0, c)
    assert loss.identical == 1


@pytest.mark.parametrize("per_row", [0, H])
def test_all_columns_are_those_of_negclip_with_a_margin_for_ones_own(per_row: int) -> None:
    image, text, hard, c = pairs(per_row=per_row)
    s = 7.0 * unit(image) @ unit(text).T
    columns = 7.0 * unit(image) @ unit(hard).reshape(-1, D).T
    many = max(1, per_row)
    owner = torch.arange(B).repeat_interleave(many)
    margins = torch.where(owner[None] == torch.arange(B)[:, None], 3.0 * c.reshape(1, -1), 0.0)
    expected = F.cross_entropy(torch.cat([s, columns + margins], dim=1), torch.arange(B), reduction="none")
    loss = CementLoss(hard_columns="all", symmetric=False, reduction="none")
    torch.testing.assert_close(loss(image, text, hard, 7.0, c), expected, rtol=1e-12, atol=1e-13)
    assert loss.last is not None and loss.last.n_easy.tolist() == [B - 1 + (B - 1) * many] * B


def test_duplicates_are_no_negatives() -> None:
    image, text, *_ = pairs()
    text[3] = text[0]
    same = torch.zeros(B, B, dtype=torch.bool)
    same[0, 3] = same[3, 0] = True
    s = (7.0 * unit(image) @ unit(text).T).masked_fill(same, -torch.inf)
    expected = (F.cross_entropy(s, torch.arange(B)) + F.cross_entropy(s.T, torch.arange(B))) / 2
    loss = CementLoss()
    torch.testing.assert_close(loss(image, text, None, 7.0, duplicate_mask=same), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(loss(image, text, None, 7.0, duplicate_mask=same | torch.eye(B, dtype=torch.bool)), expected)
    assert loss.last is not None and loss.last.n_easy.tolist() == [4, 5, 5, 4, 5, 5]


# ---- the exact effect of a margin -------------------------------------------------------------------------------------------------------


def test_a_margin_divides_the_imbalance_by_its_exponential_and_raises_the_pull() -> None:
    image, text, hard, c = pairs(32)
    before, after = CementLoss(0.0), CementLoss(3.0)
    for loss in (before, after):
        loss(image, text, hard, 20.0, c)
    assert before.last is not None and after.last is not None
    torch.testing.assert_close(after.last.ratio, before.last.ratio * torch.exp(-3.0 * c), rtol=1e-12, atol=0)
    assert (after.last.positive <= before.last.positive).all() and (after.last.hard >= before.last.hard).all()
    assert (after.last.positive < 0.9 * before.last.positive).any()
    torch.testing.assert_close(after.last.positive + after.last.hard + after.last.easy, torch.ones(32, dtype=torch.float64))


def test_the_sign_can_be_turned_around() -> None:
    image, text, hard, c = pairs()
    loss, turned = CementLoss(2.0, reduction="none"), CementLoss(2.0, lambda c: 1 - c, reduction="none")
    torch.testing.assert_close(loss(image, text, hard, 5.0, 1 - c), turned(image, text, hard, 5.0, c), rtol=1e-13, atol=0)
    concrete, abstract = (loss(image, text, hard, 5.0, torch.full_like(c, value)) for value in (1.0, 0.0))
    assert (concrete > abstract).all()


def test_shares_keep_no_graph() -> None:
    image, text, hard, c = pairs()
    loss = CementLoss()
    assert loss.last is None and loss.identical == 0
    loss(image.requires_grad_(), text, hard, 7.0, c)
    assert loss.last is not None and not loss.last.ratio.requires_grad
    assert not loss.state_dict()["expected"].numel()


# ---- margins fitted ---------------------------------------------------------------------------------------------------------------------


def test_a_fitted_margin_is_large_where_little_similarity_is_expected() -> None:
    image, text, hard, _ = pairs(4)
    c = torch.tensor([0.0, 0.25, 0.995, 1.0], dtype=torch.float64)
    loss = CementLoss(2.0, "fitted", symmetric=False, reduction="none")
    # Falls from 0.9 to 0.5, with a step back that isotonic regression evens out.
    loss.fit(torch.tensor([0.0, 0.2, 0.3, 1.0]), torch.tensor([0.9, 0.6, 0.8, 0.5]))
    expected = torch.tensor([0.6, 0.8, 1.0 - 0.005 * 0.2 / 0.7, 1.0], dtype=torch.float64)  # 0.5 + 1 - (0.9, 0.7, ..., 0.5)
    plain, _ = by_cross_entropy(image, text, hard, 7.0, 2.0 * expected[:, None])
    torch.testing.assert_close(loss(image, text, hard, 7.0, c), plain, rtol=1e-6, atol=0)  # the curve is kept in float32
    other = CementLoss(2.0, "fitted", symmetric=False, reduction="none")
    with pytest.raises(InputError, match="fit\\(concreteness, similarity\\)"):
        other(image, text, hard, 7.0, c)
    other.load_state_dict(loss.state_dict())
    torch.testing.assert_close(other(image, text, hard, 7.0, c), plain, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("adapt", "c", "s", "message"),
    [
        ("linear", [0.5], [0.5], "adapt"),
        ("fitted", [0.5, 0.6], [0.5], "concreteness and similarity"),
        ("fitted", [], [], "concreteness and similarity"),
        ("fitted", [1.5], [0.5], "concreteness: got 1.5"),
        ("fitted", [0.5], [math.nan], "similarity"),
    ],
)
def test_what_cannot_be_fitted(adapt: Any, c: list[float], s: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CementLoss(adapt=adapt).fit(torch.tensor(c), torch.tensor(s))


# ---- scale, precision -------------------------------------------------------------------------------------------------------------------


def test_the_scale_may_be_a_number_or_a_parameter_of_either_kind() -> None:
    image, text, hard, c = pairs()
    expected = CementLoss()(image, text, hard, 7.0, c)
    log = torch.tensor([math.log(7.0)], dtype=torch.float64, requires_grad=True)
    found = CementLoss()(image, text, hard, log, c, scale_is_log=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(CementLoss()(image, text, hard, math.log(7.0), c, scale_is_log=True), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(CementLoss()(image, text, hard, torch.tensor(7.0), c, scale_is_log=False), expected, rtol=1e-12, atol=0)
    assert gradient(found, log)[0].shape == (1,)
    assert torch.autograd.gradcheck(lambda x: CementLoss()(image, text, hard, x, c, scale_is_log=True), (log,))


def test_inner_products_where_nothing_is_normalized() -> None:
    image, text, hard, c = pairs()
    loss = CementLoss(normalize=False)
    assert loss(image, text, hard, 0.5, c).item() != pytest.approx(CementLoss()(image, text, hard, 0.5, c).item(), rel=1e-3)
    units = unit(image), unit(text), unit(hard)
    torch.testing.assert_close(loss(*units, 7.0, c), CementLoss()(image, text, hard, 7.0, c), rtol=1e-12, atol=0)


def test_extreme_scales_stay_finite() -> None:
    image, text, hard, c = (part.float().requires_grad_() for part in pairs())
    for scale in (1e-6, 1e3, 1e6):
        loss = CementLoss(50.0)(image, text, hard, scale, c)
        assert torch.isfinite(loss) and all(torch.isfinite(part).all() for part in gradient(loss, image, text, hard))


def test_one_row_is_compared_with_its_hard_negative() -> None:
    image, text, hard, c = (part.requires_grad_() for part in pairs(1))
    loss = CementLoss(reduction="none")
    found = loss(image, text, hard, 7.0, c)
    expected, _ = by_cross_entropy(image, text, hard, 7.0, 3.0 * c[:, None])
    torch.testing.assert_close(found, expected / 2, rtol=1e-12, atol=0)  # from text to image there is nothing to choose
    assert all(torch.isfinite(part).all() for part in gradient(found.sum(), image, text, hard))
    assert loss.last is not None and loss.last.easy.item() == 0 and loss.last.ratio.item() == 0


# ---- several processes ------------------------------------------------------------------------------------------------------------------

SHARES = (4, 2)  # rows of the two processes
KINDS = {"own": "own", "all": "all"}


def one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for columns in KINDS:
        inputs = [part.split(SHARES)[rank].clone().requires_grad_() for part in pairs()[:3]]
        c = pairs()[3].split(SHARES)[rank]
        same = duplicates().split(SHARES)[rank]
        loss = CementLoss(hard_columns=columns, gather=True)  # type: ignore[arg-type]
        value = loss(*inputs, 7.0, c, duplicate_mask=same)
        each = CementLoss(hard_columns=columns, gather=True, reduction="none")(*inputs, 7.0, c, duplicate_mask=same)  # type: ignore[arg-type]
        assert loss.last is not None
        found[columns] = value.detach(), gradient(value, *inputs), each.detach(), loss.last.ratio
    alone = CementLoss(reduction="none")(*inputs, 7.0, c).detach()
    torch.save({"found": found, "alone": alone}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def duplicates() -> Tensor:
    same = torch.zeros(B, B, dtype=torch.bool)
    same[0, 5] = same[5, 0] = True
    return same


def test_processes_compare_all_rows(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for columns in KINDS:
        inputs = [part.requires_grad_() for part in pairs()[:3]]
        loss = CementLoss(hard_columns=columns)  # type: ignore[arg-type]
        value = loss(*inputs, 7.0, pairs()[3], duplicate_mask=duplicates())
        each = CementLoss(hard_columns=columns, reduction="none")(*inputs, 7.0, pairs()[3], duplicate_mask=duplicates())  # type: ignore[arg-type]
        parts = [rank["found"][columns] for rank in ranks]
        torch.testing.assert_close(sum(part[0] for part in parts) / 2, value, rtol=1e-12, atol=0)
        for k, expected in enumerate(gradient(value, *inputs)):  # what DDP's mean makes of it
            torch.testing.assert_close(torch.cat([part[1][k] for part in parts]) / 2, expected, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(torch.cat([part[2] for part in parts]), each, rtol=1e-12, atol=1e-14)
        assert loss.last is not None
        torch.testing.assert_close(torch.cat([part[3] for part in parts]), loss.last.ratio, rtol=1e-12, atol=1e-14)
    image, text, hard, c = (part.split(SHARES)[1] for part in pairs())
    torch.testing.assert_close(ranks[1]["alone"], CementLoss(reduction="none")(image, text, hard, 7.0, c))


# ---- bad input --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1.0}, "margin: got -1.0; expected a number >= 0"),
        ({"margin": math.inf}, "margin"),
        ({"adapt": "lineer"}, "Did you mean 'linear'"),
        ({"hard_columns": "both"}, "hard_columns"),
        ({"reduction": "max"}, "reduction"),
        ({"fill": 2.0}, "fill"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        CementLoss(**options)


def mask(*values: bool) -> Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.zeros(B)}, "image: got a tensor of torch.float32 and shape \\(6,\\)"),
        ({"image": torch.zeros(B, D, dtype=torch.int64)}, "image"),
        ({"text": torch.zeros(B, D + 1, dtype=torch.float64)}, "text"),
        ({"text": torch.zeros(B, D, dtype=torch.bool)}, "text: got a tensor of torch.bool"),
        ({"hard_text": torch.zeros(B - 1, D, dtype=torch.float64)}, "hard_text"),
        ({"hard_text": None}, "concreteness: .* expected None where hard_text is None"),
        ({"concreteness": None}, "concreteness: got None; .* adapt='constant' needs none"),
        ({"concreteness": torch.zeros(B, 2)}, "concreteness"),
        ({"concreteness": torch.tensor([0.5, 4.2, 0, 0, 0, 0])}, "concreteness: got 4.1999.*; .* / 4"),
        ({"concreteness": torch.tensor([0.5, -0.1, 0, 0, 0, 0])}, "concreteness: got -0.1000"),
        ({"concreteness": torch.tensor([0.5, math.nan, 0, 0, 0, 0])}, "concreteness: got nan; .* fill="),
        ({"hard_mask": torch.ones(B)}, "hard_mask"),
        ({"hard_mask": torch.ones(B - 1, dtype=torch.bool)}, "hard_mask"),
        ({"duplicate_mask": torch.ones(B, B)}, "duplicate_mask"),
        ({"duplicate_mask": torch.ones(B, B - 1, dtype=torch.bool)}, "duplicate_mask"),
        ({"logit_scale": torch.tensor(2.0)}, "scale_is_log: got None; expected True or False"),
        ({"logit_scale": torch.tensor([2.0, 1.0]), "scale_is_log": True}, "logit_scale"),
        ({"logit_scale": torch.tensor(-2.0), "scale_is_log": False}, "Is it the logarithm"),
        ({"logit_scale": 0.0}, "logit_scale: got 0.0; expected a number > 0"),
        ({"logit_scale": math.nan}, "logit_scale"),
    ],
)
def test_bad_batches(changes: dict[str, Any], message: str) -> None:
    image, text, hard, c = pairs()
    batch: dict[str, Any] = {"image": image, "text": text, "hard_text": hard, "logit_scale": 7.0, "concreteness": c} | changes
    with pytest.raises(InputError, match=message):
        CementLoss()(**batch)


def test_concreteness_that_does_not_matter_may_be_anything() -> None:
    image, text, hard, c = pairs()
    expected = CementLoss(adapt="constant")(image, text, hard, 7.0)
    torch.testing.assert_close(CementLoss(adapt="constant")(image, text, hard, 7.0, torch.full_like(c, torch.nan)), expected)
    gaps = c.clone()
    gaps[2] = torch.nan
    filled = c.clone()
    filled[2] = 0.4
    torch.testing.assert_close(CementLoss(fill=0.4)(image, text, hard, 7.0, gaps), CementLoss()(image, text, hard, 7.0, filled))


@pytest.mark.parametrize("g", [lambda c: -c - 1, lambda c: c.sum(), lambda c: 1.0, lambda c: c / 0])
def test_a_function_of_concreteness_gives_a_margin_for_each(g: Any) -> None:
    image, text, hard, c = pairs()
    with pytest.raises(InputError, match="adapt"):
        CementLoss(adapt=g)(image, text, hard, 7.0, c)


def test_something_to_compare_with() -> None:
    image, text, hard, c = pairs(1)
    for arguments in ((None, 7.0), (hard, 7.0, c, mask(False)), (text, 7.0, c)):
        with pytest.raises(InputError, match="image: got one row, and no hard negative"):
            CementLoss()(image, text, *arguments)
    with pytest.raises(InputError, match="at least one pair"):
        CementLoss()(image[:0], text[:0], hard[:0], 7.0, c[:0])


def test_it_says_what_it_is() -> None:
    assert "margin=2, adapt=linear, hard_columns='own'" in repr(CementLoss(2.0))
    assert "adapt=<lambda>" in repr(CementLoss(adapt=lambda c: c))


def test_the_length_of_embeddings_does_not_matter() -> None:
    inputs = [part.float().requires_grad_() for part in pairs(200)[:3]]  # more rows than one block has
    c = pairs(200)[3].float()
    value = CementLoss()(*inputs, 7.0, c)
    expected = gradient(value, *inputs)
    for factor in (1e30, 1e-10):
        scaled = [(factor * part).detach().requires_grad_() for part in inputs]
        found = CementLoss()(*scaled, 7.0, c)
        torch.testing.assert_close(found, value, rtol=1e-5, atol=0)
        for a, b in zip(gradient(found, *scaled), expected, strict=True):
            torch.testing.assert_close(factor * a, b, rtol=1e-3, atol=1e-6)


def test_many_rows_in_blocks() -> None:
    inputs = [part.requires_grad_() for part in pairs(300)[:3]]
    there, back = by_cross_entropy(*inputs, 7.0, 3.0 * pairs(300)[3][:, None])
    loss = CementLoss(reduction="none")(*inputs, 7.0, pairs(300)[3])
    torch.testing.assert_close(loss, (there + back) / 2, rtol=1e-12, atol=1e-13)
    upstream = torch.linspace(-1, 2, 300, dtype=torch.float64)
    for a, b in zip(gradient(loss @ upstream, *inputs), gradient((there + back) @ upstream / 2, *inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
