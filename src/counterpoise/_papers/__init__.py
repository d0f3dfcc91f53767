"""The papers behind the methods: what each one is, and what was found when its claims were tested again (records in the package).

The re-tests themselves are ``counterpoise.replications``; the report of a study only needs to know which paper an arm comes from.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from counterpoise._errors import bad_input

__all__ = ["Paper", "paper_of", "papers", "published_record", "published_verdict"]


@dataclass(frozen=True)
class Paper:
    """One paper of the catalog.

    Attributes:
        number: in the catalog, 1 to 42.
        slug: its name on the command line.
        title: as published.
        stage: where its method acts: data, loss, gradient, update, model, weights, decision; or diagnosis.
        gives: what is in the library because of it, in a few words.
        arxiv: its identifier, or an empty string.
    """

    number: int
    slug: str
    title: str
    stage: str
    gives: str
    arxiv: str = ""

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""

    def matches(self, query: str) -> bool:
        """Whether every word of ``query`` occurs in what is known of the paper."""
        text = f"{self.number:02d} {self.slug} {self.title} {self.stage} {self.gives} {self.arxiv}".lower()
        return all(word in text for word in query.lower().split())


@cache
def _all() -> tuple[Paper, ...]:
    content = tomllib.loads(files(__package__).joinpath("papers.toml").read_text("utf-8"))
    return tuple(Paper(**entry) for entry in content["paper"])


def papers(query: str = "") -> list[Paper]:
    """The papers that match ``query`` (all without one), by number. A query that is the number of a paper finds that paper alone.

    >>> [paper.slug for paper in papers("smote")]
    ['cogate-lstm', 'smote']
    >>> [paper.slug for paper in papers("23")]
    ['smote']
    """
    if query.strip().isdecimal():
        numbered = [paper for paper in _all() if paper.number == int(query)]
        if numbered:
            return numbered
    return [paper for paper in _all() if paper.matches(query)]


def paper_of(name: str) -> Paper:
    """The paper of a slug or a number."""
    known = {paper.slug: paper for paper in _all()}
    known |= {number: paper for paper in _all() for number in (str(paper.number), f"{paper.number:02d}")}
    if name not in known:
        close = difflib.get_close_matches(name, [paper.slug for paper in _all()], n=3)
        suggestion = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
        bad_input("paper", name, "the slug or number of a paper", f"{suggestion}'counterpoise papers' lists them.")
    return known[name]


def published_record(paper: Paper) -> str | None:
    """The record (JSON) of the re-test that came with this version of the library, or None."""
    record = files(__package__).joinpath("records", f"{paper.slug}.json")
    return record.read_text("utf-8") if record.is_file() else None


def published_verdict(paper: Paper) -> str:
    """The verdict of that record in a few words; "not run yet" without one."""
    record = published_record(paper)
    return "not run yet" if record is None else str(json.loads(record)["verdict"])
