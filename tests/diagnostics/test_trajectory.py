"""Trajectories of losses: what cancellation and swaps are on paper, what is recorded, and what is refused."""

from __future__ import annotations

import io
import math

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from counterpoise._errors import InputError
from counterpoise.diagnostics import LossTrajectory
from counterpoise.diagnostics._trajectory import cancellation

M = 100


def oscillating(steps=20, every=1, *, amplitude=0.3, drift=0.001, **options):
    """Examples 0-3 against 4-7; all others fall slowly."""
    base = np.random.default_rng(0).random(M) + 1
    tug = np.zeros(M)
    tug[:4], tug[4:8] = amplitude, -amplitude
    trajectory = LossTrajectory(**options)
    for step in range(0, steps * every, every):
        trajectory.update(base - drift * step + (-1) ** step * tug, step, lr=0.5)
    return trajectory


# ---- on paper ---------------------------------------------------------------------------------------------------------------------------


def test_two_opposite_gradients_cancel_completely() -> None:
    g = np.array([[3.0, -1.0], [-3.0, 1.0]])
    direction = g[0] / np.linalg.norm(g[0])
    assert cancellation(g @ direction) == 1.0
    assert cancellation([2.0, 1.0]) == 0.0 and cancellation([]) == 0.0


def test_the_changes_are_those_of_the_formulas() -> None:
    rng = np.random.default_rng(1)
    losses = rng.random((M, 6))
    trajectory = LossTrajectory()
    for step in range(6):
        trajectory.update(losses[:, step], step, lr=0.1)
    found = trajectory.changes(k=0.05)
    D = np.diff(losses.astype(np.float32).astype(np.float64), axis=1)
    for j in range(5):
        up, down = D[:, j].clip(0).sum(), -D[:, j].clip(max=0).sum()
        assert found.volatility[j] == pytest.approx(math.sqrt(up * down) / M)
        assert found.cancellation[j] == pytest.approx(1 - abs(up - down) / (up + down))
        order = np.argsort(D[:, j])
        assert found.rising[j].tolist() == order[::-1][:5].tolist() and found.falling[j].tolist() == order[:5].tolist()
        assert found.share[j] == pytest.approx(np.abs(D[np.r_[order[:5], order[-5:]], j]).sum() / (up + down))
        if j < 4:
            flip = D[order[-5:], j + 1].mean() < 0 < D[order[:5], j + 1].mean()
            assert found.followed[j] and found.flip[j] == flip
    assert not found.followed[4] and found.mean_loss == pytest.approx(losses[:, :5].mean(axis=0))


def test_groups_that_swap_are_told_from_those_that_do_not() -> None:
    summary = oscillating(momentum=0.5).summary()
    assert summary.startswith("Opposing groups") and "100 %" in summary and "λ / 2 is unknown" in summary
    slow = LossTrajectory()
    base = np.random.default_rng(0).random(M)
    for step in range(20):
        drift = np.where(np.arange(M) < 4, 0.01, -0.01 * (np.arange(M) < 8)) * step  # two groups, the same way each time
        slow.update(base + drift, step, lr=0.5, sharpness=1.0)
    assert slow.summary().startswith("No opposing groups seen, which is no evidence") and "lr λ / 2 = 0.25" in slow.summary()
    still = LossTrajectory()
    for step in range(5):
        still.update(base, step, lr=0.1)
    assert still.summary().startswith("Nothing moves") and not still.changes().flip.any()


def test_noise_swaps_but_does_not_come_back() -> None:
    rng = np.random.default_rng(0)
    noise, real = LossTrajectory(), oscillating(30)
    for step in range(30):
        noise.update(1 + 0.1 * rng.random(M), step, lr=0.1)
    volatile = noise.changes().volatile()
    assert noise.changes().flip[volatile].all() and np.median(noise.changes().cancellation[volatile]) > 0.8  # on these two it looks alike
    assert abs(np.nanmean(noise.changes().echo)) < 0.1 and noise.summary().startswith("Noise rather than")
    assert np.nanmin(real.changes().echo) > 0.99 and np.isnan(real.changes().echo[-2:]).all()


