"""Everything public that computes with tensors, as functions of a place: a device and a type of numbers.

The inputs of a case are made on the CPU in double precision from a fixed seed, rounded to the type in question, and then moved, so that
every place sees the same numbers. What a case returns - tensors, arrays, numbers, or reports that hold them - is compared with what it
returns in double precision on the CPU for the same rounded inputs. The batteries' tables are used as they are.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

DOUBLE, SINGLE, BRAIN, HALF = torch.float64, torch.float32, torch.bfloat16, torch.float16

# Largest difference, relative to the largest number of what is compared. Single precision: some hundred roundings of 6e-8. Half precision:
# one rounding of the result (2^-8 or 2^-11) and those on the way through a small model.
TOLERANCE = {DOUBLE: 1e-10, SINGLE: 1e-5, BRAIN: 2e-2, HALF: 4e-3}
EVERY = (SINGLE, BRAIN, HALF)
FULL = (SINGLE,)


@dataclass(frozen=True)
class Place:
    """Where a case runs. ``rounded`` is the type whose numbers the inputs are."""

    device: str
    dtype: torch.dtype
    rounded: torch.dtype

    def __call__(self, x: Any) -> Any:
        """Tensors, modules, and whatever holds tensors, moved here; floating-point numbers in the type of this place."""
        if isinstance(x, nn.Module):
            return x.to(self.rounded).to(self.dtype).to(self.device)
        if isinstance(x, Tensor):
            return self.moved(x.to(self.rounded).to(self.dtype) if x.is_floating_point() else x)
        if isinstance(x, Mapping):
            return {name: self(part) for name, part in x.items()}
        return type(x)(self(part) for part in x) if isinstance(x, list | tuple) else x

    def moved(self, x: Any) -> Any:
        return x.to(self.device)

    def argument(self, x: Tensor) -> Tensor:
        """What stands beside half precision in single: targets, weights, masks."""
        return self.moved(x.to(self.rounded).to(self.single) if x.is_floating_point() else x)

    def criterion(self, loss: nn.Module) -> nn.Module:
        """A loss with numbers of its own, which are not those of the model."""
        return self.moved(loss.double() if self.dtype == DOUBLE else loss)

    @property
    def single(self) -> torch.dtype:
        return torch.promote_types(self.dtype, SINGLE)

    def own(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A result that is promised to be here, and of the type of the inputs."""
        wanted = self.dtype if dtype is None else dtype
        assert x.device.type == torch.device(self.device).type, f"on {x.device}, not on {self.device}"
        assert x.dtype == wanted, f"{x.dtype}, not {wanted}"
        return x

    def at_least_single(self, x: Tensor) -> Tensor:
        return self.own(x, self.single)


@dataclass(frozen=True, eq=False)
class Case:
    """``covers``: public names, "room.name". ``tolerance`` departs from the table above, for the reason given in ``because``.

    ``by_type``: what is computed, or drawn, depends on the type, so that devices are compared, and not types.
    ``by_device``: random numbers are drawn on the device, so that it is only compared with itself.
    """

    name: str
    covers: tuple[str, ...]
    run: Callable[[Place], Any]
    dtypes: tuple[torch.dtype, ...] = EVERY
    tolerance: Mapping[torch.dtype, float] = field(default_factory=dict)
    because: str = ""
    by_type: bool = False
    by_device: bool = False

    def within(self, dtype: torch.dtype) -> float:
        return self.tolerance.get(dtype, TOLERANCE[dtype])


def numbers(found: Any, name: str = "") -> dict[str, Tensor]:
    """All numbers in a result, by name."""
    if isinstance(found, Tensor):
        return {name: found.detach().cpu()}
    if isinstance(found, bool | int | float | np.bool_ | np.number):
        return {name: torch.tensor(float(found), dtype=DOUBLE)}
    if isinstance(found, np.ndarray):
        return {name: torch.tensor(found)} if found.dtype.kind in "biuf" else {}
    if isinstance(found, Mapping):
        items: Iterable[tuple[Any, Any]] = found.items()
    elif isinstance(found, set | frozenset):
        items = enumerate(sorted(found))
    elif isinstance(found, list | tuple):
        items = enumerate(found)
    elif hasattr(found, "__dataclass_fields__"):
        items = ((key, getattr(found, key)) for key in found.__dataclass_fields__)
    else:
        return {}
    parts: dict[str, Tensor] = {}
    for key, value in items:
        parts |= numbers(value, f"{name}.{key}" if name else str(key))
    return parts


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def differentiated(place: Place, values: Any, *leaves: Tensor) -> dict[str, Tensor]:
    """Values that a loss has promised in single precision, and their gradients by leaves, in the type of each."""
    total = sum(value.sum() for value in (values if isinstance(values, tuple | list) else [values]))
    found = {"value": values}
    gradients = torch.autograd.grad(total, leaves, allow_unused=True)
    for i, (leaf, gradient) in enumerate(zip(leaves, gradients, strict=True)):
        if gradient is not None:
            found[f"gradient {i}"] = place.own(gradient, leaf.dtype)
    return found


# ---- losses -----------------------------------------------------------------------------------------------------------------------------


