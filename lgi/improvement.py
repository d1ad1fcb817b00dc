"""How far straight lines are from shortest: Algorithm 1, and the comparison of two models (sections 2.3, 3, App. C, D).

:func:`worst_case_improvement` runs Algorithm 1, :func:`compare_models` compares two models on the same pairs of data.
From the command line, for long runs on one machine or many::

    python -m lgi.improvement --model vae1 --samples 100000 --shard 3/20 --out vae1_study
    python -m lgi.improvement merge vae1_study/shard_* --out vae1_study
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor, nn

from lgi import zoo
from lgi.features import ClassifierOutput
from lgi.metric import Metric, PullbackMetric
from lgi.models import pick_device
from lgi.solver import SolverSettings, shorten
from lgi.spline import CubicBSpline
from lgi.study import Study, Table, bootstrap_interval, load_study, merge_studies, run, samples_of

Direction = Literal["maximal", "minimal", "random", "pairs"]
Eigenvectors = Literal["auto", "eigh", "lanczos"]


# --------------------------------------------------------------------------------------------------------------------
# Algorithm 1
# --------------------------------------------------------------------------------------------------------------------


def worst_case_improvement(
    metric: Metric,
    n_samples: int = 1000,
    step_size: float = 1.0,
    seed: int = 0,
    *,
    direction: Direction = "maximal",
    codes: Tensor | None = None,
    settings: SolverSettings = SolverSettings(),  # noqa: B008 - it is frozen
    eigenvectors: Eigenvectors = "auto",
    latent_dim: int | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    folder: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    chunk_size: int = 500,
    about: Mapping[str, Any] | None = None,
    progress: bool | None = None,
) -> Study:
    """Expected worst-case relative improvement of straight lines (Algorithm 1, section 2.3).

    Draws ``z_A`` from the prior N(0, I), steps to ``z_B = z_A + step_size * v`` along the unit eigenvector ``v`` of
    ``M(z_A)`` with the largest eigenvalue, looks for a shorter curve between them, and averages
    ``(d_s - d_c) / d_s`` of the straight length ``d_s`` and the shorter length ``d_c``.

    Parameters
    ----------
    metric : Metric
    n_samples : int
        Number of samples; the paper's is 1000.
    step_size : float
        Euclidean length of the straight line in latent space; the paper gives no number.
    seed : int
        Sample ``i`` is drawn from a stream of its own, of (seed, i): the same whatever is drawn beside it.
    direction : {"maximal", "minimal", "random", "pairs"}
        Where the step goes: along the eigenvector of the largest (the paper's) or of the smallest eigenvalue, or in a
        random direction. ``"pairs"``: no step, the end is drawn from the codes like the start.
    codes : Tensor, shape (n_codes, d), optional
        Codes of data from which the starts are drawn, with replacement, in place of the prior.
    settings : SolverSettings
        Of the search for shorter curves.
    eigenvectors : {"auto", "eigh", "lanczos"}
        ``"eigh"`` decomposes the whole tensor, ``"lanczos"`` needs its products with vectors only and gives maximal
        directions only. ``"auto"``: Lanczos for maximal directions if ``d > 64``.
    latent_dim : int, optional
        ``d``; by default that of the codes or of the metric.
    dtype, device : optional
        Where to compute; by default like the parameters of the metric's generator; of a plain function, like the codes,
        else torch's default dtype, on the CPU.
    folder : path, optional
        Where to keep a long run: every chunk is written when it is done, and the same call goes on from there after an
        interruption of any kind. Ends with ``study.safetensors`` and ``study.json`` (:func:`load_study`), and with
        ``provenance.json`` and ``provenance.safetensors`` (seconds of each chunk) beside them.
    shard : (int, int), optional
        ``(i, n)``: compute only part ``i`` of ``n``, counted from 1; see :func:`merge_studies`. Needs its own folder.
    chunk_size : int
        Samples computed and written at a time.
    about : mapping, optional
        What a reader of the saved study should know, such as the name of the model; JSON values.
    progress : bool, optional
        Whether to show a progress bar; by default if the output is a terminal.

    Returns
    -------
    Study
        Of all samples, or of the shard's.

    Raises
    ------
    ValueError
        If an argument makes no sense; if the metric is not finite at a sample or on its straight line; if the folder
        holds another study, naming what differs.
    TypeError
        If ``metric`` is not a metric.
    lgi.artifacts.ArtifactError
        If the folder cannot be written, or a file in it is damaged.

    Warns
    -----
    UserWarning
        If Lanczos iterations end before the eigenvector is exact.

    Notes
    -----
    Footnote 1 of the paper turns the eigenvector towards the origin: of ``v`` and ``-v``, the one with ``v . z_A < 0``.
    Here that is the normalised projection of ``-z_A`` onto the eigenspace, which is the same where the eigenvalue is
    simple and does not depend on the basis that LAPACK returns where it is not. (Lanczos iterations find it to about a
    hundredth, the share of a random vector in what they start from besides ``-z_A``.) Where ``z_A`` is perpendicular
    to the eigenspace, the first coordinate axis that is not nearly so takes the place of ``-z_A``. Random directions,
    uniform on the sphere, are turned towards the origin too.

    Chunks begin at multiples of ``chunk_size`` and a shard consists of whole chunks, so that results are the same to
    the last bit after a resumption and from shards; other chunk sizes and devices change rounding only. (Except with
    ``starts="multi"``, whose bent curves are drawn by the place of a pair in its chunk.) Memory beside the columns of
    the result does not grow with their number.

    A straight line of length 0 has no improvement: such samples are kept, marked by :attr:`Study.defined`, and left
    out of the statistics.

    References
    ----------
    Michelis & Becker (2021), section 2.3 and App. C. Golub & Van Loan, Matrix Computations (2013), section 10.1 for
    Lanczos iterations with full reorthogonalisation.
    """
    settled = _settle(
        metric,
        codes,
        latent_dim,
        n_samples=n_samples,
        seed=seed,
        direction=direction,
        step_size=step_size,
        eigenvectors=eigenvectors,
        settings=settings,
        chunk_size=chunk_size,
        shard=shard,
        about=about,
    )
    like = next((x for x in _parameters(metric) if x.is_floating_point()), codes)
    # Tensors made in inference mode cannot be differentiated; copies of them can.
    with torch.inference_mode(False):
        sampler = _Sampler(
            metric=metric,
            codes=None if codes is None else codes.detach().to("cpu", torch.float64, copy=True),
            settings=settled,
            solver=dataclasses.replace(settings, progress=False),
            dtype=dtype or (torch.get_default_dtype() if like is None else like.dtype),
            device=pick_device(device or ("cpu" if like is None else like.device)),
        )
        settled["dtype"] = str(sampler.dtype).removeprefix("torch.")
        try:
            settled["fingerprint"] = sampler.fingerprint()
        except ValueError as error:
            chosen = f"dtype={sampler.dtype} and device={str(sampler.device)!r}"
            raise ValueError(f"with {chosen} (give others if the metric needs them): {error}") from error
        return run(settled, sampler.chunk, None if folder is None else Path(folder), progress=progress)


def _settle(
    metric: Metric,
    codes: Tensor | None,
    latent_dim: int | None,
    *,
    n_samples: int,
    seed: int,
    direction: Direction,
    step_size: float,
    eigenvectors: Eigenvectors,
    settings: SolverSettings,
    chunk_size: int,
    shard: tuple[int, int] | None,
    about: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Check the arguments, settle what they leave open, and write them down."""
    if not isinstance(metric, Metric):
        raise TypeError(f"expected a metric, such as lgi.PullbackMetric(generator), got a {type(metric).__name__}")
    for name, value, least in (("n_samples", n_samples, 1), ("seed", seed, 0), ("chunk_size", chunk_size, 1)):
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
            raise ValueError(f"expected {name} as an integer of at least {least}, got {value!r}")
    if not isinstance(step_size, int | float | np.number) or not 0 < step_size < math.inf:
        raise ValueError(f"expected a positive step_size, got {step_size!r}")
    for name, choice, allowed in (
        ("direction", direction, get_args(Direction)),
        ("eigenvectors", eigenvectors, get_args(Eigenvectors)),
    ):
        if choice not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {choice!r}")
    if settings.starts == "graph":
        raise ValueError('starts="graph" needs points, which only lgi.shorten takes: use "multi" or "line"')
    try:
        json.dumps(about, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"expected about to be made of finite numbers, strings, lists and mappings: {error}"
        ) from error
    if any(x.is_inference() for x in _parameters(metric)):
        raise ValueError("the metric's model was made in torch.inference_mode and has no derivatives: make it outside")
    _check_codes(codes, direction)
    d = _one_latent_dim(metric, codes, latent_dim)
    if eigenvectors == "lanczos" and direction == "minimal":
        raise ValueError('Lanczos iterations find maximal eigenvectors only: use eigenvectors="eigh"')
    if eigenvectors == "auto":
        eigenvectors = "lanczos" if d > _LARGE and direction == "maximal" else "eigh"
    return {
        "n_samples": int(n_samples),
        "seed": int(seed),
        "direction": direction,
        "step_size": None if direction == "pairs" else float(step_size),
        "starts": "prior" if codes is None else "codes",
        "eigenvectors": eigenvectors if direction in ("maximal", "minimal") else None,
        "metric": type(metric).__name__,
        "latent_dim": d,
        # How many curves are worked on at a time changes rounding at most, and the bar nothing.
        "solver": {k: v for k, v in dataclasses.asdict(settings).items() if k not in ("chunk_size", "progress")},
        "chunk_size": int(chunk_size),
        "shard": _checked_shard(shard, math.ceil(n_samples / chunk_size)),
        "about": dict(about or {}),
    }


def _check_codes(codes: Tensor | None, direction: Direction) -> None:
    if codes is None:
        if direction == "pairs":
            raise ValueError('direction="pairs" draws both ends from codes: give codes (n_codes, d)')
        return
    if not isinstance(codes, Tensor) or codes.ndim != 2 or len(codes) == 0 or not codes.is_floating_point():
        got = f"{codes.dtype} of shape {tuple(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
        raise ValueError(f"expected floating-point codes (n_codes, d), got {got}")
    if not bool(codes.isfinite().all()):
        raise ValueError(f"{int((~codes.isfinite()).any(-1).sum())} of {len(codes)} codes are NaN or infinite")
    if direction == "pairs" and bool((codes == codes[0]).all()):
        raise ValueError(f"no pairs of different points: all {len(codes)} codes are {codes[0].tolist()}")


def _one_latent_dim(metric: Metric, codes: Tensor | None, latent_dim: int | None) -> int:
    of_codes = None if codes is None else codes.shape[-1]
    told = {"latent_dim": latent_dim, "metric.latent_dim": metric.latent_dim, "codes.shape[-1]": of_codes}
    known = {name: d for name, d in told.items() if d is not None}
    if not known:
        raise ValueError("the metric does not know its latent dimension: give latent_dim")
    if len(set(known.values())) > 1:
        raise ValueError(f"expected one latent dimension, got {', '.join(f'{k} = {d}' for k, d in known.items())}")
    return next(iter(known.values()))


def _checked_shard(shard: tuple[int, int] | None, n_chunks: int) -> tuple[int, int] | None:
    if shard is None:
        return None
    pair = tuple(shard) if isinstance(shard, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(k, int | np.integer) for k in pair) or not 1 <= pair[0] <= pair[1]:
        raise ValueError(f"expected shard = (i, n), integers with 1 <= i <= n, counted from 1, got {shard!r}")
    i, n = (int(k) for k in pair)
    if n > n_chunks:
        raise ValueError(f"{n} shards of {n_chunks} chunks of samples: use fewer shards or a smaller chunk_size")
    return i, n


def _parameters(metric: Metric) -> list[Tensor]:
    """Parameters and buffers of all modules that a metric is made of."""
    found: list[Tensor] = []
    for attribute in vars(metric).values():
        value = getattr(attribute, "__self__", attribute)
        if isinstance(value, nn.Module):
            found += value.state_dict().values()
        elif isinstance(value, Metric):
            found += _parameters(value)
    return found


def _weighted_sums(codes: Tensor) -> Tensor:
    """Sums (d,) of codes (n, d) with random weights, relative to their norms: any two rows exchanged, they differ."""
    weights = torch.from_numpy(np.random.default_rng(0).standard_normal(len(codes)))
    return weights @ codes / codes.norm(dim=0).clamp_min(torch.finfo(codes.dtype).tiny)


@dataclass(frozen=True, kw_only=True)
class _Sampler:
    """Draws the samples of a study and measures them."""

    metric: Metric
    codes: Tensor | None  # float64, CPU
    settings: dict[str, Any]
    solver: SolverSettings
    dtype: torch.dtype
    device: torch.device

    def fingerprint(self) -> dict[str, list[float]]:
        """Numbers that tell metrics and codes apart; on other machines they differ in rounding."""
        start = self.draw(range(4), seed=0)[0]
        towards = torch.from_numpy(np.random.default_rng(0).standard_normal(start.shape))
        with torch.no_grad():
            speeds = self.metric.squared_speed(self.place(start), self.place(towards))
            norms = [torch.linalg.vector_norm(x.double()).item() for x in _parameters(self.metric)]
        codes = [] if self.codes is None else [len(self.codes), *self.codes.norm(dim=0).tolist()]
        return {
            "speeds in the metric": speeds.double().tolist(),
            "parameters of the metric": norms,
            "codes": codes,
            "order and signs of the codes": [] if self.codes is None else _weighted_sums(self.codes).tolist(),
        }

    def place(self, z: Tensor) -> Tensor:
        """Points as the metric wants them."""
        return z.to(self.dtype).to(self.device)

    def draw(self, samples: Iterable[int], seed: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Starts, random vectors (both (n, d), float64, CPU) and rows of the codes, each sample from its own stream."""
        codes, d = self.codes, self.settings["latent_dim"]
        names = ("start_code", "end_code")[: 0 if codes is None else 2 if self.settings["direction"] == "pairs" else 1]
        starts, vectors, rows = [], [], []
        for i in samples:
            # Not (seed, i) as entropy: from that, lgi.shorten draws the bent curves of starts="multi".
            stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,)))
            if codes is None:
                starts.append(stream.standard_normal(d))
            else:
                row = stream.integers(len(codes), size=len(names))
                while len(row) == 2 and torch.equal(*codes[row]):
                    row = stream.integers(len(codes), size=2)
                starts.append(codes[row[0]].numpy())
                rows.append(row)
            vectors.append(stream.standard_normal(d))
        columns = dict(zip(names, torch.from_numpy(np.array(rows, dtype=np.int64)).unbind(-1), strict=True))
        return torch.from_numpy(np.array(starts)), torch.from_numpy(np.array(vectors)), columns

    def directions(self, z: Tensor, vectors: Tensor) -> Tensor:
        """Unit vectors (n, d), float64 on the CPU, along which to step from points ``z`` (n, d)."""
        if self.settings["direction"] == "random":
            space = vectors[..., None]
        elif self.settings["eigenvectors"] == "lanczos":
            # A random share, because -z alone may be perpendicular to what is looked for.
            first = _unit(vectors) * _RANDOM_SHARE - _unit(z.cpu().double())
            space = largest_eigenvectors(self.metric, z, first.to(self.device))[..., None]
        else:
            space = _eigenspace(self.metric, z, largest=self.settings["direction"] == "maximal")
        return towards_origin(space.cpu().double(), z.cpu().double())

    def chunk(self, number: int) -> Table:
        """Table of the samples of one chunk."""
        samples = samples_of(number, self.settings)
        drawn, vectors, rows = self.draw(samples, self.settings["seed"])
        start = self.place(drawn)
        try:
            with torch.no_grad():
                if self.codes is not None and "end_code" in rows:
                    end = self.place(self.codes[rows["end_code"]])
                else:
                    step = self.settings["step_size"] * self.directions(start, vectors)
                    end = self.place(start.cpu().double() + step)
            result = shorten(self.metric, start, end, self.solver)
        except ValueError as error:
            raise ValueError(f"samples {samples[0]} to {samples[-1]}: {error}") from error
        certificates = ("converged", "residual", "refinement_gain", "length_error")
        measured = ("straight_length", "length", "improvement", *certificates, "n_control", "n_rows")
        return Study(
            index=torch.tensor(samples),
            start=start.cpu(),
            end=end.cpu(),
            **{name: getattr(result, name).cpu() for name in measured},
            **rows,
            settings=self.settings,
        ).columns


# --------------------------------------------------------------------------------------------------------------------
# Directions
# --------------------------------------------------------------------------------------------------------------------


def towards_origin(space: Tensor, z: Tensor) -> Tensor:
    """Unit vectors of subspaces, such as eigenspaces, turned towards the origin (footnote 1 of the paper).

    ``v = -P z / |P z|`` with the orthogonal projector ``P``: of the vectors of the subspace, the one that points most
    towards the origin. Where ``z`` is perpendicular to the subspace, ``P e_k`` in place of ``-P z``, of the first axis
    ``e_k`` whose projection is at least half as long as the longest.

    Parameters
    ----------
    space : Tensor, shape (..., d, k)
        Orthogonal columns, of which some may be 0.
    z : Tensor, shape (..., d)

    Returns
    -------
    Tensor, shape (..., d)
    """
    unit = space / torch.linalg.vector_norm(space, dim=-2, keepdim=True).clamp_min(torch.finfo(space.dtype).tiny)
    share = -(unit.mT @ z[..., None])[..., 0]
    size, radius = (torch.linalg.vector_norm(x, dim=-1, keepdim=True) for x in (share, z))
    reach = torch.linalg.vector_norm(unit, dim=-1)
    axis = (reach >= reach.amax(-1, keepdim=True) / 2).int().argmax(-1)
    fallback = unit.gather(-2, axis[..., None, None].expand(*axis.shape, 1, unit.shape[-1]))[..., 0, :]
    # Below this, the sign is one of rounding and would differ between machines.
    share = torch.where(size > 1e-6 * radius, share, fallback)
    v = (unit @ share[..., None])[..., 0]
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True)


def _unit(v: Tensor) -> Tensor:
    return v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)


def _eigenspace(metric: Metric, z: Tensor, *, largest: bool) -> Tensor:
    """Eigenvectors (n, d, d) of the largest or of the smallest eigenvalue; the other columns are 0."""
    eigenvalues, eigenvectors = metric.eigh(z)
    # Closer ones cannot be told apart in this precision.
    margin = 64 * torch.finfo(z.dtype).eps * eigenvalues[:, -1:]
    inside = eigenvalues >= eigenvalues[:, -1:] - margin if largest else eigenvalues <= eigenvalues[:, :1] + margin
    return eigenvectors * inside[:, None]


# Latent dimension above which products with the metric cost less than the whole of it; and the most products.
_LARGE, _MOST_PRODUCTS = 64, 100
# Fewer would take another eigenvector, near the first vector, for the largest one's; length of the random vector.
_FEWEST_PRODUCTS, _RANDOM_SHARE = 8, 1e-2


def largest_eigenvectors(metric: Metric, z: Tensor, first: Tensor) -> Tensor:
    """Eigenvectors of the largest eigenvalue of ``M(z)``, from products ``M v`` alone, for all points at once.

    Lanczos iterations with full reorthogonalisation, in float64. The eigensolvers of torch take matrices, and those of
    scipy one operator at a time, with one product a call.

    Parameters
    ----------
    metric : Metric
    z : Tensor, shape (n, d)
    first : Tensor, shape (n, d)
        Vectors to start from, not perpendicular to those that are looked for. Of an eigenspace of several dimensions,
        their projection onto it is found.

    Returns
    -------
    Tensor, shape (n, d)
        Unit vectors in the dtype of ``first``; the signs are arbitrary.

    Warns
    -----
    UserWarning
        If some are not exact to half the digits of ``z`` after 100 products.
    """
    # The vectors that are kept for a point take as much memory as 100 points.
    n_points = max(1, (1 << 24) // (z.shape[-1] * _MOST_PRODUCTS))
    parts = zip(z.split(n_points), first.split(n_points), strict=True)
    found, converged = (torch.cat(x) for x in zip(*(_lanczos(metric, *part) for part in parts), strict=True))
    if not bool(converged.all()):
        warnings.warn(
            f"{int((~converged).sum())} of {len(z)} maximal eigenvectors are not exact after "
            f"{_MOST_PRODUCTS} products: "
            'the largest eigenvalues lie close together; eigenvectors="eigh" is exact',
            stacklevel=2,
        )
    return found


def _lanczos(metric: Metric, z: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvectors (n, d) and whether they are exact (n,)."""
    n, d = z.shape
    basis = _unit(first)[:, None]
    n_steps = min(d, _MOST_PRODUCTS)
    tridiagonal = first.new_zeros(n, n_steps, n_steps)
    found, exact = torch.zeros_like(first), torch.zeros(n, dtype=torch.bool, device=first.device)
    eps = torch.finfo(z.dtype).eps
    for k in range(n_steps):
        product = metric.apply(z, basis[:, k].to(z)).to(first)
        # In place of a vector that was not added, an eigenvalue that is never the largest.
        tridiagonal[:, k, k] = (product * basis[:, k]).sum(-1).where(basis[:, k].any(-1), -1)
        # Twice is enough (Parlett).
        for _ in range(2):
            product = product - (basis.mT @ (basis @ product[..., None]))[..., 0]
        rest = torch.linalg.vector_norm(product, dim=-1)
        eigenvalues, vectors = torch.linalg.eigh(tridiagonal[:, : k + 1, : k + 1])
        largest, top = eigenvalues[:, -1], vectors[..., -1]
        # What is exact stays as it is: further products add rounding, which an eigenspace does not withstand.
        found = torch.where(exact[:, None], found, (basis.mT @ top[..., None])[..., 0])
        if k + 1 >= min(_FEWEST_PRODUCTS, n_steps):
            exact = exact | (rest * top[:, -1].abs() <= eps**0.5 * largest)
        if bool(exact.all()) or k + 1 == n_steps:
            break
        # Where the basis spans an invariant subspace already, nothing is added to it.
        size = rest.where(rest > max(1e-12, 16 * eps) * largest, torch.inf)
        basis = torch.cat([basis, (product / size[:, None])[:, None]], dim=1)
        tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = rest.where(size.isfinite(), 0)
    # A basis of the whole space leaves nothing open.
    return found, exact | (k + 1 == d)


# --------------------------------------------------------------------------------------------------------------------
# Two models
# --------------------------------------------------------------------------------------------------------------------


class StatisticalTest(NamedTuple):
    """Value of a statistic, and the probability of one at least as extreme without an effect (two-sided)."""

    statistic: float
    p_value: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Relative improvements of two models on the same pairs of data; all on the CPU, first dimension the pairs.

    Attributes
    ----------
    improvement_a, improvement_b : Tensor, shape (n,)
        Relative improvements, never negative.
    straight_length_a, straight_length_b, length_a, length_b : Tensor, shape (n,)
        Riemannian lengths, each in the units of its own model's output (or feature map).
    converged_a, converged_b : Tensor of bool, shape (n,)
        Whether the shorter curve is certified.
    residual_a, residual_b : Tensor, shape (n,)
        Certificates, see :class:`lgi.solver.ShortenResult`.
    curve_a, curve_b : CubicBSpline of n curves
        The shorter curves, each in its own model's latent space.
    threshold : float
        Largest difference of comparable pairs.
    relative : bool
        Whether the threshold is one of the difference relative to the larger of both improvements.
    """

    improvement_a: Tensor
    improvement_b: Tensor
    straight_length_a: Tensor
    straight_length_b: Tensor
    length_a: Tensor
    length_b: Tensor
    converged_a: Tensor
    converged_b: Tensor
    residual_a: Tensor
    residual_b: Tensor
    curve_a: CubicBSpline
    curve_b: CubicBSpline
    threshold: float
    relative: bool

    def __len__(self) -> int:
        return len(self.improvement_a)

    @property
    def difference(self) -> Tensor:
        """``improvement_a - improvement_b`` (n,), float64."""
        return self.improvement_a.double() - self.improvement_b.double()

    @property
    def comparable(self) -> Tensor:
        """Which pairs lie in similar metric neighbourhoods (section 3), bool (n,): difference within the threshold."""
        scale = torch.maximum(self.improvement_a, self.improvement_b).double() if self.relative else 1.0
        return self.difference.abs() <= self.threshold * scale

    @property
    def order(self) -> Tensor:
        """Numbers of the pairs (n,), from the most similar improvements to the least."""
        return self.difference.abs().argsort(stable=True)

    @property
    def mean_difference(self) -> float:
        """Mean of ``difference``."""
        return float(self.difference.mean())

    @cached_property
    def confidence_interval(self) -> tuple[float, float]:
        """95 % interval of the mean difference: the percentiles of 2000 bootstrap samples of pairs (fixed seed)."""
        return bootstrap_interval(self.difference.numpy())

    @cached_property
    def signed_rank(self) -> StatisticalTest:
        """Wilcoxon's signed-rank test of whether the differences are symmetric about 0; of none but zeros, (0, 1).

        Differences within the rounding of the coarser of the two dtypes are zeros, and left out.
        """
        eps = max(torch.finfo(x.dtype).eps for x in (self.improvement_a, self.improvement_b))
        difference = self.difference.where(self.difference.abs() > 8 * eps, 0.0)
        if not bool(difference.any()):
            return StatisticalTest(0.0, 1.0)
        from scipy.stats import wilcoxon

        found = wilcoxon(difference.numpy())
        return StatisticalTest(float(found.statistic), float(found.pvalue))

    @cached_property
    def rank_correlation(self) -> StatisticalTest:
        """Spearman's rank correlation of the improvements: whether both models agree which lines are far from shortest.

        Raises
        ------
        ValueError
            If there are fewer than 3 pairs or all improvements of a model are equal: then there is none.
        """
        if len(self) < 3 or any(bool((x == x[0]).all()) for x in (self.improvement_a, self.improvement_b)):
            raise ValueError(
                "no rank correlation of fewer than 3 pairs, or where all improvements of a model are equal"
            )
        from scipy.stats import spearmanr

        found = spearmanr(self.improvement_a.double().numpy(), self.improvement_b.double().numpy())
        return StatisticalTest(float(found.statistic), float(found.pvalue))


def compare_models(  # noqa: PLR0917 - two ends of two models
    metric_a: Metric,
    metric_b: Metric,
    start_a: Tensor,
    end_a: Tensor,
    start_b: Tensor,
    end_b: Tensor,
    threshold: float = 0.02,
    *,
    relative: bool = False,
    settings: SolverSettings = SolverSettings(),  # noqa: B008 - it is frozen
    settings_b: SolverSettings | None = None,
) -> Comparison:
    """Compare straight lines of two models between the same pairs of data (section 3, App. D).

    Interpolations are compared fairly on pairs whose relative improvements are similar: there, the straight lines of
    both models are about as far from shortest.

    Parameters
    ----------
    metric_a, metric_b : Metric
        The models may differ in architecture, latent dimension, dtype and device.
    start_a, end_a : Tensor, shape (n, d_a)
        Codes of the pairs by model a's own encoder, or by inversion of its generator.
    start_b, end_b : Tensor, shape (n, d_b)
        Codes of the same pairs by model b's own.
    threshold : float
        Largest difference of the improvements of comparable pairs. The paper asks for a fixed one and gives no number;
        0.02 are two percentage points.
    relative : bool
        Take the difference relative to the larger of the two improvements instead.
    settings : SolverSettings
        Of the search for shorter curves.
    settings_b : SolverSettings, optional
        Those for model b, if different.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        If shapes do not fit, end points of a pair coincide or have no distance in a model (naming the pairs), a metric
        is not finite, or the threshold is negative.
    TypeError
        If ``metric_a`` or ``metric_b`` is not a metric.

    Notes
    -----
    A relative improvement has no unit. Lengths do: they are commensurable only where both metrics measure in one space,
    as with generators of the same data, or with one feature map on both.
    """
    if not (0 <= threshold < math.inf):
        raise ValueError(f"expected a threshold of at least 0, got {threshold}")
    fields: dict[str, Any] = {}
    for model, metric, start, end, how in (
        ("a", metric_a, start_a, end_a, settings),
        ("b", metric_b, start_b, end_b, settings_b or settings),
    ):
        for name, x, like in ((f"start_{model}", start, start_a), (f"end_{model}", end, start_a)):
            if not isinstance(x, Tensor) or x.ndim != 2 or len(x) == 0 or len(x) != len(like):
                got = tuple(x.shape) if isinstance(x, Tensor) else f"a {type(x).__name__}"
                first = f" like start_a {tuple(like.shape)}" if isinstance(like, Tensor) and x is not like else ""
                raise ValueError(f"expected {name} as codes (n, d) of n >= 1 pairs{first}, got {got}")
        try:
            if start.shape == end.shape:
                _refuse_pairs((start == end).all(-1), "identical end points: leave them out, in both models")
            result = shorten(metric, start, end, how)
            _refuse_pairs(result.straight_length == 0, "end points without a distance: the generator is constant there")
        except ValueError as error:
            raise ValueError(f"model {model}: {error}") from error
        for name in ("improvement", "straight_length", "length", "converged", "residual"):
            fields[f"{name}_{model}"] = getattr(result, name).cpu()
        fields[f"curve_{model}"] = CubicBSpline(result.curve.control_points.cpu(), result.curve.knots.cpu())
    return Comparison(**fields, threshold=float(threshold), relative=relative)


def _refuse_pairs(bad: Tensor, reason: str) -> None:
    numbers = bad.nonzero()[:, 0].tolist()
    if numbers:
        more = f" and {len(numbers) - 10} more" if len(numbers) > 10 else ""
        raise ValueError(f"pairs {', '.join(map(str, numbers[:10]))}{more} have {reason}")


# --------------------------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------------------------


def _shard(text: str) -> tuple[int, int]:
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, such as 3/20, got {text!r}")
    return int(i), int(n)


def _parse(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    program = "python -m lgi.improvement"
    if argv[:1] == ["merge"]:
        parser = argparse.ArgumentParser(f"{program} merge", description="Join the shards of a study.")
        parser.add_argument("shards", nargs="+", type=Path, metavar="SHARD", help="folder or study file of each shard")
        parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="for study.safetensors and .json")
        return parser, parser.parse_args(argv[1:])
    parser = argparse.ArgumentParser(
        program,
        description="Algorithm 1 on a shipped model. The same command goes on after an interruption.",
        epilog=f"Shards are joined by: {program} merge FOLDER/shard_* --out FOLDER",
    )
    models = [name for name in zoo.MODELS if name != "logistic_regression"]
    defaults = "; by default %(default)s"
    add = parser.add_argument
    add("--model", required=True, choices=models, help="which shipped model")
    add("--out", type=Path, required=True, metavar="FOLDER", help="for study.safetensors and study.json")
    add("--samples", type=int, default=1000, metavar="N", help="samples of all shards together" + defaults)
    add("--step-size", type=float, default=1.0, metavar="ALPHA", help="length of the straight lines" + defaults)
    add("--seed", type=int, default=0, help="of the samples" + defaults)
    add("--direction", choices=get_args(Direction), default="maximal", help="pairs: of test digits' codes" + defaults)
    add("--std", choices=("rbf", "constant"), help="variance model of a VAE; by default rbf")
    add("--feature-map", choices=get_args(ClassifierOutput), help="output of the logistic regression; by default none")
    add(
        "--n-control", type=int, default=SolverSettings.n_control, metavar="N", help="control points at most" + defaults
    )
    add("--shard", type=_shard, metavar="I/N", help="compute part I of N, into FOLDER/shard_I_of_N")
    add("--chunk-size", type=int, default=500, metavar="N", help="samples computed and written at a time" + defaults)
    add("--device", default="auto", help="auto, cpu, cuda, ..." + defaults)
    add("--quiet", action="store_true", help="no progress bar, no summary")
    return parser, parser.parse_args(argv)


def _study(args: argparse.Namespace, folder: Path) -> Study:
    """The study of a command line."""
    device = pick_device(args.device)
    options: dict[str, Any] = {} if args.std is None else {"std": args.std}
    model: Any = zoo.load_model(args.model, device, **options)
    generator = model.generator if args.model == "gan" else model.decoder
    feature_map = None
    if args.feature_map is not None:
        feature_map = zoo.load_model("logistic_regression", device, output=args.feature_map)
    return worst_case_improvement(
        PullbackMetric(generator, feature_map),
        args.samples,
        args.step_size,
        args.seed,
        direction=args.direction,
        codes=zoo.load_codes(args.model).z if args.direction == "pairs" else None,
        settings=SolverSettings(n_control=args.n_control),
        device=device,
        folder=folder,
        shard=args.shard,
        chunk_size=args.chunk_size,
        about={
            "model": args.model,
            "std": args.std or ("rbf" if args.model in zoo.VAES else None),
            "feature_map": args.feature_map,
        },
        progress=False if args.quiet else None,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        Exit status: 0 done; 2 refused, with the reason on stderr; 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser, args = _parse(argv)
    merging = "shards" in args
    folder = args.out
    if not merging and args.shard is not None:
        i, n = args.shard
        folder = folder / f"shard_{i:0{len(str(n))}d}_of_{n}"
    try:
        study = merge_studies(args.shards, folder=folder) if merging else _study(args, folder)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        done = 0
        with suppress(ValueError):
            done = len(load_study(folder))
        parser.exit(130, f"\ninterrupted with {done} samples in {folder}: the same command goes on from there\n")
    if merging or not args.quiet:
        sys.stdout.write(f"{study}\nwritten to {folder / 'study.safetensors'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
