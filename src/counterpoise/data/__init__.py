"""What is drawn: samplers, resamplers and sample weights, in the types of PyTorch's loaders, imbalanced-learn and scikit-learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from counterpoise._lazy import attach

if TYPE_CHECKING:
    from ._adasyn import ADASYN as ADASYN
    from ._balanced_classes import BalancedClassSampler as BalancedClassSampler
    from ._borderline import BorderlineSMOTE as BorderlineSMOTE
    from ._concrete_negatives import ConcreteNegatives as ConcreteNegatives
    from ._concrete_negatives import Negative as Negative
    from ._coreset import AdamHistory as AdamHistory
    from ._coreset import MiniBatchCoreset as MiniBatchCoreset
    from ._coreset_sampler import CoresetBatchSampler as CoresetBatchSampler
    from ._facility_location import Selection as Selection
    from ._facility_location import facility_location as facility_location
    from ._feature_smote import FeatureSMOTE as FeatureSMOTE
    from ._indexed import IndexedDataset as IndexedDataset
    from ._interleave import InterleaveDataset as InterleaveDataset
    from ._protected import ProtectedAttributeEncoder as ProtectedAttributeEncoder
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
    from ._sources import allocate_budget as allocate_budget
    from ._sources import small_sources as small_sources
    from ._temperature import TemperatureBatchSampler as TemperatureBatchSampler
    from ._temperature import TemperatureSampler as TemperatureSampler
    from ._temperature import temperature_probabilities as temperature_probabilities
    from ._two_views import RegressionTwoViews as RegressionTwoViews
    from ._weighter import LikelihoodWeighter as LikelihoodWeighter

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "ADASYN": "_adasyn",
        "AdamHistory": "_coreset",
        "BalancedClassSampler": "_balanced_classes",
        "BorderlineSMOTE": "_borderline",
        "ConcreteNegatives": "_concrete_negatives",
        "CoresetBatchSampler": "_coreset_sampler",
        "FeatureSMOTE": "_feature_smote",
        "IndexedDataset": "_indexed",
        "InterleaveDataset": "_interleave",
        "LikelihoodWeighter": "_weighter",
        "MiniBatchCoreset": "_coreset",
        "Negative": "_concrete_negatives",
        "ProtectedAttributeEncoder": "_protected",
        "RandomOverSampler": "_resampling",
        "RandomUnderSampler": "_resampling",
        "RegressionTwoViews": "_two_views",
        "SMOGN": "_smogn",
        "SMOTE": "_smote",
        "SMOTEENN": "_smote_cleaned",
        "SMOTEN": "_smoten",
        "SMOTENC": "_smotenc",
        "SMOTER": "_smoter",
        "SMOTETomek": "_smote_cleaned",
        "Selection": "_facility_location",
        "TargetRange": "_relevance",
        "TemperatureBatchSampler": "_temperature",
        "TemperatureSampler": "_temperature",
        "temperature_probabilities": "_temperature",
        "allocate_budget": "_sources",
        "facility_location": "_facility_location",
        "small_sources": "_sources",
    },
)
