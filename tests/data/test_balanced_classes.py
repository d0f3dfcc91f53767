from __future__ import annotations

import collections
import multiprocessing
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterpoise._errors import InputError
from counterpoise.data import BalancedClassSampler, RandomOverSampler, RandomUnderSampler
from counterpoise.data._balanced_classes import PART, _OverSampling, balanced_counts
from counterpoise.decisions import prior_correct
from counterpoise.groups import Groups

COUNTS = np.array([5, 300, 40])
Y = np.random.default_rng(0).permutation(np.repeat([2, 5, 9], COUNTS))


class Given:
    """A random generator whose numbers are given."""

    def __init__(self, values) -> None:
        self.values = np.asarray(values, dtype=np.float64)

    def random(self, size: int) -> np.ndarray:
        assert size == len(self.values)
        return self.values


def counts_of(y: np.ndarray) -> list[int]:
    return np.unique(y, return_counts=True)[1].tolist()


def test_a_hundred_thousand_draws_are_balanced_as_copies_would_be() -> None:
    _, copied = RandomOverSampler(random_state=0).fit_resample(np.zeros((len(Y), 1)), Y)
    assert counts_of(copied) == [300, 300, 300]
    draws = 100_000
    sampler = BalancedClassSampler(Y, num_samples=draws, generator=1)
    share = np.array(counts_of(Y[list(sampler)])) / draws
    sigma = np.sqrt(1 / 3 * 2 / 3 / draws)
    assert np.abs(share - 1 / 3).max() < 4 * sigma


def test_a_pass_without_replacement_has_the_counts_of_imbalanced_learn() -> None:
    _, cut = RandomUnderSampler(random_state=0).fit_resample(np.zeros((len(Y), 1)), Y)
    assert counts_of(Y[list(BalancedClassSampler(Y, replacement=False))]) == counts_of(cut) == [5, 5, 5]
    assert counts_of(Y[list(BalancedClassSampler(Y, replacement=False, ratio=4.5))]) == [5, 22, 22]
    assert sorted(BalancedClassSampler(Y, replacement=False, ratio=60)) == list(range(len(Y)))


def test_partial_targets_are_those_of_imbalanced_learn() -> None:
    # Its sampling_strategy for two classes is the rare over the common count: the inverse of the ratio.
    y = np.repeat([0, 1], [400, 10])
    for ratio in (1.0, 2.0, 8.0):
        _, copied = RandomOverSampler(sampling_strategy=1 / ratio, random_state=0).fit_resample(y[:, None], y)
        assert counts_of(copied) == balanced_counts([400, 10], ratio).tolist()
        _, cut = RandomUnderSampler(sampling_strategy=1 / ratio, random_state=0).fit_resample(y[:, None], y)
        assert counts_of(cut) == balanced_counts([400, 10], ratio, replacement=False).tolist()


@pytest.mark.parametrize("ratio", [1.0, 2.0, 7.5, 60.0, 1e9])
def test_even_numbers_are_dealt_out_exactly(ratio) -> None:
    """A fine grid in place of random numbers: every example gets its probability times the grid, up to rounding."""
    codes = np.unique(Y, return_inverse=True)[1]
    target = balanced_counts(COUNTS, ratio)
    grid = 1_000_003
    drawn = _OverSampling(codes.astype(np.uint8), COUNTS, target.min()).draw(Given((np.arange(grid) + 0.5) / grid), grid)
    expected = grid * (target / target.sum() / COUNTS)[codes]
    assert np.abs(np.bincount(drawn, minlength=len(Y)) - expected).max() <= 1


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(1, 50), min_size=2, max_size=8), ratio=st.floats(1, 60), seed=st.integers(0, 9))
def test_the_ends_of_the_line_are_examples(sizes, ratio, seed) -> None:
    codes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.uint8)
    counts = np.array(sizes)
    drawn = _OverSampling(codes, counts, balanced_counts(counts, ratio).min()).draw(Given([0.0, 1 - 2.0**-53]), 2)
    assert drawn.min() >= 0 and drawn.max() < len(codes)
    assert drawn[0] != drawn[1]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    ratio=st.floats(1, 50),
    replacement=st.booleans(),
    seed=st.integers(0, 2**40),
)
def test_the_effective_prior_has_the_ratio_that_was_asked_for(sizes, ratio, replacement, seed) -> None:
    y = np.repeat(np.arange(len(sizes)), sizes)
    sampler = BalancedClassSampler(y, ratio=ratio, replacement=replacement, generator=seed)
    prior = sampler.effective_prior
    assert prior.sum() == pytest.approx(1)
    found, had = prior.max() / prior.min(), max(sizes) / min(sizes)
    # Without replacement, counts are whole numbers.
    assert found == pytest.approx(min(ratio, had), abs=1e-9 if replacement else 0.5 / min(sizes) + 1e-9)
    if not replacement:
        assert np.bincount(y[list(sampler)], minlength=len(sizes)) / len(sampler) == pytest.approx(prior)


