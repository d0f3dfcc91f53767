r"""BAPO (arXiv:2510.18927): does a clip that moves help a policy that learns from answers of its own past?

The paper trains language models by GRPO on answers that are several updates old. Tokens with negative advantages then outweigh the others;
the clip is moved, batch by batch, until positive ones have a share of 0.4. It reports higher scores than GRPO and than fixed clips, the
more so the staler the answers, and an entropy that does not collapse.

The task has the imbalance that the paper names: *wrong answers are longer*. An answer is up to eight tokens, digits and END; it is right
if it ends and the sum of its digits leaves the remainder that the prompt asks for. The policy is an autoregressive perceptron that starts
from nothing. Every update takes 16 prompts with eight answers each, from a rollout for this update alone, or for eight of them, so that
the last answers are by a policy seven updates old. All arms of a seed begin with the same weights: GRPO's clip, "clip-higher", a fixed
clip where BAPO starts, BAPO as the paper has it, without its weights, with our statistic of gradients, and as in the authors' released
code, which is another method (another order, another criterion, other bounds).

The control that matters is *a clip as wide as BAPO's widest that never moves*: adapting is only worth something if it beats that one.

To know when reading: a task of seconds. All arms end at a reward near 1, so that their difference is one of speed. The entropy at the end
says nothing, since whoever solves the task has none left; it is read where the reward first passes one half. The share is measured at an
arm's own bounds, which BAPO chooses so that it rises: that claim is a check of the mechanism and no merit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from counterpoise._seeding import seed_integer
from counterpoise._stats import mean_interval
from counterpoise.diagnostics import policy_balance
from counterpoise.losses import BalancedClipLoss

from ._types import Claim, Finding, Replication, Verdict
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "bapo"

DIGITS, END, LENGTH, MODULUS = 10, 10, 8, 7
HIDDEN, RATE, PROMPTS, GROUP, UPDATES = 64, 3e-3, 16, 8, 320
STALE = 8  # updates per rollout
EQUAL_LENGTH, EQUAL_MODULUS, EQUAL_UPDATES = 3, 20, 480  # the control whose answers are all equally long
SMOOTHED = 40  # updates over which the reward is averaged to see when it passes one half, and at the end
LEVEL, NO_EFFECT = 0.90, 0.05  # of the intervals; of reward

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("GRPO, clip [0.8, 1.2]", {"low": (0.8, 0.8, 0), "high": (1.2, 1.2, 0)}),
    "higher": ("clip-higher, [0.8, 1.28]", {"low": (0.8, 0.8, 0), "high": (1.28, 1.28, 0)}),
    "start": ("fixed, BAPO's start, [0.6, 1.2]", {"low": (0.6, 0.6, 0), "high": (1.2, 1.2, 0)}),
    "wide": ("fixed wide clip, [0.9, 3.0]", {"low": (0.9, 0.9, 0), "high": (3.0, 3.0, 0)}),
    "bapo": ("BAPO, the paper's", {}),
    "unweighted": ("BAPO, w = 1", {"weight": "none"}),
    "gradient": ("BAPO, our statistic", {"statistic": "gradient"}),
    "code": ("BAPO, released code", {"preset": "reference"}),
}
MEANS = ("share", "gradient", "low", "high", "clipped")  # over updates, of what an arm's loss saw
FRESH_ARMS = EQUAL_ARMS = ("grpo", "bapo")

_DIFFERENCE = f"{LEVEL:.0%} interval (t, over seeds) of the paired difference"
CLAIMS = (
    Claim(
        "reward",
        "Where answers are eight updates old, the moving clip learns better than GRPO's.",
        f"{_DIFFERENCE} in mean training reward, BAPO minus GRPO, {STALE} updates per rollout: above 0",
    ),
    Claim(
        "share",
        "The moving clip raises the share of positive advantages.",
        f"{_DIFFERENCE} in the mean share during training, each at its own bounds (w = 1), BAPO minus GRPO: above 0",
    ),
    Claim(
        "fresh",
        "Where answers are fresh, it changes nothing.",
        f"{_DIFFERENCE} in mean training reward, one update per rollout: within -{NO_EFFECT:g} and +{NO_EFFECT:g}",
    ),
    Claim(
        "adaptive",
        "What helps is that the clip moves: BAPO learns better than a fixed clip as wide as its widest, [0.9, 3.0].",
        f"{_DIFFERENCE} in mean training reward, BAPO minus the fixed wide clip, {STALE} updates per rollout: above 0",
    ),
    Claim("entropy", "The moving clip keeps the entropy of the policy."),
    Claim("variants", "Other clips, and other forms of BAPO, beside GRPO."),
    Claim("equal-length", f"Answers that are all equally long ({EQUAL_LENGTH} tokens), {STALE} updates per rollout."),
)

SEEDS, QUICK_SEEDS = tuple(range(8)), (0, 1)
QUICK_UPDATES = 64

Row = Mapping[str, Any]
Interval = tuple[float, float, float]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """All arms for each of ``seeds``; the task is generated, so ``data_dir`` is not used. A quick run takes a fifth of the updates."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    cells = [("stale", arm) for arm in ARMS] + [("fresh", arm) for arm in FRESH_ARMS] + [("equal", arm) for arm in EQUAL_ARMS]
    updates = {"stale": UPDATES, "fresh": UPDATES, "equal": EQUAL_UPDATES}
    runs = work.map(
        train,
        [
            {"seed": seed, "setting": setting, "arm": arm, "updates": QUICK_UPDATES if quick else updates[setting]}
            for seed in seeds
            for setting, arm in cells
        ],
    )
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(runs),
        notes=_notes(runs),
        tables=_tables(runs),
        figure=_figure(runs),
        seeds=seeds,
        quick=quick,
    )


