from __future__ import annotations

import importlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

import counterpoise.nn
from counterpoise._errors import InputError
from counterpoise.nn.init import estimate_prior, prior_bias_

IMAGES = [np.array([[0, 0, 1], [0, -1, 3]]), np.array([0, 2, 2]), np.array([-1, -1])]  # 4 background, 1 one, 2 twos, 1 three


# ---- counting ---------------------------------------------------------------------------------------------------------------------------


def test_labels_are_counted_and_ignored_ones_are_not() -> None:
    prior = estimate_prior(IMAGES, num_classes=3)
    assert prior.counts.tolist() == [4, 1, 2, 1] and prior.counts.dtype == torch.int64
    assert prior.per_class.tolist() == [1 / 8, 2 / 8, 1 / 8] and prior.per_class.dtype == torch.float64
    assert prior.foreground == 1 / 2 and prior.mean == pytest.approx(1 / 6)
    assert prior.shares.tolist() == [4 / 8, 1 / 8, 2 / 8, 1 / 8]


@pytest.mark.parametrize("convert", [
    list, tuple, iter, lambda images: [torch.from_numpy(image) for image in images],
    lambda images: [image.tolist() for image in images], lambda images: [image.astype(np.int8) for image in images],
    lambda images: np.concatenate([image.ravel() for image in images]),
    lambda images: torch.from_numpy(np.concatenate([image.ravel() for image in images])).to(torch.int16),
])  # fmt: skip
def test_any_form_of_labels_gives_the_same_counts(convert) -> None:
    assert estimate_prior(convert(IMAGES), 3).counts.tolist() == [4, 1, 2, 1]


def test_masks_and_unsigned_labels() -> None:
    assert estimate_prior([np.array([True, False, False])], 1).counts.tolist() == [2, 1]
    assert estimate_prior(torch.tensor([True, False, False]), 1).counts.tolist() == [2, 1]
    mask = np.array([[0, 255, 1], [0, 0, 255]], dtype=np.uint8)
    mask.flags.writeable = False
    assert estimate_prior([mask], 1, ignore_index=255).counts.tolist() == [3, 1]


def test_background_may_be_last_or_missing() -> None:
    last = estimate_prior([np.array([2, 2, 2, 0, 1, 1])], num_classes=2, background=2)
    assert last.per_class.tolist() == [1 / 6, 2 / 6] and last.shares.tolist() == [1 / 6, 2 / 6, 3 / 6]
    tokens = estimate_prior([np.array([0, 0, 0, 1, -100])], num_classes=2, ignore_index=-100, background=None)
    assert tokens.counts.tolist() == [3, 1] and tokens.per_class.tolist() == [0.75, 0.25] and tokens.foreground == 1.0


def test_smoothing_lets_a_class_be_absent() -> None:
    prior = estimate_prior([np.array([0, 0, 0, 1])], num_classes=2, min_count=1)
    assert prior.counts.tolist() == [3, 1, 0]
    assert prior.shares.tolist() == [3 / 5, 1 / 5, 1 / 5] and prior.foreground == pytest.approx(2 / 5)
    nothing = estimate_prior([np.zeros(7, dtype=np.int64)], num_classes=1, min_count=1)
    assert nothing.per_class.tolist() == [1 / 8]


def test_counting_is_fast() -> None:
    labels = torch.randint(-1, 81, (2_000_000,), generator=torch.Generator().manual_seed(0)).to(torch.int16)
    best = min(_seconds(lambda: estimate_prior(labels, 80)) for _ in range(3))
    assert len(labels) / best > 2e6  # the benchmark's bar is 1e7, on a machine that does nothing else


