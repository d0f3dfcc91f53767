"""The commands. Each turns its options into one call of the library; nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click
import typer
import typer.core

from counterpoise._errors import CounterpoiseError, check_choice, check_range

from . import _options

if TYPE_CHECKING:
    import polars as pl

__all__ = ["main"]

# The help is plain text: without this, typer escapes its square brackets for rich although rich does not draw it.
typer.core.HAS_RICH = False

app = typer.Typer(
    name="counterpoise",
    help="Which cure for imbalance helps on your data? Measured, with intervals - and said plainly when none does.",
    epilog="""\b
Examples:
  counterpoise study digits8 --out runs/digits8
  counterpoise study loans.csv --target default --group sex --cost fp=1,fn=20
  counterpoise predict runs/digits8 new-rows.csv --out predictions.csv

'counterpoise study --help' shows every option.""",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        show_default=False,
        help="A table (csv, tsv, parquet, arrow, jsonl), sklearn:NAME, openml:ID, hf:NAME, or the name of a data set.",
    ),
]
Target = Annotated[str | None, typer.Option("--target", metavar="COL", help="The column to predict. Named data sets know theirs.")]
Positive = Annotated[str | None, typer.Option("--positive", metavar="LABEL", help="The class that matters; by default the rarer one.")]
Task = Annotated[str | None, typer.Option("--task", metavar="TASK", help="classification or regression, where the target leaves it open.")]
Group = Annotated[
    list[str] | None,
    typer.Option("--group", metavar="COL", help="Report results for each group of this column as well. Repeatable, or a,b."),
]
Cluster = Annotated[
    str | None, typer.Option("--cluster", metavar="COL", help="Rows with the same value (patient, customer) stay in one fold.")
]
Time = Annotated[str | None, typer.Option("--time", metavar="COL", help="Always train on the past and test on the future of this column.")]
Weight = Annotated[str | None, typer.Option("--weight", metavar="COL", help="Weight of each row in training.")]
TextColumn = Annotated[list[str] | None, typer.Option("--text", metavar="COL", help="Use this column as text. Repeatable, or a,b.")]
Drop = Annotated[list[str] | None, typer.Option("--drop", metavar="COL", help="Leave this column out. Repeatable, or a,b.")]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="COL", help="Use this column even if it looks like an id or a leak. Repeatable, or a,b."),
]
NoHeader = Annotated[bool, typer.Option("--no-header", help="The first line is data; columns are called x0, x1, ...")]
MergeRare = Annotated[bool, typer.Option("--merge-rare", help="Join classes with fewer rows than folds into one.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from counterpoise import __version__

        typer.echo(f"counterpoise {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and stop.")] = False,
) -> None:
    pass


@app.command(
    short_help="Find out which remedy helps on DATA.",
    epilog="""\b
Examples:
  counterpoise study mammography --budget 10m --out runs/mammography
  counterpoise study sales.parquet --target price --learners trees --metric mae
  counterpoise study loans.csv --target default --group sex --cluster customer_id --cost fp=1,fn=20

