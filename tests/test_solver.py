"""Shorter curves: closed forms and rates, certificates, every kind of metric, bad input."""

import math
from time import perf_counter

import numpy as np
import pandas
import pytest
import torch
from analytic import HALF_PLANE, SURFACE, AffineDecoder
from benchmarks.walls import algorithm_1_pairs, generator
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lgi
from lgi.metric import ConformalMetric, PullbackMetric, curve_energy, curve_length
from lgi.solver import SolverSettings, certify, load_result, shorten, solve_geodesic_ode
from lgi.solver.methods import METHODS, chosen
from lgi.spline import CubicBSpline

EXACT = SolverSettings(length_tolerance=1e-12, tolerance=1e-7)


def random_decoder(d=2, n_values=30, dtype=torch.float64, seed=0, stochastic=False):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(d, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, n_values))
    net = net.to(dtype).requires_grad_(False)
    with torch.no_grad():
        net[0].weight *= 3
        net[2].weight *= 3
        net[4].weight *= 3

    def decode(z):
        # With the code itself among the values, the metric is nowhere degenerate.
        values = torch.cat([0.5 * z, net(z)], dim=-1)
        return (values, 0.2 + torch.sigmoid(values.flip(-1))) if stochastic else values

    return decode


def random_pairs(n, d=2, dtype=torch.float64, seed=3, far=1):
    """Pairs of draws of the prior, or of the first and a point so far on the way to the second."""
    start, end = torch.randn(2, n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return start, torch.lerp(start, end, far)


def relative(value, truth):
    return ((value - truth) / truth).abs().max().item()


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("surface", "metric"),
    [
        *((surface, surface.metric) for surface in (SURFACE["cylinder"], SURFACE["sphere"], SURFACE["swiss_roll"])),
        (HALF_PLANE, HALF_PLANE.metric),
        (HALF_PLANE, ConformalMetric(SURFACE["plane"].metric, lambda z: 1 / z[:, 1] ** 2)),
    ],
    ids=["cylinder", "sphere", "swiss_roll", "half_plane", "half_plane, conformal"],
)
def test_distances_in_closed_form(surface, metric):
    start, end = surface.sample(50, 0), surface.sample(50, 1)
    result = shorten(metric, start, end, EXACT)
    truth = surface.distance(start, end)
    assert relative(result.length, truth) < 1e-8
    # No curve is shorter than the shortest: the quadrature is better than the curves.
    assert ((result.length - truth) / truth).min() > -1e-12
    assert result.converged.all()
    assert result.n_control.max() <= 20


@pytest.mark.parametrize("name", ["torus", "paraboloid"])
def test_geodesics_of_surfaces_without_closed_form(name):
    surface = SURFACE[name]
    metric = surface.metric
    start, end = 0.6 * surface.sample(2, 0), 0.6 * surface.sample(2, 1)
    result = shorten(metric, start, end, EXACT)
    ode = solve_geodesic_ode(metric, start, end, initial=result.curve, tolerance=1e-10, max_nodes=10_000)
    assert ode.success.all()
    assert relative(result.length, curve_length(metric, ode.curve, 512)) < 1e-8
    assert result.improvement.min() > 1e-4


def test_length_converges_with_the_sixth_power_of_the_number_of_spans():
    surface = SURFACE["sphere"]
    metric = surface.metric
    start, end = surface.sample(50, 0), surface.sample(50, 1)
    truth = surface.distance(start, end)
    errors = []
    for n_control in (5, 7, 11, 19):
        limited = SolverSettings(length_tolerance=1e-14, tolerance=1e-8, n_control=n_control)
        result = shorten(metric, start, end, limited)
        assert (result.n_control == n_control).float().mean() > 0.5
        errors.append(relative(result.length, truth))
    rates = -np.diff(np.log2(errors))
    # The energy of the best cubic spline is off by the square of its error in the first derivative, h^3.
    assert (rates > 5).all(), rates
    assert (rates < 7.5).all(), rates


