"""Geometry of latent spaces: pull-back metrics, shorter curves, and how far straight lines are from shortest.

The reproduction package of Michelis & Becker, "On Linear Interpolation in the Latent Space of Deep Generative Models",
ICLR 2021 workshop on geometrical and topological representation learning.
"""

from lgi.geodesic import SolverSettings, shorten
from lgi.metric import PullbackMetric, curve_energy, curve_length
from lgi.spline import CubicBSpline
from lgi.zoo import load_codes, load_model

__version__ = "0.1.0"

__all__ = [
    "CubicBSpline",
    "PullbackMetric",
    "SolverSettings",
    "curve_energy",
    "curve_length",
    "load_codes",
    "load_model",
    "shorten",
]