def losses() -> list[Case]:
    from counterpoise import losses as room
    from tests.losses import test_battery as tables

    known = [
        *tables.CASES, *tables.BATCH_CASES, *tables.DOMAIN_CASES, *tables.PAIR_CASES, *tables.DCOV_CASES, *tables.UNBIASED_DCOV_CASES,
        *tables.CAPTION_CASES,
    ]  # fmt: skip

    def loss(case: Any, reduction: str, place: Place) -> dict[str, Any]:
        inputs, targets = case.sample(rows=12)
        x = place(inputs).requires_grad_()
        criterion = place.criterion(case.make(reduction))
        value = criterion(x, place.argument(targets))
        place.at_least_single(value)
        last = getattr(getattr(criterion, "loss", criterion), "last", None)
        return differentiated(place, value, x, *criterion.parameters()) | {"reported": last}

    reports = {"BalancedClipLoss": "ClipState", "HessianAlignmentLoss": "HessianAlignmentTerms", "OmniContrastiveLoss": "OmniTerms"}
    found = []
    for case in known:
        public = {type(module).__name__ for module in case.make(case.reductions[0]).modules()} & set(room.__all__)
        public |= {reports[name] for name in public & set(reports)}
        exact = {SINGLE: 1e-4} if case.name.startswith(("ccdcov", "jdcov", "dcov")) else {}
        for reduction in case.reductions:
            found.append(
                Case(
                    f"{case.name}-{reduction}",
                    tuple(f"losses.{name}" for name in sorted(public)),
                    partial(loss, case, reduction),
                    tolerance=exact,
                    because="small differences of large sums" * bool(exact),
                    by_type=case.name in ("any-f1", "hessian-hutchinson"),  # its amplification; its probes
                    by_device=case.name == "hessian-hutchinson",
                )
            )
    return found + _functional_losses()


def _functional_losses() -> list[Case]:
    from counterpoise import losses as room

    def amplified(place: Place) -> Any:
        p = place(uniform(9)).requires_grad_()
        return differentiated(place, place.at_least_single(room.amplify(p, 10.0)), p)

    def confusion(place: Place) -> Any:
        logits, target = place(3 * gaussian(9)).requires_grad_(), place.moved(torch.arange(9) % 2)
        parts = room.soft_confusion(logits, target)
        return {"parts": list(parts)} | differentiated(place, parts.tp + 2 * parts.fn, logits)

    def any_loss(place: Place) -> Any:
        logits, target = place(3 * gaussian(9)).requires_grad_(), place.moved(torch.arange(9) % 2)
        return differentiated(place, place.at_least_single(room.functional.any_loss(logits, target, metric="f1")), logits)

    def guided(place: Place, **options: Any) -> Any:
        a, b = place(uniform(2)).requires_grad_().unbind()
        criterion = place.criterion(room.GuidedLossScaling(ema=0.5, **options))
        found = [criterion(a * scale, b) for scale in (1.0, 3.0, 0.5)]
        place.at_least_single(found[0])
        return found, criterion({"cls": a, "box": b}, guide="box")

    def bounds(place: Place) -> Any:
        logp, old, advantages = (-3 * uniform(6, 5, seed=seed) for seed in (0, 1, 2))
        mask = torch.arange(5) < torch.tensor([1, 2, 3, 4, 5, 5])[:, None]
        return room.balanced_bounds(place(logp), place(old), place(advantages + 1.5), place.moved(mask))

    def whitened(place: Place) -> Any:
        a, b = place(gaussian(12, 4)).requires_grad_(), place(gaussian(12, 4, seed=1) * 2)
        return differentiated(place, tuple(part.square() for part in room.batch_whiten(a, b, shrinkage=0.1)), a)

    def coral(place: Place) -> Any:
        a, b = place(gaussian(12, 4)).requires_grad_(), place(gaussian(12, 4, seed=1) * 2)
        return differentiated(place, place.at_least_single(room.coral_loss(a, b)), a)

    def weights(place: Place) -> Any:
        classes = place.moved(torch.tensor([0, 0, 0, 1, 2, 2]))
        likelihood = place(uniform(7))
        return {
            "classes": [room.class_weights(classes, scheme=scheme) for scheme in ("balanced", "sqrt", "effective")],
            "counts": room.class_weights(counts=place.moved(torch.tensor([3, 1, 2]))),
            "likelihood": place.own(room.dequity_weight(likelihood)),
            "density": room.lds_weights(place(torch.tensor([30.0, 30, 30, 31, 60]))),
            "window": room.fit_window(place(torch.arange(50.0))),
            "domains": room.scalarization_weights(place.moved(torch.tensor([90, 5, 5])), tau=2.0),
        }

    def shares(place: Place) -> Any:
        positive, hard = (place.moved(torch.tensor(part)) for part in ([0, 1, 2], [3, 3, 0]))
        return room.contrastive_shares(place(gaussian(3, 5)), positive, hard)

    def covariances(place: Place) -> Any:
        x, z, w = place(gaussian(14)).requires_grad_(), place.moved(torch.arange(14) % 3).to(place.dtype), place(gaussian(14, 2, seed=1))
        return {
            **differentiated(place, [room.distance_covariance(x, z, method=method) for method in ("auto", "dense", "sorted")], x),
            "joint": room.joint_distance_covariance(x, z, w),
        }

    def unimodal(place: Place) -> Any:
        features = [place(gaussian(4, 2)), place(gaussian(4, 3, seed=1))]
        head = place(_linear(5, 3))
        return [place.own(part) for part in room.zero_out_unimodal(head, features)]

    def temperatures(place: Place) -> Any:
        module = place.criterion(room.ModalityTemperature(["text", "image"], init=[0.01, 0.03]))
        ids = place.moved(torch.tensor([0, 1, 1]))
        tau = module(module.weights(ids), module.weights(ids))
        mixed = module(module.weights([("text", "image"), "text"]), module.weights(["image"]))
        return differentiated(place, [tau, mixed], *module.parameters())

    def curriculum(place: Place) -> Any:
        module = room.QuantileCurriculum(0.3, 0.6, warmup=2, total=6)
        logits, own = place(gaussian(6, 9)), place.moved(torch.arange(6))
        return [module.mask(logits, own) for _ in range(3)]

    at = {SINGLE: 1e-4}
    return [
        Case("amplify", ("losses.amplify",), amplified),
        Case("soft-confusion", ("losses.soft_confusion", "losses.SoftConfusion"), confusion),
        Case("any-loss", ("losses.functional",), any_loss),
        Case("guided", ("losses.GuidedLossScaling",), guided),
        Case("guided-zero", ("losses.GuidedLossScaling",), partial(guided, reference=0)),
        Case("balanced-bounds", ("losses.balanced_bounds",), bounds),
        Case("batch-whiten", ("losses.batch_whiten",), whitened, tolerance=at, because="a root of an inverse"),
        Case("coral", ("losses.coral_loss",), coral),
        Case(
            "weights-of-parts",
            tuple(f"losses.{n}" for n in ("class_weights", "dequity_weight", "lds_weights", "fit_window", "scalarization_weights")),
            weights,
        ),
        Case("contrastive-shares", ("losses.contrastive_shares", "losses.ContrastiveShares"), shares),
        Case(
            "distance-covariances", ("losses.distance_covariance", "losses.joint_distance_covariance"), covariances,
            tolerance=at, because="small differences of large sums",
        ),
        Case("zero-out-unimodal", ("losses.zero_out_unimodal",), unimodal),
        Case("modality-temperature", ("losses.ModalityTemperature",), temperatures),
        Case("quantile-curriculum", ("losses.QuantileCurriculum",), curriculum),
    ]  # fmt: skip


