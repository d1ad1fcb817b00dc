"""A metric on a grid of the latent space, as the figures show it: volume, condition number, eigenvectors."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lgi.checks import describe
from lgi.metric.base import Metric, check_metric, log_condition, log_volume
from lgi.progress import progress_bar


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
    check_metric(metric)
    if len(axes) == 0 or any(not isinstance(x, Tensor) or x.ndim != 1 or x.dtype != axes[0].dtype for x in axes):
        raise ValueError(
            f"expected one-dimensional axes of one dtype, got {', '.join(map(describe, axes)) or 'none'}: use "
            "torch.linspace, or torch.as_tensor(axis, dtype=torch.float32)"
        )
    z = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    points = z.reshape(-1, len(axes))
    tensors = []
    with torch.no_grad(), progress_bar(len(points), desc="metric", unit="points", show=progress) as advance:
        for batch in points.split(batch_size):
            tensors.append(metric._tensors(metric._precise_tensor, batch).cpu())
            advance(len(batch))
    eigenvalues, eigenvectors = torch.linalg.eigh(torch.cat(tensors).reshape(*z.shape, len(axes)))
    return MetricFields(
        axes=tuple(axis.cpu() for axis in axes),
        log_volume=log_volume(eigenvalues).to(z.dtype),
        log_condition=log_condition(eigenvalues).to(z.dtype),
        eigenvalues=eigenvalues.to(z.dtype),
        eigenvectors=eigenvectors.to(z.dtype),
    )