@pytest.mark.parametrize("method", METHODS)
def test_straight_lines_of_an_affine_decoder_are_returned_as_they_are(method):
    decoder = AffineDecoder.random()
    start, end = random_pairs(20)
    result = shorten(PullbackMetric(decoder), start, end, SolverSettings(method=method, n_control=4))
    assert torch.equal(result.curve.control_points, CubicBSpline.line(start, end).control_points)
    assert torch.equal(result.improvement, torch.zeros(20, dtype=torch.float64))
    assert torch.equal(result.length, result.straight_length)
    assert relative(result.length, decoder.distance(start, end)) < 1e-13
    assert result.converged.all()


# --- certificates ----------------------------------------------------------------------------------------------------


def test_squared_residual_is_the_relative_excess_of_energy():
    surface = SURFACE["sphere"]
    metric = surface.metric
    start, end = surface.sample(50, 0), surface.sample(50, 1)
    least = shorten(metric, start, end, SolverSettings(n_control=4, tolerance=1e-8))
    rough = shorten(metric, start, end, SolverSettings(n_control=4, n_iterations=1))
    excess = (rough.energy - least.energy) / rough.energy
    far = (rough.residual > 1e-4) & (rough.status != 4)
    assert far.sum() > 10
    ratio = rough.residual[far].square() / excess[far]
    assert ratio.min() > 0.3
    assert ratio.max() < 3


def test_certificates_are_what_they_say():
    metric = PullbackMetric(random_decoder(stochastic=True))
    start, end = random_pairs(20)
    result = shorten(metric, start, end)
    curve = result.curve
    assert relative(result.length, curve_length(metric, curve, 1024)) < 1e-5
    assert relative(result.energy, curve_energy(metric, curve, 1024)) < 1e-5
    line = CubicBSpline.line(start, end)
    assert relative(result.straight_length, curve_length(metric, line, 1024)) < 1e-5
    error = (result.length - curve_length(metric, curve, 1024)).abs()
    assert (error <= result.length_error + 1e-14 * result.length).all()
    assert result.length_error.max() < 1e-3
    assert torch.equal(result.converged, result.residual <= 1e-3)
    variation = result.speed_variation
    torch.testing.assert_close(result.length_squared_over_energy, 1 / (1 + variation**2))
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)
    speed = metric.speed(curve(t), curve.derivative(t))
    torch.testing.assert_close(speed.std(-1) / speed.mean(-1), variation, rtol=2e-2, atol=1e-4)
    assert (result.improvement >= 0).all()
    assert result.converged.double().mean() > 0.9


@pytest.mark.parametrize("kind", ["embedded", "mixed", "explicit"])
def test_promised_gain_of_more_control_points_comes_true(kind):
    surface = SURFACE["sphere"]
    metric = surface.metric
    # The same metric, of which all, half or nothing is known as the pull-back of a map.
    if kind == "mixed":
        half = PullbackMetric(lambda z: 0.5**0.5 * surface.embed(z), latent_dim=2)
        metric = half + ConformalMetric(half, lambda z: torch.ones_like(z[:, 0]))
    elif kind == "explicit":
        metric = ConformalMetric(metric, lambda z: torch.ones_like(z[:, 0]))
    start, end = surface.sample(50, 0), surface.sample(50, 1)
    coarse = shorten(metric, start, end, SolverSettings(n_control=4, tolerance=1e-7))
    # Of the length alone: speed that could be more even promises nothing.
    gain = 1 - surface.distance(start, end) / coarse.length
    much = gain > 1e-6
    ratio = coarse.refinement_gain[much] / gain[much]
    assert much.sum() > 10
    assert ratio.min() > 0.5
    assert ratio.max() < 1.5


def test_line_is_kept_where_the_curve_of_least_energy_is_longer():
    # With two free control points some curves gain energy by evening out the speed, and lose length.
    metric = PullbackMetric(random_decoder())
    start, end = random_pairs(100, far=0.5)
    result = shorten(metric, start, end, SolverSettings(n_control=4))
    kept = result.improvement == 0
    assert 0 < kept.sum() < 10
    line = CubicBSpline.line(start, end)
    torch.testing.assert_close(result.curve.control_points[kept], line.control_points[kept], rtol=0, atol=1e-15)
    measured = curve_length(metric, result.curve, 512)
    assert (measured <= curve_length(metric, line, 512) * (1 + 1e-9)).all()
    assert all("no curve shorter" in message for message in result.message[kept.numpy()])