Stopped, or killed? The same command with --resume goes on where it was. Started in a second terminal as well, it shares the work.""",
)
def study(
    data: Data,
    target: Target = None,
    positive: Positive = None,
    task: Task = None,
    test: Annotated[str | None, typer.Option("--test", metavar="FILE", help="A table of its own for the final check.")] = None,
    group: Group = None,
    cluster: Cluster = None,
    time: Time = None,
    weight: Weight = None,
    cost: Annotated[
        str | None,
        typer.Option("--cost", metavar="fp=1,fn=20", help="Cost of a false alarm and of a missed positive; decisions minimize it."),
    ] = None,
    text: TextColumn = None,
    drop: Drop = None,
    keep: Keep = None,
    no_header: NoHeader = False,
    learners: Annotated[
        str | None,
        typer.Option("--learners", metavar="NAME,...", help="Models to train: linear, trees, mlp, forest. [default: linear,trees,mlp]"),
    ] = None,
    remedies: Annotated[str, typer.Option("--remedies", metavar="all|NAME,...", help="Remedies to compare.")] = "all",
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="What is optimized: balanced_accuracy, f1, accuracy, cost, auroc or log_loss; mae for regression.",
        ),
    ] = "auto",
    rope: Annotated[
        str | None, typer.Option("--rope", metavar="X", help="Differences below X do not matter: 0.01, or decisions=0.01,ranking=0.005.")
    ] = None,
    folds: Annotated[int, typer.Option("--folds", min=2, max=100, metavar="K", help="Parts the rows are split into.")] = 5,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, max=1000, metavar="R", help="How often the split is drawn anew, at most.")
    ] = 5,
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="TIME", help="Plan for this much time: 90s, 10m, 2h. Without it, runs are reproducible to the digit."
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, max=4096, metavar="N", help="Processes at work; by default one per core.")
    ] = None,
    engine: Annotated[str, typer.Option("--engine", metavar="NAME", help="Where cells are computed: local, ray or dask.")] = "local",
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, metavar="N", help="Start of every random stream.")] = 0,
    merge_rare: MergeRare = False,
    no_placebo: Annotated[bool, typer.Option("--no-placebo", help="Leave out the arm that should never help.")] = False,
    learning_curve: Annotated[
        bool, typer.Option("--learning-curve", help="Also fit on parts of the training rows, and say what more rows would bring.")
    ] = False,
    accept_worse: Annotated[
        list[str] | None,
        typer.Option(
            "--accept-worse", metavar="QUESTION", help="Recommend a remedy even if it harms this question, e.g. probabilities. Repeatable."
        ),
    ] = None,
    reopen_holdout: Annotated[
        bool, typer.Option("--reopen-holdout", help="Look at the locked rows a second time; the report will always say so.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Folder of the study.  [default: runs/<name of the data>]")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the study in this folder.")] = False,
) -> None:
    """Compare remedies on DATA under one protocol, and say which one helps."""
    _check_task(task)
    check_choice("--engine", engine, ("local", "ray", "dask"))
    arguments: dict[str, Any] = {
        "target": target,
        "positive": positive,
        "task": task or "auto",
        "test": test,
        "groups": group or [],
        "cluster": cluster,
        "time": time,
        "weight": weight,
        "cost": None if cost is None else _options.parse_cost(cost),
        "text": text or [],
        "drop": drop or [],
        "keep": keep or [],
        "header": not no_header,
        "learners": _options.parse_names("--learners", "linear,trees,mlp" if learners is None else learners),
        "remedies": _options.parse_remedies(remedies),
        "metric": metric,
        "rope": None if rope is None else _options.parse_rope(rope),
        "folds": folds,
        "repeats": repeats,
        "budget": None if budget is None else _options.parse_budget(budget),
        "jobs": jobs,
        "engine": engine,
        "seed": seed,
        "merge_rare": merge_rare,
        "placebo": not no_placebo,
        "learning_curve": learning_curve,
        "accept_worse": accept_worse or [],
        "reopen_holdout": reopen_holdout,
        "out": _options.default_folder(data) if out is None else out,
        "resume": resume,
        "command": shlex.join(["counterpoise", *_arguments]),
    }

    import counterpoise

    from ._console import ConsoleWatcher

    try:
        with ConsoleWatcher() as watcher:
            counterpoise.study(data, **arguments, watcher=watcher)
    except KeyboardInterrupt:
        _say(f"stopped. Finished cells are kept in {arguments['out']}; the same command with --resume continues.")
        raise typer.Exit(130) from None


@app.command(
    short_help="Show what dominates the training signal of DATA.",
    epilog="""\b
Examples:
  counterpoise diagnose breast-cancer
  counterpoise diagnose loans.csv --target default --group sex --out loans.html""",
)
def diagnose(
    data: Data,
    target: Target = None,
    positive: Positive = None,
    task: Task = None,
    group: Group = None,
    cluster: Cluster = None,
    time: Time = None,
    weight: Weight = None,
    text: TextColumn = None,
    drop: Drop = None,
    keep: Keep = None,
    no_header: NoHeader = False,
    merge_rare: MergeRare = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A new .html file: whose step of the network it is, and why, as a page.")
    ] = None,
) -> None:
    """Show what dominates the training signal of DATA: which classes, ranges or groups take the step of a linear model and of a small
    network, and who is served worst. Writes nothing but the page of --out."""
    if out is not None:
        _check_new_file(out, ".html")
    _check_task(task)

    from counterpoise.studies._diagnosis import diagnose_network, diagnose_problem
    from counterpoise.studies._problem import build_problem

    from ._console import ConsoleWatcher

    problem = build_problem(
        data,
        target=target,
        positive=positive,
        task=task or "auto",
        groups=group or [],
        cluster=cluster,
        time=time,
        weight=weight,
        text=text or [],
        drop=drop or [],
        keep=keep or [],
        header=not no_header,
        merge_rare=merge_rare,
    )
    watcher = ConsoleWatcher()
    watcher.data(problem, diagnose_problem(problem))
    found = diagnose_network(problem)
    watcher.console.print(found.summary(), markup=False, highlight=False)
    for column in problem.groups:
        watcher.console.print(f"\nBy {column}:", markup=False, highlight=False)
        watcher.console.print(diagnose_problem(problem, column).summary(), markup=False, highlight=False)
        watcher.console.print(diagnose_network(problem, column).summary(), markup=False, highlight=False)
    if out is not None:
        # After a tenth of the training the step still has a direction.
        about = f"{problem.name}, a small network after {found.steps[1]:,} of {found.steps[-1]:,} steps"
        out.write_text(found.diagnoses[1].to_html(about), encoding="utf-8")
        _say(f"wrote {out}: the network's step after {found.steps[1]:,} of {found.steps[-1]:,} steps.")


@app.command(
    short_help="Predict DATA with the model a study recommended.",
    epilog="""\b
