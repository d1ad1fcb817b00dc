"""Wrong generators, feature maps and points: each a clear error or warning, none a wrong number."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lgi.metric import ConformalMetric, ExplicitMetric, Metric, PullbackMetric, curve_length, metric_fields


def generator(z: Tensor) -> Tensor:
    return torch.stack([z[:, 0].sin(), z[:, 1].exp(), z.prod(1), z[:, 0] ** 2], dim=1)


Z = torch.tensor([[0.3, -0.7], [1.1, 0.4], [-0.5, 0.2]])


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm1d(8), nn.Dropout(0.5), nn.RReLU()], ids=lambda layer: type(layer).__name__
)
def test_train_mode(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 8), layer, nn.Linear(8, 4))
    # As it is, where the first call is not waited for, and hidden in a function.
    for call in (lambda: PullbackMetric(model), lambda: PullbackMetric(lambda z: model(1.0 * z)).tensor(Z)):
        with pytest.raises(ValueError, match=rf"{type(layer).__name__} '1' of Sequential is in train mode.*eval\(\)"):
            call()
    with pytest.raises(ValueError, match="train mode"):
        PullbackMetric(generator, nn.Sequential(nn.Linear(4, 8), layer))
    for make in (lambda: PullbackMetric(model), lambda: PullbackMetric(lambda z: model(1.0 * z))):
        model.eval()
        metric = make()
        metric.tensor(Z)
        model.train()
        with pytest.raises(ValueError, match="train mode"):
            metric.tensor(Z)
    # A module whose output does not depend on the mode may stay in it.
    PullbackMetric(nn.Sequential(nn.Linear(2, 8), nn.Tanh()).train()).tensor(Z)


def test_instance_norm_without_statistics_may_stay_in_train_mode() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Unflatten(1, (2, 4)), nn.InstanceNorm1d(2))
    assert torch.equal(PullbackMetric(model.train()).tensor(Z), PullbackMetric(model.eval()).tensor(Z))


def test_codes_far_from_the_origin_are_not_taken_for_quantised() -> None:
    z = torch.randn(5, 2, dtype=torch.float64)
    near, far = (
        PullbackMetric(lambda z, c=c: torch.cat([z - c, 2 * (z - c)], dim=1).tanh(), latent_dim=2) for c in (0.0, 1e6)
    )
    torch.testing.assert_close(far.tensor(1e6 + z), near.tensor((1e6 + z) - 1e6))


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("features", [None, lambda x: torch.cat([x, x.sin()], dim=1)])
def test_nothing_is_measured_where_a_generator_is_not_defined(stochastic: bool, features: Any) -> None:
    """The derivative of a NaN that torch.where puts in is 0."""
    hole = lambda z: torch.where(z[:, :1].abs() < 0.1, torch.nan, torch.cat([z, z.square()], dim=1))  # noqa: E731
    generator = (lambda z: (torch.cat([z, z], dim=1), hole(z).abs())) if stochastic else hole
    metric = PullbackMetric(generator, features, latent_dim=2)
    z = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    for measured in (metric.tensor, lambda z: metric.squared_speed(z, z), lambda z: curve_length(metric, z - 1)):
        with pytest.raises(ValueError, match="NaN or infinity"):
            measured(z)


def frozen(z: Tensor) -> Tensor:
    with torch.no_grad():
        return generator(z)


def inference(z: Tensor) -> Tensor:
    with torch.inference_mode():
        return generator(z)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (inference, "cut off.*inference_mode"),
        (lambda z: (generator(z), frozen(z).abs()), "contradict.*no_grad"),
        (lambda z: generator(z).sum(0), r"n = 1 rows.*\(4,\).*batch"),
        (lambda z: generator(z).sum(), r"n = 1 rows.*\(\)"),
        (lambda z: generator(z).T, r"n = 1 rows.*\(4, 1\)"),
        (lambda z: (generator(z),) * 3, r"pair \(mean, std\), got torch.float32 of shape \(1, 4\).*, torch"),
        (lambda z: None, "got a NoneType"),
        (lambda z: generator(z) / 0, r"NaN or infinity"),
        (lambda z: generator(z) * torch.nan, r"NaN or infinity"),
    ],
)
def test_wrong_generators(wrong: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        PullbackMetric(wrong).tensor(Z)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x.sum(0), r"feature map to return n = 1 rows for an input of shape \(1, 4\), got \(4,\)"),
        (lambda x: x.repeat(2, 1), r"n = 1 rows.*\(2, 4\)"),
        (lambda x: x.detach(), "cut off"),
        (lambda x: (x, x), "got a tuple"),
        (lambda x: x[:, :3] @ torch.ones(4, 2), "failed on torch.float32 of shape"),
        (lambda x: x.argmax(1), "got torch.int64"),
    ],
)
def test_wrong_feature_maps(wrong: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PullbackMetric(generator, wrong).tensor(Z)


def test_nan_away_from_the_first_point_is_named() -> None:
    metric = PullbackMetric(lambda z: torch.stack([z[:, 0].sqrt(), z[:, 1], z[:, 1]], dim=1))
    good = torch.tensor([[0.5, 0.0], [2.0, 1.0]])
    metric.tensor(good)
    bad = torch.cat([good, torch.tensor([[-1.0, 3.0], [-2.0, 3.0]])]).reshape(2, 2, 2)
    for method in (metric.tensor, metric.eigh, metric.log_volume, metric.log_condition):
        with pytest.raises(ValueError, match=r"at 2 of 4 points, first z = \[-1.0, 3.0\]: the generator gives NaN"):
            method(bad)
    for method in (metric.speed, metric.squared_speed, metric.apply):
        with pytest.raises(ValueError, match=r"first z = \[-1.0, 3.0\]"):
            method(bad, torch.ones(2))
    with pytest.raises(ValueError, match="z itself is not finite"):
        metric.tensor(torch.tensor([[torch.nan, 0.0]]))
    # A solver refuses a step by itself, without losing the other curves of its batch.
    value, _, _ = metric.squared_speed_and_gradient(bad, bad)
    assert value.isfinite().tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(3, 2, dtype=torch.int64), r"torch.int64 of shape \(3, 2\).*use z.float\(\)"),
        (torch.zeros(3, 3), r"expected points z \(\.\.\., 2\), got shape \(3, 3\)"),
        (torch.tensor(1.0), r"got shape \(\)"),
        ([[0.0, 1.0]], "got a list: use torch.as_tensor"),
        (np.zeros((3, 2)), "got a ndarray: use torch.as_tensor"),
    ],
)
def test_wrong_points(z: Any, message: str) -> None:
    for metric in (PullbackMetric(generator, latent_dim=2), ExplicitMetric(lambda z: z, latent_dim=2)):
        with pytest.raises(ValueError, match=message):
            metric.tensor(z)


def test_latent_dimension_is_learnt_from_generator_or_points() -> None:
    class Model(nn.Linear):
        latent_dim = 2

    with pytest.raises(ValueError, match=r"\(\.\.\., 2\), got shape \(3, 5\)"):
        PullbackMetric(Model(2, 4)).tensor(torch.zeros(3, 5))
    for first in (PullbackMetric.tensor, PullbackMetric.split):
        metric = PullbackMetric(nn.Linear(2, 8))
        around = ConformalMetric(metric, lambda z: torch.ones(len(z)))
        with pytest.raises(ValueError, match=r"failed on torch.float32 of shape \(1, 5\).*check the last dimension"):
            first(metric, torch.zeros(3, 5))
        assert metric.latent_dim is None
        first(metric, Z)
        assert metric.latent_dim == 2
        for method in (metric.tensor, metric.split, around.tensor):
            with pytest.raises(ValueError, match=r"\(\.\.\., 2\), got shape \([13], 5\)"):
                method(torch.zeros(3, 5))


def test_another_dtype() -> None:
    metric = PullbackMetric(nn.Linear(2, 8))
    with pytest.raises(
        ValueError, match=r"torch.float64.*parameters torch.float32 on cpu; check the last dimension, dtype"
    ):
        metric.tensor(Z.double())
    expected = metric.tensor(Z)
    for method in (metric.tensor, metric.embed, metric.log_volume, lambda z: metric.speed(z, z)):
        with pytest.raises(ValueError, match=r"torch.float64.*parameters torch.float32 on cpu"):
            method(Z.double())
    assert torch.equal(metric.tensor(Z), expected)
    either = PullbackMetric(generator)
    assert [either.tensor(z).dtype for z in (Z, Z.double(), Z)] == [torch.float32, torch.float64, torch.float32]


@pytest.mark.parametrize(
    ("v", "message"),
    [
        (torch.zeros(3, 3), r"same d, got \(3, 2\) and \(3, 3\)"),
        (torch.zeros(4, 2), r"z \(3, 2\) and v \(4, 2\) cannot be broadcast"),
        (torch.zeros(3, 2, dtype=torch.float64), "one dtype"),
        (None, "got torch.float32 of shape .* and a NoneType: use torch.as_tensor"),
        (np.ones(2), "and a ndarray: use torch.as_tensor"),
    ],
)
def test_wrong_vectors(v: Any, message: str) -> None:
    metric = PullbackMetric(generator)
    for method in (metric.speed, metric.squared_speed, metric.apply, metric.squared_speed_and_gradient):
        with pytest.raises(ValueError, match=message):
            method(Z, v)


@pytest.mark.parametrize("n_output", [1, 2])
def test_output_not_larger_than_the_latent_space(n_output: int) -> None:
    metric = PullbackMetric(lambda z: generator(z)[:, :n_output])
    with pytest.warns(UserWarning, match=f"latent dimension 2 >= output dimension {n_output}"):
        metric.tensor(Z)
    # Once for each metric, not for each call.
    metric.tensor(Z)


def test_dead_output_is_degenerate_and_not_an_error() -> None:
    """A constant output is a metric of zeros, not one cut off from its input."""
    metric = PullbackMetric(lambda z: torch.relu(generator(z) - 100))
    assert metric.tensor(Z).abs().max() == 0
    assert metric.log_volume(Z).tolist() == [-torch.inf] * 3


def test_wrong_settings() -> None:
    for setting in ({"latent_dim": 0}, {"chunk_size": 0}, {"n_probes": -1}):
        with pytest.raises(ValueError, match=rf"{next(iter(setting))} to be at least 1"):
            PullbackMetric(generator, **setting)
    for wrong in ((3,), (generator, 3)):
        with pytest.raises(ValueError, match="expected callables"):
            PullbackMetric(*wrong)  # type: ignore[arg-type]


def test_wrong_explicit_and_conformal_metrics() -> None:
    with pytest.raises(ValueError, match=r"M\(z\) of shape \(1, 2, 2\) for z of shape \(1, 2\), got .* \(1, 2\)"):
        ExplicitMetric(lambda z: z).tensor(Z)
    skew = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    with pytest.raises(ValueError, match="symmetric"):
        ExplicitMetric(lambda z: skew.expand(len(z), 2, 2)).speed(Z, Z)
    for factor in (lambda z: z, lambda z: -torch.ones(len(z)), lambda z: 2.0):
        with pytest.raises(ValueError, match="positive factor of shape"):
            ConformalMetric(PullbackMetric(generator), factor).tensor(Z)
    with pytest.raises(ValueError, match="one latent space, got 2 and 3"):
        PullbackMetric(generator, latent_dim=2) + PullbackMetric(generator, latent_dim=3)
    with pytest.raises(TypeError):
        PullbackMetric(generator) + 1  # type: ignore[operator]


def constant(M: list[list[float]]) -> ExplicitMetric:
    return ExplicitMetric(lambda z: torch.tensor(M, dtype=z.dtype).expand(len(z), 2, 2))


NEGATIVE = {
    "negative": constant([[-1, 0], [0, -1]]),
    "indefinite": constant([[-1, 0], [0, 1]]),
    "zero_diagonal": constant([[0, -1], [-1, 0]]),
    "in_a_sum": constant([[1, 0], [0, 1]]) + constant([[-3, 0], [0, 0]]),
    "beyond_the_first_point": ConformalMetric(PullbackMetric(generator), lambda z: 2 - z.square().sum(1)),
    "beyond_the_first_chunk": ConformalMetric(PullbackMetric(generator, chunk_size=1), lambda z: 2 - z.square().sum(1)),
}


@pytest.mark.parametrize("metric", NEGATIVE.values(), ids=NEGATIVE)
def test_metrics_that_are_not_positive(metric: Metric) -> None:
    z, v = torch.tensor([[0.5, 0.5], [1.5, 1.0]]), torch.tensor([1.0, 0.5])
    message = r"(semi-definite metric, got the eigenvalue -|positive factor ).* z = \[+(0.5, 0.5|1.5, 1.0)\]"
    for method in (metric.tensor, metric.eigh, metric.log_volume, metric.log_condition):
        with pytest.raises(ValueError, match=message):
            method(z)
    for method in (metric.speed, metric.squared_speed, metric.apply):
        with pytest.raises(ValueError, match=message):
            method(z, v)
    with pytest.raises(ValueError, match=message):
        metric.speed(z[1], v)
    with pytest.raises(ValueError, match=r"semi-definite metric|positive factor"):
        curve_length(metric, z)
    with pytest.raises(ValueError, match=r"semi-definite metric|positive factor"):
        metric_fields(metric, [z[:, 0], z[:, 1]], batch_size=1)
    # A solver is shown what is there.
    assert metric.squared_speed_and_gradient(z, v)[0][1] < 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_not_a_negative_metric(dtype: torch.dtype) -> None:
    stream = torch.Generator().manual_seed(0)
    for d in (2, 20):
        A = torch.randn(d // 2, d, generator=stream, dtype=torch.float64)
        z = torch.randn(200, d, generator=stream, dtype=torch.float64).to(dtype)
        for scale in (1, 1e-12, 0):
            M = (scale * A.T @ A).to(dtype)
            # A computed tensor is not exact, and its squared speeds may be negative where they should be 0.
            M = M - 10 * torch.finfo(dtype).eps * M.trace() * torch.eye(d, dtype=dtype)
            metric = ExplicitMetric(lambda z, M=M: M.expand(len(z), *M.shape))
            v = torch.linalg.svd(A).Vh[-1].to(dtype)
            assert (metric.squared_speed_and_gradient(z, v)[0] < 0).all() == (scale > 0)
            assert (metric.speed(z, v) == 0).all()
            assert torch.equal(metric.tensor(z)[0], M)
            assert (metric.log_condition(z) == torch.inf).all()


@pytest.mark.slow
def test_first_forward_derivative_of_a_process_is_quiet() -> None:
    """torch's own deprecation of torch.jit.script comes with the first jvp; nobody who uses lgi should see it."""
    code = (
        "import warnings; warnings.simplefilter('error'); import torch; from lgi.metric import PullbackMetric; "
        "print(PullbackMetric(lambda z: torch.cat([z, z**2], 1)).tensor(torch.ones(2)).trace().item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "10.0"
