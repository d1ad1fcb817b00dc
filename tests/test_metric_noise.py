"""The expected metric under a feature map: closed forms, quadrature, Monte Carlo with J_F at the samples."""

from collections.abc import Callable
from math import pi

import numpy as np
import pytest
import torch
from test_metric import D, Decoder, classifier, curved_features, deviation, of_draws, randn
from torch import Tensor, nn
from torch.func import jacfwd, jvp, vmap

import lgi
from lgi import PullbackMetric, paper
from lgi.features import VGG19Features
from lgi.metric.noise import Noise

DECODER = Decoder()


def trace(M: Tensor) -> Tensor:
    return M.diagonal(dim1=-2, dim2=-1).sum(-1)


def sampled(feature_map: Callable[[Tensor], Tensor], n_draws: int = 1024, seed: int = 0) -> PullbackMetric:
    return PullbackMetric(DECODER, feature_map, noise="sampled", n_draws=n_draws, seed=seed)


def monte_carlo(feature_map: Callable[[Tensor], Tensor], z: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Trace of E[J^T J] and its standard error from n draws: nothing leaves the expectation."""
    draws = randn(n, 1, 4, 3, seed=5).split(1000)
    traces = torch.stack([torch.cat([trace(of_draws(DECODER, feature_map, point, e)) for e in draws]) for point in z])
    return traces.mean(1), traces.std(1) / n**0.5


# ---- where the two agree ----


def test_of_an_affine_map_the_expectation_is_eq_4() -> None:
    z, logits = randn(20, 2), classifier(4, "logits")
    eq_4 = torch.stack([paper.stochastic_feature_metric(DECODER, logits, point) for point in z])
    for metric in (PullbackMetric(DECODER, logits), sampled(logits, 2)):
        assert deviation(metric.tensor(z), eq_4) <= 1e-10
    assert torch.equal(sampled(logits, 2).noise_error(z), torch.zeros(20, dtype=torch.float64))
    # Of one that does not say that it is affine, up to the draws.
    hidden = sampled(logits.forward)
    assert ((trace(hidden.tensor(z)) - trace(eq_4)).abs() <= 3 * hidden.noise_error(z, 32)).all()


def test_without_feature_map_it_is_eq_2() -> None:
    z = randn(5, 2)
    assert torch.equal(PullbackMetric(DECODER, noise="sampled").tensor(z), PullbackMetric(DECODER).tensor(z))


# ---- where they do not: closed forms and quadrature ----


def test_of_squares_in_closed_form() -> None:
    """E[J^T J] = 4 E[(mu + sigma e)^2 (J_mu + e J_sigma)^T (J_mu + e J_sigma)], from the moments 1, 0, 1, 0, 3 of e."""
    z, metric = randn(20, 2), sampled(torch.square, 4096)
    (mu, sigma), columns = DECODER(z), []
    for direction in torch.eye(2, dtype=torch.float64):
        columns.append(jvp(DECODER, (z,), (direction.expand_as(z),))[1])
    J_mu, J_sigma = (torch.stack([column[k].flatten(1) for column in columns], dim=-1) for k in (0, 1))
    mu, sigma = mu.flatten(1)[..., None], sigma.flatten(1)[..., None]
    mixed = J_mu.mT @ (2 * mu * sigma * J_sigma)
    expected = J_mu.mT @ ((mu**2 + sigma**2) * J_mu) + J_sigma.mT @ ((mu**2 + 3 * sigma**2) * J_sigma)
    expected = 4 * (expected + mixed + mixed.mT)
    error = metric.noise_error(z, 32)
    assert ((trace(metric.tensor(z)) - trace(expected)).abs() <= 3 * error).all()
    assert (error < 0.02 * trace(expected)).all()
    assert ((trace(PullbackMetric(DECODER, torch.square).tensor(z)) - trace(expected)).abs() > 10 * error).all()


def by_quadrature(weight: Tensor, bias: Tensor, z: Tensor, n: int = 200) -> Tensor:
    """Two classes: E[J^T J] = 2 E[(p (1 - p))^2 t' t'^T], p = sigmoid(t), over the one Gaussian logit t.

    Given t, its derivatives t' are Gaussian: their mean is linear in t, and what is left of their covariance does not
    depend on t.
    """
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(n))

    def of_point(z: Tensor) -> Tensor:
        def moments(z: Tensor) -> tuple[Tensor, Tensor]:
            mean, std = DECODER(z[None])
            return weight @ mean.flatten() + bias, weight * std.flatten()

        (mean, scaled), (d_mean, d_scaled) = moments(z), jacfwd(moments)(z)
        std = torch.linalg.vector_norm(scaled)
        slope, covariance = d_scaled.T @ scaled / std, d_scaled.T @ d_scaled
        p = torch.sigmoid(mean + std * nodes)
        change = d_mean + nodes[:, None] * slope
        second = change[:, :, None] * change[:, None, :] + covariance - slope[:, None] * slope
        return 2 * ((weights * (p * (1 - p)) ** 2)[:, None, None] * second).sum(0) / (2 * pi) ** 0.5

    return vmap(of_point)(z)


@pytest.mark.filterwarnings("ignore:latent dimension 2 >= output dimension 2")
def test_of_two_classes_by_quadrature() -> None:
    z, model = randn(20, 2), classifier(2)
    expected = by_quadrature(model.weight[1] - model.weight[0], model.bias[1] - model.bias[0], z)
    for metric in (sampled(model, 4096), sampled(model.forward, 4096)):
        error = metric.noise_error(z, 32)
        assert ((trace(metric.tensor(z)) - trace(expected)).abs() <= 3 * error).all()
        assert (error < 0.05 * trace(expected)).all()
    # Half of the points are where eq. 4 is off by a fifth or more.
    off = (trace(PullbackMetric(DECODER, model).tensor(z)) / trace(expected) - 1).abs()
    assert off.median() > 0.2


# ---- Monte Carlo ----


def mlp() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(D, 8), nn.Tanh(), nn.Linear(8, 6)).double()
    layers[1].weight.data *= 5
    return layers


@pytest.mark.parametrize(
    ("feature_map", "n"),
    [
        pytest.param(mlp(), 20_000, id="MLP"),
        pytest.param(curved_features(), 20_000, id="softmax"),
        pytest.param(classifier(), 20_000, id="logistic regression"),
        pytest.param(VGG19Features("relu1_1", weights=None).double(), 1_000, id="VGG-19 relu1_1"),
    ],
)
def test_agrees_with_monte_carlo(feature_map: nn.Module, n: int) -> None:
    z, metric = randn(20, 2), sampled(feature_map, 256)
    expected, error = monte_carlo(feature_map, z, n)
    error = (error**2 + metric.noise_error(z, 16) ** 2).sqrt()
    assert ((trace(metric.tensor(z)) - expected).abs() <= 3 * error).all()
    # The check tells the two metrics apart: eq. 4, which it would refuse, is not the expectation of any of these.
    eq_4 = trace(PullbackMetric(DECODER, feature_map).tensor(z))
    assert ((eq_4 - expected).abs() > 3 * error).sum() >= 10


def test_the_error_is_that_of_the_draws() -> None:
    """Over 200 seeds; and it falls with their number."""
    z, model = randn(3, 2), classifier()
    traces = torch.stack([trace(sampled(model, 64, seed=s).tensor(z)) for s in range(1000, 1200)])
    error = sampled(model, 64).noise_error(z, 64)
    assert ((error / traces.std(0)).log().abs() < 0.4).all()
    assert (sampled(model, 1024).noise_error(z, 64) < error / 3).all()


# ---- draws ----


def test_draws_are_normal_paired_and_reproducible() -> None:
    x, weight = torch.zeros(1, 1, 4, 3, dtype=torch.float64), randn(3, D)
    for given in (None, weight):
        draws = Noise(5000, 7).draws(x, given)
        assert draws.shape == (5000, D)
        assert torch.equal(draws[:2500], -draws[2500:])
        assert torch.equal(draws, Noise(5000, 7).draws(x, given))
        assert not torch.equal(draws, Noise(5000, 8).draws(x, given))
        assert ((draws.T @ draws) / 5000 - torch.eye(D)).abs().max() < 0.1
        assert abs(draws.pow(4).mean() - 3) < 0.1
    # What the layer sees is integrated better than by chance, 1 / sqrt(5000 / 2) = 0.02.
    basis = torch.linalg.qr(weight.T)[0]
    assert (((draws @ basis).T @ (draws @ basis)) / 5000 - torch.eye(3)).abs().max() < 5e-3
    assert Noise(7, 0).draws(x).shape == (7, D)
    # There are Sobol points in no more than 21,201 dimensions.
    assert Noise(4, 0).draws(torch.zeros(1, 21_300)).isfinite().all()


def test_draws_are_chunked(monkeypatch) -> None:
    """As many at a time as bounded memory allows, with the same result."""
    monkeypatch.setattr("lgi.metric.noise._N_VALUES", 1 << 11)
    seen = []

    def features(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.flatten(1).sin().repeat(1, 1 << 4)

    z = randn(3, 2)
    large, small = sampled(features, 64), sampled(lambda x: x.flatten(1).sin(), 64)
    assert deviation(large.tensor(z), (1 << 4) * small.tensor(z)) <= 1e-12
    # 2^11 values, of which an output has 12 * 2^4.
    assert max(seen) <= 10


# ---- the solver ----


def test_curves_are_found_and_certified() -> None:
    metric = sampled(classifier(), 128)
    start, end = randn(2, 6, 2, seed=4)
    result = lgi.shorten(metric, start, end)
    assert result.converged.all()
    assert (result.length <= result.straight_length).all()
    certificate = lgi.certify(metric, lgi.shorten(metric, start[0], end[0]).curve)
    assert certificate.stationary
    assert certificate.minimum
    # By speeds, which the search does not use.
    assert ((lgi.curve_length(metric, result.curve) / result.length - 1).abs() < 1e-3).all()


# ---- errors ----


def test_what_is_refused() -> None:
    model, z = classifier(), randn(3, 2)
    with pytest.raises(ValueError, match="noise must be one of linearised, sampled, got 'gauss'"):
        PullbackMetric(DECODER, model, noise="gauss")
    with pytest.raises(ValueError, match="n_draws to be at least 2, got 1"):
        PullbackMetric(DECODER, model, noise="sampled", n_draws=1)
    with pytest.raises(ValueError, match="returns one tensor"):
        PullbackMetric(DECODER.mean, model, noise="sampled", latent_dim=2).tensor(z)
    with pytest.raises(ValueError, match="has no draws"):
        PullbackMetric(DECODER, model).noise_error(z)
    with pytest.raises(ValueError, match="n_replicates to be at least 2, got 1"):
        sampled(model).noise_error(z, 1)
