"""Geometry of latent spaces: pull-back metrics, shorter curves, and how far straight lines are from shortest.

The reproduction package of Michelis & Becker, "On Linear Interpolation in the Latent Space of Deep Generative Models",
ICLR 2021 workshop on geometrical and topological representation learning.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lgi.inversion import invert
from lgi.metric import PullbackMetric, curve_energy, curve_length
from lgi.solver import SolverSettings, certify, shorten
from lgi.spline import CubicBSpline
from lgi.study import load_study, merge_studies
from lgi.zoo import load_codes, load_model

if TYPE_CHECKING:
    from lgi.improvement import compare_models, worst_case_improvement

__version__ = "0.1.0"

__all__ = [
    "CubicBSpline",
    "PullbackMetric",
    "SolverSettings",
    "certify",
    "compare_models",
    "curve_energy",
    "curve_length",
    "invert",
    "load_codes",
    "load_model",
    "load_study",
    "merge_studies",
    "shorten",
    "worst_case_improvement",
]


def __getattr__(name: str) -> Any:
    # Not above: `python -m lgi.improvement` would find the module imported already, and warn.
    if name in ("improvement", "compare_models", "worst_case_improvement"):
        improvement = importlib.import_module("lgi.improvement")
        return improvement if name == "improvement" else getattr(improvement, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
