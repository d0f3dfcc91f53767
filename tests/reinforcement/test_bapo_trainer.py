from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl")

from trl import GRPOConfig, GRPOTrainer

from counterpoise._errors import InputError
from counterpoise.losses import BalancedClipLoss
from counterpoise.reinforcement import BAPOConfig, BAPOTrainer
from tests.reinforcement.tiny import trainer

FIXED = {"bapo_low": [0.8, 0.8, 0.0], "bapo_high": [1.2, 1.2, 0.0]}
SEEN = ("loss", "reward", "entropy", "bapo/clip_low", "bapo/clip_high", "bapo/share", "clip_ratio/low_mean", "clip_ratio/high_mean")


def train(folder: Path, **options: Any) -> tuple[Any, list[dict[str, float]]]:
    """The trainer, and what was logged of each step."""
    torch.manual_seed(0)
    resume = options.pop("resume", None)
    made = trainer(folder, **options)
    made.train(resume_from_checkpoint=resume)
    return made, logged(made)


def logged(made: Any) -> list[dict[str, float]]:
    rows = [row for row in made.state.log_history if "loss" in row]
    return [{"step": row["step"]} | {name: row[name] for name in SEEN if row.get(name) is not None} for row in rows]


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """A training that runs through."""
    return train(tmp_path_factory.mktemp("through"))[1]


def test_bounds_move_and_are_logged_with_the_entropy(through) -> None:
    assert [row["step"] for row in through] == list(range(1, 9))
    assert {row["bapo/clip_high"] for row in through} > {1.2} and {row["bapo/clip_low"] for row in through} <= {0.6, 0.9}
    assert all(set(SEEN) - {"reward"} == set(row) - {"step", "reward"} for row in through)
    assert all(0 < row["bapo/share"] < 1 and row["entropy"] > 0 for row in through)
    assert [row["step"] for row in through if "reward" in row] == [1, 5]  # a rollout is used four times
    # Where the target is not met, both bounds are at their end.
    for row in through:
        assert row["bapo/share"] >= 0.4 or (row["bapo/clip_low"], row["bapo/clip_high"]) == pytest.approx((0.9, 3.0))


def test_a_fixed_clip_is_grpo(tmp_path) -> None:
    ours, with_ours = train(tmp_path / "a", steps=5, **FIXED)
    theirs, with_theirs = train(tmp_path / "b", steps=5, trainer_class=GRPOTrainer, config_class=GRPOConfig, epsilon=0.2, delta=3.0)
    for row, other in zip(with_ours, with_theirs, strict=True):
        assert {name: value for name, value in row.items() if name in other} == pytest.approx(other, abs=1e-6)
    for parameter, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(parameter, other)


class Compared(BAPOTrainer):
    """Holds TRL's loss with our bounds against BalancedClipLoss, in every micro-batch."""

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*arguments, **options)
        self.logp = found[0].detach()
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        loss = super()._compute_loss(model, inputs)
        mask, old, logp = inputs["completion_mask"], inputs["old_per_token_logps"], self.logp
        advantages = inputs["advantages"][:, None].expand_as(logp)
        if self.importance_sampling_level == "sequence":
            old, logp, advantages = ((x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True) for x in (old, logp, advantages))
            mask = torch.ones_like(logp)
        own = BalancedClipLoss(preset=self.args.bapo_preset)
        assert loss.item() == pytest.approx(own(logp, old, advantages, mask).item(), abs=1e-5)
        found = [self._metrics["train"][f"bapo/{name}"][-1] for name in ("clip_low", "clip_high", "share")]
        assert found == pytest.approx([own.last.low.item(), own.last.high.item(), own.last.share.item()])
        self.compared = [*getattr(self, "compared", []), found]
        return loss


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_bounds_and_loss_are_those_of_the_loss(tmp_path, preset, level) -> None:
    kind = "bnpo" if level == "token" else "grpo"
    made, _ = train(tmp_path, steps=6, trainer_class=Compared, bapo_preset=preset, importance_sampling_level=level, loss_type=kind)
    assert len(made.compared) == 6
    assert len({tuple(found[:2]) for found in made.compared}) > 1


