r"""Improving multimodal learning via imbalanced learning (ARL, arXiv:2507.10203): is it the asymmetry that helps?

The paper holds that modalities should not be made equal: the gradient of each encoder is scaled so that the model depends on a modality in
inverse proportion to the variance of its predictions, and each modality is charged for its own prediction. It reports large gains over
plain concatenation and over OGM-GE on audio-visual sets.

*Training*: six views of 2,000 handwritten digits (UCI multiple features). Two or six of them, a perceptron for each view, a linear head on
the concatenation, 200 rows to train on, 300 to choose a learning rate by, 1,500 to test; no checkpoint is chosen. All arms of a seed begin
with the same weights and see the same batches. Controls: the unimodal losses without any scaling; one factor for all encoders, which is
what the authors' released code does, as it never uses its weights; the weights swapped, so that the wrong encoder gets the larger one;
concatenation at *its own* best learning rate, since the method multiplies the step of the encoders by up to (1 + 4)(1 + k); OGM-GE with its
noise on the weights of the encoders, as its authors add it.

*Theory*: each view's classifier is trained on 30 bootstrap samples; the variance of every mixture of two views is measured and compared
with the closed forms, with and without correlation, and with what entropy says.

To know when reading: these are small nets on small data, and the views are of one sensor. Nothing here says what happens with audio and
video; it says that a gain over concatenation does not show that the asymmetry is what helps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from counterpoise._seeding import generator, seed_integer
from counterpoise._stats import mean_interval
from counterpoise.gradients import AsymmetricGradient, fusion_weights
from counterpoise.losses import ARLLoss, zero_out_unimodal

from ._data import load_from
from ._types import Claim, Finding, Replication, Verdict
from ._work import Work, paired, rows_where

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CLAIMS", "SLUG", "run"]

SLUG = "arl"

VIEWS = ("fac", "fou", "kar", "mor", "pix", "zer")
JUDGED = ("zer+fou", "mor+fou")
SETTINGS = (*JUDGED, "mor+pix", "all six")
RATE, RATES, HIGH = 0.006, (0.002, 0.006, 0.02, 0.06, 0.2), 0.02
TRAIN, VALID = 200, 300
HIDDEN, FEATURES, EPOCHS, BATCH, WARM_UP = 64, 32, 30, 32, 5
GAMMA, TEMPERATURE, CLIP = 4.0, 8.0, 40.0
SHARE = 0.6  # the smallest share of the entropy that counts, over the number of views: the authors' 0.3 for two
ARMS = {
    "concat": "concatenation",
    "losses": "unimodal losses alone",
    "uniform": "one factor for all",
    "arl": "ARL",
    "swapped": "ARL, weights swapped",
    "weights": "ARL, without unimodal losses",
    "ogm-ge 0.1": "OGM-GE, alpha 0.1",
    "ogm-ge 0.8": "OGM-GE, alpha 0.8",
}
MODES = {"uniform": "uniform", "arl": "arl", "swapped": "inverse", "weights": "arl"}  # of AsymmetricGradient
WITH_LOSSES = ("losses", "uniform", "arl", "swapped")
MEASURABLE = 0.01  # of accuracy: a smaller gain is none
FITS, GRID = 30, 0.01

_BOTH = "95 % interval (t, over seeds) of the difference in test accuracy on zer+fou and on mor+fou"
CLAIMS = (
    Claim("gain", "ARL is better than concatenation.", f"{_BOTH}, both at learning rate {RATE:g}: above 0"),
    Claim(
        "gain-tuned",
        "ARL is better than concatenation where each has the learning rate that is best for it.",
        f"{_BOTH}, each at the one of {', '.join(f'{rate:g}' for rate in RATES)} with the highest mean accuracy on rows kept for that: "
        "above 0",
    ),
    Claim(
        "asymmetry-uniform",
        "What helps is that the encoders' factors differ: ARL is better than one factor for all of them.",
        f"{_BOTH}, at learning rate {RATE:g}: replicated if above 0; not replicated if below +{MEASURABLE:g}; undecided otherwise",
    ),
    Claim(
        "asymmetry-swapped",
        "What helps is which encoder gets the larger factor: ARL is better than ARL with its weights swapped.",
        f"{_BOTH}, at learning rate {RATE:g}: replicated if above 0; not replicated if below +{MEASURABLE:g}; undecided otherwise",
    ),
    Claim(
        "optimum",
        "The mixture of two predictions with the smallest variance has the weights of the closed form.",
        f"for every pair of views and seed, the smallest of the measured variances on a grid of step {GRID:g} is within one step of the "
        "weights from the covariance (cut to 0..1)",
    ),
    Claim("independent", "How far off the weights are that take errors for independent."),
    Claim("entropy", "Entropy stands for the variance."),
    Claim("parts", "What each part of the method does, beside concatenation at the same learning rate."),
    Claim("ogm-ge", "ARL and OGM-GE."),
    Claim("diverges", f"A learning rate of {HIGH:g}, at which the larger steps may diverge."),
)

SEEDS, QUICK_SEEDS = tuple(range(10)), (0, 1)
QUICK_EPOCHS, QUICK_WARM_UP = 3, 1

Row = Mapping[str, Any]
Interval = tuple[float, float, float]
Array = npt.NDArray[np.float64]


def run(
    *, seeds: Sequence[int] | None = None, quick: bool = False, data_dir: str | Path | None = None, work: Work | None = None
) -> Replication:
    """Trainings and bootstrap fits for each of ``seeds``; ``mfeat`` is looked up in ``data_dir``. A quick run trains for three epochs."""
    seeds = tuple(seeds if seeds is not None else QUICK_SEEDS if quick else SEEDS)
    work = work or Work()
    folder = None if data_dir is None else str(data_dir)
    views(folder)  # an error about the data comes before the work
    cells = [(setting, arm, RATE, False) for setting in SETTINGS for arm in ARMS]
    cells += [(setting, arm, rate, False) for setting in SETTINGS for arm in ("concat", "arl") for rate in RATES if rate != RATE]
    cells += [("mor+pix", arm, HIGH, True) for arm in ("concat", "arl")]
    runs = work.map(
        train,
        [
            {"seed": seed, "setting": setting, "arm": arm, "rate": rate, "clip": clip, "folder": folder}
            | ({"epochs": QUICK_EPOCHS, "warm_up": QUICK_WARM_UP} if quick else {"epochs": EPOCHS, "warm_up": WARM_UP})
            for seed in seeds
            for setting, arm, rate, clip in cells
        ],
    )
    fits = work.map(bootstrap, [{"seed": seed, "fits": 6 if quick else FITS, "folder": folder} for seed in seeds])
    best = {(setting, arm): _best_rate(runs, setting, arm) for setting in SETTINGS for arm in ("concat", "arl")}
    return Replication(
        slug=SLUG,
        claims=CLAIMS,
        findings=_findings(runs, fits, best),
        notes=_notes(runs, fits, best),
        tables=_tables(runs, fits),
        figure=_figure(runs, best),
        seeds=seeds,
        quick=quick,
    )


# ---- data -------------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def views(folder: str | None) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.int64]]:
    """View -> (2000, columns), and the digits."""
    found = {}
    digits = np.empty(0, np.int64)
    for view in VIEWS:
        table = load_from(folder, f"mfeat/{view}")
        found[view] = table.frame.drop(table.target).to_numpy().astype(np.float32)
        digits = table.frame[table.target].cast(int).to_numpy().astype(np.int64)
    return found, digits


def _members(setting: str) -> tuple[str, ...]:
    return VIEWS if setting == "all six" else tuple(setting.split("+"))


def _split(setting: str, seed: int, folder: str | None) -> tuple[list[list[Tensor]], list[Tensor]]:
    """For training, validation and test: the views, standardized by the rows to train on, and the digits."""
    tables, digits = views(folder)
    order = generator(seed, SLUG, "rows").permutation(len(digits))
    parts = np.split(order, [TRAIN, TRAIN + VALID])
    standardized = []
    for view in _members(setting):
        x = tables[view]
        mean, sd = x[parts[0]].mean(axis=0), x[parts[0]].std(axis=0)
        standardized.append((x - mean) / np.where(sd > 0, sd, 1.0))
    return [[torch.from_numpy(x[rows]) for x in standardized] for rows in parts], [torch.from_numpy(digits[rows]) for rows in parts]


# ---- training ---------------------------------------------------------------------------------------------------------------------------


def _nets(widths: Sequence[int], seed: int) -> tuple[nn.ModuleList, nn.Linear]:
    with torch.random.fork_rng():
        torch.manual_seed(seed_integer(seed, SLUG, "nets"))
        encoders = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, FEATURES), nn.ReLU()) for width in widths]
        )
        return encoders, nn.Linear(FEATURES * len(widths), 10)


def train(seed: int, setting: str, arm: str, rate: float, clip: bool, epochs: int, warm_up: int, folder: str | None) -> dict[str, Any]:
    """Accuracy on validation and test rows after the last epoch, of all views together; mean weight of each encoder after the warm-up."""
    (inputs, valid, test), (y, y_valid, y_test) = _split(setting, seed, folder)
    encoders, head = _nets([x.shape[1] for x in inputs], seed)
    parameters = [*encoders.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9)
    per_epoch = -(-TRAIN // BATCH)
    warm_steps = warm_up * per_epoch
    mode: Any = MODES.get(arm, "off")
    asymmetric = AsymmetricGradient(len(inputs), mode, TEMPERATURE, SHARE / len(inputs), warmup_steps=warm_steps)
    coefficients = AsymmetricGradient(len(inputs), "ogm", alpha=float(arm.split()[1])) if arm.startswith("ogm") else None
    criterion = ARLLoss(GAMMA, warmup_steps=warm_steps)
    source = torch.Generator().manual_seed(seed_integer(seed, SLUG, "batches"))
    noise = torch.Generator().manual_seed(seed_integer(seed, SLUG, "noise"))
    weights = torch.zeros(len(inputs))
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(TRAIN, generator=source), BATCH):
            target = y[rows]
            features = asymmetric(*(encoder(x[rows]) for encoder, x in zip(encoders, inputs, strict=True)))
            fused, alone = head(torch.cat(features, dim=1)), zero_out_unimodal(head, features)
            if not _finite(alone):
                return _outcome(0.1, 0.1, weights, diverged=True)  # what guessing gets
            weights += asymmetric.update(alone) / (epochs * per_epoch - warm_steps)
            loss = criterion(fused, alone, target) if arm in WITH_LOSSES else nn.functional.cross_entropy(fused, target)
            optimizer.zero_grad()
            loss.backward()
            if coefficients is not None:
                _as_published(encoders, coefficients.update(_with_a_part_of_the_bias(alone, head), target), noise)
            if clip:
                nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
    with torch.no_grad():
        scores = [head(torch.cat([encoder(x) for encoder, x in zip(encoders, part, strict=True)], dim=1)) for part in (valid, test)]
    if not _finite(scores):
        return _outcome(0.1, 0.1, weights, diverged=True)
    on_valid, on_test = (float((s.argmax(dim=1) == t).double().mean()) for s, t in zip(scores, (y_valid, y_test), strict=True))
    return _outcome(on_valid, on_test, weights, diverged=False)


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(part).all()) for part in tensors)


def _outcome(valid: float, test: float, weights: Tensor, *, diverged: bool) -> dict[str, Any]:
    return {"valid": valid, "test": test, "weights": weights.tolist(), "diverged": diverged}


def _with_a_part_of_the_bias(alone: Sequence[Tensor], head: nn.Linear) -> list[Tensor]:
    """OGM divides the bias of the head among the modalities."""
    rest = head.bias.detach() * (1 - 1 / len(alone))
    return [part.detach() - rest for part in alone]


def _as_published(encoders: nn.ModuleList, coefficients: Tensor, noise: torch.Generator) -> None:
    """Coefficients on the weights of the encoders, and noise as large as their gradient; theirs are those of convolutions."""
    for encoder, coefficient in zip(encoders, coefficients, strict=True):
        for parameter in encoder.parameters():
            g = parameter.grad
            if g is not None and g.ndim > 1:
                blur = torch.randn(g.shape, generator=noise) * (g.std() + 1e-8)
                parameter.grad = g * coefficient + blur


# ---- theory -----------------------------------------------------------------------------------------------------------------------------


def bootstrap(seed: int, fits: int, folder: str | None) -> dict[str, Any]:
    """Covariance (6, 6) of the probability of the true class over bootstrap fits, mean over test rows; the best mixture of each pair on a
    grid of weights, from measured variances; entropy, error and accuracy of the views."""
    from sklearn.linear_model import LogisticRegression

    (inputs, _, test), (y, _, y_test) = _split("all six", seed, folder)
    source = generator(seed, SLUG, "bootstrap")
    rows_of = [source.integers(TRAIN, size=TRAIN) for _ in range(fits)]
    true = np.empty((len(VIEWS), fits, len(y_test)))
    entropy, brier, accuracy = np.zeros((3, len(VIEWS)))
    for m, (x, x_test) in enumerate(zip(inputs, test, strict=True)):
        for r, rows in enumerate(rows_of):
            model = LogisticRegression(C=0.1, max_iter=300).fit(x[rows].numpy(), y[rows].numpy())
            p = np.zeros((len(y_test), 10))
            p[:, model.classes_] = model.predict_proba(x_test.numpy())
            true[m, r] = p[np.arange(len(p)), y_test.numpy()]
            entropy[m] += float(-(p * np.log(p + 1e-16)).sum(axis=1).mean()) / fits
            brier[m] += float(np.square(p - np.eye(10)[y_test.numpy()]).sum(axis=1).mean()) / fits
            accuracy[m] += float((p.argmax(axis=1) == y_test.numpy()).mean()) / fits
    centered = true - true.mean(axis=1, keepdims=True)
    covariance = np.einsum("mrn,krn->mk", centered, centered) / centered[0].size
    grid = np.round(np.arange(0, 1 + GRID / 2, GRID), 10)
    on_grid = {}
    for i, j in combinations(range(len(VIEWS)), 2):
        measured = [float((w * true[i] + (1 - w) * true[j]).var(axis=0).mean()) for w in grid]
        on_grid[f"{VIEWS[i]}+{VIEWS[j]}"] = float(grid[int(np.argmin(measured))])
    return {
        "covariance": covariance.tolist(),
        "on_grid": on_grid,
        "entropy": entropy.tolist(),
        "brier": brier.tolist(),
        "accuracy": accuracy.tolist(),
    }


def _pairs(row: Row) -> list[dict[str, float]]:
    """For each pair of views: the weight of the first by the grid, by the covariance, by variances alone, and by entropy alone."""
    sigma = np.array(row["covariance"])
    found = []
    for i, j in combinations(range(len(VIEWS)), 2):
        own = sigma[np.ix_([i, j], [i, j])]
        weights = {
            "grid": float(row["on_grid"][f"{VIEWS[i]}+{VIEWS[j]}"]),
            "correlated": min(1.0, max(0.0, float(fusion_weights(own)[0]))),
            "independent": float(fusion_weights(own.diagonal().copy())[0]),
            "entropy": float(fusion_weights([row["entropy"][i], row["entropy"][j]])[0]),
        }
        least = _variance(own, weights["correlated"])
        excess = {f"{name} excess": _variance(own, weights[name]) / least - 1 for name in ("independent", "entropy")}
        found.append({"first": i, "second": j, "equal excess": _variance(own, 0.5) / least - 1} | weights | excess)
    return found


def _variance(sigma: Array, w: float) -> float:
    mixture = np.array([w, 1 - w])
    return float(mixture @ sigma @ mixture)


# ---- what was found ---------------------------------------------------------------------------------------------------------------------


def _of(runs: Sequence[Row], setting: str, rate: float = RATE, *, clip: bool = False) -> list[Row]:
    return rows_where(runs, setting=setting, rate=rate, clip=clip)


def _difference(runs: Sequence[Row], setting: str, arm: str, other: str, rate: float = RATE, *, clip: bool = False) -> Interval:
    return mean_interval(paired(_of(runs, setting, rate, clip=clip), "test", arm, other))


def _best_rate(runs: Sequence[Row], setting: str, arm: str) -> float:
    means = {rate: np.mean([row["valid"] for row in rows_where(_of(runs, setting, rate), arm=arm)]) for rate in RATES}
    return max(means, key=means.__getitem__)


def _tuned(runs: Sequence[Row], setting: str, best: Mapping[tuple[str, str], float]) -> Interval:
    rows = [row for arm in ("arl", "concat") for row in rows_where(_of(runs, setting, best[setting, arm]), arm=arm)]
    return mean_interval(paired(rows, "test", "arl", "concat"))


def _mean(runs: Sequence[Row], setting: str, arm: str, rate: float = RATE, *, clip: bool = False) -> float:
    return float(np.mean([row["test"] for row in rows_where(_of(runs, setting, rate, clip=clip), arm=arm)]))


def _shown(interval: Interval) -> str:
    estimate, low, high = interval
    return f"{estimate:+.3f} ({low:+.3f} to {high:+.3f})"


def _effect(interval: Interval) -> Verdict:
    _, low, high = interval
    return "replicated" if low > 0 else "not replicated" if high < MEASURABLE else "undecided"


def _findings(runs: Sequence[Row], fits: Sequence[Row], best: Mapping[tuple[str, str], float]) -> tuple[Finding, ...]:
    claims = {claim.key: claim for claim in CLAIMS}
    unit = "test accuracy"
    findings = []
    for setting in JUDGED:
        gain = _difference(runs, setting, "arl", "concat")
        level = f"{_mean(runs, setting, 'arl'):.3f} against {_mean(runs, setting, 'concat'):.3f}"
        findings.append(claims["gain"].above(gain, 0.0, f"{setting}: {level}, {_shown(gain)}.", unit=unit, name=setting))
    for setting in JUDGED:
        tuned = _tuned(runs, setting, best)
        own, plain = best[setting, "arl"], best[setting, "concat"]
        level = (
            f"ARL {_mean(runs, setting, 'arl', own):.3f} at {own:g}, concatenation {_mean(runs, setting, 'concat', plain):.3f} at {plain:g}"
        )
        findings.append(claims["gain-tuned"].above(tuned, 0.0, f"{setting}: {level}; {_shown(tuned)}.", unit=unit, name=setting))
    for key, other in (("asymmetry-uniform", "uniform"), ("asymmetry-swapped", "swapped")):
        for setting in JUDGED:
            interval = _difference(runs, setting, "arl", other)
            verdict = _effect(interval)
            words = {
                "replicated": "the asymmetry helps", "not replicated": "asymmetry: no measurable effect", "undecided": "undecided",
            }[verdict]  # fmt: skip
            estimate, low, high = interval
            words = "the control did better" if high < 0 else words
            text = f"{setting}: ARL minus {ARMS[other].lower() if other == 'uniform' else 'swapped weights'} {_shown(interval)}; {words}."
            findings.append(claims[key].judged(verdict, text, estimate=estimate, low=low, high=high, unit=unit, name=setting))
    findings += _of_theory(claims, fits)
    for setting in SETTINGS:
        parts = {arm: _difference(runs, setting, arm, "concat") for arm in ("losses", "uniform", "arl", "swapped", "weights")}
        said = "; ".join(f"{ARMS[arm]} {_shown(interval)}" for arm, interval in parts.items())
        findings.append(claims["parts"].reported(parts["arl"], f"{setting}, over concatenation: {said}.", unit=unit, name=setting))
        gaps = {alpha: _difference(runs, setting, "arl", f"ogm-ge {alpha}") for alpha in ("0.1", "0.8")}
        said = ", ".join(f"at alpha {alpha} {_shown(interval)}" for alpha, interval in gaps.items())
        text = (
            f"{setting}: OGM-GE {_mean(runs, setting, 'ogm-ge 0.1'):.3f} and {_mean(runs, setting, 'ogm-ge 0.8'):.3f} (concatenation "
            f"{_mean(runs, setting, 'concat'):.3f}); ARL minus OGM-GE {said}."
        )
        findings.append(claims["ogm-ge"].reported(gaps["0.1"], text, unit=unit, name=setting))
    for clip in (False, True):
        gap = _difference(runs, "mor+pix", "arl", "concat", HIGH, clip=clip)
        rows = rows_where(_of(runs, "mor+pix", HIGH, clip=clip), arm="arl")
        level = f"{_mean(runs, 'mor+pix', 'arl', HIGH, clip=clip):.3f} against {_mean(runs, 'mor+pix', 'concat', HIGH, clip=clip):.3f}"
        worst, lost = min(row["test"] for row in rows), sum(row["diverged"] for row in rows)
        how = f"gradient norm cut at {CLIP:g}" if clip else "gradients as they are"
        text = f"mor+pix, {how}: {level}, {_shown(gap)}; the worst ARL run had {worst:.3f}, {lost} of {len(rows)} ended in NaN."
        findings.append(claims["diverges"].reported(gap, text, unit=unit, name=how))
    return tuple(findings)


def _of_theory(claims: Mapping[str, Claim], fits: Sequence[Row]) -> list[Finding]:
    from scipy.stats import spearmanr

    pairs = [pair for row in fits for pair in _pairs(row)]
    off = max(abs(pair["grid"] - pair["correlated"]) for pair in pairs)
    independent = np.array([abs(pair["independent"] - pair["correlated"]) for pair in pairs])
    rank = [float(spearmanr(row["entropy"], np.diag(row["covariance"])).statistic) for row in fits]
    excess = {name: float(np.mean([pair[f"{name} excess"] for pair in pairs])) for name in ("independent", "entropy", "equal")}
    return [
        claims["optimum"].holds(
            off <= GRID + 1e-9,
            f"{len(pairs)} pairs: at most {off:.4f} between the best weight on the grid and that of the covariance.",
            estimate=off,
            unit="weight",
        ),
        claims["independent"].reported(
            None,
            f"Weights for independent errors are off by {independent.mean():.3f} in the mean and {independent.max():.3f} at most; their "
            f"mixture varies {100 * excess['independent']:.1f} % more than the best one (equal weights: {100 * excess['equal']:.1f} %).",
        ),
        claims["entropy"].reported(
            mean_interval(rank),
            f"Rank correlation of entropy with the bootstrap variance over six views {_shown(mean_interval(rank))}; mixtures weighted by "
            f"1 / entropy vary {100 * excess['entropy']:.1f} % more than the best ones (equal weights: {100 * excess['equal']:.1f} %).",
            unit="rank correlation",
        ),
    ]


def _notes(runs: Sequence[Row], fits: Sequence[Row], best: Mapping[tuple[str, str], float]) -> tuple[str, ...]:
    spread = {
        setting: max(_mean(runs, setting, arm) for arm in WITH_LOSSES) - min(_mean(runs, setting, arm) for arm in WITH_LOSSES)
        for setting in SETTINGS
    }
    rates = "; ".join(f"{setting}: concatenation {best[setting, 'concat']:g}, ARL {best[setting, 'arl']:g}" for setting in SETTINGS)
    return (
        "The four arms with unimodal losses (no factor, one factor, ARL, ARL swapped) differ by at most "
        + ", ".join(f"{gap:.3f} ({setting})" for setting, gap in spread.items())
        + ". Try the unimodal losses first; mode='inverse' is the control that shows whether the weights matter in your case.",
        f"Best learning rates: {rates}. Comparing methods at one learning rate favors the one that takes larger steps.",
        "The authors' released code computes the weights and never uses them: what it runs is one factor for all encoders.",
    )


def _tables(runs: Sequence[Row], fits: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    by_arm = [{"arm": name} | {setting: round(_mean(runs, setting, arm), 4) for setting in SETTINGS} for arm, name in ARMS.items()]
    by_rate = [
        {"views": setting, "arm": ARMS[arm]} | {f"{rate:g}": round(_mean(runs, setting, arm, rate), 4) for rate in RATES}
        for setting in SETTINGS
        for arm in ("concat", "arl")
    ]
    weights = [
        {
            "views": setting,
            "mean k": ", ".join(
                f"{view} {np.mean([row['weights'][m] for row in rows_where(_of(runs, setting), arm='arl')]):.3f}"
                for m, view in enumerate(_members(setting))
            ),
        }
        for setting in SETTINGS
    ]
    theory = [
        {
            "view": view,
            "entropy": round(float(np.mean([row["entropy"][m] for row in fits])), 4),
            "bootstrap variance": float(f"{np.mean([row['covariance'][m][m] for row in fits]):.4g}"),
            "Brier score": round(float(np.mean([row["brier"][m] for row in fits])), 4),
            "accuracy": round(float(np.mean([row["accuracy"][m] for row in fits])), 4),
        }
        for m, view in enumerate(VIEWS)
    ]
    return {
        f"Test accuracy at learning rate {RATE:g}": by_arm,
        "Test accuracy by learning rate": by_rate,
        "Weights that ARL gave": weights,
        "Entropy and variance of the views": theory,
    }


def _figure(runs: Sequence[Row], best: Mapping[tuple[str, str], float]) -> Figure:
    """Intervals of ARL against concatenation, at one and at their own learning rates, and against its two controls."""
    from counterpoise.report import _plots as plots

    blocks = {
        ("concatenation", "at the same learning rate"): [_difference(runs, setting, "arl", "concat") for setting in SETTINGS],
        ("concatenation", "each at its best rate"): [_tuned(runs, setting, best) for setting in SETTINGS],
        ("uniform factors", "one for all encoders"): [_difference(runs, setting, "arl", "uniform") for setting in SETTINGS],
        ("swapped weights", "ARL the wrong way round"): [_difference(runs, setting, "arl", "swapped") for setting in SETTINGS],
    }
    rows = len(SETTINGS) * len(blocks)
    row_height, bottom, left, span = 19, 48, 330, 330
    height = row_height * rows + bottom + 46
    with plots.style():
        fig = plots.figure(plots.WIDTH, height)
        ax = plots.axes(fig, left, bottom, span, row_height * rows)
        plots.plain_rows(ax, rows)
        for block, ((name, how), intervals) in enumerate(blocks.items()):
            first = block * len(SETTINGS)
            ax.axhline(first - 0.5, color=plots.RULE, lw=1, clip_on=False)
            plots.row_text(fig, ax, first, 10, f"against {name}", weight="bold")
            plots.row_text(fig, ax, first + 1, 10, how, color=plots.MUTED)
            for at, (setting, (estimate, low, high)) in enumerate(zip(SETTINGS, intervals, strict=True)):
                color = plots.BLUE if low > 0 else plots.RED if high < 0 else plots.MUTED
                ax.plot([low, high], [first + at] * 2, color=color, lw=2, solid_capstyle="butt")
                ax.plot(estimate, first + at, color=color, **plots.DOT)
                plots.row_text(fig, ax, first + at, 255, setting, color=plots.MUTED)
                plots.row_text(fig, ax, first + at, left + span + 14, f"{estimate:+.3f}", color=color)
        ax.axvline(0, color=plots.INK, lw=1, zorder=0)
        ax.set_xlabel("difference in test accuracy, 95 % interval over seeds")
        fig.text(10 / plots.WIDTH, 1 - 12 / height, "What ARL gains, and whether its asymmetry is why", va="top", weight="bold")
    return fig
