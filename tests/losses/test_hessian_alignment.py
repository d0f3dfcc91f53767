"""Hessian alignment against Hessians written out in full, in one process, in two, compiled, and in half precision."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.utils import prune

from counterpoise._errors import InputError
from counterpoise.losses import HessianAlignmentLoss
from counterpoise.losses._head_curvature import AnyHead, LinearHead, arrange

EXACT = {"rtol": 0, "atol": 1e-10}
ROWS, WIDTH = 23, 5
ALPHA, BETA = 0.7, 0.3


def problem(n_classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Features (ROWS, WIDTH), targets and domains 0, 1, 2 of 13, 6 and 4 rows in mixed order."""
    source = torch.Generator().manual_seed(seed)
    features = torch.randn(ROWS, WIDTH, generator=source, dtype=torch.float64)
    target = torch.randint(max(2, n_classes), (ROWS,), generator=source)
    domain = torch.tensor([0] * 13 + [1] * 6 + [2] * 4)[torch.randperm(ROWS, generator=source)]
    features[domain == 1] += 0.8
    return features.to(dtype), target, domain


def linear(n_classes: int = 3, bias: bool = True, dtype: torch.dtype = torch.float64) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(WIDTH, n_classes, bias=bias).to(dtype)


def network(n_classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, n_classes)).double()


def value_and_gradients(loss: HessianAlignmentLoss, features: Tensor, *rest: Tensor) -> list[Tensor]:
    """The loss, its gradients by the features, and those by the head's parameters."""
    features = features.detach().clone().requires_grad_()
    value = loss(features, *rest)
    parameters = list(loss.head.parameters())
    return [value.detach(), *torch.autograd.grad(value.sum(), [features, *parameters])]


def written_out(head: nn.Module, method: str, detach_mean: bool, features: Tensor, target: Tensor, domain: Tensor) -> list[Tensor]:
    """The same from whole Hessians of the losses of the domains, with respect to all parameters of the head."""
    features = features.detach().clone().requires_grad_()
    parameters = dict(head.named_parameters())
    flat = torch.cat([p.flatten() for p in parameters.values()])

    def losses(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in parameters.values()])
        values = {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}
        logits = torch.func.functional_call(head, values, (features,))
        if logits.shape[1] == 1:
            each = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target.double(), reduction="none")
        else:
            each = nn.functional.cross_entropy(logits, target, reduction="none")
        return torch.stack([each[domain == e].mean() for e in domain.unique()])

    g, H = torch.func.jacrev(losses)(flat), torch.func.hessian(losses)(flat)
    g_mean, H_mean = g.mean(0), H.mean(0)
    h, h_mean = (torch.einsum("eij,ej->ei", H, g), H_mean @ g_mean) if method == "hgp" else (H.diagonal(dim1=1, dim2=2), H_mean.diagonal())
    if detach_mean:
        g_mean, h_mean = g_mean.detach(), h_mean.detach()
    gap = ALPHA * (h - h_mean).square().sum(1) + BETA * (g - g_mean).square().sum(1)
    value = (losses(flat) + gap).mean()
    return [value.detach(), *torch.autograd.grad(value, [features, *parameters.values()])]


# ---- identities ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detach_mean", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n_classes", [1, 2, 4])
@pytest.mark.parametrize("method", ["hgp", "diagonal"])
def test_closed_forms_are_those_of_whole_hessians(method, n_classes, bias, detach_mean) -> None:
    head, batch = linear(n_classes, bias), problem(n_classes)
    loss = HessianAlignmentLoss(head, method, ALPHA, BETA, detach_mean)
    torch.testing.assert_close(value_and_gradients(loss, *batch), written_out(head, method, detach_mean, *batch), **EXACT)


@pytest.mark.parametrize("detach_mean", [True, False])
@pytest.mark.parametrize("n_classes", [1, 3])
def test_differentiating_twice_gives_the_closed_form(n_classes, detach_mean) -> None:
    head, batch = linear(n_classes), problem(n_classes)
    closed, twice = (HessianAlignmentLoss(h, "hgp", ALPHA, BETA, detach_mean) for h in (head, nn.Sequential(head)))
    torch.testing.assert_close(value_and_gradients(closed, *batch), value_and_gradients(twice, *batch), **EXACT)


