"""Latent codes of samples: closed forms, exact recovery, scipy as oracle, what does not matter, what is refused."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from test_metric import randn as draws
from torch import nn

import lgi
from lgi import datasets

F64 = torch.float64


def affine(d, m, seed=0):
    A, b = draws(m, d, seed=seed), draws(m, seed=seed + 1)
    return A, b, lambda z: z @ A.T.to(z) + b.to(z)


def sphere(z):
    """Latitude and longitude."""
    return torch.stack([z[:, 0].cos() * z[:, 1].cos(), z[:, 0].cos() * z[:, 1].sin(), z[:, 0].sin()], dim=1)


def network(d, m=12, seed=0, width=16):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, m)).double()
    return net.requires_grad_(False)


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [1, 3, 40])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_affine_generator_is_least_squares(d, weight):
    """d = 40 goes through products instead of matrices."""
    A, b, g = affine(d, 60)
    x = draws(5, 60, seed=2)
    result = lgi.invert(g, x, d, prior_weight=weight, n_candidates=64, tolerance=1e-7)
    expected = torch.linalg.solve(A.T @ A + weight * torch.eye(d, dtype=F64), A.T @ (x - b).T).T
    torch.testing.assert_close(result.z, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.residual, (g(expected) - x).square().mean(1).sqrt(), rtol=1e-8, atol=1e-9)
    assert result.converged.all()
    assert (result.n_iterations <= (1 if d < 40 else 6)).all()


def test_nearest_point_of_a_sphere():
    """Every point but the centre: its projection; the residual is the distance to the unit sphere."""
    x = draws(50, 3) * torch.linspace(0.2, 3, 50, dtype=F64)[:, None]
    radius = torch.linalg.vector_norm(x, dim=1)
    result = lgi.invert(sphere, x, 2, tolerance=1e-6)
    torch.testing.assert_close(sphere(result.z), x / radius[:, None], rtol=0, atol=1e-5)
    torch.testing.assert_close(result.residual, (radius - 1).abs() / math.sqrt(3), rtol=0, atol=1e-9)
    assert result.converged.all()
    # Gauss-Newton alone takes up to 31: near the centre, the residual bends more than the sphere does.
    assert result.n_iterations.max() <= 15
    off = (radius - 1).abs() > 1e-3
    assert (result.optimality[off] <= 1e-6).all()


def test_optimality_is_the_cosine_of_the_angle_to_the_manifold():
    """At a given start on the line (z, 0), goal (a, 1): the cosine is |z - a| / |(z - a, 1)|."""
    x, start = torch.tensor([[3.0, 1.0]], dtype=F64), torch.ones(1, 1, 1, dtype=F64)
    result = lgi.invert(lambda z: torch.cat([z, 0 * z], dim=1), x, 1, starts=start, n_starts=0, n_iterations=0)
    assert result.optimality.item() == pytest.approx(2 / math.sqrt(5), rel=1e-9)
    assert not result.converged.item()
    assert result.n_iterations.item() == 0


def test_spread_and_relative_residual():
    """Of x = A z + b with z ~ N(0, I), two samples differ by 2 |A|^2 / m in the mean square."""
    A, _, g = affine(2, 6)
    x = draws(4, 6, seed=3)
    result = lgi.invert(g, x, 2, n_candidates=2048)
    assert result.spread.item() == pytest.approx((2 * A.square().sum() / 6).sqrt().item(), rel=5e-3)
    torch.testing.assert_close(result.relative_residual, result.residual / result.spread)


# --- generated samples, and samples that are not ---------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 6])
def test_generated_samples_are_recovered(d):
    g, z = network(d), draws(40, d, seed=5)
    result = lgi.invert(g, g(z), d, n_starts=8)
    assert (result.residual < 1e-8).all()
    assert result.converged.all()
    assert result.reached.all()
    torch.testing.assert_close(result.z, z, rtol=0, atol=1e-5)


def test_a_sample_of_zeros_that_is_generated():
    """No size of its own to compare rounding with."""
    A, _, _ = affine(2, 6)
    b = A @ torch.tensor([-0.3, 0.7], dtype=F64)
    result = lgi.invert(lambda z: z @ A.T + b, torch.zeros(1, 6, dtype=F64), 2, n_candidates=64)
    torch.testing.assert_close(result.z, torch.tensor([[0.3, -0.7]], dtype=F64))
    assert result.converged.item()


def test_generated_digits_are_recovered_in_float32():
    decoder = lgi.load_model("vae1").decoder
    z = draws(40, 2).float()
    result = lgi.invert(decoder, decoder(z)[0])
    assert (result.residual < 1e-5).all()
    assert result.converged.all()
    torch.testing.assert_close(result.z, z, rtol=0, atol=1e-3)


def test_unreachable_samples_are_flagged():
    decoder = lgi.load_model("vae1").decoder
    generated = decoder(draws(10, 2).float())[0]
    noise = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    result = lgi.invert(decoder, torch.cat([generated, noise, 1 - generated]))
    assert result.reached.tolist() == [True] * 10 + [False] * 20
    assert result.converged.all()
    strict = lgi.invert(decoder, generated + 0.1 * noise, threshold=0.01)
    assert not strict.reached.any()


def test_the_mean_of_a_stochastic_generator_is_inverted():
    g = network(2)
    x = draws(10, 12, seed=4)
    stochastic = lgi.invert(lambda z: (g(z), 1 + z[:, :1].square().expand(-1, 12)), x, 2)
    torch.testing.assert_close(stochastic.z, lgi.invert(g, x, 2).z, rtol=0, atol=1e-9)


def test_feature_map_compares_features_only():
    """Of 12 values the map sees 5: the inversion is that of the generator's first 5."""
    g = network(2)
    x = draws(10, 12, seed=4)
    seen = lgi.invert(g, x, 2, feature_map=lambda y: y[:, :5].sinh())
    alone = lgi.invert(lambda z: g(z)[:, :5].sinh(), x[:, :5].sinh(), 2)
    torch.testing.assert_close(seen.z, alone.z, rtol=0, atol=1e-9)
    torch.testing.assert_close(seen.residual, alone.residual, rtol=1e-9, atol=0)


