"""Generators of all kinds that people bring: the right metric and a curve, or an error that says what to do.

`pytest -rA tests/test_generators.py` prints the table of what works.
"""

import copy
import re

import pytest
import torch
from generators.zoo import REFUSED, WORKS, Case
from torch import Tensor, nn

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


def by_differences(case: Case, z: Tensor) -> Tensor:
    """``M`` (n, d, d) in float64: J by central differences."""
    generator = case.made(torch.float64)[0]

    def h(z: Tensor) -> Tensor:
        with torch.no_grad():
            output = generator(z)
        mean, *std = output if isinstance(output, tuple | list) else (output,)
        first = mean if case.feature_map is None else case.feature_map(mean)
        return torch.cat([first.flatten(1), *(x.flatten(1) for x in std)], dim=1)

    steps = 1e-6 * torch.eye(case.d, dtype=torch.float64)
    J = torch.stack([(h(z + step) - h(z - step)) / 2e-6 for step in steps], dim=1)
    return J @ J.mT


@pytest.mark.filterwarnings("ignore:latent dimension:UserWarning", "ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", WORKS, ids=lambda case: case.name)
def test_what_works(case: Case) -> None:
    (generator, model), z = case.made(case.dtype), case.points(6)
    before, points = state(model), z.to(case.dtype)
    copied = _copied(model)
    metric = PullbackMetric(generator, case.feature_map)
    M, expected = metric.tensor(points[:3]), by_differences(case, points[:3].double())
    assert (M - expected).abs().max() <= case.tolerance * expected.abs().max()
    v = torch.ones_like(points[:3])
    product = (expected @ v.double()[..., None])[..., 0]
    assert (metric.apply(points[:3], v) - product).abs().max() <= case.tolerance * product.abs().max()
    quick = SolverSettings(
        method="lbfgs" if case.d > 64 else "gauss-newton", n_control=4, n_iterations=5, progress=False
    )
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