@pytest.mark.parametrize("n_classes", [1, 3])
def test_a_head_with_a_hidden_layer(n_classes) -> None:
    head, batch = network(n_classes), problem(n_classes)
    loss = HessianAlignmentLoss(head, "hgp", ALPHA, BETA, detach_mean=False)
    torch.testing.assert_close(value_and_gradients(loss, *batch), written_out(head, "hgp", False, *batch), **EXACT)


def test_probes_estimate_the_diagonal() -> None:
    """3e4 of them: the errors are those that the off-diagonal entries predict, and none is above three standard errors."""
    features, target, domain = problem()
    head, n_probes = linear(), 30_000
    rows = arrange(domain, ROWS, features.device)
    closed = LinearHead(head, features, target, rows)
    unit = torch.eye(3 * (WIDTH + 1), dtype=torch.float64).view(-1, 1, 3, WIDTH + 1)
    H = closed.times(unit).flatten(2).movedim(0, 1)  # (E, P, P)
    torch.testing.assert_close(H.diagonal(dim1=1, dim2=2), closed.diagonal().flatten(1), **EXACT)
    torch.testing.assert_close(H, H.mT, **EXACT)
    deviation = (H.square().sum(2) - H.diagonal(dim1=1, dim2=2).square()).sqrt() / n_probes**0.5
    loss = HessianAlignmentLoss(head, "hutchinson", n_probes=n_probes)
    z = (loss._diagonal(closed, closed.gradient()).flatten(1) - closed.diagonal().flatten(1)) / deviation
    assert z.abs().max() < 3
    assert 0.7 < z.square().mean().sqrt() < 1.3


def test_probes_of_a_head_that_is_differentiated() -> None:
    features, target, domain = problem()
    head, n_probes = linear(), 200
    rows = arrange(domain, ROWS, features.device)
    twice, exact = AnyHead(nn.Sequential(head), features, target, rows), LinearHead(head, features, target, rows).diagonal()
    loss = HessianAlignmentLoss(nn.Sequential(head), "hutchinson", n_probes=n_probes)
    with torch.no_grad():
        found = loss._diagonal(twice, twice.gradient())
    exact = torch.cat([exact[..., :-1].flatten(1), exact[..., -1]], dim=1)  # weights first, then the biases
    assert (found - exact).norm() < 0.2 * exact.norm() and torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1] > 0.95


def test_probes_are_too_large_on_average_and_less_so_the_more_there_are() -> None:
    """Squared noise is added: the gap of a few probes is an estimate from above."""
    batch, excess = problem(), {}
    with torch.no_grad():
        exact = HessianAlignmentLoss(linear(), "diagonal")
        exact(*batch)
        for n_probes, calls in ((2, 150), (20, 150), (5000, 1)):
            loss = HessianAlignmentLoss(linear(), "hutchinson", n_probes=n_probes)
            gaps = []
            for _ in range(calls):
                loss(*batch)
                gaps.append(loss.last.hessian_gap)
            excess[n_probes] = (torch.stack(gaps).mean() / exact.last.hessian_gap).item() - 1
    assert excess[2] > 0.5 and excess[2] == pytest.approx(10 * excess[20], rel=0.5) and abs(excess[5000]) < 0.03


def test_whether_the_mean_is_fixed_matters_for_hgp_alone() -> None:
    batch = problem()
    for method in ("hgp", "diagonal", "hutchinson"):
        fixed, moving = (
            value_and_gradients(HessianAlignmentLoss(linear(), method, 10.0, 10.0, detach, n_probes=7), *batch) for detach in (True, False)
        )
        torch.testing.assert_close(fixed[0], moving[0], **EXACT)
        assert torch.allclose(fixed[1], moving[1], **EXACT) == (method != "hgp")