def _seconds(work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


PARTS = [torch.tensor([0] * 90 + [1] * 10), torch.tensor([0] * 800 + [2] * 5 + [-1] * 7)]  # two processes, of unlike size and classes


def one_process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = estimate_prior([PARTS[rank]], 2)
    alone = dist.new_group([0]), dist.new_group([1])
    own = estimate_prior([PARTS[rank]], 2, process_group=alone[rank], min_count=1)
    torch.save((found.counts, found.per_class, own.counts), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_add_up_their_counts_before_they_divide(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(one_process, (str(tmp_path),), nprocs=2)
    together = estimate_prior(PARTS, 2)
    assert together.counts.tolist() == [890, 10, 5]
    mean_of_ratios = sum(estimate_prior([part], 2, min_count=1).per_class for part in PARTS) / 2
    for rank, own in enumerate(([90, 10, 0], [800, 0, 5])):
        counts, per_class, alone = torch.load(tmp_path / f"{rank}.pt")
        assert counts.tolist() == together.counts.tolist() and alone.tolist() == own
        torch.testing.assert_close(per_class, together.per_class, rtol=0, atol=0)
        assert abs(per_class - mean_of_ratios).max() > 0.03


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: estimate_prior([np.zeros(9, int)], 2), "labels: got no label of class 1, 2 among 9; expected .* min_count=1 counts"),
        (lambda: estimate_prior([np.array([0, 1, 1, 3])], 3), "labels: got no label of class 2 among 4"),
        (lambda: estimate_prior([np.array([-1, -1])], 1, min_count=1), "labels: got no label of class 1 among 0"),
        (lambda: estimate_prior([], 1), "among 0; expected labels of every class"),
        (lambda: estimate_prior([np.array([0, 4])], 3), r"labels: got 4; expected labels 0\.\.3, or -1 for what is ignored"),
        (lambda: estimate_prior([np.array([0, -100])], 3), r"labels: got -100; expected labels 0\.\.3"),
        (lambda: estimate_prior([np.array([0.0, 1.0])], 1), "labels: got an item of float64; expected integer labels. From a loader"),
        (lambda: estimate_prior([torch.rand(3)], 1), "labels: got a tensor of torch.float32"),
        (lambda: estimate_prior([(torch.rand(2, 2), torch.tensor([1]))], 1), "labels: got an item"),
        (lambda: estimate_prior(IMAGES, 0), "num_classes: got 0"),
        (lambda: estimate_prior(IMAGES, 3, background=4), r"background: got 4; expected an integer in \[0, 3\]"),
        (lambda: estimate_prior(IMAGES, 3, ignore_index=3), r"ignore_index: got 3; expected a number outside the labels 0\.\.3"),
        (lambda: estimate_prior(IMAGES, 3, min_count=-1), "min_count: got -1"),
    ],
)
def test_labels_that_cannot_be_counted_are_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


# ---- the bias ---------------------------------------------------------------------------------------------------------------------------


def test_nothing_pulls_at_the_bias_in_the_first_step() -> None:
    # Labels of 2 classes on 500 places; with weights of 0 the derivative of the summed cross-entropy is sum(sigmoid(b) - y).
    labels = torch.zeros(500, dtype=torch.int64)
    labels[:4], labels[4] = 1, 2
    targets = F.one_hot(labels, 3)[:, 1:].double()
    prior = estimate_prior([labels], 2)
    pulls = {}
    for name, share in (("half", 0.5), ("mean", prior.mean), ("per class", prior.per_class)):
        head = prior_bias_(nn.Linear(6, 2).double(), share)
        nn.init.zeros_(head.weight)
        F.binary_cross_entropy_with_logits(head(torch.ones(500, 6).double()), targets, reduction="sum").backward()
        pulls[name] = head.bias.grad
    torch.testing.assert_close(pulls["half"], torch.tensor([246.0, 249.0]).double())  # N (1/2 - pi) for each class
    torch.testing.assert_close(pulls["mean"], torch.tensor([-1.5, 1.5]).double())
    torch.testing.assert_close(pulls["per class"], torch.zeros(2).double())


def test_a_softmax_starts_at_the_shares() -> None:
    head = nn.Linear(5, 3)
    assert prior_bias_(head, torch.tensor([0.97, 0.02, 0.01]), link="softmax") is head
    torch.testing.assert_close(head(torch.zeros(2, 5)).softmax(dim=1), torch.tensor([[0.97, 0.02, 0.01]] * 2))


