"""What is kept: fine-tuned models of one base merged into one, as functions of state dictionaries."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._merge import merge as merge
    from ._positioning import MergeResult as MergeResult
    from ._positioning import SelfPositioning as SelfPositioning
    from ._slerp import nested_slerp as nested_slerp
    from ._slerp import slerp as slerp
    from ._task_vectors import TaskVectorReport as TaskVectorReport
    from ._task_vectors import task_vector as task_vector
    from ._task_vectors import task_vector_report as task_vector_report

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "MergeResult": "_positioning",
        "SelfPositioning": "_positioning",
        "TaskVectorReport": "_task_vectors",
        "merge": "_merge",
        "nested_slerp": "_slerp",
        "slerp": "_slerp",
        "task_vector": "_task_vectors",
        "task_vector_report": "_task_vectors",
    },
)