def test_without_weights_it_is_the_mean_of_the_domains_cross_entropies() -> None:
    features, target, domain = problem()
    each = nn.functional.cross_entropy(linear()(features), target, reduction="none")
    expected = torch.stack([each[domain == e].mean() for e in range(3)]).mean()
    loss = HessianAlignmentLoss(linear(), alpha=0.0, beta=0.0)
    torch.testing.assert_close(loss(features.requires_grad_(), target, domain), expected, **EXACT)
    torch.testing.assert_close(loss.last.nll, expected, **EXACT)
    assert abs(expected - each.mean()) > 1e-3  # not the mean of the rows


def test_equal_domains_have_no_gap() -> None:
    features, target, _ = problem()
    twice = [torch.cat([part, part]) for part in (features, target)]
    loss = HessianAlignmentLoss(linear(), alpha=1e6, beta=1e6)
    value = loss(twice[0].requires_grad_(), twice[1], torch.arange(2).repeat_interleave(ROWS))
    assert value.item() == pytest.approx(nn.functional.cross_entropy(linear()(features), target).item(), abs=1e-12)


# ---- domains and reductions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "relabel",
    [
        lambda d: d * 1000 - 7,
        lambda d: 2 - d,
        lambda d: d.to(torch.int8),
        lambda d: [("art", "cartoon", "photo")[e] for e in d.tolist()],
        lambda d: d.numpy(),
        lambda d: d.tolist(),
    ],
)
def test_domains_may_be_called_anything(relabel) -> None:
    features, target, domain = problem()
    expected = value_and_gradients(HessianAlignmentLoss(linear(), alpha=1.0), features, target, domain)
    found = value_and_gradients(HessianAlignmentLoss(linear(), alpha=1.0), features, target, relabel(domain))
    torch.testing.assert_close(found, expected, **EXACT)


def test_the_parts_of_the_last_loss() -> None:
    features, target, domain = problem()
    names = [("sketch", "photo", "art")[e] for e in domain.tolist()]
    loss = HessianAlignmentLoss(linear(), "hgp", ALPHA, BETA, reduction="none")
    each = loss(features.requires_grad_(), target, names)
    last = loss.last
    assert last.domains == ("art", "photo", "sketch") and last.per_domain.shape == (3, 3)
    nll, gradient, hessian = last.per_domain.unbind(1)
    torch.testing.assert_close(each, nll + BETA * gradient + ALPHA * hessian, **EXACT)
    torch.testing.assert_close(torch.stack([last.nll, last.gradient_gap, last.hessian_gap]), last.per_domain.mean(0), **EXACT)
    assert nll[0].item() == pytest.approx(nn.functional.cross_entropy(linear()(features[domain == 2]), target[domain == 2]).item())
    assert not last.per_domain.requires_grad and (gradient > 0).all() and (hessian > 0).all()
    for reduction, expected in (("mean", each.mean()), ("sum", each.sum())):
        torch.testing.assert_close(
            HessianAlignmentLoss(linear(), "hgp", ALPHA, BETA, reduction=reduction)(features, target, names), expected
        )


def test_a_domain_that_is_missing_does_not_count() -> None:
    features, target, domain = problem()
    loss = HessianAlignmentLoss(linear())
    loss(features.requires_grad_(), target, domain)
    keep = domain != 1
    value = loss(features[keep], target[keep], domain[keep])
    assert loss.last.domains == (0, 2)
    torch.testing.assert_close(value, HessianAlignmentLoss(linear())(features[keep], target[keep], domain[keep] > 0), **EXACT)


def test_a_domain_of_one_row_and_classes_that_are_missing() -> None:
    features, target, _ = problem()
    domain = torch.ones(ROWS, dtype=torch.int64)
    domain[4] = 0
    batch = features, torch.zeros_like(target), domain
    for method in ("hgp", "diagonal"):
        found = value_and_gradients(HessianAlignmentLoss(linear(), method, ALPHA, BETA), *batch)
        torch.testing.assert_close(found, written_out(linear(), method, True, *batch), **EXACT)


