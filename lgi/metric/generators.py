"""What a generator and a feature map give at a point: values and derivatives; wrong outputs are refused."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.func import jvp

from lgi.checks import describe
from lgi.metric.derivatives import Linear, reverse, reverse_twice
from lgi.metric.noise import AffineFirst, Noise
from lgi.metric.watching import GeneratorError, Watched

Generator: TypeAlias = Callable[[Tensor], Any]
"""``(n, d) -> (n, *data_shape)`` or ``-> (mean, std)``, each of that shape; standard deviation, never variance."""

FeatureMap: TypeAlias = Callable[[Tensor], Tensor]
"""``(n, *data_shape) -> (n, *feature_shape)``."""

# What is to be done about errors of several kinds.
FIXED = (
    "It must take any number of rows: labels or noise for a fixed number are expanded, labels.expand(len(z), -1); one "
    "made for a single point is called row by row, lambda z: torch.cat([generator(row[None]) for row in z])."
)
NUMPY = (
    "What is computed by numpy or scikit-learn has no derivative: write it in torch, or give it one, in a "
    "torch.autograd.Function whose backward is made of torch operations (README, Your own generator)."
)


@dataclass(frozen=True)
class Outputs:
    """The map ``h``: mean, or features of the mean, then the standard deviation if there is one, in one vector (m,).

    With noise: features of all draws of a stochastic generator, and no standard deviation.

    Every method takes one chunk of points ``z (n, d)`` and, beside what it is asked for, returns the mean
    ``(n, *data_shape)``, where eq. 4 wants the feature map's Jacobian.
    """

    generator: Watched
    feature_map: Watched | None
    noise: Noise | None = None

    @property
    def sampled(self) -> bool:
        """Whether ``h`` is made of draws; of an affine map, eq. 4 is the expectation, and of none, eq. 2."""
        function = None if self.feature_map is None else self.feature_map.function
        affine = isinstance(function, AffineFirst) and function.link is None
        return self.noise is not None and self.feature_map is not None and not affine

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and, of a stochastic generator, standard deviation."""
        # A copy: a generator that changes its input in place would change the caller's tensor.
        output = self.generator(z.clone())
        parts = tuple(output) if isinstance(output, tuple | list) else (output,)
        mean, std = (*parts, None)[:2] if len(parts) in (1, 2) else (None, None)
        if not all(isinstance(part, Tensor) and part.is_floating_point() for part in (mean, *parts)):
            raise GeneratorError(
                "expected the generator to return a floating-point tensor or a pair (mean, std), got "
                f"{', '.join(describe(part) for part in parts)}{_how_to_return(self.generator.function, output)}"
            )
        if std is not None and std.shape != mean.shape:
            raise GeneratorError(
                f"expected the std in the shape of the mean, got mean {tuple(mean.shape)} and std {tuple(std.shape)}: "
                "where the second output is no standard deviation, lambda z: generator(z)[0] leaves it away"
            )
        _check_batch("generator", len(z), z.shape, mean)
        mean = _in_precision("generator", mean, z)
        if std is None:
            return mean, None
        std = _in_precision("generator", std, z)
        _refuse_negative(std)
        return mean, std

    def values(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``h(z)`` (n, m) and the mean."""
        mean, std = self.decode(z)
        if self.noise is not None and std is None:
            raise GeneratorError(
                'noise="sampled" is of a generator that returns (mean, std), and this one returns one tensor: without '
                'noise there is nothing to expect, so leave it at noise="linearised" (eq. 3)'
            )
        if self.sampled:
            assert self.noise is not None
            assert self.feature_map is not None
            assert std is not None
            return self.noise.features(self.features, mean, std, self.feature_map.function), mean
        first = (mean if self.feature_map is None else self.features(mean)).reshape(len(z), -1)
        return (first if std is None else torch.cat([first, std.reshape(len(z), -1)], dim=1)), mean

    def features(self, x: Tensor) -> Tensor:
        """What the feature map gives of data (n, *data_shape), checked."""
        assert self.feature_map is not None
        found = self.feature_map(x)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise GeneratorError(f"expected the feature map to return a floating-point tensor, got {describe(found)}")
        _check_batch("feature map", len(x), x.shape, found)
        return _in_precision("feature map", found, x)

    def forward(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``h(z)``, ``J_h v`` and the mean, in one pass of forward mode."""
        # The tangent is copied for the same reason as the point in `decode`.
        return cast("tuple[Tensor, Tensor, Tensor]", jvp(self.values, (z,), (v.clone(),), has_aux=True))

    def reverse(self, z: Tensor) -> tuple[Tensor, Linear, Tensor]:
        """``h(z)``, the function ``u -> J_h^T u`` and the mean."""
        return reverse(self.values, z)

    def reverse_twice(self, z: Tensor) -> tuple[Tensor, Linear, Tensor]:
        """``h(z)``, the function ``v -> J_h v`` and the mean."""
        return reverse_twice(self.values, z)


def _check_batch(name: str, n: int, given: Sequence[int], output: Tensor) -> None:
    if output.ndim == 0 or len(output) != n:
        raise GeneratorError(
            f"expected the {name} to return n = {n} rows for an input of shape {tuple(given)}, got "
            f"{tuple(output.shape)}, which are no batch. {FIXED}"
        )


def _in_precision(name: str, output: Tensor, z: Tensor) -> Tensor:
    """Output in the dtype of the points; refuse one that has fewer digits."""
    refuse_fewer_digits(f"{name} returns", output.dtype, z)
    return output.to(z.dtype)


def refuse_fewer_digits(does: str, dtype: torch.dtype, z: Tensor) -> None:
    """Refuse a floating-point type with fewer digits than that of the points."""
    if torch.finfo(dtype).eps > torch.finfo(z.dtype).eps:
        raise GeneratorError(
            f"the {does} {dtype} for points in {z.dtype}: autocast or .half() inside loses the digits "
            f"that derivatives need; take them out, or convert the model, model.to({z.dtype})"
        )


def _refuse_negative(std: Tensor) -> None:
    while torch._C._functorch.is_functorch_wrapped_tensor(std):
        std = torch._C._functorch.get_unwrapped(std)
    if bool((std.detach() < 0).any()):
        raise GeneratorError(
            f"expected a standard deviation as second output, got {float(std.min()):.3g}: a log-variance? return "
            "(0.5 * logvar).exp(); the logarithm of the std? its exp(); anything else? lambda z: generator(z)[0] "
            "leaves it away"
        )


def _how_to_return(function: Any, output: Any) -> str:
    """What to do about an output that is no tensor: how what it holds is handed out."""
    holds = dict(output) if isinstance(output, Mapping) else {}
    names = [*getattr(output, "__dataclass_fields__", ()), *(vars(output) if hasattr(output, "__dict__") else ())]
    holds |= {name: getattr(output, name) for name in names}
    tensors = [name for name, value in holds.items() if isinstance(value, Tensor) and not name.startswith("_")]
    if isinstance(output, torch.distributions.Distribution):
        return ": of a distribution p, return (p.mean, p.stddev), or p.mean alone"
    if isinstance(output, np.ndarray):
        return f": {NUMPY}"
    if tensors:
        one = f".{tensors[0]}" if hasattr(output, tensors[0]) else f"[{tensors[0]!r}]"
        return f", which holds {', '.join(map(str, tensors))}: return the tensor, lambda z: generator(z){one}"
    if isinstance(output, Tensor):
        return ": return what is rounded before it is" if not output.is_complex() else ": torch.view_as_real(x) is one"
    if isinstance(output, tuple | list):
        return f": leave away what is neither, lambda z: generator(z)[0]. {decoder_of(function)}"
    return ""


def decoder_of(function: Any) -> str:
    """Which part of a whole model the decoder may be."""
    names = [name for name in ("decoder", "generator", "decode", "generate") if callable(getattr(function, name, None))]
    model = type(function).__name__
    return f"{model} is a whole model: give PullbackMetric its .{' or .'.join(names)}." if names else ""


def known_latent_dim(generator: Any) -> int | None:
    """``d`` as the generator tells it, if it does."""
    told = getattr(generator, "latent_dim", None)
    sizes = tuple(told) if isinstance(told, tuple | list) else (told,)
    if not all(isinstance(size, int | np.integer) for size in sizes):
        return None
    if len(sizes) != 1:
        raise ValueError(
            f"generator.latent_dim is {sizes}, but points are flat, (n, {math.prod(sizes)}): give "
            f"PullbackMetric(nn.Sequential(nn.Unflatten(1, {sizes}), generator), latent_dim={math.prod(sizes)})"
        )
    return int(sizes[0])
