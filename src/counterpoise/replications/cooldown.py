r"""Upsample or upweight (Li et al. 2025, arXiv:2410.04579): should small domains be drawn more often or weighed, and is Cooldown best?

The paper says that drawing domains at a temperature and weighing their losses have the same mean gradient, that drawing is always the less
noisy one and therefore learns faster, that it overfits small domains, and that a high temperature first and a low one later is the best of
both. It shows this with translation and with language models of four languages.

*The gradients*: digits in four domains (as they are, transposed, inverted, mirrored; 800, 120, 40 and 20 images), a perceptron in float64.
The identity, the variances by the formula and by drawing, and their ratio: before training, after training on the data as they are, and
after training on all domains alike, where small ones have been learned by heart. *Convergence and Cooldown*: a model of the next character
from eight, for English, Afrikaans and Welsh (21,000 characters each) with Faroese and Irish, of which there is little (4,350 and 2,536
characters: "mild") or very little (1,322 and 557: "extreme"). Batches of 64, 1,600 steps of Adam. Losses are of other sentences; "high" and
"low" are means over the three and the two languages. Beside it, eleven languages as large as they are.

To know when reading: these models are small, and even the large languages are seen more than once. What the regime does is the finding: a
temperature that helps where there are thousands of characters harms where there are hundreds.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from counterpoise._errors import InputError
from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval
from counterpoise._temperature import probabilities

from ._types import Claim, Finding, Replication
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "cooldown"

# Gradients
IMAGES = (800, 120, 40, 20)
TAUS = (1.0, 2.0, 3.0, 5.0, 100.0)  # 100 is what the paper calls uniform
UNITS, GRADIENT_RATE = 64, 2e-3
PROPORTIONAL_STEPS, UNIFORM_STEPS = 600, 1500
EXACT, DRAWS, ERRORS = 1e-12, 200_000, 3.0
STATES = ("before training", f"after {PROPORTIONAL_STEPS} steps as the data are", f"after {UNIFORM_STEPS} steps, domains alike")

# Languages
HIGH, LOW = ("en", "af", "cy"), ("fo", "ga")
NAMES = {
    "en": "English", "af": "Afrikaans", "cy": "Welsh", "wo": "Wolof", "sv": "Swedish", "lt": "Lithuanian", "id": "Indonesian",
    "da": "Danish", "ga": "Irish", "fo": "Faroese", "mr": "Marathi",
}  # fmt: skip
SETTINGS: Mapping[str, Mapping[str, int | None]] = {
    "mild": dict.fromkeys(HIGH, 21_000) | {"fo": 4350, "ga": 2536},
    "extreme": dict.fromkeys(HIGH, 21_000) | {"fo": 1322, "ga": 557},
    "natural": dict.fromkeys(NAMES),  # all there is
}
VALIDATION = 6700  # characters of each language
CONTEXT, CHARACTER, LANGUAGE, HIDDEN, RATE, BATCH, STEPS = 8, 24, 16, 192, 2e-3, 64, 1600
EARLY = (200, 400)
HOT, COLD = 5.0, 1.0
ARMS = {
    "tau 1": "drawn as the data are",
    "tau 5": "drawn at tau 5",
    "weights": "weighed at tau 5",
    "cooldown": "tau 5, then 1",
    "rising": "tau 1, then 5",
}

_EACH = "95 % interval (t, over seeds) of the difference in validation loss, in each of the settings mild and extreme: "
CLAIMS = (
    Claim(
        "identity",
        "Drawing at a temperature and weighing the losses have the same mean gradient, and variances with a closed form.",
        f"full gradients equal to {EXACT:g} at each of {len(TAUS)} temperatures, for every seed; the formulas within {ERRORS:g} standard "
        f"errors of {DRAWS:,} draws at each, for the first seed",
    ),
    Claim(
        "variance",
        "Before training, weighing is the noisier one, the more the higher the temperature.",
        "ratio of the variances above 1 at every temperature above 1, and increasing, for every seed",
    ),
    Claim(
        "theorem-2",
        "Weighing is never the less noisy one (Theorem 2).",
        "ratio of the variances at least 1 at every temperature in each of three states of the training, for every seed",
    ),
    Claim(
        "faster",
        "Drawing learns faster than weighing.",
        _EACH + f"low languages, tau 5 minus weights, after {' and '.join(map(str, EARLY))} steps: below 0",
    ),
    Claim("overfits", "Drawing overfits small domains.", _EACH + "low languages, tau 5 minus weights, at the end: above 0"),
    Claim("cooldown-high", "Cooldown gives back what a high temperature costs.", _EACH + "high languages, cooldown minus tau 5: below 0"),
    Claim("cooldown-low", "Cooldown is better for the small domains, too.", _EACH + "low languages, cooldown minus tau 5: below 0"),
    Claim("best-of-both", "Cooldown is better than no temperature.", _EACH + "low languages, cooldown minus tau 1: below 0"),
    Claim("direction", "A falling temperature is better than a rising one.", _EACH + "low languages, cooldown minus rising: below 0"),
    Claim("price", "What Cooldown costs the high languages."),
    Claim("natural", "Eleven languages as large as they are."),
)

SEEDS, QUICK_SEEDS = tuple(range(5)), (0, 1)
QUICK_STEPS, QUICK_TRAINED = 60, (30, 60)

Row = Mapping[str, Any]
Interval = tuple[float, float, float]
IntArray = npt.NDArray[np.int64]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """Gradients, and five arms in three settings, for each of ``seeds``. Digits come with scikit-learn, ``multilingual-text`` is looked up
    in ``data_dir``. A quick run trains for a few steps only."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    folder = str(_folder(data_dir))
    steps = QUICK_TRAINED if quick else (PROPORTIONAL_STEPS, UNIFORM_STEPS)
    gradients = work.map(digits, [{"seed": seed, "steps": list(steps), "draws": DRAWS if seed == seeds[0] else 0} for seed in seeds])
    tasks = [
        {"seed": seed, "setting": setting, "arm": arm, "steps": QUICK_STEPS if quick else STEPS, "folder": folder}
        for seed in seeds
        for setting in SETTINGS
        for arm in ARMS
        if not (quick and setting == "natural" and seed != seeds[0])
    ]
    runs = work.map(train, tasks)
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(gradients, runs),
        notes=_notes(gradients, runs),
        tables=_tables(gradients, runs),
        figure=_figure(gradients, runs),
        seeds=seeds,
        quick=quick,
    )


