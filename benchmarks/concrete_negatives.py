"""How fast captions are edited, beside a tokenizer of spaCy's, and whether the negatives can be told without a picture.

One process, CPU time, the 4,839 COCO captions for which NegCLIP published negatives: ``ConcreteNegatives`` with the ratings of Brysbaert et
al., after it has seen the captions once and from scratch. Beside it ``spacy.blank("en")`` in an interpreter of its own, which only cuts
captions into words. NegCLIP and its like tag them with a trained pipeline as well, which the package index does not have: the tokenizer
alone is a lower bound of what they take. Then the share of pairs that a classifier of words and pairs of words tells apart, out of fold;
50 % is chance.

    python -m venv peers/spacy && peers/spacy/bin/pip install spacy
    COUNTERPOISE_DATA=... python benchmarks/concrete_negatives.py --peers peers/spacy/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _ending import finish

from counterpoise.data import ConcreteNegatives
from counterpoise.replications.slipform import OURS, PUBLISHED, RATINGS, UNFITTED, _folder, blind_pairs, published
from counterpoise.text import ConcretenessLexicon

CAPTIONS_A_SECOND = 5000  # bar: on one core, median of the runs, the first pass included

PEERS = Path("peers") / "spacy" / "bin" / "python"
TOKENIZE = """
import json, sys, time
import spacy
captions, nlp = json.load(sys.stdin), spacy.blank("en")
times = []
for _ in range(2):
    began = time.process_time()
    words = sum(len(document) for document in nlp.pipe(captions))
    times.append(time.process_time() - began)
print(json.dumps({"version": spacy.__version__, "words": words, "seconds": times}))
"""


def edit(lexicon: ConcretenessLexicon, captions: list[str]) -> dict[str, Any]:
    negatives = ConcreteNegatives(lexicon).fit(captions)
    seconds = []
    for _ in range(2):
        began = time.process_time()
        found = list(map(negatives, captions))
        seconds.append(time.process_time() - began)
    return {"negatives": sum(one is not None for one in found), "seconds": seconds}


def tokenize(interpreter: Path, captions: list[str]) -> dict[str, Any]:
    done = subprocess.run([str(interpreter), "-c", TOKENIZE], input=json.dumps(captions), stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, default=PEERS, help=f"interpreter that has spaCy; default {PEERS}")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    folder = _folder(None)
    captions = [caption for caption, _ in published(folder, None)]
    beside = options.peers.is_file()
    if not beside:
        print(f"{options.peers} is not there: without spaCy (--peers names an interpreter that has it)")
    rows = []
    for run in range(options.runs):
        # A lexicon of its own, which has looked up no word yet.
        row: dict[str, Any] = {"run": run, "captions": len(captions)}
        row["ours"] = edit(ConcretenessLexicon.from_csv(Path(folder) / RATINGS), captions)
        if beside:
            row["spacy"] = tokenize(options.peers, captions)
        rows.append(row)
        print(f"  run {run + 1} of {options.runs}", flush=True)
    print("\n| | captions/s, first pass, runs | median | again |\n|---|---|---|---|")
    rates = {}
    for name, label in (("ours", "ConcreteNegatives"), *([("spacy", 'spacy.blank("en"), words only')] if beside else [])):
        first, again = ([len(captions) / row[name]["seconds"][k] for row in rows] for k in range(2))
        rates[name] = float(np.median(first))
        print(f"| {label} | {', '.join(f'{rate:,.0f}' for rate in first)} | {rates[name]:,.0f} | {np.median(again):,.0f} |")
    blind = {name: blind_pairs(name, folder, None) for name in (PUBLISHED, UNFITTED, OURS)}
    print("\n| negatives | pairs | told apart without a picture | 95 % |\n|---|---|---|---|")
    for name, found in blind.items():
        print(f"| {name} | {found['negatives']:,} | {found['accuracy']:.1%} | {found['low']:.1%} to {found['high']:.1%} |")
    missed = [f"{rates['ours']:,.0f} captions/s < {CAPTIONS_A_SECOND:,}"] if rates["ours"] < CAPTIONS_A_SECOND else []
    return finish("concrete_negatives", [*rows, {"blind": blind}], missed)


if __name__ == "__main__":
    sys.exit(main())
