"""Certificates of curves from anywhere: closed forms of residual and second derivative, shapes, bad input."""

import math

import pytest
import torch
from analytic import HALF_PLANE, SPHERE_RADIUS, SURFACE, AffineDecoder, Analytic, sphere_embed
from test_solver_equation import meridian

import lgi
from lgi.metric import PullbackMetric
from lgi.solver import SolverSettings, certify, shorten
from lgi.spline import CubicBSpline

F64 = torch.float64


def sphere():
    """The unit sphere, by polar angle and azimuth."""
    return PullbackMetric(lambda z: sphere_embed(z) / SPHERE_RADIUS, latent_dim=2)


def equator(length, power=1):
    """Arc of the equator of the unit sphere; of even speed if the power is 1."""
    return Analytic(lambda t: torch.stack([torch.full_like(t, math.pi / 2), length * t**power], dim=-1))


def great_circle(n, length=2.0, tilt=0.8):
    """Points on a great circle that crosses the equator."""
    angle = length * torch.linspace(0, 1, n, dtype=F64)
    x, y, z = angle.cos(), angle.sin() * math.cos(tilt), angle.sin() * math.sin(tilt)
    return torch.stack([z.acos(), torch.atan2(y, x)], dim=-1)


@pytest.mark.parametrize("length", [1.0, 3.0, 3.3, 5.0])
def test_great_circles_are_stationary_and_minima_up_to_half_way_round(length):
    found = certify(sphere(), equator(length))
    assert abs(found.length.item() - length) < 1e-12
    assert found.length_error < 1e-12
    assert found.residual < 1e-12
    assert found.stationary
    assert abs(found.curvature.item() - (1 - (length / math.pi) ** 2)) < 1e-5
    assert found.minimum.item() == (length < math.pi)
    assert ("no minimum" in found.message.item()) == (length > math.pi)


def test_straight_lines_of_a_flat_space_are_minima():
    decoder = AffineDecoder.random()
    start, end = torch.zeros(2, 3, 2, dtype=F64), torch.ones(2, 3, 2, dtype=F64) * torch.arange(1.0, 4.0)[:, None]
    found = certify(PullbackMetric(decoder), CubicBSpline.line(start, end))
    for name in ("length", "length_error", "residual", "stationary", "curvature", "minimum", "n_nodes", "message"):
        assert getattr(found, name).shape == (2, 3), name
    torch.testing.assert_close(found.length, decoder.distance(start, end))
    assert found.residual.max() < 1e-12
    assert found.minimum.all()
    torch.testing.assert_close(found.curvature, torch.ones(2, 3, dtype=F64))
    assert found.n_control == 4