Examples:
  counterpoise predict runs/loans new-loans.csv
  counterpoise predict runs/loans/model new-loans.parquet --out predictions.parquet""",
)
def predict(
    model: Annotated[
        Path,
        typer.Argument(metavar="MODEL", show_default=False, help="The folder of a study, or of a saved model. Only load what you trust."),
    ],
    data: Annotated[str, typer.Argument(metavar="DATA", show_default=False, help="A table with the columns the model was trained on.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A new .csv or .parquet file; without it, csv on standard output.")
    ] = None,
    no_header: NoHeader = False,
) -> None:
    """Predict the rows of DATA with the model a study recommended."""
    if out is not None:
        _check_new_file(out, ".csv", ".parquet")

    from counterpoise.datasets import Dataset, read_table
    from counterpoise.studies._saving import load_model

    fitted = load_model(model / "model" if (model / "model" / "model.json").is_file() else model)
    table = read_table(data, header=not no_header)
    _write(fitted.predict_frame(table.frame if isinstance(table, Dataset) else table), out)


@app.command(
    short_help="Write the report of a finished study anew.",
    epilog="""\b
Example:
  counterpoise report runs/loans""",
)
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", show_default=False, help="The folder of a study.")],
) -> None:
    """Write report.html of a study anew from its stored results; nothing is fitted."""
    import counterpoise

    path = folder / "report.html"
    counterpoise.Study.open(folder).report(path)
    typer.echo(str(path))


@app.command(
    short_help="Test the claims of papers again.",
    epilog="""\b
Examples:
  counterpoise replicate auroc-auprc --quick
  counterpoise replicate smote anyloss --out runs/replications
  counterpoise replicate --all --out runs/replications

Stopped, or killed? The same command goes on where it was. 'counterpoise papers' lists the papers.""",
)
def replicate(
    slugs: Annotated[list[str] | None, typer.Argument(metavar="[SLUG]...", show_default=False, help="Papers, by slug or number.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All papers whose re-test is built.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A smoke run with few seeds; its verdicts do not count.")] = False,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for records, figures and the table.")] = Path(
        "runs/replications"
    ),
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, max=4096, metavar="N", help="Processes at work; by default one per core.")
    ] = None,
) -> None:
    """Test the claims of papers again, on data that anybody can get. A claim that does not hold is a result, not an error."""
    from counterpoise._errors import InputError

    if every == bool(slugs):
        raise InputError("replicate: name papers, or --all for every one that is built. 'counterpoise papers' lists them.")

    from counterpoise import replications

    from ._console import show_replications

    started = out / "quick" if quick else out
    try:
        found, errors = replications.replicate(
            "all" if every else slugs or [], out=started, quick=quick, jobs=jobs or os.cpu_count() or 1, say=typer.echo
        )
    except KeyboardInterrupt:
        _say(f"stopped. Finished pieces are kept in {started}; the same command continues.")
        raise typer.Exit(130) from None
    show_replications(found)
    if found:
        typer.echo(f"Table, records and figures: {started / 'REPLICATIONS.md'}")
    if errors:
        raise InputError(f"{len(errors)} not run: " + "; ".join(str(error) for error in errors.values()))


@app.command(
    name="papers",
    short_help="List the papers: stage, status, verdict.",
    epilog="""\b
Examples:
  counterpoise papers
  counterpoise papers smote
  counterpoise papers loss imbalance""",
)
def list_papers(
    query: Annotated[list[str] | None, typer.Argument(metavar="[QUERY]...", show_default=False, help="Words that must occur.")] = None,
) -> None:
    """List the papers whose claims are tested again: where each method acts, whether the re-test is built, and what it found."""
    from counterpoise._errors import InputError
    from counterpoise.replications import papers

    from ._console import show_papers

    words = " ".join(query or [])
    found = papers(words)
    if not found:
        raise InputError(f"papers: nothing matches {words!r}; 'counterpoise papers' lists all.")
    show_papers(found)


@app.command(
    short_help="Plan a budget from a table of trainings.",
    epilog="""\b
