from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import nn

from counterpoise._errors import InputError
from counterpoise.data import TemperatureSampler, temperature_probabilities
from counterpoise.losses import ScalarizedLoss, scalarization_weights
from counterpoise.schedules import Cooldown

SIZES = (160, 24, 8, 4)
DOMAINS = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(4), SIZES)))
TAUS = (1.0, 2.0, 5.0, 100.0, float("inf"))
CE = nn.CrossEntropyLoss(reduction="none")


def problem() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    return net, torch.randn(len(DOMAINS), 5).double(), torch.randint(3, (len(DOMAINS),))


def gradient(net: nn.Module, loss: torch.Tensor) -> torch.Tensor:
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(net.parameters()))])


def test_weights_have_mean_1_over_the_data() -> None:
    shares = temperature_probabilities(SIZES, 1.0)
    for tau in TAUS:
        w = scalarization_weights(torch.tensor(SIZES), tau)
        assert w.dtype == torch.float64
        assert float(shares @ w) == pytest.approx(1, abs=1e-14)
        torch.testing.assert_close(w * shares, temperature_probabilities(SIZES, tau), rtol=1e-14, atol=0)
    assert scalarization_weights(SIZES, 1.0).tolist() == [1.0] * 4
    assert scalarization_weights([10**15, 1], float("inf")).tolist() == pytest.approx([0.5, 5e14])


@pytest.mark.parametrize("tau", TAUS)
def test_full_gradients_are_those_of_temperature_sampling(tau) -> None:
    """Theorem 1."""
    net, X, y = problem()
    weighted = gradient(net, ScalarizedLoss(CE, SIZES, tau)(net(X), y, DOMAINS))
    p = temperature_probabilities(SIZES, tau)
    sampled = sum(p[k] * gradient(net, CE(net(X[DOMAINS.eq(k)]), y[DOMAINS.eq(k)]).mean()) for k in range(4))
    torch.testing.assert_close(weighted, sampled, rtol=0, atol=1e-12)
    # And of what the sampler really draws, on the average.
    sampler = TemperatureSampler(DOMAINS, tau, num_samples=200_000)
    drawn = torch.bincount(torch.tensor(list(sampler)), minlength=len(X)).double() / 200_000
    torch.testing.assert_close(gradient(net, (drawn * CE(net(X), y)).sum()), sampled, rtol=0, atol=5e-3)


def test_batches_drawn_as_the_data_are_give_no_bias() -> None:
    """All batches of two rows together: their mean loss is the loss of the whole. Dividing by the batch's weights would not be."""
    net, X, y = problem()
    rows = torch.cat([(DOMAINS.eq(k)).nonzero()[:4, 0] for k in range(4)])
    loss, each = ScalarizedLoss(CE, SIZES, 5.0), CE(net(X), y)
    pairs = torch.cartesian_prod(rows, rows)
    mean = torch.stack([loss(net(X[pair]), y[pair], DOMAINS[pair]) for pair in pairs]).mean()
    w = scalarization_weights(SIZES, 5.0)[DOMAINS]
    torch.testing.assert_close(mean, (w * each)[rows].mean(), rtol=1e-12, atol=0)
    divided = torch.stack([(w * each)[pair].sum() / w[pair].sum() for pair in pairs]).mean()
    assert abs(divided / mean - 1) > 0.05


def test_losses_of_tokens_have_the_weight_of_their_example() -> None:
    logits, y, domains = torch.randn(3, 5, 6), torch.randint(5, (3, 6)), torch.tensor([0, 3, 1])
    each = ScalarizedLoss(CE, SIZES, 2.0, reduction="none")(logits, y, domains)
    w = scalarization_weights(SIZES, 2.0)[domains].float()
    torch.testing.assert_close(each, CE(logits, y) * w[:, None])
    for reduction in ("mean", "sum"):
        torch.testing.assert_close(ScalarizedLoss(CE, SIZES, 2.0, reduction=reduction)(logits, y, domains), getattr(each, reduction)())


def test_a_schedule_counts_calls_in_training_mode() -> None:
    schedule = Cooldown(5.0, 1.0, switch=2)
    loss = ScalarizedLoss(CE, SIZES, schedule)
    batch = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 2, 3, 3, 3])
    hot, cold = (ScalarizedLoss(CE, SIZES, tau)(*batch) for tau in (5.0, 1.0))
    assert not torch.equal(hot, cold)
    assert loss(*batch) == hot
    loss.eval()
    assert [loss(*batch) for _ in range(3)] == [hot] * 3, "an evaluation is no step"
    loss.train()
    assert [loss(*batch) for _ in range(3)] == [hot, cold, cold]
    loss.set_step(1)
    assert [loss(*batch) for _ in range(2)] == [hot, cold]


def test_a_schedule_goes_on_from_a_state_dict() -> None:
    batch = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 2, 3, 3, 3])
    for done in (0, 2, 3, 5):
        loss, resumed = (ScalarizedLoss(CE, SIZES, Cooldown(5.0, 1.0, switch=3)) for _ in range(2))
        [loss(*batch) for _ in range(done)]
        resumed(*batch)
        file = io.BytesIO()
        torch.save(loss.state_dict(), file)
        file.seek(0)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        assert [resumed(*batch) for _ in range(4)] == [loss(*batch) for _ in range(4)]


def test_a_schedule_that_goes_wrong_is_named_with_its_step() -> None:
    loss = ScalarizedLoss(CE, SIZES, lambda step: 2.0 if step < 2 else -1)
    batch = torch.randn(1, 3), torch.tensor([0]), torch.tensor([0])
    loss(*batch), loss(*batch)
    with pytest.raises(InputError, match="tau: got -1 at step 2; expected a number > 0, or inf"):
        loss(*batch)


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (torch.tensor([0, 4]), r"domains: got 4; expected the domains 0\.\.3 that sizes has"),
        (torch.tensor([0, -1]), "domains: got -1"),
        (torch.tensor([0]), r"domains: got shape \(1,\) for 2 losses"),
        (torch.tensor([0.0, 1.0]), "domains: got a tensor of torch.float32; expected an integer tensor"),
        ([0, 1], "domains: got 'list'"),
    ],
)
def test_unknown_domains_are_refused(domains, message) -> None:
    with pytest.raises(InputError, match=message):
        ScalarizedLoss(CE, SIZES)(torch.zeros(2, 3), torch.tensor([0, 1]), domains)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": nn.CrossEntropyLoss()}, "loss: got CrossEntropyLoss with reduction='mean'; expected a loss with reduction=\"none\""),
        ({"loss": 3}, "loss: got 'int'"),
        ({"sizes": [3, 0]}, "sizes: got 0 for domain 1"),
        ({"tau": 0}, "tau: got 0; expected a number > 0, or inf"),
        ({"reduction": "average"}, "reduction: got 'average'; expected one of mean, sum, none"),
    ],
)
def test_bad_input_is_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        ScalarizedLoss(**{"loss": CE, "sizes": SIZES, "tau": 2.0} | arguments)


def test_a_loss_that_is_reduced_in_disguise_is_refused() -> None:
    with pytest.raises(InputError, match="loss: got a single loss for the whole batch"):
        ScalarizedLoss(lambda logits, y: CE(logits, y).mean(), SIZES)(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([0, 1]))


def test_it_says_what_it_is() -> None:
    assert "4 domains, tau=2, reduction='mean'" in repr(ScalarizedLoss(CE, SIZES, 2.0))
    assert "tau=Cooldown(5 before step 2, then 1)" in repr(ScalarizedLoss(CE, SIZES, Cooldown(switch=2)))
