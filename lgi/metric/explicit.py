"""Metrics that come from elsewhere than a generator: a function that gives the tensor, another metric rescaled."""

from collections.abc import Callable

import torch
from torch import Tensor

from lgi.checks import describe
from lgi.metric.base import Metric


class ExplicitMetric(Metric):
    """Metric given by a function ``z -> M(z)``.

    Parameters
    ----------
    function : callable
        ``(n, d) -> (n, d, d)``, symmetric and positive semi-definite, differentiable.
    latent_dim : int, optional
        ``d``.

    Raises
    ------
    ValueError
        From any method, if the function returns another shape, or a tensor that is not symmetric at the first point;
        from all but :meth:`squared_speed_and_gradient`, if its values at any point are those of a tensor that is not
        positive semi-definite.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], *, latent_dim: int | None = None) -> None:
        self.function = function
        self.latent_dim = latent_dim

    def _tensor(self, z: Tensor) -> Tensor:
        M = self.function(z)
        expected = (*z.shape, z.shape[-1])
        if not isinstance(M, Tensor) or M.shape != expected:
            raise ValueError(f"expected M(z) of shape {expected} for z of shape {tuple(z.shape)}, got {describe(M)}")
        return M

    def _squared_speed(self, z: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("ni,nij,nj->n", v, self._tensor(z), v)

    def _prepare(self, z: Tensor) -> int:
        M = self._tensor(z.detach())
        if not torch.allclose(M, M.mT, rtol=1e-4, equal_nan=True):
            raise ValueError(f"expected a symmetric M(z), got {M[0].tolist()} at z = {z[0].tolist()}")
        return super()._prepare(z)


class ConformalMetric(Metric):
    """Another metric scaled by a positive function, ``factor(z) M(z)``.

    Parameters
    ----------
    metric : Metric
    factor : callable
        ``(n, d) -> (n,)``, positive and differentiable.

    Raises
    ------
    ValueError
        From any method, if the factor has another shape or is not positive at the first point; from all but
        :meth:`squared_speed_and_gradient`, if it is negative at any point.
    """

    def __init__(self, metric: Metric, factor: Callable[[Tensor], Tensor]) -> None:
        self.metric = metric
        self.factor = factor
        self.latent_dim = metric.latent_dim

    def _tensor(self, z: Tensor) -> Tensor:
        return self.factor(z)[:, None, None] * self.metric._tensor(z)

    def _squared_speed(self, z: Tensor, v: Tensor) -> Tensor:
        return self.factor(z) * self.metric._squared_speed(z, v)

    def _prepare(self, z: Tensor) -> int:
        factor = self.factor(z.detach())
        if not isinstance(factor, Tensor) or factor.shape != z.shape[:1] or not bool((factor > 0).all()):
            raise ValueError(f"expected a positive factor of shape (1,) at z = {z.tolist()}, got {factor}")
        return self.metric._prepare(z)
