"""The search for shorter curves itself: second derivatives, steps, starts, and what is made of its lengths."""

from types import SimpleNamespace

import pytest
import torch
from test_solver import hill, random_decoder, random_pairs
from torch import nn

from lgi.checks import NotFiniteError
from lgi.metric import ConformalMetric, ExplicitMetric, PullbackMetric
from lgi.solver import SolverSettings, shorten
from lgi.solver.energy import Energy, Sample
from lgi.solver.grid import make_grid
from lgi.solver.methods.gauss_newton import GaussNewton
from lgi.solver.refinement import Level, evened, finer
from lgi.solver.search import _even_out
from lgi.spline import CubicBSpline
from lgi.spline import basis as spline_basis


@pytest.mark.parametrize("starts", ["line", "multi"])
@pytest.mark.parametrize("kind", ["embedded", "explicit", pytest.param("eq. 4", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["gauss-newton", "newton-cg"])
def test_a_search_keeps_away_from_where_nothing_is_defined(kind, method, starts):
    """A disc beside the line, on which everything is NaN, does not change what is found on the other side."""

    def metric(radius):
        hole = lambda z: (z - z.new_tensor([0.0, 0.3])).square().sum(-1, keepdim=True) < radius**2  # noqa: E731
        bump = lambda z: torch.where(hole(z), torch.nan, torch.exp(-3 * z.square().sum(-1, keepdim=True)))  # noqa: E731
        return {
            "embedded": PullbackMetric(lambda z: torch.cat([z, 1.5 * bump(z)], -1), latent_dim=2),
            "explicit": ExplicitMetric(lambda z: torch.eye(2).to(z) * (1 + 4 * bump(z)[..., None]), latent_dim=2),
            "eq. 4": PullbackMetric(
                lambda z: (z.repeat(1, 2), (1 + bump(z)).expand(-1, 4)), lambda x: torch.cat([x, x.sin()], -1)
            ),
        }[kind]

    start, end = torch.tensor([[[-1.0, -0.02], [-1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]], dtype=torch.float64)
    settings = SolverSettings(method=method, starts=starts)
    found, whole = (shorten(metric(radius), start, end, settings) for radius in (0.08, 0.0))
    assert found.converged.all()
    assert found.length.isfinite().all()
    assert found.length_error.isfinite().all()
    torch.testing.assert_close(found.length, whole.length, rtol=2e-3, atol=0)
    with pytest.raises(NotFiniteError, match="NaN or infinity on the way; the first leads from"):
        shorten(metric(0.31), start, end, settings)


@pytest.mark.parametrize("unit", [1e-170, 1e170])
def test_latent_units_that_cannot_be_squared_are_refused(unit):
    start, end = random_pairs(1)
    with pytest.raises(NotFiniteError, match=r"beyond what torch\.float64 can square"):
        shorten(PullbackMetric(lambda z: hill(z / unit)), start * unit, end * unit)


@pytest.mark.parametrize("kind", ["embedded", "explicit", "mixed"])
def test_second_derivatives_of_the_energy_are_those_of_its_gradient(kind):
    pullback = PullbackMetric(random_decoder())
    metric = {
        "embedded": pullback,
        "explicit": ExplicitMetric(pullback._tensor, latent_dim=2),
        "mixed": pullback + ConformalMetric(pullback, lambda z: 1 + z.square().sum(-1)),
    }[kind]
    start, end = random_pairs(3, far=0.5)
    pullback.tensor(start)
    curve = CubicBSpline.line(start, end, 6)
    control = curve.control_points + 0.05 * torch.sin(torch.arange(36.0, dtype=torch.float64)).reshape(3, 6, 2)
    energy = Energy(metric, start[0])
    grid = make_grid(tuple(curve.knots.unique().tolist()), 6, 2, embedded=kind != "explicit")
    basis = energy.basis(grid, curve.knots)
    hessian = energy.hessian(grid, basis, energy.sample(grid, basis, control, 2).curvature)
    columns = []
    for direction in torch.eye(8, dtype=torch.float64).reshape(8, 4, 2):
        step = 1e-5 * nn.functional.pad(direction, (0, 0, 1, 1))
        moved = torch.cat([control + step, control - step])
        plus, minus = energy.sample(grid, basis, moved, 1).gradient(basis).split(3)
        columns.append((plus - minus) / 2e-5)
    expected = torch.stack(columns, dim=-1)
    assert (hessian - expected).abs().max() < 1e-4 * expected.abs().max()


def test_energy_of_the_best_curve_does_not_rise():
    """But for changes of the grid; steps that are taken whatever they do can lead to a thousand times the energy."""
    few = SolverSettings(n_control=4, nodes=16, n_iterations=200)
    result = shorten(PullbackMetric(random_decoder()), *random_pairs(40), few)
    energy = result.history.energy
    assert (energy[:, 1:] < 1.1 * energy[:, :-1]).all()
    assert (result.n_iterations > 3).any()


def test_improvement_is_relative_to_the_straight_length():
    result = shorten(PullbackMetric(random_decoder()), *random_pairs(10))
    expected = (result.straight_length - result.length) / result.straight_length
    torch.testing.assert_close(result.improvement, expected, rtol=1e-12, atol=1e-14)
    assert result.improvement.max() > 0.05


def test_equal_pairs_have_different_bent_starts():
    """Pair i draws its own: in three dimensions, curves leave the top of the hill in directions of their own."""
    start = torch.tensor([[-1.5, 0.0, 0.0]], dtype=torch.float64).expand(5, 3)
    settings = SolverSettings(starts="multi", n_iterations=2)
    middle = shorten(PullbackMetric(hill, latent_dim=3), start, -start, settings).curve(torch.tensor([0.5]))[:, 0]
    assert torch.pdist(middle).min() > 1e-2


def test_graph_weighs_edges_by_decoded_length():
    """A wall with a gap: the straightest path of the graph leads over the wall, the shortest one through the gap."""

    def wall(z):
        return torch.cat([z, 6 * torch.exp(-((4 * z[:, :1]) ** 2)) * torch.sigmoid(8 * (1.5 - z[:, 1:]))], dim=-1)

    axes = torch.linspace(-1.5, 1.5, 15, dtype=torch.float64), torch.linspace(-0.5, 3, 15, dtype=torch.float64)
    points = torch.cartesian_prod(*axes)
    start, end = torch.tensor([[-1.2, 0.0]], dtype=torch.float64), torch.tensor([[1.2, 0.0]], dtype=torch.float64)
    metric = PullbackMetric(wall, latent_dim=2)
    over = shorten(metric, start, end)
    through = shorten(metric, start, end, SolverSettings(starts="graph"), points=points)
    assert through.length < 0.7 * over.length
    assert through.curve(torch.tensor([0.5]))[0, 0, 1] > 1


@pytest.mark.parametrize("embedded", [True, False])
@pytest.mark.parametrize("degree", [2, 3, 8])
def test_the_grid_for_finer_knots_sees_all_of_their_variations(degree, embedded):
    for knots in GaussNewton.knots(35)[:-1]:
        level, more = Level.of(knots, degree, embedded=embedded), finer(knots)
        slopes = spline_basis(more, level.seeing(more).t, 1)[:, 1:-1]
        assert torch.linalg.matrix_rank(slopes) == slopes.shape[1]


def test_an_evened_curve_keeps_its_ends_and_runs_at_nearly_constant_speed():
    level = Level.of(GaussNewton.knots(19)[-1], 4, embedded=True)
    # The control points of x = t^2 (exactly: t^2 is a cubic), which runs twice as fast at the end as on the mean.
    t = level.grid.t
    B = spline_basis(level.knots, t)
    control = torch.linalg.lstsq(B, torch.stack([t**2, 2 * t**2], -1)).solution[None]
    moved = evened(level, control, 20 * t[level.grid.node][None].square())
    speed = torch.linalg.vector_norm(spline_basis(level.knots, t, 1) @ moved[0], dim=-1)
    torch.testing.assert_close(moved[:, [0, -1]], control[:, [0, -1]], rtol=0, atol=1e-12)
    assert speed[len(t) // 8 :].std() < 0.05 * speed.mean()


@pytest.mark.parametrize(("share", "moves"), [(0.005, False), (0.2, True), (0.6, False)])
def test_only_curves_of_moderately_uneven_speed_are_evened(share, moves):
    """Where a metric nearly vanishes on a part of the way, no control points would be left for that part."""
    level = Level.of(GaussNewton.knots(7)[-1], 4, embedded=True)
    energy, control, taken = torch.ones(1, dtype=torch.float64), torch.rand(1, 7, 2, dtype=torch.float64), []
    speed = torch.ones(1, len(level.grid.weights), dtype=torch.float64)
    known = {"tail": energy, "length_tail": energy, "noise": energy, "squared_speed": speed}
    sample = Sample(energy=energy, length=(1 - share) ** 0.5 * energy, **known)
    group = SimpleNamespace(control=control, index=torch.arange(1))
    take = lambda live, *_: taken.extend(live.tolist())  # noqa: E731
    rounding = SimpleNamespace(rounded=lambda control: control)
    grids = {"level": level, "grid": level.grid, "basis": None}
    stage = SimpleNamespace(**grids, energy=rounding, sample=sample, group=group, take=take)
    better = SimpleNamespace(sample=lambda *_: Sample(energy=energy / 2, length=energy, **known))
    _even_out(better, stage, torch.arange(1))
    assert taken == [0] * moves