NAMED = np.where(Y == 2, "ant", np.where(Y == 5, "bee", "cow"))


@pytest.mark.parametrize(
    "labels",
    [Y.tolist(), torch.tensor(Y), Y.astype(np.float32), NAMED, NAMED.tolist(), NAMED.astype(object), pl.Series(NAMED), pd.Series(NAMED),
     Groups.from_labels(Y), Groups.from_labels(NAMED, "domain")],
    ids=lambda labels: f"{type(labels).__module__}.{type(labels).__name__}",
)  # fmt: skip
def test_labels_of_any_kind_give_the_same_stream(labels) -> None:
    for options in ({}, {"replacement": False, "ratio": 3.0}):
        sampler, expected = BalancedClassSampler(labels, **options), BalancedClassSampler(Y, **options)
        assert list(sampler) == list(expected)
        assert np.array_equal(sampler.effective_prior, expected.effective_prior)


def test_classes_are_in_the_order_of_the_prior() -> None:
    sampler = BalancedClassSampler(["b", "a", "a", "a"], ratio=2.0)
    assert sampler.classes == ("a", "b")
    assert sampler.effective_prior.tolist() == [3 / 4.5, 1.5 / 4.5]
    assert BalancedClassSampler([10, 9, 9]).classes == ("9", "10")
    assert BalancedClassSampler(torch.tensor([True, False])).classes == ("False", "True")


def test_one_example_of_a_class_will_do() -> None:
    sampler = BalancedClassSampler([0] * 99 + [1], num_samples=2000)
    assert 850 < list(sampler).count(99) < 1150
    assert 99 in list(BalancedClassSampler([0] * 99 + [1], replacement=False))


def test_predictions_are_corrected_once() -> None:
    """From the prior of the stream, which is uniform after full balancing; from that of the data they would be corrected twice."""
    logits = np.random.default_rng(0).normal(size=(400, 3))
    full = BalancedClassSampler(Y)
    np.testing.assert_array_equal(prior_correct(logits, full.effective_prior).argmax(1), logits.argmax(1))
    half = BalancedClassSampler(Y, ratio=8.0)
    np.testing.assert_allclose(prior_correct(logits, half.effective_prior), logits - np.log(np.array([37.5, 300, 40]) / 377.5))
    assert (prior_correct(logits, COUNTS).argmax(1) != logits.argmax(1)).mean() > 0.2


def test_a_generator_is_asked_for_one_number() -> None:
    first, second = (torch.Generator().manual_seed(5) for _ in range(2))
    one, two, three = (list(BalancedClassSampler(Y, generator=g)) for g in (first, second, second))
    assert one == two != three
    second.manual_seed(5)
    torch.empty((), dtype=torch.int64).random_(generator=second)
    assert torch.equal(first.get_state(), second.get_state())
    assert list(BalancedClassSampler(Y)) == list(BalancedClassSampler(Y, generator=0))


def test_parts_are_drawn_when_they_are_needed(monkeypatch) -> None:
    drawn = []
    draw = _OverSampling.draw
    monkeypatch.setattr(_OverSampling, "draw", lambda self, rng, size: drawn.append(size) or draw(self, rng, size))
    sampler = BalancedClassSampler(Y, num_samples=10**12)
    assert len(sampler) == 10**12
    iterator = iter(sampler)
    next(iterator)
    assert drawn == [PART]
    collections.deque(zip(range(PART), iterator, strict=False), maxlen=0)
    assert drawn == [PART] * 2
    sampler.load_state_dict(sampler.state_dict() | {"position": 10**11})
    next(iter(sampler))
    assert drawn == [PART] * 3, "what came before is not drawn again"
    assert len(pickle.dumps(sampler)) < 10_000, "a copy needs no indices that are on their way"


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later, where torch has started threads
def test_a_loader_without_batches_delivers_the_stream() -> None:
    expected = list(BalancedClassSampler(Y, num_samples=20))
    for workers in (0, 2):
        sampler = BalancedClassSampler(Y, num_samples=20)
        loader = torch.utils.data.DataLoader(range(len(Y)), sampler=sampler, batch_size=None, num_workers=workers)
        assert list(loader) == expected


