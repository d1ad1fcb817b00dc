"""The paper in one file, plain and slow: eqs 1-4, the curves of App. A, the descent of section 2.1, Algorithm 1.

For reading beside Michelis & Becker (2021), and what the fast modules are tested against. One pair of points at a time;
every Jacobian is written out; the letters are the paper's. The package has all of it again, fast and for thousands of
pairs, as `lgi.PullbackMetric`, `lgi.CubicBSpline`, `lgi.shorten` and `lgi.worst_case_improvement`.

=====================  ==============================================================================
eq. 1                  `length`, with the metric of `deterministic_metric`
eq. 2                  `stochastic_metric`
eq. 3                  `deterministic_feature_metric`
eq. 4, App. E          `stochastic_feature_metric`
Jacobians of eqs 1-4   `jacobian`, `decoder_jacobians`
App. A                 `straight_line`, `basis`, `points`, `velocities`, `insert_knot`
section 2.1            `squared_speeds`, `energy`, `energy_and_gradient`, `shorter_curve`
section 2.3, App. C    `worst_case_end`, `worst_case_improvements` (Algorithm 1)
=====================  ==============================================================================

A generator takes a batch of latent points ``(n, d)``; a deterministic one returns data ``(n, *data_shape)``, a
stochastic one (a decoder) their mean and standard deviation. A feature map takes data, ``(n, *data_shape)``, to
features ``(n, *feature_shape)``. ``D`` is the number of values of one data point, ``K`` that of its features. A metric
is what eqs 1-4 become once generator and feature map are chosen, a function of one latent point, such as
``lambda z: stochastic_metric(decoder, z)``.
"""

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.func import grad_and_value, jacfwd, jacrev, jvp, vmap

Function = Callable[[Tensor], Tensor]
Decoder = Callable[[Tensor], tuple[Tensor, Tensor]]
Metric = Callable[[Tensor], Tensor]

# The first forward derivative of a process makes torch warn of its own old parts, which says nothing about this file.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))


# --------------------------------------------------------------------------------------------------------------------
# Eqs 1-4: the metric M at a latent point z
# --------------------------------------------------------------------------------------------------------------------


def jacobian(function: Function, x: Tensor, mode: Callable[..., Function] = jacfwd) -> Tensor:
    """Jacobian ``J = d function(x) / dx`` at one point.

    Parameters
    ----------
    function : callable
        Of a batch, ``(n, *shape) -> (n, *output_shape)``.
    x : Tensor, shape (*shape)
    mode : {torch.func.jacfwd, torch.func.jacrev}
        Forward or reverse mode: the first is cheaper for few inputs, the second for few outputs.

    Returns
    -------
    Tensor, shape (number of outputs, number of inputs)
        Differentiable in ``x``.
    """
    return mode(lambda x: function(x[None]).flatten())(x).flatten(1)


