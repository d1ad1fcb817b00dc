r"""The geodesic equation: its residual along curves, and the boundary value problem (section 2.1).

With the metric ``M(z)`` and ``v = z'``, geodesics satisfy ``d/dt (M v) = grad_z(v^T M v) / 2``, that is
``M z'' + (D_v M) v - grad_z(v^T M v) / 2 = 0``, with the derivative ``D_v M`` of the metric along ``v``. This is the
equation of Arvanitidis et al. (2018) with the Christoffel symbols already contracted with ``v``: no array of their size
is formed, and no second derivative of the generator is stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lgi.metric import Curve, Metric
from lgi.metric.batching import check_ends

Array = npt.NDArray[np.float64]


def _defect(metric: Metric, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``(D_v M) v - grad_z(v^T M v) / 2`` and ``v^T M v`` for ``z, v`` (n, d)."""
    with torch.inference_mode(False), torch.enable_grad():
        # Without inference mode's tensors, which cannot be differentiated.
        z, v = z.detach().clone().requires_grad_(), v.detach().clone().requires_grad_()
        s = metric.squared_speed(z, v)
        z_gradient, v_gradient = torch.autograd.grad(s.sum(), (z, v), create_graph=True, materialize_grads=True)
        along = []
        for i in range(z.shape[-1]):
            # Row i of the derivative of M v = v_gradient / 2; a constant metric has none.
            component = v_gradient[:, i].sum() / 2
            if not component.requires_grad:
                along.append(torch.zeros_like(s))
                continue
            (row,) = torch.autograd.grad(component, z, retain_graph=True, materialize_grads=True)
            along.append((row * v).sum(-1))
        return (torch.stack(along, dim=-1) - z_gradient / 2).detach(), s.detach()


def _covector_to_vector(M: Tensor, covector: Tensor) -> Tensor:
    """``M^-1 covector`` in float64; the shortest such vector where the metric is degenerate."""
    M = M.double()
    return (torch.linalg.pinv(M, rtol=1e-12, hermitian=True) @ covector.double()[..., None])[..., 0]


def geodesic_residual(metric: Metric, curve: Curve, t: Tensor) -> Tensor:
    """How far a curve is from solving the geodesic equation, ``|D_t g'|_M / |g'|_M``.

    The covariant acceleration ``D_t g' = g'' + M^-1 ((D_v M) v - grad_z(v^T M v) / 2)`` is what is left of the
    equation; divided by the speed it is the relative change of velocity, in length or direction, per unit of ``t``. It
    is 0 on a geodesic, and depends neither on the latent coordinates nor on the scale.

    Parameters
    ----------
    metric : Metric
    curve : curve
        Such as ``result.curve``, with points (..., n_t, d) and a second derivative ``curve.derivative(t, order=2)``.
    t : Tensor, shape (n_t,)
        Parameters in [0, 1].

    Returns
    -------
    Tensor, shape (..., n_t)

    Raises
    ------
    ValueError
        If ``t`` or the points do not fit, or the metric is not finite.

    Notes
    -----
    A pointwise measure: between knots a cubic spline can follow the acceleration only linearly, so that the residual
    falls with the square of their distance, slower than the error of the length.

    References
    ----------
    Arvanitidis, Hansen & Hauberg, "Latent space oddity: on the curvature of deep generative models", ICLR 2018.
    """
    z, v = curve(t), curve.derivative(t)
    acceleration = curve.derivative(t, order=2)  # type: ignore[call-arg]
    d = z.shape[-1]
    z, v, acceleration = (x.detach() for x in (z, v, acceleration))
    defect, s = _defect(metric, z.reshape(-1, d), v.reshape(-1, d))
    with torch.no_grad():
        M = metric.tensor(z).reshape(-1, d, d)
    covector = (M @ acceleration.reshape(-1, d, 1))[..., 0] + defect
    squared = (covector.double() * _covector_to_vector(M, covector)).sum(-1).clamp_min(0)
    speed = s.double().clamp_min(torch.finfo(torch.float64).tiny)
    return (squared / speed).sqrt().to(z.dtype).reshape(z.shape[:-1])


def _acceleration(metric: Metric, z: Tensor, v: Tensor) -> Tensor:
    """``z''`` (n, d) of geodesics through ``z`` with velocity ``v``, float64."""
    defect, _ = _defect(metric, z, v)
    with torch.no_grad():
        return -_covector_to_vector(metric.tensor(z), defect)


class OdeCurve:
    """Curves (...,) given by cubic pieces, as the boundary value problem leaves them.

    Parameters
    ----------
    pieces : list of scipy.interpolate.PPoly
        One a curve, each with values (d or more, n_t), of which the first ``d`` are used.
    shape : torch.Size
        Leading dimensions.
    like : Tensor, shape (..., d)
        Whose dtype and device the points have.
    """

    def __init__(self, pieces: list[Any], shape: torch.Size, like: Tensor) -> None:
        self._pieces, self._shape, self._d = pieces, shape, like.shape[-1]
        self.dtype, self.device = like.dtype, like.device
        self.knots = torch.tensor(np.unique(np.concatenate([[0.0, 1.0], *(piece.x for piece in pieces)])))

    def __call__(self, t: Tensor) -> Tensor:
        """Points (..., n_t, d) for ``t`` (n_t,) in [0, 1]."""
        return self.derivative(t, order=0)

    def derivative(self, t: Tensor, order: int = 1) -> Tensor:
        """Derivative of the curves (..., n_t, d)."""
        times = t.detach().cpu().double().numpy()
        values = [piece(times, nu=order)[: self._d].T for piece in self._pieces]
        stacked = np.array(values, dtype=np.float64).reshape(*self._shape, len(times), self._d)
        return torch.tensor(stacked, dtype=self.dtype, device=self.device)