def test_history_tells_energies_by_iteration():
    metric = PullbackMetric(random_decoder())
    start, end = random_pairs(6)
    result = shorten(metric, start.reshape(2, 3, 2), end.reshape(2, 3, 2))
    energy, length = result.history.energy, result.history.length
    n = int(result.n_iterations.max())
    assert energy.shape == length.shape == (2, 3, n + 1)
    line = CubicBSpline.line(start, end)
    # The grids that are optimised on are coarse.
    torch.testing.assert_close(energy[..., 0].reshape(-1), curve_energy(metric, line), rtol=0.3, atol=0)
    torch.testing.assert_close(energy[..., -1], result.energy, rtol=1e-2, atol=0)
    assert (energy[..., -1] < energy[..., 0]).any()


def test_cost_and_convergence_on_the_shipped_model():
    metric = PullbackMetric(lgi.load_model("vae1").decoder)
    start, end = algorithm_1_pairs(lgi, metric, 40, 2)
    began = perf_counter()
    result = shorten(metric, start, end)
    # Only what is prepared for all curves together belongs to none.
    assert (perf_counter() - began) / 2 < result.seconds.sum() < perf_counter() - began
    assert result.converged.double().mean() >= 0.95
    # Measured: 570 for 300 pairs.
    assert result.n_rows.mean() < 650
    measured = curve_length(metric, result.curve)
    assert relative(result.length, measured) < 1e-5
    assert (measured <= curve_length(metric, CubicBSpline.line(start, end)) * (1 + 1e-6)).all()


# --- methods, metrics, starts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "n_values", "n", "far"), [(2, 30, 8, 0.5), (8, 60, 4, 0.3)])
def test_methods_agree(d, n_values, n, far):
    metric = PullbackMetric(random_decoder(d, n_values))
    start, end = random_pairs(n, d, seed=5, far=far)
    newton = shorten(metric, start, end, SolverSettings(length_tolerance=1e-6))
    products = shorten(metric, start, end, SolverSettings(method="newton-cg", length_tolerance=1e-6))
    few = {"length_tolerance": 1e-5, "n_control": 8, "n_iterations": 3000}
    found = {name: shorten(metric, start, end, SolverSettings(method=name, **few)) for name in METHODS}
    assert newton.converged.all()
    assert products.converged.all()
    assert newton.improvement.max() > 0.01
    assert relative(products.length, newton.length) < 1e-4
    assert all(relative(result.length, newton.length) < 2e-3 for result in found.values())
    # The paper's insertion: one control point at a time, up to the maximum.
    assert (found["gradient"].n_control == 8).all()
    assert (products.n_iterations < found["gradient"].n_iterations).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_newton_cg_certifies_in_many_dimensions_without_matrices(dtype, monkeypatch):
    """In 210 dimensions, where neither the search nor the certificate makes a matrix of a whole curve."""
    d = 210
    metric = PullbackMetric(random_decoder(d=d, n_values=300, dtype=dtype))
    start, end = random_pairs(3, d=d, dtype=dtype, far=0.2)
    result = shorten(metric, start, end, SolverSettings(method="newton-cg"))
    assert result.converged.all()
    assert (result.improvement > 0).all()
    assert (result.curvature > 0).all()
    # Where products tell of no minimum, no matrices are made, and none are counted.
    monkeypatch.setattr(METHODS["newton-cg"], "convex", METHODS["gradient"].convex)
    doubtful = shorten(metric, start, end, SolverSettings(method="newton-cg"))
    assert doubtful.curvature.isnan().all()
    assert (doubtful.n_rows <= result.n_rows).all()


