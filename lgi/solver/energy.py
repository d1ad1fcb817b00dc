"""Path energy of curves on a grid, its derivatives, and what an evaluation costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lgi.checks import NotFiniteError
from lgi.metric import Metric
from lgi.solver.grid import Grid, constant, interpolation, whole
from lgi.solver.rows import Rows
from lgi.spline import basis as spline_basis

# Cost of one row in forward passes through the decoder of VAE1 (processor time on one core, tests/benchmarks): the
# value; the value and a reverse pass; each forward derivative besides the value; the squared speed; the squared speed
# and its gradients, which is a reverse pass through a forward derivative.
_VALUE, _VALUE_GRADIENT, _COLUMN, _SPEED, _SPEED_GRADIENT = 1.0, 2.1, 1.75, 3.3, 7.3
# Rounding errors of a decoder's values, in units of the dtype's precision.
_ROUNDING = 4
# Points at which a curve is first looked at for kinks, and how often the two spans with the largest change are halved.
_KINK_NODES, _KINK_HALVINGS = 33, 9
# Points: whatever their number of values is, these fill whole vectors (AVX-512, float32).
_VECTOR = 16
# Dimension from which the columns of a Jacobian fill vectors, and a metric costs the same for one point as for many.
_ALONE = 128


# Matrices (n, n_control) that take control points to points and velocities on a grid.
Basis: TypeAlias = tuple[Tensor, Tensor]


def free(basis: Basis) -> Basis:
    """Basis of the control points that are free: all but the first and the last."""
    return basis[0][:, 1:-1], basis[1][:, 1:-1]


@dataclass(eq=False)
class Curvature(Rows):
    """What the second derivatives of the energy are made of, at the nodes along c curves."""

    gram: Tensor | None = None  # (c, n, d, n, d), J_k^T J_l of all pairs of nodes, of the embedding
    bend: Tensor | None = None  # (c, n, d, d), sum_m force_m d^2 h_m / dz^2
    rest_gram: Tensor | None = None  # (c, n, d, d), the metric of what is not embedded
    rest_bend: Tensor | None = None  # (c, n, 2 d, d), second derivatives of its squared speed by z, z and by v, z

    def interpolated(self, source: Grid, target: Grid) -> Curvature:
        """The same at the nodes of another grid; what is positive semi-definite remains so."""
        if source is target:
            return self
        found = Curvature()
        for name, x in vars(self).items():
            if x is not None:
                I = constant(interpolation(source, target, linearly=name.startswith("rest")), x.device)
                all_pairs = x.ndim == 5
                moved = (
                    torch.einsum("pk,ckalb,ql->cpaqb", I, x, I) if all_pairs else torch.einsum("pk,ckab->cpab", I, x)
                )
                setattr(found, name, moved)
        return found

    @property
    def metric(self) -> Tensor:
        """Metric at the nodes (c, n, d, d)."""
        parts = [] if self.gram is None else [torch.einsum("ckakb->ckab", self.gram)]
        return torch.stack(parts if self.rest_gram is None else [*parts, self.rest_gram]).sum(0)


@dataclass(eq=False, kw_only=True)
class Derivatives(Rows):
    """Of the energy of c curves, as far as they were asked for, in float64."""

    z_gradient: Tensor | None = None  # (c, n, d): the energy changes by <z_gradient, dz> + <v_gradient, dv>
    v_gradient: Tensor | None = None
    curvature: Curvature | None = None

    def gradient(self, basis: Basis) -> Tensor:
        """With respect to the free coordinates (c, f)."""
        assert self.z_gradient is not None
        points, velocities = free(basis)
        g = points.T @ self.z_gradient
        if self.v_gradient is not None:
            g = g + velocities.T @ self.v_gradient
        return g.flatten(1)


@dataclass(eq=False, kw_only=True)
class Sample(Derivatives):
    """Energy of c curves on a grid, with derivatives."""

    energy: Tensor  # (c,)
    length: Tensor  # (c,)
    # (c,), share of the energy in the highest mode, which estimates the grid's error of the relative projected
    # gradient: on VAE1, that is 0.9 to 5.5 times as large (the middle four fifths of curves, degree 6).
    tail: Tensor
    length_tail: Tensor  # (c,), what the highest mode may add to the length
    noise: Tensor  # (c,), what rounding may add to it
    squared_speed: Tensor  # (c, q), at the derivatives of the grid


def evenly(function: Callable[..., Any], *tensors: Tensor) -> Any:
    """Values of a function of points at tensors (c, n, d), which it is given in full vectors of the processor.

    The last points of a batch that fill no vector are rounded in another way, and by a discrete choice (to go on, to
    refine) that would make the length of a curve depend on those it is looked for with.
    """
    leading = tensors[0].shape[:2]
    n = leading.numel()
    rows = [x.flatten(0, 1) for x in tensors]
    rows = [torch.cat([x, x[-1:].expand(-n % _VECTOR, -1)]) for x in rows]
    values = function(*rows)
    if isinstance(values, Tensor):
        return values[:n].unflatten(0, leading)
    return tuple(value[:n].unflatten(0, leading) for value in values)


def defined(metric: Metric, name: str, *points: Tensor) -> Tensor:
    """What a method of a metric gives at tensors (c, n, d), in float64; NaN, and no error, where that is not finite.

    A search keeps away from where a generator is not defined, but may have to look there.
    """
    try:
        return evenly(getattr(metric, name), *points).double()
    except NotFiniteError:
        return evenly(lambda *x: metric._evaluate(getattr(metric, f"_{name}"), *x), *points).double()


def _shifted(z: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Points (c, n, d) moved a little along each axis in turn, and how far (c, 1, 1)."""
    span = torch.linalg.vector_norm(z[:, -1:] - z[:, :1], dim=-1, keepdim=True)
    # A closed curve has no other scale than its extent, and a point none.
    extent = torch.linalg.vector_norm(z - z[:, :1], dim=-1, keepdim=True).amax(1, keepdim=True)
    span = torch.where(span > 0, span, torch.where(extent > 0, extent, 1))
    step = torch.finfo(z.dtype).eps ** (1 / 3) * span
    for direction in torch.eye(z.shape[-1], dtype=z.dtype, device=z.device):
        yield z + step * direction, step.double()


