"""The attribute agrees as often as it should, and is written where it should be; the rows themselves stay."""

from __future__ import annotations

import numpy as np
import pytest

from counterpoise._errors import InputError
from counterpoise.datasets import spurious_feature

N = 4000
Y = np.arange(N) % 2
X = np.random.default_rng(0).normal(size=(N, 3))
IMAGES = np.random.default_rng(0).uniform(0, 1, size=(N, 16, 24)).astype(np.float32)
FOUR = np.array(["north", "east", "south", "west"])[np.arange(N) % 4]


@pytest.mark.parametrize("agreement", [0.0, 0.3, 0.95, 1.0])
@pytest.mark.parametrize("y", [Y, FOUR, Y == 1], ids=["two", "four", "bool"])
def test_the_attribute_agrees_as_often_as_it_should(agreement, y) -> None:
    _, attribute = spurious_feature(X, y, agreement=agreement)
    share = (attribute == y).mean()
    assert abs(share - agreement) <= 4 * np.sqrt(agreement * (1 - agreement) / N)
    assert set(attribute) <= set(y)
    # Independent of the label otherwise: the others are equally likely.
    wrong = attribute[attribute != y]
    _, counts = np.unique(wrong, return_counts=True)
    assert np.abs(counts - len(wrong) / len(set(y))).max(initial=0) <= 4 * np.sqrt(len(wrong))


def test_a_column_holds_plus_or_minus_its_strength() -> None:
    rows, attribute = spurious_feature(X, Y, agreement=0.9, strength=0.5)
    assert rows.shape == (N, 4)
    np.testing.assert_array_equal(rows[:, :3], X)
    np.testing.assert_array_equal(rows[:, 3], np.where(attribute == 1, 0.5, -0.5))
    many, attribute = spurious_feature(X, FOUR, agreement=0.9, strength=2.0)
    assert many.shape == (N, 7)
    np.testing.assert_array_equal(np.unique(FOUR)[many[:, 3:].argmax(axis=1)], attribute)
    assert set(many[:, 3:].ravel()) == {0.0, 2.0}


def test_a_test_set_in_both_roles_differs_in_the_feature_only() -> None:
    with_it, same = spurious_feature(X, Y, agreement=1.0)
    against, other = spurious_feature(X, Y, agreement=0.0)
    assert (same == Y).all() and (other == 1 - Y).all()
    np.testing.assert_array_equal(with_it[:, 3], -against[:, 3])
    np.testing.assert_array_equal(with_it[:, :3], against[:, :3])


@pytest.mark.parametrize("channels", [(), (3,)])
def test_a_patch_is_where_the_attribute_says(channels) -> None:
    images = np.broadcast_to(IMAGES[:, None], (N, 3, 16, 24)) if channels else IMAGES
    rows, attribute = spurious_feature(images, FOUR, agreement=0.5, kind="patch")
    assert rows.dtype == np.float32 and rows.shape == images.shape
    changed = (rows != images).any(axis=tuple(range(1, rows.ndim - 2)))  # (n, H, W)
    assert changed.any(axis=2)[:, :2].all() and not changed[:, 2:].any()
    left = changed[:, 0].argmax(axis=1)
    names = np.unique(FOUR)
    np.testing.assert_array_equal(left, np.array([0, 7, 15, 22])[np.searchsorted(names, attribute)])
    assert (rows[changed if not channels else np.repeat(changed[:, None], 3, 1)] == images.max()).all()


def test_a_weak_patch_is_only_lighter() -> None:
    full, _ = spurious_feature(IMAGES, Y, agreement=1.0, kind="patch")
    half, _ = spurious_feature(IMAGES, Y, agreement=1.0, kind="patch", strength=0.5)
    np.testing.assert_allclose(half, (full + IMAGES) / 2, rtol=1e-6)


