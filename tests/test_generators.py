"""Generators of all kinds that people bring: the right metric and a curve, or an error that says what to do.

`pytest -rA tests/test_generators.py` prints the table of what works.
"""

import copy
import re
import sys
from typing import Any

import pytest
import torch
from generators.families import Authors, autoencoder_of_diffusers
from generators.zoo import REFUSED, WORKS, Case
from packaging.version import Version
from test_metric_memory import peak_growth
from torch import Tensor, nn

from lgi import artifacts, worst_case_improvement
from lgi.metric import PullbackMetric
from lgi.solver import SolverSettings, shorten


def state(model: nn.Module | None) -> dict[str, object]:
    """All that a call may change: buffers and parameters, modes, attributes."""
    if model is None:
        return {}
    found: dict[str, object] = {}
    for name, part in model.named_modules():
        attributes = {key for key in vars(part) if not isinstance(part, torch.jit.ScriptModule)}
        found[name] = (part.training, attributes, {k: v for k, v in vars(part).items() if isinstance(v, int | Tensor)})
    return found | {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(before: dict[str, object], after: dict[str, object]) -> None:
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        if isinstance(old, Tensor):
            assert torch.equal(old, new), name  # type: ignore[arg-type]
            continue
        assert old[:2] == new[:2], name  # type: ignore[index]
        assert all(new[2][key] is value for key, value in old[2].items()), name  # type: ignore[index]


def _copied(model: nn.Module | None) -> bool:
    """Whether the model can be copied: an unused weight norm of the older form cannot."""
    try:
        copy.deepcopy(model)
    except RuntimeError:
        return False
    return True


def by_differences(generator: Any, z: Tensor, feature_map: Any = None) -> Tensor:
    """``M`` (n, d, d) of a generator in float64: J by central differences."""

    def h(z: Tensor) -> Tensor:
        with torch.no_grad():
            output = generator(z)
        mean, *std = output if isinstance(output, tuple | list) else (output,)
        first = mean if feature_map is None else feature_map(mean)
        return torch.cat([first.flatten(1), *(x.flatten(1) for x in std)], dim=1)

    steps = 1e-6 * torch.eye(z.shape[1], dtype=torch.float64)
    J = torch.stack([(h(z + step) - h(z - step)) / 2e-6 for step in steps], dim=1)
    return J @ J.mT


@pytest.mark.filterwarnings("ignore:latent dimension:UserWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", WORKS, ids=lambda case: case.name)
def test_what_works(case: Case) -> None:
    if Version(torch.__version__) < Version(case.since):
        pytest.skip(f"torch has the derivatives since {case.since}, or somewhat earlier")
    (generator, model), z = case.made(case.dtype), case.points(6)
    before, points = state(model), z.to(case.dtype)
    copied = _copied(model)
    metric = PullbackMetric(generator, case.feature_map)
    M = metric.tensor(points[:3])
    expected = by_differences(case.made(torch.float64)[0], points[:3].double(), case.feature_map)
    assert (M - expected).abs().max() <= case.tolerance * expected.abs().max()
    v = torch.ones_like(points[:3])
    product = (expected @ v.double()[..., None])[..., 0]
    assert (metric.apply(points[:3], v) - product).abs().max() <= case.tolerance * product.abs().max()
    quick = SolverSettings(method="newton-cg" if case.d > 64 else "gauss-newton", n_control=4, n_iterations=5)
    result = shorten(metric, points[:2], points[2:4], quick)
    assert (result.length > 0).all()
    assert (result.improvement >= 0).all()
    assert result.curve(torch.linspace(0, 1, 10)).isfinite().all()
    assert_same(before, state(model))
    assert _copied(model) == copied


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_what_is_refused_says_what_to_do(case: Case) -> None:
    generator, model = case.made(case.dtype)
    before = {} if case.name == "lazy" else state(model)
    with pytest.raises(ValueError, match=f"(?s){case.refusal}") as error:
        PullbackMetric(generator).tensor(case.points(3).to(case.dtype))
    if before:
        assert_same(before, state(model))
    # For readers who have never heard of function transforms.
    assert not re.search(r"functorch|torch\.func\b|vmap|jvp|setup_context|GradTrackingTensor", str(error.value))
    assert len(str(error.value)) < 700
    print(f"{case.name}: {error.value}")


# --- where they are looked at ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", range(4))
def test_a_bounded_latent_space_is_never_left(first: int) -> None:
    """Whatever point comes first, at the border or at a corner."""
    net, seen = WORKS[0].made(torch.float64)[0], []

    def generator(u: Tensor) -> Tensor:
        seen.append(torch._C._functorch.get_unwrapped(u) if torch._C._functorch.is_functorch_wrapped_tensor(u) else u)
        if not bool(((u >= 0) & (u < 1)).all()):
            raise ValueError("outside the cube")
        return net(u)

    points = torch.tensor([[0.999999, 0.5], [0.3, 0.2], [1e-9, 0.99], [0.0, 0.0]], dtype=torch.float64)
    metric = PullbackMetric(generator)
    M = metric.tensor(points.roll(-first, 0))
    assert (M - by_differences(net, points.roll(-first, 0))).abs().max() < 1e-6
    assert metric._layout is not None
    assert metric._layout.forward
    # Without a word about the cube, it is not noticed that a step has left it.
    with pytest.raises(ValueError, match=r"no finite result at 1 of 1 points, first z = \[2.0, 3.0\]"):
        PullbackMetric(lambda z: net(z).log()).tensor(torch.tensor([[2.0, 3.0]], dtype=torch.float64))


def test_where_a_generator_is_not_defined_it_gives_nan() -> None:
    """A search that would leave the ball stays inside; of an error, a note says so."""

    def inverted(z: Tensor) -> Tensor:
        return torch.cat([z / (0.05 + z.square().sum(1, keepdim=True)), z / 20, z.sin() / 10], dim=1)

    def raises(z: Tensor) -> Tensor:
        if bool((z.norm(dim=1) >= 1).any()):
            raise RuntimeError("outside the ball")
        return inverted(z)

    start = torch.tensor([[0.33, 0.84]], dtype=torch.float64)
    ends, quick = (start, start * torch.tensor([1.0, -1.0])), SolverSettings(n_iterations=20)
    t = torch.linspace(0, 1, 201, dtype=torch.float64)
    assert shorten(PullbackMetric(inverted), *ends, quick).curve(t).norm(dim=-1).max() > 1.5
    with pytest.raises(RuntimeError, match="outside the ball") as error:
        shorten(PullbackMetric(raises), *ends, quick)
    assert "Where it is not defined it may return NaN" in error.value.__notes__[0]
    inside = PullbackMetric(lambda z: inverted(z).where(z.norm(dim=1, keepdim=True) < 1, torch.nan))
    result = shorten(inside, *ends, quick)
    assert result.improvement > 0.4
    assert result.curve(t).norm(dim=-1).max() < 1


def test_what_users_change_between_calls_stays_changed() -> None:
    """What a call changes is put back to what it was before that call, not before the first."""
    case = next(case for case in WORKS if case.name == "keeps_what_it_has_seen")
    model, z = case.made(torch.float32)[0], case.points(3).float()
    metric = PullbackMetric(model)
    metric.tensor(z)
    model.n_calls, model.features = 7, "mine"
    model.calls.fill_(9)
    metric.tensor(z)
    assert (model.n_calls, model.features, model.calls.item()) == (7, "mine", 9)
    model(z)
    assert (model.n_calls, model.calls.item()) == (8, 10)


def test_autocast_around_a_metric_is_left_outside() -> None:
    case = WORKS[0]
    metric, z = PullbackMetric(case.made(torch.float32)[0]), case.points(3).float()
    expected = metric.tensor(z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(metric.tensor(z), expected)
        assert torch.is_autocast_enabled("cpu")


# --- sizes -----------------------------------------------------------------------------------------------------------


def images_of(size: int, d: int) -> nn.Module:
    """Images 3 x size x size from 4 x 4, with 32 channels at the end."""
    layers, n = [nn.Linear(d, 64 * 16), nn.Unflatten(1, (64, 4, 4))], 64
    while size > 4:
        layers += [nn.ConvTranspose2d(n, 32, 4, 2, 1), nn.SiLU()]
        n, size = 32, size // 2
    return nn.Sequential(*layers, nn.Conv2d(n, 3, 3, padding=1), nn.Sigmoid()).requires_grad_(False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_memory_of_large_generators() -> None:
    """64 tangents of 21 points at once took 2.8 GiB; the graph of a whole curve of 3 x 256 x 256 takes more."""
    metric, z = PullbackMetric(images_of(64, 64)), torch.randn(21, 64)
    metric.tensor(z[:1])
    assert peak_growth(lambda: metric.tensor(z)) < 200
    large, points = PullbackMetric(images_of(256, 4)), torch.randn(30, 4)
    large.tensor(points[:1])
    assert peak_growth(lambda: large.squared_speed_and_gradient(points[:3], points[:3])) < 1000

    def embed() -> None:
        leaf = points.clone().requires_grad_()
        large.embed(leaf).square().sum().backward()

    # With the graph of all 30 points, 1.4 GiB.
    assert peak_growth(embed) < 800


def test_gradients_of_an_embedding_do_not_depend_on_chunks() -> None:
    """With several chunks, values are computed anew in the reverse pass, also in one of second order."""
    case = next(case for case in WORKS if case.name == "scaled_dot_product_attention")
    found = []
    for chunk_size in (None, 1):
        metric = PullbackMetric(case.made(torch.float64)[0], chunk_size=chunk_size)
        z = case.points(5).requires_grad_()
        value = metric.embed(z)
        (gradient,) = torch.autograd.grad(value.square().sum(), z, create_graph=True)
        found.append((value, gradient, *torch.autograd.grad(gradient.square().sum(), z)))
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


# --- models of others ------------------------------------------------------------------------------------------------


@pytest.mark.needs_authors
@pytest.mark.filterwarnings("ignore:.*weight_norm|.*spectral_norm:FutureWarning")
@pytest.mark.filterwarnings("ignore::lgi.studies.UncertifiedWarning")
@pytest.mark.parametrize("name", ["vae16_decoder", "bigan16_generator"])
def test_published_weights(name: str) -> None:
    folder = next(f / "authors" for f in artifacts.raw_data_folders() if (f / "authors").exists())
    model, z = Authors(folder, name), torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    before, metric = state(model), PullbackMetric(model)
    M, expected = metric.tensor(z), by_differences(Authors(folder, name).double(), z.double())
    assert (M - expected).abs().max() <= 1e-4 * expected.abs().max()
    quick = SolverSettings(n_control=5, n_iterations=10)
    found = worst_case_improvement(metric, 3, settings=quick, latent_dim=16)
    assert (found.improvement > 0).all()
    assert found.mean < 0.5
    assert_same(before, state(model))
    copy.deepcopy(model)


def test_an_autoencoder_of_diffusers() -> None:
    pytest.importorskip("diffusers")
    torch.manual_seed(1)
    model, flat = autoencoder_of_diffusers(), nn.Unflatten(1, (4, 4, 4))
    with pytest.raises(ValueError, match=r"DecoderOutput, which holds sample: .* lambda z: generator\(z\)\.sample"):
        PullbackMetric(lambda z: model.decode(flat(z))).tensor(torch.randn(1, 64))
    with pytest.raises(
        ValueError, match=r"AutoencoderKL is a whole model: give PullbackMetric its \.decoder or \.decode"
    ):
        PullbackMetric(model).tensor(torch.randn(1, 64))
    z = torch.randn(2, 64)
    M = PullbackMetric(lambda z: model.decode(flat(z)).sample).tensor(z)
    model.double()
    expected = by_differences(lambda z: model.decode(flat(z)).sample, z.double())
    assert (M - expected).abs().max() <= 1e-3 * expected.abs().max()
