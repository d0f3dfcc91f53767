"""What is in a text: lexicons that say how concrete its words are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._concreteness import ConcretenessLexicon as ConcretenessLexicon

__getattr__, __dir__, __all__ = attach(__name__, {"ConcretenessLexicon": "_concreteness"})
