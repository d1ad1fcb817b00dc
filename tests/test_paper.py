"""lgi/paper.py: it is right by closed forms, scipy and Monte Carlo, and the fast modules agree with it."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from analytic import PLANE_FRAME, SURFACE, half_plane_distance, half_plane_tensor, plane_embed
from hypothesis import given, settings
from scipy.interpolate import BSpline
from test_architecture import code_lines
from test_metric import deviation, of_draws, randn
from test_spline import splines
from torch import Tensor

import lgi
from lgi import paper

D, K = 6, 3


# ---- small smooth networks: images (1, 3, 2) of latent points (2,), features (3,) ----

INNER, MEAN, STD = randn(5, 2, seed=1), randn(D, 5, seed=2), randn(D, 5, seed=3)
WEIGHT = randn(K, D, seed=4)


def mean(z: Tensor) -> Tensor:
    return (torch.tanh(z @ INNER.T) @ MEAN.T).unflatten(1, (1, 3, 2))


def decoder(z: Tensor) -> tuple[Tensor, Tensor]:
    std = torch.nn.functional.softplus(torch.tanh(z @ INNER.T) @ STD.T)
    return mean(z), std.unflatten(1, (1, 3, 2))


def affine(x: Tensor) -> Tensor:
    return x.flatten(1) @ WEIGHT.T + 1


def curved(x: Tensor) -> Tensor:
    return torch.log_softmax(x.flatten(1) @ WEIGHT.T, dim=-1)


class Pair(NamedTuple):
    """The same metric, here and in the fast package."""

    paper: paper.Metric
    fast: lgi.PullbackMetric


def pairs_of(mean: Callable, decoder: Callable, feature_map: Callable) -> dict[str, Pair]:
    """Eqs 1 to 4 of a decoder and its mean alone."""
    plain = {
        "eq. 1": (paper.deterministic_metric, mean),
        "eq. 2": (paper.stochastic_metric, decoder),
        "eq. 3": (paper.deterministic_feature_metric, mean, feature_map),
        "eq. 4": (paper.stochastic_feature_metric, decoder, feature_map),
    }
    return {
        name: Pair(partial(metric, *maps), lgi.PullbackMetric(*maps, latent_dim=2))
        for name, (metric, *maps) in plain.items()
    }


EQUATIONS = pairs_of(mean, decoder, curved)
equations = pytest.mark.parametrize("pair", EQUATIONS.values(), ids=EQUATIONS)


# ---- eqs 1-4 ----


@equations
def test_metrics_are_those_of_the_fast_package(pair: Pair) -> None:
    for z in randn(10, 2, seed=5):
        assert deviation(pair.paper(z), pair.fast.tensor(z)) <= 1e-10


def test_metrics_of_vae1_are_those_of_the_fast_package() -> None:
    decoder = lgi.load_model("vae1").decoder.double()
    features = lgi.load_model("logistic_regression").double()
    for pair in pairs_of(lambda z: decoder(z)[0], decoder, features).values():
        for z in randn(3, 2, seed=6):
            assert deviation(pair.paper(z), pair.fast.tensor(z)) <= 1e-10


@pytest.mark.parametrize("surface", SURFACE.values(), ids=SURFACE)
def test_eq_1_in_closed_form(surface) -> None:
    for z in surface.sample(10):
        assert deviation(paper.deterministic_metric(surface.embed, z), surface.tensor(z)) <= 1e-12


def test_eqs_2_and_4_in_closed_form() -> None:
    A, B, z = randn(D, 2, seed=7), randn(D, 2, seed=8), randn(2, seed=9)

    def straight(z: Tensor) -> tuple[Tensor, Tensor]:
        return z @ A.T, z @ B.T

    assert deviation(paper.stochastic_metric(straight, z), A.T @ A + B.T @ B) <= 1e-12
    # Of an affine feature map x -> W x, M_FX is W^T W everywhere.
    M_FX = WEIGHT.T @ WEIGHT
    expected = A.T @ M_FX @ A + B.T @ (M_FX * torch.eye(D)) @ B
    assert deviation(paper.stochastic_feature_metric(straight, affine, z), expected) <= 1e-12
    # The diagonal makes a difference, or this would not be seen.
    assert deviation(A.T @ M_FX @ A + B.T @ M_FX @ B, expected) > 0.01
    # Of x -> x^2, the Jacobian at the mean A z is diag(2 A z).
    weight = torch.diag(4 * (A @ z) ** 2)
    expected = A.T @ weight @ A + B.T @ weight @ B
    assert deviation(paper.stochastic_feature_metric(straight, torch.square, z), expected) <= 1e-12


def test_eq_3_is_eq_1_of_the_composition() -> None:
    for z in randn(10, 2, seed=10):
        expected = paper.deterministic_metric(lambda z: curved(mean(z)), z)
        assert deviation(paper.deterministic_feature_metric(mean, curved, z), expected) <= 1e-12


def test_eq_4_is_the_expected_metric_of_an_affine_feature_map() -> None:
    n, M_FX = 20_000, WEIGHT.T @ WEIGHT
    draws = randn(n, 1, 3, 2, seed=11)
    for z in randn(3, 2, seed=12):
        samples = of_draws(decoder, affine, z, draws)
        error = samples.std(0) / n**0.5
        difference = samples.mean(0) - paper.stochastic_feature_metric(decoder, affine, z)
        assert (difference.abs() <= 4 * error).all()
        # With all of M_FX in place of its diagonal it would not be.
        J_sigma = paper.decoder_jacobians(decoder, z)[1]
        off_diagonal = J_sigma.T @ (M_FX - torch.diag(torch.diag(M_FX))) @ J_sigma
        assert ((difference - off_diagonal).abs() > 8 * error).any()


def test_a_generator_of_the_wrong_kind_is_refused() -> None:
    z = randn(2, seed=13)
    with pytest.raises(AttributeError):
        paper.deterministic_metric(decoder, z)
    with pytest.raises(TypeError):
        paper.stochastic_metric(mean, z)


# ---- App. A ----


# A grid that includes all knots.
GRID = torch.arange(65, dtype=torch.float64) / 64


@settings(max_examples=100)
@given(splines())
def test_spline_is_that_of_scipy_and_of_the_fast_package(fast: lgi.CubicBSpline) -> None:
    P, T = fast.control_points, fast.knots
    scipy = BSpline(T.numpy(), P.numpy(), 3)
    for order, values in enumerate((paper.points(P, T, GRID), paper.velocities(P, T, GRID))):
        # Velocities scale with the inverse of the spans, which are 32nds at least.
        tolerance = 1e-11 * 32**order
        assert (values - fast.derivative(GRID, order)).abs().max() <= tolerance
        assert (values - torch.from_numpy(scipy(GRID.numpy(), nu=order))).abs().max() <= tolerance


def test_straight_line_is_straight_and_of_constant_velocity() -> None:
    start, end = randn(2, 2, seed=14)
    P, T = paper.straight_line(start, end)
    assert P.shape == (4, 2)
    assert (paper.points(P, T, GRID) - (start + GRID[:, None] * (end - start))).abs().max() <= 1e-14
    assert (paper.velocities(P, T, GRID) - (end - start)).abs().max() <= 1e-14


@settings(max_examples=100)
@given(splines())
def test_insertion_keeps_the_curve(fast: lgi.CubicBSpline) -> None:
    P, T = fast.control_points, fast.knots
    P_new, T_new = paper.insert_knot(P, T)
    assert torch.equal(T_new, fast.insert_knot().knots)
    assert (P_new - fast.insert_knot().control_points).abs().max() <= 1e-12
    assert (paper.points(P_new, T_new, GRID) - paper.points(P, T, GRID)).abs().max() <= 1e-12


def test_insertion_read_literally_moves_the_curve() -> None:
    """App. A's j as the index of the new knot in the new list of knots, one more than it has to be."""
    source = inspect.getsource(paper.insert_knot)
    right = "for i in range(j - 2, j + 1):"
    assert source.count(right) == 1
    names = dict(vars(paper))
    exec(source.replace(right, "for i in range(j - 1, j + 2):"), names)
    T = torch.tensor([0, 0, 0, 0, 0.5, 0.75, 1, 1, 1, 1], dtype=torch.float64)
    P = randn(6, 2, seed=15)
    moved = paper.points(*names["insert_knot"](P, T), GRID) - paper.points(P, T, GRID)
    assert moved.abs().max() > 0.1