def test_divergence_has_its_own_verdict() -> None:
    trajectory = LossTrajectory()
    rng = np.random.default_rng(0)
    for step in range(12):
        trajectory.update(rng.random(M) + (3 * step * rng.random(M) if step < 8 else 0), step, lr=2.0)
    assert trajectory.summary().startswith("Divergence, not opposition (the mean loss rose to")
    trajectory.update(np.where(np.arange(M) == 3, np.nan, 1.0), 12, lr=2.0)
    assert trajectory.diverged_at == 12 and trajectory.summary().startswith("Diverged at step 12")
    assert len(trajectory.changes().step) == 11  # what came before is still there


def test_what_swaps_at_every_step_is_seen_from_odd_distances_only() -> None:
    for every in (1, 25):
        trajectory = oscillating(every=every, drift=1e-4)
        assert trajectory.changes().flip[:-1].all() and trajectory.changes().step.tolist() == list(range(0, 19 * every, every))
    with pytest.raises(InputError, match=r"2 steps apart.*odd"):
        oscillating(every=2).changes()
    bursts = LossTrajectory()
    for step in (0, 1, 2, 24, 25, 26):
        bursts.update(np.random.default_rng(step).random(M), step, lr=0.1)
    assert bursts.changes().followed.tolist() == [True, False, False, True, False]


def test_the_sharpness_measured_closest_counts_with_the_learning_rate_of_the_step() -> None:
    trajectory = LossTrajectory(momentum=0.9)
    for step in range(6):
        trajectory.update(np.ones(M), step, lr=0.1 * (step + 1), sharpness={0: 10.0, 4: 20.0}.get(step))
    assert [trajectory.lr_lambda_half(step) for step in (0, 1, 3, 5)] == pytest.approx([0.5, 1.0, 4.0, 6.0])
    assert trajectory.edge == 1.9 and LossTrajectory().edge == 1 and math.isnan(LossTrajectory(momentum=None).edge)
    adam = LossTrajectory(momentum=None)
    for step in range(4):
        adam.update(np.arange(M) + step % 2 * (np.arange(M) % 3 - 1), step, lr=0.1, sharpness=30.0)
    assert "depends on its preconditioner" in adam.summary()


def test_frame_and_figure() -> None:
    trajectory = oscillating()
    frame = trajectory.to_frame()
    assert frame.height == 19 and frame["volatile"].sum() == 2 and frame["flip"].null_count() == 1
    assert frame["flip"].drop_nulls().all() and frame.schema["extreme_share"] == pl.Float64
    figure = trajectory.plot()
    assert len(figure.axes) == 2 and "Two groups of 2" in figure.texts[0].get_text()


# ---- recording --------------------------------------------------------------------------------------------------------------------------


def test_losses_are_kept_as_float32_copies() -> None:
    trajectory, losses = LossTrajectory(), torch.rand(M, dtype=torch.float64, requires_grad=True)
    trajectory.update(losses, 0, lr=0.1)
    with torch.no_grad():
        first = losses.float().clone()
        losses.zero_()
    assert trajectory.losses.dtype == np.float32 and torch.equal(torch.from_numpy(trajectory.losses[:, 0]), first)
    assert repr(trajectory) == "LossTrajectory(100 examples, 1 recordings)"


def test_state_goes_through_torch_save_and_on() -> None:
    whole, before = oscillating(12, index=np.arange(M) + 7), oscillating(8, index=np.arange(M) + 7)
    file = io.BytesIO()
    torch.save(before.state_dict(), file)
    file.seek(0)
    after = LossTrajectory()
    after.load_state_dict(torch.load(file, weights_only=True))
    for step in range(8, 12):
        after.update(whole.losses[:, step], step, lr=0.5)
    assert np.array_equal(after.losses, whole.losses) and after.to_frame().equals(whole.to_frame())
    assert np.array_equal(after.index, np.arange(M) + 7)
    with pytest.raises(InputError, match="state: got no index, losses"):
        after.load_state_dict({"steps": 1})


