"""Pull-back metrics against closed forms and the paper's equations as they are written (eqs 1-4, App. E)."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from analytic import HALF_PLANE, SURFACES, AffineDecoder, half_plane_tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import jacfwd, jvp, vmap

from lgi import paper
from lgi.features import ClassifierOutput, LogisticRegression
from lgi.metric import ConformalMetric, ExplicitMetric, Metric, PullbackMetric, metric_fields
from lgi.metric.derivatives import differentiable

D, K = 12, 5
AFFINE = AffineDecoder.random(d=5)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def deviation(a: Tensor, b: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((a - b).detach().abs().max() / b.detach().abs().max())


class Decoder(nn.Module):
    """Small smooth stochastic decoder with images (1, 4, 3) as output."""

    def __init__(self, d: int = 2) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.mean = nn.Sequential(nn.Linear(d, 8), nn.Tanh(), nn.Linear(8, D), nn.Unflatten(1, (1, 4, 3)))
            positive = nn.Softplus(), nn.Unflatten(1, (1, 4, 3))
            self.std = nn.Sequential(nn.Linear(d, 8), nn.SiLU(), nn.Linear(8, D), *positive)
        self.double()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(z), self.std(z)


def curved_features(n_features: int = K) -> nn.Module:
    """Feature map (1, 4, 3) -> (n_features,), so curved that a detached argument of its Jacobian shows."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(D, n_features), nn.LogSoftmax(dim=-1)).double()
    layers[1].weight.data *= 30
    return layers


def classifier(n_classes: int = 3, output: ClassifierOutput = "probabilities") -> LogisticRegression:
    weight, bias = 2 * randn(n_classes, D, seed=2), randn(n_classes, seed=3)
    return LogisticRegression(weight, bias, torch.arange(n_classes), output=output)


def metrics() -> dict[str, PullbackMetric]:
    decoder, features = Decoder(), curved_features()
    return {
        "eq1": PullbackMetric(decoder.mean),
        "eq2": PullbackMetric(decoder),
        "eq3": PullbackMetric(decoder.mean, features),
        "eq4": PullbackMetric(decoder, features),
        "eq4_many_features": PullbackMetric(decoder, curved_features(17)),
        "sampled": PullbackMetric(decoder, features, noise="sampled", n_draws=5),
        "sampled_affine_first": PullbackMetric(decoder, classifier(), noise="sampled", n_draws=6),
        "eq4_probes": PullbackMetric(decoder, features, n_probes=3),
    }


EQUATIONS = tuple(metrics())


@pytest.fixture(params=EQUATIONS)
def metric(request: pytest.FixtureRequest) -> PullbackMetric:
    return metrics()[request.param]


def of_draws(generator: Callable, feature_map: Callable, z: Tensor, draws: Tensor) -> Tensor:
    """``J^T J`` (n, d, d) of ``f(mu + sigma epsilon)`` at z (d,) for n draws of epsilon: nothing leaves the mean."""

    def one(epsilon: Tensor) -> Tensor:
        def features(z: Tensor) -> Tensor:
            mu, sigma = generator(z[None])
            return feature_map(mu + sigma * epsilon).flatten()

        J = jacfwd(features)(z)
        return J.T @ J

    return vmap(one)(draws)


def brute_force(metric: PullbackMetric, z: Tensor) -> Tensor:
    """Eqs 1-4 (n, d, d) as the paper writes them; test_paper.py holds these against closed forms and Monte Carlo.

    Of fixed draws, the mean of eq. 3 over them.
    """
    generator, feature_map = metric.generator, metric.feature_map
    if metric.noise == "sampled":
        mean = generator(z)[0]
        draws = metric._outputs.noise.draws(mean, getattr(feature_map, "weight", None)).unflatten(1, (1, 4, 3))
        assert len(draws) == metric.n_draws
        return torch.stack([of_draws(generator, feature_map, point, draws).mean(0) for point in z])
    stochastic = isinstance(generator(z), tuple)
    if feature_map is None:
        plain = partial(paper.stochastic_metric if stochastic else paper.deterministic_metric, generator)
    else:
        with_features = paper.stochastic_feature_metric if stochastic else paper.deterministic_feature_metric
        plain = partial(with_features, generator, feature_map)
    return torch.stack([plain(point) for point in z])


# ---- closed forms ----


