"""Fixed draws of a generator's noise: the expected metric under a feature map as the pull-back of one map (App. E)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

# Output values of a feature map at a time, as many as `PullbackMetric` takes of a generator's: 2^19, on a CPU.
_N_VALUES = 1 << 19


@runtime_checkable
class AffineFirst(Protocol):
    """A feature map ``f(x) = link(W x + b)``, such as `lgi.features.LogisticRegression`."""

    weight: Tensor
    """``W`` (C, D)."""
    link: Callable[[Tensor, int], Tensor] | None
    """What follows, ``link(y, dim)`` along a dimension of size C; None where nothing does, and ``f`` is affine."""

    def logits(self, images: Tensor, /) -> Tensor:
        """``W x + b`` (n, C) of data (n, *data_shape)."""


@dataclass(frozen=True, eq=False)
class Noise:
    r"""``K`` draws of the noise, the same at all points.

    They make of a stochastic generator and a feature map ``f`` the deterministic map

    .. math:: h(z) = K^{-1/2} \left[ f(\mu(z) + \sigma(z) \odot \epsilon_k) \right]_{k=1 \dots K}

    with ``J_h^T J_h = (1/K) sum_k J_k^T J_k``, where ``J_k`` is the Jacobian of ``z -> f(mu(z) + sigma(z) eps_k)``.

    Parameters
    ----------
    n_draws : int
        ``K``.
    seed : int
    """

    n_draws: int
    seed: int
    _kept: dict[tuple[object, ...], tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def draws(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Draws for data ``x (n, *data_shape)``, shape (K, D), of its dtype and on its device.

        Each has the distribution N(0, I). They come in pairs ``eps, -eps``, so that their mean is 0; of the first of
        each pair the leading entries are scrambled Sobol points, others (there are Sobol points in up to 21,201
        dimensions) pseudo-random. With the ``weight (C, D)`` of an affine layer it is the components in the span of its
        rows, and no others, that are Sobol points: what the layer sees of the noise is mostly there.
        """
        n_data, n_first = x[0].numel(), len(x[0].flatten()) if weight is None else min(weight.shape)
        normal, first = self._normal(n_data, min(n_first, SobolEngine.MAXDIM), x)
        if weight is None:
            half = torch.cat([first, normal[:, first.shape[1] :]], dim=1)
        else:
            basis = torch.linalg.qr(weight.to(normal).T)[0][:, : first.shape[1]]
            half = normal + (first - normal @ basis) @ basis.T
        return torch.cat([half, -half])[: self.n_draws]

    def _normal(self, n_data: int, n_first: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normal numbers (K / 2, n_data), pseudo-random, and (K / 2, n_first), of Sobol points."""
        key = n_data, n_first, x.dtype, x.device
        if key not in self._kept:
            # In a transform of torch.func, what is kept would be a tensor that nobody can use afterwards.
            with torch._C._DisableFuncTorch():
                n = (self.n_draws + 1) // 2
                stream = torch.Generator().manual_seed(self.seed)
                normal = torch.randn(n, n_data, generator=stream, dtype=torch.float64)
                uniform = SobolEngine(n_first, scramble=True, seed=self.seed).draw(n, dtype=torch.float64)
                # Multiples of 2^-30, 0 among them, whose normal number would be infinite.
                first = torch.special.ndtri(uniform + 2.0**-31)
                self._kept[key] = normal.to(x.device, x.dtype), first.to(x.device, x.dtype)
        return self._kept[key]

    def features(self, function: Callable[[Tensor], Tensor], mean: Tensor, std: Tensor, affine: object) -> Tensor:
        """``h`` (n, K m) from the generator's mean and std (n, *data_shape); ``affine`` is what ``function`` calls."""
        n = len(mean)
        if isinstance(affine, AffineFirst) and affine.link is not None:
            # W (mu + sigma eps_k) + b, linear in sigma: C numbers for each draw instead of D. The draws come last, and
            # lie side by side in memory: with the C numbers of a draw there, softmax takes several times as long.
            rows = affine.weight[:, None] * self.draws(mean, affine.weight)
            noise = (std.flatten(1) @ rows.flatten(0, 1).T).unflatten(1, rows.shape[:2])
            return affine.link(affine.logits(mean)[..., None] + noise, 1).flatten(1) / self.n_draws**0.5
        draws = self.draws(mean).unflatten(1, mean.shape[1:])
        parts, done, size = [], 0, 1
        while done < self.n_draws:
            part = draws[done : done + size]
            value = function((mean[:, None] + std[:, None] * part).flatten(0, 1))
            parts.append(value.reshape(n, -1))
            done += len(part)
            # After the first draw it is known how large the features are.
            size = max(1, _N_VALUES // (n * max(mean[0].numel(), parts[0].shape[1])))
        return torch.cat(parts, dim=1) / self.n_draws**0.5