# ---- section 2.1: length, energy, descent ----


def test_length_and_energy_converge_to_those_of_the_fast_package() -> None:
    metric, fast = EQUATIONS["eq. 2"]
    P, T = randn(4, 2, seed=16), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1], dtype=torch.float64)
    for ours, theirs in ((paper.length, lgi.curve_length), (paper.energy, lgi.curve_energy)):
        exact = float(theirs(fast, lgi.CubicBSpline(P, T)))
        coarse, fine = (abs(float(ours(metric, P, T, n)) / exact - 1) for n in (200, 400))
        assert fine <= 1e-4
        # The midpoint rule is of second order.
        assert 3.5 <= coarse / fine <= 4.5
    assert paper.length(metric, P, T, 16) ** 2 <= paper.energy(metric, P, T, 16)


@equations
def test_gradient_passes_through_the_feature_jacobian(pair: Pair) -> None:
    P, T = paper.insert_knot(*paper.straight_line(*randn(2, 2, seed=17)))
    gradient = paper.energy_and_gradient(pair.paper, P, T, 8)[1]
    step = 1e-5
    for i in range(5):
        for j in range(2):
            shift = torch.zeros_like(P)
            shift[i, j] = step
            up, down = (paper.energy(pair.paper, P + sign * shift, T, 8) for sign in (1, -1))
            expected = (up - down) / (2 * step) if 0 < i < 4 else 0
            assert abs(gradient[i, j] - expected) <= 1e-7 * gradient.abs().max()