# The affine decoder: of images, in more than two latent dimensions.
@pytest.mark.parametrize(
    ("generator", "tensor", "z"),
    [
        *(pytest.param(s.embed, s.tensor, s.sample(200), id=s.name) for s in SURFACES),
        pytest.param(AFFINE, AFFINE.tensor, randn(7, 5), id="affine"),
    ],
)
def test_closed_forms(generator: Callable[[Tensor], Tensor], tensor: Callable[[Tensor], Tensor], z: Tensor) -> None:
    metric, v, M = PullbackMetric(generator), randn(*z.shape, seed=1), tensor(z)
    assert deviation(metric.tensor(z), M) <= 1e-10
    assert metric.latent_dim == z.shape[1]
    assert deviation(metric.squared_speed(z, v), torch.einsum("ni,nij,nj->n", v, M, v)) <= 1e-10
    assert deviation(metric.apply(z, v), torch.einsum("nij,nj->ni", M, v)) <= 1e-10
    assert (metric.log_volume(z) - torch.linalg.det(M).log() / 2).abs().max() <= 1e-10
    values = torch.linalg.eigvalsh(M)
    assert (metric.log_condition(z) - (values[:, -1] / values[:, 0]).log10()).abs().max() <= 1e-10


# ---- eqs 1-4 ----


@pytest.mark.parametrize("equation", EQUATIONS[:-1])
def test_equals_brute_force(equation: str) -> None:
    metric, z = metrics()[equation], randn(20, 2)
    expected = brute_force(metric, z)
    assert deviation(metric.tensor(z), expected) <= 1e-10


def test_equals_brute_force_to_rounding_for_all_methods(metric: PullbackMetric) -> None:
    z, v = randn(20, 2), randn(20, 2, seed=1)
    M = metric.tensor(z)
    assert torch.equal(M, M.mT)
    squared = torch.einsum("ni,nij,nj->n", v, M, v)
    assert deviation(metric.squared_speed(z, v), squared) <= 1e-13
    assert deviation(metric.speed(z, v), squared.sqrt()) <= 1e-13
    assert deviation(metric.apply(z, v), torch.einsum("nij,nj->ni", M, v)) <= 1e-13
    values, vectors = metric.eigh(z)
    assert (values[:, 0] <= values[:, 1]).all()
    assert deviation(M @ vectors, vectors * values[:, None, :]) <= 1e-13


def test_estimated_diagonal_is_unbiased_and_of_the_stated_error() -> None:
    """M is linear in diag(M_F), so that its second term shows what is true of the diagonal."""
    decoder, features, z = Decoder(), curved_features(), randn(2)
    exact = PullbackMetric(decoder, features).tensor(z)
    std_term = exact - PullbackMetric(decoder.mean, features).tensor(z)
    values = torch.stack([PullbackMetric(decoder, features, n_probes=50, seed=s).tensor(z) for s in range(300)])
    observed = values.std(0)
    assert ((values.mean(0) - exact).abs() <= 4 * observed / 300**0.5).all()
    assert (observed.diagonal() > 0.01 * std_term.diagonal()).all()
    # 300 repetitions know a standard deviation to about 4 %.
    assert (observed.diagonal() <= 1.2 * std_term.diagonal() * (2 / 50) ** 0.5).all()


# ---- embedding, for the solver ----


@pytest.mark.parametrize("equation", ["eq1", "eq2", "eq3", "sampled", "sampled_affine_first"])
def test_embedding_and_its_columns(equation: str) -> None:
    metric, z = metrics()[equation], randn(3, 4, 2)
    assert metric.split(z)[1] is None
    value, columns = metric.linearise(z)
    assert value.shape == (*z.shape[:-1], columns.shape[-1])
    assert torch.equal(metric.embed(z), value)
    assert deviation(columns @ columns.mT, metric.tensor(z)) <= 1e-13
    step = 1e-6 * torch.eye(2, dtype=torch.float64)
    difference = (metric.embed(z[..., None, :] + step) - metric.embed(z[..., None, :] - step)) / 2e-6
    assert deviation(columns, difference) <= 1e-8


def test_eq4_has_no_embedding() -> None:
    metric, z = metrics()["eq4"], randn(3, 2)
    assert metric.split(randn(0, 2))[1] is not None
    assert metric.split(z)[1] is not None
    for method in (metric.embed, metric.linearise):
        with pytest.raises(TypeError, match="no embedding"):
            method(z)


# ---- gradients ----