def test_geodesics_of_a_sphere_in_128_dimensions():
    """Great circles, by the inverse of the stereographic projection."""

    def embed(z):
        squared = z.square().sum(-1, keepdim=True)
        return torch.cat([2 * z, squared - 1], -1) / (1 + squared)

    start, end = (0.08 * z for z in random_pairs(4, d=128))
    result = shorten(PullbackMetric(embed, latent_dim=128), start, end, EXACT)
    angle = torch.acos((embed(start) * embed(end)).sum(-1))
    assert result.converged.all()
    assert result.improvement.min() > 0.01
    assert relative(result.length, angle) < 1e-6
    assert (result.curvature > 0).all()


def test_a_decoder_of_128_dimensions_is_certified_by_default():
    """The network of tests/benchmarks/walls.py."""
    decoder, d = generator("mlp128", lgi)
    start, step = random_pairs(4, d=d, dtype=torch.float32)
    end = start + step / torch.linalg.vector_norm(step, dim=-1, keepdim=True)
    result = shorten(PullbackMetric(decoder, latent_dim=d), start, end)
    assert result.converged.all()
    assert result.improvement.min() > 0
    assert result.n_rows.max() < 8000


# The second takes tens of products; matrices interpolate the metric between nodes, which makes 1.4 % of difference.
@pytest.mark.parametrize(("d", "far", "n_control", "difference"), [(8, 0.3, 7, 0.01), (16, 1, 19, 0.02)])
def test_residuals_by_products_are_those_by_matrices(d, far, n_control, difference, monkeypatch):
    metric = PullbackMetric(random_decoder(d=d, n_values=60))
    line = CubicBSpline.line(*random_pairs(4, d=d, far=far), n_control=n_control)
    by_matrices = certify(metric, line).residual
    monkeypatch.setattr("lgi.solver.certificate._MOST_DIMENSIONS", 4)
    assert relative(certify(metric, line).residual, by_matrices) < difference


def test_newton_cg_is_preconditioned_by_the_metric():
    """A curve's iterations do not grow when latent coordinates are scaled by 1 to 1000, to which lengths are blind."""
    scale = torch.logspace(0, 3, 12, dtype=torch.float64)
    decode = random_decoder(d=12, n_values=60)
    start, end = random_pairs(3, d=12, far=0.2)
    settings = SolverSettings(method="newton-cg")
    plain = shorten(PullbackMetric(decode), start, end, settings)
    scaled = shorten(PullbackMetric(lambda z: decode(z * scale)), start / scale, end / scale, settings)
    assert plain.converged.all()
    assert scaled.converged.all()
    assert relative(scaled.length, plain.length) < 1e-5
    assert (scaled.n_iterations <= 1.5 * plain.n_iterations + 3).all()


def test_the_method_is_chosen_by_dimension():
    assert [chosen("auto", d) for d in (2, 32, 33)] == ["gauss-newton", "gauss-newton", "newton-cg"]
    assert chosen("gradient", 500) == "gradient"
    assert SolverSettings().method == "auto"


def test_newton_cg_needs_forward_derivatives_at_one_point():
    calls = []

    class Counting(PullbackMetric):
        def _columns(self, z):
            calls.append(len(z))
            return super()._columns(z)

    d = 24
    start, end = random_pairs(3, d=d, far=0.2)
    metric = Counting(random_decoder(d=d, n_values=60))
    result = shorten(metric, start, end, SolverSettings(method="newton-cg"))
    assert result.converged.all()
    assert result.improvement.min() > 0
    # In the middle of each line (16: a full vector), and never again: the certificate too is by products.
    assert sum(calls) == 16


def test_feature_map_is_the_composed_generator():
    decode = random_decoder()

    def feature(x):
        return torch.log_softmax(3 * x[:, :5], dim=-1)

    start, end = random_pairs(5)
    a = shorten(PullbackMetric(decode, feature), start, end)
    b = shorten(PullbackMetric(lambda z: feature(decode(z))), start, end)
    assert relative(a.length, b.length) < 1e-10
    plain = shorten(PullbackMetric(decode), start, end)
    assert (curve_length(PullbackMetric(decode, feature), plain.curve) >= a.length * (1 - 1e-3)).all()