# Name: metric, distance in closed form, two ends.
GEODESICS = {
    "sphere": (
        partial(paper.deterministic_metric, SURFACE["sphere"].embed),
        SURFACE["sphere"].distance,
        [[0.8, -1.0], [1.1, 0.9]],
    ),
    "swiss roll": (
        partial(paper.deterministic_metric, SURFACE["swiss_roll"].embed),
        SURFACE["swiss_roll"].distance,
        [[1.5, -12.0], [8.0, 12.0]],
    ),
    "half plane": (half_plane_tensor, half_plane_distance, [[-1.0, 0.5], [1.0, 0.7]]),
}


@pytest.mark.parametrize("name", GEODESICS)
def test_descent_reaches_the_geodesic(name: str) -> None:
    metric, distance, ends = GEODESICS[name]
    start, end = torch.tensor(ends, dtype=torch.float64)
    shortest = distance(start, end)
    line = paper.straight_line(start, end)
    assert paper.length(metric, *line) > 1.01 * shortest
    P, T = paper.shorter_curve(metric, start, end)
    assert len(P) == 10
    assert torch.equal(P[[0, -1]], torch.stack([start, end]))
    length = paper.length(metric, P, T)
    # Measured: 5e-6 too long at most, by 2000 points; the midpoint rule with 256 may be as far off.
    assert (1 - 1e-4) * shortest <= length <= (1 + 1e-4) * shortest


def test_knots_are_inserted_and_help() -> None:
    metric, distance, ends = GEODESICS["half plane"]
    start, end = torch.tensor(ends, dtype=torch.float64)
    excess = []
    for n_control in (4, 10):
        P, T = paper.shorter_curve(metric, start, end, n_control=n_control)
        assert len(P) == n_control
        excess.append(float(paper.length(metric, P, T, 2000) / distance(start, end) - 1))
    assert excess[1] < excess[0] / 3


def test_descent_has_no_unit() -> None:
    """The size of a step is found: one metric in other units gives the same curve."""
    metric, _, ends = GEODESICS["sphere"]
    start, end = torch.tensor(ends, dtype=torch.float64)
    P = paper.shorter_curve(metric, start, end, n_control=5)[0]
    for unit in (2.0**-40, 2.0**40):
        scaled = paper.shorter_curve(lambda z, unit=unit: unit * metric(z), start, end, n_control=5)[0]
        assert deviation(scaled, P) <= 1e-12


def test_result_is_never_longer_than_the_straight_line() -> None:
    # Straight lines that are geodesics already: of the plane, and of the paraboloid through its lowest point.
    metric = partial(paper.deterministic_metric, plane_embed)
    line = paper.straight_line(*randn(2, 2, seed=18))
    P, T = paper.shorter_curve(metric, line[0][0], line[0][-1])
    assert paper.length(metric, P, T) <= paper.length(metric, *line)
    metric = partial(paper.deterministic_metric, SURFACE["paraboloid"].embed)
    for start, n_t in zip(SURFACE["paraboloid"].sample(4), (2, 3, 5, 8), strict=True):
        line = paper.straight_line(start, -start / 2)
        P, T = paper.shorter_curve(metric, start, -start / 2, n_steps=40, n_t=n_t)
        assert paper.length(metric, P, T) <= paper.length(metric, *line)