def test_residual_of_a_spline_is_how_much_lower_the_energy_could_be():
    """In a flat space the energy is quadratic: ``E - E_least = residual**2 E``."""
    metric = PullbackMetric(lambda z: torch.cat([z, z[:, :1]], dim=-1), latent_dim=2)
    control = torch.randn(4, 6, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = certify(metric, CubicBSpline(control))
    energy = lgi.curve_energy(metric, CubicBSpline(control))
    least = lgi.curve_length(metric, CubicBSpline.line(control[:, 0], control[:, -1])).square()
    torch.testing.assert_close(found.residual.square(), 1 - least / energy)
    assert not found.stationary.any()
    assert not found.minimum.any()


@pytest.mark.parametrize("power", [1, 2])
def test_uneven_speed_is_told_from_a_detour(power):
    """``1 - L^2 / E`` with ``E = 4 / 3 L^2`` for speed ``2 t``."""
    found = certify(sphere(), equator(1.0, power))
    assert found.residual.item() == pytest.approx(0.5 * (power - 1), abs=1e-6)
    assert found.speed_variation.item() == pytest.approx(math.sqrt(1 / 3) * (power - 1), abs=1e-6)
    assert ("constant speed" in found.message.item()) == (power == 2)
    detour = certify(sphere(), torch.tensor([[0.7, 0.0], [0.7, 2.0]], dtype=F64))
    assert detour.residual > 0.3
    assert detour.message.item().startswith("not stationary (")


def test_polylines_converge_with_the_square_of_their_pieces():
    residuals = [certify(sphere(), great_circle(n)).residual.item() for n in (33, 65, 1025)]
    assert residuals[0] > 3 * residuals[1] > 9 * residuals[2]
    assert residuals[2] < 1e-5
    assert certify(sphere(), great_circle(1025)).minimum
    assert abs(certify(sphere(), great_circle(1025)).length.item() - 2) < 1e-5


def test_a_result_has_the_certificate_of_the_search():
    surface = SURFACE["torus"]
    metric = surface.metric
    start, end = 0.6 * surface.sample(1, 0)[0], 0.6 * surface.sample(1, 1)[0]
    result = shorten(metric, start, end, SolverSettings(n_control=7, n_iterations=4))
    found = certify(metric, result.curve)
    torch.testing.assert_close(found.residual, result.residual, rtol=0.05, atol=1e-6)
    torch.testing.assert_close(found.length, result.length, rtol=1e-7, atol=0)
    assert found.n_control == result.n_control
    # Among more variations a curve is never nearer to stationary.
    assert certify(metric, result.curve, n_control=19).residual > found.residual


def test_a_metric_without_embedding_and_inference_mode():
    with torch.inference_mode():
        found = certify(HALF_PLANE.metric, meridian(1))
    assert abs(found.length.item() - 1) < 1e-12
    assert found.residual < 1e-9
    # Curvature -1: geodesics part, and all are shortest.
    assert found.minimum


def test_what_cannot_be_judged_is_told():
    metric = PullbackMetric(lambda z: 0 * z.repeat(1, 3) + 1, latent_dim=2)
    point = certify(metric, CubicBSpline.line(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)))
    assert point.length == 0
    assert point.minimum
    flat = PullbackMetric(lambda z: torch.cat([z, z], dim=-1), latent_dim=200)
    wide = certify(flat, CubicBSpline.line(torch.zeros(200, dtype=F64), torch.ones(200, dtype=F64)))
    assert wide.stationary
    assert wide.curvature.isnan()
    assert not wide.minimum
    assert "too much memory" in wide.message.item()
    still = certify(metric, CubicBSpline(torch.zeros(7, 2, dtype=F64)))
    assert still.length == 0
    assert still.minimum
    closed = certify(sphere(), equator(2 * math.pi))
    assert closed.stationary
    assert not closed.minimum


def test_no_curves():
    nothing = torch.zeros(3, 0, 2, dtype=F64)
    found = certify(sphere(), CubicBSpline.line(nothing, nothing))
    assert found.residual.shape == found.minimum.shape == found.message.shape == (3, 0)


def test_bad_curves():
    with pytest.raises(TypeError, match="expected a metric"):
        certify(lambda z: z, equator(1.0))
    with pytest.raises(TypeError, match=r"points \(\.\.\., n, d\), got a list"):
        certify(sphere(), [[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"points of the curve \(\.\.\., 2\)"):
        certify(sphere(), torch.zeros(5, 3, dtype=F64))
    for tolerance in (0, -1, math.nan):
        with pytest.raises(ValueError, match="positive tolerance"):
            certify(sphere(), equator(1.0), tolerance=tolerance)
    with pytest.raises(ValueError, match="at least 4"):
        certify(sphere(), equator(1.0), n_control=3)
    with pytest.raises(ValueError, match="whole number"):
        certify(sphere(), equator(1.0), n_control=4.5)
    broken = PullbackMetric(lambda z: torch.where(z > 0.5, torch.nan, z).repeat(1, 2), latent_dim=2)
    with pytest.raises(ValueError, match="not finite"):
        certify(broken, torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=F64))
