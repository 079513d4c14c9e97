"""Estimators that read retrained models and nothing else: no checkpoint, no gradient.

Their mathematics are functions of masks bool [M, n_train] and outputs [M, n_query], for banks of
one's own: `fit_datamodel` (Ilyas et al. 2022) and `empirical_influence` (Feldman & Zhang 2020).
What they return was fitted to these outputs: judge it, and calibrate it, on other retrainings.
"""

from attribution.estimators.resampling.datamodel import Datamodel, fit_datamodel
from attribution.estimators.resampling.empirical import empirical_influence

__all__ = ["Datamodel", "empirical_influence", "fit_datamodel"]