def model_with_dropout():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))


def test_measure_runs_in_eval_mode_and_leaves_the_model_alone() -> None:
    model = model_with_dropout()
    g = torch.Generator().manual_seed(0)
    X, y = torch.randn(M, 5, generator=g), torch.randint(0, 3, (M,), generator=g)
    before, random_state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    trajectory = LossTrajectory()
    losses = trajectory.measure(model, nn.CrossEntropyLoss(), (X, y), 0, lr=0.1)
    again = trajectory.measure(model, nn.CrossEntropyLoss(), DataLoader(TensorDataset(X, y), batch_size=30), 1, lr=0.1)
    assert all(module.training for module in model.modules()) and torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    expected = nn.functional.cross_entropy(model.eval()(X), y, reduction="none")
    assert torch.allclose(losses, expected) and torch.allclose(again, expected) and not losses.requires_grad
    with pytest.raises(InputError, match="loader that shuffles"):
        trajectory.measure(model, nn.CrossEntropyLoss(), DataLoader(TensorDataset(X, y), shuffle=True), 2, lr=0.1)


@pytest.mark.parametrize(
    ("losses", "options", "message"),
    [
        (1.5, {}, "one number for the batch.*reduction='none'"),
        (torch.tensor(1.5), {}, "one number for the batch"),
        (np.ones((M, 2)), {}, r"shape \(100, 2\)"),
        (np.ones(49), {}, "49 examples; expected a probe of 50 to 5,000"),
        (np.ones(5001), {}, "5001 examples"),
        (torch.ones(M, dtype=torch.float16), {}, "float16.*rounds"),
        (torch.ones(M, dtype=torch.bfloat16), {}, "bfloat16"),
        (np.ones(M, dtype=np.float16), {}, "float16"),
        (np.ones(M), {"step": -1}, "step: got -1"),
        (np.ones(M), {"lr": -0.1}, "lr: got -0.1"),
        (np.ones(M), {"lr": float("nan")}, "lr: got nan"),
        (np.ones(M), {"index": np.arange(M) / 2}, "positions in the data"),
        (np.ones(M), {"index": np.arange(M - 1)}, "one for each of the 99"),
    ],
)
def test_bad_losses_are_refused_and_nothing_is_recorded(losses, options, message) -> None:
    trajectory = LossTrajectory()
    with pytest.raises(InputError, match=message):
        trajectory.update(losses, **{"step": 0, "lr": 0.1} | options)
    assert len(trajectory) == 0
    trajectory.update(np.ones(60), 0, lr=0.1)


def test_a_probe_that_changes_is_refused() -> None:
    trajectory = LossTrajectory(index=np.arange(M))
    trajectory.update(np.ones(M), 3, lr=0.1)
    with pytest.raises(InputError, match="a step after the last one, 3"):
        trajectory.update(np.ones(M), 3, lr=0.1)
    with pytest.raises(InputError, match="the same 100 examples"):
        trajectory.update(np.ones(M + 1), 4, lr=0.1)
    with pytest.raises(InputError, match="same examples in the same order"):
        trajectory.update(np.ones(M), 4, lr=0.1, index=np.arange(M)[::-1].copy())
    trajectory.update(np.ones(M), 4, lr=0.1, index=torch.arange(M))
    with pytest.raises(InputError, match="2 recordings; expected at least 3"):
        trajectory.changes()
    with pytest.raises(InputError, match="2 recordings before it diverged at step 5"):
        trajectory.update(np.full(M, np.inf), 5, lr=0.1)
        trajectory.changes()
    with pytest.raises(InputError, match="momentum: got 2"):
        LossTrajectory(momentum=2.0)
