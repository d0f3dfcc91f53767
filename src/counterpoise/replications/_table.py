"""``REPLICATIONS.md``: every paper with its verdict, and under it what was found, claim by claim."""

from __future__ import annotations

from collections.abc import Mapping

from counterpoise._papers import Paper, papers

from ._catalog import is_built
from ._types import Finding, Replication

__all__ = ["replications_page"]

HEAD = """# Replications

What papers claim, tested again on data that anybody can get. The criterion of every claim was fixed before the run and is printed beside
it. *Replicated*, *not replicated* and *undecided* are results of equal standing; what has no criterion is *reported*.

    counterpoise replicate --all --out DIR      # all of it; one paper: counterpoise replicate SLUG
    counterpoise papers                         # this table in the terminal
"""


def replications_page(records: Mapping[str, Replication], *, figures: str) -> str:
    """Markdown for the records (slug -> replication); ``figures`` is the folder of the figures as seen from the page, "" or with "/"."""
    table = ["| no. | paper | stage | verdict |", "|---|---|---|---|"]
    sections = []
    for paper in papers():
        record = records.get(paper.slug)
        name = f"[{paper.slug}](#{paper.number:02d}-{paper.slug})" if record else paper.slug
        verdict = (f"**{record.verdict}**" + (" (quick run: does not count)" if record.quick else "")) if record else _status(paper)
        table.append(f"| {paper.number:02d} | {name}: {paper.title} | {paper.stage} | {verdict} |")
        if record:
            sections.append(_section(paper, record, figures))
    return "\n".join([HEAD, *table, "", *sections])


def _status(paper: Paper) -> str:
    return "not run yet" if is_built(paper) else "not built yet"


def _section(paper: Paper, record: Replication, figures: str) -> str:
    source = f"[arXiv {paper.arxiv}]({paper.url}). " if paper.arxiv else ""
    seeds = f"{len(record.seeds)} seeds, " if len(record.seeds) > 1 else ""
    lines = [f"## {paper.number:02d} {paper.slug}", "", f"{paper.title}. {source}", ""]
    if record.quick:
        lines += ["*A quick run: its verdicts do not count.*", ""]
    lines += [f"![{paper.slug}]({figures}{paper.slug}.svg)", "", "| claim | criterion | verdict | what was found |", "|---|---|---|---|"]
    for claim in record.claims:
        own = [finding for finding in record.findings if finding.claim == claim.key]
        verdict = f"**{record.verdict_of(claim.key)}**" if claim.criterion else "reported"
        found = " ".join(_said(finding, several=len(own) > 1) for finding in own)
        lines.append(f"| {_cell(claim.text)} | {_cell(claim.criterion or '-')} | {verdict} | {_cell(found)} |")
    lines.append("")
    lines += [f"- {note}" for note in record.notes]
    lines += ["", f"{seeds}{record.seconds:.0f} s; `counterpoise replicate {paper.slug}`", ""]
    return "\n".join(lines)


def _said(finding: Finding, *, several: bool) -> str:
    text = finding.text if finding.text.endswith((".", "!", "?")) else finding.text + "."
    return f"({finding.verdict}) {text}" if several and finding.verdict != "reported" else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
