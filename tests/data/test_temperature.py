from __future__ import annotations

import multiprocessing
import pickle
from itertools import islice

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoise._errors import InputError
from counterpoise.data import TemperatureBatchSampler, TemperatureSampler, temperature_probabilities
from counterpoise.data._temperature import PART, _Tables
from counterpoise.groups import Groups
from counterpoise.schedules import Cooldown, LinearTau, StepTau

SIZES = np.array([40, 300, 5])
Y = np.random.default_rng(0).permutation(np.repeat([2, 5, 9], SIZES))
INF = float("inf")


def shares(indices, y=Y) -> np.ndarray:
    return np.array([(y[np.asarray(indices)] == k).mean() for k in np.unique(y)])


# ---- probabilities ----------------------------------------------------------------------------------------------------------------------


def test_probabilities_are_powers_of_the_sizes() -> None:
    sizes = torch.tensor([2733.0, 162.0, 39.0, 1.0])
    for tau in (0.5, 1.0, 3.33, 5.0, 100.0):
        power = sizes.double() ** (1 / tau)
        p = temperature_probabilities(sizes, tau)
        assert p.dtype == torch.float64
        torch.testing.assert_close(p, power / power.sum(), rtol=1e-13, atol=0)
    # The temperature of multilingual T5 is the exponent 0.3, to the digits it is given with.
    exponent = sizes.double() ** 0.3
    torch.testing.assert_close(temperature_probabilities(sizes, 3.33), exponent / exponent.sum(), rtol=3e-3, atol=0)
    assert temperature_probabilities(sizes, INF).tolist() == [0.25] * 4


def test_no_size_and_no_temperature_overflows() -> None:
    huge = temperature_probabilities([1e15, 1e300, 1.0], 1.0)
    torch.testing.assert_close(huge, torch.tensor([1e-285, 1.0, 1e-300], dtype=torch.float64), rtol=1e-10, atol=0)
    assert temperature_probabilities([3, 5], 1e-310).tolist() == [0.0, 1.0]
    assert temperature_probabilities([5, 5], 5e-324).tolist() == [0.5, 0.5]
    assert temperature_probabilities([7], 3.0).tolist() == [1.0]


def test_an_empty_domain_has_no_probability_at_any_temperature() -> None:
    for tau in (1.0, 5.0, INF):
        p = temperature_probabilities([8, 0, 8], tau, drop_empty=True)
        assert p.tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize(
    ("sizes", "tau", "message"),
    [
        ([5, 0], 5.0, "sizes: got 0 for domain 1; expected a size > 0 for every domain. Leave empty domains out"),
        ([5, -1], 5.0, "sizes: got -1 for domain 1"),
        ([5, float("nan")], 5.0, "sizes: got nan for domain 1"),
        ([[5, 1]], 5.0, r"sizes: got shape \(1, 2\)"),
        ([], 5.0, r"sizes: got shape \(0,\)"),
        (["a", "b"], 5.0, "sizes: got list that does not hold numbers"),
        ([5, 1], 0, "tau: got 0; expected a number > 0, or inf"),
        ([5, 1], float("nan"), "tau: got nan"),
        ([5, 1], -2.0, "tau: got -2.0"),
        ([5, 1], True, "tau: got True"),
        ([5, 1], Cooldown(switch=3), "tau: got 'Cooldown'; expected a number > 0, or inf. Of a schedule take one step's"),
    ],
)
def test_bad_sizes_and_temperatures_are_refused(sizes, tau, message) -> None:
    with pytest.raises(InputError, match=message):
        temperature_probabilities(sizes, tau)


# ---- tables -----------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.integers(0, 60), min_size=1, max_size=9).filter(any), tau=st.floats(0.2, 50))
def test_even_numbers_are_dealt_out_exactly(sizes, tau) -> None:
    """A fine grid in place of random numbers: every place gets its probability times the grid, up to rounding at the ends of parts."""
    n = np.array(sizes, dtype=np.float64)
    p = temperature_probabilities(n, tau, drop_empty=True).numpy()
    tables, grid = _Tables(p, n), 100_003
    u = (np.arange(grid) + 0.5) / grid
    drawn = np.bincount(tables.places(u), minlength=int(n.sum()))
    assert len(drawn) == n.sum()
    per_place = np.repeat(grid * p[n > 0] / n[n > 0], n[n > 0].astype(int))
    assert np.abs(drawn - per_place).max() <= 2 * len(n)
    assert np.array_equal(np.searchsorted(np.cumsum(n), tables.places(u), side="right"), tables.domains(u))