def test_without_a_step_the_straight_line_is_returned() -> None:
    start, end = randn(2, 2, seed=19)
    P, T = paper.shorter_curve(EQUATIONS["eq. 1"].paper, start, end, n_steps=0)
    assert torch.equal(P, paper.straight_line(start, end)[0])
    assert torch.equal(T, paper.straight_line(start, end)[1])


def test_nonsense_is_refused() -> None:
    start, end = randn(2, 2, seed=20)
    with pytest.raises(ValueError, match="n_control >= 4 and a finite energy"):
        paper.shorter_curve(EQUATIONS["eq. 1"].paper, start, end, n_control=3)
    with pytest.raises(ValueError, match="n_control >= 4 and a finite energy"):
        paper.shorter_curve(lambda z: torch.full((2, 2), torch.nan, dtype=z.dtype), start, end)
    with pytest.raises(ValueError, match="positive length"):
        paper.worst_case_improvements(lambda z: torch.zeros(2, 2, dtype=z.dtype), start[None])


# ---- Algorithm 1 ----


def test_direction_is_the_maximal_eigenvector_towards_the_origin() -> None:
    metric = partial(paper.deterministic_metric, lambda z: z * torch.tensor([1.0, 3.0, 2.0]))
    for sign in (1, -1):
        start, v = torch.tensor([1.0, sign * 2.0, 0.5]), [0, -sign, 0]
        end = paper.worst_case_end(metric, start, 0.7)
        torch.testing.assert_close(end, start + 0.7 * torch.tensor(v))


def test_a_flat_generator_has_no_improvement() -> None:
    metric = partial(paper.deterministic_metric, lambda z: z @ PLANE_FRAME)
    improvements = paper.worst_case_improvements(metric, randn(3, 2, seed=21), 2.0, n_steps=5)
    assert improvements.shape == (3,)
    assert improvements.min() >= 0
    assert improvements.max() <= 1e-12


@pytest.mark.filterwarnings("ignore::lgi.studies.UncertifiedWarning")
@pytest.mark.parametrize(("dtype", "end_tolerance", "tolerance"), [("float32", 1e-4, 1e-4), ("float64", 1e-9, 1e-5)])
def test_samples_of_vae1_are_those_of_the_fast_package(dtype: str, end_tolerance: float, tolerance: float) -> None:
    dtype = getattr(torch, dtype)
    decoder = lgi.load_model("vae1").decoder.to(dtype)
    metric = partial(paper.stochastic_metric, decoder)
    study = lgi.worst_case_improvement(
        lgi.PullbackMetric(decoder), 5, settings=lgi.SolverSettings(n_iterations=0), dtype=dtype
    )
    for start, end, straight in zip(study.start, study.end, study.straight_length, strict=True):
        assert (paper.worst_case_end(metric, start) - end).abs().max() <= end_tolerance
        with torch.no_grad():
            length = paper.length(metric, *paper.straight_line(start, end))
        # Both measure it by rules of their own; the midpoint rule's error is 4e-6 here.
        assert abs(length / straight - 1) <= tolerance


@pytest.mark.slow
def test_improvements_of_vae1_are_those_of_the_fast_package() -> None:
    vae1 = lgi.load_model("vae1").decoder
    study = lgi.worst_case_improvement(lgi.PullbackMetric(vae1), 5)
    # Fewer points and knots than by default, because this is slow: it costs 0.03 percentage points.
    improvements = paper.worst_case_improvements(
        partial(paper.stochastic_metric, vae1), study.start, n_control=7, n_t=16
    )
    assert (improvements - study.improvement).abs().max() <= 1e-3
    # The fast one's curves are not longer than those found here, within the same tolerance.
    shorter = (1 - improvements) * study.straight_length
    assert (study.length <= (1 + 1e-3) * shorter).all()
    # There is something to be found: the largest of these is 7.6 %.
    assert improvements.max() > 0.05


# ---- the file itself ----


def test_the_paper_has_at_most_150_lines_of_code() -> None:
    assert 60 < len(code_lines(inspect.getsource(paper))) <= 150


def test_all_functions_are_in_the_table_and_say_shapes() -> None:
    functions = {name: f for name, f in vars(paper).items() if inspect.isfunction(f) and f.__module__ == paper.__name__}
    assert len(functions) > 15
    for name, function in functions.items():
        assert "Tensor, shape" in function.__doc__, name
        assert f"`{name}`" in paper.__doc__, name