# ---- gradients --------------------------------------------------------------------------------------------------------------------------


def domains_of_digits(seed: int) -> tuple[Tensor, Tensor, IntArray]:
    """Images (n, 64) in float64, digits and domains: as they are, transposed, inverted, mirrored."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    rows = generator(seed, SLUG, "digits").permutation(len(X))[: sum(IMAGES)]
    images = X[rows].reshape(-1, 8, 8) / 16
    domains = np.repeat(np.arange(len(IMAGES)), IMAGES)
    plain, transposed, inverted, mirrored = (images[domains == k] for k in range(len(IMAGES)))
    changed = np.concatenate([plain, transposed.transpose(0, 2, 1), 1 - inverted, mirrored[:, :, ::-1]])
    return torch.from_numpy(changed.reshape(-1, 64).copy()), torch.from_numpy(y[rows].astype(np.int64)), domains


def digits(seed: int, steps: Sequence[int], draws: int) -> dict[str, Any]:
    """Ratios of the variances in three states; the identity in all of them, the formulas against ``draws`` draws in the first."""
    from counterpoise.diagnostics import gradient_variance

    X, y, domains = domains_of_digits(seed)
    states = {}
    worst = apart = 0.0
    for name, (count, tau) in zip(STATES, ((0, 1.0), (steps[0], 1.0), (steps[1], TAUS[-1])), strict=True):
        net = _trained(seed, X, y, domains, count, tau)
        report = gradient_variance(net, nn.CrossEntropyLoss(), (X, y), domains, TAUS)
        states[name] = {"ratio": report.ratio.tolist(), "F": report.F.tolist(), "G": report.G.tolist()}
        worst = max([worst, *(_identity(net, X, y, domains, tau) for tau in TAUS)])
        if draws and name == STATES[0]:
            apart = max(_by_drawing(net, X, y, domains, tau, V, draws, seed) for tau, V in _variances(report))
    return {"states": states, "worst": worst, "errors": apart if draws else None}


def _trained(seed: int, X: Tensor, y: Tensor, domains: IntArray, steps: int, tau: float) -> nn.Module:
    from counterpoise.data import TemperatureBatchSampler

    with torch.random.fork_rng():
        torch.manual_seed(seed_integer(seed, SLUG, "perceptron"))
        net = nn.Sequential(nn.Linear(64, UNITS), nn.ReLU(), nn.Linear(UNITS, 10)).double()
    optimizer = torch.optim.Adam(net.parameters(), lr=GRADIENT_RATE)
    if steps:
        batches = TemperatureBatchSampler(domains, BATCH, tau, num_batches=steps, generator=seed_integer(seed, SLUG, "digits", "batches"))
        for batch in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(X[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net


def _flat(net: nn.Module, loss: Tensor) -> Tensor:
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(net.parameters()))])


def _identity(net: nn.Module, X: Tensor, y: Tensor, domains: IntArray, tau: float) -> float:
    """Largest difference between both full gradients."""
    from counterpoise.data import temperature_probabilities
    from counterpoise.losses import ScalarizedLoss

    ids = torch.from_numpy(domains)
    weighted = _flat(net, ScalarizedLoss(nn.CrossEntropyLoss(reduction="none"), IMAGES, tau)(net(X), y, ids))
    p = temperature_probabilities(IMAGES, tau)
    means = torch.stack([nn.functional.cross_entropy(net(X[ids == k]), y[ids == k]) for k in range(len(IMAGES))])
    return float((weighted - _flat(net, (p * means).sum())).abs().max())


def _variances(report: Any) -> list[tuple[float, tuple[float, float]]]:
    return [(float(tau), (float(s), float(ts))) for tau, s, ts in zip(report.taus, report.var_s, report.var_ts, strict=True)]


def _by_drawing(
    net: nn.Module, X: Tensor, y: Tensor, domains: IntArray, tau: float, formula: tuple[float, float], draws: int, seed: int
) -> float:
    """How many standard errors the formulas are from the mean squared distance of drawn gradients to the mean gradient, at most."""
    from counterpoise.data import TemperatureSampler, temperature_probabilities
    from counterpoise.losses import scalarization_weights

    parameters = {name: parameter.detach() for name, parameter in net.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(net, values, (x[None],)), target[None])

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, X, y)
    gradients = torch.cat([part.reshape(len(X), -1) for part in each.values()], dim=1).detach()
    ids = torch.from_numpy(domains)
    p = temperature_probabilities(IMAGES, tau)
    mean = sum(p[k] * gradients[ids == k].mean(dim=0) for k in range(len(IMAGES)))
    apart = 0.0
    for drawn_at, weight, expected in ((1.0, scalarization_weights(IMAGES, tau), formula[0]), (tau, torch.ones(4).double(), formula[1])):
        sampler = TemperatureSampler(domains, drawn_at, num_samples=draws, generator=seed_integer(seed, SLUG, "draws", f"{tau:g}"))
        distance = (weight[ids][:, None] * gradients - mean).square().sum(dim=1)[list(sampler)]
        apart = max(apart, abs(float(distance.mean()) - expected) / (float(distance.std()) / draws**0.5))
    return apart


# ---- languages --------------------------------------------------------------------------------------------------------------------------


def _folder(data_dir: str | Path | None) -> Path:
    own = data_dir or os.environ.get("COUNTERPOISE_DATA")
    folder = Path(own or ".") / "multilingual-text"
    missing = [code for code in NAMES if not (folder / f"{code}.txt.gz").is_file()]
    if own is None or missing:
        where = f"no {missing[0]}.txt.gz in {folder}" if own else "no folder of data sets"
        raise InputError(
            f"multilingual-text: {where}. Put sentences of Universal Dependencies, one in a line, as en.txt.gz, fo.txt.gz, ... into "
            "multilingual-text of the folder that $COUNTERPOISE_DATA names."
        )
    return folder


@lru_cache(maxsize=2)
def texts(folder: str, setting: str, seed: int) -> tuple[IntArray, list[IntArray], list[IntArray]]:
    """The alphabet, and code numbers of the characters to train on and to validate with, language by language.

    Sentences in a random order: the first ones, until there are enough characters, validate, the next ones train.
    """
    raw = {}
    for code in SETTINGS[setting]:
        with gzip.open(Path(folder) / f"{code}.txt.gz", "rt", encoding="utf-8") as file:
            raw[code] = file.read().splitlines()
    alphabet = np.unique(np.concatenate([_points("\n".join(lines)) for lines in raw.values()]))
    train, validation = [], []
    for code, length in SETTINGS[setting].items():
        order = generator(seed, SLUG, "sentences", code).permutation(len(raw[code]))
        sentences = [raw[code][at] + "\n" for at in order]
        split = int(np.searchsorted(np.cumsum([len(sentence) for sentence in sentences]), VALIDATION)) + 1
        validation.append(np.searchsorted(alphabet, _points("".join(sentences[:split]))))
        train.append(np.searchsorted(alphabet, _points("".join(sentences[split:])[:length])))
    return alphabet.astype(np.int64), train, validation


def _points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)


def _examples(texts_of: Sequence[IntArray], blank: int) -> tuple[Tensor, Tensor]:
    """(n, 9) codes: eight characters and the next one; and the language (n,)."""
    windows = [
        np.lib.stride_tricks.sliding_window_view(np.concatenate([np.full(CONTEXT, blank), codes]).astype(np.int16), CONTEXT + 1)
        for codes in texts_of
    ]
    languages = np.repeat(np.arange(len(texts_of)), [len(codes) for codes in texts_of])
    return torch.from_numpy(np.concatenate(windows)), torch.from_numpy(languages)


class CharacterModel(nn.Module):
    """Logits of the next character from the eight before it and the language."""

    def __init__(self, characters: int, languages: int) -> None:
        super().__init__()
        self.character, self.language = nn.Embedding(characters + 1, CHARACTER), nn.Embedding(languages, LANGUAGE)
        self.hidden, self.out = nn.Linear(CONTEXT * CHARACTER + LANGUAGE, HIDDEN), nn.Linear(HIDDEN, characters)

    def forward(self, context: Tensor, language: Tensor) -> Tensor:
        x = torch.cat([self.character(context).flatten(1), self.language(language)], dim=1)
        return self.out(self.hidden(x).relu())  # type: ignore[no-any-return]


def train(seed: int, setting: str, arm: str, steps: int, folder: str) -> dict[str, Any]:
    """Validation loss of each language, early and at the end. All arms of a seed begin with the same weights."""
    from counterpoise.data import TemperatureBatchSampler
    from counterpoise.losses import ScalarizedLoss
    from counterpoise.schedules import Cooldown, StepTau

    alphabet, training, validation = texts(folder, setting, seed)
    windows, languages = _examples(training, len(alphabet))
    sizes = [len(codes) for codes in training]
    with torch.random.fork_rng():
        torch.manual_seed(seed_integer(seed, SLUG, "model"))
        model = CharacterModel(len(alphabet), len(sizes))
    drawn_at: Any = {
        "tau 1": COLD, "tau 5": HOT, "weights": COLD,
        "cooldown": Cooldown(HOT, COLD, 0.5, steps), "rising": StepTau([COLD, HOT], [steps // 2]),
    }[arm]  # fmt: skip
    loss = ScalarizedLoss(nn.CrossEntropyLoss(reduction="none"), sizes, HOT if arm == "weights" else COLD)
    batches = TemperatureBatchSampler(languages, BATCH, drawn_at, num_batches=steps, generator=seed_integer(seed, SLUG, "batches"))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    early = {min(step, steps) for step in EARLY}
    seen = {}
    for step, batch in enumerate(batches, 1):
        rows, domains = windows[batch].long(), languages[batch]
        optimizer.zero_grad(set_to_none=True)
        loss(model(rows[:, :-1], domains), rows[:, -1], domains).backward()
        optimizer.step()
        if step in early or step == steps:
            seen[step] = _losses(model, validation, len(alphabet))
    codes = list(SETTINGS[setting])
    losses = {f"at {step}": dict(zip(codes, seen[min(step, steps)], strict=True)) for step in EARLY}
    losses["end"] = dict(zip(codes, seen[steps], strict=True))
    high = HIGH if setting != "natural" else ("en",)
    low = LOW if setting != "natural" else tuple(code for code in codes if code != "en")
    means = {
        f"{name} {when}": float(np.mean([of[code] for code in chosen]))
        for when, of in losses.items()
        for name, chosen in (("high", high), ("low", low))
    }
    return {"characters": dict(zip(codes, sizes, strict=True)), "losses": losses["end"]} | means


@torch.no_grad()
def _losses(model: CharacterModel, validation: Sequence[IntArray], blank: int) -> list[float]:
    windows, languages = _examples(validation, blank)
    found = []
    for k in range(len(validation)):
        own = windows[languages == k].long()
        logits = model(own[:, :-1], torch.full((len(own),), k))
        found.append(float(nn.functional.cross_entropy(logits, own[:, -1])))
    return found


# ---- what was found ---------------------------------------------------------------------------------------------------------------------


def _difference(runs: Sequence[Row], setting: str, value: str, arm: str, other: str) -> Interval:
    return mean_interval(paired(rows_where(runs, setting=setting), value, arm, other))


def _shown(interval: Interval) -> str:
    estimate, low, high = interval
    return f"{estimate:+.3f} ({low:+.3f} to {high:+.3f})"


def _findings(gradients: Sequence[Row], runs: Sequence[Row]) -> tuple[Finding, ...]:
    claims = {claim.key: claim for claim in CLAIMS}
    worst = max(row["worst"] for row in gradients)
    errors = max(row["errors"] for row in gradients if row["errors"] is not None)
    before = np.array([row["states"][STATES[0]]["ratio"] for row in gradients])
    everywhere = np.array([[row["states"][state]["ratio"] for state in STATES] for row in gradients])
    lowest = everywhere[:, :, 1:].min(axis=(0, 2))
    rounding = 1e-9
    findings = [
        claims["identity"].holds(
            worst <= EXACT and errors <= ERRORS,
            f"Full gradients differ by {worst:.1e} at most; {DRAWS:,} draws are within {errors:.1f} standard errors of the formulas.",
            estimate=worst,
            unit="absolute difference",
        ),
        claims["variance"].holds(
            bool((before[:, 1:] > 1).all() and (np.diff(before, axis=1) > 0).all()),
            f"Weighing over drawing, {STATES[0]}, at tau {', '.join(f'{tau:g}' for tau in TAUS)}: "
            f"{', '.join(f'{ratio:.2f}' for ratio in before.mean(axis=0))} (mean over seeds).",
            estimate=float(before[:, 1:].min()),
            unit="ratio of variances, smallest above tau 1",
        ),
    ]
    holds = bool((lowest >= 1 - rounding).all())
    words = "Theorem 2 held in all states" if holds else "Theorem 2 does not hold here"
    by_state = "; ".join(f"{state} {ratio:.2f}" for state, ratio in zip(STATES, lowest, strict=True))
    findings.append(
        claims["theorem-2"].holds(
            holds, f"{words}: smallest ratio of the variances {by_state}.", estimate=float(lowest.min()), unit="ratio"
        )
    )
    judged = (
        ("faster", "tau 5", "weights", "low", [f"at {step}" for step in EARLY], "below"),
        ("overfits", "tau 5", "weights", "low", ["end"], "above"),
        ("cooldown-high", "cooldown", "tau 5", "high", ["end"], "below"),
        ("cooldown-low", "cooldown", "tau 5", "low", ["end"], "below"),
        ("best-of-both", "cooldown", "tau 1", "low", ["end"], "below"),
        ("direction", "cooldown", "rising", "low", ["end"], "below"),
    )
    for key, arm, other, languages, moments, side in judged:
        for setting in ("mild", "extreme"):
            for when in moments:
                interval = _difference(runs, setting, f"{languages} {when}", arm, other)
                place = f"{setting}, {'end' if when == 'end' else when.removeprefix('at ') + ' steps'}"
                text = f"{place}: {arm} minus {other}, {languages} languages: {_shown(interval)}."
                judge = claims[key].below if side == "below" else claims[key].above
                findings.append(judge(interval, 0.0, text, unit="nats per character", name=place))
    for setting in ("mild", "extreme"):
        for other in ("tau 1", "rising"):
            interval = _difference(runs, setting, "high end", "cooldown", other)
            text = f"{setting}: cooldown minus {other}, high languages: {_shown(interval)}."
            findings.append(claims["price"].reported(interval, text, unit="nats per character", name=f"{setting}, {other}"))
    for other in ("tau 1", "tau 5", "rising"):
        for languages, said in (("high", "English"), ("low", "the ten others")):
            interval = _difference(runs, "natural", f"{languages} end", "cooldown", other)
            text = f"Eleven languages: cooldown minus {other}, {said}: {_shown(interval)}."
            findings.append(claims["natural"].reported(interval, text, unit="nats per character", name=f"{said}, {other}"))
    return tuple(findings)


def _best(runs: Sequence[Row], setting: str, languages: str) -> str:
    means = {arm: np.mean([row[f"{languages} end"] for row in rows_where(runs, setting=setting, arm=arm)]) for arm in ARMS}
    return min(means, key=means.__getitem__)


def _repeats() -> float:
    """How often an example of the smallest domain is drawn in a whole training at the high temperature."""
    sizes = np.array([length or 0 for length in SETTINGS["extreme"].values()], dtype=np.float64)
    return float(BATCH * STEPS * probabilities(sizes, HOT)[-1] / sizes[-1])


def _notes(gradients: Sequence[Row], runs: Sequence[Row]) -> tuple[str, ...]:
    best = {(setting, languages): _best(runs, setting, languages) for setting in ("mild", "extreme") for languages in ("high", "low")}
    last = np.array([row["states"][STATES[2]]["ratio"] for row in gradients])
    lower = [f"{tau:g}" for tau, ratios in zip(TAUS[1:], last[:, 1:].T, strict=True) if (ratios < 1).any()]
    heart = (
        f"Where small domains have been learned by heart, their gradients are short, and weighing was the less noisy one at tau "
        f"{', '.join(lower)} in some seed. gradient_variance says which it is for a model at hand."
        if lower
        else "The order of the variances did not turn round in these trainings; it may where small domains are learned by heart."
    )
    return (
        "Lowest loss at the end: "
        + "; ".join(f"{setting}, {languages} languages: {arm}" for (setting, languages), arm in best.items())
        + ". Which schedule is best depends on how much there is of the small domains.",
        heart,
        f"At tau 5 each Irish character of the extreme setting is drawn {_repeats():.0f} times, and learned by heart. Watch the validation "
        "loss of each domain: when to stop drawing one matters more than the schedule.",
    )


def _tables(gradients: Sequence[Row], runs: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    losses = [
        {"setting": setting, "arm": ARMS[arm]}
        | {
            f"{languages}, {'end' if when == 'end' else when.removeprefix('at ') + ' steps'}": round(
                float(np.mean([row[f"{languages} {when}"] for row in rows_where(runs, setting=setting, arm=arm)])), 3
            )
            for languages in ("high", "low")
            for when in (*(f"at {step}" for step in EARLY), "end")
        }
        for setting in SETTINGS
        for arm in ARMS
    ]
    ratios = [
        {"state": state}
        | {
            f"tau {tau:g}": round(float(np.mean([row["states"][state]["ratio"][at] for row in gradients])), 3)
            for at, tau in enumerate(TAUS)
        }
        | {
            "mean squared gradient by domain": ", ".join(
                f"{g:.3g}" for g in np.mean([row["states"][state]["G"] for row in gradients], axis=0)
            )
        }
        for state in STATES
    ]
    languages = [
        {"arm": ARMS[arm]}
        | {
            NAMES[code]: round(float(np.mean([row["losses"][code] for row in rows_where(runs, setting="natural", arm=arm)])), 3)
            for code in NAMES
        }
        for arm in ARMS
    ]
    return {"Validation loss": losses, "Variance of weighing over that of drawing": ratios, "Eleven languages": languages}


def _figure(gradients: Sequence[Row], runs: Sequence[Row]) -> Figure:
    """High against low languages, one point per arm: left is better for the high ones, down for the low ones."""
    from counterpoise.report import _plots as plots

    looks = {
        "tau 1": (plots.INK, "s"), "tau 5": (plots.RED, "o"), "weights": (plots.GRAY, "v"),
        "cooldown": (plots.BLUE, "D"), "rising": (plots.MUTED, "^"),
    }  # fmt: skip
    width, height = plots.WIDTH, 350
    with plots.style():
        fig = plots.figure(width, height)
        for at, setting in enumerate(("mild", "extreme")):
            ax = plots.axes(fig, 62 + 350 * at, 52, 230, 208)
            for arm, (color, marker) in looks.items():
                rows = rows_where(runs, setting=setting, arm=arm)
                x, y = (float(np.mean([row[f"{languages} end"] for row in rows])) for languages in ("high", "low"))
                ax.plot(x, y, marker, color=color, ms=9, mec=plots.PAPER)
                shift = {"tau 5": 7, "weights": -7}.get(arm, 0)  # which end near each other in the mild setting
                text: dict[str, Any] = {"va": "center", "color": color, "fontsize": 11, "annotation_clip": False}
                ax.annotate(ARMS[arm], (x, y), (8, shift), textcoords="offset points", **text)
            ax.margins(x=0.2, y=0.12)
            ax.spines["left"].set_visible(True)
            ax.set_xlabel("loss of the large languages")
            ax.set_ylabel("loss of the small languages")
            characters = rows_where(runs, setting=setting)[0]["characters"]
            small = " and ".join(f"{characters[code]:,}" for code in LOW)
            fig.text((62 + 350 * at) / width, 1 - 62 / height, f"small: {small} characters", color=plots.MUTED)
        title = "Loss at the end, on other sentences: left is better for the large languages, down for the small ones"
        fig.text(8 / width, 1 - 14 / height, title, va="top", weight="bold")
    return fig
