from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from counterpoise._errors import InputError
from counterpoise.losses import ModalityTemperature, OmniContrastiveLoss, QuantileCurriculum, batch_whiten, coral_loss
from counterpoise.losses._omni import debiased_losses

B, D, M = 9, 5, 3
TAU = [0.2, 0.5, 0.3]

Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def batch(rows: int = B, targets: int | None = None, width: int = D, seed: int = 0, dtype: torch.dtype = torch.float64) -> Batch:
    """Unnormalized embeddings that take a gradient, and modality indices; positives resemble their queries."""
    g = torch.Generator().manual_seed(seed)
    query = torch.randn(rows, width, generator=g, dtype=torch.float64)
    target = torch.randn(targets or rows, width, generator=g, dtype=torch.float64)
    target[:rows] += 0.7 * query[: len(target)]
    modalities = (torch.randint(M, (n,), generator=g) for n in (rows, len(target)))
    return query.to(dtype).requires_grad_(), (2 * target).to(dtype).requires_grad_(), *modalities


def make(tau: Any = TAU, rho: float = 0.0, dtype: torch.dtype = torch.float64, **options: Any) -> OmniContrastiveLoss:
    curriculum = QuantileCurriculum(rho, rho) if rho else None
    return OmniContrastiveLoss(ModalityTemperature(M, init=torch.as_tensor(tau, dtype=dtype)), curriculum, **options)


def gradients(loss: OmniContrastiveLoss, query: Tensor, target: Tensor, *rest: Any) -> list[Tensor]:
    value = loss(query, target, *rest)
    return [value.detach(), *torch.autograd.grad(value, [query, target, loss.temperature.log_tau])]


def by_definition(
    loss: OmniContrastiveLoss, query: Tensor, target: Tensor, mq: Tensor, mt: Tensor, positives: Tensor, mask: Tensor, rho: float
) -> Tensor:
    """The formulas, element by element, with exponentials as they stand."""
    tau = loss.temperature.log_tau.exp()
    q, t = F.normalize(query), F.normalize(target)
    logits = {(i, j): q[i] @ t[j] / ((tau[mq[i]] + tau[mt[j]]) / 2) for i in range(len(q)) for j in range(len(t))}

    def row(own: Tensor, others: list[Tensor]) -> Tensor:
        values = torch.stack(others)
        kept = values[values.detach().numpy() >= np.quantile(values.detach().numpy(), rho)]
        n = kept.exp().sum() - loss.gamma_plus * own.exp()
        largest = torch.cat([kept, own[None]]).max()
        floor = loss.eps * (largest.exp() if loss.eps_mode == "relative" else torch.ones_like(n))
        n = torch.maximum(n, floor) if loss.gamma_plus or loss.eps_mode == "absolute" else n
        return -torch.log(own.exp() / (own.exp() + n))

    rows = []
    for i in range(len(q)):
        at = int(positives[i])
        value = row(logits[i, at], [logits[i, j] for j in range(len(t)) if j != at and not mask[i, j]])
        if loss.symmetric:
            others = [logits[k, at] for k in range(len(q)) if int(positives[k]) != at and not mask[k, at]]
            value = (value + row(logits[i, at], others)) / 2
        rows.append(value)
    return torch.stack(rows)


# ---- what it is -------------------------------------------------------------------------------------------------------------------------