def decoder_jacobians(decoder: Decoder, z: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobians of mean and standard deviation, ``J_mu`` and ``J_sigma`` of eqs 2 and 4, in one pass.

    Parameters
    ----------
    decoder : callable
        (n, d) -> (mean, std), each (n, *data_shape).
    z : Tensor, shape (d,)

    Returns
    -------
    J_mu, J_sigma : Tensor, shape (D, d)
    """
    J_mu, J_sigma = jacobian(lambda z: torch.stack(decoder(z)), z).chunk(2)
    return J_mu, J_sigma


def deterministic_metric(generator: Function, z: Tensor) -> Tensor:
    """Pull-back metric of a deterministic generator, ``M = J^T J`` (section 1; it is in the last form of eq. 1).

    Parameters
    ----------
    generator : callable
        ``g``, (n, d) -> (n, *data_shape).
    z : Tensor, shape (d,)

    Returns
    -------
    Tensor, shape (d, d)
    """
    J = jacobian(generator, z)
    return J.T @ J


def stochastic_metric(decoder: Decoder, z: Tensor) -> Tensor:
    """Expected metric of a stochastic generator, ``M = J_mu^T J_mu + J_sigma^T J_sigma`` (eq. 2).

    Parameters
    ----------
    decoder : callable
        (n, d) -> (mean, std), each (n, *data_shape); the standard deviation, never the variance.
    z : Tensor, shape (d,)

    Returns
    -------
    Tensor, shape (d, d)
    """
    J_mu, J_sigma = decoder_jacobians(decoder, z)
    return J_mu.T @ J_mu + J_sigma.T @ J_sigma


def deterministic_feature_metric(generator: Function, feature_map: Function, z: Tensor) -> Tensor:
    """Metric of a feature map on a deterministic generator, ``M_FZ = J_XZ^T M_FX J_XZ`` (eq. 3).

    With ``M_FX = J_FX^T J_FX``, the metric of the feature map on the data.

    Parameters
    ----------
    generator : callable
        ``g``, (n, d) -> (n, *data_shape).
    feature_map : callable
        ``f``, (n, *data_shape) -> (n, *feature_shape).
    z : Tensor, shape (d,)

    Returns
    -------
    Tensor, shape (d, d)
    """
    x = generator(z[None])[0]
    J_XZ = jacobian(generator, z)
    # J_FX depends on z through x. Detaching x here would leave M as it is, and the gradient of the energy wrong.
    J_FX = jacobian(feature_map, x, jacrev)
    M_FX = J_FX.T @ J_FX
    return J_XZ.T @ M_FX @ J_XZ


def stochastic_feature_metric(decoder: Decoder, feature_map: Function, z: Tensor) -> Tensor:
    """Metric of a feature map on a stochastic generator (eq. 4).

    ``M_FZ = J_mu^T M_FX J_mu + J_sigma^T diag(M_FX) J_sigma``, where ``diag`` sets off-diagonal entries to 0.

    Parameters
    ----------
    decoder : callable
        (n, d) -> (mean, std), each (n, *data_shape).
    feature_map : callable
        ``f``, (n, *data_shape) -> (n, *feature_shape).
    z : Tensor, shape (d,)

    Returns
    -------
    Tensor, shape (d, d)

    Notes
    -----
    App. E derives this as the expectation of ``J^T J`` over the decoder's noise and takes ``M_FX`` out of it. That is
    exact for an affine feature map only: the Jacobian of any other depends on the sampled data too. Here ``M_FX`` is
    taken at the mean.
    """
    mean, _ = decoder(z[None])
    J_mu, J_sigma = decoder_jacobians(decoder, z)
    J_FX = jacobian(feature_map, mean[0], jacrev)
    M_FX = J_FX.T @ J_FX
    return J_mu.T @ M_FX @ J_mu + J_sigma.T @ torch.diag(torch.diag(M_FX)) @ J_sigma


# --------------------------------------------------------------------------------------------------------------------
# App. A: a curve is a cubic B-spline, given by its control points P (n + 1, d) and knots T (n + 5,)
# --------------------------------------------------------------------------------------------------------------------


def straight_line(start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Straight line with two free control points, from which the descent starts (section 2.1).

    Parameters
    ----------
    start, end : Tensor, shape (d,)

    Returns
    -------
    P : Tensor, shape (4, d)
        Evenly spaced, so that the line has constant velocity.
    T : Tensor, shape (8,)
        ``(0, 0, 0, 0, 1, 1, 1, 1)``, no knot inside yet.
    """
    fraction = torch.arange(4).to(start)[:, None] / 3
    return (1 - fraction) * start + fraction * end, torch.arange(2).to(start).repeat_interleave(4)


def basis(t: Tensor, T: Tensor, k: int) -> Tensor:
    """B-spline basis ``N_{i,k}(t)`` of order ``k``, for all ``i`` at once (App. A).

    ``N_{i,1}(t) = 1`` for ``t_i <= t < t_{i+1}``, else 0, and, where ``0 / 0`` is 0,
    ``N_{i,k}(t) = (t - t_i) / (t_{i+k-1} - t_i) N_{i,k-1}(t) + (t_{i+k} - t) / (t_{i+k} - t_{i+1}) N_{i+1,k-1}(t)``.

    Parameters
    ----------
    t : Tensor, shape (n_t,)
        Parameters in [0, 1].
    T : Tensor, shape (n_knots,)
        Knots ``t_i``, not decreasing.
    k : int
        Order; 4 for cubic curves, 3 for their derivatives.

    Returns
    -------
    Tensor, shape (n_t, n_knots - k)
    """
    t = t[:, None]
    if k == 1:
        # The paper's t < t_{i+1} leaves t = 1 without any basis function: the last interval that is not empty has it.
        last = (t == T[-1]) & (T[:-1] < T[1:]) & (T[1:] == T[-1])
        return ((T[:-1] <= t) & (t < T[1:]) | last).to(T)
    rise, fall = T[k - 1 : -1] - T[:-k], T[k:] - T[1 : 1 - k]
    up = torch.where(rise > 0, (t - T[:-k]) / rise, 0)
    down = torch.where(fall > 0, (T[k:] - t) / fall, 0)
    N = basis(t[:, 0], T, k - 1)
    return up * N[:, :-1] + down * N[:, 1:]


def points(P: Tensor, T: Tensor, t: Tensor) -> Tensor:
    """Points of a curve, ``C(t) = sum_i N_{i,4}(t) P_i`` (App. A).

    Parameters
    ----------
    P : Tensor, shape (n_control, d)
    T : Tensor, shape (n_control + 4,)
    t : Tensor, shape (n_t,)

    Returns
    -------
    Tensor, shape (n_t, d)
    """
    return basis(t, T, 4) @ P


def velocities(P: Tensor, T: Tensor, t: Tensor) -> Tensor:
    """First derivative of a curve, ``C'(t) = 3 sum_i N_{i+1,3}(t) (P_{i+1} - P_i) / (t_{i+4} - t_{i+1})`` (App. A).

    Parameters
    ----------
    P : Tensor, shape (n_control, d)
    T : Tensor, shape (n_control + 4,)
    t : Tensor, shape (n_t,)

    Returns
    -------
    Tensor, shape (n_t, d)
    """
    return 3 * basis(t, T, 3)[:, 1:-1] @ ((P[1:] - P[:-1]) / (T[4:-1] - T[1:-4])[:, None])


def insert_knot(P: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """Same curve with one control point more: a knot in the middle of the largest interval (App. A).

    ``P_i <- (1 - a_i) P_{i-1} + a_i P_i`` with ``a_i = (t_new - t_i) / (t_{i+k-1} - t_i)``, k = 4, for ``i`` from
    ``j - 2`` to ``j``, where the new knot lies between ``t_j`` and ``t_{j+1}``.

    Parameters
    ----------
    P : Tensor, shape (n_control, d)
    T : Tensor, shape (n_control + 4,)

    Returns
    -------
    P : Tensor, shape (n_control + 1, d)
    T : Tensor, shape (n_control + 5,)
    """
    # App. A calls j "the knot index of the new knot". In the new list of knots that is one more than this j, and the
    # curve would move: j is the index of the knot to the left of the new one.
    j = int(torch.argmax(T[1:] - T[:-1]))
    t_new = (T[j] + T[j + 1]) / 2
    P_new = torch.cat([P[:j], P[j - 1 :]])
    for i in range(j - 2, j + 1):
        a = (t_new - T[i]) / (T[i + 3] - T[i])
        P_new[i] = (1 - a) * P[i - 1] + a * P[i]
    return P_new, torch.cat([T[: j + 1], t_new[None], T[j + 1 :]])


# --------------------------------------------------------------------------------------------------------------------
# Section 2.1: length and energy of a curve, and a descent to a shorter one
# --------------------------------------------------------------------------------------------------------------------


def squared_speeds(metric: Metric, P: Tensor, T: Tensor, n_t: int) -> Tensor:
    """Squared speeds of the generated data, ``|dg(C(t))/dt|^2 = C'(t)^T M(C(t)) C'(t)``, in the middle of equal steps.

    Parameters
    ----------
    metric : callable
        (d,) -> (d, d).
    P : Tensor, shape (n_control, d)
    T : Tensor, shape (n_control + 4,)
    n_t : int
        Number of points ``t = (k + 1/2) / n_t``, k = 0, ..., n_t - 1.

    Returns
    -------
    Tensor, shape (n_t,)
    """
    t = (torch.arange(n_t).to(P) + 0.5) / n_t
    z, v = points(P, T, t), velocities(P, T, t)
    # M at each of the points; 32 at a time, as eq. 4 has a D x D matrix at each.
    M = vmap(metric, chunk_size=32)(z)
    return torch.einsum("ti,tij,tj->t", v, M, v)


def length(metric: Metric, P: Tensor, T: Tensor, n_t: int = 256) -> Tensor:
    """Riemannian length of a curve, ``integral of sqrt(C'(t)^T M(C(t)) C'(t)) dt`` over [0, 1] (eq. 1).

    The integral is taken by the midpoint rule (the paper names none): it is the mean over ``t = (k + 1/2) / n_t``.

    Parameters
    ----------
    metric : callable
        (d,) -> (d, d).
    P : Tensor, shape (n_control, d)
    T : Tensor, shape (n_control + 4,)
    n_t : int
        Number of points; the error falls with its square.

    Returns
    -------
    Tensor, shape ()
    """
    return squared_speeds(metric, P, T, n_t).clamp_min(0).sqrt().mean()


def energy(metric: Metric, P: Tensor, T: Tensor, n_t: int = 256) -> Tensor:
    """Path energy of a curve, ``integral of C'(t)^T M(C(t)) C'(t) dt`` over [0, 1], with no factor 1/2 (section 2.1).

    By the midpoint rule like the length, whose square is therefore never above the energy.

    Parameters
    ----------
    metric : callable
        (d,) -> (d, d).
    P : Tensor, shape (n_control, d)
    T : Tensor, shape (n_control + 4,)
    n_t : int
        Number of points.

    Returns
    -------
    Tensor, shape ()
        Differentiable in ``P``.
    """
    return squared_speeds(metric, P, T, n_t).mean()


def energy_and_gradient(metric: Metric, P: Tensor, T: Tensor, n_t: int) -> tuple[Tensor, Tensor]:
    """Path energy of a curve, and its gradient with respect to the free control points.

    Parameters
    ----------
    metric : callable
        (d,) -> (d, d).
    P : Tensor, shape (n_control, d)
    T : Tensor, shape (n_control + 4,)
    n_t : int
        Number of points.

    Returns
    -------
    energy : Tensor, shape ()
    gradient : Tensor, shape (n_control, d)
        0 at both ends, which are fixed.
    """
    gradient, E = grad_and_value(lambda P: energy(metric, P, T, n_t))(P)
    gradient[[0, -1]] = 0
    return E, gradient


@torch.no_grad()
def shorter_curve(
    metric: Metric, start: Tensor, end: Tensor, *, n_control: int = 10, n_steps: int = 200, n_t: int = 32
) -> tuple[Tensor, Tensor]:
    """Curve shorter than the straight line, by gradient descent on the path energy (section 2.1).

    Begins with the straight line and two free control points; adds a control point whenever the length has reached a
    plateau; ends at one with ``n_control`` of them, or after ``n_steps``.

    Parameters
    ----------
    metric : callable
        (d,) -> (d, d).
    start, end : Tensor, shape (d,)
    n_control : int
        Largest number of control points, at least 4.
    n_steps : int
        Largest number of steps, those that are taken back included.
    n_t : int
        Number of points at which a step looks at the metric.

    Returns
    -------
    P : Tensor, shape (<= n_control, d)
    T : Tensor, shape (<= n_control + 4,)
        The straight line where no shorter curve was found, as measured by :func:`length` at its 256 points.

    Raises
    ------
    ValueError
        If the energy of the straight line is not finite, or ``n_control`` is below 4.

    Notes
    -----
    The paper gives neither the size of a step nor what a plateau is (its code: Adam at rate 1.0, times 0.9 a step).
    Here a step that lowers the energy is twice as long the next time, one that does not is taken back and halved; a
    plateau is a length that fell by less than a thousandth in ten steps.
    """
    P, T = line = straight_line(start, end)
    E, gradient = energy_and_gradient(metric, P, T, n_t)
    if n_control < 4 or not E.isfinite():
        raise ValueError(f"expected n_control >= 4 and a finite energy of the straight line, got {n_control} and {E}")
    # The first trial moves control points about as far as the line is long: halving soon finds the scale.
    step = (end - start).norm() / gradient.norm()
    lengths = [length(metric, P, T, n_t)]
    for _ in range(n_steps):
        trial = P - step * gradient
        E_trial, gradient_trial = energy_and_gradient(metric, trial, T, n_t)
        if E_trial < E:
            P, E, gradient, step = trial, E_trial, gradient_trial, 2 * step
        else:
            step = step / 2
        lengths.append(length(metric, P, T, n_t))
        if len(lengths) > 10 and lengths[-1] > 0.999 * lengths[-11]:
            if len(P) == n_control:
                break
            P, T = insert_knot(P, T)
            E, gradient = energy_and_gradient(metric, P, T, n_t)
            lengths = lengths[-1:]
    # What descends is the energy. A curve can lower it by an even speed alone, and be longer.
    return (P, T) if length(metric, P, T) < length(metric, *line) else line


# --------------------------------------------------------------------------------------------------------------------
# Section 2.3, App. C: how far straight lines are from shortest
# --------------------------------------------------------------------------------------------------------------------


def worst_case_end(metric: Metric, start: Tensor, step_size: float = 1.0) -> Tensor:
    """End point of a sample of Algorithm 1, ``x_B = x_A + alpha v_max``.

    Parameters
    ----------
    metric : callable
        (d,) -> (d, d).
    start : Tensor, shape (d,)
        ``x_A``.
    step_size : float
        ``alpha``. The paper gives no number; 1 is its code's.

    Returns
    -------
    Tensor, shape (d,)
    """
    # Eigenvalues are in ascending order, eigenvectors are unit columns, and their signs are arbitrary.
    v_max = torch.linalg.eigh(metric(start)).eigenvectors[:, -1]
    # Footnote 1: towards the origin, away from where the generator was not trained.
    if v_max @ start > 0:
        v_max = -v_max
    return start + step_size * v_max


@torch.no_grad()
def worst_case_improvements(metric: Metric, starts: Iterable[Tensor], step_size: float = 1.0, **descent: int) -> Tensor:
    """Relative improvements of straight lines, ``(d_s - d_c) / d_s``, one for each sample (Algorithm 1).

    Parameters
    ----------
    metric : callable
        (d,) -> (d, d).
    starts : Tensor, shape (n_samples, d), or other iterable of points (d,)
        Samples ``x_A`` of the latent distribution, such as ``torch.randn(1000, d)``.
    step_size : float
        ``alpha``, the Euclidean length of the straight lines.
    **descent : int
        Of :func:`shorter_curve`: ``n_control``, ``n_steps``, ``n_t``.

    Returns
    -------
    Tensor, shape (n_samples,)
        Never negative. Its mean is the paper's expected worst-case relative improvement.

    Raises
    ------
    ValueError
        If a straight line has no length: it has no relative improvement.
    """
    improvements = []
    for x_A in starts:
        x_B = worst_case_end(metric, x_A, step_size)
        d_s = length(metric, *straight_line(x_A, x_B))
        if not d_s > 0:
            raise ValueError(f"expected a straight line of positive length, got {d_s} from {x_A} to {x_B}")
        d_c = length(metric, *shorter_curve(metric, x_A, x_B, **descent))
        improvements.append((d_s - d_c) / d_s)
    return torch.stack(improvements)