def _linear(inputs: int, outputs: int, seed: int = 0) -> nn.Linear:
    return _filled(nn.Linear(inputs, outputs), seed)


def _filled(module: Any, seed: int = 0) -> Any:
    """In double precision, with numbers that no random state of the process decides."""
    module = module.double()
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(gaussian(*parameter.shape, seed=seed + i) / 2)
    return module


# ---- gradients --------------------------------------------------------------------------------------------------------------------------


def gradients() -> list[Case]:
    from counterpoise import gradients as room
    from tests.batteries.gradients import matrix
    from tests.gradients.examples_model import ThreeHeads, batch, in_one
    from tests.gradients.test_battery import CASES

    def on_matrices(case: Any, place: Place) -> Any:
        aggregator = case.make()
        found = [place.own(aggregator(place(matrix(seed=seed)))) for seed in range(3)]
        return found, {name: part for name, part in aggregator.state_dict().items() if isinstance(part, Tensor)}

    def through_backward(make: Callable[[], Any], place: Place, **options: Any) -> Any:
        model, data = place(ThreeHeads()), place(batch())
        aggregator, found = make(), {}
        for step in range(2):
            model.zero_grad()
            z = model.trunk(data[0])
            if options.get("strategy") == "recompute":
                report = room.backward(lambda: model(*data), aggregator, **options)
            elif options.get("strategy") == "features":
                report = room.backward(model.losses_at(z, data[1]), aggregator, features=z, **options)
            else:
                report = room.backward(model(*data), aggregator, **options)
            found |= {f"{step} gradient": place.own(in_one(list(model.parameters()))), f"{step} cosine": report.cosine}
            found |= {f"{step} weights": report.weights, f"{step} norms": report.norms}
        return found

    def of_groups(make: Callable[[], Any], place: Place) -> Any:
        model, (x, y) = place(ThreeHeads()), place(batch())
        criterion = room.GroupLoss(nn.MSELoss(reduction="none"), 4)
        found = []
        for _ in range(2):
            model.zero_grad()
            group = place.moved(torch.arange(24) % 5 - 1)
            losses = criterion(model.trunk(x)[:, :2], y[:, 0], group)
            report = room.backward(losses, make(), strategy="ghost")
            found.append((losses, in_one(list(model.trunk.parameters())), report.weights, report.norms, report.cosine))
        return found

    def accumulated(mode: str, place: Place) -> Any:
        model = place(ThreeHeads())
        accumulator = room.Accumulator(model.trunk.parameters(), room.CAGrad(), mode=mode)
        for seed in range(3):
            losses = model(*place(batch(seed=seed)))
            if mode == "stochastic":
                name = list(losses)[seed]
                accumulator.backward(losses[name], task=name)
            else:
                accumulator.backward(losses)
        report = accumulator.step()
        return place.own(in_one(list(model.trunk.parameters()))), report.weights, report.norms

    def asymmetric(mode: str, place: Place) -> Any:
        encoders = place(nn.ModuleList([_linear(4, 5), _linear(4, 5, seed=3)]))
        module = place.criterion(room.AsymmetricGradient(2, mode))
        x, target = place(gaussian(12, 4)), place.moved(torch.arange(12) % 3)
        found = []
        for _ in range(2):
            features = module(*(encoder(x) for encoder in encoders))
            weights = module.update([h[:, :3].detach() for h in features], target)
            encoders.zero_grad()
            sum(h.square().mean() for h in features).backward()
            found.append((weights, [place.own(p.grad) for p in encoders.parameters()]))
        return found, [place.own(h) for h in features]

    def modality_weights(place: Place) -> Any:
        d, q = place(uniform(3)), place(uniform(3, seed=1))
        root = gaussian(3, 3)
        return place.at_least_single(room.arl_weights(d, q)), room.fusion_weights(place(root @ root.T + torch.eye(3)))

    def scaled(place: Place) -> Any:
        x = place(gaussian(4, 3)).requires_grad_()
        y = room.scale_gradient(x, place(torch.tensor(0.25, dtype=DOUBLE)))
        return place.own(y), torch.autograd.grad((y * y).sum(), x)

    def votes(place: Place) -> Any:
        update = [place(gaussian(6, 3)), place(gaussian(7, seed=1))]
        found = {threshold: room.median_binarize(update, threshold, "positive") for threshold in ("median", "zero", "median_per_tensor")}
        assert all(part.device == update[0].device for part in found.values())
        tied = room.median_binarize(place(torch.zeros(4001)), generator=torch.Generator(place.device).manual_seed(0))
        assert abs(tied.double().mean().item()) < 4 / 4001**0.5  # which of them is decided by the generator of the device
        return found

    signs = (SINGLE,)
    flips = {"vote", "vote-majority"}
    half = {BRAIN: 0.08, HALF: 0.02}
    rounding = "gradients of half precision, on which weights depend, went through three layers"
    names = {case.name: f"gradients.{type(case.make()).__name__}" for case in CASES}
    single = {"gcond-zones": 1e-4}
    found = [Case(f"matrix-{case.name}", (names[case.name], "gradients.Aggregator"), partial(on_matrices, case)) for case in CASES]
    found += [
        Case(
            f"backward-{case.name}", (names[case.name], "gradients.backward", "gradients.GradientReport", "gradients.GradientStatistics"),
            partial(through_backward, case.make), signs if case.name in flips else EVERY,
            half | ({SINGLE: single[case.name]} if case.name in single else {}), rounding,
        )
        for case in CASES
    ]  # fmt: skip
    found += [
        Case(
            f"strategy-{strategy}-{name}",
            ("gradients.backward",),
            partial(through_backward, make, strategy=strategy),
            EVERY,
            half,
            rounding,
        )
        for strategy in ("rows", "sketch", "features", "recompute")
        for name, make in (("mgda", room.MGDA), ("cagrad", room.CAGrad))
    ]
    found += [
        Case(f"ghost-{name}", ("gradients.GroupLoss", "gradients.backward"), partial(of_groups, make), EVERY, half, rounding)
        for name, make in (("mgda", room.MGDA), ("sum", room.Sum), ("pcgrad", lambda: room.PCGrad(torch.Generator().manual_seed(0))))
    ]
    found += [
        Case(f"accumulator-{mode}", ("gradients.Accumulator",), partial(accumulated, mode), EVERY, half, rounding)
        for mode in ("sequential", "stochastic")
    ]
    # The noise of "ogm-ge" is drawn on the device of the features, by its generator: tested apart.
    found += [
        Case(f"asymmetric-{mode}", ("gradients.AsymmetricGradient",), partial(asymmetric, mode), EVERY, half, rounding)
        for mode in ("arl", "uniform", "inverse", "ogm", "off")
    ]
    return [
        *found,
        Case("modality-weights", ("gradients.arl_weights", "gradients.fusion_weights"), modality_weights),
        Case("scale-gradient", ("gradients.scale_gradient",), scaled),
        Case("median-binarize", ("gradients.median_binarize",), votes),
    ]


