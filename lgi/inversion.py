"""Latent codes that generate given samples, for generators without an encoder (section 3)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lgi.checks import at_least, describe, whole
from lgi.metric import FeatureMap, Generator, PullbackMetric
from lgi.progress import progress_bar
from lgi.solver.products import Krylov
from lgi.solver.steps import adapted, damped_step, factorised, secant, solved


@dataclass(frozen=True, kw_only=True)
class Inversion:
    """Latent codes of samples, and how well each generates its sample.

    Attributes
    ----------
    z : Tensor, shape (..., d)
        Latent codes.
    residual : Tensor, shape (...)
        Root mean square of ``g(z) - x`` over the values of a sample, in units of the data; with a feature map, of
        ``F(g(z)) - F(x)`` over the features.
    relative_residual : Tensor, shape (...)
        Residual divided by ``spread``.
    reached : Tensor of bool, shape (...)
        Whether the sample is not certainly out of reach: ``relative_residual <= threshold``, see Notes of
        :func:`invert`.
    converged : Tensor of bool, shape (...)
        Whether ``optimality`` is at most the tolerance, or the residual is mere rounding.
    optimality : Tensor, shape (...)
        Cosine of the angle between ``g(z) - x`` and the generated manifold: 0 where no small change of the code brings
        the generated sample nearer, whatever the units of the data and the coordinates of the latent space.
    n_iterations : Tensor of int64, shape (...)
        Of the start that won.
    start : Tensor of int64, shape (...)
        Which start won: those of ``starts`` come first, then the screened ones, best first.
    spread : Tensor, shape ()
        Root mean square of the difference of two generated samples, in the units of the residual.
    """

    z: Tensor
    residual: Tensor
    relative_residual: Tensor
    reached: Tensor
    converged: Tensor
    optimality: Tensor
    n_iterations: Tensor
    start: Tensor
    spread: Tensor


def invert(
    generator: Generator,
    x: Tensor,
    latent_dim: int | None = None,
    *,
    feature_map: FeatureMap | None = None,
    prior_weight: float = 0.0,
    threshold: float = 1.0,
    candidates: Tensor | None = None,
    n_candidates: int = 2048,
    n_starts: int = 4,
    starts: Tensor | None = None,
    n_iterations: int = 100,
    tolerance: float = 1e-3,
    chunk_size: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Inversion:
    r"""Latent codes that generate given samples best.

    .. math:: z^* = \arg\min_z \; \|F(g(z)) - F(x)\|^2 + w \|z\|^2

    with the generator g (the mean of a stochastic one), the feature map F (by default the identity) and the prior
    weight w.

    Parameters
    ----------
    generator : callable
        ``(n, d) -> (n, *data_shape)``, or ``-> (mean, std)``, of which the mean is inverted.
    x : Tensor, shape (..., *data_shape)
        Samples; floating point. Codes have their dtype and device.
    latent_dim : int, optional
        ``d``; by default ``generator.latent_dim``.
    feature_map : callable, optional
        ``(n, *data_shape) -> (n, *feature_shape)``.
    prior_weight : float
        w, in squared units of the data (or features). With w the variance of Gaussian noise in the data, codes are
        those of largest posterior density under the prior N(0, I); 0 leaves the prior out.
    threshold : float
        Largest relative residual of a sample that counts as reached, see Notes.
    candidates : Tensor, shape (n_candidates, d), optional
        Latent points among which starts are looked for, where the prior is not N(0, I).
    n_candidates : int
        Number of such points from N(0, I); as many again are taken from N(0, 4 I), since codes of data lie further out
        than the prior has it. What is generated at all of them stays in memory: ``2 n_candidates`` samples, of 3 GB at
        the default for float32 images of 3 x 256 x 256. Take fewer for large samples, or a feature map.
    n_starts : int
        Largest number of candidates from which each sample's search starts.
    starts : Tensor, shape (..., k, d), optional
        Further starts of each sample's own, such as codes of an encoder, which the result is then never worse than.
        With ``n_starts=0`` there are no others.
    n_iterations : int
        Largest number of iterations from a start.
    tolerance : float
        A search has converged when its optimality is at most this: then the squared residual is about
        ``tolerance**2``, relatively, above that of the minimum.
    chunk_size : int, optional
        Samples worked on at a time; by default as many as fit a bounded memory.
    seed : int
        Of the candidates. They are common to all samples: the code of a sample depends on itself and the seed alone,
        but for rounding, which changes with the samples worked on beside it. Codes are determined less sharply than
        residuals: with float32, expect them to differ by 1e-4 or so, where residuals differ by 1e-8.
    progress : bool, optional
        Whether to show a progress bar; by default if the output is a terminal.

    Returns
    -------
    Inversion
        ``.z`` (..., d), ``.residual``, ``.reached`` and more.

    Raises
    ------
    ValueError
        If the latent dimension is not known, shapes, dtypes or settings do not fit, a sample or what is generated from
        a start is not finite, the generator gives the same everywhere, or there are fewer features than latent
        dimensions and no prior weight, so that codes are not determined; and as :class:`lgi.PullbackMetric`.

    Notes
    -----
    *Starts.* All candidates are generated once. Of those that come nearer to the sample than their ``2 d + 1`` nearest
    neighbours in latent space, one for each basin, the nearest ``n_starts`` are taken.

    *Search.* Levenberg-Marquardt from each start, all samples and starts at once, each with its own damping and
    stopping. The Gauss-Newton matrix ``J^T J`` is the pull-back metric (eq. 1 or 3). What it leaves out, the curvature
    of the generated manifold times the residual, is not small for samples that are not generated exactly; it is
    learned from the change of J along the steps (Dennis, Gay & Welsch 1981). Beyond ``d = 32`` the matrix is not
    formed: steps in Krylov spaces of products with it.

    *Reached or not.* A generator never gives real data exactly, and a residual has no scale of its own. It is
    compared with the spread of what the generator gives: with the default threshold, samples count as not reached
    that are further from all generated samples than these are from one another (root mean square). That much is
    certain: the generator has nothing like it. For a stricter criterion, take a quantile of what held-out data have::

        threshold = lgi.invert(generator, held_out).relative_residual.quantile(0.95).item()

    *Stochastic generators.* The code of the nearest mean maximises the likelihood only where the standard deviation is
    constant; it does not make use of the standard deviation.

    References
    ----------
    Lei, Jalal, Dhillon & Dimakis, "Inverting deep generative models, one layer at a time", NeurIPS 2019, for the
    problem. Dennis, Gay & Welsch, "An adaptive nonlinear least-squares algorithm", ACM TOMS 7, 1981, for the search.
    """
    whole(1, n_candidates=n_candidates, chunk_size=chunk_size)
    whole(0, n_starts=n_starts, n_iterations=n_iterations)
    at_least(0, prior_weight=prior_weight, threshold=threshold)
    if not tolerance > 0:
        raise ValueError(f"expected a positive tolerance, got {tolerance}")
    d = getattr(generator, "latent_dim", None) if latent_dim is None else latent_dim
    if d is None:
        raise ValueError("the generator has no latent_dim: give latent_dim, the dimension of its latent space")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise ValueError(f"expected floating-point samples x, got {describe(x)}: scale it as generated, then .float()")
    # Tensors made in inference mode cannot be differentiated; copies of them can.
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        # To a metric it matters, and not to an inversion, whether d is smaller than the number of values.
        warnings.filterwarnings("ignore", message="latent dimension .* >= output dimension", category=UserWarning)
        x = x.clone() if x.is_inference() else x
        metric = PullbackMetric(_mean_of(generator), feature_map, latent_dim=d)
        screen = _Screen(metric, *(z.to(x) for z in _candidates(candidates, n_candidates, d, seed)))
        leading, target = _target(metric, x.detach())
        if d > target.shape[1] and prior_weight == 0:
            raise ValueError(f"{target.shape[1]} values do not determine a code of dimension {d}: give a prior_weight")
        own = _own_starts(starts, leading, d, n_starts).to(x)
        n_values = (own.shape[1] + n_starts) * (2 * min(d, _LARGEST_DENSE) + 4) * target.shape[1]
        size = chunk_size or max(1, _BUDGET // max(n_values, 2 * len(screen.z)))
        ends = []
        with progress_bar(len(target), desc="invert", unit="samples", show=progress) as advance:
            for goal, first in zip(target.split(size), own.split(size), strict=True):
                z = torch.cat([first, screen.nearest(goal, n_starts)], dim=1)
                found = _from_starts(screen, z, goal, prior_weight, n_iterations=n_iterations, tolerance=tolerance)
                best = found.pop("objective").argmin(1)
                rows = torch.arange(len(best), device=best.device)
                ends.append({name: value[rows, best] for name, value in found.items()})
                advance(len(goal))
    joined = {name: torch.cat([end[name] for end in ends]) for name in ends[0]}
    shaped = {name: value.reshape(leading + value.shape[1:]) for name, value in joined.items()}
    relative = shaped["residual"] / screen.spread
    return Inversion(**shaped, relative_residual=relative, reached=relative <= threshold, spread=screen.spread.clone())


# Values of all samples, starts and tangent vectors in memory at a time.
_BUDGET = 1 << 25
# Beyond, d forward derivatives a point cost more than the products that a Krylov space takes.
_LARGEST_DENSE = 32
_MOST_NEIGHBOURS = 12


def _mean_of(generator: Generator) -> Generator:
    """Mean (n, *data_shape) of a generator that may be stochastic."""

    def mean(z: Tensor) -> Tensor:
        output = generator(z)
        return output[0] if isinstance(output, tuple | list) else output

    return mean


class _Screen:
    """What a generator gives at candidates, to be compared with samples before any search."""

    def __init__(self, metric: PullbackMetric, prior: Tensor, further: Tensor) -> None:
        self.metric = metric
        self.z = candidates = torch.cat([prior, further])
        self.values = metric.embed(candidates)
        if not bool(self.values.isfinite().all()):
            raise ValueError("the generator gives NaN or infinity at some of the candidates")
        self.centre = self.values[: len(prior)].mean(0)
        self.values = self.values - self.centre
        self.spread = (2 * self.values[: len(prior)].square().mean()).sqrt()
        if not float(self.spread) > torch.finfo(candidates.dtype).eps * float(self.centre.abs().max()):
            raise ValueError("the generator gives the same at all candidates: there is nothing to invert")
        n_neighbours = min(2 * candidates.shape[1] + 1, _MOST_NEIGHBOURS, len(candidates) - 1)
        blocks = (torch.cdist(block, candidates) for block in candidates.split(1024))
        self.neighbours = torch.cat([b.topk(n_neighbours + 1, largest=False).indices for b in blocks]).T[1:]

    def nearest(self, goal: Tensor, n_starts: int) -> Tensor:
        """Candidates (n, n_starts, d) nearest to goals (n, m) among their neighbours; NaN where there are fewer."""
        # Squared distances but for a constant of each goal.
        distance = self.values.square().sum(1) - 2 * (goal - self.centre) @ self.values.T
        lowest = torch.ones_like(distance, dtype=torch.bool)
        for neighbour in self.neighbours:
            lowest &= distance <= distance[:, neighbour]
        value, index = distance.where(lowest, torch.inf).topk(min(n_starts, len(self.z)), largest=False)
        z = self.z[index].where(value.isfinite()[..., None], torch.nan)
        absent = z.new_full((len(goal), n_starts - z.shape[1], z.shape[2]), torch.nan)
        return torch.cat([z, absent], dim=1)


def _from_starts(
    screen: _Screen, starts: Tensor, goal: Tensor, weight: float, *, n_iterations: int, tolerance: float
) -> dict[str, Tensor]:
    """Ends (n, k, ...) of Levenberg-Marquardt from starts (n, k, d), NaN where there is none, towards goals (n, m)."""
    n, k, d = starts.shape
    absent = starts.isnan().any(-1).reshape(-1)
    job = (~absent).nonzero()[:, 0]
    scale = torch.linalg.vector_norm(goal, dim=1) + screen.spread * goal.shape[1] ** 0.5
    kind = _LeastSquares if d <= _LARGEST_DENSE else _MatrixFree
    problem = kind(screen.metric, starts.reshape(-1, d)[job], goal[job // k], scale[job // k], weight)
    if not bool(problem.point["loss"].isfinite().all()):
        bad = problem.point["z"][~problem.point["loss"].isfinite()][0]
        raise ValueError(f"the generator gives NaN or infinity at the start z = {bad.tolist()}")
    ends: dict[str, Tensor] = {}
    for iteration in range(n_iterations + 1):
        optimality, done = problem.optimality(tolerance)
        residual = problem.point["error"].double().square().mean(1).sqrt().to(starts)
        now = {"z": problem.point["z"], "objective": problem.point["loss"], "residual": residual, "converged": done}
        now |= {"optimality": optimality, "n_iterations": torch.full_like(job, iteration)}
        ends = ends or {name: value.new_zeros(n * k, *value.shape[1:]) for name, value in now.items()}
        for name, value in now.items():
            ends[name][job] = value
        going = ~done & (problem.damping < _LARGEST_DAMPING)
        if iteration == n_iterations or not bool(going.any()):
            break
        if not bool(going.all()):
            job = job[going]
            problem.keep(going)
        problem.advance()
    ends["objective"][absent] = torch.inf
    ends["start"] = torch.arange(k, device=starts.device).repeat(n)
    return {name: value.reshape(n, k, *value.shape[1:]) for name, value in ends.items()}


class _LeastSquares:
    """Nonlinear least squares ``|h(z) - goal|^2 + w |z|^2``, a job a point ``z`` (j, d), with what is known there.

    ``point`` has ``z``, ``error`` (j, m), ``loss`` (j,), ``gradient`` (j, d), of half the loss, and d x d matrices,
    which learn the curvature that Gauss-Newton leaves out.
    """

    def __init__(self, metric: PullbackMetric, z: Tensor, goal: Tensor, scale: Tensor, weight: float) -> None:
        self.metric, self.weight = metric, weight
        self.goal = goal
        self.rounding = 8 * torch.finfo(z.dtype).eps * scale
        self.damping = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        self.point = self._evaluate(z)

    def keep(self, chosen: Tensor) -> None:
        """Forget all other jobs."""
        self.goal, self.rounding, self.damping = self.goal[chosen], self.rounding[chosen], self.damping[chosen]
        self.point = {name: value[chosen] for name, value in self.point.items()}

    def optimality(self, tolerance: float) -> tuple[Tensor, Tensor]:
        """Cosine between error and tangent plane (j,), and where the search has converged."""
        decrement, loss = self._decrement().clamp_min(0), self.point["loss"]
        cosine = (decrement / loss.clamp_min(torch.finfo(loss.dtype).tiny)).sqrt().clamp_max(1)
        return cosine, (cosine <= tolerance) | (decrement.sqrt() <= self.rounding)

    def advance(self) -> None:
        """Take the step that lowers the loss, of each job its own, or be more careful next time."""
        step, promised = self._step()
        new = self._evaluate(self.point["z"] + step.to(self.goal))
        quality = (self.point["loss"] - new["loss"]).nan_to_num(-torch.inf) / promised.clamp_min(1e-300)
        self._learn(step, new)
        accepted = quality > 1e-4
        for name, value in new.items():
            self.point[name][accepted] = value[accepted]
        self.damping = adapted(self.damping, quality)

    def _sums(self, z: Tensor, value: Tensor) -> dict[str, Any]:
        error = value - self.goal
        # In float64: near the minimum, losses differ by less than the rounding of a sum in float32.
        loss = error.double().square().sum(1) + self.weight * z.double().square().sum(1)
        return {"z": z, "error": error, "loss": loss}

    def _evaluate(self, z: Tensor) -> dict[str, Any]:
        """What is to be known at points (j, d)."""
        value, columns = self.metric.linearise(z)
        point = self._sums(z, value)
        normal = (columns @ columns.mT).double() + self.weight * torch.eye(z.shape[1], dtype=torch.float64).to(z.device)
        gradient = (columns @ point["error"][..., None])[..., 0].double() + self.weight * z.double()
        curvature = torch.zeros_like(normal)
        return point | {"gradient": gradient, "columns": columns, "normal": normal, "curvature": curvature}

    def _decrement(self) -> Tensor:
        """``g^T (J^T J + w)^-1 g`` (j,): by how much the loss would fall if h were affine."""
        gradient = self.point["gradient"]
        return (gradient * solved(factorised(self.point["normal"])[0], gradient)).sum(1)

    def _step(self) -> tuple[Tensor, Tensor]:
        """Steps (j, d) and the decrease of the loss that they promise (j,)."""
        gradient, normal = self.point["gradient"], self.point["normal"]
        size = normal.diagonal(dim1=1, dim2=2).mean(1)
        identity = torch.eye(normal.shape[1], dtype=normal.dtype, device=normal.device)
        damping = (self.damping * size)[:, None, None] * identity
        matrix = normal + self.point["curvature"]

        def safe(bad: Tensor) -> Tensor:
            # Where the model has no minimum, Gauss-Newton's has.
            return solved(factorised((normal + damping)[bad])[0], gradient[bad])

        step, indefinite = damped_step(matrix + damping, gradient, safe)
        matrix = torch.where(indefinite[:, None, None], normal, matrix)
        return -step, 2 * (gradient * step).sum(1) - (step * (matrix @ step[..., None])[..., 0]).sum(1)

    def _learn(self, step: Tensor, new: dict[str, Any]) -> None:
        """Take in what was found at the end of a step."""
        S, tiny = self.point["curvature"], torch.finfo(torch.float64).tiny
        change = ((new["columns"] - self.point["columns"]) @ new["error"][..., None])[..., 0].double()
        applied = (S @ step[..., None])[..., 0]
        # Sizing: the curvature is proportional to an error that may have fallen to nothing.
        ratio = (step * change).sum(1).abs() / (step * applied).sum(1).abs().clamp_min(tiny)
        ratio = ratio.clamp_max(1).nan_to_num(1)
        self.point["curvature"] = new["curvature"] = secant(ratio[:, None, None] * S, step, change)


class _MatrixFree(_LeastSquares):
    """The same in Krylov spaces of products ``J^T J v``, and without anything learnt."""

    def _evaluate(self, z: Tensor) -> dict[str, Any]:
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            value = self.metric.embed(leaf)
            point = self._sums(z, value.detach())
            (gradient,) = torch.autograd.grad(value, leaf, point["error"])
        gradient = gradient.double() + self.weight * z.double()

        def products(jobs: Tensor) -> Callable[[Tensor], Tensor]:
            return lambda v: self.metric.apply(z[jobs], v.to(z)).double() + self.weight * v

        # Where what is generated is not finite there are no products, and such a step is refused.
        known = gradient.where(gradient.isfinite().all(1, keepdim=True), 0)
        return point | {"space": Krylov.of(products, known, most=_MOST, wanted=_WANTED).padded(_MOST)}

    def _decrement(self) -> Tensor:
        return 2 * self.point["space"].step(torch.zeros_like(self.damping))[1]

    def _step(self) -> tuple[Tensor, Tensor]:
        space = self.point["space"]
        # The first of T is the curvature along the gradient.
        x, decrease = space.step(self.damping * space.T[:, 0, 0])
        return -(x[:, None] @ space.Q)[:, 0], 2 * decrease

    def _learn(self, step: Tensor, new: dict[str, Any]) -> None:
        """Nothing: there is no matrix for it."""


# A space is large enough when four more products bring so small a part of what a step promises; or when it has so many.
_WANTED, _MOST = 1e-4, 64
_LARGEST_DAMPING = 1e8


def _candidates(given: Tensor | None, n: int, d: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points (n, d) of the prior, scrambled Sobol points, which leave no holes; and further points."""
    if given is None:
        uniform = torch.quasirandom.SobolEngine(d, scramble=True, seed=seed).draw(n, dtype=torch.float64)
        prior = torch.special.ndtri(uniform.clamp(1e-9, 1 - 1e-9))
        return prior, 2 * prior
    if given.ndim != 2 or given.shape[1] != d or len(given) == 0 or not bool(given.isfinite().all()):
        raise ValueError(f"expected finite candidates (n_candidates, {d}), got {tuple(given.shape)}")
    return given.detach(), given[:0].detach()


