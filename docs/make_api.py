"""API pages, made from the docstrings: ``python docs/make_api.py [FOLDER]`` (default docs/api; needs the extra [docs])."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from pathlib import Path

import pdoc
import pdoc.render

import counterpoise


def main(folder: Path) -> None:
    rooms = [f"counterpoise.{module.name}" for module in pkgutil.iter_modules(counterpoise.__path__) if not module.name.startswith("_")]
    for name in ["counterpoise", *rooms]:
        room = importlib.import_module(name)
        # Public names are imported when they are first used, and pdoc documents what is there.
        for public in room.__all__:
            setattr(room, public, getattr(room, public))
    pdoc.render.configure(docformat="numpy", math=True)
    pdoc.pdoc("counterpoise", *rooms, output_directory=folder)
    print(folder / "counterpoise.html")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "api")