def test_metric_without_embedding_eq_4():
    metric = PullbackMetric(random_decoder(n_values=8, stochastic=True), lambda x: torch.tanh(x[:, :6]))
    start, end = random_pairs(4, far=0.4)
    assert metric.split(start)[1] is not None
    result = shorten(metric, start, end)
    assert result.converged.all()
    assert relative(result.length, curve_length(metric, result.curve, 512)) < 1e-5
    assert result.improvement.max() > 1e-3


def hill(z):
    """Flat, with a hill at the origin."""
    return torch.cat([z, 3 * torch.exp(-4 * z.square().sum(-1, keepdim=True))], dim=-1)


def test_other_starts_find_the_way_round():
    metric = PullbackMetric(hill, latent_dim=2)
    # The first pair lies symmetrically: the line over the top is stationary, but not shortest.
    # The last one has two ways round, of different lengths.
    start = torch.tensor([[-1.5, 0.0], [-1.5, 2.0], [-1.5, 0.2]], dtype=torch.float64)
    end = torch.tensor([[1.5, 0.0], [1.5, 2.5], [1.5, 0.2]], dtype=torch.float64)
    over = shorten(metric, start, end)
    multi = shorten(metric, start, end, SolverSettings(starts="multi"))
    points = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1.5
    graph = shorten(metric, start, end, SolverSettings(starts="graph"), points=points)
    assert multi.length[0] < 0.8 * over.length[0]
    assert graph.length[0] < 0.8 * over.length[0]
    assert multi.n_minima[2] == 2
    assert multi.n_minima[1] == 1
    assert over.n_minima[1] == 1
    assert torch.equal(over.start_gain, torch.zeros(3, dtype=torch.float64))
    for other in (multi, graph):
        assert relative(1 - other.start_gain, other.length / over.length) < 1e-12
    assert relative(multi.length[1], over.length[1]) < 1e-3
    assert (multi.n_rows > over.n_rows + 500).all()