@pytest.mark.parametrize("d", [2, 5, 36])
def test_against_scipy(d):
    """From the same start, the minimum that scipy's least squares finds; from several starts, none worse."""
    g = network(d, m=60, seed=d)
    x, start = g(draws(6, d, seed=6)) + 0.3 * draws(6, 60, seed=7), 0.3 * draws(6, 1, d, seed=8)
    weight = 0.05
    from_start = lgi.invert(
        g, x, d, starts=start, n_starts=0, n_candidates=16, prior_weight=weight, tolerance=1e-6, n_iterations=300
    )
    best = lgi.invert(g, x, d, starts=start, prior_weight=weight, n_candidates=256)

    def objective(z, x):
        return (g(z) - x).square().sum(1) + weight * z.square().sum(1)

    for i in range(len(x)):

        def residuals(z, i=i):
            value = g(torch.tensor(z)[None])[0] - x[i]
            return np.concatenate([value.numpy(), math.sqrt(weight) * z])

        oracle = scipy.optimize.least_squares(residuals, start[i, 0].numpy(), xtol=1e-12, ftol=1e-12, gtol=1e-12)
        mine = objective(from_start.z[i : i + 1], x[i : i + 1]).item()
        assert mine <= 2 * oracle.cost * (1 + 1e-7)
        if torch.linalg.vector_norm(from_start.z[i] - torch.tensor(oracle.x)) < 1e-2:
            assert mine == pytest.approx(2 * oracle.cost, rel=1e-9)
    assert from_start.converged.all()
    assert (objective(best.z, x) <= objective(from_start.z, x) * (1 + 1e-5)).all()


# --- starts ----------------------------------------------------------------------------------------------------------


def test_own_starts_are_never_left_for_something_worse():
    g, start = network(2), draws(20, 3, 2)
    x = draws(20, 12, seed=4)
    result = lgi.invert(g, x, starts=start, latent_dim=2, n_candidates=8, n_starts=1, n_iterations=0)
    at_start = (g(start.reshape(-1, 2)).unflatten(0, (20, 3)) - x[:, None]).square().mean(2).sqrt()
    assert (result.residual <= at_start.amin(1) * (1 + 1e-12)).all()
    own = result.start < 3
    assert 0 < own.sum() < 20
    torch.testing.assert_close(result.z[own], start[own, result.start[own]])


