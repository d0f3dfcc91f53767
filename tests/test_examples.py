"""The examples run as they stand, from anywhere, and print what they promise."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@dataclass(frozen=True)
class Example:
    """What an example prints: how it begins, and words that must occur. ``needs``: a file below ``$COUNTERPOISE_DATA``, if it needs one;
    ``engine``: a package of an extra; ``arguments``: of a shorter run."""

    words: tuple[str, ...]
    begins: str = "Recommended: "
    needs: str = ""
    engine: str = ""
    arguments: tuple[str, ...] = ()
    isolated: bool = False  # runs untrusted programs


TABLE = {
    "own_training_loop.py": Example(("decisions, balanced_accuracy", "ranking, auroc", "weights", "over", "focal")),
    "own_remedy.py": Example(("skip-easy", "TomekLinks", "weights", "log_loss")),
    "pinn_helmholtz.py": Example(
        ("'residual' dominates 'boundary'", "600 steps with weights", "relative error: sum 0.1"), begins="600 steps on the sum"
    ),
    "own_learner.py": Example(("selected", "extra-trees", "balanced accuracy 0.9", "not applicable: selected/weights")),
    "lightning_diagnosis.py": Example(
        ("of the rows", "of the step", "\n   0 ", "\n 200 "), begins="step 0: The step works against '4'", engine="lightning"
    ),
    "transformers_diagnosis.py": Example(("share of the step", "ham", "spam", "\n  96 "), begins="step 0: ", engine="transformers"),
    "lightning_cooldown.py": Example(
        ("5.9 were of the small domain in the first half, 1.0 in the second",), begins="of 16 examples in a batch", engine="lightning"
    ),
    "transformers_cooldown.py": Example(
        ("5.8 were of the small domain in the first half, 0.6 in the second",), begins="of 16 examples in a batch", engine="transformers"
    ),
    "multi_task_molecules.py": Example(
        ("\nsum ", "\nPCGrad ", "\nMGDA ", "\nSAM-GS ", "pairs in conflict", "Lightning, PCGrad, seed 0: 78.0; plain loop: 78.0"),
        begins="6414 molecules to train on, 1600 to test on, 12 tasks, 150 steps",
        needs="molecule-tasks/tox21.csv.gz",
        engine="lightning",
    ),
    "detector_bccd.py": Example(
        ("cross-entropy, bias 0", "cross-entropy, prior bias", "focal loss", "score > prior of its class"),
        begins="Places that hold a cell: RBC 1 in 24, WBC 1 in 264, Platelets 1 in 270; 95.0 % are background.",
        needs="bccd/BCCD.zip",
    ),
    "contrastive_captions.py": Example(
        ("no hard negatives: ", "hard negatives, Cement: ", "% tell which digit is on the left", "per 1,000 of them)"),
        begins="'maybe a seven left of an eight' becomes 'maybe an eight left of a seven' (swap, concreteness 0.9)",
        arguments=("60",),
    ),
    "coreset_trainer.py": Example(
        (
            "gradient of base_model.model.model.layers.1.self_attn.v_proj.lora_B.default, 512 of 17,408 numbers that are trained",
            "Kept whole: MAWPS, ASDiv, SVAMP, AQuA",
            "in the pools    trained on",
            "after 12 steps of 24 out of 48",
            " s to choose",
        ),
        begins="Problems: GSM8K 7,473, MAWPS 1,537, ASDiv 979, SVAMP 1,000, AQuA 254",
        needs="math-word-problems/gsm8k_train.jsonl.gz",
        engine="peft",
        arguments=("12",),
    ),
    "multimodal_digits.py": Example(
        (
            "\none loss ",
            "\nOGM-GE ",
            "\n+ ARL ",
            "ARL minus its weights turned round",
            "Weights of the mean with the smallest error: image",
        ),
        begins="1200 pairs of image and recording to train on, 300 to test on",
        needs="fsdd/fsdd.zip",
        arguments=("--quick",),
    ),
    "bapo_arithmetic.py": Example(
        ("\nGRPO, ", "\nBAPO, ", "low bound  high bound  share", "\n  9- 16 "),
        begins="49 sums and differences of SVAMP, 16 optimizer steps, 8 for each rollout",
        needs="math-word-problems/svamp.json.gz",
        engine="trl",
        arguments=("16",),
    ),
    "omni_retrieval.py": Example(
        ("\none temperature ", "\nall parts ", "all 0.03", "fac 0.0", "of the gradient from"),
        begins="900 digits in 4 views to train on, 500 to test on, 300 steps",
        needs="mfeat/mfeat.npz",
    ),
    "merge_text_encoders.py": Example(
        ("Self Positioning: Weights ", "similarity, Spearman", "\naverage ", "\nSelf Positioning  ", "\nboth, trained jointly "),
        begins="5,249 pairs of sentences, 10,003 questions with 77 intents",
        needs="stsb-dir/train_new.tsv.gz",
        engine="sentence_transformers",
        arguments=("12",),
    ),
    "tiered_code_rewards.py": Example(
        ("% pass  basic   ", "tests of 5 problems: ", "var_asce_rev     epoch 0.1: high ", "of the advantages come from the tier"),
        begins="prime_fib: 6 tests, 6 near misses of its solution",
        needs="code-problems/HumanEval.jsonl.gz",
        isolated=True,
    ),
    "scaling_audit.py": Example(
        (
            "wastes 6.30 % of the compute",
            "of which +0.7 % is the bias of parabolas on this grid",
            "Leaving out one budget gives 0.17 % (without 1e+22)",
            "Chinchilla\n123 runs in 9 budgets",
            "huber, log    alpha",
        ),
        begins="Llama 3\n133 runs in 10 budgets",
        needs="isoflop/isoflops.csv",
        arguments=("20",),
    ),
    "federated_intrusion.py": Example(
        ("macro F1   FedAvg   votes", "\nround 2 ", "39,444 bytes of weights in the open, 10,240 bytes of encrypted votes"),
        begins="10 clients with 284 to 5,340 connections; number 1, with the most, is poisoned.",
        needs="nsl-kdd/KDDTrain+_20Percent.txt.gz",
        engine="flwr",
        arguments=("2",),
    ),
    "domain_generalisation.py": Example(
        ("sketch         aligned, defaults", "on the domain left out, better in", "Hessians differ most between"),
        begins="1998 images of art, cartoon, photo, sketch.",
        needs="pacs64/pacs64.npz",
        arguments=("--quick",),
    ),
}


def run(name: str, folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    source = Path(__file__).parent.parent / "src"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH", "")]))}
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(EXAMPLES / name), *arguments],
        cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(TABLE)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_example(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    example = TABLE[name]
    if example.needs and not (request.getfixturevalue("data_folder") / example.needs).is_file():
        pytest.skip(f"needs {example.needs} in the folder that COUNTERPOISE_DATA names")
    if example.engine and importlib.util.find_spec(example.engine) is None:
        pytest.skip(f"needs the package {example.engine!r} of an extra")
    done = run(name, tmp_path, *example.arguments)
    if example.isolated and done.returncode == 1 and done.stderr.startswith("Programs cannot be isolated here"):
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    for words in example.words:
        assert words in done.stdout, done.stdout
    assert done.stdout.startswith(example.begins)
    assert list(tmp_path.iterdir()) == []  # nothing is left behind


@pytest.mark.parametrize("name", sorted(name for name, example in TABLE.items() if example.needs))
def test_an_example_without_its_data_set_says_where_it_looked(name: str, tmp_path: Path) -> None:
    if TABLE[name].engine and importlib.util.find_spec(TABLE[name].engine) is None:
        pytest.skip(f"needs the package {TABLE[name].engine!r} of an extra")
    done = run(name, tmp_path, COUNTERPOISE_DATA=str(tmp_path))
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"{tmp_path / TABLE[name].needs} is not there: set COUNTERPOISE_DATA")
    assert done.stderr.count("\n") == 1
