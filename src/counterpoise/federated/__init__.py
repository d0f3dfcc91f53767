"""Training over clients that keep their data: one-bit votes, encrypted, and a server that only ever learns their sum (Flower, Paillier)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._codec import SlotCodec as SlotCodec
    from ._mod import edgedetect_mod as edgedetect_mod
    from ._paillier import EncryptedVotes as EncryptedVotes
    from ._paillier import PaillierAggregator as PaillierAggregator
    from ._paillier import PaillierKeyHolder as PaillierKeyHolder
    from ._strategy import EdgeDetectStrategy as EdgeDetectStrategy

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "EdgeDetectStrategy": "_strategy",
        "EncryptedVotes": "_paillier",
        "PaillierAggregator": "_paillier",
        "PaillierKeyHolder": "_paillier",
        "SlotCodec": "_codec",
        "edgedetect_mod": "_mod",
    },
)