def test_several_basins_need_several_starts():
    """h = (z, 3 cos 3 z): many local minima, of which the screening sees the best ones."""

    def wave(z):
        return torch.cat([z, 3 * (3 * z).cos()], dim=1)

    x = torch.stack([draws(40), torch.full((40,), -3.5, dtype=F64)], dim=1)
    dense = torch.linspace(-8, 8, 40001, dtype=F64)[:, None]
    best = (wave(dense)[None] - x[:, None]).square().mean(2).amin(1).sqrt()
    result = lgi.invert(wave, x, 1)
    torch.testing.assert_close(result.residual, best, rtol=1e-5, atol=1e-7)
    single = lgi.invert(wave, x, 1, starts=torch.zeros(40, 1, 1, dtype=F64), n_starts=0)
    assert (single.residual > best * 1.01).sum() >= 2


@pytest.mark.parametrize("d", [1, 33])
def test_a_step_too_far_is_not_taken(d):
    """From z = 3, Newton's method for atan(z) = 0 diverges; d = 33 goes through products."""

    def g(z):
        return torch.cat([z.atan(), 0 * z], dim=1)

    x, start = torch.zeros(1, 2 * d, dtype=F64), torch.full((1, 1, d), 3.0, dtype=F64)
    residuals = [
        lgi.invert(g, x, d, starts=start, n_starts=0, n_candidates=64, n_iterations=n).residual.item()
        for n in (0, 1, 2, 3, 100)
    ]
    assert residuals[0] == pytest.approx(math.atan(3) / math.sqrt(2))
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[-1] < 1e-8


def test_candidates_replace_the_prior():
    """A generator of period 20 that repeats itself: the code found is the one near the candidates."""
    candidates = 100 + draws(500, 1)

    def spiral(z):
        return torch.cat([(z * math.pi / 10).cos(), (z * math.pi / 10).sin(), 0 * z], dim=1)

    z = torch.tensor([[1.0], [-1.0]], dtype=F64)
    torch.testing.assert_close(lgi.invert(spiral, spiral(z), 1).z, z, rtol=0, atol=1e-6)
    found = lgi.invert(spiral, spiral(z), 1, candidates=candidates).z
    torch.testing.assert_close(found, z + 100, rtol=0, atol=1e-6)


def test_wide_candidates_reach_codes_far_out():
    """Codes at three and a half standard deviations, where hardly a draw of the prior falls."""
    angle = torch.linspace(0, 6, 30, dtype=F64)
    z = 3.5 * torch.stack([angle.cos(), angle.sin()], dim=1)

    def wave(z):
        return torch.cat([z, 3 * (2 * z).cos()], dim=1)

    assert (lgi.invert(wave, wave(z), 2).residual < 1e-6).all()


# --- what does not matter --------------------------------------------------------------------------------------------


def test_order_chunks_and_neighbours_do_not_matter():
    g = network(3)
    x = draws(30, 12, seed=4)

    def inverted(x, **settings):
        # Without a prior, some minima lie at infinity.
        return lgi.invert(g, x, 3, prior_weight=0.1, n_candidates=256, **settings)

    whole = inverted(x)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    for other, expected in (
        (inverted(x, chunk_size=7), whole.z),
        (inverted(x[order]), whole.z[order]),
        (inverted(x[11:12]), whole.z[11:12]),
    ):
        torch.testing.assert_close(other.z, expected, rtol=0, atol=1e-9)
    assert torch.equal(inverted(x).z, whole.z)
    first = inverted(x, n_iterations=0)
    assert torch.equal(inverted(x, n_iterations=0).z, first.z)
    assert not torch.equal(inverted(x, n_iterations=0, seed=1).z, first.z)


def test_shapes_dtype_and_inputs():
    g = network(2, m=12)

    def images(z):
        return g(z.double()).to(z.dtype).unflatten(1, (3, 4))

    images.latent_dim = 2
    x = draws(2, 5, 3, 4).float().requires_grad_()
    before = x.detach().clone()
    result = lgi.invert(images, x)
    assert result.z.shape == (2, 5, 2)
    for name in ("residual", "relative_residual", "reached", "converged", "optimality", "n_iterations", "start"):
        assert getattr(result, name).shape == (2, 5), name
    assert result.z.dtype == result.residual.dtype == result.spread.dtype == torch.float32
    assert not result.z.requires_grad
    assert torch.equal(x, before)
    single = lgi.invert(images, x[0, 0])
    assert single.z.shape == (2,)
    assert single.residual.shape == ()
    torch.testing.assert_close(single.z, result.z[0, 0], rtol=0, atol=1e-3)
    assert lgi.invert(images, x[0, :0]).z.shape == (0, 2)


