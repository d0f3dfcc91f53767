"""Draw the terminal picture of the README from a finished study: python docs/make_picture.py runs/demo docs/images/study.svg"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

from rich.console import Console

from counterpoise import Study
from counterpoise.cli._console import ConsoleWatcher


def main(folder: str, target: str) -> None:
    study = Study.open(folder)
    console = Console(record=True, width=104, force_terminal=True, color_system="truecolor", file=io.StringIO())
    watcher = ConsoleWatcher(console, animate=False)
    watcher.data(study.problem, study.diagnosis)
    watcher.plan(study.plan)
    watcher.finished(study)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    # Without its fonts from a network: any monospaced one will do.
    svg = re.sub(r"@font-face \{.*?\}", "", console.export_svg(title=study.command), flags=re.DOTALL)
    Path(target).write_text(svg)


if __name__ == "__main__":
    main(*sys.argv[1:])