# ---- the task ---------------------------------------------------------------------------------------------------------------------------


def rewards(answers: Tensor, prompts: Tensor, modulus: int, equal: bool) -> tuple[Tensor, Tensor]:
    """1 for a right answer, (n,), and the tokens that count, (n, T): those up to END. Equally long answers have no END."""
    ends = (answers == END).long().cumsum(dim=1)
    mask = (ends == 0) | ((ends == 1) & (answers == END))
    total = torch.where(ends == 0, answers, 0).sum(dim=1)
    ended = torch.ones_like(total, dtype=torch.bool) if equal else ends[:, -1] > 0
    return ((total % modulus == prompts) & ended).float(), mask


def advantages(reward: Tensor) -> Tensor:
    """GRPO's: standardized within the answers to one prompt; 0 where they are all equally good."""
    groups = reward.view(-1, GROUP)
    return ((groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + 1e-4)).reshape(-1)


class Policy(nn.Module):
    """Logits of the next token, from the prompt and what was said so far, one-hot and side by side."""

    def __init__(self, modulus: int, length: int, tokens: int) -> None:
        super().__init__()
        self.modulus, self.length, self.tokens = modulus, length, tokens
        self.net = nn.Sequential(nn.Linear(modulus + length * (tokens + 1), HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, tokens))

    def features(self, prompts: Tensor, answers: Tensor) -> Tensor:
        """(n, T, width): at every position, with the answer up to there; ``tokens`` stands for what is not said yet."""
        n, T = answers.shape
        known = torch.arange(T) < torch.arange(T)[:, None]
        said = torch.where(known, answers[:, None, :], self.tokens)
        prefix = nn.functional.one_hot(said, self.tokens + 1).reshape(n, T, -1)
        prompt = nn.functional.one_hot(prompts, self.modulus)[:, None, :].expand(n, T, -1)
        return torch.cat([prompt, prefix], dim=2).float()

    @torch.no_grad()
    def answer(self, prompts: Tensor, source: torch.Generator) -> Tensor:
        """One answer to every prompt, (n, T), drawn."""
        said = torch.full((len(prompts), self.length), self.tokens)
        for t in range(self.length):
            # What was said so far is all that is known.
            prefix = nn.functional.one_hot(said, self.tokens + 1).reshape(len(prompts), -1)
            logits = self.net(torch.cat([nn.functional.one_hot(prompts, self.modulus), prefix], dim=1).float())
            said[:, t] = torch.multinomial(logits.softmax(dim=1), 1, generator=source).squeeze(1)
        return said