# ---- optimizers -------------------------------------------------------------------------------------------------------------------------


def optimizers() -> list[Case]:
    from tests.batteries.optimizers import Problem
    from tests.optim.test_battery import CASES

    def steps(case: Any, place: Place, **options: Any) -> Any:
        problem = Problem()
        place(problem.model)
        problem.X, problem.Y = place(problem.X), place(problem.Y)
        optimizer = case.make(problem.parameters, lr=0.01, weight_decay=0.01, **options)
        values = [place.own(p) for p in problem.run(optimizer)]
        # A state that was saved here goes on here.
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        resumed = case.make(problem.parameters, lr=0.01, weight_decay=0.01, **options)
        resumed.load_state_dict(torch.load(file, map_location="cpu"))
        return values, problem.run(resumed, 0, 3)

    def public(case: Any) -> tuple[str, ...]:
        return (f"optim.{type(case.make([torch.zeros(1, requires_grad=True)])).__name__}",)

    return [
        Case(
            f"{case.name}-{kind}", public(case), partial(steps, case, foreach=kind == "foreach"), (SINGLE, BRAIN),
            {SINGLE: 1e-4, BRAIN: 0.1}, "eleven steps, each of which rounds the parameters",
        )
        for case in CASES
        for kind in ("loop", "foreach")
    ]  # fmt: skip


# ---- modules ----------------------------------------------------------------------------------------------------------------------------