def test_bounds_of_the_previous_step(tmp_path) -> None:
    """Two micro-batches a step: both have the bounds of the two before them, joined."""
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 8, "steps_per_generation": 4, "num_iterations": 2}

    class Window(BAPOTrainer):
        def _tally(self, *arguments: Any) -> torch.Tensor:
            tally = super()._tally(*arguments)
            self.tallies = [*getattr(self, "tallies", []), tally]
            return tally

        def _compute_loss(self, *arguments: Any) -> torch.Tensor:
            loss = super()._compute_loss(*arguments)
            self.used = [*getattr(self, "used", []), (1 - self.epsilon_low, 1 + self.epsilon_high)]
            return loss

    made, rows = train(tmp_path, steps=6, trainer_class=Window, bapo_window="previous_step", **options)
    assert len(made.tallies) == len(made.used) == 12 and len(set(made.used)) > 1
    expected = made.args.search().start
    for at in range(0, 12, 2):
        assert made.used[at] == made.used[at + 1] == pytest.approx(expected)
        *expected, share, _ = made.args.search().decide(made.tallies[at] + made.tallies[at + 1]).tolist()
        assert rows[at // 2]["bapo/share"] == pytest.approx(share)


# ---- killed, and resumed ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bapo_window": "previous_step", "logging_steps": 2}], ids=["micro_batch", "previous_step"])
def test_a_training_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path, through, options) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3} | options
    killed = subprocess.run(
        [sys.executable, "-m", "tests.reinforcement.tiny", str(tmp_path / "killed"), "5", json.dumps(saving)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert killed.returncode == -9, killed.stderr
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-3"]  # in the midst of a rollout
    expected = train(tmp_path / "through", **options)[1] if options else through
    made, rows = train(tmp_path / "killed", resume=True, **saving)
    assert made.state.global_step == 8
    later, found = ([row for row in log if row["step"] > 3] for log in (expected, rows))
    if "logging_steps" in options:  # the mean of the loss since the last log is the Trainer's own, and begins anew
        for row in later[:1] + found[:1]:
            del row["loss"]
    assert found == later and len(later) >= 3
    assert any("reward" in row for row in later)


def test_a_checkpoint_without_a_rollout_draws_a_new_one(tmp_path) -> None:
    train(tmp_path, steps=3, save_strategy="steps", save_steps=3)
    (kept,) = tmp_path.glob("checkpoint-3/rollout_0_of_1.pt")
    kept.unlink()
    _, rows = train(tmp_path, steps=5, resume=True)
    assert [row["step"] for row in rows if "reward" in row] == [1, 4]


# ---- what it is told -------------------------------------------------------------------------------------------------------------------


def test_a_rollout_for_one_step_is_warned_of(tmp_path) -> None:
    once = {"steps_per_generation": 1, "num_iterations": 1}
    with pytest.warns(UserWarning, match="BAPO is GRPO"):
        made = trainer(tmp_path, steps=2, **once)
    torch.manual_seed(0)
    made.train()
    rows = [row for row in made.state.log_history if "loss" in row]
    assert [(row["bapo/clip_low"], row["bapo/clip_high"], row["bapo/share"]) for row in rows] == [(pytest.approx(0.6), 1.2, None)] * 2


def test_evaluation_leaves_the_bounds(tmp_path) -> None:
    made, _ = train(tmp_path, steps=2)
    before = made.epsilon_low, made.epsilon_high
    found = made.evaluate(made.train_dataset.select(range(16)))
    assert (made.epsilon_low, made.epsilon_high) == before and math.isfinite(found["eval_loss"])
    assert not [name for name in found if "bapo" in name]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loss_type": "cispo"}, "loss_type: got 'cispo'"),
        ({"loss_type": "sapo"}, "loss_type: got 'sapo'"),
        ({"delta": 2.0}, "delta: got 2.0; expected at least the maximum of bapo_high, 3"),
        ({"bapo_target": 1.5}, "target: got 1.5"),
        ({"bapo_low": [0.9, 0.6, 0.02]}, "low: got"),
        ({"bapo_preset": "papers"}, "preset: got 'papers'"),
        ({"bapo_window": "step"}, "bapo_window: got 'step'"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, options, words) -> None:
    with pytest.raises(InputError, match=words):
        BAPOConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **options)


def test_other_arguments_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="args: got 'GRPOConfig'; expected a BAPOConfig"):
        trainer(tmp_path, config_class=GRPOConfig)
