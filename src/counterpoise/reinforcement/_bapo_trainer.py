r"""TRL's ``GRPOTrainer`` with bounds that move (BAPO, arXiv:2510.18927), found as by :class:`counterpoise.losses.BalancedClipLoss`.

TRL reads its two epsilons after it has the log-probabilities of the policy. That is where the bounds are found and put: no line of TRL's
loss is repeated here, and its metrics of clipping are about the bounds that were used.
"""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from counterpoise._dist import all_reduce_sum
from counterpoise._errors import bad_input, check_choice
from counterpoise._extras import require
from counterpoise.losses._balanced_clip import ClipSearch

try:
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]
except ImportError:
    require("trl", "trl", "reinforcement.BAPOTrainer")
    raise

__all__ = ["BAPOConfig", "BAPOTrainer"]

LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo")  # those with a clipped ratio of tokens or sequences


@dataclass
class BAPOConfig(GRPOConfig):
    """TRL's ``GRPOConfig``, and the options of the search, each as in :class:`counterpoise.losses.BalancedClipLoss`.

    ``epsilon`` and ``epsilon_high`` are not used. For the search to have something to do, a rollout must be used for several optimizer
    steps: ``num_iterations > 1``, or ``steps_per_generation`` above ``gradient_accumulation_steps``.

    Parameters
    ----------
    bapo_preset : {"paper", "reference"}, default "paper"
        What the options are that are None.
    bapo_target, bapo_criterion, bapo_order, bapo_weight : optional
        Target, criterion, order and weight of the search.
    bapo_low, bapo_high : [start, maximum, step], optional
        Bounds of the ratio (not epsilons). The maximum of ``bapo_high`` may not be above ``delta``, where TRL cuts all ratios.
    bapo_statistic : {"surrogate", "gradient"}, default "surrogate"
    bapo_window : {"micro_batch", "previous_step"}, default "micro_batch"
        Which tokens the bounds come from: those of the micro-batch that is charged, so that they depend on its size; or those of all
        micro-batches of the last optimizer step, so that all of this step have the same bounds. Tokens of all processes, in both cases.
    delta : float, default 3.0 (the authors' code)
        TRL's option for the dual clip.

    Raises
    ------
    InputError
        If ``loss_type`` is not one of "grpo", "bnpo", "dr_grpo" and "dapo", or an option is out of its range.
    """

    delta: float | None = field(default=3.0, metadata={"help": "Ratios are cut here (dual clip); the authors of BAPO use 3."})
    bapo_preset: str = field(default="paper", metadata={"help": "'paper' or 'reference': what the options below are if not given."})
    bapo_target: float | None = field(default=None, metadata={"help": "Share (or ratio) of positive advantages to reach."})
    bapo_low: list[float] | None = field(default=None, metadata={"help": "Start, maximum and step of the low bound of the ratio."})
    bapo_high: list[float] | None = field(default=None, metadata={"help": "Start, maximum and step of the high bound of the ratio."})
    bapo_criterion: str | None = field(default=None, metadata={"help": "'share' or 'ratio'."})
    bapo_order: str | None = field(default=None, metadata={"help": "'high_first' or 'low_first'."})
    bapo_weight: str | None = field(default=None, metadata={"help": "'rollout_prob' or 'none'."})
    bapo_statistic: str = field(default="surrogate", metadata={"help": "'surrogate' or 'gradient'."})
    bapo_window: str = field(default="micro_batch", metadata={"help": "'micro_batch' or 'previous_step': where the bounds come from."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        check_choice("loss_type", self.loss_type, LOSSES, "The others have no clip of the ratio that could move.")
        check_choice("bapo_window", self.bapo_window, ("micro_batch", "previous_step"))
        search = self.search()
        if self.delta is not None and search.high.maximum > self.delta:
            bad_input("delta", self.delta, f"at least the maximum of bapo_high, {search.high.maximum:g}", "TRL cuts all ratios at delta.")

    def search(self) -> ClipSearch:
        return ClipSearch.of(
            self.bapo_target,
            self.bapo_low,
            self.bapo_high,
            self.bapo_preset,
            self.bapo_criterion,
            self.bapo_order,
            self.bapo_weight,
            self.bapo_statistic,
            self.delta,
        )


class BAPOTrainer(GRPOTrainer):
    """TRL's ``GRPOTrainer`` whose clip moves until positive advantages have their share of the update.

    Arguments are those of ``GRPOTrainer``, with a :class:`BAPOConfig` as ``args``. To what TRL logs come ``bapo/clip_low``,
    ``bapo/clip_high`` (means of the bounds that were used), ``bapo/share`` (of positive advantages, where the bounds were found; missing
    without any advantage) and ``bapo/from_previous_step`` (1 or 0: ``bapo_window``). With ``importance_sampling_level="sequence"`` the
    search is over ratios of sequences. Evaluation searches for nothing.

    A checkpoint also holds the rollout in use, of every process, and what was not logged yet. A training that is killed in the midst of
    a rollout goes on with it, where TRL would draw another: from the last checkpoint on, rewards and bounds are those of a training that
    ran through.

    Warns
    -----
    UserWarning
        If every rollout is used for one optimizer step alone: all ratios are 1, and BAPO is GRPO.

    Notes
    -----
    Masks of ``top_entropy_quantile`` and ``off_policy_mask_threshold`` and the correction for vLLM act on the loss, not on the search.
    """

    args: BAPOConfig
    _charged: dict[str, Any] | None = None  # the inputs of the loss that is being computed

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not isinstance(self.args, BAPOConfig):
            bad_input("args", type(self.args).__name__, "a BAPOConfig", "BAPOConfig takes all options of GRPOConfig.")
        self._search = self.args.search()
        self._bounds = self._search.start
        self._window: Tensor | None = None
        self._use(*self._bounds)
        corrected = self.use_vllm and self.vllm_importance_sampling_correction
        if self.args.gradient_accumulation_steps % self._uses_of_a_rollout() == 0 and not corrected:
            warnings.warn(
                "Every rollout is used for one optimizer step alone, so all ratios are 1 and BAPO is GRPO: set num_iterations > 1 or "
                "steps_per_generation above gradient_accumulation_steps, so that the one is no multiple of the other.",
                stacklevel=2,
            )

    def _uses_of_a_rollout(self) -> int:
        """Micro-batches that are charged before the next rollout is drawn."""
        return int(self.args.steps_per_generation or 1) * int(self.num_iterations)

    # ---- the loss -----------------------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._charged = inputs
        try:
            loss: Tensor = super()._compute_loss(model, inputs)  # type: ignore[no-untyped-call]
        finally:
            self._charged = None
        return loss

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **options: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*arguments, **options)
        # Also called for old and reference log-probabilities, outside of the loss.
        if self._charged is not None and self.model is not None and self.model.training:
            self._move(found[0].detach(), self._charged)
        return found

    def _move(self, logp: Tensor, inputs: dict[str, Any]) -> None:
        """Find the bounds for these tokens, or add them to those of this step; put the bounds where TRL looks for them."""
        share = math.nan
        if (old_logp := inputs.get("old_per_token_logps")) is not None:
            tally = self._tally(logp, old_logp, inputs)
            if self.args.bapo_window == "micro_batch":
                *bounds, share, _ = self._search.decide(all_reduce_sum(tally)).tolist()
                self._use(*bounds)
            else:
                self._use(*self._bounds)
                self._window = tally if self._window is None else self._window + tally
                if self.accelerator.sync_gradients:  # the last micro-batch of the step
                    *bounds, share, _ = self._search.decide(all_reduce_sum(self._window)).tolist()
                    self._bounds, self._window = (bounds[0], bounds[1]), None
        metrics = self._metrics["train"]
        metrics["bapo/clip_low"].append(1 - self.epsilon_low)
        metrics["bapo/clip_high"].append(1 + self.epsilon_high)
        metrics["bapo/share"].append(share)
        metrics["bapo/from_previous_step"].append(float(self.args.bapo_window == "previous_step"))

    def _tally(self, logp: Tensor, old_logp: Tensor, inputs: dict[str, Any]) -> Tensor:
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        advantages = inputs["advantages"]
        advantages = (advantages.unsqueeze(1) if advantages.dim() == 1 else advantages).expand_as(logp)
        if self.importance_sampling_level == "sequence":
            # The mean over tokens is what TRL's ratio of a sequence is made of.
            count = mask.sum(dim=1, keepdim=True).clamp(min=1)
            logp, old_logp, advantages = ((x * mask).sum(dim=1, keepdim=True) / count for x in (logp, old_logp, advantages))
            mask = mask.sum(dim=1, keepdim=True)
        return self._search.tally(logp, old_logp, advantages, mask.bool())

    def _use(self, low: float, high: float) -> None:
        self.epsilon_low, self.epsilon_high = 1 - low, high - 1

    # ---- checkpoints --------------------------------------------------------------------------------------------------------------------

    def _rollout_file(self, folder: str) -> str:
        return os.path.join(folder, f"rollout_{self.args.process_index}_of_{self.args.world_size}.pt")

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        os.makedirs(output_dir, exist_ok=True)
        used_up = self._step % self._uses_of_a_rollout() == 0
        state = {
            "step": self._step,
            "rollout": None if used_up else self._buffered_inputs,
            "bounds": self._bounds,
            "metrics": {name: list(values) for name, values in self._metrics["train"].items()},
        }
        torch.save(state, self._rollout_file(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[no-untyped-call]
        # A checkpoint of another trainer, or of another number of processes, has none: a new rollout is drawn.
        if checkpoint is None or not os.path.exists(path := self._rollout_file(checkpoint)):
            return
        state = torch.load(path, map_location=self.accelerator.device, weights_only=True)
        self._step, self._buffered_inputs, self._bounds = state["step"], state["rollout"], tuple(state["bounds"])
        self._metrics["train"].update(state["metrics"])