def train(seed: int, setting: str, arm: str, updates: int) -> dict[str, Any]:
    """One training: its reward and entropy update by update, and means of what the updates did."""
    equal = setting == "equal"
    modulus, length, tokens = (EQUAL_MODULUS, EQUAL_LENGTH, DIGITS) if equal else (MODULUS, LENGTH, DIGITS + 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed_integer(seed, SLUG, "policy"))
        policy = Policy(modulus, length, tokens)
    source = torch.Generator().manual_seed(seed_integer(seed, SLUG, "answers"))
    optimizer = torch.optim.Adam(policy.parameters(), lr=RATE)
    criterion = BalancedClipLoss(**ARMS[arm][1])
    uses = 1 if setting == "fresh" else STALE
    seen: dict[str, list[float]] = {name: [] for name in ("reward", "entropy", "moved", *MEANS)}
    for update in range(updates):
        if update % uses == 0:
            rollout = _rollout(policy, uses, source, equal)
        inputs, said, reward, mask, old = (part[update % uses] for part in rollout)
        a = advantages(reward)[:, None].expand_as(said)
        logps = policy.net(inputs).log_softmax(dim=2)
        logp = logps.gather(2, said[:, :, None]).squeeze(2)
        loss = criterion(logp, old, a, mask)
        last = criterion.last
        assert last is not None
        balance = policy_balance(logp, old, a, mask, low=float(last.low), high=float(last.high))
        gradient = balance.positive_gradient + balance.negative_gradient
        seen["reward"].append(float(reward.mean()))
        seen["entropy"].append(float(-(logps.exp() * logps).sum(dim=2)[mask].mean().detach()))
        seen["moved"].append(float(last.steps > 0))
        seen["share"].append(balance.share)
        seen["gradient"].append(balance.positive_gradient / gradient if gradient else math.nan)
        seen["low"].append(float(last.low))
        seen["high"].append(float(last.high))
        seen["clipped"].append(balance.clipped_low + balance.clipped_high)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    window = min(SMOOTHED, updates)
    smooth = np.convolve(seen["reward"], np.ones(window) / window, mode="valid")
    half = int(np.argmax(smooth >= 0.5)) + window - 1 if bool((smooth >= 0.5).any()) else None
    return {
        "reward": float(np.mean(seen["reward"])),
        "final": float(smooth[-1]),
        "half": half,
        "entropy_at_half": None if half is None else seen["entropy"][half],
        "entropy": float(np.mean(seen["entropy"])),
        "moved": float(np.mean(seen["moved"])),
        "curve": [round(float(value), 4) for value in np.mean(np.reshape(seen["reward"], (-1, 8)), axis=1)],
    } | {name: _mean_of_numbers(seen[name]) for name in MEANS}


@torch.no_grad()
def _rollout(policy: Policy, uses: int, source: torch.Generator, equal: bool) -> list[Tensor]:
    """Answers for ``uses`` updates: inputs, tokens, rewards, mask and log-probabilities, each (uses, PROMPTS * GROUP, ...)."""
    prompts = torch.randint(policy.modulus, (uses * PROMPTS,), generator=source).repeat_interleave(GROUP)
    said = policy.answer(prompts, source)
    reward, mask = rewards(said, prompts, policy.modulus, equal)
    inputs = policy.features(prompts, said)
    old = policy.net(inputs).log_softmax(dim=2).gather(2, said[:, :, None]).squeeze(2)
    return [part.view(uses, PROMPTS * GROUP, *part.shape[1:]) for part in (inputs, said, reward, mask, old)]


