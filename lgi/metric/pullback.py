"""The paper's metric: the pull-back of a generator, seen directly or through a feature map (eqs 1-4, App. E)."""

from copy import copy
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.func import jvp, vmap

from lgi.checks import one_of, whole
from lgi.metric.base import Metric, square_root
from lgi.metric.batching import check_points, finite, first_point
from lgi.metric.derivatives import reverse
from lgi.metric.generators import FeatureMap, Generator, Outputs, known_latent_dim
from lgi.metric.noise import Noise
from lgi.metric.probing import Layout, probe
from lgi.metric.watching import Watched, refuse_train_mode

NoiseModel = Literal["linearised", "sampled"]


class PullbackMetric(Metric):
    r"""Pull-back metric of a generator, optionally through a feature map.

    With the Jacobian ``J`` of a deterministic generator, ``J_mu`` and ``J_sigma`` of a stochastic one, and
    ``M_F = J_F^T J_F`` of a feature map, taken at the mean:

    - eq. 1: ``M = J^T J``
    - eq. 2: ``M = J_mu^T J_mu + J_sigma^T J_sigma``
    - eq. 3: ``M = J^T M_F J``
    - eq. 4: ``M = J_mu^T M_F J_mu + J_sigma^T diag(M_F) J_sigma`` (App. E)

    Eq. 4 is the expected metric ``E[J^T J]``, ``J = d f(mu(z) + sigma(z) eps) / dz`` with ``eps ~ N(0, I)``, of affine
    feature maps only: App. E takes ``J_F`` out of the expectation, though it is taken at the output, which is random.
    Of others it is a linearisation, at the mean. The expectation itself is ``noise="sampled"``:

    - ``M = (1/K) sum_k J_k^T J_k``, ``J_k = d f(mu(z) + sigma(z) eps_k) / dz``, with ``K`` fixed draws ``eps_k``.

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
        Points, or tangents at points, processed at a time: a tensor takes ``d`` tangents a point. By default as many as
        have about 520,000 output values and 4.2 million activations (CPU), or 64 times as many (GPU).
    n_probes : int, optional
        Estimate ``diag(M_F)`` in eq. 4 by Hutchinson's method with so many random signs; by default it is exact. The
        relative error of an entry is at most ``sqrt(2 / n_probes)`` (one standard deviation).
    noise : {"linearised", "sampled"}
        Which metric belongs to a feature map on a stochastic generator: eq. 4, the paper's, or the expected one. Of an
        affine feature map that says so (`LogisticRegression` with logits), and without one, they are the same, and
        the exact eqs 4 and 2 are used.
    n_draws : int
        ``K``, at least 2: pairs of draws ``eps, -eps`` that are the same at all points. The error falls with their
        number, at least as ``K^-1/2``; :meth:`noise_error` measures it.
    seed : int
        Of these signs, or draws. They are the same at all points, so that the metric remains a smooth function of
        ``z``.

    Raises
    ------
    ValueError
        If ``noise`` is neither of both, ``n_draws`` below 2, or ``noise`` sampled and the generator without std.
        From any method: if ``z`` is not floating point or has another last dimension; if a module with batch norm,
        dropout or spectral norm is in train mode; if outputs lack the batch dimension, mix rows, differ in shape, are
        cut off from ``z``, random, of fewer digits than ``z``, or not finite; if a standard deviation is negative.

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
    the output is smaller than ``d``, the tensor is made of reverse passes. Attention is computed by plain products and
    compiled code as it was written, because only so there are second derivatives. A model's buffers, attributes and
    mode are after each call what they were before.

    With ``K`` features and ``D`` data values, the exact diagonal in eq. 4 takes ``K`` reverse passes over the feature
    map, or ``D`` forward passes where these are fewer; an estimate takes ``n_probes``.

    *Sampled.* The metric is the pull-back of ``h(z) = [f(mu(z) + sigma(z) eps_k)]_k / sqrt(K)``, so that everything
    that has been said of eq. 1 holds: it has an embedding, and the solver works with it as with any. Its value has
    ``K`` times as many entries as there are features; where there is no graph to be kept, the feature map sees so many
    draws at a time as bounded memory allows. A feature map that begins with an affine layer and has ``weight``,
    ``link`` and ``logits`` (`LogisticRegression`) sees of the noise of a draw only ``W (sigma eps_k)``, ``C`` numbers
    linear in ``sigma``: one product of ``sigma`` with a matrix ``(K C, D)`` gives all of them, and the draws are
    quasi-random in the ``C`` directions that count. An integral over the logits alone, by Gauss and Hermite, would be
    smoother and is not used: logits and their derivatives are jointly Gaussian, with covariances that change with
    ``z``, and the result is no longer the pull-back of a map, from whose values lengths and certificates are taken.

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
        noise: NoiseModel = "linearised",
        n_draws: int = 256,
        seed: int = 0,
    ) -> None:
        if not callable(generator) or not (feature_map is None or callable(feature_map)):
            raise ValueError(f"expected callables, got generator {generator!r} and feature map {feature_map!r}")
        whole(1, latent_dim=latent_dim, chunk_size=chunk_size, n_probes=n_probes)
        whole(2, n_draws=n_draws)
        one_of(get_args(NoiseModel), noise=noise)
        self.generator = generator
        self.feature_map = feature_map
        self.latent_dim = known_latent_dim(generator) if latent_dim is None else latent_dim
        self.chunk_size = chunk_size
        self.n_probes = n_probes
        self.noise = noise
        self.n_draws = n_draws
        self.seed = seed
        draws = Noise(n_draws, seed) if noise == "sampled" else None
        self._outputs = Outputs(Watched(generator), None if feature_map is None else Watched(feature_map), draws)
        self._layout: Layout | None = None
        refuse_train_mode(generator, feature_map)

    def __repr__(self) -> str:
        names = [type(f).__name__ for f in (self.generator, self.feature_map) if f is not None]
        return f"PullbackMetric({', '.join(names)})"

    def decode(self, z: Tensor) -> Tensor:
        """Output of the generator; of a stochastic one, the mean.

        Parameters
        ----------
        z : Tensor, shape (..., d)

        Returns
        -------
        Tensor, shape (..., *data_shape)
            Computed in chunks, like all else.

        Raises
        ------
        ValueError
            If ``z`` does not fit the latent space, or the output is not finite.
        """
        return finite(self._evaluate(lambda z: self._outputs.decode(z)[0], z), z)

    def noise_error(self, z: Tensor, n_replicates: int = 8) -> Tensor:
        """Standard error of the trace of the metric, as an estimate of that of the expected one.

        It is the standard deviation of the trace over metrics with other draws, as many each.

        Parameters
        ----------
        z : Tensor, shape (..., d)
        n_replicates : int
            Metrics with seeds of their own, at least 2, each as expensive as this one. The relative error of a standard
            error from so many is about ``(2 n_replicates - 2)^-1/2``, and more where rare draws count.

        Returns
        -------
        Tensor, shape (...)
            In the units of the trace; 0 where the expectation is exact: without feature map, or with an affine one.

        Raises
        ------
        ValueError
            If the noise is linearised, ``n_replicates`` below 2, or ``z`` does not fit the latent space.
        """
        whole(2, n_replicates=n_replicates)
        if self.noise == "linearised":
            raise ValueError('eq. 4 has no draws: how far it is from the expected metric tells noise="sampled"')
        traces = []
        for seed in range(self.seed + 1, self.seed + 1 + n_replicates):
            other = copy(self)
            other._outputs = replace(self._outputs, noise=Noise(self.n_draws, seed))
            traces.append(other.tensor(z).diagonal(dim1=-2, dim2=-1).sum(-1))
        return torch.stack(traces).std(0)

    def split(self, z: Tensor) -> tuple[Metric | None, Metric | None]:
        """The metric as a sum of the pull-back of a map and of what is left: the two terms of eq. 4.

        Parameters
        ----------
        z : Tensor, shape (..., d)
            Any point.

        Returns
        -------
        embedded, rest : Metric or None
            In eq. 4 the metric of the mean, ``J_mu^T M_F J_mu``, and ``J_sigma^T diag(M_F) J_sigma``; in eqs 1 to 3 and
            of the sampled metric, all of the metric and None.
        """
        check_points(z, self.latent_dim)
        if not self._layout_at(first_point(z)).weighted:
            return self, None
        decode, d, rows = self._outputs.decode, self.latent_dim, self.chunk_size
        mean = PullbackMetric(lambda z: decode(z)[0], self.feature_map, latent_dim=d, chunk_size=rows)
        return mean, _StdTerm(self)

    def _layout_at(self, z: Tensor) -> Layout:
        """What the generator is, seen at points ``z (n, d)``.

        The one place where a metric changes itself: at the first points that it is given it looks at the generator, and
        learns its latent dimension unless it was told. It looks again where dtype or device of the points change: they
        may not fit the generator, or lead it down another path.
        """
        check_points(z, self.latent_dim)
        if self._layout is None or (self._layout.dtype, self._layout.device) != (z.dtype, z.device):
            self._layout = probe(self._outputs, z[:1])
            self.latent_dim = z.shape[-1]
        return self._layout

    def _factor(self, J_h: Tensor, mean: Tensor, layout: Layout) -> Tensor:
        """``A`` of which ``M = A^T A`` (eqs 1-4), from the Jacobian of ``h`` (:class:`Outputs`).

        ``J_h`` comes as columns (n, d, m), or multiplied by a vector (n, m), and so does ``A``; ``mean`` is (n, ...).
        """
        if not layout.weighted:
            # eqs 1-3: A is J_mu, or J_mu above J_sigma, or J_F J_mu; h is made so that its Jacobian is just that.
            return J_h
        # eq. 4: M = J_mu^T M_F J_mu + J_sigma^T diag(M_F) J_sigma, where M_F = J_F^T J_F at the mean.
        J_F_J_mu, J_sigma = J_h.split([layout.n_features, layout.n_data], dim=-1)
        diagonal = self._feature_diagonal(mean, layout).reshape(len(mean), *[1] * (J_h.ndim - 2), -1)
        return torch.cat([J_F_J_mu, square_root(diagonal) * J_sigma], dim=-1)

    def _feature_diagonal(self, mean: Tensor, layout: Layout) -> Tensor:
        """``diag(M_F)`` (n, D): entry ``j`` is the squared norm of column ``j`` of ``J_F``."""
        feature_map, n = self._outputs.feature_map, len(mean)
        assert feature_map is not None
        if self.n_probes is None and layout.n_features > layout.n_data and layout.forward:
            directions = torch.eye(layout.n_data, dtype=mean.dtype, device=mean.device)
            tangents = (jvp(feature_map, (mean,), (v.expand(n, -1).reshape(mean.shape),))[1] for v in directions)
            return torch.stack([column.reshape(n, -1).square().sum(-1) for column in tangents], dim=-1)
        features, pull, _ = reverse(lambda x: (feature_map(x), x), mean)
        if self.n_probes is None:
            cotangents = torch.eye(layout.n_features, dtype=features.dtype, device=features.device)
        else:
            signs = torch.Generator().manual_seed(self.seed)
            cotangents = torch.randint(2, (self.n_probes, layout.n_features), generator=signs).to(features) * 2 - 1
        # One pass after the other, so that memory does not grow with their number unless a graph is recorded.
        squares = (pull(u.expand(n, -1).reshape(features.shape)).reshape(n, -1).square() for u in cotangents)
        return sum(squares, mean.new_zeros(())) / (self.n_probes or 1)

    def _tensor(self, z: Tensor) -> Tensor:
        columns = self._columns(z)[1]
        return columns @ columns.mT

    def _precise_tensor(self, z: Tensor) -> Tensor:
        columns = self._columns(z)[1].double()
        return columns @ columns.mT

    def _squared_speed(self, z: Tensor, v: Tensor) -> Tensor:
        return self._push(z, v).square().sum(-1)

    def _linearise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return super()._linearise(z) if self._layout_at(z).weighted else self._columns(z)

    def _embed(self, z: Tensor) -> Tensor:
        return super()._embed(z) if self._layout_at(z).weighted else self._outputs.values(z)[0]

    def _push(self, z: Tensor, v: Tensor) -> Tensor:
        """``A v`` (n, m)."""
        layout = self._layout_at(z)
        if layout.forward:
            value, tangent, mean = self._outputs.forward(z, v)
        else:
            value, push, mean = self._outputs.reverse_twice(z)
            tangent = push(v)
        return self._factor(_where_defined(value, tangent), mean, layout)

    def _columns(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``h(z)`` (n, m), and the columns (n, d, m) of ``A``."""
        layout = self._layout_at(z)
        directions = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        if not layout.weighted and layout.n_values < z.shape[-1]:
            value, pull, _ = self._outputs.reverse(z)
            rows = torch.eye(layout.n_values, dtype=value.dtype, device=value.device)
            columns = torch.stack([pull(row.expand_as(value)) for row in rows], dim=-1)
            return value, _where_defined(value, columns)
        if layout.forward:
            # Values and mean do not depend on the direction: vmap computes them once, and repeats them without a copy.
            forward = vmap(lambda e: self._outputs.forward(z, e.expand_as(z)), out_dims=(0, 1, 0))
            parts = [forward(part) for part in directions.split(max(1, self._rows(layout, z) // len(z)))]
            value, mean = parts[0][0][0], parts[0][2][0]
            columns = parts[0][1] if len(parts) == 1 else torch.cat([part[1] for part in parts], dim=1)
        else:
            value, push, mean = self._outputs.reverse_twice(z)
            columns = torch.stack([push(direction.expand_as(z)) for direction in directions], dim=1)
        return value, self._factor(_where_defined(value, columns), mean, layout)

    def _prepare(self, z: Tensor) -> int:
        # At every call: since the last one, the model may have been put back into train mode.
        for watched in (self._outputs.generator, self._outputs.feature_map):
            refuse_train_mode(*([] if watched is None else watched.modules))
        return self._rows(self._layout_at(z), z)

    def _rows(self, layout: Layout, z: Tensor) -> int:
        """How many points, or tangents, to process at a time."""
        if self.chunk_size is not None:
            return self.chunk_size
        per_point = layout.n_values + layout.n_data
        if layout.weighted and torch.is_grad_enabled():
            # Each pass over the feature map leaves a graph behind.
            per_point += layout.n_data * (self.n_probes or min(layout.n_features, layout.n_data))
        # Output values of a chunk. On a CPU its intermediate tensors, of some MB, then stay in the cache; on a GPU they
        # keep the device busy, and are small beside its memory. Of these themselves there may be eight times as many,
        # as in VAE1: with a graph, which keeps them all, with tangents and gradients, some 100 MB on a CPU.
        n_values = 1 << 19 if z.device.type == "cpu" else 1 << 25
        # 2^14: where a generator computes only a few values.
        return max(1, min(n_values // per_point, 8 * n_values // layout.n_activations, 1 << 14))


def _where_defined(value: Tensor, derivatives: Tensor) -> Tensor:
    """Derivatives (n, ..., m), NaN where values (n, m) are not finite: of a NaN by torch.where, torch gives 0."""
    known = value.isfinite().all(-1)
    return torch.where(known.reshape(-1, *[1] * (derivatives.ndim - 1)), derivatives, torch.nan)


class _StdTerm(Metric):
    """What the standard deviation contributes to eq. 4, ``J_sigma^T diag(M_F) J_sigma``."""

    def __init__(self, metric: PullbackMetric) -> None:
        self.metric = metric
        self.latent_dim = metric.latent_dim

    def _tensor(self, z: Tensor) -> Tensor:
        columns = self.metric._columns(z)[1][..., self.metric._layout_at(z).n_features :]
        return columns @ columns.mT

    def _squared_speed(self, z: Tensor, v: Tensor) -> Tensor:
        return self.metric._push(z, v)[:, self.metric._layout_at(z).n_features :].square().sum(-1)

    def _prepare(self, z: Tensor) -> int:
        return self.metric._prepare(z)