def test_gradients_against_finite_differences(metric: PullbackMetric) -> None:
    """Through J_F(mu(z)) as well: a detached argument there is the known trap."""
    z, v, h = randn(6, 2), randn(6, 2, seed=1), 1e-5
    value, z_gradient, v_gradient = metric.squared_speed_and_gradient(z, v)
    assert deviation(value, metric.squared_speed(z, v)) <= 1e-13
    for i, e in enumerate(h * torch.eye(2, dtype=torch.float64)):
        along_z = (metric.squared_speed(z + e, v) - metric.squared_speed(z - e, v)) / (2 * h)
        along_v = (metric.squared_speed(z, v + e) - metric.squared_speed(z, v - e)) / (2 * h)
        assert deviation(z_gradient[:, i], along_z) <= 1e-6
        assert deviation(v_gradient[:, i], along_v) <= 1e-6


def test_automatic_differentiation_agrees(metric: PullbackMetric) -> None:
    z, v = randn(2, 3, 2), randn(2, 3, 2, seed=1)
    _, z_gradient, v_gradient = metric.squared_speed_and_gradient(z, v)
    leaves = z.clone().requires_grad_(), v.clone().requires_grad_()
    gradients = torch.autograd.grad(metric.squared_speed(*leaves).sum(), leaves)
    assert deviation(gradients[0], z_gradient) <= 1e-13
    assert deviation(gradients[1], v_gradient) <= 1e-13
    M = metric.tensor(leaves[0])
    (through_tensor,) = torch.autograd.grad(torch.einsum("abi,abij,abj->", v, M, v), leaves[0])
    assert deviation(through_tensor, z_gradient) <= 1e-12


def test_second_derivatives_exist() -> None:
    metric = metrics()["eq2"]
    z, v = randn(2, 2).requires_grad_(), randn(2, 2, seed=1)
    assert torch.autograd.gradgradcheck(lambda z: metric.squared_speed(z, v), (z,))


def test_works_inside_function_transforms(metric: PullbackMetric) -> None:
    """What Christoffel symbols need: derivatives of the tensor, forward over forward."""
    z, v, h = randn(4, 2), randn(4, 2, seed=1), 1e-6
    M = metric.tensor(z)
    primal, dM = jvp(metric.tensor, (z,), (v,))
    assert deviation(primal, M) <= 1e-13
    difference = (metric.tensor(z + h * v) - metric.tensor(z - h * v)) / (2 * h)
    assert deviation(dM, difference) <= 1e-7
    with torch.no_grad():
        assert deviation(jvp(metric.tensor, (z,), (v,))[1], dM) <= 1e-12
    gradient = torch.func.grad(lambda z: metric.squared_speed(z, v).sum())(z)
    assert deviation(gradient, metric.squared_speed_and_gradient(z, v)[1]) <= 1e-13


def test_speed_zero_has_gradient_zero(metric: PullbackMetric) -> None:
    z = randn(3, 2).requires_grad_()
    v = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    speed = metric.speed(z, v)
    gradients = torch.autograd.grad(speed.sum(), (z, v))
    assert torch.equal(speed, torch.zeros(3, dtype=torch.float64))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


def test_pixels_without_weight_have_finite_gradients() -> None:
    """A logistic regression gives border pixels weight 0: the square root of the diagonal is not smooth there."""
    features = curved_features()
    with torch.no_grad():
        features[1].weight[:, :4] = 0
    _, gradient, _ = PullbackMetric(Decoder(), features).squared_speed_and_gradient(randn(3, 2), randn(3, 2, seed=1))
    assert gradient.isfinite().all()


# ---- reverse mode, which is used where forward mode is not available ----


def test_reverse_mode_agrees_with_forward_mode(metric: PullbackMetric) -> None:
    z, v = randn(6, 2), randn(6, 2, seed=1)
    forward = metric.tensor(z), metric.speed(z, v), *metric.squared_speed_and_gradient(z, v)
    assert metric._layout is not None
    assert metric._layout.forward
    metric._layout = replace(metric._layout, forward=False)
    reverse = metric.tensor(z), metric.speed(z, v), *metric.squared_speed_and_gradient(z, v)
    for a, b in zip(forward, reverse, strict=True):
        assert deviation(a, b) <= 1e-12


# ---- shapes, chunks, graphs ----