def _mean_of_numbers(values: Sequence[float]) -> float:
    """Updates whose answers are all equally good have no share."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


# ---- findings ---------------------------------------------------------------------------------------------------------------------------


def _difference(runs: Sequence[Row], arm: str, baseline: str, value: str = "reward", setting: str = "stale") -> Interval:
    return mean_interval(paired(rows_where(runs, setting=setting), value, arm, baseline), level=LEVEL)


def _mean(runs: Sequence[Row], arm: str, value: str = "reward", setting: str = "stale") -> float:
    known = [row[value] for row in rows_where(runs, setting=setting, arm=arm) if row[value] is not None]
    return float(np.mean(known)) if known else math.nan


def _shown(interval: Interval) -> str:
    estimate, low, high = interval
    return f"{estimate:+.3f} ({low:+.3f} to {high:+.3f})"


def _within(interval: Interval) -> Verdict:
    _, low, high = interval
    inside, outside = max(-low, high) < NO_EFFECT, low >= NO_EFFECT or high <= -NO_EFFECT
    return "replicated" if inside else "not replicated" if outside else "undecided"


def _findings(runs: Sequence[Row]) -> tuple[Finding, ...]:
    claims = {claim.key: claim for claim in CLAIMS}
    gain, share = _difference(runs, "bapo", "grpo"), _difference(runs, "bapo", "grpo", "share")
    fresh, adaptive = _difference(runs, "bapo", "grpo", setting="fresh"), _difference(runs, "bapo", "wide")
    wide = _difference(runs, "wide", "grpo")
    levels = {arm: f"{_mean(runs, arm):.3f}" for arm in ARMS}
    text = f"Mean training reward {levels['bapo']}, GRPO {levels['grpo']}: {_shown(gain)}."
    findings = [claims["reward"].above(gain, 0.0, text, unit="reward")]
    text = f"Mean positive share {_mean(runs, 'bapo', 'share'):.3f}, GRPO {_mean(runs, 'grpo', 'share'):.3f}: {_shown(share)}."
    findings.append(claims["share"].above(share, 0.0, text, unit="share"))
    text = (
        f"One update per rollout: {_mean(runs, 'bapo', setting='fresh'):.3f} and {_mean(runs, 'grpo', setting='fresh'):.3f}, "
        f"{_shown(fresh)}" + ("; identical, since all ratios are 1." if fresh == (0.0, 0.0, 0.0) else ".")
    )
    estimate, low, high = fresh
    findings.append(claims["fresh"].judged(_within(fresh), text, estimate=estimate, low=low, high=high, unit="reward"))
    text = (
        f"BAPO {levels['bapo']}, fixed wide clip {levels['wide']}: {_shown(adaptive)}. The clip that never moves gains {_shown(wide)} over "
        f"GRPO, BAPO {_shown(gain)}."
    )
    findings.append(claims["adaptive"].above(adaptive, 0.0, text, unit="reward"))
    return (*findings, *_reported(runs, claims))


def _reported(runs: Sequence[Row], claims: Mapping[str, Claim]) -> list[Finding]:
    found = []
    entropy = _difference(runs, "bapo", "grpo", "entropy")
    at_half = [
        (row["entropy_at_half"], other["entropy_at_half"])
        for row, other in zip(rows_where(runs, setting="stale", arm="bapo"), rows_where(runs, setting="stale", arm="grpo"), strict=True)
        if row["entropy_at_half"] is not None and other["entropy_at_half"] is not None
    ]
    levels = [_mean(runs, arm, "entropy") for arm in ("bapo", "grpo")]
    text = f"Mean entropy during training {levels[0]:.3f}, GRPO {levels[1]:.3f}: {_shown(entropy)}."
    if at_half:
        same = mean_interval([ours - theirs for ours, theirs in at_half], level=LEVEL)
        text += (
            f" Where the reward first passes one half: {np.mean([a for a, _ in at_half]):.3f} and {np.mean([b for _, b in at_half]):.3f}, "
            f"{_shown(same)}."
        )
    found.append(claims["entropy"].reported(entropy, text, unit="nats"))
    for arm, (name, _) in ARMS.items():
        if arm not in ("grpo", "bapo"):
            gain, behind = _difference(runs, arm, "grpo"), _difference(runs, "bapo", arm)
            text = f"{name}: mean training reward {_mean(runs, arm):.3f}, over GRPO {_shown(gain)}; BAPO over it {_shown(behind)}."
            found.append(claims["variants"].reported(gain, text, unit="reward", name=name))
    gain = _difference(runs, "bapo", "grpo", setting="equal")
    ours, theirs = (_mean(runs, arm, setting="equal") for arm in ("bapo", "grpo"))
    text = (
        f"Mean training reward {ours:.3f}, GRPO {theirs:.3f}: {_shown(gain)}. BAPO's share is {_mean(runs, 'bapo', 'share', 'equal'):.3f}, "
        f"and its bounds moved in {_mean(runs, 'bapo', 'moved', 'equal'):.1%} of the updates."
    )
    found.append(claims["equal-length"].reported(gain, text, unit="reward"))
    return found


def _notes(runs: Sequence[Row]) -> tuple[str, ...]:
    best = max((arm for arm in ARMS), key=lambda arm: _mean(runs, arm))
    final = [_mean(runs, arm, "final") for arm in ARMS]
    return (
        f"Of all arms, {ARMS[best][0]} has the highest mean training reward, {_mean(runs, best):.3f}. Compare with a fixed wide clip "
        "before you adopt one that moves: BalancedClipLoss(low=(0.9, 0.9, 0), high=(3.0, 3.0, 0)).",
        f"BAPO's bounds moved in {_mean(runs, 'bapo', 'moved'):.1%} of the updates; in the others it is a fixed clip of [0.6, 1.2], which "
        f"alone has {_shown(_difference(runs, 'start', 'grpo'))} over GRPO.",
        f"At the end of training all arms lie between {min(final):.3f} and {max(final):.3f}: what is compared is how fast they learn.",
        "The low bound cannot raise the share: max(r, c_low) |A| grows with c_low. Once the search comes to it, it runs to its end. What "
        "it does is to freeze the tokens below it.",
        "Paper and released code disagree about the criterion (share or ratio), the order, the weights, the steps and both ranges: "
        "preset='paper' and preset='reference'.",
    )


def _tables(runs: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    columns = {
        "mean reward": "reward", "reward at the end": "final", "entropy": "entropy", "entropy at half": "entropy_at_half",
        "positive share": "share", "gradient share": "gradient", "bounds moved": "moved", "low": "low", "high": "high",
        "clipped": "clipped",
    }  # fmt: skip
    tables = {}
    titles = {"stale": f"{STALE} updates per rollout", "fresh": "One update per rollout", "equal": "Answers equally long"}
    for setting, title in titles.items():
        arms = [arm for arm in ARMS if rows_where(runs, setting=setting, arm=arm)]
        tables[title] = [
            {"arm": ARMS[arm][0]} | {name: round(_mean(runs, arm, key, setting), 4) for name, key in columns.items()} for arm in arms
        ]
    return tables


def _figure(runs: Sequence[Row]) -> Figure:
    """Gain over GRPO of every arm, widest at the top of the fixed ones."""
    from counterpoise.report import _plots as plots

    arms = [arm for arm in ARMS if arm != "grpo"]
    row_height, bottom, left, span = 27, 50, 240, 400
    height = row_height * len(arms) + bottom + 50
    with plots.style():
        fig = plots.figure(plots.WIDTH, height)
        ax = plots.axes(fig, left, bottom, span, row_height * len(arms))
        plots.plain_rows(ax, len(arms))
        plots.rules_between(ax, len(arms))
        for row, arm in enumerate(arms):
            estimate, low, high = _difference(runs, arm, "grpo")
            color = plots.BLUE if arm == "bapo" else plots.INK if arm == "wide" else plots.GRAY
            weight = "bold" if arm in ("bapo", "wide") else "normal"
            ax.plot([low, high], [row, row], color=color, lw=2.4, solid_capstyle="butt")
            ax.plot(estimate, row, color=color, **plots.DOT)
            plots.row_text(fig, ax, row, 10, ARMS[arm][0], weight=weight)
            plots.row_text(fig, ax, row, left + span + 14, f"{estimate:+.3f}", color=color, weight=weight)
        ax.axvline(0, color=plots.INK, lw=1, zorder=0)
        ax.set_xlabel(f"mean training reward over that of GRPO's clip, {LEVEL:.0%} interval over seeds")
        fig.text(10 / plots.WIDTH, 1 - 12 / height, "What a moving clip gains, beside clips that never move", va="top", weight="bold")
    return fig