def modules() -> list[Case]:
    from counterpoise import nn as room

    def gated(place: Place) -> Any:
        model = place(_filled(room.GatedMLP(2, 3, 8, 2, normalize=([0.5, 0.1], [1.0, 2.0]))))
        x = place(gaussian(7, 2)).requires_grad_()
        y = place.own(model(x))
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return y, first, torch.autograd.grad(first.square().sum(), list(model.parameters()), allow_unused=True)

    def unconstrained(place: Place) -> Any:
        model = room.UnconstrainedFeatures([6, 3], 4, [5e-3, 1e-3], 1e-3, generator=torch.Generator().manual_seed(0))
        model = place(model)
        loss = model.loss()
        return place.own(loss), place.own(model()), torch.autograd.grad(loss, list(model.parameters())), model.features()

    def prior(place: Place) -> Any:
        labels = [place.moved(torch.tensor([[0, 0, 1], [0, -1, 0]])), place.moved(torch.tensor([0, 2, 0, 2]))]
        found = room.init.estimate_prior(labels, num_classes=2)
        layer = place(_linear(4, 2))
        biases = [room.init.prior_bias_(layer, value).bias.detach().clone() for value in (found, place(torch.tensor([0.1, 0.3])), 0.01)]
        return found, [place.own(bias) for bias in biases]

    half = {BRAIN: 0.1, HALF: 0.02}
    return [
        Case("gated-mlp", ("nn.GatedMLP",), gated, tolerance=half, because="second derivatives through four layers of half precision"),
        Case("unconstrained", ("nn.UnconstrainedFeatures",), unconstrained),
        Case("prior-bias", ("nn.init",), prior),
    ]


# ---- per-example gradients and diagnoses ------------------------------------------------------------------------------------------------

CE = nn.CrossEntropyLoss()


def small_model() -> nn.Module:
    return _filled(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)))  # type: ignore[no-any-return]


def small_data(rows: int = 30) -> tuple[Tensor, Tensor]:
    return gaussian(rows, 6, seed=9), torch.arange(rows) % 3


def sketch_numbers(sketch: Any) -> dict[str, Any]:
    blocks = None if sketch.blocks is None else sketch.blocks.norms_sq
    names = ("losses", "groups", "index", "norms_sq", "S", "group_sums", "gramian", "along")
    return {name: getattr(sketch, name) for name in names} | {"blocks": blocks}


def per_example() -> list[Case]:
    from counterpoise import diagnostics as room
    from tests.pergrad.models import ARCHITECTURES, LAYERS

    def sketched(case: Any, engine: str, place: Place, **options: Any) -> Any:
        model, inputs, target, groups = case.build(DOUBLE)
        model, inputs, target = place(model).eval(), place(inputs), place.moved(target)
        return sketch_numbers(room.sketch_gradients(model, CE, (*inputs, target), groups=groups, batch_size=4, engine=engine, **options))

    covers = ("diagnostics.sketch_gradients", "diagnostics.GradientSketch")
    loose = {SINGLE: 1e-4, BRAIN: 0.1}
    reason = "squares of gradients through several layers"
    skipped = ("bert", "gpt-2", "complex")  # the first two need transformers, and complex numbers have no half precision
    norm = {DOUBLE: 1e-7}  # torch's weight norm on a GPU is not exact to more
    found = [
        Case(
            f"auto-{case.name.replace(', ', '-').replace(' ', '-')}", covers, partial(sketched, case, "auto"), FULL,
            loose | norm if "weight norm" in case.name else loose, reason,
        )
        for case in ARCHITECTURES + LAYERS
        if not case.name.startswith(skipped)
    ]  # fmt: skip
    mlp = ARCHITECTURES[0]
    for engine in ("auto", "ghost", "loop", "vmap", "groups", "last_layer"):
        options = {"gramian": True} if engine == "ghost" else {}
        found.append(Case(f"engine-{engine}", covers, partial(sketched, mlp, engine, **options), (SINGLE, BRAIN), loose, reason))
    found.append(Case("engine-sketch", covers, partial(sketched, mlp, "loop", sketch_dim=64), FULL, loose, reason))
    return found