@pytest.mark.parametrize("d", [3, 40])
def test_inference_mode_changes_nothing(d):
    """d = 40 goes through products, with a reverse pass."""
    g = network(d, m=60)
    x, starts = draws(4, 60, seed=4), draws(4, 1, d, seed=5)
    settings = {"n_candidates": 32, "n_iterations": 3, "prior_weight": 0.1}
    expected = lgi.invert(g, x, d, starts=starts, **settings)
    with torch.inference_mode():
        found = lgi.invert(g, x.clone(), d, starts=starts.clone(), **settings)
        screened = lgi.invert(g, x.clone(), d, candidates=starts[:, 0].clone(), **settings)
    assert torch.equal(found.z, expected.z)
    assert screened.z.isfinite().all()


def test_as_many_values_as_dimensions():
    """A change of coordinates can be inverted, and says nothing about a degenerate metric."""
    z = draws(10, 2)
    result = lgi.invert(lambda z: z + 0.3 * z.sin(), z + 0.3 * z.sin(), 2)
    torch.testing.assert_close(result.z, z, rtol=0, atol=1e-6)


def test_a_plateau_is_not_a_failure():
    """Where the generator does not change, no step leads anywhere: the search ends there, finite."""
    x, start = torch.ones(1, 2, dtype=F64), -torch.ones(1, 1, 1, dtype=F64)
    result = lgi.invert(lambda z: z.clamp_min(0).repeat(1, 2), x, 1, starts=start, n_starts=0)
    assert result.z.item() == -1
    assert result.converged.item()


# --- what is refused -------------------------------------------------------------------------------------------------


def test_refused():
    g = network(2)
    x = draws(4, 12)
    bad = x.clone()
    bad[2, 3] = torch.nan
    for message, arguments, settings in (
        ("latent_dim", (g, x), {}),
        (r"x \(\.\.\., 12\).*\(4, 11\)", (g, x[:, :11], 2), {}),
        ("1 of 4 samples are not finite, first of them number 2", (g, bad, 2), {}),
        ("int64.*float", (g, x.long(), 2), {}),
        ("list", (g, x.tolist(), 2), {}),
        ("1 values do not determine a code of dimension 2: give a prior_weight", (lambda z: z[:, :1], x[:, :1], 2), {}),
        ("the same", (lambda z: 0 * z.repeat(1, 6) + 1, x, 2), {}),
        ("candidates", (lambda z: g(z) / (z[:, :1] < 1), x, 2), {}),
        ("failed on", (g, x, 3), {}),
        (r"starts \(4, k, 2\), got \(4, 2\)", (g, x, 2), {"starts": x[:, :2]}),
        (r"candidates \(n_candidates, 2\)", (g, x, 2), {"candidates": x[:, :3]}),
        ("no start", (g, x, 2), {"n_starts": 0}),
        ("n_starts", (g, x, 2), {"n_starts": -1}),
        ("prior_weight", (g, x, 2), {"prior_weight": math.nan}),
        ("tolerance", (g, x, 2), {"tolerance": 0.0}),
        ("chunk_size", (g, x, 2), {"chunk_size": 0}),
        ("train mode", (nn.Sequential(network(2), nn.BatchNorm1d(12).double()), x, 2), {}),
        (r"start z = \[50", (lambda z: g(z) / (z[:, :1] < 40), x, 2), {"starts": 50 * torch.ones(4, 1, 2, dtype=F64)}),
    ):
        with pytest.raises(ValueError, match=message):
            lgi.invert(*arguments, **settings)


# --- digits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("vae1", "optdigits"),  # which it has never seen
        pytest.param("vae1", "mnist", marks=pytest.mark.needs_mnist),
        pytest.param("vae2", "mnist", marks=pytest.mark.needs_mnist),
    ],
)
def test_digits_are_inverted_better_than_encoded(name, data):
    vae, x = lgi.load_model(name), datasets.load(data, "test").images[:500]
    result, codes = lgi.invert(vae.decoder, x), vae.encoder(x)[0]
    encoder = (vae.decoder(codes)[0] - x).flatten(1).square().mean(1).sqrt()
    assert (result.residual <= encoder * (1 + 1e-5)).float().mean() > (0.97 if data == "optdigits" else 0.99)
    assert result.converged.float().mean() > 0.99
    assert result.residual.mean() < encoder.mean()
    own = lgi.invert(vae.decoder, x[:100], starts=codes[:100, None])
    assert (own.residual <= encoder[:100] * (1 + 1e-5)).all()
