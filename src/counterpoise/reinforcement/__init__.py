"""Language models with verifiable rewards: trainers of TRL whose loss is balanced, rewards and curricula."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._bapo_trainer import BAPOConfig as BAPOConfig
    from ._bapo_trainer import BAPOTrainer as BAPOTrainer
    from ._curriculum import CapabilityProbe as CapabilityProbe
    from ._curriculum import Profile as Profile
    from ._curriculum import select_curriculum as select_curriculum
    from ._curriculum import tier_by_difficulty as tier_by_difficulty
    from ._sandbox import IsolationError as IsolationError
    from ._sandbox import RunResult as RunResult
    from ._sandbox import Sandbox as Sandbox
    from ._tiered_reward import TieredReward as TieredReward
    from ._tiers import PORTFOLIO as PORTFOLIO
    from ._tiers import TieredCase as TieredCase
    from ._tiers import TieredSuite as TieredSuite
    from ._tiers import TierSchedule as TierSchedule

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "BAPOConfig": "_bapo_trainer",
        "BAPOTrainer": "_bapo_trainer",
        "CapabilityProbe": "_curriculum",
        "IsolationError": "_sandbox",
        "PORTFOLIO": "_tiers",
        "Profile": "_curriculum",
        "RunResult": "_sandbox",
        "Sandbox": "_sandbox",
        "TierSchedule": "_tiers",
        "TieredCase": "_tiers",
        "TieredReward": "_tiered_reward",
        "TieredSuite": "_tiers",
        "select_curriculum": "_curriculum",
        "tier_by_difficulty": "_curriculum",
    },
)
