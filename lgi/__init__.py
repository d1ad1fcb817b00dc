"""Geometry of latent spaces: pull-back metrics, shorter curves, and how far straight lines are from shortest.

The reproduction package of Michelis & Becker, "On Linear Interpolation in the Latent Space of Deep Generative Models",
ICLR 2021 workshop on geometrical and topological representation learning.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lgi.collection import collect
from lgi.comparison import compare_models
from lgi.inversion import invert
from lgi.metric import PullbackMetric, curve_energy, curve_length, slerp
from lgi.solver import SolverSettings, certify, load_result, shorten
from lgi.spline import CubicBSpline
from lgi.studies import load_study, merge_studies
from lgi.zoo import load_codes, load_model

if TYPE_CHECKING:
    from lgi.algorithm1 import worst_case_improvement

__version__ = "0.1.0"

__all__ = [
    "CubicBSpline",
    "PullbackMetric",
    "SolverSettings",
    "certify",
    "collect",
    "compare_models",
    "curve_energy",
    "curve_length",
    "invert",
    "load_codes",
    "load_model",
    "load_result",
    "load_study",
    "merge_studies",
    "shorten",
    "slerp",
    "worst_case_improvement",
]


def __getattr__(name: str) -> Any:
    # Not above: `python -m lgi.algorithm1` would find the module imported already, and warn.
    if name in ("algorithm1", "worst_case_improvement"):
        algorithm1 = importlib.import_module("lgi.algorithm1")
        return algorithm1 if name == "algorithm1" else algorithm1.worst_case_improvement
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