def test_a_token_stands_in_front() -> None:
    texts = [f"text {i}" for i in range(N)]
    rows, attribute = spurious_feature(texts, Y, agreement=0.9, kind="token")
    assert all(row == f"attribute{a} {text}" for row, a, text in zip(rows, attribute, texts, strict=True))
    some, _ = spurious_feature(texts, Y, agreement=0.9, kind="token", strength=0.25)
    said = np.array([row.startswith("attribute") for row in some])
    assert said.mean() == pytest.approx(0.25, abs=0.03)
    assert some[~said].tolist() == [text for text, spoken in zip(texts, said, strict=True) if not spoken]


def test_token_ids_do_not_collide_with_the_vocabulary() -> None:
    ids = np.random.default_rng(0).integers(0, 250, size=(N, 5)).astype(np.uint8)
    ids[0, 0] = 249
    rows, attribute = spurious_feature(ids, FOUR, agreement=0.5, kind="token", strength=0.5)
    np.testing.assert_array_equal(rows[:, 1:], ids)
    codes = np.searchsorted(np.unique(FOUR), attribute)
    said = rows[:, 0] != 254
    np.testing.assert_array_equal(rows[said, 0], 250 + codes[said])
    assert 0.4 < said.mean() < 0.6
    large, _ = spurious_feature(np.full((4, 1), 254, dtype=np.uint8), [0, 1, 2, 3], agreement=1.0, kind="token")
    assert large[:, 0].tolist() == [255, 256, 257, 258]


def test_same_seed_same_rows_and_nothing_is_changed() -> None:
    kept, state = X.copy(), np.random.get_state()[1].copy()
    first, again, other = (spurious_feature(X, Y, agreement=0.7, seed=seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    spurious_feature(IMAGES, Y, agreement=0.7, kind="patch")
    assert np.array_equal(X, kept) and np.array_equal(np.random.get_state()[1], state)
    assert np.array_equal(IMAGES, np.random.default_rng(0).uniform(0, 1, size=(N, 16, 24)).astype(np.float32))


def test_floats_keep_their_type_and_integers_become_floats() -> None:
    assert spurious_feature(X.astype(np.float32), Y, agreement=1.0)[0].dtype == np.float32
    assert spurious_feature(np.ones((N, 1), dtype=int), Y, agreement=1.0, strength=0.5)[0].dtype == np.float64


@pytest.mark.parametrize(
    ("X_", "y", "options", "message"),
    [
        (X, Y, {"agreement": 1.5}, "agreement: got 1.5"),
        (X, Y, {"agreement": float("nan")}, "agreement: got nan"),
        (X, Y, {"agreement": 1, "strength": 0}, "strength: got 0"),
        (IMAGES, Y, {"agreement": 1, "strength": 2.0, "kind": "patch"}, "strength: got 2.0"),
        (X, Y, {"agreement": 1, "kind": "sound"}, "kind: got 'sound'; expected one of column, patch, token"),
        (X, Y[1:], {"agreement": 1}, "X: got 4000 rows; expected one for each of the 3999 labels"),
        (X, np.zeros(N), {"agreement": 1}, "y: got 1 label"),
        (X, np.where(Y == 1, 1.0, np.nan), {"agreement": 1}, "y: got 2000 missing labels"),
        (IMAGES, Y, {"agreement": 1}, r"X: got shape \(4000, 16, 24\); expected a table"),
        (X, Y, {"agreement": 1, "kind": "patch"}, "X: got shape .*expected images"),
        (X, Y, {"agreement": 1, "kind": "token"}, "X: got an array of float64"),
        (np.full((N, 2), "a"), Y, {"agreement": 1}, "X: got an array of .*expected numbers"),
        (IMAGES[:, :, :3], FOUR, {"agreement": 1, "kind": "patch"}, "X: got images 3 wide; expected at least 4"),
    ],
)
def test_what_cannot_be_used_is_named(X_, y, options, message) -> None:
    with pytest.raises(InputError, match=message):
        spurious_feature(X_, y, **options)
