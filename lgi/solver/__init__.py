"""Shorter curves between latent points: the search, its certificate, and the geodesic equation (section 2.1)."""

from lgi.solver.certificate import Certificate, certify
from lgi.solver.equation import GeodesicOde, OdeCurve, geodesic_residual, solve_geodesic_ode
from lgi.solver.result import ShortenHistory, ShortenResult, load_result
from lgi.solver.settings import SolverSettings
from lgi.solver.shortening import shorten

__all__ = [
    "Certificate",
    "GeodesicOde",
    "OdeCurve",
    "ShortenHistory",
    "ShortenResult",
    "SolverSettings",
    "certify",
    "geodesic_residual",
    "load_result",
    "shorten",
    "solve_geodesic_ode",
]