def test_weights_and_the_trainable_flag_stay() -> None:
    head = nn.Conv2d(3, 4, 1)
    before = head.weight.clone()
    prior_bias_(head, 0.01)
    assert torch.equal(head.weight, before) and head.bias.requires_grad and head.bias.grad_fn is None
    torch.testing.assert_close(head.bias.sigmoid(), torch.full((4,), 0.01))


@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d])
def test_convolutions_repeat_the_classes_for_every_anchor(layer) -> None:
    head = prior_bias_(layer(3, 6, 1), [0.1, 0.01])  # three anchors
    torch.testing.assert_close(head.bias.sigmoid(), torch.tensor([0.1, 0.01] * 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_tiny_prior_fits_every_precision(dtype) -> None:
    head = prior_bias_(nn.Linear(2, 1).to(dtype), 1e-5)
    assert head.bias.dtype == dtype and head.bias.item() == pytest.approx(np.log(1e-5 / (1 - 1e-5)), rel=4 * torch.finfo(dtype).eps)
    assert prior_bias_(nn.Linear(2, 1).double(), 1e-300).bias.item() == pytest.approx(-300 * np.log(10))


@pytest.mark.parametrize(
    ("module", "prior", "link", "message"),
    [
        (nn.Linear(3, 2), 0.0, "sigmoid", r"prior: got 0\.0; expected shares in \(0, 1\)"),
        (nn.Linear(3, 2), 1.0, "sigmoid", "prior: got 1.0"),
        (nn.Linear(3, 2), [0.5, -0.1], "sigmoid", "prior: got -0.1"),
        (nn.Linear(3, 2), [0.5, float("nan")], "sigmoid", "prior: got nan"),
        (nn.Linear(3, 2), torch.full((3,), 0.1), "sigmoid", "prior: got 3 shares for 2 outputs; expected 2 shares, one per output"),
        (nn.Linear(3, 4), [0.1, 0.1], "sigmoid", "prior: got 2 shares for 4 outputs"),
        (nn.Conv2d(3, 4, 1), [0.1, 0.1, 0.1], "sigmoid", "expected 4 shares, one per output, or one per class"),
        (nn.Linear(3, 2), torch.full((1, 2), 0.1), "sigmoid", r"prior: got shape \(1, 2\)"),
        (nn.Linear(3, 2), 0.1, "softmax", "prior: got 0.1; expected one share per class for a softmax"),
        (nn.Linear(3, 2), 0.1, "logit", "link: got 'logit'; expected one of sigmoid, softmax"),
        (nn.Linear(3, 2, bias=False), 0.1, "sigmoid", "module: got Linear without a bias; expected a layer with a bias"),
        (nn.BatchNorm2d(3), 0.1, "sigmoid", "module: got 'BatchNorm2d'; expected a torch.nn.Linear or a convolution"),
    ],
)  # fmt: skip
def test_layers_and_priors_that_do_not_fit_are_refused(module, prior, link, message) -> None:
    with pytest.raises(InputError, match=message):
        prior_bias_(module, prior, link)


def test_the_module_is_found_through_its_room() -> None:
    assert counterpoise.nn.init is importlib.import_module("counterpoise.nn.init")
    assert dir(counterpoise.nn) == counterpoise.nn.__all__ and "init" in counterpoise.nn.__all__


def test_a_classifier_without_background_is_told_so() -> None:
    with pytest.raises(InputError, match="takes background=None"):
        estimate_prior(torch.tensor([0, 1, 1, 0]), num_classes=2)
    assert estimate_prior(torch.tensor([0, 1, 1, 1]), num_classes=2, background=None).shares.tolist() == [0.25, 0.75]


def test_what_was_estimated_can_be_passed_on_as_it_is() -> None:
    found = estimate_prior(torch.tensor([0, 0, 0, 1, 2, 0, 0, 0, 0, 0]), num_classes=2)
    assert torch.equal(prior_bias_(nn.Linear(4, 2), found).bias, prior_bias_(nn.Linear(4, 2), found.per_class).bias)
    assert torch.equal(
        prior_bias_(nn.Linear(4, 3), found, link="softmax").bias, prior_bias_(nn.Linear(4, 3), found.shares, link="softmax").bias
    )
