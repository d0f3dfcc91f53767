"""The documentation says what is so: its Python runs, its commands are accepted, its lists are complete, its links lead somewhere."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import textwrap
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main

import counterpoise
from counterpoise import datasets
from counterpoise.cli import _app
from counterpoise.datasets import _load
from counterpoise.studies._learners import as_learner
from counterpoise.studies._plan import _METRICS
from counterpoise.studies._remedies import as_remedies

DOCS = Path(__file__).parents[1] / "docs"
GUIDE = sorted((DOCS / "guide").glob("*.md"))
PAGES = sorted(path for path in DOCS.rglob("*.md") if "api" not in path.relative_to(DOCS).parts)
GROUP = typer.main.get_command(_app.app)
# Rooms whose guide is called as they are.
SAME_NAME = (
    "losses", "decisions", "datasets", "data", "metrics", "schedules", "nn", "gradients", "optim", "weights", "scaling", "reinforcement",
    "federated",
)  # fmt: skip
SHELL = ("|", ">", "&&", ";", "&")  # where a command ends

by_name = pytest.mark.parametrize("page", GUIDE, ids=lambda path: path.stem)


@dataclass(frozen=True)
class Block:
    """A fenced block. After its language may stand ``needs=NAME``: it needs that data set, and it stands alone."""

    page: Path
    line: int
    language: str
    text: str
    needs: str = ""

    def __str__(self) -> str:
        return f"{self.page.stem}-{self.line}"

    def run(self, namespace: dict[str, Any]) -> None:
        # Blank lines before it, so that a traceback shows the line of the page.
        exec(compile("\n" * self.line + self.text, str(self.page), "exec"), namespace)


def blocks(page: Path, *languages: str) -> list[Block]:
    source = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^ *```(\w*)(?: needs=(\S+))?\n(.*?)^ *```$", source, flags=re.MULTILINE | re.DOTALL):
        language, needs, text = match.groups(default="")
        found.append(Block(page, source.count("\n", 0, match.start()) + 1, language, textwrap.dedent(text), needs))
    # A block whose first line is written in another way would be passed over in silence.
    assert 2 * len(found) == len(re.findall(r"^\s*```", source, flags=re.MULTILINE)), f"{page.name}: a fence that is not understood"
    return [block for block in found if block.language in languages]


def commands() -> list[tuple[str, list[str]]]:
    """(where, arguments) of every counterpoise command in a block for a terminal."""
    found = []
    for page in [DOCS.parent / "README.md", DOCS / "README.md", *GUIDE]:
        for block in blocks(page, "console", "bash", "sh", ""):
            for line in block.text.replace("\\\n", " ").splitlines():
                if line.removeprefix("$ ").startswith("counterpoise "):
                    words = shlex.split(line.removeprefix("$ "), comments=True)
                    found.append((f"{block}: {line}", list(takewhile(lambda word: word not in SHELL, words[1:]))))
    return found


@pytest.fixture
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def close_figures() -> None:
    from matplotlib import pyplot

    pyplot.close("all")


# -- Python -------------------------------------------------------------------------------------------------------------------------------


@by_name
def test_the_python_of_a_page_runs_from_top_to_bottom(page, in_empty_folder) -> None:
    found = [block for block in blocks(page, "python") if not block.needs]
    assert found, "a guide without a line of Python?"
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in found:
        block.run(namespace)
    close_figures()


@pytest.mark.parametrize("block", [block for page in GUIDE for block in blocks(page, "python") if block.needs], ids=str)
def test_a_block_that_needs_a_data_set_runs_where_it_is(block, in_empty_folder) -> None:
    assert block.needs in datasets.names()
    table = _load._tables()[block.needs]
    folder = os.environ.get(_load.DATA_VARIABLE)
    if not folder or not (Path(folder) / table["file"]).is_file():
        pytest.skip(f"needs the data set {block.needs!r}: set {_load.DATA_VARIABLE} to a folder that holds {table['file']}")
    block.run({"__name__": "__main__"})


# -- commands -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [pytest.param(arguments, id=where) for where, arguments in commands()])
def test_a_command_is_accepted(arguments, monkeypatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(counterpoise, "study", lambda data, **options: asked.append(options))
    name, *rest = arguments
    command = GROUP.commands[name]
    if "--help" in rest:
        assert rest == ["--help"]
        return
    # What cannot be parsed raises a click.UsageError here, before anything is run.
    context = command.make_context(name, rest)
    if name != "study":
        return
    # The study's own function checks the values of its options, and then calls counterpoise.study, which is not there.
    command.invoke(context)
    (options,) = asked
    for learner in options["learners"]:
        as_learner(learner)
    as_remedies(options["remedies"])
    assert options["metric"] in {"auto", "mae", *_METRICS}


def test_there_are_commands_to_check() -> None:
    assert {arguments[0] for _, arguments in commands()} == set(GROUP.commands)


def test_a_command_that_does_not_exist_is_found_out() -> None:
    with pytest.raises(click.UsageError, match="No such option"):
        GROUP.commands["study"].make_context("study", ["loans.csv", "--taget", "default"])


# -- completeness -------------------------------------------------------------------------------------------------------------------------


def test_every_option_of_a_study_is_explained() -> None:
    text = (DOCS / "guide" / "study.md").read_text(encoding="utf-8")
    options = {option for parameter in GROUP.commands["study"].params for option in parameter.opts if option.startswith("--")}
    assert len(options) > 25
    assert not sorted(option for option in options - {"--help"} if not re.search(rf"{option}\b", text))


@pytest.mark.parametrize(
    ("room", "guides"),
    [("studies", "study"), ("diagnostics", "diagnose examine"), ("nn.init", "nn"), *((x, x) for x in SAME_NAME)],
)
def test_every_public_name_of_a_room_is_in_its_guide(room, guides) -> None:
    text = "\n".join((DOCS / "guide" / f"{guide}.md").read_text(encoding="utf-8") for guide in guides.split())
    names = importlib.import_module(f"counterpoise.{room}").__all__
    assert not [name for name in names if not re.search(rf"\b{name}\b", text)]


def test_every_built_in_arm_and_learner_is_in_the_guide() -> None:
    from counterpoise.studies import _learners, _remedies

    text = (DOCS / "guide" / "study.md").read_text(encoding="utf-8")
    names = [remedy.name for remedy in _remedies.BUILT_IN] + list(_learners.BUILT_IN)
    assert not [name for name in names if f"`{name}`" not in text]


# -- the list of data sets ---------------------------------------------------------------------------------------------------------------


def listed_sets() -> dict[str, list[str]]:
    """name -> [rows, task, target, groups, download] as the guide has them."""
    text = (DOCS / "guide" / "datasets.md").read_text(encoding="utf-8").partition("## Names")[2].partition("## Licenses")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")]
    names = [row[0].strip("`") for row in rows]
    assert len(set(names)) == len(names)
    return {name: row[1:] for name, row in zip(names, rows, strict=True)}


def as_listed(table: datasets.Dataset) -> list[str]:
    labels = [str(value).strip() for value in table.frame[table.target].drop_nulls().to_list()]
    if table.task == "binary":
        task = f"2 classes, {labels.count(str(table.positive)):,} `{table.positive}`"
    else:
        task = "regression" if table.task == "regression" else f"{len(set(labels))} classes"
    groups = ", ".join(f"`{name}`" for name in table.groups) or "–"
    return [f"{table.frame.height:,}", task, f"`{table.target}`", groups]


def test_the_list_has_every_data_set_and_no_other() -> None:
    assert list(listed_sets()) == datasets.names()


def test_the_list_says_what_can_be_downloaded() -> None:
    tables = _load._tables()
    said = {name: row[4] for name, row in listed_sets().items()}
    assert said == {name: "built in" if name not in tables else "yes" if "remote" in tables[name] else "no" for name in datasets.names()}


@pytest.mark.parametrize("name", sorted(_load.EMBEDDED))
def test_the_list_is_right_about_a_built_in_set(name) -> None:
    assert listed_sets()[name][:4] == as_listed(datasets.load(name))


@pytest.mark.parametrize("name", sorted(_load._tables()))
def test_the_list_is_right_about_a_set_in_a_file(name, data_folder) -> None:
    if not (data_folder / _load._tables()[name]["file"]).is_file():
        pytest.skip(f"the file of {name!r} is not in the folder {_load.DATA_VARIABLE} names")
    assert listed_sets()[name][:4] == as_listed(datasets.load(name))


def test_every_license_in_the_registry_is_in_the_guide() -> None:
    text = (DOCS / "guide" / "datasets.md").read_text(encoding="utf-8").partition("## Licenses")[2]
    for name, table in _load._tables().items():
        license = _load._registry()["source"][table["source"]]["license"]
        family = name.partition("/")[0]
        assert any(license in line and f"`{family}" in line for line in text.splitlines()), name


# -- links --------------------------------------------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_relative_links_lead_somewhere(page) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{target}: no such file"
        assert not anchor or anchor in anchors(there), f"{target}: no such heading"


def test_the_index_names_every_guide() -> None:
    text = (DOCS / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in GUIDE if f"(guide/{page.name})" not in text]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_no_page_shows_a_path_of_someones_machine(page) -> None:
    assert not re.search(r"(?<![\w.])/(work|tmp|home|Users|root)/", page.read_text(encoding="utf-8"))