def test_the_ends_of_parts_stay_in_their_domain() -> None:
    n = np.array([3.0, 1e9, 7.0, 2e12])
    tables = _Tables(temperature_probabilities(n, 3.0).numpy(), n)
    cells = np.arange(len(n))[:, None] + np.stack([tables._cut, np.nextafter(tables._cut, 0), np.nextafter(tables._cut, 2)], axis=1)
    u = np.clip(np.concatenate([cells.reshape(-1), np.nextafter(np.arange(1, 5), 0), np.arange(4)]) / len(n), 0, np.nextafter(1, 0))
    domains, places = tables.domains(u), tables.places(u)
    first = np.cumsum(n) - n
    assert ((places >= first[domains]) & (places < first[domains] + n[domains])).all()


# ---- the samplers -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("tau", [1.0, 5.0, INF])
def test_domains_come_as_often_as_they_should(tau, replacement) -> None:
    draws = 60_000
    sampler = TemperatureSampler(torch.from_numpy(Y), tau, num_samples=draws, replacement=replacement, generator=1)
    p = temperature_probabilities(SIZES, tau).numpy()
    assert sampler.domains == ("2", "5", "9") and sampler.sizes.tolist() == SIZES.tolist()
    np.testing.assert_array_equal(sampler.probabilities(0), p)
    assert (np.abs(shares(list(sampler)) - p) < 4 * np.sqrt(p * (1 - p) / draws)).all()


