"""The geodesic equation: closed forms, round trips, what happens when there is no solution."""

import math

import pytest
import torch
from analytic import HALF_PLANE, SURFACE, AffineDecoder, Analytic, half_plane_distance

from lgi.metric import PullbackMetric, curve_length
from lgi.solver import geodesic_residual, solve_geodesic_ode
from lgi.spline import CubicBSpline

T = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)


def meridian(power):
    """``(1, exp(t^power))`` in the half plane: a geodesic, of constant speed if power is 1."""
    return Analytic(lambda t: torch.stack([torch.ones_like(t), (t**power).exp()], dim=-1))


def test_residual_of_a_geodesic_is_zero():
    assert geodesic_residual(HALF_PLANE.metric, meridian(1), T).max() < 1e-13


def test_residual_of_an_accelerated_geodesic_is_its_relative_acceleration():
    # Speed 2 t: it grows by 2 per unit of t, which is 1 / t of itself.
    torch.testing.assert_close(geodesic_residual(HALF_PLANE.metric, meridian(2), T), 1 / T)


def test_residual_of_a_circle_of_latitude_is_its_geodesic_curvature():
    polar, azimuth = 0.7, 1.3
    start = torch.tensor([polar, 0.0], dtype=torch.float64)
    line = CubicBSpline.line(start, start + torch.tensor([0.0, azimuth], dtype=torch.float64))
    # Geodesic curvature cot(polar) / R times speed R sin(polar) azimuth.
    expected = torch.full_like(T, math.cos(polar) * azimuth)
    torch.testing.assert_close(geodesic_residual(SURFACE["sphere"].metric, line, T), expected)


def test_residual_does_not_depend_on_coordinates_or_scale():
    curve = CubicBSpline(torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    embed = SURFACE["paraboloid"].embed
    A = torch.tensor([[2.0, 1.0], [0.0, 0.5]], dtype=torch.float64)
    plain = geodesic_residual(PullbackMetric(embed), curve, T)
    other = CubicBSpline(curve.control_points @ A)
    inverse = torch.linalg.inv(A)
    changed = geodesic_residual(PullbackMetric(lambda z: 7 * embed(z @ inverse)), other, T)
    assert plain.shape == (3, 19)
    torch.testing.assert_close(plain, changed)


def test_affine_decoder():
    decoder = AffineDecoder.random(dtype=torch.float32)
    metric = PullbackMetric(decoder)
    start, end = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    line = CubicBSpline.line(start, end)
    with torch.inference_mode():
        assert geodesic_residual(metric, line, T.float()).max() < 1e-4
    solution = solve_geodesic_ode(metric, start, end)
    assert solution.success.all()
    torch.testing.assert_close(solution.curve(T), line(T), rtol=1e-4, atol=1e-4)


def test_boundary_value_problem_of_the_half_plane():
    start = torch.tensor([[[0.0, 1.0]], [[1.0, 0.5]]], dtype=torch.float64)
    end = torch.tensor([[[1.5, 1.2]], [[0.0, 2.0]]], dtype=torch.float64)
    metric = HALF_PLANE.metric
    solution = solve_geodesic_ode(metric, start, end, tolerance=1e-8)
    assert solution.success.shape == solution.residual.shape == solution.message.shape == (2, 1)
    assert solution.success.all()
    assert (solution.n_evaluations > solution.n_nodes).all()
    length = curve_length(metric, solution.curve, 512)
    torch.testing.assert_close(length, half_plane_distance(start, end), rtol=1e-9, atol=0)
    assert geodesic_residual(metric, solution.curve, T).max() < 1e-4
    # From the solution on, hardly any work is left.
    again = solve_geodesic_ode(metric, start, end, initial=solution.curve, n_nodes=200, tolerance=1e-6)
    assert (again.n_nodes == 200).all()


def test_failure_is_reported():
    metric = HALF_PLANE.metric
    start, end = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([3.0, 1.0], dtype=torch.float64)
    solution = solve_geodesic_ode(metric, start, end, tolerance=1e-9, max_nodes=20)
    assert not solution.success
    assert "nodes" in str(solution.message)
    assert solution.residual > 1e-9


def test_bad_input():
    metric = SURFACE["sphere"].metric
    z = torch.ones(2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"one shape.*\(2, 2\).*\(2,\)"):
        solve_geodesic_ode(metric, z, z[0])
    with pytest.raises(ValueError, match="floating-point"):
        solve_geodesic_ode(metric, z.long(), z.long())
