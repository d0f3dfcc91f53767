"""Are the published IsoFLOP plans to be trusted? Runs read off the figures of two papers, each planned twice and put on trial.

    COUNTERPOISE_DATA=FOLDER python examples/scaling_audit.py [RESAMPLES [PICTURES]]

FOLDER holds isoflop/isoflops.csv (data/isoflops/transform/isoflops.csv of github.com/Open-Athena/scaling-law-analysis, commit 3e0656e).
With a table of your own, one row per training, `audit_isoflop(table, size=..., data=..., loss=...)` is all you need, or on the command line

    counterpoise scaling runs.csv --size n_params --data tokens --loss loss --budget 1e21

What to look at: how far the two plans are apart, how much of that is the known bias of parabolas, and what is left of it without the runs
and the budgets that it hangs on. With a folder PICTURES, plan-*.svg in it show the same.
"""

import os
import sys
from pathlib import Path

import polars as pl

from counterpoise.scaling import ChinchillaRegressor, audit_isoflop

RESAMPLES = int(sys.argv[1]) if len(sys.argv) > 1 else 200
PICTURES = Path(sys.argv[2]) if len(sys.argv) > 2 else None
TABLES = {  # experiment in the file -> name, compute that was planned for
    "llama_3__raw_loss": ("Llama 3", 3.8e25),
    "epochai_chinchilla__massivetext__chinchilla": ("Chinchilla", 5.76e23),
}

path = Path(os.environ.get("COUNTERPOISE_DATA", "")) / "isoflop" / "isoflops.csv"
if not path.is_file():
    sys.exit(f"{path} is not there: set COUNTERPOISE_DATA to a folder that holds isoflop/isoflops.csv (see the top of this file).")
everything = pl.read_csv(path)

for experiment, (name, target) in TABLES.items():
    runs = everything.filter(pl.col("experiment") == experiment)
    audit = audit_isoflop(runs, size="params", data="tokens", loss="loss", compute="budget", target=target, resamples=RESAMPLES)
    print(f"{name}\n{audit.summary()}")
    if PICTURES is not None:
        audit.plot().savefig(PICTURES / f"plan-{name.lower().replace(' ', '-')}.svg")

    # The law is as good as its fit: what would other losses have planned?
    for loss in ("squared", "huber"):
        for scale in ("linear", "log"):
            law = ChinchillaRegressor(loss=loss, target=scale).fit(runs.select("params", "tokens"), runs["loss"])
            print(
                f"{loss:>8}, {scale:<6} alpha {law.alpha_:.3f}, beta {law.beta_:.3f}, D {law.surface_.optimal(target).D:.3g}, {law.status_}"
            )
    print()
