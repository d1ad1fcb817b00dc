"""Pull-back metrics of generators, and what is measured with them: speed, length, energy, fields (eqs 1-4, App. E).

:class:`PullbackMetric` is the paper's; :class:`ExplicitMetric`, :class:`ConformalMetric` and ``metric_a + metric_b``
are for metrics that come from elsewhere. All answer the same questions (:class:`Metric`), for any number of points in
bounded memory: points are processed in chunks.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain, pairwise
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap
from torch.nn.utils.parametrizations import _SpectralNorm

from lgi.progress import progress_bar

Generator: TypeAlias = Callable[[Tensor], Any]
"""``(n, d) -> (n, *data_shape)`` or ``-> (mean, std)``, each of that shape; standard deviation, never variance."""

FeatureMap: TypeAlias = Callable[[Tensor], Tensor]
"""``(n, *data_shape) -> (n, *feature_shape)``."""


class Curve(Protocol):
    """A curve in latent space, as `lgi.CubicBSpline` is one.

    It may also have ``knots`` (the parameters between which it is smooth), ``dtype`` and ``device`` (of its points).
    """

    def __call__(self, t: Tensor, /) -> Tensor:
        """Points (..., n_t, d) for ``t`` (n_t,) in [0, 1]."""

    def derivative(self, t: Tensor, /) -> Tensor:
        """Velocities (..., n_t, d)."""


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

    @abstractmethod
    def _tensor(self, z: Tensor) -> Tensor:
        """``M(z)`` (n, d, d) for one chunk (n, d)."""

    @abstractmethod
    def _squared_speed(self, z: Tensor, v: Tensor) -> Tensor:
        """``v^T M(z) v`` (n,) for one chunk (n, d)."""

    def _linearise(self, z: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """``h(z)`` (n, m) and the columns of ``J_h`` (n, d, m) for one chunk (n, d)."""
        raise TypeError(f"{self!r} is not the pull-back of a map: it has no embedding; use its tensor and speed")

    def _embed(self, z: Tensor) -> Tensor:
        """``h(z)`` (n, m) for one chunk (n, d)."""
        return self._linearise(z)[0]

    def _precise_tensor(self, z: Tensor) -> Tensor:
        """``M(z)`` in float64 (n, d, d), from which eigenvalues are taken."""
        return self._tensor(z).double()

    def _prepare(self, z: Tensor) -> int:  # noqa: ARG002
        """Look at the first point(s) of a call, (1, d); return how many points to process at a time."""
        return 1 << 16

    def has_embedding(self, z: Tensor) -> bool:  # noqa: ARG002
        """Whether :meth:`embed` and :meth:`linearise` work: the metric is the pull-back of a map.

        Parameters
        ----------
        z : Tensor, shape (..., d)
            Any point: a generator shows only when called whether it is stochastic.
        """
        return False

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
        return (self, None) if self.has_embedding(z) else (None, self)

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
        return _semidefinite(_in_chunks(self, self._tensor, z), z)

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
        z, v = _paired(z, v)
        result = _finite(_in_chunks(self, self._squared_speed, z, v), z)
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
        return _square_root(self.squared_speed(z, v))

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
            return torch.func.grad(lambda u: self._squared_speed(z, u).sum() / 2)(v)

        z, v = _paired(z, v)
        result = _finite(_in_chunks(self, product, z, v), z)
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

        z, v = _paired(z, v)
        return _in_chunks(self, value_and_gradient, z.detach(), v.detach())

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
            If there is no such map (see :meth:`has_embedding`).
        ValueError
            If ``z`` does not fit the latent space.
        """
        return _in_chunks(self, self._embed, z)

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
            If there is no such map (see :meth:`has_embedding`).
        ValueError
            If ``z`` does not fit the latent space.
        """
        return _in_chunks(self, self._linearise, z)

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
        eigenvalues, eigenvectors = torch.linalg.eigh(_semidefinite(_in_chunks(self, self._precise_tensor, z), z))
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
        return _log_volume(self._eigenvalues(z)).to(z)

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
        return _log_condition(self._eigenvalues(z)).to(z)

    def _eigenvalues(self, z: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(_semidefinite(_in_chunks(self, self._precise_tensor, z), z))

    def _refuse_negative(self, squared_speed: Tensor, z: Tensor) -> None:
        """Refuse squared speeds (...) at points (..., d) that are negative by more than the rounding of ``M``."""
        negative = squared_speed.detach() < 0
        if bool(negative.any()):
            self.tensor(z.detach()[negative])

    def __add__(self, other: Metric) -> SumMetric:
        """Sum of two metrics on the same latent space."""
        return SumMetric(self, other) if isinstance(other, Metric) else NotImplemented


def _log_volume(eigenvalues: Tensor) -> Tensor:
    # Rounding may turn an eigenvalue of 0 into a negative one, whose logarithm would be NaN.
    return eigenvalues.clamp_min(0).log().sum(-1) / 2


def _log_condition(eigenvalues: Tensor) -> Tensor:
    smallest, largest = eigenvalues[..., 0], eigenvalues[..., -1]
    # Not left to log10(0): the metric 0 would have inf - inf.
    return torch.where(smallest > 0, largest.log10() - smallest.log10(), torch.inf)


class PullbackMetric(Metric):
    r"""Pull-back metric of a generator, optionally through a feature map.

    With the Jacobian ``J`` of a deterministic generator, ``J_mu`` and ``J_sigma`` of a stochastic one, and
    ``M_F = J_F^T J_F`` of a feature map, taken at the mean:

    - eq. 1: ``M = J^T J``
    - eq. 2: ``M = J_mu^T J_mu + J_sigma^T J_sigma``
    - eq. 3: ``M = J^T M_F J``
    - eq. 4: ``M = J_mu^T M_F J_mu + J_sigma^T diag(M_F) J_sigma`` (App. E)

    Parameters
    ----------
    generator : callable
        ``(n, d) -> (n, *data_shape)`` (deterministic) or ``-> (mean, std)``, each ``(n, *data_shape)`` (stochastic).
        A row of the output must depend on its own row of the input alone: batch norm and dropout in eval mode.
    feature_map : callable, optional
        ``(n, *data_shape) -> (n, *feature_shape)``, of the same kind.
    latent_dim : int, optional
        ``d``; by default ``generator.latent_dim`` if there is one, else that of the first points given.
    chunk_size : int, optional
        Points processed at a time. By default as many as have about 520,000 output values (CPU) or 33 million
        (GPU); fewer are advisable for a feature map with large inner activations.
    n_probes : int, optional
        Estimate ``diag(M_F)`` in eq. 4 by Hutchinson's method with so many random signs, see :meth:`feature_diagonal`;
        by default it is exact.
    seed : int
        Of these signs. They are the same at all points, so that the metric remains a smooth function of ``z``.

    Raises
    ------
    ValueError
        From any method: if ``z`` is not floating point or has another last dimension; if a module with batch norm,
        dropout or spectral norm is in train mode; if outputs lack the batch dimension, mix rows, differ in shape, are
        cut off from ``z``, or are not finite.

    Warns
    -----
    UserWarning
        If the output is not larger than the latent space: the metric is then degenerate, or only a change of
        coordinates.

    Notes
    -----
    Derivatives are taken in forward mode (`torch.func.jvp`), in all ``d`` directions at once by `torch.func.vmap` over
    the directions, which computes the values only once. Where a function has no forward derivative (`torch.cdist`), or
    loses it (scripted modules), reverse mode is applied twice instead; the first point shows which is needed. Where
    the output is smaller than ``d``, the tensor is made of reverse passes.

    References
    ----------
    Michelis & Becker (2021), eqs 1-4 and App. E. Arvanitidis, Hansen & Hauberg (2018) for eq. 2. Bekas, Kokiopoulou &
    Saad (2007) for the estimated diagonal.
    """

    def __init__(
        self,
        generator: Generator,
        feature_map: FeatureMap | None = None,
        *,
        latent_dim: int | None = None,
        chunk_size: int | None = None,
        n_probes: int | None = None,
        seed: int = 0,
    ) -> None:
        if not callable(generator) or not (feature_map is None or callable(feature_map)):
            raise ValueError(f"expected callables, got generator {generator!r} and feature map {feature_map!r}")
        for name, value in (("latent_dim", latent_dim), ("chunk_size", chunk_size), ("n_probes", n_probes)):
            if value is not None and value < 1:
                raise ValueError(f"expected {name} to be at least 1, got {value}")
        self.generator = generator
        self.feature_map = feature_map
        self.latent_dim = getattr(generator, "latent_dim", None) if latent_dim is None else latent_dim
        self.chunk_size = chunk_size
        self.n_probes = n_probes
        self.seed = seed
        self._layout: _Layout | None = None
        _refuse_train_mode(generator, feature_map)

    def __repr__(self) -> str:
        names = [type(f).__name__ for f in (self.generator, self.feature_map) if f is not None]
        return f"PullbackMetric({', '.join(names)})"

    def has_embedding(self, z: Tensor) -> bool:
        """Whether the metric is the pull-back of a map: eqs 1 to 3, not eq. 4.

        Parameters
        ----------
        z : Tensor, shape (..., d)
            Any point: a generator shows only when called whether it is stochastic.
        """
        _in_chunks(self, torch.clone, _points(self, z).reshape(-1, z.shape[-1])[:1])
        return not self._weighted

    def split(self, z: Tensor) -> tuple[Metric | None, Metric | None]:
        """The metric as a sum of the pull-back of a map and of what is left: the two terms of eq. 4.

        Parameters
        ----------
        z : Tensor, shape (..., d)
            Any point.

        Returns
        -------
        embedded, rest : Metric or None
            In eq. 4 the metric of the mean, ``J_mu^T M_F J_mu``, and ``J_sigma^T diag(M_F) J_sigma``; else all of the
            metric and None.
        """
        if self.has_embedding(z):
            return self, None
        mean = PullbackMetric(
            lambda z: self._decode(z)[0], self.feature_map, latent_dim=self.latent_dim, chunk_size=self.chunk_size
        )
        return mean, _StdTerm(self)

    def pull(self, z: Tensor, v: Tensor) -> Tensor:
        """Push tangent vectors forward, to where their squared Euclidean length is ``v^T M(z) v``.

        Parameters
        ----------
        z, v : Tensor, shape (..., d)
            Points and tangent vectors; leading dimensions are broadcast.

        Returns
        -------
        Tensor, shape (..., m)
            eq. 1: ``J v``; eq. 2: ``J_mu v`` and ``J_sigma v``, one after the other; eq. 3: ``J_F J v``; eq. 4:
            ``J_F J_mu v`` and ``c * (J_sigma v)``, where ``c_j^2 = diag(M_F)_j``. Not checked to be finite.

        Raises
        ------
        ValueError
            If ``z`` or ``v`` does not fit the latent space.
        """
        return _in_chunks(self, self._push, *_paired(z, v))

    def feature_diagonal(self, z: Tensor) -> DiagonalEstimate:
        """Diagonal of ``M_F = J_F^T J_F`` at the mean, the weights of the variance term in eq. 4.

        Entry ``j`` is the squared norm of column ``j`` of ``J_F``. With ``K`` features and ``D`` data values, the exact
        diagonal takes ``K`` reverse passes, ``sum_k (J_F^T e_k)_j^2``, or ``D`` forward passes, ``|J_F e_j|^2``; each
        costs about as much as the other, so the fewer are chosen. Hutchinson's estimate takes ``n_probes`` reverse
        passes: the mean of ``(J_F^T r)_j^2`` over random signs ``r``, whose expectation is the diagonal.

        Parameters
        ----------
        z : Tensor, shape (..., d)

        Returns
        -------
        DiagonalEstimate
            ``value`` and ``standard_error``, both ``(..., D)``; the error is 0 where the diagonal is exact and NaN for
            a single probe. An entry's relative error is at most ``sqrt(2 / n_probes)`` (one standard deviation).

        Raises
        ------
        ValueError
            If there is no feature map, or ``z`` does not fit the latent space.
        """
        if self.feature_map is None:
            raise ValueError("this metric has no feature map, and so no M_F")

        def diagonal(z: Tensor) -> tuple[Tensor, Tensor]:
            return self._squared_columns(self._decode(z)[0])

        return DiagonalEstimate(*_in_chunks(self, diagonal, z))

    @property
    def _weighted(self) -> bool:
        return self.feature_map is not None and self._sizes.stochastic

    @property
    def _sizes(self) -> _Layout:
        assert self._layout is not None, "every public method prepares first"
        return self._layout

    def _tensor(self, z: Tensor) -> Tensor:
        columns = self._columns(z)[1]
        return columns @ columns.mT

    def _precise_tensor(self, z: Tensor) -> Tensor:
        columns = self._columns(z)[1].double()
        return columns @ columns.mT

    def _squared_speed(self, z: Tensor, v: Tensor) -> Tensor:
        return self._push(z, v).square().sum(-1)

    def _linearise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return super()._linearise(z) if self._weighted else self._columns(z)

    def _embed(self, z: Tensor) -> Tensor:
        return super()._embed(z) if self._weighted else self._values(z)[0]

    def _decode(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and, of a stochastic generator, standard deviation, checked for shape."""
        # A generator that changes its input in place would change the caller's tensor, and the tangent.
        output = self.generator(z.clone())
        parts = tuple(output) if isinstance(output, tuple | list) else (output,)
        if len(parts) not in (1, 2) or not all(isinstance(p, Tensor) and p.is_floating_point() for p in parts):
            raise ValueError(
                "expected the generator to return a floating-point tensor or a pair (mean, std), got "
                f"{', '.join(_describe(p) for p in parts)}"
            )
        mean, std = parts[0], parts[1] if len(parts) == 2 else None
        if std is not None and std.shape != mean.shape:
            raise ValueError(
                f"expected mean and std of one shape, got mean {tuple(mean.shape)} and std {tuple(std.shape)}: expand "
                "the std to the shape of the mean"
            )
        _check_batch("generator", len(z), z.shape, mean)
        return mean, std

    def _values(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``h(z)`` (n, m) and the mean. ``h``: mean or features of the mean, then the standard deviation if any."""
        mean, std = self._decode(z)
        first = mean
        if self.feature_map is not None:
            first = self.feature_map(mean)
            if not isinstance(first, Tensor) or not first.is_floating_point():
                raise ValueError(f"expected the feature map to return a floating-point tensor, got {_describe(first)}")
            _check_batch("feature map", len(z), mean.shape, first)
        first = first.reshape(len(z), -1)
        return (first if std is None else torch.cat([first, std.reshape(len(z), -1)], dim=1)), mean

    def _push(self, z: Tensor, v: Tensor) -> Tensor:
        """``J_h v`` (n, m), weighted in eq. 4."""
        if self._sizes.forward:
            _, tangent, mean = self._forward(z, v)
        else:
            _, push, mean = self._reverse_twice(z)
            tangent = push(v)
        return self._weigh(tangent, mean)

    def _columns(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``h(z)`` (n, m) and the columns of ``J_h`` (n, d, m), weighted in eq. 4."""
        directions = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        if not self._weighted and self._sizes.n_values < z.shape[-1]:
            value, pull, _ = self._reverse(z)
            rows = torch.eye(value.shape[-1], dtype=value.dtype, device=value.device)
            return value, torch.stack([pull(row.expand_as(value)) for row in rows], dim=-1)
        if self._sizes.forward:
            # Values do not depend on the direction: vmap computes them once and shows them expanded.
            value, columns, mean = vmap(lambda e: self._forward(z, e.expand_as(z)), out_dims=(0, 1, 0))(directions)
            return value[0], self._weigh(columns, mean[0])
        value, push, mean = self._reverse_twice(z)
        columns = torch.stack([push(direction.expand_as(z)) for direction in directions], dim=1)
        return value, self._weigh(columns, mean)

    def _forward(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``h(z)``, ``J_h v`` and the mean, in one forward pass."""
        # The tangent is copied for the same reason as the point in `_decode`.
        return cast("tuple[Tensor, Tensor, Tensor]", jvp(self._values, (z,), (v.clone(),), has_aux=True))

    def _reverse(self, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
        """``h(z)``, ``u -> J_h^T u`` and the mean."""
        value, pull, mean = cast("tuple[Tensor, Any, Tensor]", vjp(self._values, z, has_aux=True))
        return value, lambda u: pull(u)[0], mean

    def _reverse_twice(self, z: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor], Tensor]:
        """``h(z)``, ``v -> J_h v`` and the mean: ``u -> J_h^T u`` is linear, and its transpose is ``J_h``."""
        value, pull, mean = self._reverse(z)
        push = vjp(pull, torch.zeros_like(value))[1]
        return value, lambda v: push(v)[0], mean

    def _weigh(self, tangent: Tensor, mean: Tensor) -> Tensor:
        """Multiply the standard deviation's part of ``tangent`` (n, ..., m) by the column norms of ``J_F`` (eq. 4)."""
        if not self._weighted:
            return tangent
        n_features = self._sizes.n_features
        norms = _square_root(self._squared_columns(mean)[0])
        norms = norms.reshape(len(mean), *[1] * (tangent.ndim - 2), -1)
        return torch.cat([tangent[..., :n_features], norms * tangent[..., n_features:]], dim=-1)

    def _squared_columns(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """``diag(J_F^T J_F)`` (n, D) at the mean, and its standard error."""
        assert self.feature_map is not None
        n, sizes = len(mean), self._sizes
        if self.n_probes is None and sizes.n_features > sizes.n_data and sizes.forward:
            columns = []
            for j in range(sizes.n_data):
                direction = torch.zeros_like(mean).reshape(n, -1)
                direction[:, j] = 1
                tangent = jvp(self.feature_map, (mean,), (direction.reshape(mean.shape),))[1]
                columns.append(tangent.reshape(n, -1).square().sum(-1))
            exact = torch.stack(columns, dim=-1)
            return exact, torch.zeros_like(exact)
        features, pull = vjp(self.feature_map, mean)[:2]
        if self.n_probes is None:
            cotangents = torch.eye(sizes.n_features, dtype=features.dtype, device=features.device)
        else:
            signs = torch.Generator().manual_seed(self.seed)
            cotangents = torch.randint(2, (self.n_probes, sizes.n_features), generator=signs).to(features) * 2 - 1
        total = torch.zeros_like(mean).reshape(n, -1)
        total_square = total.clone()
        # One pass after the other, so that memory does not grow with their number unless a graph is recorded.
        for u in cotangents:
            square = pull(u.expand(n, -1).reshape(features.shape))[0].reshape(n, -1).square()
            total = total + square
            total_square = total_square + square.detach().square()
        if self.n_probes is None:
            return total, torch.zeros_like(total)
        average = total / self.n_probes
        spread = (total_square / self.n_probes - average.detach().square()).clamp_min(0)
        # The sample variance over n: spread / (n - 1). Of a single probe, 0 / 0 says that nothing is known.
        return average, (spread / spread.new_tensor(self.n_probes - 1)).sqrt()

    def _prepare(self, z: Tensor) -> int:
        _refuse_train_mode(self.generator, self.feature_map)
        # Points of another dtype may not fit the generator, or take it down another path.
        if self._layout is None or (self._layout.dtype, self._layout.device) != (z.dtype, z.device):
            self._layout = self._inspect(z.detach())
        if self.chunk_size is not None:
            return self.chunk_size
        layout = self._layout
        per_point = layout.n_values + layout.n_data
        if self._weighted and torch.is_grad_enabled():
            # Each pass over the feature map leaves a graph behind.
            per_point += layout.n_data * (self.n_probes or min(layout.n_features, layout.n_data))
        budget = _CPU_CHUNK if z.device.type == "cpu" else _ACCELERATOR_CHUNK
        return max(1, min(budget // per_point, _MOST_ROWS))

    def _inspect(self, z: Tensor) -> _Layout:
        """Call the generator at the first point and near it: see what it is, and whether it can be differentiated."""
        step = 1e-2 * (1 + z.abs().max())
        three = z + step * torch.tensor([[0.0], [1.0], [-1.0]], dtype=z.dtype, device=z.device)
        two = three[:2]
        with torch.no_grad():
            try:
                mean, std = self._decode(two)
                value, other = self._values(two)[0], self._values(three)[0]
            except (RuntimeError, TypeError, IndexError, AttributeError) as error:
                raise ValueError(
                    f"the generator or the feature map failed on {_describe(two)}: {error}. The generator has "
                    f"{_describe_parameters(self.generator)}; check the last dimension, dtype and device of z"
                ) from error
            _finite(value, two)
            if not torch.allclose(value, other[:2], rtol=1e-2, atol=1e-2 * float(value.abs().max())):
                raise ValueError(
                    "a point's output depends on the other points of the batch, or is random: put batch norm and "
                    "dropout in eval mode, `model.eval()`"
                )
            n_data, n_values = mean[0].numel(), value.shape[1]
            n_features = n_values - (0 if std is None else n_data)
            changes = not torch.equal(value[0, :n_features], value[1, :n_features])
            forward = self._check_derivatives(two, changes, n_features)
        if z.shape[-1] >= n_features:
            warnings.warn(
                f"latent dimension {z.shape[-1]} >= output dimension {n_features}: the pull-back metric is degenerate "
                "or only a change of coordinates",
                stacklevel=5,
            )
        return _Layout(
            dtype=z.dtype,
            device=z.device,
            stochastic=std is not None,
            n_data=n_data,
            n_features=n_features,
            n_values=n_values,
            forward=forward,
        )

    def _check_derivatives(self, z: Tensor, changes: bool, n_features: int) -> bool:
        """Whether forward mode works; ValueError if no derivative arrives, or if the two modes contradict each other.

        Of the value (n, m) at ``z``, the first ``n_features`` are of the mean, and ``changes`` says that they vary.
        """
        _quieten_first_jvp()
        signs = 1 - 2 * (torch.arange(z.shape[-1], device=z.device) % 2).to(z)
        directions = torch.stack([torch.ones_like(signs), signs])
        try:
            push = self._reverse_twice(z)[1]
            reverse = torch.stack([push(v.expand_as(z)) for v in directions])
        except RuntimeError as error:
            raise ValueError(f"the generator or the feature map cannot be differentiated by torch: {error}") from error
        forward = None
        if not _is_scripted(self.generator, self.feature_map):
            # What fails here has passed without derivatives before: it is forward mode that is missing.
            with suppress(RuntimeError, ValueError):
                forward = vmap(lambda v: self._forward(z, v.expand_as(z))[1])(directions)
        tangents = reverse if forward is None else forward
        if changes and not bool(tangents[..., :n_features].any()):
            raise ValueError(
                "the output changes with z, but is cut off from it: something in the generator or the feature map "
                "disables gradients (detach, torch.inference_mode, numpy)"
            )
        if not torch.allclose(tangents, reverse, rtol=1e-2, atol=1e-2 * float(tangents.abs().max())):
            raise ValueError(
                "forward and reverse derivatives contradict each other: something in the generator or the feature map "
                "disables gradients (torch.no_grad), detaches a part of it, or has a wrong custom derivative"
            )
        return forward is not None


class _StdTerm(Metric):
    """What the standard deviation contributes to eq. 4, ``J_sigma^T diag(M_F) J_sigma``."""

    def __init__(self, metric: PullbackMetric) -> None:
        self.metric = metric
        self.latent_dim = metric.latent_dim

    def _tensor(self, z: Tensor) -> Tensor:
        columns = self.metric._columns(z)[1][..., self.metric._sizes.n_features :]
        return columns @ columns.mT

    def _squared_speed(self, z: Tensor, v: Tensor) -> Tensor:
        return self.metric._push(z, v)[:, self.metric._sizes.n_features :].square().sum(-1)

    def _prepare(self, z: Tensor) -> int:
        return self.metric._prepare(z)


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """What the first call of a generator shows."""

    dtype: torch.dtype  # of the points
    device: torch.device
    stochastic: bool
    n_data: int  # D
    n_features: int  # K, or D without a feature map
    n_values: int  # m, of the embedding or of the pushed-forward vectors
    forward: bool  # whether forward mode works


@dataclass(frozen=True)
class DiagonalEstimate:
    """Diagonal of ``M_F`` at points ``z (..., d)``.

    Attributes
    ----------
    value : Tensor, shape (..., D)
    standard_error : Tensor, shape (..., D)
        0 where the value is exact.
    """

    value: Tensor
    standard_error: Tensor


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
            raise ValueError(f"expected M(z) of shape {expected} for z of shape {tuple(z.shape)}, got {_describe(M)}")
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

    def has_embedding(self, z: Tensor) -> bool:
        """Whether both metrics are pull-backs of maps.

        Parameters
        ----------
        z : Tensor, shape (..., d)
            Any point.
        """
        return self.first.has_embedding(z) and self.second.has_embedding(z)

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


# Values of the output that a chunk of points may have. CPU: the intermediate tensors of a chunk stay in the cache.
_CPU_CHUNK = 1 << 19
_ACCELERATOR_CHUNK = 1 << 25
_MOST_ROWS = 1 << 14


def _in_chunks(metric: Metric, function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Apply ``function`` to chunks of points, and give its tensor or tuple of tensors the leading dimensions back."""
    z = _points(metric, tensors[0])
    leading, d = z.shape[:-1], z.shape[-1]
    n = leading.numel()
    # Contiguous: of an expanded tensor, forward mode and autograd would write to the same place many times.
    flat = [x.reshape(-1, d).contiguous() for x in tensors]
    # No points have a result too, of the right trailing shape: that of one point, cut to none.
    flat = flat if n else [x.new_zeros(1, d) for x in flat]
    # Inside a transform of torch.func, no_grad would replace derivatives (of SiLU, say) by ones that have none.
    transformed = any(torch._C._functorch.is_functorch_wrapped_tensor(x) for x in tensors)
    record = transformed or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
    # Forward mode under vmap fails in inference mode in older torch (seen in 2.5 and 2.8).
    with torch.inference_mode(False), torch.set_grad_enabled(record), _full_precision(z.device):
        flat = [x.clone() if x.is_inference() else x for x in flat]
        rows = metric._prepare(flat[0][:1])
        metric.latent_dim = d
        results = (function(*chunk) for chunk in zip(*(x.split(rows) for x in flat), strict=True))
        first = next(results)
        single = isinstance(first, Tensor)
        parts = ((part,) if single else part for part in chain([first], results))
        if record:
            joined = [torch.cat(column)[:n] for column in zip(*parts, strict=True)]
        else:
            joined = [part.new_empty(n, *part.shape[1:]) for part in ((first,) if single else first)]
            # Written into place: kept one by one, small results would lie between the large temporary buffers of the
            # chunks and keep the allocator from using their memory again, which then grows with the number of points.
            stop = 0
            for part in parts:
                start, stop = stop, min(stop + rows, n)
                for whole, piece in zip(joined, part, strict=True):
                    whole[start:stop] = piece[: stop - start]
        shaped = [x.reshape(leading + x.shape[1:]) for x in joined]
    return shaped[0] if single else tuple(shaped)


def _points(metric: Metric, z: Tensor) -> Tensor:
    d = metric.latent_dim
    if not isinstance(z, Tensor) or not z.is_floating_point():
        how = "z.float()" if isinstance(z, Tensor) else "torch.as_tensor(z, dtype=torch.float32)"
        raise ValueError(f"expected floating-point points z (..., {d or 'd'}), got {_describe(z)}: use {how}")
    if z.ndim == 0 or z.shape[-1] != (d or z.shape[-1]):
        raise ValueError(f"expected points z (..., {d or 'd'}), got shape {tuple(z.shape)}")
    return z


def _paired(z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    if not (isinstance(z, Tensor) and isinstance(v, Tensor)) or z.dtype != v.dtype or z.device != v.device:
        raise ValueError(
            f"expected z and v as tensors of one dtype on one device, got {_describe(z)} and {_describe(v)}: use "
            "torch.as_tensor(v, dtype=..., device=...)"
        )
    if z.shape[-1:] != v.shape[-1:]:
        raise ValueError(f"expected z and v (..., d) with the same d, got {tuple(z.shape)} and {tuple(v.shape)}")
    try:
        z, v = torch.broadcast_tensors(z, v)
    except RuntimeError as error:
        raise ValueError(f"z {tuple(z.shape)} and v {tuple(v.shape)} cannot be broadcast: {error}") from error
    return z, v


def _finite(result: Tensor, z: Tensor) -> Tensor:
    """Refuse a result (..., *) that is not finite, naming the first point (..., d) where it is not."""
    finite = result.detach().isfinite()
    if not bool(finite.all()):
        bad = ~finite.reshape(*z.shape[:-1], -1).all(-1).reshape(-1)
        point = z.detach().reshape(-1, z.shape[-1])[bad][0]
        cause = "z itself is not finite" if not bool(point.isfinite().all()) else "the generator gives NaN or infinity"
        raise ValueError(
            f"no finite result at {int(bad.sum())} of {bad.numel()} points, first z = {point.tolist()}: {cause}"
        )
    return result


def _semidefinite(M: Tensor, z: Tensor) -> Tensor:
    """Refuse tensors (..., d, d) not finite or with a negative eigenvalue, naming the first such point (..., d)."""
    _finite(M, z)
    # Rounding may leave eigenvalues of 0 slightly negative: by 1e-4 of the trace at most in float32, 2e-13 in float64.
    # The decomposition exists where all eigenvalues are positive, and costs less than the tensor did.
    precision = torch.finfo(z.dtype)
    tensor = M.detach().to(torch.promote_types(M.dtype, torch.float32))
    shift = 1e3 * precision.eps * tensor.diagonal(dim1=-2, dim2=-1).sum(-1).abs() + precision.tiny
    identity = torch.eye(M.shape[-1], dtype=tensor.dtype, device=M.device)
    bad = torch.linalg.cholesky_ex(tensor + shift[..., None, None] * identity).info > 0
    if bool(bad.any()):
        eigenvalue = float(torch.linalg.eigvalsh(tensor[bad][0])[0])
        raise ValueError(
            f"expected a positive semi-definite metric, got the eigenvalue {eigenvalue:.3g} at z = "
            f"{z.detach()[bad][0].tolist()}: correct the function or the factor that makes it negative"
        )
    return M


def _square_root(x: Tensor) -> Tensor:
    """Square root with gradient 0, not infinity, at 0: there a sum of squares has gradient 0."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1).sqrt(), 0)


def _check_batch(name: str, n: int, given: Sequence[int], output: Tensor) -> None:
    if output.ndim == 0 or len(output) != n:
        raise ValueError(
            f"expected the {name} to return n = {n} rows for an input of shape {tuple(given)}, got "
            f"{tuple(output.shape)}: it must take a batch and keep the first dimension"
        )


def _refuse_train_mode(*functions: Any) -> None:
    for function in functions:
        if isinstance(function, nn.Module):
            for name, module in function.named_modules():
                if module.training and _depends_on_mode(module):
                    raise ValueError(
                        f"{type(module).__name__} '{name}' of {type(function).__name__} is in train mode, where its "
                        "output is random or depends on the batch, or each call changes it: call eval() on the model"
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
    return any(
        isinstance(f, scripted) or (isinstance(f, nn.Module) and any(isinstance(m, scripted) for m in f.modules()))
        for f in functions
    )


def _describe(x: Any) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)} on {x.device}" if isinstance(x, Tensor) else f"a {type(x).__name__}"


def _describe_parameters(function: Any) -> str:
    parameter = next(function.parameters(), None) if isinstance(function, nn.Module) else None
    return "no known parameters" if parameter is None else f"parameters {parameter.dtype} on {parameter.device}"


@cache
def _quieten_first_jvp() -> None:
    """Run one jvp with the deprecation of `torch.jit.script` silenced: the first of a process imports scripted code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=DeprecationWarning)
        jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Switch TensorFloat-32, with its 10 bits of mantissa, off on a GPU, and back to what it was."""
    if device.type != "cuda":
        yield
        return
    places: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value


# --------------------------------------------------------------------------------------------------------------------
# Length and energy of curves
# --------------------------------------------------------------------------------------------------------------------


def curve_length(metric: Metric, curve: Curve | Tensor, n_t: int = 256) -> Tensor:
    """Riemannian length of curves, ``integral of |g'(t)| dt`` over [0, 1] (eq. 1).

    Parameters
    ----------
    metric : Metric
    curve : curve, or Tensor of shape (..., n, d)
        Anything with ``curve(t)`` and ``curve.derivative(t)``, such as `lgi.CubicBSpline`; or the points of a path that
        is piecewise linear in latent space, each piece taking the same time.
    n_t : int
        Number of quadrature nodes, at least one a span.

    Returns
    -------
    Tensor, shape (...)
        Differentiable in what the curve is made of.

    Raises
    ------
    ValueError
        If ``n_t`` is not an integer of at least 1, or the metric cannot be evaluated along the curve.
    TypeError
        If ``metric`` is not a metric or ``curve`` neither a curve nor a tensor.

    Notes
    -----
    Composite Gauss-Legendre quadrature with the nodes shared out evenly among the spans between distinct knots, in
    which the integrand is as smooth as the metric: it converges faster than any power of ``1 / n_t``, and no node lies
    on a knot. The pieces of a path of points are its spans, in each of which the velocity is constant. Length and
    energy share their nodes and weights (which sum to 1), so that ``L^2 <= E`` holds for the sums by Cauchy-Schwarz.
    """
    squared_speed, weights = _along(metric, curve, n_t)
    return _square_root(squared_speed) @ weights


def curve_energy(metric: Metric, curve: Curve | Tensor, n_t: int = 256) -> Tensor:
    """Path energy of curves, ``integral of |g'(t)|^2 dt`` over [0, 1], without a factor 1/2 (section 2.1).

    Parameters
    ----------
    metric : Metric
    curve : curve, or Tensor of shape (..., n, d)
        As for :func:`curve_length`.
    n_t : int
        Number of quadrature nodes, at least one a span.

    Returns
    -------
    Tensor, shape (...)
        At least the squared :func:`curve_length`; equal at constant speed. Differentiable in what the curve is made of;
        :func:`energy_and_gradient` gives the gradient of a spline in bounded memory.

    Raises
    ------
    ValueError
        If ``n_t`` is not an integer of at least 1, or the metric cannot be evaluated along the curve.
    TypeError
        If ``metric`` is not a metric or ``curve`` neither a curve nor a tensor.
    """
    squared_speed, weights = _along(metric, curve, n_t)
    return squared_speed @ weights


def curve_length_error(metric: Metric, curve: Curve | Tensor, n_t: int = 256) -> Tensor:
    """Estimated quadrature error of :func:`curve_length`, ``|L_{n_t} - L_{2 n_t}|``.

    Parameters
    ----------
    metric : Metric
    curve : curve, or Tensor of shape (..., n, d)
        As for :func:`curve_length`.
    n_t : int
        Number of quadrature nodes of the length whose error is wanted.

    Returns
    -------
    Tensor, shape (...)
        Absolute; a good estimate once the quadrature converges.

    Raises
    ------
    ValueError
        If ``n_t`` is not an integer of at least 1, or the metric cannot be evaluated along the curve.
    TypeError
        If ``metric`` is not a metric or ``curve`` neither a curve nor a tensor.
    """
    return (curve_length(metric, curve, n_t) - curve_length(metric, curve, 2 * n_t)).abs()


def energy_and_gradient(metric: Metric, curve: SplineCurve, n_t: int = 256) -> tuple[Tensor, Tensor]:
    """Path energy of splines and its gradient, in memory that does not grow with the number of curves or nodes.

    ``dE / dP_i = sum_k w_k (B_ki ds_k/dz + B'_ki ds_k/dv)`` with the squared speed ``s_k`` at node ``k`` and the basis
    matrices ``B`` and ``B'`` of points and velocities. It equals the gradient of :func:`curve_energy`.

    Parameters
    ----------
    metric : Metric
    curve : CubicBSpline
        With control points (..., n_control, d).
    n_t : int
        Number of quadrature nodes, at least one a span.

    Returns
    -------
    energy : Tensor, shape (...)
    gradient : Tensor, shape (..., n_control, d)
        With respect to the control points, the fixed end points included. Neither has a graph.

    Raises
    ------
    ValueError
        If ``n_t`` is not an integer of at least 1, or a point does not fit the latent space.
    TypeError
        If ``metric`` is not a metric or ``curve`` has no control points.
    """
    _check_metric(metric)
    if not isinstance(getattr(curve, "control_points", None), Tensor):
        raise TypeError(f"expected a curve with control points, such as lgi.CubicBSpline, got {_describe(curve)}")
    with torch.inference_mode(False), torch.enable_grad():
        t, weights = _nodes(curve, n_t)
        control_points = curve.control_points.detach().clone().requires_grad_()
        detached = type(curve)(control_points, curve.knots)
        z, v = detached(t), detached.derivative(t)
        value, z_gradient, v_gradient = metric.squared_speed_and_gradient(z, v)
        # The curve is linear in its control points, so that its own backward pass is the transposed basis.
        scale = weights[:, None]
        (gradient,) = torch.autograd.grad((z, v), control_points, (scale * z_gradient, scale * v_gradient))
        return value @ weights, gradient


class SplineCurve(Curve, Protocol):
    """A curve made of control points, as `lgi.CubicBSpline` is one."""

    control_points: Tensor
    knots: Tensor

    def __init__(self, control_points: Tensor, knots: Tensor | None = None) -> None: ...


class _Path:
    """Piecewise linear curve through points (..., n, d), each piece taking the same time."""

    def __init__(self, points: Tensor) -> None:
        if points.ndim < 2 or points.shape[-2] < 2 or not points.is_floating_point():
            raise ValueError(f"expected a path of floating-point points (..., n >= 2, d), got {_describe(points)}")
        self.points = points
        self.dtype = points.dtype
        self.device = points.device
        self.knots = torch.linspace(0, 1, points.shape[-2], dtype=torch.float64)

    def __call__(self, t: Tensor) -> Tensor:
        place = t * (len(self.knots) - 1)
        piece = place.long().clamp(max=len(self.knots) - 2)
        return torch.lerp(self.points[..., piece, :], self.points[..., piece + 1, :], (place - piece)[:, None])

    def derivative(self, t: Tensor) -> Tensor:
        n_pieces = len(self.knots) - 1
        return n_pieces * self.points.diff(dim=-2)[..., (t * n_pieces).long().clamp(max=n_pieces - 1), :]


def _check_metric(metric: Metric) -> None:
    if not isinstance(metric, Metric):
        raise TypeError(f"expected a metric, such as lgi.PullbackMetric(generator), got {_describe(metric)}")


def _along(metric: Metric, curve: Curve | Tensor, n_t: int) -> tuple[Tensor, Tensor]:
    """Squared speed (..., n_t) at the quadrature nodes, and the weights (n_t,)."""
    _check_metric(metric)
    curve = _Path(curve) if isinstance(curve, Tensor) else curve
    if not callable(curve) or not hasattr(curve, "derivative"):
        raise TypeError(
            f"expected a curve, such as lgi.CubicBSpline, or a tensor of points (..., n, d), got {_describe(curve)}: "
            "use torch.as_tensor for points"
        )
    t, weights = _nodes(curve, n_t)
    return metric.squared_speed(curve(t), curve.derivative(t)), weights


def _nodes(curve: Curve, n_t: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on the spans of a curve, in its dtype and on its device."""
    if not isinstance(n_t, int | np.integer) or n_t < 1:
        raise ValueError(f"expected n_t, the number of quadrature nodes, as an integer of at least 1, got n_t = {n_t}")
    knots = getattr(curve, "knots", None)
    t, weights = _gauss_legendre((0.0, 1.0) if knots is None else tuple(knots.unique().tolist()), n_t)
    dtype, device = getattr(curve, "dtype", None), getattr(curve, "device", None)
    return t.to(dtype or torch.get_default_dtype()).to(device), weights.to(dtype or torch.get_default_dtype()).to(
        device
    )


@lru_cache(maxsize=256)
def _gauss_legendre(knots: tuple[float, ...], n_t: int) -> tuple[Tensor, Tensor]:
    """Composite Gauss-Legendre nodes and weights (float64, CPU) with ``n_t`` nodes in all, at least one a span."""
    n_spans = len(knots) - 1
    t, weights = [], []
    for i, (a, b) in enumerate(pairwise(knots)):
        x, w = np.polynomial.legendre.leggauss(max(1, (n_t * (i + 1)) // n_spans - (n_t * i) // n_spans))
        t.append((a + b) / 2 + (b - a) / 2 * x)
        weights.append((b - a) / 2 * w)
    total = np.concatenate(weights)
    with torch.inference_mode(False):
        return torch.tensor(np.concatenate(t)), torch.tensor(total / total.sum())


# --------------------------------------------------------------------------------------------------------------------
# Fields
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class MetricFields:
    """A metric on a grid of the latent space; all on the CPU, ready to be drawn.

    Attributes
    ----------
    axes : tuple of Tensor, each of shape (n_i,)
        Grid coordinates. ``field[i, j]`` belongs to the point ``(axes[0][i], axes[1][j])``: a picture with the first
        coordinate to the right is ``field.T``.
    log_volume : Tensor, shape (n_1, ..., n_d)
        ``log sqrt(det M)`` (Fig. 2).
    log_condition : Tensor, shape (n_1, ..., n_d)
        ``log10(lambda_max / lambda_min)`` (Fig. 1).
    eigenvalues : Tensor, shape (n_1, ..., n_d, d)
        Ascending.
    eigenvectors : Tensor, shape (n_1, ..., n_d, d, d)
        In columns; the signs are arbitrary.
    """

    axes: tuple[Tensor, ...]
    log_volume: Tensor
    log_condition: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor


def metric_fields(
    metric: Metric, axes: Sequence[Tensor], *, batch_size: int = 4096, progress: bool | None = None
) -> MetricFields:
    """Evaluate volume, condition number and eigenvectors of a metric on a grid (backgrounds of Figs 1 and 2).

    Parameters
    ----------
    metric : Metric
    axes : sequence of Tensor, each of shape (n_i,)
        Grid coordinates, one axis a latent dimension; their dtype and device are used for the computation.
    batch_size : int
        Points between two steps of the progress bar.
    progress : bool, optional
        Whether to show a progress bar; by default if the output is a terminal.

    Returns
    -------
    MetricFields

    Raises
    ------
    ValueError
        If the axes do not fit the latent space, or the metric is not finite or has a negative eigenvalue somewhere on
        the grid.
    TypeError
        If ``metric`` is not a metric.
    """
    _check_metric(metric)
    if len(axes) == 0 or any(not isinstance(x, Tensor) or x.ndim != 1 or x.dtype != axes[0].dtype for x in axes):
        raise ValueError(
            f"expected one-dimensional axes of one dtype, got {', '.join(map(_describe, axes)) or 'none'}: use "
            "torch.linspace, or torch.as_tensor(axis, dtype=torch.float32)"
        )
    z = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    points = _points(metric, z).reshape(-1, len(axes))
    tensors = []
    with torch.no_grad(), progress_bar(len(points), desc="metric", unit="points", show=progress) as advance:
        for batch in points.split(batch_size):
            tensors.append(_semidefinite(_in_chunks(metric, metric._precise_tensor, batch), batch).cpu())
            advance(len(batch))
    eigenvalues, eigenvectors = torch.linalg.eigh(torch.cat(tensors).reshape(*z.shape, len(axes)))
    return MetricFields(
        axes=tuple(axis.cpu() for axis in axes),
        log_volume=_log_volume(eigenvalues).to(z.dtype),
        log_condition=_log_condition(eigenvalues).to(z.dtype),
        eigenvalues=eigenvalues.to(z.dtype),
        eigenvectors=eigenvectors.to(z.dtype),
    )
