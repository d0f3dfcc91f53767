"""Run the re-tests of papers, and write what was found: a record and a figure per paper, and one table of all."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from counterpoise._errors import CounterpoiseError, StoreError
from counterpoise._papers import Paper, paper_of, papers

from ._catalog import is_built, module_of
from ._table import replications_page
from ._types import Replication
from ._work import Work

__all__ = ["replicate", "run_paper"]

LIBRARIES = ("counterpoise", "torch", "numpy", "scipy", "scikit-learn", "imbalanced-learn")
PAGE = "REPLICATIONS.md"


def replicate(
    slugs: Iterable[str] | str,
    *,
    out: str | Path | None = None,
    quick: bool = False,
    seeds: Sequence[int] | None = None,
    data_dir: str | Path | None = None,
    jobs: int = 1,
    say: Callable[[str], None] | None = None,
) -> tuple[list[Replication], dict[str, CounterpoiseError]]:
    """Re-test the claims of papers.

    Args:
        slugs: of the papers, or ``"all"`` for those whose re-test is built.
        out: folder for ``<slug>.json``, ``<slug>.svg`` and ``REPLICATIONS.md``; finished pieces of work are kept there too, so that the
            same call goes on where a stopped one was. None writes nothing.
        quick: fewer seeds and smaller problems: shows that it runs; its verdicts do not count.
        seeds: in place of the paper's own.
        data_dir: folder of real data sets, in place of ``$COUNTERPOISE_DATA``.
        jobs: processes at work.
        say: called with lines of progress.

    Returns:
        The replications, and the error of every paper that could not be run here (a data set that is missing, say).

    Raises:
        InputError: an unknown paper, or one whose re-test is not built.
        StoreError: ``out`` cannot be written.

    >>> found, errors = replicate("auroc-auprc", quick=True)
    >>> found[0].quick, errors
    (True, {})
    """
    tell = say or (lambda line: None)
    wanted = (
        [paper for paper in papers() if is_built(paper)] if slugs == "all" else _papers_of([slugs] if isinstance(slugs, str) else slugs)
    )
    for paper in wanted:
        module_of(paper)  # what is not built is said before anything runs
    folder = _writable(out)
    found, errors = [], {}
    for count, paper in enumerate(wanted, 1):
        tell(f"[{count} of {len(wanted)}] {paper.slug}: {paper.title}")
        try:
            result = run_paper(paper, folder=folder, quick=quick, seeds=seeds, data_dir=data_dir, jobs=jobs, say=tell)
        except StoreError:
            raise
        except CounterpoiseError as error:
            errors[paper.slug] = error
            tell(f"  not run: {error}")
            continue
        found.append(result)
        if folder is not None:
            write(result, folder)
            write_page(folder)
    return found, errors


def run_paper(
    paper: Paper,
    *,
    folder: Path | None = None,
    quick: bool = False,
    seeds: Sequence[int] | None = None,
    data_dir: str | Path | None = None,
    jobs: int = 1,
    say: Callable[[str], None] | None = None,
) -> Replication:
    """Run one paper's module; time and environment are added to what it returns."""
    store = None if folder is None else folder / "work" / f"{paper.slug}.jsonl"
    started = time.perf_counter()
    work = Work(store, jobs, say)
    result: Replication = module_of(paper).run(seeds=None if seeds is None else tuple(seeds), quick=quick, data_dir=data_dir, work=work)
    seconds = max(work.seconds, time.perf_counter() - started)
    return replace(result, seconds=round(seconds, 2), environment=environment(), quick=quick)


def environment() -> dict[str, str]:
    """What the numbers may depend on."""
    found = {name: version(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"} | found


def write(result: Replication, folder: Path) -> None:
    """``<slug>.json`` and ``<slug>.svg``, each complete or not there."""
    _write_text(folder / f"{result.slug}.json", result.to_json())
    if result.figure is None:
        return
    path = folder / f"{result.slug}.svg"
    try:
        # A fixed salt and no date: the same numbers give the same file.
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": result.slug, "svg.fonttype": "none"}):
            result.figure.savefig(path, format="svg", metadata={"Date": None})
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}); choose another --out.") from error


def write_page(folder: Path) -> None:
    """``REPLICATIONS.md`` of all records in the folder."""
    records = {}
    for paper in papers():
        record = folder / f"{paper.slug}.json"
        if record.is_file():
            records[paper.slug] = Replication.from_json(record.read_text("utf-8"))
    _write_text(folder / PAGE, replications_page(records, figures=""))


def _write_text(path: Path, text: str) -> None:
    beside = path.with_suffix(path.suffix + ".new")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error.strerror}); choose another --out.") from error


def _papers_of(slugs: Iterable[str]) -> list[Paper]:
    return list(dict.fromkeys(paper_of(slug) for slug in slugs))


def _writable(out: str | Path | None) -> Path | None:
    if out is None:
        return None
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(f"--out: {folder} cannot be written ({error.strerror}); choose another folder.") from error
    return folder
