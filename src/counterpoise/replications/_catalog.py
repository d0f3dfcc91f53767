"""Which papers have a re-test, and what the published ones found."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from counterpoise._errors import InputError, bad_input
from counterpoise._papers import Paper, papers, published_record

from ._types import Replication

__all__ = ["Paper", "is_built", "module_of", "papers", "published"]


def module_name(paper: Paper) -> str:
    return f"{__package__}.{paper.slug.replace('-', '_')}"


def is_built(paper: Paper) -> bool:
    """Whether there is a re-test to run."""
    return importlib.util.find_spec(module_name(paper)) is not None


def module_of(paper: Paper) -> ModuleType:
    """The module that re-tests the paper."""
    if not is_built(paper):
        built = ", ".join(other.slug for other in papers() if is_built(other))
        bad_input("paper", paper.slug, f"a paper whose re-test is built: {built}")
    return importlib.import_module(module_name(paper))


def published(paper: Paper) -> Replication | None:
    """The result that came with this version of the library, or None."""
    record = published_record(paper)
    if record is None:
        return None
    try:
        return Replication.from_json(record)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The record of {paper.slug!r} in counterpoise is damaged ({type(error).__name__}); install counterpoise anew."
        ) from error
