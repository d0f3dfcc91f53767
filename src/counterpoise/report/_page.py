"""The page of a study, and the templates of all pages: one HTML file that needs nothing else, neither a network nor JavaScript."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from . import _figures, _format
from ._view import StudyView

if TYPE_CHECKING:
    from jinja2 import Environment, Template

__all__ = ["study_page"]

# What the chip of each verdict shows beside its word, and the class that colors it.
GLYPHS = {"helps": "\u25b2", "harms": "\u25bc", "no difference": "\u25a0", "identical": "\u25a0", "undecided": "\u25cb", "failed": "\u00d7"}


def study_page(view: StudyView) -> str:
    """The report of a study as a self-contained HTML document.

    Styles and figures (SVG) are part of the page; it follows the reader's light or dark theme and prints. The same view gives the same
    text, byte for byte.

    >>> from counterpoise.report import StudyView
    >>> page = study_page(StudyView("Fraud", "counterpoise study fraud.csv", "Keep the baseline.", (), ()))
    >>> page.startswith("<!DOCTYPE html>"), "Keep the baseline." in page
    (True, True)
    """
    return template("study.html.j2").render(
        view=view,
        forests=[(panel, _figures.forest(panel)) for panel in view.questions if panel.rows],
        threshold_figure=_figures.thresholds(view.threshold) if view.threshold else "",
        alarms_figure=_figures.alarms(view.threshold.per_100_alarms) if view.threshold else "",
        calibration_figure=_figures.calibration(view.calibration) if view.calibration and view.calibration.curves else "",
        sizes_differ=view.calibration is not None and _figures.sizes_differ(view.calibration),
        growth_figure=_figures.growth(view.growth) if view.growth else "",
        shares_figure=_figures.shares(view.diagnosis) if view.diagnosis else "",
        digits={panel.question: _format.digits_for(panel.rope) for panel in view.questions},
    )


@cache
def template(name: str) -> Template:
    """A page of the folder ``templates``."""
    return _environment().get_template(name)


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("counterpoise.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "number": _format.number,
        "amount": _format.amount,
        "plain": _format.plain,
        "signed": _format.signed,
        "interval": _format.interval,
        "percent": _format.percent,
        "seconds": _format.seconds,
        "times": _format.times,
        "words": _format.words,
        "drawing": Markup,  # figures are our own markup, with every word in them escaped
        "glyph": _glyph,
        "kind": lambda verdict: _word(verdict).replace(" ", "-"),
    }
    return environment


def _word(verdict: str) -> str:
    """The word of the vocabulary that a verdict such as "harms (stopped early)" begins with."""
    return next((word for word in GLYPHS if verdict.startswith(word)), "undecided")


def _glyph(verdict: str) -> str:
    return GLYPHS[_word(verdict)]
