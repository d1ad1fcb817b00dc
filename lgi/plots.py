"""Draw arrays on given axes. Nothing here computes geometry, shows a figure or saves one.

The same roles have the same looks in all figures: straight lines are grey and dashed, shorter curves vermilion, the
digits 2, 4, 5, 7 have four fixed colours that colour-blind readers can tell apart (Okabe & Ito 2008).
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import seaborn as sns  # noqa: F401 - registers the colour maps "mako" and "rocket"
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection, QuadMesh
from matplotlib.image import AxesImage

STRAIGHT = {"color": "0.45", "linestyle": "--", "linewidth": 1.4}
SHORTER = {"color": "#D55E00", "linestyle": "-", "linewidth": 2.0}
DIGIT_COLOURS = {2: "#0072B2", 4: "#E69F00", 5: "#009E73", 7: "#CC79A7"}
MODEL_COLOURS = {"vae1": "#332288", "vae2": "#44AA99", "gan": "#882255"}

Array = npt.ArrayLike
_Points = npt.NDArray[np.float64]


def use_style() -> None:
    """Switch matplotlib to the style file of the series, ``lgi/lgi.mplstyle``."""
    plt.style.use(str(files("lgi") / "lgi.mplstyle"))


def latent_axes(ax: Axes) -> Axes:
    """Label the axes of a two-dimensional latent space and give both the same scale."""
    ax.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")
    return ax


def latent_codes(ax: Axes, z: Array, label: Array, *, size: float = 4.0, alpha: float = 0.6) -> list[PathCollection]:
    """Scatter latent codes, coloured by digit.

    Parameters
    ----------
    ax : matplotlib axes
        Where.
    z : array, shape (n, 2)
        Codes.
    label : array, shape (n,)
        Digits.
    size, alpha : float
        Area of a dot in square points, and its opacity.

    Returns
    -------
    list of PathCollection
        One a digit, labelled, for a legend.
    """
    z, label = np.asarray(z), np.asarray(label)
    others = iter(mpl.color_sequences["tab10"])
    looks: dict[str, Any] = {"s": size, "alpha": alpha, "lw": 0, "rasterized": True}
    dots = []
    for digit in map(int, np.unique(label)):
        colour = DIGIT_COLOURS[digit] if digit in DIGIT_COLOURS else next(others)
        dots.append(ax.scatter(*z[label == digit].T, color=colour, label=str(digit), **looks))
    latent_axes(ax)
    return dots


def digit_legend(ax: Axes, dots: Sequence[PathCollection], **kwargs: Any) -> None:
    """Legend of `latent_codes` with dots large enough to tell their colours."""
    legend = ax.legend(handles=list(dots), title="digit", markerscale=3.5, handletextpad=0.1, **kwargs)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def field(ax: Axes, x: Array, y: Array, values: Array, label: str, **kwargs: Any) -> QuadMesh:
    """Scalar field over the latent plane, with a colour bar.

    Parameters
    ----------
    ax : matplotlib axes
        Where.
    x, y : array, shape (n_x,), (n_y,)
        Grid coordinates.
    values : array, shape (n_y, n_x)
        The field; row i belongs to ``y[i]``.
    label : str
        Of the colour bar: what is drawn, with its symbol.
    **kwargs
        For ``pcolormesh`` (``cmap``, ``vmin``, ``vmax``).

    Returns
    -------
    QuadMesh
        What was drawn.
    """
    mesh = ax.pcolormesh(np.asarray(x), np.asarray(y), np.asarray(values), shading="auto", rasterized=True, **kwargs)
    ax.figure.colorbar(mesh, ax=ax, label=label, shrink=0.85)
    latent_axes(ax)
    return mesh


def image_plane(ax: Axes, images: Array, extent: tuple[float, float, float, float]) -> AxesImage:
    """Decoded images laid out over the latent plane.

    Parameters
    ----------
    ax : matplotlib axes
        Where.
    images : array, shape (n_y, n_x, height, width)
        Image [i, j] belongs to the i-th z_2 from below and the j-th z_1 from the left; values in [0, 1].
    extent : tuple of float
        Smallest and largest z_1, smallest and largest z_2, at the outer edges of the images.

    Returns
    -------
    AxesImage
        What was drawn.
    """
    images = np.asarray(images)
    n_y, n_x, height, width = images.shape
    # rows of a picture run downwards, z_2 upwards
    canvas = images[::-1].transpose(0, 2, 1, 3).reshape(n_y * height, n_x * width)
    picture = ax.imshow(canvas, cmap="gray_r", vmin=0, vmax=1, extent=extent, origin="upper", aspect="equal")
    latent_axes(ax)
    return picture


def image_rows(axes: Sequence[Axes], images: Mapping[str, Array]) -> None:
    """Image sequences as rows, one below the other, each with its name at the left.

    Parameters
    ----------
    axes : sequence of matplotlib axes
        One a row.
    images : mapping of str to array of shape (n, height, width)
        Values in [0, 1].
    """
    for ax, (name, row) in zip(axes, images.items(), strict=True):
        strip = np.concatenate(list(np.asarray(row)), axis=1)
        ax.imshow(strip, cmap="gray_r", vmin=0, vmax=1, origin="upper")
        ax.set(xticks=[], yticks=[])
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.spines[:].set_visible(False)


def training_curves(ax: Axes, epoch: Array, curves: Mapping[str, Array], ylabel: str) -> None:
    """Curves over epochs; those whose name starts with "train" are thin and dotted.

    Parameters
    ----------
    ax : matplotlib axes
        Where.
    epoch : array, shape (n,)
        Epochs.
    curves : mapping of str to array of shape (n,)
        Name and values of each.
    ylabel : str
        What the values are, with unit.
    """
    for name, values in curves.items():
        thin = name.startswith("train")
        ax.plot(np.asarray(epoch), np.asarray(values), label=name, ls=":" if thin else "-", lw=1.2 if thin else 1.8)
    ax.set(xlabel="epoch", ylabel=ylabel)
    ax.legend()


def axial_streamlines(
    ax: Axes, x: Array, y: Array, direction: Array, *, separation: float | None = None, **line: Any
) -> LineCollection:
    r"""Evenly spaced streamlines of a field of axes: directions without a sign, such as eigenvectors.

    The signs of eigenvectors are arbitrary and cannot be chosen continuously around a point where two eigenvalues meet,
    so that an ordinary streamline plot breaks where they flip. What has no sign is the double angle,
    :math:`(\cos 2\theta, \sin 2\theta) = (u_1^2 - u_2^2,\; 2 u_1 u_2)`: it is interpolated, and each step goes on in
    the sense of the one before.

    Parameters
    ----------
    ax : matplotlib axes
        Where.
    x, y : array, shape (n_x,), (n_y,)
        Evenly spaced grid coordinates.
    direction : array, shape (n_y, n_x, 2)
        Unit vectors of either sign.
    separation : float, optional
        Distance between neighbouring lines, in units of the axes; by default a thirtieth of the width.
    **line
        For ``LineCollection`` (``color``, ``linewidth``, ``alpha``).

    Returns
    -------
    LineCollection
        One segment list a streamline.

    References
    ----------
    Jobard & Lefer, "Creating evenly-spaced streamlines of arbitrary density", 1997: new lines start beside old ones at
    the separation, and end where they come closer than half of it.
    """
    x, y, u = (np.asarray(array, dtype=float) for array in (x, y, direction))
    if u.shape != (len(y), len(x), 2):
        raise ValueError(f"expected directions of shape ({len(y)}, {len(x)}, 2), got {u.shape}")
    separation = float(np.ptp(x)) / 30 if separation is None else separation
    axes = _AxialField(x, y, u)
    lines: list[_Points] = []
    placed = np.empty((0, 2))
    waiting = [np.array([x.mean(), y.mean()])]
    # Where the field has several regions, lines do not reach all of them: a coarse grid of starts does.
    starts_x, starts_y = (np.arange(axis[0], axis[-1], 3 * separation) for axis in (x, y))
    spare = [np.array([a, b]) for a in starts_x for b in starts_y]
    while waiting or spare:
        seed = waiting.pop(0) if waiting else spare.pop()
        if not axes.covers(seed) or _is_near(seed, placed, 0.98 * separation):
            continue
        halves = [axes.trace(seed, sense * np.array([0.8, 0.6]), placed, separation) for sense in (1.0, -1.0)]
        if min(len(half) for half in halves) > 1 and _turn(halves[1][1], seed, halves[0][1]) < np.sqrt(0.5):
            continue
        path = np.concatenate([halves[1][:0:-1], halves[0]])
        if len(path) < 10:
            continue
        lines.append(path)
        placed = np.concatenate([placed, path[::2]])
        along = np.gradient(path, axis=0)
        normal = along[:, ::-1] * [-1.0, 1.0] / np.linalg.norm(along, axis=1, keepdims=True)
        beside = np.concatenate([path + separation * normal, path - separation * normal])
        waiting += list(beside[:: max(1, len(beside) // 40)])
    looks: dict[str, Any] = {"color": "white", "linewidth": 0.7, "alpha": 0.9} | line
    collection = LineCollection(lines, **looks)
    ax.add_collection(collection)
    return collection


def _turn(a: _Points, b: _Points, c: _Points) -> float:
    """Cosine of the angle by which the way from a over b to c turns."""
    return float((b - a) @ (c - b) / (np.linalg.norm(b - a) * np.linalg.norm(c - b)))


def _is_near(point: _Points, points: _Points, distance: float) -> bool:
    return len(points) > 0 and bool((((points - point) ** 2).sum(1) < distance**2).any())


class _AxialField:
    """Axes on a regular grid, by the cosine and sine of their double angle, (n_y, n_x, 2)."""

    def __init__(self, x: _Points, y: _Points, direction: _Points) -> None:
        self.x, self.y = x, y
        cosine, sine = direction[..., 0] ** 2 - direction[..., 1] ** 2, 2 * direction[..., 0] * direction[..., 1]
        self.double_angle = np.stack([cosine, sine], axis=-1)

    def covers(self, point: _Points) -> bool:
        return bool(self.x[0] <= point[0] <= self.x[-1] and self.y[0] <= point[1] <= self.y[-1])

    def at(self, point: _Points, along: _Points) -> _Points | None:
        """Unit vector of the axis at a point, in the sense of ``along``; None outside or where there is no axis."""
        if not self.covers(point):
            return None
        i, j = (point[1] - self.y[0]) / (self.y[1] - self.y[0]), (point[0] - self.x[0]) / (self.x[1] - self.x[0])
        i0, j0 = min(int(i), len(self.y) - 2), min(int(j), len(self.x) - 2)
        a, b = i - i0, j - j0
        corners = self.double_angle[i0 : i0 + 2, j0 : j0 + 2]
        cosine, sine = np.array([1 - a, a]) @ (corners[:, 0] * (1 - b) + corners[:, 1] * b)
        if np.hypot(cosine, sine) < 0.1:  # the axes around it cancel: a point where the eigenvalues meet
            return None
        theta = 0.5 * np.arctan2(sine, cosine)
        axis = np.array([np.cos(theta), np.sin(theta)])
        return -axis if axis @ along < 0 else axis

    def trace(self, seed: _Points, along: _Points, placed: _Points, separation: float) -> _Points:
        """Half a streamline by midpoint steps, until it leaves, nears a line or itself, or meets a degenerate point."""
        step, path = separation / 5, [seed]
        for n_steps in range(4000):
            axis = self.at(path[-1], along)
            middle = None if axis is None else self.at(path[-1] + 0.5 * step * axis, axis)
            # A turn by more than 45 degrees within a step is no curve but a degenerate point passed too closely.
            if middle is None or (n_steps > 0 and middle @ along < np.sqrt(0.5)):
                break
            point = path[-1] + step * middle
            if _is_near(point, placed, 0.5 * separation) or _is_near(point, np.array(path[:-10]), 0.5 * separation):
                break
            path.append(point)
            along = middle
        return np.array(path)


def indicatrices(ax: Axes, z: Array, tensor: Array, *, scale: float) -> None:
    """Ellipses of all steps v with sqrt(v^T M v) = scale around points of a plane (Tissot's indicatrix, pulled back).

    Parameters
    ----------
    ax : matplotlib axes
        Where.
    z : array, shape (n, 2)
        Points.
    tensor : array, shape (n, 2, 2)
        Metric tensors M, positive definite.
    scale : float
        Length of the steps.
    """
    angle = np.linspace(0, 2 * np.pi, 60)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    for point, M in zip(np.asarray(z), np.asarray(tensor), strict=True):
        values, vectors = np.linalg.eigh(M)
        ellipse = point[:, None] + scale * (vectors / np.sqrt(values)) @ circle
        ax.plot(*ellipse, color="0.7", linewidth=0.8, zorder=0.5)


def axial_histogram(ax: Axes, theta: Array, *, bins: int = 36, **looks: Any) -> None:
    """Polar histogram of axes: each counts in both of its directions.

    Parameters
    ----------
    ax : matplotlib axes with polar projection
        Where.
    theta : array, shape (n,)
        Angles in radians, up to multiples of pi.
    bins : int
        Bars around the circle, even.
    **looks
        For ``bar`` (``color``, ``alpha``).
    """
    folded = np.asarray(theta) % np.pi
    counts, edges = np.histogram(np.concatenate([folded, folded + np.pi]), bins, range=(0, 2 * np.pi))
    # Radius by root: the area of a bar, not its length, is what the eye compares.
    ax.bar(edges[:-1], np.sqrt(counts / len(folded)), width=np.diff(edges), align="edge", **looks)
    ax.set(yticks=[], xticks=np.arange(0, 2 * np.pi, np.pi / 4))


def numbered_starts(ax: Axes, z: Array, colours: Sequence[Any], *, size: float = 7.0) -> None:
    """Number points in boxes of their colours, each beside its point and joined to it, none on top of another.

    The limits of the axes must be final: what overlaps is a matter of pixels.

    Parameters
    ----------
    ax : matplotlib axes
        Where.
    z : array, shape (n, 2)
        Points; the first is number 1.
    colours : sequence of n colours
        Of the boxes.
    size : float
        Of the digits, in points.
    """
    z = np.asarray(z, dtype=float)
    pixels, point = ax.transData.transform(z), ax.figure.dpi / 72
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    rings = [r * point * np.stack([np.cos(angles), np.sin(angles)], axis=1) for r in (11, 18, 27, 38)]
    places = np.empty((0, 2))
    for i, (pixel, colour) in enumerate(zip(pixels, colours, strict=True)):
        free = pixel + np.concatenate(rings)  # from near to far: the first of those that cover least is taken
        on_box, on_point = (
            (np.abs(free[:, None] - taken) < size * point * np.array([2.1, 1.6])).all(-1).sum(1)
            for taken in (places, pixels)
        )
        place = free[(on_box + 0.3 * on_point).argmin()]
        places = np.concatenate([places, place[None]])
        dark = np.dot(mpl.colors.to_rgb(colour), (0.299, 0.587, 0.114)) < 0.55
        looks: dict[str, Any] = {"fontsize": size, "color": "white" if dark else "black", "ha": "center"}
        looks["bbox"] = {"boxstyle": "round,pad=0.18", "fc": colour, "ec": "white", "lw": 0.6}
        looks["arrowprops"] = {"arrowstyle": "-", "color": colour, "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
        offset = (place - pixel) / point
        ax.annotate(str(i + 1), z[i], offset, textcoords="offset points", va="center", zorder=9, **looks)


def pair_legend(axes: Sequence[Axes], starts: Sequence[Array], colours: Sequence[Any], *, ncols: int = 10) -> None:
    """Number the starts of the same pairs in several axes, and say below all of them which number has which colour.

    Parameters
    ----------
    axes : sequence of matplotlib axes
        All of one figure.
    starts : sequence of array, shape (n, 2)
        First points of the pairs, one array an axes.
    colours : sequence of n colours
        One a pair.
    ncols : int
        Entries in a row.
    """
    handles = [mpl.lines.Line2D([], [], color=c, lw=3, label=str(i + 1)) for i, c in enumerate(colours)]
    # Matplotlib fills columns first; numbers are read along rows.
    handles = [handle for column in range(ncols) for handle in handles[column::ncols]]
    figure = axes[0].get_figure(root=True)
    assert figure is not None
    looks: dict[str, Any] = {"title": "pair", "columnspacing": 1.2, "handlelength": 1.2}
    figure.legend(handles=handles, loc="outside lower center", ncols=min(ncols, len(handles)), **looks)
    figure.canvas.draw()  # the legend takes its room: only now is it known where points are
    for ax, z in zip(axes, starts, strict=True):
        numbered_starts(ax, z, colours)


def improved_lines(ax: Axes, start: Array, end: Array, improvement: Array, label: str) -> LineCollection:
    """Straight lines over a grey field, with a colour bar: the more a line can be shortened, the more it is seen.

    Parameters
    ----------
    ax : matplotlib axes
        Where.
    start, end : array, shape (n, 2)
        Ends of the lines.
    improvement : array, shape (n,)
        Relative improvements, in the unit of the label.
    label : str
        Of the colour bar.

    Returns
    -------
    LineCollection
        The lines, the most improved on top.
    """
    start, end, improvement = np.asarray(start), np.asarray(end), np.asarray(improvement)
    order = np.argsort(improvement)
    share = improvement[order] / max(float(improvement.max()), 1e-12)
    # Brightness, opacity and width say the same: on paper and on a screen the dullest lines are the faintest.
    colours = mpl.colors.LinearSegmentedColormap.from_list("improvement", ["0.55", "#B8860B", "#FFD700", "#FFFFCC"])
    segments = np.stack([start[order], end[order]], axis=1)
    lines = LineCollection(list(segments), cmap=colours, linewidths=0.6 + 1.6 * share, alpha=0.35 + 0.65 * share)
    lines.set_array(improvement[order])
    lines.set_clim(0, float(improvement.max()))
    ax.add_collection(lines)
    ax.figure.colorbar(mpl.cm.ScalarMappable(lines.norm, colours), ax=ax, label=label, shrink=0.85)
    return lines