OPTIONS = [
    {"gamma_plus": 0.0},
    {},
    {"rho": 0.4},
    {"rho": 0.4, "symmetric": True},
    {"rho": 0.25, "symmetric": True, "gamma_plus": 0.6},
    {"gamma_plus": 0.6, "eps": 0.05, "eps_mode": "absolute"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "defaults")
@pytest.mark.parametrize("case", ["pairs", "more targets", "own positives", "mask"])
def test_it_is_the_definition(options: dict[str, Any], case: str) -> None:
    query, target, mq, mt = batch(targets=B + 4 if case in ("more targets", "own positives") else B)
    positives = torch.arange(B)
    mask = torch.zeros(B, len(target), dtype=torch.bool)
    given: dict[str, Tensor] = {}
    if case == "own positives":
        given["positives"] = positives = torch.tensor([3, 1, 12, 0, 5, 5, 2, 10, 4])  # two queries share a target
    if case == "mask":
        mask = torch.rand(B, B, generator=torch.Generator().manual_seed(5)) < 0.3
        mask[2] = torch.tensor([True] * 3 + [False] + [True] * 5)  # one negative is left
        given["positives_mask"] = mask
    loss = make(coral_weight=0.0, reduction="none", **options)
    found = loss(query, target, mq, mt, **given)
    expected = by_definition(loss, query, target, mq, mt, positives, mask, options.get("rho", 0.0))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    upstream = torch.linspace(-1, 2, B, dtype=torch.float64)
    leaves = [query, target, loss.temperature.log_tau]
    for one, other in zip(*(torch.autograd.grad(x @ upstream, leaves) for x in (found, expected)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_without_its_parts_it_is_infonce_and_the_loss_of_clip() -> None:
    query, target, mq, mt = batch(40)
    logits = F.normalize(query) @ F.normalize(target).T / 0.07
    rows = F.cross_entropy(logits, torch.arange(40)), F.cross_entropy(logits.T, torch.arange(40))
    parts = {"gamma_plus": 0.0, "coral_weight": 0.0}
    assert make(0.07, **parts)(query, target, mq, mt).item() == pytest.approx(rows[0].item(), abs=1e-10)
    assert make(0.07, symmetric=True, **parts)(query, target, mq, mt).item() == pytest.approx(sum(rows).item() / 2, abs=1e-10)


def test_equal_temperatures_are_one_temperature() -> None:
    query, target, mq, mt = batch()
    options = {"symmetric": True, "rho": 0.3}
    several = gradients(make(0.1, **options), query, target, mq, mt)
    one = OmniContrastiveLoss(
        ModalityTemperature(1, init=torch.tensor(0.1, dtype=torch.float64)), QuantileCurriculum(0.3, 0.3), symmetric=True
    )
    single = gradients(one, query, target, torch.zeros_like(mq), torch.zeros_like(mt))
    for a, b in zip(several[:3], single[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(several[3].sum(), single[3][0], rtol=1e-10, atol=1e-14)
    weights = torch.full((B, M), 1 / M, dtype=torch.float64)
    torch.testing.assert_close(make(0.1, **options)(query, target, weights, weights), single[0], rtol=1e-12, atol=0)


@pytest.mark.parametrize("rho", [0.1, 0.5])
def test_the_share_that_is_kept_is_reported(rho: float) -> None:
    query, target, mq, mt = batch(41)
    loss = make(rho=rho, symmetric=True)
    loss(query, target, mq, mt)
    n = 40
    assert loss.last.kept_fraction.item() == pytest.approx((n - math.ceil(rho * (n - 1) - 1e-9)) / n, abs=1e-12)
    mask = torch.rand(41, 41, generator=torch.Generator().manual_seed(5)) < 0.3
    loss(query, target, mq, mt, positives_mask=mask)
    assert abs(loss.last.kept_fraction.item() - (1 - rho)) < 0.03
    plain = make()
    plain(query, target, mq, mt)
    assert plain.last.kept_fraction.item() == 1.0


def test_rows_without_a_negative_have_the_floor_only() -> None:
    query, target, mq, mt = batch()
    mask = torch.zeros(B, B, dtype=torch.bool)
    mask[4] = True
    for rho, gamma_plus in ((0.0, 0.1), (0.5, 0.1), (0.5, 0.0)):
        loss = make(rho=rho, gamma_plus=gamma_plus, coral_weight=0.0, reduction="none")
        rows = loss(query, target, mq, mt, positives_mask=mask)
        assert rows[4].item() == pytest.approx(math.log1p(1e-6) if gamma_plus else 0.0, rel=1e-9)
        grad = torch.autograd.grad(rows.sum(), query)[0]
        assert torch.isfinite(grad).all() and (grad[4] == 0).all() and (grad[3] != 0).any()
        assert loss.last.kept_fraction <= 1 - rho + 1 / (B - 1)


def test_the_alignment_term_is_that_of_the_whitened_unit_embeddings() -> None:
    query, target, mq, mt = batch(20)
    unit = F.normalize(query), F.normalize(target)
    for whiten, expected in ((True, coral_loss(*batch_whiten(*unit))), (False, coral_loss(*unit))):
        loss = make(whiten=whiten, coral_weight=0.7)
        value, rest = loss(query, target, mq, mt), make(coral_weight=0.0)(query, target, mq, mt)
        torch.testing.assert_close(loss.last.coral, expected.detach(), rtol=1e-9, atol=0)
        torch.testing.assert_close(value, rest + 0.7 * expected, rtol=1e-12, atol=0)


def test_gradients_are_those_of_the_values() -> None:
    query, target, mq, mt = batch(7, seed=3)
    for options in ({"rho": 0.3, "symmetric": True, "whiten": False}, {"gamma_plus": 0.4, "eps": 1e-3, "coral_weight": 0.0}):
        loss = make(**options)

        def value(q: Tensor, t: Tensor, log_tau: Tensor, loss: OmniContrastiveLoss = loss) -> Tensor:
            return torch.func.functional_call(loss, {"temperature.log_tau": log_tau}, (q, t, mq, mt))

        assert torch.autograd.gradcheck(value, (query, target, loss.temperature.log_tau))


# ---- the logarithm ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tau", [0.02, 0.01, 0.001])
def test_low_temperatures_do_not_overflow(tau: float) -> None:
    assert math.exp(1 / 0.01) > torch.finfo(torch.float32).max
    query, target, mq, mt = batch(30)
    loss, exact = (make(tau, rho=0.3, symmetric=True, dtype=dtype) for dtype in (torch.float32, torch.float64))
    found = gradients(loss, *(x.detach().float().requires_grad_() for x in (query, target)), mq, mt)
    for one, other in zip(found, gradients(exact, query, target, mq, mt), strict=True):
        assert torch.isfinite(one).all()
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-3 * other.abs().max().item())


def test_easy_rows_lie_on_the_floor_and_are_counted() -> None:
    """cos 1 for the positives and 0 for the rest, at tau 0.02: e^50 against 8."""
    query = torch.eye(B, requires_grad=True)
    same = torch.zeros(B, dtype=torch.int64)
    loss = make(0.02, dtype=torch.float32, coral_weight=0.0)
    value, by_query, *_ = gradients(loss, query, torch.eye(B, requires_grad=True), same, same)
    assert loss.last.floor_hits == 1 and value.item() == pytest.approx(1e-6, rel=1e-3) and by_query.abs().max() < 1e-12
    plain = make(0.02, dtype=torch.float32, coral_weight=0.0, gamma_plus=0.0)
    assert plain(query, torch.eye(B), same, same).item() < 1e-6 and plain.last.floor_hits == 0
    hard = make(0.02, dtype=torch.float32, coral_weight=0.0)
    hard(query, torch.eye(B).roll(1, 0), same, same)  # every positive is orthogonal, and some negative is equal
    assert hard.last.floor_hits == 0
    absolute = make(0.5, dtype=torch.float32, coral_weight=0.0, eps=1e3, eps_mode="absolute", reduction="none")
    rows = absolute(query, torch.eye(B), same, same)
    assert absolute.last.floor_hits == 1
    torch.testing.assert_close(rows, torch.full((B,), math.log1p(1e3 / math.exp(2.0))))


def test_the_correction_near_its_end_is_exact() -> None:
    """N = e^l - gamma e^S loses all its digits where both are equal; the floor takes over before that shows."""
    negative = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    positive, gamma = torch.zeros_like(negative), 0.3
    found, floored = debiased_losses(positive, negative, gamma, 1e-6)
    n = (negative.exp() - gamma).clamp(min=1e-6)
    torch.testing.assert_close(found, torch.log1p(n), rtol=1e-9, atol=1e-14)
    assert torch.equal(floored, negative.exp() - gamma <= 1e-6)


def test_half_precision_is_computed_in_single() -> None:
    query, target, mq, mt = batch(dtype=torch.bfloat16)
    loss = make(0.01, dtype=torch.float32, rho=0.3, symmetric=True)
    value = loss(query, target, mq, mt)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(query.float(), target.float(), mq, mt))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(query.float(), target.float(), mq, mt), value)
    value.backward()
    assert query.grad is not None and query.grad.dtype == torch.bfloat16
    assert loss(query, target.double(), mq, mt).dtype == torch.float64  # the wider of both sides


# ---- its parts in training --------------------------------------------------------------------------------------------------------------


def test_an_absent_modality_has_the_gradient_zero() -> None:
    query, target, *_ = batch()
    ids = torch.arange(B) % 2
    grad = gradients(make(), query, target, ids, ids)[3]
    assert grad[2] == 0 and (grad[:2] != 0).all()


def test_training_advances_the_curriculum() -> None:
    query, target, mq, mt = batch()
    loss = make()
    loss.curriculum = QuantileCurriculum(0.0, 0.5, warmup=1, total=3)
    shares = []
    for _ in range(4):
        loss(query, target, mq, mt)
        shares.append(loss.last.kept_fraction.item())
    assert loss.curriculum.step == 4 and shares == [1.0, 1.0, 0.75, 0.5]
    loss.eval()
    loss(query, target, mq, mt)
    assert loss.curriculum.step == 4
    other = make()
    other.curriculum = QuantileCurriculum(0.0, 0.5, warmup=1, total=3)
    other.load_state_dict(loss.state_dict())
    assert other.curriculum.step == 4
    make().load_state_dict(loss.state_dict())  # without one


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch.compile does so with any autograd.Function
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_a_curriculum_that_moves_is_compiled_once(masked: bool) -> None:
    query, target, mq, mt = batch()
    mask = torch.rand(B, B, generator=torch.Generator().manual_seed(5)) < 0.3 if masked else None
    plain, traced = (make(symmetric=True) for _ in range(2))
    for loss in (plain, traced):
        loss.curriculum = QuantileCurriculum(0.1, 0.7, warmup=2, total=8, rho_before_warmup=0.0)
    torch._dynamo.reset()
    compiled = torch.compile(traced, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(1, 11):
            found = compiled(query, target, mq, mt, positives_mask=mask)
            torch.testing.assert_close(found, plain(query, target, mq, mt, positives_mask=mask), rtol=1e-12, atol=0)
            assert torch.equal(traced.last.kept_fraction, plain.last.kept_fraction) and traced.curriculum.step == step


def test_positives_of_any_integer_type() -> None:
    query, target, mq, mt = batch()
    positives = torch.tensor([3, 1, 2, 0, 5, 4, 6, 8, 7])
    for symmetric in (False, True):
        found = [make(symmetric=symmetric)(query, target, mq, mt, positives.to(t)) for t in (torch.int64, torch.int32, torch.uint8)]
        assert found[0] == found[1] == found[2]


def test_gradients_can_be_cached() -> None:
    """Embeddings in chunks: once without a graph, then again with the gradients of the loss by the embeddings (GradCache)."""
    torch.manual_seed(0)
    x, y = torch.randn(12, 4, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    ids = torch.arange(12) % M
    encoder, loss = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, D)).double(), make(rho=0.3, symmetric=True)
    leaves = [*encoder.parameters(), loss.temperature.log_tau]
    direct = torch.autograd.grad(loss(encoder(x), encoder(y), ids, ids), leaves)

    with torch.no_grad():
        cached = [torch.cat([encoder(part) for part in side.split(5)]) for side in (x, y)]
    for embedding in cached:
        embedding.requires_grad_()
    loss(*cached, ids, ids).backward()
    for side, embedding in zip((x, y), cached, strict=True):
        for part, grad in zip(side.split(5), embedding.grad.split(5), strict=True):
            (encoder(part) * grad).sum().backward()
    for leaf, expected in zip(leaves, direct, strict=True):
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-9, atol=1e-14)


def test_it_learns() -> None:
    """Two views of 40 items, in a few steps of a linear encoder; all parts on."""
    torch.manual_seed(0)
    items = torch.randn(40, 6)
    first, second = items @ torch.randn(6, 10), items @ torch.randn(6, 12)
    encoders = nn.ModuleList([nn.Linear(10, 8), nn.Linear(12, 8)])
    loss = OmniContrastiveLoss(
        ModalityTemperature(["a", "b"], init=0.1), QuantileCurriculum(warmup=20, total=150), symmetric=True, coral_weight=0.02
    )
    optimizer = torch.optim.Adam([*encoders.parameters(), *loss.parameters()], lr=0.02)
    for _ in range(150):
        embeddings = encoders[0](first), encoders[1](second)
        value = loss(*embeddings, ["a"] * 40, ["b"] * 40)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    best = (F.normalize(embeddings[0]) @ F.normalize(embeddings[1]).T).argmax(dim=1)
    assert (best == torch.arange(40)).float().mean() > 0.9


# ---- several processes ------------------------------------------------------------------------------------------------------------------

SHARES = (7, 5)  # rows of the two processes
GATHERED = [
    {"rho": 0.3},
    {"rho": 0.3, "symmetric": True},
    {"whiten": False, "coral_weight": 1.0, "symmetric": True, "gamma_plus": 0.0},
]


def gathered_batch() -> tuple[Batch, Tensor]:
    mask = torch.rand(12, 12, generator=torch.Generator().manual_seed(9)) < 0.2
    return batch(12), mask


def one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    whole, whole_mask = gathered_batch()
    query, target, mq, mt = (part.detach().split(SHARES)[rank] for part in whole)
    query, target = (part.clone().requires_grad_() for part in (query, target))
    found: list[Any] = []
    for options in GATHERED:
        for mask in (None, whole_mask.split(SHARES)[rank]):
            loss = make(negatives="gathered", **options)
            found.append(gradients(loss, query, target, mq, mt, None, mask))
            found[-1].append(make(negatives="gathered", reduction="none", **options)(query, target, mq, mt, None, mask).detach())
    # Columns of one's own: the last target belongs to the first query, and so on.
    turned = target.detach().flip(0).requires_grad_()
    order = torch.arange(len(query)).flip(0)
    found.append(gradients(make(negatives="gathered", **GATHERED[1]), query, turned, mq, mt.flip(0), order))
    found[-1][2] = found[-1][2].flip(0)
    errors = []
    for bad in (float("nan"), None):
        spoiled = query.detach().clone()
        try:
            if bad is None:
                make(negatives="gathered")(query, target, mq, mt, None, whole_mask[:2])
            elif rank:
                spoiled[1] = bad
            make(negatives="gathered")(spoiled, target, mq, mt)
        except InputError as error:  # on both: none is left waiting for the other
            errors.append(str(error))
    torch.save({"found": found, "errors": errors}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_compare_all_rows(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    (query, target, mq, mt), whole_mask = gathered_batch()
    expected = []
    for options in GATHERED:
        for mask in (None, whole_mask):
            each = make(reduction="none", **options)(query, target, mq, mt, None, mask).detach()
            expected.append([*gradients(make(**options), query, target, mq, mt, None, mask), each])
    expected.append(gradients(make(**GATHERED[1]), query, target, mq, mt))
    for case, wanted in enumerate(expected):
        (value, *by_embeddings, by_tau), (value_1, *by_embeddings_1, by_tau_1) = (part["found"][case][:4] for part in parts)
        torch.testing.assert_close((value + value_1) / 2, wanted[0], rtol=1e-11, atol=0)
        for one, other, whole in zip(by_embeddings, by_embeddings_1, wanted[1:3], strict=True):
            torch.testing.assert_close(torch.cat([one, other]) / 2, whole, rtol=1e-8, atol=1e-13)  # what DDP's mean makes of it
        torch.testing.assert_close((by_tau + by_tau_1) / 2, wanted[3], rtol=1e-8, atol=1e-13)
        if len(wanted) == 5:
            torch.testing.assert_close(torch.cat([part["found"][case][4] for part in parts]), wanted[4], rtol=1e-10, atol=1e-14)
    for part in parts:
        assert "query: got nan or inf in row 8" in part["errors"][0]
        assert "Columns are the targets of all processes" in part["errors"][1]


# ---- bad input --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.02}, "temperature: got 0.02; expected a ModalityTemperature"),
        ({"curriculum": 0.5}, "curriculum"),
        ({"gamma_plus": 1.0}, "gamma_plus"),
        ({"gamma_plus": -0.1}, "gamma_plus"),
        ({"eps": 0.0}, "eps"),
        ({"eps_mode": "exact"}, "eps_mode: got 'exact'; expected one of relative, absolute"),
        ({"coral_weight": -1.0}, "coral_weight"),
        ({"negatives": "all"}, "negatives"),
        ({"reduction": "max"}, "reduction"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OmniContrastiveLoss(**{"temperature": ModalityTemperature(M)} | options)


def test_batches_that_make_no_sense_are_refused() -> None:
    query, target, mq, mt = (part.detach() for part in batch())
    nan = query.clone()
    nan[3, 1] = nan[6, 0] = float("nan")
    mask = torch.zeros(B, B, dtype=torch.bool)
    for arguments, message in (
        ((query[0], target, mq, mt), "query: got"),
        ((query.long(), target, mq, mt), "query: got"),
        ((query, target[:, :3], mq, mt), "query and target"),
        ((query[:0], target, mq[:0], mt), "query and target"),
        ((query, target[:5], mq, mt[:5]), "target: got 5 rows for 9 queries"),
        ((query, target, mq[:5], mt), "query_modality: got 5 items for 9 embeddings"),
        ((query, target, mq, mt + 1), "target_modality: got 3; expected indices of modalities, 0..2"),
        ((query, target, mq, ["smell"] * B), "target_modality: got 'smell'"),
        ((nan, target, mq, mt), "query: got nan or inf in row 3, 6; expected finite embeddings"),
        ((query, nan / 0, mq, mt), "target: got nan or inf in row 0, 1"),
        ((query[:1], target[:1], mq[:1], mt[:1]), "target: got 1 rows; expected an input of at least two"),
        ((query[:1], target, mq[:1], mt), "query: got '?1 row'?; expected an input of at least two, which have a covariance"),
        ((query, target, mq, mt, torch.full((B,), B)), "positives: got"),
        ((query, target, mq, mt, torch.arange(B) / 2), "positives: got"),
        ((query, target, mq, mt, None, mask[:3]), r"positives_mask: got .* shape \(3, 9\)"),
        ((query, target, mq, mt, None, mask.long()), "positives_mask"),
    ):
        with pytest.raises(InputError, match=message):
            make()(*arguments)
    assert make(coral_weight=0.0)(query[:1], target, mq[:1], mt) > 0  # one query, several targets


def test_its_repr_names_what_was_chosen() -> None:
    text = repr(make(rho=0.25, symmetric=True))
    assert "symmetric=True" in text and "rho_init=0.25" in text and "gamma_plus=0.1" in text