Examples:
  counterpoise scaling runs.csv --size n_params --data tokens --loss eval_loss
  counterpoise scaling runs.csv --size N --data D --loss L --budget 3.8e25 --out plan.svg""",
)
def scaling(
    runs: Annotated[
        str, typer.Argument(metavar="RUNS", show_default=False, help="A table (csv, tsv, parquet, arrow, jsonl), one row per training.")
    ],
    size: Annotated[str, typer.Option("--size", metavar="COL", help="Column with the number of parameters.")] = "N",
    data: Annotated[str, typer.Option("--data", metavar="COL", help="Column with the tokens or examples trained on.")] = "D",
    loss: Annotated[str, typer.Option("--loss", metavar="COL", help="Column with the final loss.")] = "L",
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            metavar="C",
            help="Compute to plan for, FLOPs (6 times size times data). [default: the largest of the runs]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="A new .svg, .png or .pdf file for the figure.")] = None,
) -> None:
    """Fit a scaling law to a table of trainings, plan a budget with it, and say whether a plan made from one parabola per budget (IsoFLOP)
    would be another one, and why."""
    if out is not None:
        _check_new_file(out, ".svg", ".png", ".pdf")
    if budget is not None:
        check_range("--budget", budget, low=0.0, open_low=True)

    from counterpoise._errors import InputError
    from counterpoise.scaling import audit_isoflop

    from ._console import show_audit

    try:
        audit = audit_isoflop(runs, size=size, data=data, loss=loss, target=budget)
    except InputError as error:
        message = re.sub(r"^(size|data|loss): got ", r"--\1: got ", str(error))
        for hint, own in (("Use --no-header (header=False)", "Add a line of names"), ("use --no-header", "add a line of names")):
            message = message.replace(hint, own)
        raise InputError(message) from error
    show_audit(audit)
    if out is not None:
        audit.plot().savefig(out)
        _say(f"wrote {out}: runs, both fits, and where their plans go.")


def _check_task(task: str | None) -> None:
    if task is not None:
        check_choice("--task", task, ("classification", "regression"))


def _check_new_file(path: Path, *suffixes: str) -> None:
    """Before anything is computed: the suffix is known, the folder is there, and nothing would be overwritten."""
    from counterpoise._errors import InputError, StoreError

    if path.suffix.lower() not in suffixes:
        endings = " or ".join([", ".join(suffixes[:-1]), suffixes[-1]] if len(suffixes) > 1 else suffixes)
        raise InputError(f"--out: got {str(path)!r}; expected a name that ends in {endings}.")
    if path.exists():
        raise StoreError(f"--out: {path} exists already and is not overwritten; choose another name.")
    if not path.parent.is_dir():
        raise StoreError(f"--out: there is no folder {path.parent}; create it or choose another name.")


def _write(frame: pl.DataFrame, path: Path | None) -> None:
    if path is None:
        typer.echo(frame.write_csv(), nl=False)
    elif path.suffix.lower() == ".csv":
        frame.write_csv(path)
    else:
        frame.write_parquet(path)


# -- from the shell -----------------------------------------------------------------------------------------------------------------------

_arguments: list[str] = []  # what was typed, for the command that reproduces the study


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 2 input that cannot be used (one line on stderr), 1 an error of ours
    (one line; the traceback goes to a file), 130 stopped by Ctrl-C."""
    _arguments[:] = sys.argv[1:] if argv is None else argv
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run()


def _run() -> int:
    try:
        code = typer.main.get_command(app).main(args=list(_arguments), prog_name="counterpoise", standalone_mode=False)
    except CounterpoiseError as error:
        return _fail(str(error))
    except click.ClickException as error:
        return _fail(_usage_message(error))
    except (KeyboardInterrupt, typer.Abort):
        _say("stopped.")
        return 130
    except Exception as error:
        return _internal_error(error)
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    _say(f"error: {message}")
    return 2


def _usage_message(error: click.ClickException) -> str:
    context = getattr(error, "ctx", None)
    hint = f" See '{context.command_path} --help'." if context else ""
    return error.format_message() + hint


def _internal_error(error: Exception) -> int:
    with tempfile.NamedTemporaryFile("w", prefix="counterpoise-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write(f"{shlex.join(['counterpoise', *_arguments])}\n\n{''.join(traceback.format_exception(error))}")
    _say(f"internal error: {type(error).__name__}: {error} (full traceback in {file.name})")
    return 1


def _show_warning(message: Warning | str, *place: Any, **more: Any) -> None:
    _say(f"warning: {message}")


def _say(message: str) -> None:
    """One line on standard error, whatever the message holds."""
    typer.echo(f"counterpoise: {' '.join(message.split())}", err=True)