def test_bent_starts_depend_on_seed_and_pair_alone():
    # Over the hill the bent curves win at once, and there are many ways round it.
    metric = PullbackMetric(hill, latent_dim=3)
    start = random_pairs(5, d=3)[0]
    start = 1.5 * start / torch.linalg.vector_norm(start, dim=-1, keepdim=True)

    def middle(**changed):
        bent = SolverSettings(starts="multi", n_iterations=2, **changed)
        return shorten(metric, start, -start, bent).curve(torch.tensor([0.5]))

    whole = middle()
    assert torch.linalg.vector_norm(whole, dim=-1).min() > 0.1
    torch.testing.assert_close(middle(chunk_size=2), whole, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(middle(seed=1), whole, atol=1e-2)


def test_graph_that_falls_apart_is_explained():
    metric = PullbackMetric(hill, latent_dim=2)
    points = torch.cat([random_pairs(20)[0], random_pairs(20)[0] + 50])
    with pytest.raises(ValueError, match=r"falls apart into 2 pieces of \[20, 20\] points.*n_neighbours"):
        shorten(metric, points[:1], points[-1:], SolverSettings(starts="graph", n_neighbours=4), points=points)


# --- batches ---------------------------------------------------------------------------------------------------------


def test_chunks_and_company_do_not_change_a_curve():
    metric = PullbackMetric(random_decoder())
    start, end = random_pairs(11)
    whole = shorten(metric, start, end)
    pieces = shorten(metric, start, end, SolverSettings(chunk_size=3))
    assert relative(pieces.length, whole.length) < 1e-9
    assert torch.equal(pieces.n_iterations, whole.n_iterations)
    alone = shorten(metric, start[4], end[4])
    assert alone.length.shape == ()
    assert relative(alone.length, whole.length[4]) < 1e-9
    again = shorten(metric, start, end)
    assert torch.equal(again.curve.control_points, whole.curve.control_points)


def test_chunks_do_not_change_a_curve_in_float32():
    # The last digits decide whether one of these takes another step, which changes its length by 2e-6.
    metric = PullbackMetric(lgi.load_model("vae1").decoder)
    start, end = (x[176:186] for x in algorithm_1_pairs(lgi, metric, 200, 2))
    whole = shorten(metric, start, end)
    pieces = shorten(metric, start, end, SolverSettings(chunk_size=3))
    assert relative(pieces.length, whole.length) < 1e-6


def test_shapes_and_inputs():
    metric = PullbackMetric(random_decoder(dtype=torch.float32))
    start, end = random_pairs(6, dtype=torch.float32)
    before = start.clone()
    with torch.inference_mode():
        result = shorten(metric, start.reshape(3, 2, 2), end.reshape(3, 2, 2))
    assert torch.equal(start, before)
    for name in ("length", "residual", "improvement", "n_rows", "speed_variation", "length_error"):
        assert getattr(result, name).shape == (3, 2), name
        assert getattr(result, name).dtype == torch.float32, name
    assert result.curve.control_points.shape[:2] == (3, 2)
    assert result.curve.dtype == torch.float32
    assert result.message.shape == (3, 2)
    ends = result.curve(torch.tensor([0.0, 1.0]))
    assert torch.equal(ends[..., 0, :], start.reshape(3, 2, 2))
    assert torch.equal(ends[..., 1, :], end.reshape(3, 2, 2))
    empty = shorten(metric, start[:0], end[:0])
    assert empty.length.shape == (0,)
    assert empty.message.shape == (0,)
    leaf = start.clone().requires_grad_()
    assert not shorten(metric, leaf, end).length.requires_grad


def test_coincident_end_points():
    metric = PullbackMetric(random_decoder())
    start, end = random_pairs(3)
    end[1] = start[1]
    result = shorten(metric, start, end)
    assert result.improvement[1] == 0
    assert result.length[1] == 0
    assert result.converged[1]
    assert "coincide" in result.message[1]
    torch.testing.assert_close(result.curve.control_points[1], start[1].expand(result.curve.n_control, 2))
    assert result.length.isfinite().all()
    others = shorten(metric, start[[0, 2]], end[[0, 2]])
    assert relative(others.length, result.length[[0, 2]]) < 1e-9


def test_iterations_are_limited_and_reported():
    metric = SURFACE["sphere"].metric
    start = torch.tensor([[0.6, -1.2]], dtype=torch.float64)
    end = torch.tensor([[0.7, 1.2]], dtype=torch.float64)
    for n in (0, 1):
        result = shorten(metric, start, end, SolverSettings(n_iterations=n))
        assert result.n_iterations.item() <= n
        assert not result.converged.item()
        assert result.length <= result.straight_length
        if n == 0:
            assert "n_iterations" in result.message[0]
            assert result.improvement.item() == 0


def test_constant_generator_has_length_zero():
    metric = PullbackMetric(lambda z: 0 * z.repeat(1, 3) + 1)
    start, end = random_pairs(2)
    for method in METHODS:
        result = shorten(metric, start, end, SolverSettings(method=method))
        assert torch.equal(result.length, torch.zeros(2, dtype=torch.float64))
        assert torch.equal(result.improvement, torch.zeros(2, dtype=torch.float64))


@settings(max_examples=10)
@given(scale=st.floats(0.01, 100), angle=st.floats(0, math.pi))
def test_scale_of_output_and_rotation_of_latent_space(scale, angle):
    decode = random_decoder()
    c, s = math.cos(angle), math.sin(angle)
    R = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    start, end = random_pairs(3, far=0.3)
    plain = shorten(PullbackMetric(decode), start, end, EXACT)
    other = shorten(PullbackMetric(lambda z: scale * decode(z @ R.T)), start @ R, end @ R, EXACT)
    assert relative(other.length, scale * plain.length) < 1e-6
    assert relative(other.improvement + 1, plain.improvement + 1) < 1e-6


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(2, 2), r"one shape.*\(3, 2\).*\(2, 2\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.float64), r"float32 .*float64.*convert"),
        (torch.zeros(3, 2, dtype=torch.long), torch.ones(3, 2), r"points start.*int64"),
        (torch.zeros(3, 2), torch.ones(3, 2).long(), r"points end.*int64.*use end.float"),
        (torch.zeros(3, 5), torch.ones(3, 5), r"\(\.\.\., 2\).*\(3, 5\)"),
        (torch.zeros(3, 2), torch.full((3, 2), torch.nan), "end has 3 points that are NaN"),
        (torch.tensor([[0.0, torch.inf]]), torch.zeros(1, 2), "start has 1 points that are NaN or infinite"),
        ([0.0, 0.0], torch.zeros(2), "a list"),
    ],
)
def test_bad_end_points(start, end, message):
    metric = PullbackMetric(random_decoder(dtype=torch.float32), latent_dim=2)
    with pytest.raises(ValueError, match=message):
        shorten(metric, start, end)


