"""How a loss grows: scaling laws fitted to tables of (size, data, loss), the budget splits they imply, and audits of IsoFLOP plans.

``ChinchillaRegressor`` fits a law to runs, ``audit_isoflop`` asks whether a plan made from parabolas is to be trusted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._audit import IsoFlopAudit as IsoFlopAudit
    from ._audit import audit_isoflop as audit_isoflop
    from ._parabola import ParabolaFit as ParabolaFit
    from ._parabola import isoflop_parabola as isoflop_parabola
    from ._parabola import parabola_bias as parabola_bias
    from ._regressor import ChinchillaRegressor as ChinchillaRegressor
    from ._regressor import SeparableLaw as SeparableLaw
    from ._regressor import SurfaceDraws as SurfaceDraws
    from ._surface import Allocation as Allocation
    from ._surface import LossSurface as LossSurface
    from ._surface import sample_isoflop as sample_isoflop

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "Allocation": "_surface",
        "ChinchillaRegressor": "_regressor",
        "IsoFlopAudit": "_audit",
        "LossSurface": "_surface",
        "ParabolaFit": "_parabola",
        "SeparableLaw": "_regressor",
        "SurfaceDraws": "_regressor",
        "audit_isoflop": "_audit",
        "isoflop_parabola": "_parabola",
        "parabola_bias": "_parabola",
        "sample_isoflop": "_surface",
    },
)