@pytest.mark.parametrize("head", [linear, network])
def test_one_domain_has_no_penalty_and_says_so_once(head) -> None:
    features, target, domain = problem()
    features.requires_grad_()
    loss = HessianAlignmentLoss(head(), alpha=1e9, beta=1e9)
    with pytest.warns(UserWarning, match="one domain, 7: there is nothing to align") as caught:
        value = loss(features, target, torch.full_like(domain, 7))
    assert caught[0].filename == __file__
    assert loss.last.gradient_gap == loss.last.hessian_gap == 0
    torch.testing.assert_close(value, nn.functional.cross_entropy(head()(features), target), **EXACT)
    loss(features, target, torch.full_like(domain, 7)).backward()


def test_features_without_a_gradient_are_mentioned_once() -> None:
    features, target, domain = problem()
    loss = HessianAlignmentLoss(linear())
    with torch.no_grad():
        loss(features, target, domain)  # an evaluation
    loss.eval()(features, target, domain)
    with pytest.warns(UserWarning, match="features have no gradient, so only the head is aligned") as caught:
        value = loss.train()(features, target, domain)
    assert caught[0].filename == __file__
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(value, list(loss.head.parameters())))
    loss(features, target, domain)


# ---- annealing -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weight", "divisor"), [(1e3, 1e3), (0.25, 1.0), (0.0, 1.0)])
def test_the_penalty_grows_and_the_loss_does_not(weight, divisor) -> None:
    features, target, domain = problem()
    features.requires_grad_()
    loss = HessianAlignmentLoss(linear(), alpha=ALPHA, beta=BETA, anneal=(2, weight))
    values = [loss(features, target, domain).item() for _ in range(2)]
    loss.eval()
    values.append(loss(features, target, domain).item())  # two calls have been counted, and this one is not
    loss.train()
    values.append(loss(features, target, domain).item())
    nll, penalty = loss.last.nll.item(), (ALPHA * loss.last.hessian_gap + BETA * loss.last.gradient_gap).item()
    later = (nll + weight * penalty) / divisor
    assert values == pytest.approx([nll + penalty, nll + penalty, later, later], rel=1e-12)
    assert loss.calls.item() == 3
    again = HessianAlignmentLoss(linear(), alpha=ALPHA, beta=BETA, anneal=(2, weight))
    again.load_state_dict(loss.state_dict())
    assert again(features, target, domain).item() == pytest.approx(later, rel=1e-12)


# ---- precision, states ------------------------------------------------------------------------------------------------------------------


def test_single_precision_stays_exact_under_large_weights() -> None:
    """At weights of 1e5 a gap that is the small difference of large numbers would be noise."""
    features, target, _ = problem()
    domain = torch.arange(2).repeat_interleave(ROWS)
    pair = torch.cat([features, features + 1e-3 * features.roll(1, 0)])
    target = torch.cat([target, target])
    for method in ("hgp", "diagonal"):
        double = HessianAlignmentLoss(linear(), method)
        double(pair.requires_grad_(), target, domain)
        single = HessianAlignmentLoss(linear(dtype=torch.float32), method)
        value = single(pair.float().detach().requires_grad_(), target, domain)
        assert value.dtype == torch.float32
        assert 0 < double.last.gradient_gap < 1e-5
        torch.testing.assert_close(single.last.per_domain.double(), double.last.per_domain, rtol=2e-3, atol=0)


@pytest.mark.parametrize("head", [linear, network])
def test_autocast_changes_nothing(head) -> None:
    features, target, domain = problem(dtype=torch.float32)
    head = head().float()
    expected = value_and_gradients(HessianAlignmentLoss(head, alpha=ALPHA), features.bfloat16().float(), target, domain)
    loss, seen = HessianAlignmentLoss(head, alpha=ALPHA), features.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(seen, target, domain)
    gradients = torch.autograd.grad(value, [seen, *head.parameters()])
    assert value.dtype == torch.float32 and gradients[0].dtype == torch.bfloat16
    torch.testing.assert_close([value.detach(), *gradients[1:]], [expected[0], *expected[2:]])
    torch.testing.assert_close(gradients[0], expected[1].bfloat16())


