"""Length, energy and fields: closed forms, convergence, and the inequality that both share."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from analytic import HALF_PLANE, SPHERE_RADIUS, SURFACE, SURFACES, AffineDecoder, Analytic, Surface, parabola_length
from hypothesis import given, settings
from hypothesis import strategies as st
from test_metric import metrics
from torch import Tensor, nn

from lgi.metric import Metric, PullbackMetric, curve_energy, curve_length, metric_fields, slerp
from lgi.spline import CubicBSpline


def line(start: list[float], end: list[float], n_control: int = 4) -> CubicBSpline:
    return CubicBSpline.line(*(torch.tensor(p, dtype=torch.float64) for p in (start, end)), n_control)


def random_splines(n: int, n_control: int, surface: Surface, seed: int = 0) -> CubicBSpline:
    return CubicBSpline(surface.sample(n * n_control, seed).reshape(n, n_control, 2))


def smooth_splines(n: int, n_control: int, surface: Surface) -> CubicBSpline:
    """Bent lines: far from stopping anywhere, where the speed is not smooth."""
    low, high = torch.tensor(surface.low, dtype=torch.float64), torch.tensor(surface.high, dtype=torch.float64)
    span = high - low
    line = CubicBSpline.line(low + 0.1 * span, high - 0.1 * span, n_control)
    bend = torch.randn(n, n_control, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return CubicBSpline(line.control_points + 0.01 * span * bend)


def relative(a: Tensor, b: Tensor | float) -> float:
    b = torch.as_tensor(b, dtype=torch.float64)
    return float(((a - b) / b).abs().max())


# ---- lengths in closed form, 256 nodes, 1e-8 ----


@pytest.mark.parametrize("n_control", [4, 5, 11])
@pytest.mark.parametrize(
    ("name", "start", "end", "expected"),
    [
        # A circle of latitude and a meridian of the paraboloid by hand, the others geodesics of a known distance.
        ("sphere", [0.9, -1.0], [0.9, 1.0], 2 * SPHERE_RADIUS * math.sin(0.9)),
        ("paraboloid", [0.0, 0.0], [0.6, 0.8], parabola_length(1.0)),
        ("cylinder", [-1.0, -2.0], [1.4, 1.5], None),
        ("swiss_roll", [1.5, -1.0], [9.0, -1.0], None),
        ("swiss_roll", [2.0, -1.0], [2.0, 1.0], None),
        ("sphere", [0.6, 0.3], [2.5, 0.3], None),
        ("plane", [-2.0, 1.0], [1.0, 2.0], None),
    ],
)
def test_lengths_of_lines(
    name: str, start: list[float], end: list[float], expected: float | None, n_control: int
) -> None:
    curve, distance = line(start, end, n_control), SURFACE[name].distance
    if expected is None:
        assert distance is not None
        expected = distance(*curve(torch.tensor([0.0, 1.0])))
    assert relative(curve_length(SURFACE[name].metric, curve), expected) <= 1e-10


def test_length_does_not_depend_on_the_parametrisation() -> None:
    metric, curve = SURFACE["paraboloid"].metric, smooth_splines(1, 4, SURFACE["paraboloid"])

    def slower(t: Tensor) -> Tensor:
        # Bernstein's polynomials at t (1 + t) / 2, differentiable in t as the cached basis is not.
        u = (t * (1 + t) / 2)[:, None]
        weights = torch.cat([(1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3], dim=1)
        return weights @ curve.control_points[0]

    assert relative(curve_length(metric, Analytic(slower)), curve_length(metric, curve)) <= 1e-8
    assert curve_energy(metric, Analytic(slower)) != curve_energy(metric, curve)


@pytest.mark.parametrize("surface", SURFACES, ids=lambda s: s.name)
def test_splines_with_knots_against_a_fine_polygon(surface: Surface) -> None:
    """Independent of all that is tested: chords of the embedded curve, extrapolated."""
    curve = smooth_splines(5, 9, surface)

    def chords(n: int) -> Tensor:
        points = surface.embed(curve(torch.linspace(0, 1, n + 1, dtype=torch.float64)))
        return torch.linalg.vector_norm(points.diff(dim=-2), dim=-1).sum(-1)

    coarse, fine = chords(6 * 2000), chords(6 * 4000)
    assert relative(curve_length(PullbackMetric(surface.embed), curve), fine + (fine - coarse) / 3) <= 1e-8


def test_convergence_is_faster_than_any_power() -> None:
    """Nodes on the knot spans; across the knots, where the third derivative jumps, it would stall near 1e-6."""
    metric, curve = SURFACE["torus"].metric, smooth_splines(4, 8, SURFACE["torus"])
    exact = curve_energy(metric, curve, 640)
    errors = [relative(curve_energy(metric, curve, 5 * n), exact) for n in (2, 4, 8, 16)]
    assert errors[1] < 0.05 * errors[0]
    assert errors[2] < 1e-3 * errors[1]
    assert errors[3] < 1e-11


def test_many_nodes_are_as_exact_as_few() -> None:
    """Spans of more than 64 nodes are cut into pieces, of equal numbers of nodes or not."""
    metric, curve = SURFACE["torus"].metric, smooth_splines(4, 4, SURFACE["torus"])
    exact = curve_length(metric, curve, 256)
    for n_t in (64, 97, 250, 257, 5000):
        assert relative(curve_length(metric, curve, n_t), exact) <= 1e-12


def test_energy_of_constant_and_of_linear_speed() -> None:
    decoder = AffineDecoder.random()
    metric, curve = PullbackMetric(decoder), line([0, 0], [1, 2])
    distance = decoder.distance(*curve(torch.tensor([0.0, 1.0])))
    assert relative(curve_energy(metric, curve), distance**2) <= 1e-13
    squared = Analytic(lambda t: (t**2)[:, None] * torch.tensor([1.0, 2.0], dtype=torch.float64))
    # |d(t^2)/dt|^2 = 4 t^2, whose integral is 4/3.
    assert relative(curve_length(metric, squared), distance) <= 1e-13
    assert relative(curve_energy(metric, squared), 4 / 3 * distance**2) <= 1e-13


# ---- properties ----


@settings(max_examples=60)
@given(st.integers(4, 12), st.integers(1, 60), st.integers(0, 1000), st.sampled_from(SURFACES))
def test_squared_length_never_exceeds_energy(n_control: int, n_t: int, seed: int, surface: Surface) -> None:
    metric, curve = PullbackMetric(surface.embed), random_splines(3, n_control, surface, seed)
    for any_curve in (curve, curve.control_points):
        length, energy = curve_length(metric, any_curve, n_t), curve_energy(metric, any_curve, n_t)
        assert (length**2 <= energy * (1 + 1e-14)).all()


@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,)])
def test_leading_dimensions(leading: tuple[int, ...]) -> None:
    points = SURFACE["sphere"].sample(math.prod(leading) * 5).reshape(*leading, 5, 2)
    for curve in (CubicBSpline(points), points):
        for measure in (curve_length, curve_energy):
            assert measure(SURFACE["sphere"].metric, curve).shape == leading


def test_float32_stays_float32() -> None:
    curve = CubicBSpline(SURFACE["sphere"].sample(6).float())
    length = curve_length(SURFACE["sphere"].metric, curve)
    assert length.dtype == torch.float32
    exact = curve_length(SURFACE["sphere"].metric, CubicBSpline(curve.control_points.double()))
    assert relative(length.double(), exact) <= 1e-6


# ---- paths of points ----


def test_path_of_points_is_the_sum_of_its_pieces() -> None:
    metric, points = SURFACE["sphere"].metric, SURFACE["sphere"].sample(2 * 6).reshape(2, 6, 2)
    pieces = CubicBSpline.line(points[:, :-1], points[:, 1:])
    assert relative(curve_length(metric, points, 500), curve_length(metric, pieces).sum(1)) <= 1e-10
    # Each piece takes a fifth of the time, at five times the speed.
    assert relative(curve_energy(metric, points, 500), 5 * curve_energy(metric, pieces).sum(1)) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spherical_interpolation(dtype: torch.dtype) -> None:
    start, end = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    t = torch.linspace(0, 1, 7, dtype=dtype)
    curve = slerp(start, end)
    assert curve(t).shape == curve.derivative(t).shape == (3, 4, 7, 5)
    assert curve(t).dtype == curve.derivative(t).dtype == dtype
    assert relative(curve(t)[..., 0, :], start) <= 1e-6
    assert relative(curve(t)[..., -1, :], end) <= 1e-6
    # Between points of one norm it is an arc of a circle, at constant speed.
    radius = torch.linalg.vector_norm(start, dim=-1, keepdim=True)
    other = radius * torch.nn.functional.normalize(end, dim=-1)
    arc = slerp(start, other)
    assert relative(torch.linalg.vector_norm(arc(t), dim=-1), radius.expand(3, 4, 7)) <= 1e-6
    angle = torch.acos((start * other).sum(-1) / radius[..., 0] ** 2)
    plane = PullbackMetric(lambda z: torch.cat([z, 0 * z], dim=1))
    assert relative(curve_length(plane, arc), radius[..., 0] * angle) <= 1e-5
    # Along a ray, the straight line.
    assert relative(slerp(start, 3 * start)(t), CubicBSpline.line(start, 3 * start)(t)) <= 1e-6
    with pytest.raises(ValueError, match="1 pairs are opposite"):
        slerp(start[:1, :2], torch.stack([end[0, 0], -2 * start[0, 1]])[None])
    for ends in ((start, 0 * start), (0 * start, start), (0 * start, 0 * start)):
        with pytest.raises(ValueError, match="origin"):
            slerp(*ends)
    with pytest.raises(ValueError, match=r"of one shape, dtype and device, got .* \(3, 4, 5\).* \(4, 5\)"):
        slerp(start, end[0])


def test_fewer_nodes_than_pieces_still_cover_all() -> None:
    points = torch.rand(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    length = torch.linalg.vector_norm(points.diff(dim=0), dim=-1).sum()
    assert relative(curve_length(SURFACE["plane"].metric, points, n_t=3), length) <= 1e-12


def test_path_gradients() -> None:
    points = SURFACE["torus"].sample(5).requires_grad_()
    metric = SURFACE["torus"].metric
    assert torch.autograd.gradcheck(partial(curve_energy, metric, n_t=16), (points,))


# ---- gradient of the energy ----


@pytest.mark.parametrize("make", [lambda: metrics()["eq4"], lambda: SURFACE["torus"].metric, lambda: HALF_PLANE.metric])
def test_energy_gradient(make: Callable[[], Metric]) -> None:
    metric = make()
    points = (0.3 * torch.randn(3, 7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).exp()
    leaf = points.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(curve_energy(metric, CubicBSpline(leaf), 40).sum(), leaf)
    h = 1e-5
    for i, j in ((0, 0), (2, 1), (6, 1)):
        step = torch.zeros_like(points)
        step[:, i, j] = h
        plus, minus = (curve_energy(metric, CubicBSpline(points + s), 40) for s in (step, -step))
        assert (gradient[:, i, j] - (plus - minus) / (2 * h)).abs().max() <= 1e-6 * gradient.abs().max()


def test_inference_mode_changes_nothing() -> None:
    metric, points = SURFACE["torus"].metric, SURFACE["torus"].sample(5)
    expected = curve_energy(metric, CubicBSpline(points), 16)
    with torch.inference_mode():
        made_here = CubicBSpline(points.clone())
        for curve in (made_here, CubicBSpline(points)):
            assert torch.equal(curve_energy(SURFACE["torus"].metric, curve, 16), expected)
    assert torch.equal(curve_energy(metric, made_here, 16), expected)


# ---- fields ----


def test_fields_of_a_torus() -> None:
    surface = SURFACE["torus"]
    axes = [torch.linspace(-3, 3, 7, dtype=torch.float64), torch.linspace(-1, 1, 4, dtype=torch.float64)]
    fields = metric_fields(SURFACE["torus"].metric, axes, batch_size=5)
    M = surface.tensor(torch.stack(torch.meshgrid(*axes, indexing="ij"), -1))
    values = torch.linalg.eigvalsh(M)
    assert fields.log_volume.shape == fields.log_condition.shape == (7, 4)
    assert (fields.eigenvalues - values).abs().max() <= 1e-12
    assert (M @ fields.eigenvectors - fields.eigenvectors * fields.eigenvalues[..., None, :]).abs().max() <= 1e-12
    assert (fields.log_volume - torch.linalg.det(M).log() / 2).abs().max() <= 1e-12
    assert (fields.log_condition - (values[..., 1] / values[..., 0]).log10()).abs().max() <= 1e-12
    # The first index belongs to the first axis: along the tube the volume changes, around the axis it does not.
    assert fields.log_volume.std(0).min() > 0.1
    assert fields.log_volume.std(1).max() <= 1e-12
    assert all(torch.equal(a, b) for a, b in zip(fields.axes, axes, strict=True))


def test_fields_agree_with_the_methods_in_three_dimensions() -> None:
    decoder = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6))
    metric, axes = PullbackMetric(decoder), [torch.linspace(-1, 1, n) for n in (3, 4, 5)]
    fields = metric_fields(metric, axes)
    z = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    assert fields.log_volume.shape == (3, 4, 5)
    assert fields.eigenvectors.dtype == torch.float32
    assert not fields.eigenvalues.requires_grad
    np.testing.assert_allclose(fields.log_volume, metric.log_volume(z), rtol=1e-5)
    np.testing.assert_allclose(fields.log_condition, metric.log_condition(z), rtol=1e-5)
    np.testing.assert_allclose(fields.eigenvalues, metric.eigh(z)[0], rtol=1e-5)


# ---- errors ----


def test_wrong_curves() -> None:
    metric = SURFACE["sphere"].metric
    curve = line([1, 0], [2, 0])
    for measure in (curve_length, curve_energy):
        for n_t in (0, 10.5, "10", None):
            with pytest.raises(ValueError, match=rf"integer of at least 1, got n_t = {n_t}"):
                measure(metric, curve, n_t=n_t)
        for wrong in (SURFACE["sphere"].embed, None):
            with pytest.raises(TypeError, match=r"expected a metric, such as lgi.PullbackMetric\(generator\), got a"):
                measure(wrong, curve)
        for points in (curve.control_points.numpy(), [[1.0, 0.0], [2.0, 0.0]], 0.5):
            with pytest.raises(TypeError, match=r"expected a curve.*lgi.CubicBSpline.*got a (ndarray|list|float)"):
                measure(metric, points)
    for points in (torch.zeros(2), torch.zeros(1, 2), torch.zeros(3, 2, dtype=torch.int64)):
        with pytest.raises(ValueError, match="path of floating-point points"):
            curve_length(metric, points)
    with pytest.raises(ValueError, match=r"z itself is not finite"):
        curve_length(metric, torch.tensor([[1.0, 0.0], [torch.nan, 0.0]]))


def test_wrong_axes() -> None:
    mixed = [torch.zeros(3), torch.zeros(3, dtype=torch.float64)]
    for axes in ([], [torch.zeros(2, 2), torch.zeros(3)], [[0, 1], [0, 1]], [np.zeros(3)] * 2, mixed):
        with pytest.raises(ValueError, match=r"one-dimensional axes of one dtype, got .*: use torch.linspace"):
            metric_fields(SURFACE["sphere"].metric, axes)
    with pytest.raises(ValueError, match=r"use z.float\(\)"):
        metric_fields(SURFACE["sphere"].metric, [torch.arange(3)] * 2)
    with pytest.raises(TypeError, match="expected a metric"):
        metric_fields(SURFACE["sphere"].embed, [torch.zeros(3)] * 2)
    metric = SURFACE["sphere"].metric
    metric.tensor(torch.ones(2))
    with pytest.raises(ValueError, match=r"\(\.\.\., 2\), got shape"):
        metric_fields(metric, [torch.linspace(0, 1, 3)] * 3)
