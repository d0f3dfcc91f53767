"""What the papers said, tested again: one module per paper, ``run(seeds=..., quick=..., data_dir=...) -> Replication`` in each.

The module of a paper has the name of its slug, with underscores (``igl-bench`` is ``counterpoise.replications.igl_bench``). At its top
stand the claims in our own words and the criteria, fixed before the first run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._catalog import Paper as Paper
    from ._catalog import papers as papers
    from ._run import replicate as replicate
    from ._types import Claim as Claim
    from ._types import Finding as Finding
    from ._types import Replication as Replication
    from ._work import Work as Work

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Claim": "_types",
        "Finding": "_types",
        "Paper": "_catalog",
        "Replication": "_types",
        "Work": "_work",
        "papers": "_catalog",
        "replicate": "_run",
    },
)
