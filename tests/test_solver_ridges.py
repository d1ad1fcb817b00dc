"""Metrics concentrated on thin ridges, as class probabilities make them: what is reported must be a length."""

import math

import pytest
import torch
from analytic import SURFACE
from torch import nn

import lgi
from lgi.metric import ConformalMetric, PullbackMetric

START = torch.tensor([[-1.0, -0.4], [-0.9, 0.3], [-1.1, 0.0], [-0.7, 0.6]], dtype=torch.float64)
END = torch.tensor([[1.0, 0.5], [0.8, 0.2], [1.0, 0.1], [0.9, -0.5]], dtype=torch.float64)


def noisy_plane(z):
    """Plane with a standard deviation that varies across the border at ``z_0 = 0``."""
    return z, 0.05 + 0.02 * (1 + torch.tanh(z.flip(-1)))


def classifier(x):
    """Two classes, told apart within a hundredth of the distance of the end points."""
    border = 60 * (x[:, 0] + 0.3 * torch.sin(3 * x[:, 1]))
    return torch.stack([torch.sigmoid(border), torch.sigmoid(-border)], dim=-1)


@pytest.mark.parametrize("generator", [noisy_plane, lambda z: noisy_plane(z)[0]], ids=["eq. 4", "eq. 3"])
@pytest.mark.parametrize("method", ["gauss-newton", "newton-cg"])
@pytest.mark.filterwarnings("ignore:latent dimension 2 >= output dimension 2")
def test_no_curve_jumps_over_a_border(generator, method):
    metric = PullbackMetric(generator, classifier, latent_dim=2)
    result = lgi.shorten(metric, START, END, lgi.SolverSettings(method=method, n_iterations=60))
    # From one class to the other there is no way shorter than the chord in the space of probabilities.
    chord = torch.linalg.vector_norm(classifier(END) - classifier(START), dim=-1)
    assert (result.length > chord * (1 - 1e-3)).all()
    dense = lgi.curve_length(metric, result.curve, n_t=8192)
    torch.testing.assert_close(result.length, dense, rtol=3e-3, atol=0)
    straight = lgi.curve_length(metric, lgi.CubicBSpline.line(START, END), n_t=8192)
    torch.testing.assert_close(result.straight_length, straight, rtol=3e-3, atol=0)
    assert (dense <= straight * (1 + 1e-3)).all()
    # A border that lies symmetrically on every grid can deceive any estimate, here by a thousandth at most.
    assert ((result.length - dense).abs() <= torch.maximum(3 * result.length_error, 1e-3 * dense)).all()


def test_an_explicit_ridge_is_measured():
    """Without an embedding there is only quadrature; the measuring grid is refined until it tells the length."""
    plane = PullbackMetric(lambda z: torch.cat([z, z[:, :1] * 0], dim=-1), latent_dim=2)
    metric = ConformalMetric(plane, lambda z: 1 + 400 * torch.exp(-(((z[:, 0] - 0.21) / 0.02) ** 2)))
    result = lgi.shorten(metric, START, END)
    torch.testing.assert_close(result.length, lgi.curve_length(metric, result.curve, n_t=8192), rtol=3e-3, atol=0)


@pytest.mark.parametrize(("frequency", "amplitude"), [(3000, 1e-3), (3e4, 1e-4), (3e4, 1e-5)])
@pytest.mark.parametrize("method", ["gauss-newton", "newton-cg"])
def test_waves_finer_than_every_grid_are_no_known_length(frequency, amplitude, method):
    """Values at some nodes hardly show them; derivatives do. The length is an elliptic integral."""
    waves = lambda z: torch.cat([z, amplitude * torch.sin(frequency * z[:, :1])], dim=-1)  # noqa: E731
    metric = PullbackMetric(waves, latent_dim=2)
    periods = torch.arange(16, dtype=torch.float64) + frequency // 4
    end = torch.stack([2 * math.pi / frequency * periods, 0.1 * periods.sin()], dim=-1)
    result = lgi.shorten(metric, torch.zeros_like(end), end, lgi.SolverSettings(method=method))
    found = lgi.certify(metric, lgi.CubicBSpline.line(torch.zeros_like(end), end))
    phase = torch.linspace(0, 2 * math.pi, 1001, dtype=torch.float64)[:-1]
    slope = (amplitude * frequency * phase.cos()) ** 2
    true = (end[:, :1].square() * (1 + slope) + end[:, 1:].square()).sqrt().mean(-1)
    assert ((result.length / true - 1).abs() < 1e-3)[result.converged].all()
    assert ((found.length / true - 1).abs() < 1e-3)[found.stationary].all()
    assert (result.improvement < 1e-3).all()


@pytest.mark.parametrize("step", [1e-1, 1e-3, 1e-4])
def test_rounding_is_not_taken_for_length(step):
    """In float32, differences of values over a short line are mostly rounding, the more so on finer grids."""
    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Linear(2, 50), torch.nn.Tanh(), torch.nn.Linear(50, 500))
    start = torch.randn(20, 2)
    end = start + step * torch.nn.functional.normalize(torch.randn(20, 2), dim=-1)
    result = lgi.shorten(PullbackMetric(generator, latent_dim=2), start, end)
    exact = PullbackMetric(generator.double(), latent_dim=2)
    straight = lgi.curve_length(exact, lgi.CubicBSpline.line(start.double(), end.double()))
    relative = (result.straight_length / straight - 1).abs()
    assert step < 1e-3 or relative.max() < 1e-2
    assert (relative <= result.length_error / result.length + 1e-6).all()
    trusted = result.length_error <= 1e-3 * result.length
    assert (result.improvement[trusted] < 10 * step**2 + 1e-6).all()
    assert not result.converged[~trusted].any()
    assert step < 1e-2 or trusted.all()
    assert step > 1e-3 or "float64" in result.message[~trusted.numpy()][0]


