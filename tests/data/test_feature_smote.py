from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from imblearn.over_sampling import SMOTE
from sklearn.neighbors import NearestNeighbors

from counterpoise._errors import InputError
from counterpoise.data import FeatureSMOTE


def batch(rows: int = 60, width: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes, 70 : 20 : 10 %, in random order."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor([0] * (7 * rows // 10) + [1] * (2 * rows // 10) + [2] * (rows // 10))
    order = torch.randperm(len(y), generator=generator)
    return torch.randn(len(y), width, generator=generator, dtype=dtype), y[order]


def multilabel(rows: int = 100, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    Y = (torch.rand(rows, 3, generator=generator) < torch.tensor([0.3, 0.1, 0.06])).long()
    return torch.randn(rows, 4, generator=generator, dtype=torch.float64), Y


# ---- what a new row is ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [True, False])
def test_new_rows_lie_where_parents_and_gaps_say(whole) -> None:
    features, y = batch()
    smote = FeatureSMOTE(random_state=0)
    out, y_out = (smote.fit_resample if whole else smote)(features, y)
    n = len(features)
    assert torch.equal(out[:n], features) and torch.equal(y_out[:n], y)
    assert torch.equal(smote.synthetic_mask_, torch.arange(len(out)) >= n)
    one, other = smote.parents_.T
    assert torch.equal(y[one], y_out[n:]) and torch.equal(y[other], y_out[n:]) and bool((one != other).all())
    assert bool(((smote.gaps_ >= 0) & (smote.gaps_ <= 1)).all())
    expected = features[one] + smote.gaps_[:, None] * (features[other] - features[one])
    torch.testing.assert_close(out[n:], expected, rtol=0, atol=1e-12)


def test_ends_are_among_the_nearest_of_the_label() -> None:
    features, y = batch(300, seed=1)
    smote = FeatureSMOTE(k_neighbors=3, random_state=0)
    smote.fit_resample(features, y)
    for label in (1, 2):
        rows = np.flatnonzero(y.numpy() == label)
        found = NearestNeighbors(n_neighbors=3).fit(features[rows].numpy()).kneighbors(return_distance=False)
        allowed = {(int(rows[i]), int(rows[j])) for i, near in enumerate(found) for j in near}
        drawn = {tuple(pair) for pair in smote.parents_.tolist() if y[pair[0]] == label}
        assert drawn <= allowed and len(drawn) > 0.5 * len(allowed)


def test_distances_far_from_the_origin_keep_their_digits() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    y = torch.tensor([0] * 28 + [1] * 12)
    near, far = FeatureSMOTE(k_neighbors=1, random_state=0), FeatureSMOTE(k_neighbors=1, random_state=0)
    near.fit_resample(features, y)
    far.fit_resample((features + 1000).float(), y)
    assert torch.equal(near.parents_, far.parents_)


def test_blocks_change_nothing(monkeypatch) -> None:
    features, y = batch(300)
    whole, _ = FeatureSMOTE(random_state=0).fit_resample(features, y)
    monkeypatch.setattr("counterpoise.data._feature_smote._BLOCK", 100)
    blocks, _ = FeatureSMOTE(random_state=0).fit_resample(features, y)
    torch.testing.assert_close(blocks, whole, rtol=0, atol=1e-12)


def test_it_is_distributed_as_imbalanced_learns_smote() -> None:
    """Energy distance of synthetic rows, p-value by permutation, on 20 seeds."""
    features, y = batch(200, width=2)
    X, labels = features.numpy(), (y.numpy() == 2).astype(int)
    n, p_values = len(X), []
    for seed in range(20):
        ours = FeatureSMOTE(random_state=seed).fit_resample(X, labels)[0][n:]
        theirs = SMOTE(random_state=seed).fit_resample(X, labels)[0][n:]
        assert len(ours) == len(theirs) == 160
        p_values.append(energy_test(ours, theirs, np.random.default_rng(seed)))
    # Where the distributions are equal, p-values are uniform on multiples of 1/201.
    assert min(p_values) > 0.01 and 0.25 < np.mean(p_values) < 0.75


def energy_test(a: np.ndarray, b: np.ndarray, rng: np.random.Generator, permutations: int = 200) -> float:
    pooled = np.concatenate([a, b])
    distance = np.linalg.norm(pooled[:, None] - pooled[None], axis=2)
    m = len(a)

    def energy(first: np.ndarray) -> float:
        sign = np.where(first, 1 / m, -1 / (len(pooled) - m))
        return float(-sign @ distance @ sign)

    observed = energy(np.arange(len(pooled)) < m)
    drawn = [energy(rng.permutation(len(pooled)) < m) for _ in range(permutations)]
    return (1 + sum(value >= observed for value in drawn)) / (permutations + 1)


# ---- how many ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "expected"), [(1.0, [42, 42, 42]), (0.5, [42, 21, 21]), (0.2, [42, 12, 8]), (0.1, [42, 12, 6])])
def test_ratio_sets_the_rows_of_every_class(ratio, expected) -> None:
    features, y = batch()
    for smote in (FeatureSMOTE(ratio=ratio, random_state=0), FeatureSMOTE(ratio=ratio, random_state=0).fit_resample):
        assert smote(features, y)[1].bincount().tolist() == expected


def test_labels_are_filled_to_the_most_frequent_and_none_counts_as_one() -> None:
    features, Y = multilabel()
    none = int((Y.sum(dim=1) == 0).sum())
    assert none > Y.sum(dim=0).max()
    smote = FeatureSMOTE(random_state=0)
    _, Y_out = smote.fit_resample(features, Y)
    counts = Y_out.sum(dim=0)
    # A label is brought to the number; rows made for later labels may carry it too.
    assert counts.min() == none and counts.max() <= 1.5 * none
    assert torch.equal(Y_out[len(Y) :], Y[smote.parents_[:, 0]])
    shared = (Y[smote.parents_[:, 0]] & Y[smote.parents_[:, 1]]).sum(dim=1)
    assert bool((shared >= 1).all())


def test_one_hot_labels_give_what_classes_give() -> None:
    features, y = batch()
    classes, _ = FeatureSMOTE(random_state=3).fit_resample(features, y)
    one_hot, Y = FeatureSMOTE(random_state=3).fit_resample(features, torch.nn.functional.one_hot(y))
    assert torch.equal(classes, one_hot) and Y.sum(dim=0).tolist() == [42, 42, 42]


def test_one_column_of_labels_is_two_classes() -> None:
    features, y = batch()
    rare = (y == 2).long()
    classes, _ = FeatureSMOTE(random_state=3).fit_resample(features, rare)
    column, Y = FeatureSMOTE(random_state=3).fit_resample(features, rare[:, None])
    assert torch.equal(classes, column) and Y.shape == (len(classes), 1)


# ---- in a network -----------------------------------------------------------------------------------------------------------------------


def test_gradients_reach_both_ends_and_are_those_of_the_segment() -> None:
    features, y = batch(20)
    features.requires_grad_()
    smote = FeatureSMOTE(random_state=0)
    out, _ = smote(features, y)
    out[len(features) :].sum().backward()
    expected = torch.zeros(len(features), dtype=torch.float64)
    expected.index_add_(0, smote.parents_[:, 0], 1 - smote.gaps_)
    expected.index_add_(0, smote.parents_[:, 1], smote.gaps_)
    torch.testing.assert_close(features.grad, expected[:, None].expand_as(features))


def test_evaluation_returns_what_it_is_given() -> None:
    features, y = batch()
    smote = FeatureSMOTE(memory_bank=100).eval()
    out, y_out = smote(features, y)
    assert out is features and y_out is y and smote.bank_features is None


def test_the_stream_goes_on_and_repeats() -> None:
    features, y = batch()
    state = torch.get_rng_state()
    first, second = (FeatureSMOTE(random_state=5) for _ in range(2))
    runs = [[smote(features, y)[0] for _ in range(2)] for smote in (first, second)]
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[0][1])
    assert torch.equal(first.fit_resample(features, y)[0], first.fit_resample(features, y)[0])
    assert torch.equal(torch.get_rng_state(), state)
    unseeded = FeatureSMOTE()
    assert not torch.equal(unseeded.fit_resample(features, y)[0], unseeded.fit_resample(features, y)[0])


def test_batches_that_lack_rows_pass() -> None:
    smote = FeatureSMOTE(random_state=0)
    features = torch.randn(5, 3)
    for y in ([0, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 2, 3, 4]):  # a class of one row, a single class, all of one row
        out, y_out = smote(features, torch.tensor(y))
        assert torch.equal(out, features) and y_out.tolist() == y
    assert smote(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))[0].shape == (0, 3)
    assert smote(torch.empty(0, 3), torch.empty(0, 2, dtype=torch.int64))[1].shape == (0, 2)
    assert smote(features, torch.zeros(5, 2))[0].shape == (5, 3)  # no label at all