class EmbeddedEnergy:
    """Energy in a metric that is the pull-back of a map ``h``, from differences of its values.

    No curve can seem shorter than the polygon through the values at its nodes is.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    @staticmethod
    def cost(order: int, d: int) -> float:
        """Of a node, in decoder rows."""
        return (_VALUE, _VALUE_GRADIENT, _VALUE + d * (_COLUMN + _VALUE_GRADIENT))[order]

    def sample(self, grid: Grid, z: Tensor, order: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Derivatives]:
        """Squared speed (c, q), energies of its two highest modes, its noise, and derivatives."""
        w = constant(grid.weights, z)
        found = Derivatives()
        # Differences to the first value lose less to rounding, and are 0 where the generator is constant.
        with torch.set_grad_enabled(order == 1):
            leaf = z.requires_grad_(order == 1)
            h, columns = evenly(self.metric.linearise, z) if order == 2 else (evenly(self.metric.embed, leaf), None)
            change = grid.derivatives(h - h[:, :1])
            if order == 1:
                (gradient,) = torch.autograd.grad((change.square().sum(-1) @ w).sum(), leaf)
                change, found.z_gradient = change.detach(), gradient.double()
        if columns is not None:
            force = 2 * (constant(whole(grid), change).T @ (w[:, None] * change))
            gradient = (columns @ force[..., None])[..., 0]
            flat = columns.flatten(1, 2)
            found.z_gradient = gradient.double()
            gram = (flat @ flat.mT).double().unflatten(2, z.shape[1:]).unflatten(1, z.shape[1:])
            bend = self._bend(z, force, gradient) / constant(grid.nodal_weights, z.device)[:, None, None]
            found.curvature = Curvature(gram, bend)
        highest, below = (x.double() for x in grid.highest(change))
        noise = _ROUNDING * torch.finfo(z.dtype).eps * torch.linalg.vector_norm(h[:, 0].detach(), dim=-1).double()
        return change.double().square().sum(-1), highest, below, noise * grid.amplification, found

    def _bend(self, z: Tensor, force: Tensor, pulled: Tensor) -> Tensor:
        """``sum_m force_m d^2 h_m / dz^2`` (c, n, d, d), by differences of ``J^T force``, which at z is ``pulled``."""
        columns = []
        for moved, step in _shifted(z):
            with torch.enable_grad():
                leaf = moved.requires_grad_()
                (gradient,) = torch.autograd.grad(evenly(self.metric.embed, leaf), leaf, force)
            columns.append((gradient - pulled).double() / step)
        bend = torch.stack(columns, dim=-1)
        return (bend + bend.mT) / 2

    def hessian(self, grid: Grid, points: Tensor, curvature: Curvature) -> Tensor:
        """Second derivatives (c, f, f): the Gauss-Newton matrix, of ``integral of |d(J eta) / dt|^2``, and the bend."""
        D, weights, nodal = (constant(x, points.device) for x in (whole(grid), grid.weights, grid.nodal_weights))
        stiffness = D.T @ (weights[:, None] * D)
        mass = nodal[:, None, None] * points[:, :, None] * points[:, None, :]
        half = torch.einsum("ckalb,kl,lj->ckajb", curvature.gram, stiffness, points)
        gauss_newton = 2 * torch.einsum("ckajb,ki->ciajb", half, points)
        result = gauss_newton + torch.einsum("kij,ckab->ciajb", mass, curvature.bend)
        return result.flatten(3, 4).flatten(1, 2)


class SpeedEnergy:
    """Energy in any metric, by quadrature of the squared speed.

    That misses what lies between two nodes, and an optimiser finds out where the metric is concentrated on thin ridges
    (class probabilities in eq. 4): only what has no embedding is measured so.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    @staticmethod
    def cost(order: int, d: int) -> float:
        """Of a node, in decoder rows."""
        return (_SPEED, _SPEED_GRADIENT, (d + 1) * _SPEED_GRADIENT + _VALUE + d * _COLUMN)[order]

    def sample(self, grid: Grid, z: Tensor, v: Tensor, order: int) -> tuple[Tensor, Derivatives]:
        """Squared speed (c, n), and derivatives."""
        found = Derivatives()
        if order == 0:
            return defined(self.metric, "squared_speed", z, v), found
        nodal = constant(grid.nodal_weights, z.device)[:, None]
        s, dz, dv = evenly(self.metric.squared_speed_and_gradient, z.detach(), v)
        found.z_gradient, found.v_gradient = nodal * dz.double(), nodal * dv.double()
        if order == 2:
            columns = []
            for moved, step in _shifted(z):
                _, there_z, there_v = evenly(self.metric.squared_speed_and_gradient, moved, v)
                columns.append(torch.cat([there_z - dz, there_v - dv], dim=-1).double() / step)
            tensor = defined(self.metric, "tensor", z)
            found.curvature = Curvature(rest_gram=tensor, rest_bend=torch.stack(columns, dim=-1))
        return s.double(), found

    def hessian(self, grid: Grid, points: Tensor, velocities: Tensor, curvature: Curvature) -> Tensor:
        """Second derivatives (c, f, f) of the quadrature, but for those by the velocities alone, which are a norm."""
        assert curvature.rest_bend is not None
        d = curvature.rest_bend.shape[-1]
        by_points, mixed = curvature.rest_bend[:, :, :d], curvature.rest_bend[:, :, d:]
        weights = constant(grid.nodal_weights, points.device)[:, None, None]
        mass = weights * points[:, :, None] * points[:, None, :]
        cross = weights * velocities[:, :, None] * points[:, None, :]
        half = torch.einsum("kij,ckab->ciajb", cross, mixed).flatten(3, 4).flatten(1, 2)
        own = torch.einsum("kij,ckab->ciajb", mass, (by_points + by_points.mT) / 2).flatten(3, 4).flatten(1, 2)
        return own + half + half.mT


