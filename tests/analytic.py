"""Closed-form problems, shared by the tests of metric, solver and improvement; an independent implementation.

A surface is given by its embedding, the metric that follows from it by hand, and what else is known in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from lgi.metric import ExplicitMetric, Metric, PullbackMetric
from lgi.metric.probing import _quieten_first_jvp


@dataclass(frozen=True)
class Surface:
    """A parametrised surface with known metric.

    Attributes
    ----------
    name : str
    embed : callable or None
        ``(n, 2) -> (n, 3)``, a generator, where there is one.
    tensor : callable
        ``(..., 2) -> (..., 2, 2)``, the metric by hand.
    low, high : tuple of float
        Box of parameters where the chart is regular.
    distance : callable or None
        ``(..., 2), (..., 2) -> (...)``, geodesic distance between points, where the geodesic stays in the chart.
    """

    name: str
    embed: Callable[[Tensor], Tensor] | None
    tensor: Callable[[Tensor], Tensor]
    low: tuple[float, float]
    high: tuple[float, float]
    distance: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def metric(self) -> Metric:
        """Of the embedding, or by hand where there is none."""
        return PullbackMetric(self.embed, latent_dim=2) if self.embed else ExplicitMetric(self.tensor, latent_dim=2)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """``n`` points (n, 2), float64, uniform in the box."""
        low, high = torch.tensor(self.low, dtype=torch.float64), torch.tensor(self.high, dtype=torch.float64)
        u = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return low + (high - low) * u


def _diagonal(first: Tensor, second: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([first, second], dim=-1))


def _euclidean(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vector_norm(a - b, dim=-1)


# ---- plane: an isometric chart ----
PLANE_FRAME = torch.tensor([[2 / 3, -2 / 3, 1 / 3], [2 / 3, 1 / 3, -2 / 3]], dtype=torch.float64)


def plane_embed(z: Tensor) -> Tensor:
    return z @ PLANE_FRAME.to(z) + torch.tensor([1.0, -2.0, 0.5]).to(z)


def plane_tensor(z: Tensor) -> Tensor:
    return torch.eye(2, dtype=z.dtype).expand(*z.shape, 2)


# ---- cylinder of radius R: z = (angle, height) ----
CYLINDER_RADIUS = 1.7


def cylinder_embed(z: Tensor) -> Tensor:
    angle, height = z.unbind(-1)
    return torch.stack([CYLINDER_RADIUS * angle.cos(), CYLINDER_RADIUS * angle.sin(), height], dim=-1)


def cylinder_tensor(z: Tensor) -> Tensor:
    one = torch.ones_like(z[..., 0])
    return _diagonal(CYLINDER_RADIUS**2 * one, one)


def cylinder_distance(a: Tensor, b: Tensor) -> Tensor:
    """Of the unrolled cylinder: helices."""
    return _euclidean(a * a.new_tensor([CYLINDER_RADIUS, 1]), b * b.new_tensor([CYLINDER_RADIUS, 1]))


# ---- sphere of radius R: z = (polar angle, azimuth) ----
SPHERE_RADIUS = 1.3


def sphere_embed(z: Tensor) -> Tensor:
    polar, azimuth = z.unbind(-1)
    unit = [polar.sin() * azimuth.cos(), polar.sin() * azimuth.sin(), polar.cos()]
    return SPHERE_RADIUS * torch.stack(unit, dim=-1)


def sphere_tensor(z: Tensor) -> Tensor:
    one = torch.ones_like(z[..., 0])
    return SPHERE_RADIUS**2 * _diagonal(one, z[..., 0].sin() ** 2)


def sphere_distance(a: Tensor, b: Tensor) -> Tensor:
    """Great circle; the formula is accurate for near and for opposite points."""
    x, y = sphere_embed(a) / SPHERE_RADIUS, sphere_embed(b) / SPHERE_RADIUS
    return SPHERE_RADIUS * 2 * torch.atan2(_euclidean(x, y), torch.linalg.vector_norm(x + y, dim=-1))


# ---- torus: z = (angle around the tube, angle around the axis) ----
TORUS_RADIUS, TUBE_RADIUS = 2.0, 0.8


def torus_embed(z: Tensor) -> Tensor:
    tube, axis = z.unbind(-1)
    ring = TORUS_RADIUS + TUBE_RADIUS * tube.cos()
    return torch.stack([ring * axis.cos(), ring * axis.sin(), TUBE_RADIUS * tube.sin()], dim=-1)


def torus_tensor(z: Tensor) -> Tensor:
    tube = z[..., 0]
    return _diagonal(TUBE_RADIUS**2 * torch.ones_like(tube), (TORUS_RADIUS + TUBE_RADIUS * tube.cos()) ** 2)


# ---- paraboloid: z = (x, y), height a (x^2 + y^2) ----
PARABOLOID_CURVATURE = 0.75


def paraboloid_embed(z: Tensor) -> Tensor:
    return torch.cat([z, PARABOLOID_CURVATURE * z.square().sum(-1, keepdim=True)], dim=-1)


def paraboloid_tensor(z: Tensor) -> Tensor:
    slope = 2 * PARABOLOID_CURVATURE * z
    return torch.eye(2, dtype=z.dtype) + slope[..., :, None] * slope[..., None, :]


def parabola_length(x: float) -> float:
    """Arc length of ``a x^2`` from 0 to ``x``: of the meridians, which are geodesics."""
    slope = 2 * PARABOLOID_CURVATURE * x
    return (slope * math.sqrt(1 + slope**2) + math.asinh(slope)) / (4 * PARABOLOID_CURVATURE)


# ---- swiss roll: z = (angle, width), the spiral of Archimedes r = angle ----
def swiss_roll_embed(z: Tensor) -> Tensor:
    angle, width = z.unbind(-1)
    return torch.stack([angle * angle.cos(), width, angle * angle.sin()], dim=-1)


def swiss_roll_tensor(z: Tensor) -> Tensor:
    angle = z[..., 0]
    return _diagonal(1 + angle**2, torch.ones_like(angle))


def _spiral_length(angle: Tensor) -> Tensor:
    return (angle * (1 + angle**2).sqrt() + torch.asinh(angle)) / 2


def swiss_roll_distance(a: Tensor, b: Tensor) -> Tensor:
    """Of the unrolled roll: a plane with arc length and width as coordinates."""
    return torch.hypot(_spiral_length(a[..., 0]) - _spiral_length(b[..., 0]), a[..., 1] - b[..., 1])


SURFACES = (
    Surface("plane", plane_embed, plane_tensor, (-2, -2), (2, 2), _euclidean),
    Surface("cylinder", cylinder_embed, cylinder_tensor, (-1.5, -2), (1.5, 2), cylinder_distance),
    # Away from the poles and within half a turn, so that great circles stay in the chart.
    Surface("sphere", sphere_embed, sphere_tensor, (0.6, -1.2), (2.5, 1.2), sphere_distance),
    Surface("torus", torus_embed, torus_tensor, (-3, -3), (3, 3)),
    Surface("paraboloid", paraboloid_embed, paraboloid_tensor, (-1, -1), (1, 1)),
    Surface("swiss_roll", swiss_roll_embed, swiss_roll_tensor, (1.5, -2), (9, 2), swiss_roll_distance),
)
SURFACE = {surface.name: surface for surface in SURFACES}


# ---- Poincare half plane: z = (x, y), y > 0, M = 1 / y^2; not embedded ----
def half_plane_tensor(z: Tensor) -> Tensor:
    return torch.eye(2, dtype=z.dtype) / z[..., 1, None, None] ** 2


def half_plane_distance(a: Tensor, b: Tensor) -> Tensor:
    """``2 arsinh(|a - b| / (2 sqrt(y_a y_b)))``, along a circle centred on the x axis."""
    return 2 * torch.asinh(_euclidean(a, b) / (2 * (a[..., 1] * b[..., 1]).sqrt()))


HALF_PLANE = Surface("half_plane", None, half_plane_tensor, (-1, 0.5), (1, 2.5), half_plane_distance)


class Analytic:
    """Curve given by a function of t, without knots."""

    dtype = torch.float64

    def __init__(self, position: Callable[[Tensor], Tensor]) -> None:
        self.position = position
        _quieten_first_jvp()

    def __call__(self, t: Tensor) -> Tensor:
        return self.position(t)

    def derivative(self, t: Tensor, order: int = 1) -> Tensor:
        lower = partial(self.derivative, order=order - 1) if order > 1 else self.position
        return torch.func.jvp(lower, (t,), (torch.ones_like(t),))[1]


# ---- affine decoder of any size: straight lines are geodesics, M is constant ----
@dataclass(frozen=True)
class AffineDecoder:
    """``z A^T + b`` reshaped to images (n, 1, height, width)."""

    A: Tensor  # (D, d)
    b: Tensor  # (D,)
    data_shape: tuple[int, ...]

    @classmethod
    def random(
        cls, d: int = 2, data_shape: tuple[int, ...] = (1, 4, 3), seed: int = 0, dtype: torch.dtype = torch.float64
    ) -> AffineDecoder:
        generator = torch.Generator().manual_seed(seed)
        D = math.prod(data_shape)
        A = torch.randn(D, d, generator=generator, dtype=torch.float64).to(dtype)
        return cls(A, torch.randn(D, generator=generator, dtype=torch.float64).to(dtype), data_shape)

    @property
    def latent_dim(self) -> int:
        return self.A.shape[1]

    def __call__(self, z: Tensor) -> Tensor:
        return (z @ self.A.T + self.b).reshape(-1, *self.data_shape)

    def tensor(self, z: Tensor) -> Tensor:
        return (self.A.T @ self.A).expand(*z.shape, z.shape[-1])

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.vector_norm((a - b) @ self.A.T, dim=-1)