def test_the_bank_lends_neighbors_and_forgets() -> None:
    smote = FeatureSMOTE(random_state=0, memory_bank=6)
    common, rare = torch.randn(5, 3), torch.ones(1, 3)
    y = torch.tensor([0, 0, 0, 0, 0, 1])
    smote(torch.cat([common, rare]), y)
    assert smote.synthetic_mask_.sum() == 0  # one row has no neighbor
    features = torch.cat([common, 3 * rare]).requires_grad_()
    out, y_out = smote(features, y)
    assert y_out.bincount().tolist() == [5, 5]
    assert smote.parents_.tolist() == [[5, 6 + 5]] * 4  # from the row of the batch to the one of the bank
    torch.testing.assert_close(out[6:], (3 - 2 * smote.gaps_[:, None]).expand(4, 3))
    out.sum().backward()
    assert features.grad is not None and not smote.bank_features.requires_grad
    assert torch.equal(smote.bank_features, features.detach())  # the older batch is forgotten
    smote(torch.randn(6, 3), torch.zeros(6, dtype=torch.int64))
    smote(torch.cat([common, rare]), y)
    assert smote.synthetic_mask_.sum() == 0


def test_module_manners() -> None:
    smote = FeatureSMOTE(random_state=0, memory_bank=4)
    features, y = batch(20, dtype=torch.float32)
    smote(features, y)
    assert smote.state_dict() == {} and len(smote.bank_features) == 4
    twin = copy.deepcopy(smote)
    assert torch.equal(twin(features, y)[0], smote(features, y)[0])
    assert smote.to(torch.float64).bank_features.dtype == torch.float64
    assert repr(FeatureSMOTE(ratio=0.5)) == "FeatureSMOTE(k_neighbors=5, ratio=0.5, memory_bank=0)"
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(FeatureSMOTE(random_state=generator)(features, y)[0], FeatureSMOTE(random_state=0)(features, y)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype) -> None:
    features, y = batch(dtype=torch.float32)
    rounded = features.to(dtype)
    smote = FeatureSMOTE(random_state=0)
    out, _ = smote(rounded, y)
    expected, _ = FeatureSMOTE(random_state=0)(rounded.float(), y)
    assert out.dtype == dtype and torch.equal(out, expected.to(dtype))