def diagnoses() -> list[Case]:
    from counterpoise import Groups
    from counterpoise import diagnostics as room

    def examined(place: Place) -> Any:
        model, data = place(small_model()), place(small_data())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        CE(model(data[0]), data[1]).backward()
        optimizer.step()
        report = room.examine(model, CE, data, groups="target", optimizer=optimizer, gramian=True, bootstrap=20)
        return {name: getattr(report, name) for name in report.__dataclass_fields__ if name not in ("seconds", "peak_bytes")}

    def from_loader(place: Place) -> Any:
        """Batches on the CPU, as loaders deliver them: moved to the model."""
        model = place(small_model())
        x, y = small_data()
        loader = DataLoader(TensorDataset(x.to(place.rounded).to(place.dtype), y), batch_size=8)
        return sketch_numbers(room.sketch_gradients(model, CE, loader))

    def of_sketch(place: Place) -> Any:
        sketch = room.sketch_gradients(place(small_model()), CE, place(small_data(60)), gramian=True)
        pairs = room.opposing_groups(sketch, k=0.1, min_cancellation=0.1)
        return {
            "shares": room.group_shares(sketch, bootstrap=20),
            "conflict": room.conflict(sketch),
            "interaction": room.interaction(sketch, lr=0.1),
            "coherence": room.coherence(sketch).alpha,
            "similarity": room.magnitude_similarity(sketch.gramian),
            "pairs": [pair.cancellation for pair in pairs],
        }

    def coherent(place: Place) -> Any:
        g, groups = place(gaussian(20, 7) + 0.5), place.moved(torch.arange(20) % 2)
        report = room.coherence(g, groups=groups)
        parts = room.coherence({"a": g[:, :3], "b": g[:, 3:]}, per_block=True)
        return report.alpha, report.ci, report.cross, parts.alpha, room.magnitude_similarity(g[:4] @ g[:4].T)

    def recorded(place: Place) -> Any:
        model, (x, y) = place(small_model()), place(small_data())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with room.record(model, every=1) as recorder:
            for _ in range(3):
                recorder.batch(y)
                optimizer.zero_grad()
                CE(model(x), y).backward()
                optimizer.step()
        assert recorder.steps == [0, 1, 2]
        return recorder.shares, list(model.parameters())

    def collapsed(place: Place) -> Any:
        features, y = place(gaussian(60, 5)), place.moved(torch.arange(60) % 3)
        weight = place(gaussian(3, 5, seed=1))
        seen = room.CollapseAccumulator(3)
        for rows in torch.arange(60).split(25):
            at = place.moved(rows)
            seen.update(features[at], y[at])
        report = room.collapse_metrics(features, y, weight)
        return report.nc1, report.nc2_orthogonal, report.nc3, report.nc4, report.mean_norm, seen.report().nc1

    def of_features(place: Place) -> Any:
        features, target = place(gaussian(40, 6)), place.argument(torch.arange(40.0) % 9)
        return room.feature_collapse(features, target, target + place.argument(0.3 * gaussian(40, seed=1)), window=1.0, bins=3)

    def features_of_gradients(options: dict[str, Any], place: Place) -> Any:
        model, data = place(small_model()), place(small_data(8))
        g = room.gradient_features(
            model, lambda net, batch: F.cross_entropy(net(batch[0]), batch[1], reduction="none"), data, "2", **options
        )
        assert g.device == data[0].device
        return g

    def imbalance(place: Place) -> Any:
        model, (x, y) = place(small_model()), place(small_data())
        output = model(x)
        return room.gradient_imbalance({"data": CE(output, y), "size": output.square().mean()}, dict(model.named_parameters()))

    def variance(place: Place) -> Any:
        return room.gradient_variance(place(small_model()), CE, place(small_data()), np.arange(30) % 7 // 3, [1.0, 5.0])

    def alignment(head: Callable[[], nn.Module], place: Place) -> Any:
        return room.head_alignment(*place(small_data()), place.moved(torch.arange(30) % 2), place(head()), iters=100)

    def modalities(place: Place) -> Any:
        logits = [place(gaussian(9, 4)), place(2 * gaussian(9, 4, seed=1))]
        mask = place.moved(torch.arange(18).reshape(9, 2) % 5 > 0)
        report = room.modality_statistics(logits, mask=mask)
        return {name: getattr(report, name) for name in report.__dataclass_fields__}

    def by_modality(place: Place) -> Any:
        of = np.array(["text", "image"])[np.arange(24) % 2]
        return room.modality_sharpness(place(gaussian(24, 6)), place(gaussian(24, 6) + gaussian(24, 6, seed=1)), (of, of), temperature=0.1)

    def policy(place: Place) -> Any:
        logp, old, advantages = (-3 * uniform(6, 5, seed=seed) for seed in (0, 1, 2))
        mask = torch.arange(5) < torch.tensor([1, 2, 3, 4, 5, 5])[:, None]
        return room.policy_balance(place(logp), place(old), place(advantages + 1.5), place.moved(mask))

    def invariance(place: Place) -> Any:
        model, (x, y) = place(small_model()), place(small_data())
        return room.scale_invariance(model, lambda: CE(model(x), y))

    def curvature(place: Place) -> Any:
        report = room.sharpness(place(small_model()), CE, place(small_data()), iters=60, tol=1e-9)
        return report.value

    def trajectory(place: Place) -> Any:
        seen = room.LossTrajectory()
        for step in range(6):
            seen.update(place(uniform(60, seed=step)), step, lr=0.1)
        return seen.losses

    def tiers(place: Place) -> Any:
        return room.tier_signal(place((uniform(4, 6, 4) > 0.5).double()))

    def intersections(place: Place) -> Any:
        score = place(uniform(60)).sigmoid()
        attributes = {"class": place.moved(torch.arange(60) % 3), "sign": place.moved(torch.arange(60) % 2)}
        return room.intersectional_report(score, attributes)

    def groups(place: Place) -> Any:
        found = Groups.from_labels(place.moved(torch.arange(9) % 4))
        return found.ids, found.counts(), Groups.from_bins(place(uniform(20)), bins=3).counts(), found.to_torch(place.device)

    def wrapped(name: str, covers: str, run: Callable[[Place], Any], dtypes: Any = EVERY) -> Case:
        of_models = {SINGLE: 1e-4, BRAIN: 0.1, HALF: 0.02}
        reason = "of gradients, through the layers of a model"
        names = tuple(f"diagnostics.{n}" for n in covers.split())
        return Case(name, names, run, dtypes, of_models, reason, by_type=name.endswith("jvp"))  # it draws directions

    body = lambda: small_model()  # noqa: E731
    return [
        wrapped("examine", "examine TrainingDiagnosis Conflict GroupShares", examined, FULL),
        wrapped("from-loader", "sketch_gradients", from_loader, (SINGLE, BRAIN)),
        wrapped("of-sketch", "group_shares conflict interaction coherence magnitude_similarity opposing_groups", of_sketch, FULL),
        wrapped("coherence", "coherence CoherenceReport magnitude_similarity MagnitudeSimilarity", coherent),
        wrapped("record", "record Recorder", recorded, FULL),
        wrapped("collapse", "collapse_metrics CollapseAccumulator NeuralCollapseReport", collapsed),
        wrapped("feature-collapse", "feature_collapse CollapseReport", of_features, FULL),
        *(
            wrapped(f"gradient-features-{options['method']}", "gradient_features", partial(features_of_gradients, options), (SINGLE, BRAIN))
            for options in ({"method": "last-layer"}, {"method": "exact"}, {"method": "jvp", "directions": 3})
        ),
        wrapped("gradient-imbalance", "gradient_imbalance GradientImbalance", imbalance, FULL),
        wrapped("gradient-variance", "gradient_variance VarianceReport", variance, FULL),
        wrapped("head-alignment-linear", "head_alignment HeadAlignment", partial(alignment, lambda: _linear(6, 3)), FULL),
        wrapped("head-alignment", "head_alignment", partial(alignment, body), FULL),
        wrapped("modality-statistics", "modality_statistics ModalityReport", modalities),
        wrapped("modality-sharpness", "modality_sharpness SharpnessByModality", by_modality, FULL),
        wrapped("policy-balance", "policy_balance PolicyBalance", policy),
        wrapped("scale-invariance", "scale_invariance InvarianceReport", invariance, FULL),
        wrapped("sharpness", "sharpness SharpnessReport", curvature, FULL),
        wrapped("trajectory", "LossTrajectory", trajectory, FULL),
        wrapped("tier-signal", "tier_signal TierSignal", tiers),
        wrapped("intersections", "intersectional_report IntersectionalReport", intersections, FULL),
        wrapped("groups", "", groups, FULL),
    ]


# ---- merging ----------------------------------------------------------------------------------------------------------------------------


def merging() -> list[Case]:
    from counterpoise import weights as room
    from tests.batteries.weights import batches, family, loss_of
    from tests.weights.test_battery import CASES

    def family_at(place: Place) -> tuple[nn.Module, list[nn.Module]]:
        base, models = family()
        return place(base), [place(model) for model in models]

    def merged(case: Any, place: Place) -> Any:
        found = case.merge(*family_at(place))
        return {name: place.own(part) if part.is_floating_point() else part for name, part in found.items()}

    def searched(place: Place) -> Any:
        base, models = family_at(place)
        result = room.SelfPositioning().fit(base, models, place(batches()), loss_of, steps=3)
        return {"weights": result.weights, "scale": result.scale} | {
            name: place.own(part) for name, part in result.state_dict.items() if part.is_floating_point()
        }

    def statistics_of_data(method: str, place: Place) -> Any:
        base, models = family_at(place)
        names = {"loss_fn": loss_of} if method == "fisher" else {}
        return room.merge(base, models, method, data=[place(batches())] * len(models), **names)

    def vectors(place: Place) -> Any:
        base, models = family_at(place)
        report = room.task_vector_report(base, models, sizes=[500, 100, 50])
        parts = [place(gaussian(7, seed=seed)) for seed in range(3)]
        return {
            "vector": room.task_vector(base, models[0]),
            "report": report,
            "slerp": place.own(room.slerp(parts[0], parts[1], 0.3)),
            "nested": place.own(room.nested_slerp(parts, [0.5, 0.3, 0.2])),
        }

    half = {SINGLE: 1e-4, BRAIN: 0.06, HALF: 0.02}
    reason = "angles between small differences of weights"
    found = [
        Case(f"merge-{case.name}", ("weights.merge",), partial(merged, case), (SINGLE, BRAIN), half, reason)
        for case in CASES
        if case.name != "self-positioning"
    ]
    return [
        *found,
        Case("self-positioning", ("weights.SelfPositioning", "weights.MergeResult"), searched, FULL, half, reason),
        Case(
            "vectors", tuple(f"weights.{n}" for n in ("task_vector", "task_vector_report", "TaskVectorReport", "slerp", "nested_slerp")),
            vectors, (SINGLE, BRAIN), half, reason,
        ),
    ]  # fmt: skip


# ---- data and metrics -------------------------------------------------------------------------------------------------------------------


def data() -> list[Case]:
    from counterpoise import data as room

    def labels() -> Tensor:
        return torch.arange(60).pow(2) % 7 % 3

    def samplers(place: Place) -> Any:
        y = place.moved(labels())
        return {
            "balanced": list(room.BalancedClassSampler(y, generator=0)),
            "temperature": list(room.TemperatureSampler(y, generator=0)),
            "batches": list(room.TemperatureBatchSampler(y, 8, generator=0)),
            "coresets": list(room.CoresetBatchSampler(place(gaussian(60, 5)), y, pool_size=20, budget=8, generator=0)),
            "interleaved": next(iter(room.InterleaveDataset([[1], [2]], place.moved(torch.tensor([9, 1]))))),
        }

    def sources(place: Place) -> Any:
        y = place.moved(labels())
        counts = torch.bincount(y)
        return {
            "probabilities": room.temperature_probabilities(counts),
            "budget": room.allocate_budget(counts, 10),
            "small": room.small_sources(y),
        }

    def located(place: Place) -> Any:
        rows = place(gaussian(30, 4))
        found = {}
        for metric in ("l1", "euclidean", "cosine"):
            for optimizer in ("lazy", "naive", "stochastic"):
                picked = room.facility_location(rows, 6, metric, optimizer, generator=0)
                assert picked.indices.device == rows.device
                found[f"{metric} {optimizer}"] = picked
        return found

    def coreset(normalize: Any, place: Place) -> Any:
        chosen = room.MiniBatchCoreset(12, [60, 30, 5], normalize=normalize, weights="cluster")
        found = []
        for seed in range(2):
            rows = place(gaussian(40, 6, seed=seed))
            at = chosen(rows, place.moved(labels()[:40]))
            assert at.device == rows.device
            found.append((at, chosen.example_weights))
        return found

    def history(place: Place) -> Any:
        model = place(small_model())
        optimizer = torch.optim.Adam(model.parameters())
        x, y = place(small_data())
        CE(model(x), y).backward()
        optimizer.step()
        past = room.MiniBatchCoreset.history_of(optimizer, model[2])
        chosen = room.MiniBatchCoreset(8, keep_small=None, normalize="optimizer")
        return past.m, past.v, chosen(place(gaussian(30, past.m.numel())), y, past)

    def synthetic(place: Place) -> Any:
        y = torch.tensor([0] * 12 + [1] * 5)
        module = room.FeatureSMOTE(3, random_state=0, memory_bank=20)
        found = []
        for seed in range(2):
            x = place(gaussian(17, 4, seed=seed)).requires_grad_()
            rows, labels = module(x, place.moved(y))
            found.append((place.own(rows), labels, torch.autograd.grad(rows.square().sum(), x)))
        rows, labels = room.FeatureSMOTE(3, random_state=0).fit_resample(place(gaussian(17, 4)), place.moved(y))
        return found, place.own(rows), labels

    names = "BalancedClassSampler TemperatureSampler TemperatureBatchSampler CoresetBatchSampler InterleaveDataset"
    return [
        Case("samplers", tuple(f"data.{n}" for n in names.split()), samplers),
        Case("sources", ("data.temperature_probabilities", "data.allocate_budget", "data.small_sources"), sources),
        Case("facility-location", ("data.facility_location", "data.Selection"), located),
        Case("coreset-adam", ("data.MiniBatchCoreset",), partial(coreset, "adam")),
        Case("coreset-plain", ("data.MiniBatchCoreset",), partial(coreset, None)),
        Case("coreset-of-optimizer", ("data.AdamHistory", "data.MiniBatchCoreset"), history, FULL, {SINGLE: 1e-4}, "squares of gradients"),
        Case("feature-smote", ("data.FeatureSMOTE",), synthetic, by_type=True),
    ]


def metrics() -> list[Case]:
    from counterpoise import metrics as room

    def curves(place: Place) -> Any:
        score, label = place(uniform(50)), place.moved((torch.arange(50) % 3 == 0).long())
        found = {}
        for bins in (None, 8):
            metric = room.CurveDecompositionMetric(bins)
            for part in (slice(0, 20), slice(20, 50)):
                metric.update(score[part], label[part])
            result = metric.compute()
            found[str(bins)] = (result.auroc, result.auprc)
        return found

    def of_arrays(place: Place) -> Any:
        score, label = place(uniform(50)), place.moved((torch.arange(50) % 3 == 0).long())
        classes, probabilities = place.moved(torch.arange(50) % 3), place(gaussian(50, 3)).softmax(dim=1)
        whole = room.auroc_auprc_decomposition(label, score)
        return {
            "decomposition": (whole.auroc, whole.auprc),
            "log": room.log_tpr_auc(label, score),
            "macro": room.macro_ovr_auc(classes, probabilities),
            "divergence": room.jensen_shannon_by_group(score, classes, estimator="hist"),
            "between": room.between_group_variance_share(score, classes),
        }

    names = "auroc_auprc_decomposition log_tpr_auc macro_ovr_auc jensen_shannon_by_group between_group_variance_share CurveDecomposition"
    return [
        Case("curves", ("metrics.CurveDecompositionMetric",), curves),
        Case("of-arrays", tuple(f"metrics.{n}" for n in names.split()), of_arrays, FULL),
    ]


def named(names: str, reason: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


# What has no tensor to compute with, and why.
ARRAYS = "takes and returns arrays of NumPy"
NO_TENSORS: dict[str, dict[str, str]] = {
    "losses": {},
    "gradients": named("as_torchjd", "a cover for TorchJD around what is tested here"),
    "optim": {},
    "nn": {},
    "weights": {},
    "diagnostics": named("appearance_clusters ClusterReport class_imbalance ImbalanceReport diagnose StudyDiagnosis", ARRAYS)
    | named("neural_collapse_lengths CollapsePrediction collapse_threshold examine_linear LinearHeadReport head_shares", ARRAYS)
    | named("performance_curve CurveFit CurveReport select_by_curve", ARRAYS)
    | named("metric_advice MetricAdvice mistake_leverage MistakeLeverage", ARRAYS)
    | named("Leverage OpposingPair StageHint", "a part of a report, in NumPy or words")
    | named("contrastive_shares ContrastiveShares", "those of the losses"),
    "data": named(
        "ADASYN BorderlineSMOTE RandomOverSampler RandomUnderSampler SMOGN SMOTE SMOTEENN SMOTEN SMOTENC SMOTER SMOTETomek", ARRAYS
    )
    | named("LikelihoodWeighter ProtectedAttributeEncoder TargetRange", ARRAYS)
    | named("ConcreteNegatives Negative", "texts")
    | named("IndexedDataset RegressionTwoViews", "hands out what it is given"),
    "metrics": named("make_group_scorer MetricInterval one_vs_rest paired_metric_ci smote_undersample_grid RocGrid", ARRAYS)
    | named("roc_convex_hull Hull OperatingPoint", ARRAYS),
}

GROUPS: dict[str, Callable[[], list[Case]]] = {
    "losses": losses,
    "gradients": gradients,
    "optim": optimizers,
    "nn": modules,
    "per_example": per_example,
    "diagnostics": diagnoses,
    "weights": merging,
    "data": data,
    "metrics": metrics,
}