class Energy:
    """Energy of curves in a metric: of the part of it that has an embedding, and of the rest by quadrature."""

    def __init__(self, metric: Metric, point: Tensor) -> None:
        self.metric = metric
        self.dtype, self.device = point.dtype, point.device
        self.d = point.shape[-1]
        embedded, rest = metric.split(point)
        self.embedded = None if embedded is None else EmbeddedEnergy(embedded)
        self.rest = None if rest is None else SpeedEnergy(rest)
        self.n_values = self.d if embedded is None else embedded.embed(point[None]).shape[-1]
        # Values (CPU) whose intermediate results stay in the cache; no more than a metric takes at a time.
        self.budget = 1 << 18 if self.device.type == "cpu" else 1 << 24

    def jumps(self, knots: Tensor, control: Tensor) -> Tensor:
        """Whether the derivative of decoded splines jumps (c,), as far as can be told at some thousandths of the curve.

        Where the slope of the polygon through 33 points changes most, the points are moved together by halves. Each
        time, the change of a smooth slope halves too; at a kink, once it is alone, it stays.
        """
        if self.embedded is None:
            return torch.zeros(len(control), dtype=torch.bool, device=self.device)
        t = torch.linspace(0, 1, _KINK_NODES, dtype=torch.float64).expand(len(control), -1)
        changes: list[Tensor] = []
        found = torch.zeros(len(control), dtype=torch.bool, device=self.device)
        for halvings in range(_KINK_HALVINGS):
            B = spline_basis(knots, t.flatten()).to(self.device).unflatten(0, t.shape)
            h = evenly(self.embedded.metric.embed, (B @ control).to(self.dtype)).double()
            dt = (t[:, 1] - t[:, 0]).to(self.device)
            change = torch.linalg.vector_norm(h[:, 2:] - 2 * h[:, 1:-1] + h[:, :-2], dim=-1) / dt[:, None]
            most, where = change.max(1)
            rounding = _ROUNDING * torch.finfo(self.dtype).eps * torch.linalg.vector_norm(h, dim=-1).amax(1) / dt
            if halvings > _KINK_HALVINGS // 2:
                found |= (most > changes[-3] / 2) & (most > 10 * rounding)
            changes.append(most)
            t = t.gather(1, where.cpu()[:, None]) + dt.cpu()[:, None] * torch.linspace(0, 2, 5, dtype=torch.float64)
        return found

    def rounded(self, control: Tensor) -> Tensor:
        """Control points as they are handed out: what is certified must be the same."""
        return control.to(self.dtype).double()

    def basis(self, grid: Grid, knots: Tensor) -> Basis:
        """Of splines with some knots."""
        return constant(spline_basis(knots, grid.t), self.device), constant(spline_basis(knots, grid.t, 1), self.device)

    def cost(self, grid: Grid, order: int) -> float:
        """Of a curve's sample, in decoder rows."""
        parts = [part for part in (self.embedded, self.rest) if part is not None]
        return sum(part.cost(order, self.d) for part in parts) * len(grid.t)

    @property
    def kink_cost(self) -> float:
        """Of looking for kinks along a curve, in decoder rows."""
        return _VALUE * (_KINK_NODES + 5 * (_KINK_HALVINGS - 1))

    @property
    def tensor_cost(self) -> float:
        """Of the metric at a point, in decoder rows."""
        return _VALUE + self.d * _COLUMN

    def sample(self, grid: Grid, basis: Basis, control: Tensor, order: int) -> Sample:
        """Energies of splines with control points (c, n_control, d); 1: with gradients, 2: with the curvature too."""
        B, dB = basis
        parts = control.split(self.n_curves(len(grid.t)))
        return Sample.joined([self._sample(grid, B @ part, dB @ part, order) for part in parts])

    def sample_points(self, grid: Grid, z: Tensor, v: Tensor, order: int) -> Sample:
        """The same of any curves, given by points and velocities (c, n, d) at the nodes."""
        n = self.n_curves(len(grid.t))
        return Sample.joined([self._sample(grid, *part, order) for part in zip(z.split(n), v.split(n), strict=True)])

    def second_derivatives(self, grid: Grid, z: Tensor, v: Tensor) -> Callable[[Tensor, Tensor], Basis]:
        """Products of second derivatives by z and v (c, n, d) with changes of both, of one recorded gradient."""
        if self.rest is not None:
            return self._differences(grid, z, v)
        assert self.embedded is not None
        w = constant(grid.weights, z)
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            h = evenly(self.metric.embed, leaf)
            change = grid.derivatives(h - h[:, :1])
            (slope,) = torch.autograd.grad((change.square().sum(-1) @ w).sum(), leaf, create_graph=True)

        def product(dz: Tensor, dv: Tensor) -> Basis:
            (by_z,) = torch.autograd.grad(slope, leaf, dz.to(z), retain_graph=True)
            return by_z.double(), torch.zeros_like(dv)

        return product

    def _differences(self, grid: Grid, z: Tensor, v: Tensor) -> Callable[[Tensor, Tensor], Basis]:
        """The same by central differences of gradients, where there is no embedding of all of the metric."""

        def product(dz: Tensor, dv: Tensor) -> Basis:
            size = torch.linalg.vector_norm(dz, dim=(1, 2), keepdim=True).clamp_min(torch.finfo(dz.dtype).tiny)
            length = torch.linalg.vector_norm(z - z[:, :1], dim=(1, 2), keepdim=True).double()
            step = torch.finfo(z.dtype).eps ** (1 / 3) * length / size
            there, back = (self.sample_points(grid, z + sign * step * dz, v + sign * step * dv, 1) for sign in (1, -1))
            assert there.z_gradient is not None
            assert back.z_gradient is not None
            assert there.v_gradient is not None
            assert back.v_gradient is not None
            by_z, by_v = there.z_gradient - back.z_gradient, there.v_gradient - back.v_gradient
            return by_z / (2 * step), by_v / (2 * step)

        return product

    def metric_product(self, z: Tensor) -> Callable[[Tensor], Tensor]:
        """Products (c, n, d) of the metric at points (c, n, d) with vectors, in float64."""
        if self.rest is not None:
            return lambda v: evenly(self.metric.apply, z, v.to(z)).double()
        with torch.enable_grad():
            leaf = z.detach().requires_grad_()
            h = evenly(self.metric.embed, leaf)
            weight = torch.zeros_like(h).requires_grad_()
            (pulled,) = torch.autograd.grad(h, leaf, weight, create_graph=True)

        def product(v: Tensor) -> Tensor:
            # Twice transposed: J v is the gradient by u of <J^T u, v>.
            (pushed,) = torch.autograd.grad(pulled, weight, v.to(z), retain_graph=True)
            return torch.autograd.grad(h, leaf, pushed, retain_graph=True)[0].double()

        return product

    def tensor(self, z: Tensor) -> Tensor:
        """Metric at points (c, n, d), in float64."""
        if self.d >= _ALONE and self.device.type == "cpu":
            alone = [self.metric.tensor(point[None]) for point in z.to(self.dtype).flatten(0, 1)]
            return torch.cat(alone).unflatten(0, z.shape[:2]).double()
        parts = z.to(self.dtype).split(self.n_curves(z.shape[1]))
        return torch.cat([defined(self.metric, "tensor", part) for part in parts])

    def n_curves(self, n_nodes: int) -> int:
        """Curves that are sampled at a time."""
        return max(1, self.budget // (n_nodes * self.n_values))

    def _sample(self, grid: Grid, z: Tensor, v: Tensor, order: int) -> Sample:
        z, v = z.to(self.dtype), v.to(self.dtype)
        weights = constant(grid.weights, self.device)
        s = weights.new_zeros(len(z), len(weights))
        tail = length_tail = noise = s[:, 0]
        found = Derivatives()
        if self.embedded is not None:
            s, highest, below, noise, found = self.embedded.sample(grid, z, order)
        if self.rest is not None:
            r, of_rest = self.rest.sample(grid, z, v, order)
            s = s + r[:, constant(grid.node, self.device)]
            found = _added(of_rest, found)
        energy = s @ weights
        if self.embedded is not None:
            tiny = torch.finfo(energy.dtype).tiny
            tail = highest.sum(-1) / energy.clamp_min(tiny)
            # An oscillation of amplitude a around speed s lengthens by a^2 / 2s; where the curve stands still, by a.
            # Two modes, because every other one vanishes where the curve is symmetric.
            oscillation = highest + below
            element = (s.clamp_min(0) * weights).unflatten(1, (highest.shape[1], -1)).sum(-1)
            share = oscillation / (element.sqrt() + oscillation.sqrt()).clamp_min(tiny)
            length_tail = share @ constant(grid.width, self.device).sqrt()
            # As for an oscillation, of the derivative that rounded values have.
            noise = noise.square() / (energy.clamp_min(0).sqrt() + noise).clamp_min(tiny)
        length = s.clamp_min(0).sqrt() @ weights
        return Sample(
            energy=energy,
            length=length,
            tail=tail,
            length_tail=length_tail,
            noise=noise,
            squared_speed=s,
            **vars(found),
        )

    def hessian(self, grid: Grid, basis: Basis, curvature: Curvature) -> Tensor:
        """Second derivatives of the energy by the free control points (c, f, f)."""
        points, velocities = free(basis)
        n_free = points.shape[1] * self.d
        result = points.new_zeros(1, n_free, n_free)
        if self.embedded is not None:
            result = result + self.embedded.hessian(grid, points, curvature)
        if self.rest is not None and curvature.rest_gram is not None:
            by_velocities = 2 * self.norm(grid, basis, curvature.rest_gram)
            result = result + by_velocities + self.rest.hessian(grid, points, velocities, curvature)
        return result

    def norm(self, grid: Grid, basis: Basis, M: Tensor) -> Tensor:
        """``integral of B'_i M B'_j dt`` (c, f, f) with the metric (c, n, d, d) at the nodes."""
        dB = free(basis)[1]
        scaled = constant(grid.nodal_weights, self.device)[:, None, None] * dB[:, :, None] * dB[:, None, :]
        return torch.einsum("kij,ckab->ciajb", scaled, M).flatten(3, 4).flatten(1, 2)

    def length_gradient(self, grid: Grid, sample: Sample, velocity: Tensor, covector: Tensor) -> Sample:
        """Sample with the gradient of the length in place of that of the energy, in the units of the latter.

        To move the points of a curve along the curve changes the speed at which it is run through, and with it the
        energy, but not the length. So that part of the gradient is taken away; at constant speed, what is left is the
        gradient of the length. ``velocity`` (c, n, d) is that at the nodes, ``covector`` the metric's product with it.
        """
        z_gradient, v_gradient = sample.z_gradient, sample.v_gradient
        assert z_gradient is not None
        tiny = torch.finfo(z_gradient.dtype).tiny
        if self.embedded is None:
            assert v_gradient is not None
            weights = constant(grid.weights, self.device)[:, None]
            squared_speed = (velocity * v_gradient).sum(-1, keepdim=True) / (2 * weights)
            scale = sample.length[:, None, None] / squared_speed.clamp_min(tiny).sqrt()
            return replace(sample, z_gradient=scale * z_gradient, v_gradient=scale * v_gradient)
        if v_gradient is not None:
            # By parts: all that pulls at the points.
            weights, nodal, node, D = (
                constant(x, self.device) for x in (grid.weights, grid.nodal_weights, grid.node, whole(grid))
            )
            z_gradient = z_gradient + D.T @ ((weights / nodal[node])[:, None] * v_gradient[:, node])
        squared_speed = (velocity * covector).sum(-1, keepdim=True).clamp_min(tiny)
        z_gradient = z_gradient - covector * ((velocity * z_gradient).sum(-1, keepdim=True) / squared_speed)
        return replace(sample, z_gradient=z_gradient, v_gradient=None)


def _added(rest: Derivatives, embedded: Derivatives) -> Derivatives:
    """Derivatives of the sum of both parts."""
    if embedded.z_gradient is not None and rest.z_gradient is not None:
        rest.z_gradient = rest.z_gradient + embedded.z_gradient
    if embedded.curvature is not None and rest.curvature is not None:
        own = embedded.curvature
        rest.curvature = replace(rest.curvature, gram=own.gram, bend=own.bend)
    return rest
