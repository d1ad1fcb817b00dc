"""What a metric is and can be asked, whatever it is made of; and the sum of two metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lgi.checks import describe
from lgi.metric.batching import check_points, eigh, finite, in_chunks, paired, semidefinite
from lgi.metric.derivatives import reverse


class Metric(ABC):
    """A Riemannian metric ``M(z)`` on a latent space.

    A subclass answers for one chunk of points ``z (n, d)``: ``_tensor`` and ``_squared_speed``, and, where ``M = J_h^T
    J_h`` exactly for some map ``h``, also ``_linearise``. A least-squares solver builds on ``h``, the embedding: the
    energy of a curve is the limit of ``sum_k |h(z_{k+1}) - h(z_k)|^2 / (t_{k+1} - t_k)``.

    Every public method takes points ``z (..., d)`` with any leading dimensions and returns as many; dtype and device
    follow ``z``. A graph is recorded only if ``z`` (or ``v``) requires a gradient, whatever a generator's parameters
    require; through it, derivatives of any order with respect to ``z`` and ``v`` are exact.
    """

    latent_dim: int | None = None
    """``d`` where it is known; then points of another dimension are refused."""

    @abstractmethod
    def _tensor(self, z: Tensor) -> Tensor:
        """``M(z)`` (n, d, d) for one chunk (n, d)."""

    @abstractmethod
    def _squared_speed(self, z: Tensor, v: Tensor) -> Tensor:
        """``v^T M(z) v`` (n,) for one chunk (n, d)."""

    def _linearise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``h(z)`` (n, m) and the columns of ``J_h`` (n, d, m) for one chunk (n, d)."""
        raise TypeError(f"{self!r} is not the pull-back of a map: it has no embedding; use its tensor and speed")

    def _embed(self, z: Tensor) -> Tensor:
        """``h(z)`` (n, m) for one chunk (n, d)."""
        return self._linearise(z)[0]

    def _precise_tensor(self, z: Tensor) -> Tensor:
        """``M(z)`` in float64 (n, d, d), from which eigenvalues are taken."""
        return self._tensor(z).double()

    def _prepare(self, z: Tensor) -> int:
        """Look at the first point of a call, (1, d); return how many points to process at a time."""
        # Of a function that gives the tensor itself, d x d values a point; a pull-back has reason to ask for fewer.
        return 1 << 16

    def _evaluate(
        self, function: Callable[..., Any], *tensors: Tensor, n_tangents: int = 1, recompute: bool = False
    ) -> Any:
        """Result of a function of chunks for all of the points (and vectors) that a public method was given.

        ``n_tangents`` is how many tangents the function maps together at each point; ``recompute`` as in `in_chunks`.
        """
        check_points(tensors[0], self.latent_dim)
        return in_chunks(function, lambda z: max(1, self._prepare(z) // n_tangents), *tensors, recompute=recompute)

    def _tensors(self, function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
        """``M(z)`` by ``_tensor`` or by ``_precise_tensor``, checked."""
        check_points(z, self.latent_dim)
        return semidefinite(self._evaluate(function, z, n_tangents=z.shape[-1]), z)

    def split(self, z: Tensor) -> tuple[Metric | None, Metric | None]:
        """The metric as a sum of the pull-back of a map and of what is left.

        The length of a curve is at least that of its image under the map, whatever the nodes at which the speed is
        evaluated: differences of values cannot miss what lies between two nodes, a quadrature of the speed can.

        Parameters
        ----------
        z : Tensor, shape (..., d)
            Any point: a generator shows only when called whether it is stochastic.

        Returns
        -------
        embedded, rest : Metric or None
            The first has an embedding. None stands for a metric that is 0.
        """
        return None, self

    def tensor(self, z: Tensor) -> Tensor:
        """Metric tensor ``M(z)``.

        Parameters
        ----------
        z : Tensor, shape (..., d)

        Returns
        -------
        Tensor, shape (..., d, d)
            Symmetric and positive semi-definite up to rounding; nothing is added to the diagonal.

        Raises
        ------
        ValueError
            If ``z`` does not fit the latent space, or the result is not finite or has a negative eigenvalue.
        """
        return self._tensors(self._tensor, z)

    def squared_speed(self, z: Tensor, v: Tensor) -> Tensor:
        """Squared Riemannian length of tangent vectors, ``v^T M(z) v``.

        Parameters
        ----------
        z, v : Tensor, shape (..., d)
            Points and tangent vectors; leading dimensions are broadcast.

        Returns
        -------
        Tensor, shape (...)

        Raises
        ------
        ValueError
            If ``z`` or ``v`` does not fit the latent space, or the result is not finite or belongs to a metric that is
            not positive: ``v^T M(z) v < 0``.
        """
        z, v = paired(z, v)
        result = finite(self._evaluate(self._squared_speed, z, v), z)
        self._refuse_negative(result, z)
        return result

    def speed(self, z: Tensor, v: Tensor) -> Tensor:
        """Riemannian length of tangent vectors, ``sqrt(v^T M(z) v)``, the integrand of eq. 1.

        Parameters
        ----------
        z, v : Tensor, shape (..., d)
            Points and tangent vectors; leading dimensions are broadcast.

        Returns
        -------
        Tensor, shape (...)
            Where it is 0, its gradient is 0.

        Raises
        ------
        ValueError
            If ``z`` or ``v`` does not fit the latent space, or the result is not finite or belongs to a metric that is
            not positive: ``v^T M(z) v < 0``.
        """
        return square_root(self.squared_speed(z, v))

    def apply(self, z: Tensor, v: Tensor) -> Tensor:
        """Product ``M(z) v`` without the tensor, for latent spaces of large dimension.

        It is half the gradient of ``v^T M v`` with respect to ``v``: one forward and one reverse pass for any ``d``.

        Parameters
        ----------
        z, v : Tensor, shape (..., d)
            Points and tangent vectors; leading dimensions are broadcast.

        Returns
        -------
        Tensor, shape (..., d)

        Raises
        ------
        ValueError
            If ``z`` or ``v`` does not fit the latent space, or the result is not finite or belongs to a metric that is
            not positive: ``v^T M(z) v < 0``.
        """

        def product(z: Tensor, v: Tensor) -> Tensor:
            value, pull, _ = reverse(lambda u: (self._squared_speed(z, u), u), v)
            return pull(torch.ones_like(value)) / 2

        z, v = paired(z, v)
        result = finite(self._evaluate(product, z, v), z)
        self._refuse_negative((v * result).sum(-1), z)
        return result

    def squared_speed_and_gradient(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``v^T M(z) v`` and its gradients, in memory that does not grow with the work to be done.

        Automatic differentiation of :meth:`squared_speed` gives the same, but holds the graphs of all chunks at once.

        Parameters
        ----------
        z, v : Tensor, shape (..., d)
            Points and tangent vectors; leading dimensions are broadcast.

        Returns
        -------
        value : Tensor, shape (...)
        z_gradient, v_gradient : Tensor, shape (..., d)
            Derivatives of each value with respect to its own point and its own vector (which is ``2 M v``).
            All three are without a graph. They are not checked to be finite: a solver refuses such a step by itself;
            nor is the metric checked to be positive: where it is not, the value may be negative.

        Raises
        ------
        ValueError
            If ``z`` or ``v`` does not fit the latent space.
        """

        def value_and_gradient(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            with torch.inference_mode(False), torch.enable_grad():
                # Copies of tensors made in inference mode can be differentiated, unlike these themselves.
                z, v = z.clone().requires_grad_(), v.clone().requires_grad_()
                value = self._squared_speed(z, v)
                z_gradient, v_gradient = torch.autograd.grad(value.sum(), (z, v), materialize_grads=True)
            return value.detach(), z_gradient, v_gradient

        z, v = paired(z, v)
        return self._evaluate(value_and_gradient, z.detach(), v.detach())

    def embed(self, z: Tensor) -> Tensor:
        """Values ``h(z)`` of the map whose pull-back this metric is.

        Parameters
        ----------
        z : Tensor, shape (..., d)

        Returns
        -------
        Tensor, shape (..., m)
            Not checked to be finite: a solver refuses such a step by itself.

        Raises
        ------
        TypeError
            If there is no such map (see :meth:`split`).
        ValueError
            If ``z`` does not fit the latent space.
        """
        return self._evaluate(self._embed, z, recompute=True)

    def linearise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Values and all first derivatives of the embedding, in one pass.

        Parameters
        ----------
        z : Tensor, shape (..., d)

        Returns
        -------
        value : Tensor, shape (..., m)
            ``h(z)``.
        columns : Tensor, shape (..., d, m)
            ``columns[..., i, :] = dh / dz_i``, the columns of the Jacobian: ``M = columns @ columns.mT``, and
            ``columns_a @ columns_b.mT`` is the Gram block ``J_a^T J_b`` of two points. Of the size of ``d`` outputs
            a point: call it for as many points as are wanted in memory. Not checked to be finite.

        Raises
        ------
        TypeError
            If there is no such map (see :meth:`split`).
        ValueError
            If ``z`` does not fit the latent space.
        """
        check_points(z, self.latent_dim)
        return self._evaluate(self._linearise, z, n_tangents=z.shape[-1])

    def eigh(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues and eigenvectors of the metric tensor (Fig. 1).

        Parameters
        ----------
        z : Tensor, shape (..., d)

        Returns
        -------
        eigenvalues : Tensor, shape (..., d)
            Ascending; rounding may leave an eigenvalue of 0 slightly negative.
        eigenvectors : Tensor, shape (..., d, d)
            In columns, of unit Euclidean length; the signs are arbitrary.

        Raises
        ------
        ValueError
            If ``z`` does not fit the latent space, or the metric is not finite or has a negative eigenvalue.

        Notes
        -----
        The tensor is accumulated and decomposed in float64: its condition number is the square of the Jacobian's.
        """
        eigenvalues, eigenvectors = eigh(self._tensors(self._precise_tensor, z))
        return eigenvalues.to(z), eigenvectors.to(z)

    def log_volume(self, z: Tensor) -> Tensor:
        """Logarithm of the volume element, ``log sqrt(det M(z))`` (Fig. 2, left).

        Parameters
        ----------
        z : Tensor, shape (..., d)

        Returns
        -------
        Tensor, shape (...)
            Natural logarithm; ``-inf`` where the metric is degenerate.

        Raises
        ------
        ValueError
            If ``z`` does not fit the latent space, or the metric is not finite or has a negative eigenvalue.
        """
        return log_volume(self._eigenvalues(z)).to(z)

    def log_condition(self, z: Tensor) -> Tensor:
        """Logarithmic condition number, ``log10(lambda_max / lambda_min)`` (the background of Fig. 1).

        Parameters
        ----------
        z : Tensor, shape (..., d)

        Returns
        -------
        Tensor, shape (...)
            Decimal logarithm; ``inf`` where the metric is degenerate.

        Raises
        ------
        ValueError
            If ``z`` does not fit the latent space, or the metric is not finite or has a negative eigenvalue.
        """
        return log_condition(self._eigenvalues(z)).to(z)

    def _eigenvalues(self, z: Tensor) -> Tensor:
        return eigh(self._tensors(self._precise_tensor, z))[0]

    def _refuse_negative(self, squared_speed: Tensor, z: Tensor) -> None:
        """Refuse squared speeds (...) at points (..., d) that are negative by more than the rounding of ``M``."""
        negative = squared_speed.detach() < 0
        if bool(negative.any()):
            self.tensor(z.detach()[negative])

    def __add__(self, other: Metric) -> SumMetric:
        """Sum of two metrics on the same latent space."""
        return SumMetric(self, other) if isinstance(other, Metric) else NotImplemented


def square_root(x: Tensor) -> Tensor:
    """Square root with gradient 0, not infinity, at 0: there a sum of squares has gradient 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def log_volume(eigenvalues: Tensor) -> Tensor:
    """``log sqrt(det M)`` (...) from the eigenvalues (..., d) of ``M``."""
    # Rounding may turn an eigenvalue of 0 into a negative one, whose logarithm would be NaN.
    return eigenvalues.clamp_min(0).log().sum(-1) / 2


def log_condition(eigenvalues: Tensor) -> Tensor:
    """``log10(lambda_max / lambda_min)`` (...) from ascending eigenvalues (..., d)."""
    smallest, largest = eigenvalues[..., 0], eigenvalues[..., -1]
    # Without the condition, a metric that is 0 would have log10(0) - log10(0), which is NaN.
    return torch.where(smallest > 0, largest.log10() - smallest.log10(), torch.inf)


class SumMetric(Metric):
    """Sum of two metrics on one latent space, ``M_a(z) + M_b(z)``; written ``metric_a + metric_b``.

    If both are pull-backs of maps, so is the sum: of the two maps side by side.

    Parameters
    ----------
    first, second : Metric

    Raises
    ------
    ValueError
        If their latent dimensions are known and differ.
    """

    def __init__(self, first: Metric, second: Metric) -> None:
        dims = {m.latent_dim for m in (first, second)} - {None}
        if len(dims) > 1:
            raise ValueError(f"expected metrics on one latent space, got {first.latent_dim} and {second.latent_dim}")
        self.first = first
        self.second = second
        self.latent_dim = first.latent_dim or second.latent_dim

    def _tensor(self, z: Tensor) -> Tensor:
        return self.first._tensor(z) + self.second._tensor(z)

    def _precise_tensor(self, z: Tensor) -> Tensor:
        return self.first._precise_tensor(z) + self.second._precise_tensor(z)

    def _squared_speed(self, z: Tensor, v: Tensor) -> Tensor:
        return self.first._squared_speed(z, v) + self.second._squared_speed(z, v)

    def _linearise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        value_a, columns_a = self.first._linearise(z)
        value_b, columns_b = self.second._linearise(z)
        return torch.cat([value_a, value_b], dim=-1), torch.cat([columns_a, columns_b], dim=-1)

    def _embed(self, z: Tensor) -> Tensor:
        return torch.cat([self.first._embed(z), self.second._embed(z)], dim=-1)

    def _prepare(self, z: Tensor) -> int:
        return min(self.first._prepare(z), self.second._prepare(z))

    def split(self, z: Tensor) -> tuple[Metric | None, Metric | None]:
        """The metric as a sum of the pull-back of a map and of what is left: the sums of the parts of both metrics.

        Parameters
        ----------
        z : Tensor, shape (..., d)
            Any point.

        Returns
        -------
        embedded, rest : Metric or None
        """
        pairs = zip(self.first.split(z), self.second.split(z), strict=True)
        embedded, rest = (a + b if a is not None and b is not None else a or b for a, b in pairs)
        return embedded, rest


def check_metric(metric: Metric) -> None:
    """Refuse what is not a metric, a generator say."""
    if not isinstance(metric, Metric):
        raise TypeError(f"expected a metric, such as lgi.PullbackMetric(generator), got {describe(metric)}")