def _target(metric: PullbackMetric, x: Tensor) -> tuple[torch.Size, Tensor]:
    """Leading dimensions of the samples, and the values (n, m) that generated ones are to have."""
    mean = metric.generator(torch.zeros(1, metric.latent_dim or 1, dtype=x.dtype, device=x.device))
    data_shape = mean.shape[1:]
    leading = x.shape[: max(0, x.ndim - len(data_shape))]
    if x.shape[len(leading) :] != data_shape:
        shape = ", ".join(["...", *map(str, data_shape)])
        raise ValueError(f"expected samples x ({shape}), as they are generated, got {tuple(x.shape)}")
    flat = x.reshape(-1, *data_shape)
    finite = flat.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        bad = (~finite).nonzero()[0].item()
        raise ValueError(f"{int((~finite).sum())} of {len(flat)} samples are not finite, first of them number {bad}")
    if metric.feature_map is None:
        return leading, flat.flatten(1)
    # A map that works in place would change the caller's samples.
    return leading, torch.cat([metric.feature_map(part.clone()).flatten(1) for part in flat.split(256)])


def _own_starts(starts: Tensor | None, leading: torch.Size, d: int, n_starts: int) -> Tensor:
    """Starts of each sample's own (n, k, d)."""
    if starts is None:
        if n_starts == 0:
            raise ValueError("there is no start: give starts, or n_starts of at least 1")
        return torch.empty(leading.numel(), 0, d)
    if starts.shape[:-2] != leading or starts.shape[-1:] != (d,) or not bool(starts.isfinite().all()):
        shape = ", ".join([*map(str, leading), "k", str(d)])
        raise ValueError(f"expected finite starts ({shape}), got {tuple(starts.shape)}: starts[..., None, :] for k = 1")
    return starts.detach().reshape(leading.numel(), -1, d)
