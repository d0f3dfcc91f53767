"""What is drawn: samplers, resamplers and sample weights, in the types of PyTorch's loaders, imbalanced-learn and scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._adasyn import ADASYN as ADASYN
    from ._balanced_classes import BalancedClassSampler as BalancedClassSampler
    from ._borderline import BorderlineSMOTE as BorderlineSMOTE
    from ._feature_smote import FeatureSMOTE as FeatureSMOTE
    from ._indexed import IndexedDataset as IndexedDataset
    from ._relevance import TargetRange as TargetRange
    from ._resampling import RandomOverSampler as RandomOverSampler
    from ._resampling import RandomUnderSampler as RandomUnderSampler
    from ._smogn import SMOGN as SMOGN
    from ._smote import SMOTE as SMOTE
    from ._smote_cleaned import SMOTEENN as SMOTEENN
    from ._smote_cleaned import SMOTETomek as SMOTETomek
    from ._smoten import SMOTEN as SMOTEN
    from ._smotenc import SMOTENC as SMOTENC
    from ._smoter import SMOTER as SMOTER
    from ._weighter import LikelihoodWeighter as LikelihoodWeighter

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ADASYN": "_adasyn",
        "BalancedClassSampler": "_balanced_classes",
        "BorderlineSMOTE": "_borderline",
        "FeatureSMOTE": "_feature_smote",
        "IndexedDataset": "_indexed",
        "LikelihoodWeighter": "_weighter",
        "RandomOverSampler": "_resampling",
        "RandomUnderSampler": "_resampling",
        "SMOGN": "_smogn",
        "SMOTE": "_smote",
        "SMOTEENN": "_smote_cleaned",
        "SMOTEN": "_smoten",
        "SMOTENC": "_smotenc",
        "SMOTER": "_smoter",
        "SMOTETomek": "_smote_cleaned",
        "TargetRange": "_relevance",
    },
)