def test_without_replacement_a_domain_is_gone_through_before_it_repeats() -> None:
    sampler = TemperatureSampler(Y, INF, num_samples=2 * PART + 17, replacement=False)
    drawn = np.array(list(sampler))
    for k, n in zip((2, 5, 9), SIZES, strict=True):
        members, own = np.flatnonzero(np.equal(Y, k)), drawn[Y[drawn] == k]
        rounds = own[: len(own) // n * n].reshape(-1, n)
        assert np.array_equal(np.sort(rounds, axis=1), np.tile(members, (len(rounds), 1)))
        assert not np.array_equal(rounds[0], rounds[1])


def test_a_schedule_counts_batches_over_all_passes() -> None:
    asked = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 1e-3 if step < 5 else INF  # only the largest domain, then all alike

    sampler = TemperatureSampler(Y, schedule, num_samples=30, batch_size=8)  # four batches in a pass, the last of six
    first, second = list(sampler), list(sampler)
    assert set(asked) == set(range(8))
    assert (Y[first] == 5).all() and (Y[second[:8]] == 5).all()
    assert len(set(Y[second[8:]])) == 3
    again = TemperatureSampler(Y, schedule, num_samples=30, batch_size=8)
    again.set_epoch(1)
    assert list(again) == second


@pytest.mark.parametrize("composition", ["multinomial", "quota"])
def test_a_batch_sampler_follows_its_schedule_step_by_step(composition) -> None:
    schedule = StepTau([1e-3, INF], milestones=[7])
    sampler = TemperatureBatchSampler(Y, 60, schedule, num_batches=5, composition=composition)
    batches = [*sampler, *sampler]
    assert [len(set(Y[batch])) for batch in batches] == [1] * 7 + [3] * 3
    np.testing.assert_allclose(sampler.probabilities(7), [1 / 3] * 3)


@pytest.mark.parametrize("schedule", [Cooldown(50.0, 0.5, switch=3), LinearTau(50.0, 0.5, total_steps=9)], ids=repr)
def test_processes_share_the_steps_of_a_schedule(schedule) -> None:
    """The batches of R processes at a step are those of one process with batches R times as large."""
    whole = TemperatureSampler(Y, schedule, num_samples=120, batch_size=12)
    ranks = [TemperatureSampler(Y, schedule, num_samples=120, batch_size=4, num_replicas=3, rank=rank) for rank in range(3)]
    for _ in range(2):
        dealt = np.array([list(rank) for rank in ranks]).T.reshape(-1)
        assert dealt.tolist() == list(whole)


def test_processes_with_whole_batches_take_steps_together() -> None:
    for rank in range(3):
        sampler = TemperatureBatchSampler(Y, 40, StepTau([1e-3, INF], [3]), num_batches=12, num_replicas=3, rank=rank)
        assert [len(set(Y[batch])) for batch in [*sampler, *sampler]] == [1] * 3 + [3] * 5


def test_a_quota_is_kept_in_every_batch_and_exact_on_average() -> None:
    for batch_size in (2, 7, 64):  # also fewer than there are domains
        p = temperature_probabilities(SIZES, 2.0).numpy()
        sampler = TemperatureBatchSampler(Y, batch_size, 2.0, num_batches=4000, composition="quota", generator=3)
        counts = np.array([np.bincount(np.searchsorted([2, 5, 9], Y[batch]), minlength=3) for batch in sampler])
        expected = batch_size * p
        assert (np.abs(counts - expected) < 1).all()
        error = np.sqrt((expected % 1) * (1 - expected % 1) / len(counts))
        assert (np.abs(counts.mean(axis=0) - expected) <= 4 * error).all()
    # No place in a batch belongs to a domain.
    early = np.concatenate([Y[batch[:8]] for batch in TemperatureBatchSampler(Y, 64, INF, num_batches=3000, composition="quota")])
    np.testing.assert_allclose([(early == k).mean() for k in (2, 5, 9)], [1 / 3] * 3, atol=0.02)


def test_a_quota_makes_the_shares_less_noisy_than_chance() -> None:
    rare = {}
    for composition in ("multinomial", "quota"):
        sampler = TemperatureBatchSampler(Y, 32, 3.0, num_batches=500, composition=composition)
        rare[composition] = np.var([(Y[batch] == 9).sum() for batch in sampler])
    assert rare["quota"] < 0.1 * rare["multinomial"]


def test_ids_may_be_of_any_kind() -> None:
    names = np.array(["en", "fo", "ga"])[np.searchsorted([2, 5, 9], Y)]
    expected = list(TemperatureSampler(Y, 3.0))
    pairs = [("corpus", str(name)) for name in names]
    for ids in (
        Y.tolist(),
        torch.from_numpy(Y),
        names,
        names.tolist(),
        pl.Series(names),
        Groups.from_labels(names, "domain"),
        pairs,
        Y / 2,
    ):
        assert list(TemperatureSampler(ids, 3.0)) == expected
    assert TemperatureSampler(pairs).domains[0] == "('corpus', 'en')"


def test_integers_are_counted_as_labels_are_sorted() -> None:
    for ids in (
        np.array([-128, 127, 3, 3, -128], dtype=np.int8),
        np.array([2**64 - 1, 2**64 - 3, 2**64 - 1], dtype=np.uint64),
        np.array([7, 10**6, 7]),
        torch.tensor([5, 5, -2], dtype=torch.int32),
    ):
        sampler, named = TemperatureSampler(ids, 2.0), Groups.from_labels(ids)
        assert sampler.domains == named.names and sampler.sizes.tolist() == named.counts().tolist()
        assert list(sampler) == list(TemperatureSampler(named, 2.0))


def test_data_in_the_order_of_their_domains_need_no_memory() -> None:
    ordered, shuffled = np.repeat(np.arange(50), 20_000), np.arange(1_000_000) % 50
    assert len(pickle.dumps(TemperatureSampler(ordered))) < 10_000 < len(pickle.dumps(TemperatureSampler(shuffled)))
    drawn = np.array(list(islice(TemperatureSampler(ordered, 1.0, generator=2), 100_000)))
    assert np.abs(np.bincount(ordered[drawn], minlength=50) - 2000).max() < 4 * np.sqrt(2000)


def test_one_domain_is_drawn_uniformly_at_every_temperature() -> None:
    streams = [list(TemperatureSampler(["one"] * 20, tau, num_samples=5000)) for tau in (0.1, 1.0, INF)]
    assert streams[0] == streams[1] == streams[2]
    assert np.abs(np.bincount(streams[0]) - 250).max() < 5 * np.sqrt(250)


def test_empty_domains_are_passed_over_if_that_is_wanted() -> None:
    groups = Groups([0, 0, 2], ("a", "lost", "b"), "domain")
    with pytest.raises(InputError, match=r"domains: got no example of lost; expected an example in every domain\. drop_empty=True"):
        TemperatureSampler(groups)
    sampler = TemperatureSampler(groups, INF, num_samples=3000, drop_empty=True)
    assert sampler.probabilities(0).tolist() == [0.5, 0.0, 0.5]
    assert abs(np.mean(np.array(list(sampler)) == 2) - 0.5) < 0.04
    for composition in ("multinomial", "quota"):
        batches = TemperatureBatchSampler(groups, 4, INF, num_batches=500, composition=composition, drop_empty=True)
        assert abs(np.mean(np.array(list(batches)) == 2) - 0.5) < 0.05


def of_a_process(rank: int, port_file: str, queue) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    queue.put((rank, list(TemperatureSampler(Y, Cooldown(9.0, 1.0, switch=20), batch_size=4))))
    queue.close()
    queue.join_thread()
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later, where torch has started threads
def test_processes_of_torch_distributed_are_found(tmp_path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    started = [context.Process(target=of_a_process, args=(rank, str(tmp_path / "meet"), queue)) for rank in range(2)]
    for process in started:
        process.start()
    shards = dict(queue.get(timeout=60) for _ in started)
    for process in started:
        process.join(timeout=60)
    whole = list(TemperatureSampler(Y, Cooldown(9.0, 1.0, switch=20), batch_size=8))
    assert [shards[0][:172], shards[1][:172]] == [whole[0:344:2], whole[1:344:2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"domains": [[0, 1]]}, r"domains: got an array of shape \(1, 2\); expected one value per example"),
        ({"domains": []}, r"domains: got no examples; expected the domain of each example, shape \(N,\)"),
        ({"domains": ["a", None]}, "domains: got 1 examples without a domain; expected a domain for every example"),
        ({"tau": 0.0}, "tau: got 0.0; expected a number > 0, or inf"),
        ({"tau": float("nan")}, "tau: got nan"),
        ({"tau": "5"}, "tau: got '5'"),
        ({"num_samples": 0}, "num_samples: got 0; expected an integer >= 1"),
        ({"batch_size": 0}, "batch_size: got 0; expected an integer >= 1"),
        ({"num_replicas": 2}, "num_replicas and rank: got num_replicas=2, rank=None; expected both or neither"),
        ({"generator": -1}, "generator: got -1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        TemperatureSampler(**{"domains": Y, **arguments})


def test_bad_input_of_batches_is_refused() -> None:
    with pytest.raises(InputError, match=r"composition: got 'quotas'; expected one of multinomial, quota\. Did you mean 'quota'"):
        TemperatureBatchSampler(Y, 8, composition="quotas")
    with pytest.raises(InputError, match="num_batches: got 0"):
        TemperatureBatchSampler(Y, 8, num_batches=0)


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan"), None, "hot"])
def test_a_schedule_that_goes_wrong_is_named_with_its_step(wrong) -> None:
    sampler = TemperatureSampler(Y, lambda step: wrong if step == 13 else 2.0, batch_size=5)
    with pytest.raises(InputError, match=f"tau: got {wrong!r} at step 13; expected a number > 0, or inf"):
        list(sampler)


def test_they_say_what_they_draw() -> None:
    sampler = TemperatureSampler(["en"] * 900 + ["fo"] * 100, 2.0)
    assert repr(sampler) == (
        "TemperatureSampler(1,000 examples a pass, with replacement; 2 domains, tau 2: the smallest 2.5 times as often as in the data, the "
        "largest 0.833)"
    )
    batches = TemperatureBatchSampler(Y, 10, Cooldown(switch=7), composition="quota")
    assert repr(batches) == "TemperatureBatchSampler(35 batches of 10 a pass, quota; 3 domains, tau by Cooldown(5 before step 7, then 1))"