def test_split_adds_up():
    generator = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 20)).double()
    stochastic = lambda z: (generator(z)[:, :10], torch.nn.functional.softplus(generator(z)[:, 10:]))  # noqa: E731
    features = torch.nn.Sequential(torch.nn.Linear(10, 4), torch.nn.Softmax(dim=-1)).double()
    z = torch.randn(7, 2, dtype=torch.float64)
    eq2, eq4 = PullbackMetric(stochastic, latent_dim=2), PullbackMetric(stochastic, features, latent_dim=2)
    embedded, rest = eq2.split(z)
    assert embedded is eq2
    assert rest is None
    explicit = ConformalMetric(eq2, lambda z: 1 + z[:, 0] ** 2)
    assert explicit.split(z) == (None, explicit)
    for metric in (eq4, eq4 + eq2, eq4 + eq4, explicit + eq2):
        embedded, rest = metric.split(z)
        assert embedded.split(z)[1] is None
        assert rest.split(z)[1] is not None
        torch.testing.assert_close(embedded.tensor(z) + rest.tensor(z), metric.tensor(z), rtol=1e-10, atol=1e-12)
        v = torch.randn(7, 2, dtype=torch.float64)
        torch.testing.assert_close(
            embedded.squared_speed(z, v) + rest.squared_speed(z, v), metric.squared_speed(z, v), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("method", ["gauss-newton", "newton-cg"])
def test_a_saddle_is_left(method):
    """Straight over the top of a hill, and along the outer equator of a torus to the far side, nothing pulls aside."""
    hill = PullbackMetric(lambda z: torch.cat([z, torch.exp(-4 * z.square().sum(-1, keepdim=True))], -1), latent_dim=2)
    torus = SURFACE["torus"].metric
    for metric, end, axis in ((hill, 1.5, 0), (torus, 2.5, 1)):
        there = torch.zeros(1, 2, dtype=torch.float64)
        there[:, axis] = end
        result = lgi.shorten(metric, -there, there, lgi.SolverSettings(method=method))
        assert result.improvement > 0.15
        assert result.converged
        assert result.curvature > -1e-3
    stuck = lgi.shorten(torus, -there, there, lgi.SolverSettings(method=method, n_iterations=0))
    assert not stuck.converged
    assert stuck.curvature < -1e-3
    assert "no minimum" in stuck.message[0]


def test_walls_of_the_standard_deviation_are_certified():
    """A precision of Gaussians around the data: the standard deviation grows like exp(r^2), up to a plateau."""
    plateau = lambda z: (1e-4 + torch.exp(-3 * z.square().sum(1, keepdim=True))).rsqrt().expand_as(z)  # noqa: E731
    metric = PullbackMetric(lambda z: (z.repeat(1, 2), plateau(z).repeat(1, 2)), latent_dim=2)
    angle = torch.linspace(0, 3, 8, dtype=torch.float64)
    start = torch.stack([angle.cos(), angle.sin()], -1)
    result = lgi.shorten(metric, start, start.flip(0).roll(3, 0) * 1.1)
    assert result.converged.all()


def test_a_curve_that_is_clearly_shorter_is_kept():
    """Where derivatives jump at many places, also if its length or that of the line is hard to know to a thousandth."""
    torch.manual_seed(1)
    first = (nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 64))
    decoder = nn.Sequential(*first, nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).double()
    for weight in (p for p in decoder.parameters() if p.ndim == 2):
        nn.init.normal_(weight, std=1.6 / weight.shape[1] ** 0.5)
    start, end = 2 * torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(1)).double()
    result = lgi.shorten(PullbackMetric(decoder, latent_dim=2), start, end)
    # All but the second: one line needs finer grids for its length, errors of other curves stay above a thousandth.
    assert (result.improvement > 0.03).sum() == 5
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64)
    with torch.no_grad():
        polygons = [decoder(curve(t)) for curve in (result.curve, lgi.CubicBSpline.line(start, end))]
    length, straight = (polygon.diff(dim=-2).norm(dim=-1).sum(-1) for polygon in polygons)
    assert (result.improvement <= 1 - length / straight + 1e-3).all()


def test_kinks_are_recognised():
    """Where derivatives jump no certificate is to be had; the search says so and does not look for it for long."""
    cost = {}
    for activation in (torch.nn.ReLU, torch.nn.Softplus):
        torch.manual_seed(0)
        widths = (torch.nn.Linear(4, 64), activation(), torch.nn.Linear(64, 64), activation(), torch.nn.Linear(64, 50))
        metric = PullbackMetric(torch.nn.Sequential(*widths).double(), latent_dim=4)
        result = lgi.shorten(metric, *torch.randn(2, 6, 4, dtype=torch.float64))
        kinked = ["jump" in message for message in result.message]
        assert sum(kinked) == (6 if activation is torch.nn.ReLU else 0)
        cost[activation] = result.n_rows.mean()
    assert cost[torch.nn.ReLU] < 25 * cost[torch.nn.Softplus]
