"""Inner products of the gradients of groups of examples, from the autograd graph that their losses left, in one backward pass.

``_graph`` finds the parameters and the nodes that use them, ``_uses`` says what each of these nodes keeps and adds, ``_layouts`` which rows
belong to which example, ``_sums`` forms the products, and ``_gramian`` runs the pass.
"""

from __future__ import annotations

from ._gramian import Ghost, ghost_gramian

__all__ = ["Ghost", "ghost_gramian"]
