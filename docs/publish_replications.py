"""Publish what ``counterpoise replicate`` wrote: records into the package (``counterpoise papers`` shows them), figures and the table into
the repository. Quick runs are refused.

    python docs/publish_replications.py runs/replications
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from counterpoise.replications import Replication, papers
from counterpoise.replications._table import replications_page

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "src" / "counterpoise" / "_papers" / "records"
FIGURES = ROOT / "docs" / "replications"


def main(folder: Path) -> int:
    for paper in papers():
        record = folder / f"{paper.slug}.json"
        if not record.is_file():
            continue
        if Replication.from_json(record.read_text("utf-8")).quick:
            print(f"{record} is a quick run: not published", file=sys.stderr)
            return 2
        for target, path in ((RECORDS, record), (FIGURES, folder / f"{paper.slug}.svg")):
            target.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                shutil.copy(path, target / path.name)
    records = {path.stem: Replication.from_json(path.read_text("utf-8")) for path in sorted(RECORDS.glob("*.json"))}
    (ROOT / "REPLICATIONS.md").write_text(replications_page(records, figures="docs/replications/"), encoding="utf-8")
    print(f"REPLICATIONS.md: {len(records)} papers")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