def of_a_process(rank: int, port_file: str, queue) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    sampler = BalancedClassSampler(Y, generator=3)
    given = BalancedClassSampler(Y, generator=3, num_replicas=1, rank=0)
    queue.put((rank, list(sampler), len(sampler), list(given)))
    queue.close()
    queue.join_thread()
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 and later, where torch has started threads
def test_processes_of_torch_distributed_are_found(tmp_path) -> None:
    sampler = BalancedClassSampler(Y, generator=3)  # made before there are processes
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    started = [context.Process(target=of_a_process, args=(rank, str(tmp_path / "meet"), queue)) for rank in range(2)]
    for process in started:
        process.start()
    shards = sorted(queue.get(timeout=60) for _ in started)
    for process in started:
        process.join(timeout=60)
    whole = list(sampler)
    assert len(whole) == 345
    for rank, items, length, alone in shards:
        assert len(items) == length == 173
        assert items[:172] == whole[rank::2][:172]
        assert alone == whole


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": [[0, 1], [1, 0]]}, r"labels: got an array of shape \(2, 2\); expected one value per example"),
        ({"labels": [[0], [1, 0]]}, "labels: got a sequence of 2 items of different lengths"),
        ({"labels": [1, 1, 1]}, r"labels: got one class \(1\); expected at least two classes"),
        ({"labels": []}, "labels: got no examples; expected at least two classes"),
        ({"labels": [0.5, 1.5, 2.5]}, "labels: got numbers with fractions; expected class labels. Bin a continuous target first"),
        ({"labels": ["a", None, "b"]}, "labels: got 1 examples without a class"),
        ({"labels": [0.0, float("nan"), 1.0]}, "labels: got 1 examples without a class"),
        ({"labels": Groups([0, 1, 0], ("a", "b", "lost"))}, "labels: got no example of lost; expected an example in every class"),
        ({"ratio": 0.5}, "ratio: got 0.5; expected a number >= 1"),
        ({"ratio": float("nan")}, "ratio: got nan"),
        ({"num_samples": 0}, "num_samples: got 0; expected an integer >= 1"),
        ({"num_samples": 2.5}, "num_samples: got 2.5"),
        ({"num_samples": 16, "replacement": False}, "num_samples: got 16; expected at most 15, as many as there are without replacement"),
        ({"num_replicas": 2}, "num_replicas and rank: got num_replicas=2, rank=None; expected both or neither"),
        ({"num_replicas": 0, "rank": 0}, "num_replicas: got 0"),
        ({"num_replicas": 2, "rank": 2}, r"rank: got 2; expected an integer in \[0, 1\]"),
        ({"num_replicas": 16, "rank": 0, "replacement": False}, "num_replicas: got 16; expected at most 15"),
        ({"generator": "0"}, "generator: got '0'; expected a torch.Generator, or a seed >= 0"),
        ({"generator": -1}, "generator: got -1"),
        ({"generator": True}, "generator: got True"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(arguments, message) -> None:
    with pytest.raises(InputError, match=message):
        BalancedClassSampler(**{"labels": Y, **arguments})


def test_states_of_other_samplers_are_refused() -> None:
    sampler = BalancedClassSampler(Y)
    with pytest.raises(InputError, match=r"state: got num_samples = 7; expected the state of a sampler with num_samples = 345"):
        sampler.load_state_dict(BalancedClassSampler(Y, num_samples=7).state_dict())
    with pytest.raises(InputError, match="state: got no seed, epoch, position, num_replicas; expected what state_dict"):
        sampler.load_state_dict({"num_samples": 345})
    with pytest.raises(InputError, match=r"state\['position'\]: got 1.5; expected an integer >= 0"):
        sampler.load_state_dict(sampler.state_dict() | {"position": 1.5})
    with pytest.raises(InputError, match="epoch: got -1; expected an integer >= 0"):
        sampler.set_epoch(-1)


def test_it_says_what_it_draws() -> None:
    sampler = BalancedClassSampler(["ok"] * 950 + ["fault"] * 50, num_samples=1200)
    assert repr(sampler) == "BalancedClassSampler(1,200 of 1,000 examples a pass, with replacement; fault: 0.5, ok: 0.5)"
    many = BalancedClassSampler(list(range(9)), replacement=False)
    assert repr(many).endswith("without replacement; 0: 0.11, 1: 0.11, 2: 0.11, 3: 0.11, 4: 0.11, 5: 0.11 and 3 more)")