@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3), (0,), (2, 0)])
def test_leading_dimensions(metric: PullbackMetric, leading: tuple[int, ...]) -> None:
    z = randn(*leading, 2)
    M, (values, vectors) = metric.tensor(z), metric.eigh(z)
    assert M.shape == vectors.shape == (*leading, 2, 2)
    assert values.shape == metric.apply(z, z).shape == (*leading, 2)
    for scalar in (metric.speed(z, z), metric.squared_speed(z, z), metric.log_volume(z), metric.log_condition(z)):
        assert scalar.shape == leading
    assert [x.shape for x in metric.squared_speed_and_gradient(z, z)] == [leading, (*leading, 2), (*leading, 2)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_points(dtype: torch.dtype) -> None:
    metric, z = PullbackMetric(Decoder().to(dtype), curved_features().to(dtype)), randn(3, 2).to(dtype)
    results = metric.tensor(z), metric.speed(z, z), *metric.eigh(z), metric.log_volume(z), metric.log_condition(z)
    assert all(x.dtype == dtype for x in results)


@pytest.mark.parametrize("leading", [(), (1,)])
def test_one_point_and_many_vectors(metric: PullbackMetric, leading: tuple[int, ...]) -> None:
    """Expanded tensors, of which several elements share their memory, are as good as copies; either way round."""
    for one, many in ((randn(*leading, 2), randn(5, 2, seed=1)), (randn(1, 2).expand(5, 2), randn(5, 2, seed=1))):
        for z, v in ((one, many), (many, one)):
            copies = z.expand(5, 2).clone(), v.expand(5, 2).clone()
            for method in (metric.speed, metric.squared_speed, metric.apply):
                assert torch.equal(method(z, v), method(*copies))
            found, expected = metric.squared_speed_and_gradient(z, v), metric.squared_speed_and_gradient(*copies)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_expanded_points(metric: PullbackMetric) -> None:
    z = randn(1, 2).expand(5, 2)
    for method in (metric.tensor, metric.log_volume, metric.log_condition, lambda z: metric.eigh(z)[0]):
        assert torch.equal(method(z), method(z.clone()))
    if metric.split(z)[1] is None:
        assert torch.equal(metric.embed(z), metric.embed(z.clone()))
        assert all(torch.equal(a, b) for a, b in zip(metric.linearise(z), metric.linearise(z.clone()), strict=True))


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 50), st.sampled_from(EQUATIONS))
def test_results_do_not_depend_on_batch_or_chunk(n: int, chunk_size: int, equation: str) -> None:
    whole, chunked = metrics()[equation], metrics()[equation]
    chunked.chunk_size = chunk_size
    z, v = randn(n, 2), randn(n, 2, seed=1)
    assert deviation(whole.tensor(z), chunked.tensor(z)) <= 1e-13
    for a, b in zip(whole.squared_speed_and_gradient(z, v), chunked.squared_speed_and_gradient(z, v), strict=True):
        assert deviation(a, b) <= 1e-13
    assert (whole.speed(z, v)[-1] - chunked.speed(z[-1], v[-1])).abs() <= 1e-13


def test_generator_never_sees_more_than_a_chunk() -> None:
    seen = []

    def generator(z: Tensor) -> Tensor:
        seen.append(len(z))
        return torch.cat([z, z**2], dim=1)

    metric = PullbackMetric(generator, chunk_size=10)
    z = randn(95, 2)
    for method in (metric.tensor, metric.embed, metric.log_volume):
        method(z)
    metric.squared_speed_and_gradient(z, z)
    assert max(seen) == 10
    # Each of the four calls decodes 95 points once, besides a few rows of inspection.
    assert 4 * 95 <= sum(seen) <= 4 * 95 + 30


def test_no_graph_unless_points_require_it(metric: PullbackMetric) -> None:
    assert any(p.requires_grad for p in metric.generator.parameters())
    z = randn(3, 2)
    for result in (metric.tensor(z), metric.speed(z, z), metric.apply(z, z), *metric.squared_speed_and_gradient(z, z)):
        assert not result.requires_grad
    assert metric.tensor(z.requires_grad_()).requires_grad
    assert metric.apply(z.detach(), z).requires_grad
    with torch.no_grad():
        assert not metric.tensor(z).requires_grad
    assert all(p.grad is None for p in metric.generator.parameters())


def test_works_under_no_grad_and_inference_mode(metric: PullbackMetric) -> None:
    z, v = randn(3, 2), randn(3, 2, seed=1)
    expected = metric.tensor(z), *metric.squared_speed_and_gradient(z, v)
    with torch.no_grad():
        results = [(metric.tensor(z), *metric.squared_speed_and_gradient(z, v))]
    with torch.inference_mode():
        inference = z.clone(), v.clone()
        results.append((metric.tensor(z), *metric.squared_speed_and_gradient(z, v)))
    results.append((metric.tensor(inference[0]), *metric.squared_speed_and_gradient(*inference)))
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, expected, strict=True))