@pytest.mark.parametrize("head", [linear, network])
def test_an_evaluation_without_gradients(head) -> None:
    features, target, domain = problem()
    loss = HessianAlignmentLoss(head(), alpha=ALPHA)
    expected = loss(features.requires_grad_(), target, domain)
    with torch.no_grad():
        value = loss(features, target, domain)
    assert not value.requires_grad and value.item() == expected.item()


def test_probes_repeat_with_their_generator_and_leave_the_global_one_alone() -> None:
    features, target, domain = problem()
    features.requires_grad_()
    before = torch.get_rng_state()
    runs = []
    for source in (None, None, torch.Generator().manual_seed(0), torch.Generator().manual_seed(5)):
        loss = HessianAlignmentLoss(linear(), "hutchinson", alpha=1.0, n_probes=3, generator=source)
        runs.append([loss(features, target, domain).item() for _ in range(3)])
    assert runs[0] == runs[1] == runs[2] != runs[3]
    assert len(set(runs[0])) == 3  # new probes in every call
    assert torch.equal(torch.get_rng_state(), before)


def test_it_can_be_copied_and_pickled() -> None:
    features, target, domain = problem()
    loss = HessianAlignmentLoss(linear(), "hutchinson", n_probes=3)
    loss(features.requires_grad_(), target, domain)
    expected = loss(features, target, domain).item()
    fresh = HessianAlignmentLoss(linear(), "hutchinson", n_probes=3)
    fresh(features, target, domain)
    for other in (copy.deepcopy(fresh), pickle.loads(pickle.dumps(fresh))):
        assert other(features, target, domain).item() == expected
    assert "hutchinson" in repr(loss) and "n_probes=3" in repr(loss)


def test_a_pruned_head_is_not_taken_for_a_linear_one() -> None:
    features, target, domain = problem()
    head = prune.l1_unstructured(linear(), "weight", amount=4)
    value = HessianAlignmentLoss(head, alpha=ALPHA)(features.requires_grad_(), target, domain)
    (gradient,) = torch.autograd.grad(value, [head.weight_orig])
    assert torch.equal(gradient == 0, head.weight_mask == 0)
    with pytest.raises(TypeError, match=r"got Linear; expected torch\.nn\.Linear for method='diagonal'"):
        HessianAlignmentLoss(head, "diagonal")


# ---- compilation -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own, after a graph break
@pytest.mark.parametrize(("method", "head"), [("hgp", linear), ("diagonal", linear), ("hgp", network)])
def test_compiled_it_gives_the_same_numbers(method, head) -> None:
    features, target, domain = problem()
    found = []
    for compiled in (False, True):
        torch._dynamo.reset()
        loss = HessianAlignmentLoss(head(), method, ALPHA, BETA, anneal=(1, 10.0))
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)

        def step(z: Tensor, y: Tensor, d: Tensor, loss=loss, scale=scale) -> Tensor:
            return loss(scale * z, y, d)

        call = torch.compile(step, backend="aot_eager") if compiled else step
        values = []
        for keep in (domain >= 0, domain > 0):  # the second batch has two domains
            value = call(features[keep], target[keep], domain[keep])
            values += [value.detach(), *torch.autograd.grad(value, [scale, *loss.head.parameters()])]
        assert loss.calls == 2 and loss.last.domains == (1, 2)
        found.append(values)
    torch.testing.assert_close(found[1], found[0], **EXACT)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_what_follows_the_count_of_domains_is_one_graph() -> None:
    features, target, domain = problem()
    loss = HessianAlignmentLoss(linear())
    torch._dynamo.reset()
    assert torch._dynamo.explain(loss)(features.requires_grad_(), target, domain).graph_count == 1
    torch._dynamo.reset()


# ---- several processes -------------------------------------------------------------------------------------------------------------------

