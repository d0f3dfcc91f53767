from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from counterpoise._errors import InputError
from counterpoise.weights import task_vector, task_vector_report
from counterpoise.weights._models import Models
from tests.batteries.weights import copied, family


def test_what_moved_and_nothing_else() -> None:
    base, models = family()
    found = task_vector(base, models[0])
    assert set(found) == {"embed.weight", "body.weight", "body.bias", "norm.weight", "norm.bias", "frozen.weight", "frozen.bias", "scale"}
    before, after = base.state_dict(), models[0].state_dict()
    for name, vector in found.items():
        torch.testing.assert_close(vector, after[name] - before[name])
    assert not found["frozen.weight"].any() and found["body.weight"].any()
    half = task_vector(copy.deepcopy(base).bfloat16(), copy.deepcopy(models[0]).bfloat16())
    assert all(vector.dtype == torch.float32 for vector in half.values())


def test_gram_matrix_in_pieces(monkeypatch) -> None:
    base, models = family()
    whole = [torch.cat([v.reshape(-1) for v in task_vector(base, model).values()]) for model in models]
    wanted = torch.stack(whole) @ torch.stack(whole).T
    for piece in (2**20, 7, 1):
        monkeypatch.setattr("counterpoise.weights._models.PIECE", piece)
        torch.testing.assert_close(Models(base, models).gram(), wanted, rtol=1e-12, atol=1e-12)


def test_report_of_vectors_drawn_on_paper(tmp_path) -> None:
    base = {"w": torch.tensor([1.0, 1.0, 1.0]), "n": torch.tensor(3)}
    drawn = {"a": [4.0, 1.0, 1.0], "b": [1.0, 5.0, 1.0], "c": [1.0, 1.0, 3.0], "joint": [7.0, 3.0, 1.0]}
    models = {name: base | {"w": torch.tensor(w)} for name, w in drawn.items()}
    save_file(models["c"], tmp_path / "c.safetensors")
    own = [models["a"], models["b"], tmp_path / "c.safetensors"]
    report = task_vector_report(base, own, sizes=[30, 40, 20], joint=models["joint"])
    np.testing.assert_allclose(report.norms, [3, 4, 2])
    np.testing.assert_allclose(report.cosines, np.eye(3), atol=1e-12)
    assert report.r2_norm_vs_size == pytest.approx(1)
    np.testing.assert_allclose(report.joint_alignment, [6 / 40**0.5, 2 / 40**0.5, 0], atol=1e-12)
    # Of three orthogonal vectors the last counts as much as the others together.
    a, b = np.array([0.5, 0.5, 0.5**0.5]) * [3, 4, 2], np.array([0.5, 0.5**0.5, 0.5]) * [3, 4, 2]
    orders = {tuple(np.roll(np.arange(3), k)) for k in range(3)}
    assert len(orders) == 3 and report.order_cosine <= a @ b / np.linalg.norm(a) / np.linalg.norm(b) + 1e-12
    assert report.to_frame().columns == ["model", "size", "norm", "joint_alignment", "cosine_0", "cosine_1", "cosine_2"]
    said = report.summary()
    assert (
        "models[1] is the longest" in said
        and "Angles between them: 90 degrees." in said
        and "The jointly trained model lies nearest to models[0]" in said
    )
    assert "The order of nested interpolation matters" in said


def test_report_without_joint_model_or_sizes() -> None:
    base = {"w": torch.zeros(2)}
    report = task_vector_report(base, [{"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}])
    assert report.sizes is None and np.isnan(report.r2_norm_vs_size) and not report.joint_given
    np.testing.assert_allclose(report.joint_alignment, np.array([3, 1]) / 10**0.5)
    assert report.order_cosine == pytest.approx(1)  # of two vectors there is one merge
    assert report.summary().endswith("Their sum lies nearest to models[0] (cosine 0.95).")
    alone = task_vector_report(base, [{"w": torch.ones(2)}])
    assert alone.cosines.shape == (1, 1) and alone.order_cosine == 1
    still = task_vector_report(base, [base, {"w": torch.ones(2)}], sizes=[1, 2])
    assert np.isnan(still.cosines[0, 1]) and still.norms[0] == 0 and "models[1]" in still.summary()


def test_order_of_many_vectors_and_of_opposed_ones() -> None:
    base = {"w": torch.zeros(8)}
    many = [{"w": row} for row in torch.eye(8)]
    assert 0 < task_vector_report(base, many).order_cosine < 0.9
    assert np.isnan(task_vector_report(base, [{"w": torch.ones(8)}, {"w": -torch.ones(8)}]).order_cosine)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, m: task_vector_report(b, []), "models: got an empty sequence; expected at least one model"),
        (lambda b, m: task_vector_report(b, m[0]), "models: got 'Net'; expected a sequence of models. Put a single one into a list"),
        (lambda b, m: task_vector_report(b, m, sizes=[1, 2]), "sizes: got .*; expected 3 finite"),
        (lambda b, m: task_vector_report(b, m, sizes=[1, 2, 0]), "sizes: got .*; expected 3 finite"),
        (lambda b, m: task_vector(b, 3), r"models\[0\]: got 'int'; expected a torch.nn.Module"),
        (lambda b, m: task_vector({}, {}), "base: got a model without tensors"),
        (lambda b, m: task_vector({"w": torch.ones(1).to(torch.float8_e5m2)}, {"w": torch.ones(1).to(torch.float8_e5m2)}), "float8"),
        (lambda b, m: task_vector(b, "nowhere"), r"models\[0\]: got nowhere; expected a path that exists|'nowhere'"),
    ],
)  # fmt: skip
def test_bad_input(call, message) -> None:
    base, models = family()
    with pytest.raises(InputError, match=message):
        call(base, models)


def test_bad_files(tmp_path) -> None:
    base, _ = family()
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match="Pickled weights are not read"):
        task_vector(base, tmp_path / "model.bin")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(InputError, match="expected a safetensors file that can be read"):
        task_vector(base, tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match=r"a folder with model\.safetensors or model\.safetensors\.index\.json"):
        task_vector(base, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-00001-of-00002.safetensors"}}')
    with pytest.raises(InputError, match=r"names\. Missing: model-00001-of-00002\.safetensors"):
        task_vector(base, tmp_path)


def test_weights_that_are_not_finite_are_named() -> None:
    base, models = family()
    broken = copied(models[1])
    broken["scale"] = torch.tensor(float("nan"), dtype=torch.float64)
    with pytest.raises(InputError, match=r"models\[1\]: got weights that are not finite"):
        task_vector_report(base, [models[0], broken])