def test_inputs_are_never_changed() -> None:
    def in_place(z: Tensor) -> Tensor:
        return torch.cat([z.mul_(2), z.square_()], dim=1)

    metric, z, v = PullbackMetric(in_place), randn(4, 2), randn(4, 2, seed=1)
    before = z.clone(), v.clone()
    # Both halves of the output are (2 z)^2: torch.cat sees the same tensor twice.
    expected = torch.diag_embed(2 * (8 * z) ** 2)
    assert deviation(metric.tensor(z), expected) <= 1e-10
    metric.speed(z, v)
    metric.squared_speed_and_gradient(z, v)
    assert torch.equal(z, before[0])
    assert torch.equal(v, before[1])
    assert not z.requires_grad


def test_precision_is_restored_on_a_gpu() -> None:

    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with differentiable(torch.device("cuda")):
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


# ---- other metrics ----


def test_log_fields_of_a_degenerate_metric_are_infinite() -> None:
    metric, z = ExplicitMetric(lambda z: torch.diag_embed(torch.tensor([1.0, 0.0]).expand_as(z))), torch.zeros(3, 2)
    zero = ExplicitMetric(lambda z: torch.zeros(*z.shape, z.shape[-1]))
    for degenerate in (metric, zero):
        assert (degenerate.log_volume(z) == -torch.inf).all()
        assert (degenerate.log_condition(z) == torch.inf).all()
    assert (metric_fields(zero, [torch.linspace(0, 1, 3)] * 2).log_condition == torch.inf).all()


def test_condition_number_is_resolved_in_float32() -> None:
    """A Jacobian with condition 1e4 has a metric with 1e8, beyond what a tensor in float32 resolves."""
    A = torch.tensor([[1.0, 1.0], [1.0, 1.0003], [1.0, 0.9998]])
    metric, z = PullbackMetric(lambda z: z @ A.T), torch.randn(9, 2, generator=seeded(0))
    values = torch.linalg.svdvals(A.double()).square()
    assert (metric.log_condition(z) - (values[0] / values[1]).log10()).abs().max() <= 1e-5
    assert (metric.log_volume(z) - values.log().sum() / 2).abs().max() <= 1e-5
    assert (metric.eigh(z)[0][:, 0] / values[1] - 1).abs().max() <= 1e-5


def test_explicit_metric_is_the_function() -> None:
    metric, z, v = HALF_PLANE.metric, randn(4, 3, 2).exp(), randn(4, 3, 2, seed=1)
    assert torch.equal(metric.tensor(z), half_plane_tensor(z))
    assert deviation(metric.squared_speed(z, v), (v / z[..., 1:]).square().sum(-1)) <= 1e-12
    assert deviation(metric.apply(z, v), v / z[..., 1:] ** 2) <= 1e-12
    assert (metric.log_volume(z) + 2 * z[..., 1].log()).abs().max() <= 1e-12
    _, gradient, _ = metric.squared_speed_and_gradient(z, v)
    expected = -2 * v.square().sum(-1) / z[..., 1] ** 3
    assert deviation(gradient[..., 1], expected) <= 1e-10
    assert metric.split(z)[1] is not None


def test_conformal_metric_scales() -> None:
    """The half plane is the plane, conformally scaled by 1 / y^2."""
    plane = PullbackMetric(lambda z: torch.cat([z, 0 * z[:, :1]], dim=1))
    metric, z, v = ConformalMetric(plane, lambda z: 1 / z[:, 1] ** 2), randn(5, 2).exp(), randn(5, 2, seed=1)
    reference = HALF_PLANE.metric
    assert deviation(metric.tensor(z), reference.tensor(z)) <= 1e-12
    for a, b in zip(metric.squared_speed_and_gradient(z, v), reference.squared_speed_and_gradient(z, v), strict=True):
        assert deviation(a, b) <= 1e-12
    assert metric.split(z)[1] is not None


@pytest.mark.parametrize("equation", ["eq1", "eq4"])
def test_sum_of_metrics(equation: str) -> None:
    first, second = metrics()[equation], PullbackMetric(SURFACES[3].embed)
    total: Metric = first + second
    z, v = randn(2, 5, 2), randn(2, 5, 2, seed=1)
    assert torch.allclose(total.tensor(z), first.tensor(z) + second.tensor(z), rtol=1e-14)
    assert torch.allclose(total.squared_speed(z, v), first.squared_speed(z, v) + second.squared_speed(z, v), rtol=1e-14)
    assert (total.split(z)[1] is None) == (equation == "eq1")
    if total.split(z)[1] is None:
        value, columns = total.linearise(z)
        assert torch.equal(value, total.embed(z))
        assert deviation(columns @ columns.mT, total.tensor(z)) <= 1e-12
    else:
        with pytest.raises(TypeError, match="no embedding"):
            total.linearise(z)