SHARES = {"halves": slice(0, 12), "most": slice(0, 19), "nothing": slice(0, 0)}  # the rows of the first process
PROCESS_CASES = [
    ("hgp", linear, "halves", False),
    ("hgp", linear, "most", True),
    ("hgp", linear, "nothing", False),
    ("diagonal", linear, "halves", True),
    ("hutchinson", linear, "halves", False),
    ("hgp", network, "halves", False),
    ("hgp", network, "nothing", False),
]


class Model(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH, dtype=torch.float64)), head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = x * self.scale
        return features, self.head(features)


def sorted_problem() -> tuple[Tensor, Tensor, Tensor]:
    """Sorted by domain, so that a process does not have all of them."""
    features, target, domain = problem()
    order = domain.argsort()
    return features[order], target[order], domain[order]


def loss_and_gradients(model: nn.Module, head: nn.Module, method: str, rows: slice, names: bool, **options: bool) -> list[object]:
    features, target, domain = (part[rows] for part in sorted_problem())
    labels = [f"site {e}" for e in domain.tolist()] if names else domain
    loss = HessianAlignmentLoss(head, method, ALPHA, BETA, n_probes=5, **options)
    seen, logits = model(features)
    value = loss(seen, target, labels) + 0 * logits.sum()
    value.backward()
    return [value.item(), loss.last.domains, loss.last.per_domain, [p.grad for p in model.parameters()]]


def one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = []
    for method, make, share, names in PROCESS_CASES:
        mine = SHARES[share] if rank == 0 else slice(SHARES[share].stop, None)
        head = make()
        model = nn.parallel.DistributedDataParallel(Model(head))
        found.append(loss_and_gradients(model, head, method, mine, names))
    head = linear()
    mine = slice(0, 16) if rank == 0 else slice(10, None)  # two domains in each
    found.append(loss_and_gradients(Model(head), head, "hgp", mine, False, sync=False))
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_have_the_loss_and_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for i, (method, make, _, names) in enumerate(PROCESS_CASES):
        head = make()
        expected = loss_and_gradients(Model(head), head, method, slice(None), names)
        for found in ranks:
            assert found[i][0] == pytest.approx(expected[0], abs=1e-12)
            assert found[i][1] == expected[1]
            torch.testing.assert_close(found[i][2:], expected[2:], rtol=1e-9, atol=1e-12)
    for rank, rows in enumerate((slice(0, 16), slice(10, None))):
        head = linear()
        torch.testing.assert_close(ranks[rank][-1], loss_and_gradients(Model(head), head, "hgp", rows, False))


# ---- bad input ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "fishr"}, "method: got 'fishr'; expected one of hgp, diagonal, hutchinson"),
        ({"alpha": -1.0}, "alpha: got -1.0; expected a number >= 0"),
        ({"beta": float("nan")}, "beta: got nan; expected a finite number >= 0"),
        ({"reduction": "max"}, "reduction: got 'max'"),
        ({"anneal": 190}, "anneal: got 190; expected (calls, weight)"),
        ({"anneal": (1.5, 2.0)}, "anneal[0]: got 1.5; expected an integer >= 0"),
        ({"anneal": (5, -2.0)}, "anneal[1]: got -2.0"),
        ({"n_probes": 0}, "n_probes: got 0; expected an integer >= 1"),
    ],
)
def test_parameters_out_of_range(options, message) -> None:
    with pytest.raises(InputError) as error:
        HessianAlignmentLoss(linear(), **options)
    assert message in str(error.value)


def test_a_head_that_is_none() -> None:
    with pytest.raises(InputError, match="head: got 'function'; expected the model's head"):
        HessianAlignmentLoss(linear)


