from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from counterpoise.data import BalancedClassSampler, CoresetBatchSampler, TemperatureBatchSampler, TemperatureSampler
from counterpoise.schedules import Cooldown
from tests.batteries.samplers import SAMPLER_CHECKS, SamplerCase

COUNTS = np.array([60, 7, 200, 1, 31])
SHUFFLED = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))
NAMES = np.array(["ant", "bee", "cow", "doe", "eel"])[SHUFFLED].tolist()
N = len(SHUFFLED)


def balanced(seed: int, labels: Any = SHUFFLED, **options: Any) -> BalancedClassSampler:
    return BalancedClassSampler(labels, generator=seed, **options)


def over(ratio: float) -> np.ndarray:
    mass = np.maximum(COUNTS, 200 / ratio)
    return mass / mass.sum()


def under(*kept: int) -> dict[str, Any]:
    return {"length": sum(kept), "shares": np.array(kept) / sum(kept), "distinct": True, "exact": True}


def by_temperature(seed: int, domains: Any = SHUFFLED, **options: Any) -> TemperatureSampler:
    return TemperatureSampler(domains, generator=seed, **options)


def in_batches(seed: int, domains: Any = SHUFFLED, **options: Any) -> TemperatureBatchSampler:
    return TemperatureBatchSampler(domains, batch_size=16, generator=seed, **options)


def powers(tau: float) -> np.ndarray:
    mass = COUNTS ** (1 / tau)
    return mass / mass.sum()


def coresets(seed: int, **options: Any) -> CoresetBatchSampler:
    features = np.random.default_rng(1).normal(size=(N, 5))
    return CoresetBatchSampler(features, SHUFFLED, pool_size=40, budget=15, generator=seed, **options)


balanced_case = partial(SamplerCase, n=N, groups=SHUFFLED)
CASES = [
    balanced_case("over", balanced, length=N, shares=np.full(5, 0.2)),
    balanced_case("over-strings", partial(balanced, labels=NAMES), length=N, shares=np.full(5, 0.2)),
    balanced_case("over-to-4", partial(balanced, ratio=4.0), length=N, shares=over(4.0)),
    balanced_case("over-not-at-all", partial(balanced, ratio=float("inf")), length=N, shares=COUNTS / N),
    balanced_case("over-short", partial(balanced, num_samples=50), length=50, shares=np.full(5, 0.2)),
    balanced_case("over-long", partial(balanced, num_samples=70_001, ratio=2.5), length=70_001, shares=over(2.5)),
    balanced_case("under-to-10", partial(balanced, replacement=False, ratio=10.0), **under(10, 7, 10, 1, 10)),
    balanced_case("under-to-70", partial(balanced, replacement=False, ratio=70.2), **under(60, 7, 70, 1, 31)),
    balanced_case(
        "under-short",
        partial(balanced, replacement=False, ratio=10.0, num_samples=20),
        length=20,
        shares=np.array([10, 7, 10, 1, 10]) / 38,
        distinct=True,
    ),
    balanced_case("temperature", by_temperature, length=N, shares=powers(5.0)),
    balanced_case("temperature-uniform", partial(by_temperature, tau=float("inf")), length=N, shares=np.full(5, 0.2)),
    balanced_case("temperature-long", partial(by_temperature, tau=3.0, num_samples=70_001), length=70_001, shares=powers(3.0)),
    balanced_case("temperature-in-turn", partial(by_temperature, tau=2.0, replacement=False), length=N, shares=powers(2.0)),
    # With a schedule, the temperature of an item depends on how many processes take a step together.
    balanced_case("cooldown", partial(by_temperature, tau=Cooldown(switch=40), batch_size=7), length=N, shards=False),
    balanced_case("batches", in_batches, length=19, shares=powers(5.0), batches=True),
    balanced_case("batches-quota", partial(in_batches, composition="quota"), length=19, shares=powers(5.0), batches=True),
    balanced_case(
        "batches-cooldown-quota",
        partial(in_batches, composition="quota", tau=Cooldown(switch=15), num_batches=30),
        length=30,
        batches=True,
        shards=False,
    ),
    SamplerCase("coresets", coresets, N, length=7, distinct=True, batches=True),
    # Nothing is kept from pool to pool, but which of too many kept examples are drawn depends on the number of the pool.
    SamplerCase("coresets-crowded", partial(coresets, normalize=None, keep_small={0, 2}), N, length=7, distinct=True, batches=True),
]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later, where torch has started threads
@pytest.mark.parametrize("check", SAMPLER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_battery(case: SamplerCase, check: Callable[[SamplerCase], None]) -> None:
    check(case)