def test_other_bad_input():
    start, end = random_pairs(2)
    with pytest.raises(TypeError, match=r"expected a metric.*PullbackMetric"):
        shorten(random_decoder(), start, end)
    broken = PullbackMetric(lambda z: torch.where(z.abs() > 100, torch.nan, z).repeat(1, 2))
    with pytest.raises(ValueError, match="NaN or infinity on the way; the first leads from"):
        shorten(broken, start, end + 1000)
    with pytest.raises(ValueError, match="points are needed"):
        shorten(PullbackMetric(random_decoder()), start, end, SolverSettings(starts="graph"))
    for points in (start[:1], start.repeat(1, 2), start * torch.nan, start[0]):
        with pytest.raises(ValueError, match=r"two or more finite points \(n, 2\)"):
            shorten(PullbackMetric(random_decoder()), start, end, SolverSettings(starts="graph"), points=points)
    with pytest.raises(ValueError, match="points are needed"):
        shorten(PullbackMetric(random_decoder()), start, end, points=start)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"method": "newton"}, ", ".join(["auto", *METHODS])),
        ({"starts": "random"}, "line, graph, multi"),
        ({"n_control": 3}, "n_control to be at least 4"),
        ({"n_control": 4.5}, "n_control to be a whole number"),
        ({"n_iterations": True}, "n_iterations to be a whole number"),
        ({"chunk_size": 0}, "chunk_size to be at least 1"),
        ({"tolerance": 0.0}, "positive tolerances"),
        ({"length_tolerance": math.nan}, "positive tolerances"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        SolverSettings(**setting)


# ---- what can be done with a result ----


def test_frames_table_and_file(tmp_path):
    decoder = AffineDecoder.random(data_shape=(1, 4, 3))
    metric = PullbackMetric(decoder, chunk_size=5)
    start, end = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    result = shorten(metric, start, end, SolverSettings())
    frames = result.decode(7)
    assert frames.shape == (3, 2, 7, 1, 4, 3)
    flat = result.curve(torch.linspace(0, 1, 7, dtype=torch.float64)).reshape(-1, 2)
    assert (frames.reshape(-1, 1, 4, 3) - decoder(flat)).abs().max() <= 1e-12
    assert (result.decode(2)[:, :, -1].reshape(-1, 1, 4, 3) - decoder(end.reshape(-1, 2))).abs().max() <= 1e-12
    table = pandas.DataFrame(result.columns)
    assert len(table) == 6
    assert table["length"].tolist() == result.length.reshape(-1).tolist()
    assert (table["message"] == "converged").all()
    result.save(tmp_path / "pairs")
    found = load_result(tmp_path / "pairs.safetensors", metric)
    for name, column in found.columns.items():
        assert (column == result.columns[name]).all(), name
    for a, b in (
        (found.curve.control_points, result.curve.control_points),
        (found.curve.knots, result.curve.knots),
        (found.history.energy, result.history.energy),
        (found.history.length, result.history.length),
        (found.length, result.length),
        (found.decode(7), frames),
    ):
        assert torch.equal(a, b)
    for kept, other in ((load_result(tmp_path / "pairs"), None), (result, HALF_PLANE.metric)):
        with pytest.raises(ValueError, match=r"give lgi.PullbackMetric\(generator\)"):
            kept.decode(3, other)


def test_frames_of_a_stochastic_generator_are_means():
    decoder = random_decoder(stochastic=True)
    start, end = random_pairs(2)
    result = shorten(PullbackMetric(decoder), start, end, SolverSettings(n_control=4))
    assert (result.decode(2)[:, 0] - decoder(start)[0]).abs().max() <= 1e-12