@pytest.mark.parametrize("head", [nn.Sequential(nn.Linear(5, 3)), type("Mine", (nn.Linear,), {})(5, 3)])
def test_the_diagonal_needs_a_linear_head(head) -> None:
    with pytest.raises(TypeError, match=r"expected torch\.nn\.Linear for method='diagonal'\. Other heads take 'hgp'") as error:
        HessianAlignmentLoss(head, "diagonal")
    assert isinstance(error.value, InputError)
    loss = HessianAlignmentLoss(linear(), "diagonal")
    loss.head = head
    with pytest.raises(TypeError, match=r"expected torch\.nn\.Linear"):
        loss(*problem())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, y, d: (z.long(), y, d), "features: got a tensor of torch.int64; expected a floating-point"),
        (lambda z, y, d: (z[:, :4], y, d), "features: got shape (23, 4); expected the input of the head, shape (B, 5)"),
        (lambda z, y, d: (z[0], y, d), "features: got shape (5,)"),
        (lambda z, y, d: (z, y[:-1], d), "target: got shape (22,); expected one class for each of the 23 rows"),
        (lambda z, y, d: (z, y[:, None], d), "target: got shape (23, 1)"),
        (lambda z, y, d: (z, y.double(), d), "target: got a tensor of torch.float64; expected integer classes"),
        (lambda z, y, d: (z, y + 1, d), "target: got 3; expected classes 0..2"),
        (lambda z, y, d: (z, y - 1, d), "target: got -1; expected classes 0..2"),
        (lambda z, y, d: (z, y, d[:-1]), "domain: got shape (22,); expected one domain for each of the 23 rows"),
        (lambda z, y, d: (z, y, d.double()), "domain: got a tensor of torch.float64; expected integer ids"),
        (lambda z, y, d: (z, y, d[:, None]), "domain: got shape (23, 1)"),
        (lambda z, y, d: (z, y, [None, *d.tolist()[1:]]), "domain: got a missing label (None or NaN); expected a domain for every row"),
        (lambda z, y, d: (z[:0], y[:0], d[:0]), "features: got shape (0, 5); expected an input with at least one row"),
    ],
)
def test_batches_that_do_not_fit(change, message) -> None:
    with pytest.raises(InputError) as error:
        HessianAlignmentLoss(linear())(*change(*problem()))
    assert message in str(error.value)


@pytest.mark.parametrize("head", [linear, network])
def test_targets_of_a_binary_head(head) -> None:
    features, target, domain = problem(1)
    features.requires_grad_()
    loss = HessianAlignmentLoss(head(1))
    expected = loss(features, target, domain)
    for same in (target.bool(), target.double(), target.int()):
        torch.testing.assert_close(loss(features, same, domain), expected, **EXACT)
    with pytest.raises(InputError, match=r"target: got 0\.5; expected 0 or 1"):
        loss(features, torch.full((ROWS,), 0.5), domain)


@pytest.mark.parametrize("head", [linear, network])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_domain_with_nan_is_named(head, value) -> None:
    features, target, domain = problem()
    names = [("clinic", "screening", "registry")[e] for e in domain.tolist()]
    features[(domain == 2).nonzero()[1]] = value
    with pytest.raises(InputError, match="logits of domain 'registry' that are NaN or infinite; expected finite logits"):
        HessianAlignmentLoss(head())(features.requires_grad_(), target, names)


def test_classes_that_a_network_does_not_have() -> None:
    features, target, domain = problem()
    with pytest.raises(InputError, match=r"target: got 3; expected classes 0\.\.2"):
        HessianAlignmentLoss(network())(features.requires_grad_(), target + 1, domain)


def test_heads_that_give_no_logits_or_cannot_learn() -> None:
    features, target, domain = problem()
    with pytest.raises(InputError, match=r"head: got logits of shape \(13, 5, 1\) for 13 rows"):
        HessianAlignmentLoss(nn.Sequential(linear(WIDTH), nn.Unflatten(1, (WIDTH, 1))))(features.requires_grad_(), target, domain)
    with pytest.raises(InputError, match="without trainable parameters"):
        HessianAlignmentLoss(network().requires_grad_(False))(features, target, domain)


def test_nothing_is_said_about_an_ordinary_batch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HessianAlignmentLoss(linear())(problem()[0].requires_grad_(), *problem()[1:]).backward()
