"""What a generator and a feature map give at a point (values, derivatives), and whether it can be trusted.

One that cannot (train mode, rows that see each other, disabled gradients, wrong shapes) is refused with what to do
about it before it gives a wrong number: :func:`probe` looks at the first point.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap
from torch.nn.utils.parametrizations import _SpectralNorm

from lgi.checks import describe
from lgi.metric.batching import finite, full_precision

Generator: TypeAlias = Callable[[Tensor], Any]
"""``(n, d) -> (n, *data_shape)`` or ``-> (mean, std)``, each of that shape; standard deviation, never variance."""

FeatureMap: TypeAlias = Callable[[Tensor], Tensor]
"""``(n, *data_shape) -> (n, *feature_shape)``."""


@dataclass(frozen=True)
class Outputs:
    """The map ``h``: mean, or features of the mean, then the standard deviation if there is one, in one vector (m,).

    Every method takes one chunk of points ``z (n, d)`` and, beside what it is asked for, returns the mean
    ``(n, *data_shape)``, where eq. 4 wants the feature map's Jacobian.
    """

    generator: Generator
    feature_map: FeatureMap | None

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and, of a stochastic generator, standard deviation."""
        # A copy: a generator that changes its input in place would change the caller's tensor.
        output = self.generator(z.clone())
        parts = tuple(output) if isinstance(output, tuple | list) else (output,)
        if len(parts) not in (1, 2) or not all(isinstance(p, Tensor) and p.is_floating_point() for p in parts):
            raise ValueError(
                "expected the generator to return a floating-point tensor or a pair (mean, std), got "
                f"{', '.join(describe(p) for p in parts)}"
            )
        mean, std = parts[0], parts[1] if len(parts) == 2 else None
        if std is not None and std.shape != mean.shape:
            raise ValueError(
                f"expected the std in the shape of the mean, got mean {tuple(mean.shape)} and std {tuple(std.shape)}"
            )
        _check_batch("generator", len(z), z.shape, mean)
        return mean, std

    def values(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``h(z)`` (n, m) and the mean."""
        mean, std = self.decode(z)
        first = mean
        if self.feature_map is not None:
            first = self.feature_map(mean)
            if not isinstance(first, Tensor) or not first.is_floating_point():
                raise ValueError(f"expected the feature map to return a floating-point tensor, got {describe(first)}")
            _check_batch("feature map", len(z), mean.shape, first)
        first = first.reshape(len(z), -1)
        return (first if std is None else torch.cat([first, std.reshape(len(z), -1)], dim=1)), mean

    def forward(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``h(z)``, ``J_h v`` and the mean, in one pass of forward mode."""
        # The tangent is copied for the same reason as the point in `decode`.
        return cast("tuple[Tensor, Tensor, Tensor]", jvp(self.values, (z,), (v.clone(),), has_aux=True))

    def reverse(self, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
        """``h(z)``, the function ``u -> J_h^T u`` and the mean."""
        value, pull, mean = cast("tuple[Tensor, Any, Tensor]", vjp(self.values, z, has_aux=True))
        return value, lambda u: pull(u)[0], mean

    def reverse_twice(self, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
        """``h(z)``, the function ``v -> J_h v`` (the transpose of the linear ``u -> J_h^T u``) and the mean."""
        value, pull, mean = self.reverse(z)
        push = vjp(pull, torch.zeros_like(value))[1]
        return value, lambda v: push(v)[0], mean


def _check_batch(name: str, n: int, given: Sequence[int], output: Tensor) -> None:
    if output.ndim == 0 or len(output) != n:
        raise ValueError(
            f"expected the {name} to return n = {n} rows for an input of shape {tuple(given)}, got "
            f"{tuple(output.shape)}: it must take a batch and keep the first dimension"
        )


@dataclass(frozen=True)
class Layout:
    """What the first call of a generator shows."""

    dtype: torch.dtype  # of the points
    device: torch.device
    weighted: bool  # eq. 4: a standard deviation, and a feature map that weighs it
    n_data: int  # D
    n_features: int  # K, or D without a feature map
    n_values: int  # m, of h
    forward: bool  # whether forward mode works


def probe(outputs: Outputs, z: Tensor) -> Layout:
    """Call the generator at a point ``z (1, d)`` and near it.

    Raises
    ------
    ValueError
        If it is in train mode, fails, mixes the rows of a batch, is not finite or cannot be differentiated.

    Warns
    -----
    UserWarning
        If the output is not larger than the latent space.
    """
    refuse_train_mode(outputs.generator, outputs.feature_map)
    with torch.inference_mode(False), torch.no_grad(), full_precision(z.device):
        # A copy of a tensor made in inference mode can be differentiated, unlike itself.
        z = z.detach().clone()
        step = 1e-2 * (1 + z.abs().max())
        three = z + step * torch.tensor([[0.0], [1.0], [-1.0]], dtype=z.dtype, device=z.device)
        two = three[:2]
        try:
            mean, std = outputs.decode(two)
            value, other = outputs.values(two)[0], outputs.values(three)[0]
        except (RuntimeError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(
                f"the generator or the feature map failed on {describe(two)}: {error}. The generator has "
                f"{_describe_parameters(outputs.generator)}; check the last dimension, dtype and device of z"
            ) from error
        finite(value, two)
        if not _alike(value, other[:2]):
            raise ValueError(
                "a point's output depends on the other points of the batch, or is random: put batch norm and "
                "dropout in eval mode, `model.eval()`"
            )
        n_data, n_values = mean[0].numel(), value.shape[1]
        n_features = n_values - (0 if std is None else n_data)
        changes = not torch.equal(value[0, :n_features], value[1, :n_features])
        forward = _check_derivatives(outputs, two, changes, n_features)
    if z.shape[-1] >= n_features:
        warnings.warn(
            f"latent dimension {z.shape[-1]} >= output dimension {n_features}: the pull-back metric is degenerate "
            "or only a change of coordinates",
            stacklevel=7,  # whoever calls a method of the metric
        )
    weighted = std is not None and outputs.feature_map is not None
    return Layout(z.dtype, z.device, weighted, n_data, n_features, n_values, forward)


def _check_derivatives(outputs: Outputs, z: Tensor, changes: bool, n_features: int) -> bool:
    """Whether forward mode works; ValueError if no derivative arrives, or if the two modes contradict each other.

    Of the value (n, m) at ``z``, the first ``n_features`` are of the mean, and ``changes`` says that they vary.
    """
    _quieten_first_jvp()
    signs = 1 - 2 * (torch.arange(z.shape[-1], device=z.device) % 2).to(z)
    directions = torch.stack([torch.ones_like(signs), signs])
    try:
        push = outputs.reverse_twice(z)[1]
        reverse = torch.stack([push(v.expand_as(z)) for v in directions])
    except RuntimeError as error:
        raise ValueError(f"the generator or the feature map cannot be differentiated by torch: {error}") from error
    forward = None
    if not _is_scripted(outputs.generator, outputs.feature_map):
        # The call itself has just succeeded in reverse mode: an error now says that forward mode is not available.
        with suppress(RuntimeError, ValueError):
            forward = vmap(lambda v: outputs.forward(z, v.expand_as(z))[1])(directions)
    tangents = reverse if forward is None else forward
    if changes and not bool(tangents[..., :n_features].any()):
        raise ValueError(
            "the output changes with z, but is cut off from it: something in the generator or the feature map "
            "disables gradients (detach, torch.inference_mode, numpy)"
        )
    if not _alike(tangents, reverse):
        raise ValueError(
            "forward and reverse derivatives contradict each other: something in the generator or the feature map "
            "disables gradients (torch.no_grad), detaches a part of it, or has a wrong custom derivative"
        )
    return forward is not None


def _alike(a: Tensor, b: Tensor) -> bool:
    # To 1 %, far above the rounding of a deep network in float32: what this looks for is wrong altogether.
    return torch.allclose(a, b, rtol=1e-2, atol=1e-2 * float(a.abs().max()))


def refuse_train_mode(*functions: Any) -> None:
    """Refuse modules in train mode, if that makes their output random, dependent on the batch, or changes them."""
    for function in (f for f in functions if isinstance(f, nn.Module)):
        for name, module in function.named_modules():
            if module.training and _depends_on_mode(module):
                raise ValueError(
                    f"{type(module).__name__} '{name}' of {type(function).__name__} is in train mode, where its output "
                    "is random or depends on the batch, or each call changes it: call eval() on the model"
                )


def _depends_on_mode(module: nn.Module) -> bool:
    always = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.RReLU, _SpectralNorm)
    return (
        isinstance(module, always)
        or (isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats)
        # The older form of spectral norm is a hook, not a module; by name, since torch is about to drop the class.
        or any(type(hook).__name__ == "SpectralNorm" for hook in module._forward_pre_hooks.values())
    )


def _is_scripted(*functions: Any) -> bool:
    # The executor of torch.jit may drop tangents from the second call on, without a word (seen in torch 2.15).
    scripted = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
    return any(isinstance(m, scripted) for f in functions for m in (f.modules() if isinstance(f, nn.Module) else [f]))


def _describe_parameters(function: Any) -> str:
    parameter = next(function.parameters(), None) if isinstance(function, nn.Module) else None
    return "no known parameters" if parameter is None else f"parameters {parameter.dtype} on {parameter.device}"


@cache
def _quieten_first_jvp() -> None:
    """Run one jvp with the deprecation of `torch.jit.script` silenced: the first of a process imports scripted code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script")
        jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))
