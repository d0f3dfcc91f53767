"""A training loop of one's own as a study: the kit hands out what the remedy changes, and what comes back is checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes, load_digits
from sklearn.metrics import log_loss, roc_auc_score
from tests.studies.small import cells, equal_results
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from counterpoise import Groups
from counterpoise._errors import CounterpoiseError, InputError
from counterpoise.losses import FocalLoss
from counterpoise.studies import Remedy, Study, TrainingKit
from counterpoise.studies._remedies import BUILT_IN, kept_rows, target_bins

IMAGES, DIGIT = load_digits(return_X_y=True)
IMAGES = torch.tensor(IMAGES / 16, dtype=torch.float32)
EIGHT = np.where(DIGIT == 8, "eight", "other")
REMEDIES = {remedy.name: remedy for remedy in BUILT_IN}


def loop(kit: TrainingKit, seed: int, epochs: int = 2) -> dict[str, Any]:
    """A small net on the digits."""
    torch.manual_seed(seed)
    targets = torch.from_numpy(kit.y)
    outputs = 1 if kit.task == "binary" else kit.n_classes
    model = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, outputs))
    criterion = kit.loss("sigmoid" if outputs == 1 else "softmax")
    optimizer = kit.optimizer(model.parameters(), lr=0.01)
    loader = DataLoader(TensorDataset(IMAGES, targets), batch_size=128, sampler=kit.sampler())
    for _ in range(epochs):
        for batch, target in loader:
            optimizer.zero_grad()
            criterion(model(batch).squeeze(-1), target).backward()
            optimizer.step()
    with torch.no_grad():
        return {part: model(IMAGES[rows]).squeeze(-1) for part, rows in (("valid", kit.valid_index), ("test", kit.test_index))}


def kit_of(name: str, y: Any = None, task: str = "binary", n_classes: int = 2, remedy: Remedy | None = None) -> TrainingKit:
    """A kit of 120 training rows of which 20 are positive."""
    y = np.repeat([0, 1], [180, 30]) if y is None else y
    rows = np.random.default_rng(0).permutation(len(y))
    cut = len(y) // 7
    train, valid, test = np.sort(rows[2 * cut :]), np.sort(rows[:cut]), np.sort(rows[cut : 2 * cut])
    return TrainingKit(train, valid, test, y, name, 0, task, n_classes, remedy or REMEDIES[name])


# -- a whole study ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return Study.from_training(
        loop, EIGHT, ["weights", "over", "focal", "prior"], seeds=2, folds=3, out=tmp_path_factory.mktemp("loop") / "a"
    )


def test_a_loop_on_digits(study: Study) -> None:
    assert study.problem.schema.classes == ("other", "eight")  # the rarer class is positive
    assert study.failed == [] and study.repeats_done == 2
    assert set(study.results["remedy"]) == {"nothing", "nothing@0.5", "placebo", "weights", "over", "focal", "prior"}
    assert cells(study, "over")["auroc"].mean() > 0.8
    for question in study.questions:
        assert len(study.verdicts(question)) == 6
    assert {verdict.learner for verdict in study.verdicts()} == {"loop"}
    assert "eight" in study.report().read_text()
    # More of the rare digit at one half; the tuned threshold makes up for it.
    at_half = cells(study, "nothing@0.5")["recall"].mean()
    assert cells(study, "over")["recall"].mean() > at_half


def test_metrics_are_those_of_the_scores_that_came_back(study: Study) -> None:
    scores, _ = study.scores_of("loop", "weights")
    y = study.problem.y
    for fold in range(3):
        test = study.splits.test_index(0, fold)
        row = cells(study, "weights").row(fold, named=True)
        assert row["auroc"] == pytest.approx(roc_auc_score(y[test], scores[0, test]))
        assert row["log_loss"] == pytest.approx(log_loss(y[test], 1 / (1 + np.exp(-scores[0, test]))))


def test_the_same_seed_gives_the_same_study_and_it_can_be_opened(study: Study, tmp_path: Path) -> None:
    again = Study.from_training(loop, EIGHT, ["focal", "weights"], seeds=1, folds=3, out=tmp_path / "b")
    for name in ("nothing", "weights", "focal", "placebo"):
        np.testing.assert_array_equal(cells(again, name)["log_loss"], cells(study, name)["log_loss"].head(3))
    opened = Study.open(study.folder)
    assert equal_results(opened.results, study.results)
    assert opened.verdicts().to_frame().equals(study.verdicts().to_frame(), null_equal=True)
    other = Study.from_training(loop, EIGHT, [], seeds=[5], folds=3, placebo=False, out=tmp_path / "c")
    assert (cells(other)["log_loss"] != cells(study)["log_loss"].head(3)).all()


def test_a_finished_loop_is_not_run_again(study: Study) -> None:
    def never(kit: TrainingKit, seed: int) -> Any:
        raise AssertionError("run again")

    again = Study.from_training(never, EIGHT, ["weights", "over", "focal", "prior"], seeds=2, folds=3, out=study.folder)
    assert equal_results(again.results, study.results)
    with pytest.raises(InputError, match="folds: 3 -> 4"):
        Study.from_training(never, EIGHT, ["weights", "over", "focal", "prior"], seeds=2, folds=4, out=study.folder)


def test_there_is_no_model_of_a_loop_to_hand_out(study: Study) -> None:
    with pytest.raises(CounterpoiseError, match="fit it there"):
        study.fit_recommended()


def test_ten_classes_and_groups(tmp_path: Path) -> None:
    groups = {"parity": Groups(np.arange(len(DIGIT)) % 2, ("even rows", "odd rows"), "attribute")}
    study = Study.from_training(loop, DIGIT, ["weights"], groups=groups, seeds=1, folds=2, out=tmp_path)
    assert study.problem.task == "multiclass" and study.failed == []
    assert study.questions[-2:] == ("groups", "dependence") and list(study.groups) == ["parity"]
    assert cells(study)["balanced_accuracy"].mean() > 0.3
    assert cells(study)["threshold"].list.len().to_list() == [10, 10]


def test_two_workers(study: Study, tmp_path: Path) -> None:
    both = Study.from_training(loop, EIGHT, ["weights"], seeds=1, folds=3, jobs=2, out=tmp_path)
    np.testing.assert_array_equal(cells(both, "weights")["log_loss"], cells(study, "weights")["log_loss"].head(3))


def test_a_loop_never_gets_a_test_row_to_train_on() -> None:
    seen: list[tuple[set[int], ...]] = []

    def spy(kit: TrainingKit, seed: int) -> dict[str, Any]:
        drawn = set(kit.sampler())
        seen.append((drawn, set(kit.train_index), set(kit.valid_index), set(kit.test_index)))
        return {"valid": np.zeros(len(kit.valid_index)), "test": np.zeros(len(kit.test_index))}

    y = np.repeat([0, 1], [90, 30])
    study = Study.from_training(spy, y, ["over", "under"], seeds=1, folds=3)
    assert len(seen) == 4 * 3  # baseline, placebo and two more
    for drawn, train, valid, test in seen:
        assert drawn <= train
        assert not train & valid and not train & test and not valid & test
        assert len(train | valid | test) == 120
    # The validation part is the same for every remedy.
    assert len({frozenset(valid) for _, _, valid, _ in seen}) == 3
    assert {verdict.verdict for verdict in study.verdicts("ranking")} == {"no difference"}


def test_a_regression(tmp_path: Path) -> None:
    X, y = load_diabetes(return_X_y=True)
    X = torch.tensor(20 * X, dtype=torch.float32)

    def ridge(kit: TrainingKit, seed: int) -> dict[str, Any]:
        torch.manual_seed(seed)
        model = nn.Linear(10, 1)
        with torch.no_grad():
            model.bias.fill_(150)
        criterion, optimizer = kit.loss(), kit.optimizer(model.parameters(), lr=1.0)
        rows = torch.tensor(list(kit.sampler()))
        targets = torch.tensor(kit.y, dtype=torch.float32)
        for _ in range(80):
            optimizer.zero_grad()
            criterion(model(X[rows])[:, 0], targets[rows]).backward()
            optimizer.step()
        return {"valid": model(X[kit.valid_index]), "test": model(X[kit.test_index])[:, 0].tolist()}

    study = Study.from_training(ridge, y, ["weights", "over", "focal"], seeds=2, folds=3, out=tmp_path)
    assert study.problem.task == "regression" and study.questions == ("error",) and study.failed == []
    assert cells(study)["mae"].mean() < 55
    # Weights by range pull the predictions up where targets are large, and cost a little elsewhere.
    base, weighted = study.scores_of("loop", "nothing")[0], study.scores_of("loop", "weights")[0]
    assert weighted[:, y > 250].mean() > base[:, y > 250].mean() + 5
    assert ("loop", "focal", "needs classes") in study.plan.not_applicable


# -- the kit ----------------------------------------------------------------------------------------------------------------------------


def test_a_pass_has_the_same_length_for_every_remedy() -> None:
    for name in ("nothing", "over", "under", "placebo", "weights"):
        kit = kit_of(name)
        sampler = kit.sampler()
        assert len(sampler) == len(kit.train_index) == len(list(sampler))


def test_samplers_draw_what_the_remedy_says() -> None:
    plain = kit_of("nothing")
    assert sorted(plain.sampler()) == plain.train_index.tolist()
    for name in ("over", "under"):
        kit = kit_of(name)
        counts = np.bincount(kit.y[[row for _ in range(20) for row in kit.sampler()]])
        assert abs(counts[1] / counts.sum() - 0.5) < 0.05
    placebo = kit_of("placebo")
    assert set(placebo.sampler()) == set(placebo.train_index[kept_rows(placebo.train_index, 0.2, "placebo")])


def test_passes_are_shuffled_anew_and_reproducible() -> None:
    sampler = kit_of("nothing").sampler()
    first, second = list(sampler), list(sampler)
    assert first != second and sorted(first) == sorted(second)
    sampler.set_epoch(0)
    assert list(sampler) == first == list(kit_of("nothing").sampler())


@pytest.mark.parametrize("outputs", ["sigmoid", "softmax"])
def test_losses_are_the_usual_ones_or_those_of_the_remedy(outputs: str) -> None:
    logits = torch.randn(8, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 0, 1, 0, 0, 1, 0, 0])
    given = logits if outputs == "sigmoid" else torch.stack([torch.zeros(8), logits], dim=1)
    per_row = nn.functional.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
    torch.testing.assert_close(kit_of("nothing").loss(outputs)(given, targets), per_row.mean())
    kit = kit_of("weights")
    counts = np.bincount(kit.y[kit.train_index])
    weight = torch.tensor(counts.sum() / (2 * counts), dtype=torch.float32)[targets]
    torch.testing.assert_close(kit.loss(outputs)(given, targets), (per_row * weight).mean())
    focal = FocalLoss(gamma=2.0, reduction="none")(logits[:, None], targets[:, None].float()).mean()
    torch.testing.assert_close(kit_of("focal").loss(outputs)(given, targets), focal)


def test_the_loss_of_a_regression_is_weighted_by_the_range() -> None:
    y = np.random.default_rng(0).gamma(2.0, size=140)
    kit = kit_of("weights", y, "regression", 0)
    target = torch.tensor(kit.y[kit.train_index], dtype=torch.float32)  # rounded: the loop computes in single precision
    prediction = torch.zeros(len(target))
    bins = target_bins(kit.y[kit.train_index])
    per_range = torch.stack([(target[bins == b] ** 2).mean() for b in np.unique(bins)])
    torch.testing.assert_close(kit.loss()(prediction, target), per_range.mean())
    torch.testing.assert_close(kit_of("nothing", y, "regression", 0).loss()(prediction, target), (target**2).mean())


def test_the_optimizer_is_adam_the_loop_s_own_or_that_of_the_remedy() -> None:
    class Descent(Remedy):
        def optimizer(self) -> Any:
            return torch.optim.RMSprop

        def aggregator(self) -> Any:
            return torch.sum

    parameters = nn.Linear(2, 1).parameters
    assert isinstance(kit_of("nothing").optimizer(parameters(), lr=0.1), torch.optim.Adam)
    own = kit_of("nothing").optimizer(parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)
    assert isinstance(own, torch.optim.SGD) and own.defaults["momentum"] == 0.9
    kit = kit_of("descent", remedy=Descent("descent", "update"))
    assert isinstance(kit.optimizer(parameters(), lr=0.1), torch.optim.RMSprop)
    assert kit.aggregator() is torch.sum and kit_of("nothing").aggregator() is None


def test_what_the_kit_cannot_give() -> None:
    with pytest.raises(InputError, match="softmax"):
        kit_of("nothing").loss("logits")
    with pytest.raises(InputError, match="looks at the features"):
        kit_of("smote").sampler()
    with pytest.raises(CounterpoiseError, match="invents rows"):
        kit_of("smote").sampler(np.random.default_rng(0).normal(size=(210, 3)))


def never(kit: TrainingKit, seed: int) -> Mapping[str, Any]:
    raise AssertionError("trained before the arguments were looked at")


@pytest.mark.parametrize("name", ["smote", "smote-enn", "adasyn", "two-phase", "prior-bias", "balanced-forest"])
def test_what_a_loop_cannot_do_is_refused_before_it_runs(name: str) -> None:
    with pytest.raises(InputError, match=rf"remedies: got .?{name}.?; expected remedies that choose among the rows"):
        Study.from_training(never, [0, 1] * 20, ["weights", name], seeds=1, folds=2)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.r_[np.nan, np.zeros(20), np.ones(20)], r"y: got 1 missing labels \(the first at row 0\)"),
        (np.array(["a", "b", None] * 10, dtype=object), r"10 missing labels \(the first at row 2\)"),
        (np.array(["a", 1] * 10, dtype=object), "text and numbers in one column"),
    ],
)
def test_labels_that_are_missing_or_mixed_are_found_before_it_runs(y: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Study.from_training(never, y, ["weights"], seeds=1, folds=2)


# -- what comes back --------------------------------------------------------------------------------------------------------------------


def answers(change: Callable[[dict[str, Any]], Any]) -> Callable[[TrainingKit, int], Mapping[str, Any]]:
    def train(kit: TrainingKit, seed: int) -> Any:
        rng = np.random.default_rng(seed)
        return change({"valid": rng.normal(size=len(kit.valid_index)), "test": rng.normal(size=len(kit.test_index))})

    return train


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda out: None, 'a dict {"valid": scores, "test": scores}'),
        (lambda out: {"test": out["test"]}, '"valid"'),
        (lambda out: out | {"test": out["test"][:-1]}, "logits of the rows of kit.test_index"),
        (lambda out: out | {"valid": np.column_stack([out["valid"]] * 3)}, "logits of the rows of kit.valid_index"),
        (lambda out: out | {"test": np.where(np.arange(len(out["test"])) < 2, np.nan, out["test"])}, "2 values that are not finite"),
    ],
)
def test_answers_that_cannot_be_used(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    with pytest.raises(CounterpoiseError, match="no baseline could be fitted") as caught:
        Study.from_training(answers(change), np.repeat([0, 1], [60, 30]), [], seeds=1, folds=2)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [lambda s: s[:, None], lambda s: np.column_stack([-s, 0 * s]), torch.tensor, list, np.float32])
def test_forms_that_mean_the_same(change: Callable[[Any], Any], tmp_path: Path) -> None:
    y = np.repeat([0, 1], [60, 30])
    plain = Study.from_training(answers(lambda out: out), y, [], seeds=1, folds=2, placebo=False, out=tmp_path / "a")
    other = Study.from_training(
        answers(lambda out: {part: change(scores) for part, scores in out.items()}),
        y,
        [],
        seeds=1,
        folds=2,
        placebo=False,
        out=tmp_path / "b",
    )
    np.testing.assert_allclose(cells(other)["auroc"], cells(plain)["auroc"])
    np.testing.assert_allclose(cells(other)["log_loss"], cells(plain)["log_loss"], rtol=1e-6)


@pytest.mark.parametrize(
    ("y", "options", "words"),
    [
        (np.zeros(20), {}, "one class"),
        (np.zeros((20, 2)), {}, r"shape \(20, 2\)"),
        (np.repeat([0, 1], [17, 3]), {}, "3 rows of class '1'"),
        (np.repeat([0, 1], 10), {"groups": {"sex": Groups(np.arange(5) % 2, ("f", "m"))}}, "one for each of the 20 rows"),
        (np.repeat([0, 1], 10), {"seeds": 0}, "repeats: got 0"),
        (np.repeat([0, 1], 10), {"positive": 2}, "one of 0, 1"),
        (np.repeat([0, 1], 10), {"task": "ranking"}, "task"),
    ],
)
def test_targets_that_cannot_be_used(y: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Study.from_training(loop, y, [], **options)
    with pytest.raises(InputError, match="expected a function"):
        Study.from_training(None, y, [])  # type: ignore[arg-type]
