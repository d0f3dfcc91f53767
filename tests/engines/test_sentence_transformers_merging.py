from __future__ import annotations

import copy

import pytest
import torch

from counterpoise._errors import InputError
from counterpoise.weights import SelfPositioning, merge

pytest.importorskip("sentence_transformers")

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import CoSENTLoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers

from counterpoise.engines.sentence_transformers import ProbeTask, TaskProbe, merge_sentence_transformers

WORDS = ["the", "a", "cat", "dog", "sits", "runs", "on", "mat", "road", "red", "blue", "big", "small"]
LEFT = ["the cat sits", "a dog runs", "red mat", "blue road", "big cat", "small dog", "the mat"]
RIGHT = ["a cat sits on mat", "the dog runs on road", "a red mat", "a blue road", "the big cat", "the small dog", "a mat"]
SCORES = [0.9, 0.8, 0.1, 0.2, 0.7, 0.4, 0.5]


def encoder(seed: int = 0) -> SentenceTransformer:
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu")


def family() -> tuple[SentenceTransformer, list[SentenceTransformer]]:
    base = encoder()
    tuned = [copy.deepcopy(base) for _ in range(2)]
    for k, model in enumerate(tuned):
        with torch.no_grad():
            for p in model.parameters():
                p += 0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k))
    return base, tuned


def tasks() -> dict[str, ProbeTask]:
    return {
        "pairs": ProbeTask((LEFT, RIGHT), MultipleNegativesRankingLoss),
        "scores": ProbeTask((LEFT[:5], RIGHT[:5]), CoSENTLoss, labels=SCORES[:5], weight=0.5),
    }


def test_merged_models_encode(tmp_path) -> None:
    base, tuned = family()
    merged = merge_sentence_transformers(base, tuned, "slerp", weights=[2.0, 1.0])
    wanted = merge(base, tuned, "slerp", [2.0, 1.0])
    for name, value in merged.state_dict().items():
        torch.testing.assert_close(value, wanted[name])
    assert merged.encode(LEFT).shape == (7, 8) and not (merged.encode(LEFT) == base.encode(LEFT)).all()
    folders = []
    for k, model in enumerate((base, *tuned)):
        model.save_pretrained(str(tmp_path / str(k)), create_model_card=False)
        folders.append(tmp_path / str(k))
    again = merge_sentence_transformers(folders[0], folders[1:], "slerp", weights=[2.0, 1.0])
    assert (again.encode(LEFT) == merged.encode(LEFT)).all()


def test_a_probe_takes_the_tasks_in_turn() -> None:
    base, _ = family()
    probe = TaskProbe(base, tasks(), batch_size=3)
    first, second = list(probe), list(probe)
    assert len(probe) == len(first) == 4
    assert [batch["task"] for batch in first] == ["pairs", "scores", "pairs", "scores"]
    assert all(len(batch["columns"]) == 2 for batch in first)
    scores = [sorted(round(x, 1) for x in batch["labels"].tolist()) for batch in first if batch["labels"] is not None]
    assert scores[0] == scores[1] and len(scores[0]) == 3  # one whole batch, taken twice
    again = TaskProbe(base, tasks(), batch_size=3)
    for batch, same, later in zip(first, again, second, strict=True):
        assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batch["columns"], same["columns"], strict=True))
        assert batch["task"] == later["task"]
    passes = (first, second, probe, probe)
    scored = [[batch["labels"].tolist() for batch in one_pass if batch["task"] == "scores"] for one_pass in passes]
    assert any(other != scored[0] for other in scored[1:])  # in another order


def test_its_loss_is_that_of_sentence_transformers() -> None:
    base, _ = family()
    probe = TaskProbe(base, tasks(), batch_size=5)
    pairs, scores = list(probe)[:2]
    copies = [dict(column) for column in pairs["columns"]]
    torch.testing.assert_close(probe.loss(base, pairs), MultipleNegativesRankingLoss(base)(copies, None))
    copies = [dict(column) for column in scores["columns"]]
    torch.testing.assert_close(probe.loss(base, scores), 0.5 * CoSENTLoss(base)(copies, scores["labels"]))
    torch.testing.assert_close(probe.loss(base, pairs), probe.loss(base, pairs))  # a batch can be used again


def test_self_positioning_on_both_tasks() -> None:
    base, tuned = family()
    probe = TaskProbe(base, tasks(), batch_size=7)
    result = SelfPositioning().fit(base, tuned, probe, probe.loss, steps=12)
    assert len(result.history) == 12
    model = copy.deepcopy(base)
    model.load_state_dict(result.state_dict)
    assert model.encode(LEFT).shape == (7, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, m: merge_sentence_transformers(b, [3]), r"models\[0\]: got 'int'; expected a SentenceTransformer"),
        (lambda b, m: merge_sentence_transformers("nowhere", m), "base: got 'nowhere'; expected the folder of a saved"),
        (lambda b, m: merge_sentence_transformers(b, m, out="x"), "out: got 'x'; expected no path. Save the result"),
        (lambda b, m: TaskProbe(b, {}), "tasks: got {}; expected a dict of name -> ProbeTask"),
        (lambda b, m: TaskProbe(b, tasks(), batch_size=1), "batch_size: got 1"),
        (lambda b, m: TaskProbe(b, {"t": ProbeTask((LEFT, RIGHT[:2]), CoSENTLoss)}), r"tasks\['t'\]: got columns of \[2, 7\] examples"),
    ],
)  # fmt: skip
def test_bad_input(call, message) -> None:
    base, tuned = family()
    with pytest.raises(InputError, match=message):
        call(base, tuned)