@dataclass(frozen=True, kw_only=True)
class GeodesicOde:
    """Solutions of the boundary value problem.

    Attributes
    ----------
    curve : OdeCurve
        Use it with `lgi.curve_length`, or as ``curve(t)``. Not a solution where ``success`` is False.
    success : Tensor of bool, shape (...)
    residual : Tensor, shape (...)
        Largest relative residual of the collocation, root mean square over an interval (scipy).
    n_nodes : Tensor of int, shape (...)
        Nodes of the mesh in the end.
    n_evaluations : Tensor of int, shape (...)
        Points at which the acceleration was evaluated.
    message : numpy array of str, shape (...)
    """

    curve: OdeCurve
    success: Tensor
    residual: Tensor
    n_nodes: Tensor
    n_evaluations: Tensor
    message: npt.NDArray[np.str_]


def solve_geodesic_ode(
    metric: Metric,
    start: Tensor,
    end: Tensor,
    *,
    initial: Curve | None = None,
    tolerance: float = 1e-3,
    n_nodes: int = 16,
    max_nodes: int = 1000,
) -> GeodesicOde:
    """Solve the geodesic equation between two points by collocation (`scipy.integrate.solve_bvp`).

    The alternative that the paper discusses (section 2.1): more expensive than :func:`lgi.shorten`, one pair at a time,
    and not certain to converge; but where it does, it is an independent solution.

    Parameters
    ----------
    metric : Metric
        Twice differentiable.
    start, end : Tensor, shape (..., d)
        End points; all pairs are solved one after the other.
    initial : curve, optional
        First guess, with points (..., n_t, d), such as ``result.curve``; by default the straight line.
    tolerance : float
        Relative tolerance of the residual. With a generator in float32 not much below 1e-4.
    n_nodes : int
        Nodes of the first mesh.
    max_nodes : int
        Most nodes of a mesh.

    Returns
    -------
    GeodesicOde

    Raises
    ------
    ValueError
        If the end points do not fit each other or the metric.
    """
    from scipy.integrate import solve_bvp

    check_ends(start, end, metric.latent_dim)
    d, shape = start.shape[-1], start.shape[:-1]
    first, last = (x.detach().reshape(-1, d).cpu().double().numpy() for x in (start, end))
    mesh = np.linspace(0, 1, n_nodes)
    if initial is None:
        guess = first[:, None] + mesh[:, None] * (last - first)[:, None]
        speed = np.broadcast_to((last - first)[:, None], guess.shape)
    else:
        times = torch.tensor(mesh)
        guess, speed = (
            x.detach().cpu().double().numpy().reshape(len(first), n_nodes, d)
            for x in (initial(times), initial.derivative(times))
        )
    step = float(torch.finfo(start.dtype).eps) ** (1 / 3)
    solutions, evaluations = [], []
    for a, b, z, v in zip(first, last, guess, speed, strict=True):
        counted = _Counted(metric, start)

        def ends(left: Array, right: Array, a: Array = a, b: Array = b) -> Array:
            return np.concatenate([left[:d] - a, right[:d] - b])

        scale = max(float(np.linalg.norm(b - a)), 1e-12)
        solution = solve_bvp(
            counted.system,
            ends,
            mesh,
            np.concatenate([z.T, v.T]),
            fun_jac=counted.jacobian(step * scale),
            tol=tolerance,
            max_nodes=max_nodes,
        )
        solutions.append(solution)
        evaluations.append(counted.n_points)
    return GeodesicOde(
        curve=OdeCurve([found.sol for found in solutions], shape, start),
        success=torch.tensor([found.success for found in solutions], dtype=torch.bool).reshape(shape),
        residual=torch.tensor([found.rms_residuals.max() for found in solutions], dtype=start.dtype).reshape(shape),
        n_nodes=torch.tensor([len(found.x) for found in solutions], dtype=torch.long).reshape(shape),
        n_evaluations=torch.tensor(evaluations, dtype=torch.long).reshape(shape),
        message=np.array([found.message for found in solutions], dtype=np.str_).reshape(shape),
    )


class _Counted:
    """The geodesic equation as a first-order system ``(z, v)' = (v, z'')``, counting its evaluations."""

    def __init__(self, metric: Metric, like: Tensor) -> None:
        self.metric, self.like = metric, like
        self.n_points = 0

    def system(self, t: Array | float, y: Array) -> Array:
        """Right-hand side (2 d, n)."""
        d = len(y) // 2
        z, v = (torch.tensor(x.T.copy(), dtype=self.like.dtype, device=self.like.device) for x in (y[:d], y[d:]))
        self.n_points += len(z)
        return np.concatenate([y[d:], _acceleration(self.metric, z, v).cpu().numpy().T])

    def jacobian(self, step: float) -> Callable[[Array, Array], Array]:
        """Its derivative (2 d, 2 d, n) by central differences; scipy's own step would be lost in float32."""

        def columns(t: Array, y: Array) -> Array:
            result = np.empty((len(y), len(y), y.shape[1]))
            for i, direction in enumerate(np.eye(len(y))[:, :, None] * step):
                result[:, i] = (self.system(t, y + direction) - self.system(t, y - direction)) / (2 * step)
            return result

        return columns