def test_autocast_changes_nothing() -> None:
    features, y = batch(300, dtype=torch.float32)
    expected, _ = FeatureSMOTE(random_state=0)(features, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = FeatureSMOTE(random_state=0)(features, y)
    assert torch.equal(out, expected)


# ---- whole sets -------------------------------------------------------------------------------------------------------------------------


def test_arrays_come_back_as_arrays_and_agree_with_tensors() -> None:
    features, y = batch(dtype=torch.float32)
    names = np.array(["ant", "bee", "cow"])[y.numpy()]
    smote = FeatureSMOTE(random_state=0)
    H, labels = smote.fit_resample(features.numpy(), names)
    expected, codes = FeatureSMOTE(random_state=0).fit_resample(features, y)
    assert H.dtype == np.float32 and labels.dtype == names.dtype
    np.testing.assert_array_equal(H, expected.numpy())
    np.testing.assert_array_equal(labels, np.array(["ant", "bee", "cow"])[codes.numpy()])
    assert all(isinstance(part, np.ndarray) for part in (smote.synthetic_mask_, smote.parents_, smote.gaps_))
    locked = features.numpy().copy()
    locked.flags.writeable = False
    np.testing.assert_array_equal(FeatureSMOTE(random_state=0).fit_resample(locked, names)[0], H)


def test_few_rows_are_said_or_skipped() -> None:
    features = np.random.default_rng(0).normal(size=(10, 2))
    y = np.array(["many"] * 6 + ["three"] * 3 + ["one"])
    with pytest.raises(InputError, match="Y: got one row of label one; expected at least two to draw between"):
        FeatureSMOTE().fit_resample(features, y)
    with pytest.warns(UserWarning, match="Label three has 3 rows: 2 neighbors instead of 5"):
        _, labels = FeatureSMOTE(on_few="skip").fit_resample(features, y)
    assert dict(zip(*np.unique(labels, return_counts=True), strict=True)) == {"many": 6, "one": 1, "three": 6}
    Y = np.zeros((10, 2), dtype=int)
    Y[:4, 0] = 1
    with pytest.raises(InputError, match="no row of label 1"):
        FeatureSMOTE(k_neighbors=2).fit_resample(features, Y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FeatureSMOTE(k_neighbors=2, on_few="skip").fit_resample(features, Y)[1].sum(axis=0).tolist() == [6, 0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FeatureSMOTE(k_neighbors=0), "k_neighbors: got 0; expected an integer >= 1"),
        (lambda: FeatureSMOTE(ratio=0), r"ratio: got 0; expected a number in \(0, 1\]"),
        (lambda: FeatureSMOTE(memory_bank=-1), "memory_bank: got -1"),
        (lambda: FeatureSMOTE(on_few="skp"), "Did you mean 'skip'"),
        (lambda: FeatureSMOTE(random_state="a"), "random_state: got 'a'"),
        (lambda: FeatureSMOTE()(torch.randn(4, 3, 2), torch.zeros(4).long()), "features: got .*Pool sequences first"),
        (lambda: FeatureSMOTE()(torch.ones(4, 3).long(), torch.zeros(4).long()), "floating-point features"),
        (lambda: FeatureSMOTE()(torch.randn(4, 3), torch.zeros(3).long()), r"y: got shape \(3,\); expected shape \(4,\) or"),
        (lambda: FeatureSMOTE()(torch.randn(4, 3), torch.zeros(4)), "y: got a tensor of torch.float32; expected integer classes"),
        (lambda: FeatureSMOTE()(torch.randn(4, 3), torch.full((4, 2), 2)), "y: got 2; expected 0 or 1 for every label"),
        (lambda: FeatureSMOTE().fit_resample([[1.0]], [0]), "H: got 'list'; expected a tensor or a NumPy array"),
        (lambda: FeatureSMOTE().fit_resample(np.ones((4, 2), dtype=int), np.arange(4)), "H: got an array of int64"),
        (lambda: FeatureSMOTE().fit_resample(np.array([[1.0, np.nan]] * 4), np.arange(4)), "not finite in column 1"),
        (lambda: FeatureSMOTE().fit_resample(np.ones((4, 2)), np.ones(4)), "Y: got one class; expected at least two classes"),
    ],
)
def test_bad_input_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_bank_of_another_width_is_refused() -> None:
    smote = FeatureSMOTE(memory_bank=4)
    smote(torch.randn(4, 3), torch.zeros(4).long())
    with pytest.raises(InputError, match=r"widths as in earlier batches, 3 features. Use one FeatureSMOTE for each place"):
        smote(torch.randn(4, 2), torch.zeros(4).long())


def test_compiling_changes_nothing() -> None:
    features, y = batch(dtype=torch.float32)
    expected, _ = FeatureSMOTE(random_state=0)(features, y)
    compiled = torch.compile(FeatureSMOTE(random_state=0), backend="eager")
    assert torch.equal(compiled(features, y)[0], expected)
