"""What is drawn, checked through the artists: no picture comparison."""

from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from lgi import plots


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def grid(n=41):
    x = np.linspace(-2, 2, n)
    return x, x, np.stack(np.meshgrid(x, x), axis=-1)  # [i, j] is (x[j], y[i])


def with_random_signs(direction):
    return direction * np.random.default_rng(0).choice([-1.0, 1.0], size=direction.shape[:2])[..., None]


def test_style_is_found_and_sets_what_notebooks_rely_on():
    with mpl.rc_context():
        plots.use_style()
        assert mpl.rcParams["image.origin"] == "lower"
        assert mpl.rcParams["figure.constrained_layout.use"]


def test_streamlines_of_circles_stay_on_circles_whatever_the_signs(ax):
    x, y, points = grid()
    radius = np.linalg.norm(points, axis=-1, keepdims=True)
    circles = np.concatenate([-points[..., 1:], points[..., :1]], axis=-1) / np.maximum(radius, 1e-9)
    lines = plots.axial_streamlines(ax, x, y, with_random_signs(circles)).get_segments()
    long = [line for line in lines if 0.7 < np.linalg.norm(line[0]) < 1.8]
    assert len(long) > 5
    for line in long:
        assert np.ptp(np.linalg.norm(line, axis=1)) < 0.05


def test_streamlines_go_around_a_half_turn_singularity(ax):
    """theta = phi / 2 has no continuous sign anywhere around the origin: lines must still cross every ray smoothly."""
    x, y, points = grid(60)
    phi = np.arctan2(points[..., 1], points[..., 0])
    direction = np.stack([np.cos(phi / 2), np.sin(phi / 2)], axis=-1)
    lines = plots.axial_streamlines(ax, x, y, direction, separation=0.2).get_segments()
    crossing = 0
    for line in lines:
        steps = np.diff(line, axis=0)
        turn = np.einsum("ij,ij->i", steps[1:], steps[:-1]) / (0.2 / 5) ** 2
        assert (turn > 0.5).all(), "a line turns back on itself"
        crossing += ((line[1:, 1] * line[:-1, 1] < 0) & (line[1:, 0] < -0.3)).any()
    assert crossing >= 3, "no line crosses the ray where the sign of the given vectors jumps"


def test_streamlines_are_evenly_spaced(ax):
    x, y, points = grid()
    direction = np.broadcast_to(np.array([0.6, 0.8]), (*points.shape[:2], 2))
    lines = plots.axial_streamlines(ax, x, y, direction, separation=0.3).get_segments()
    across = np.sort([line[len(line) // 2] @ [-0.8, 0.6] for line in lines])
    assert np.diff(across).min() > 0.14
    assert len(lines) > 8


def test_streamlines_refuse_another_layout(ax):
    with pytest.raises(ValueError, match=r"\(3, 4, 2\)"):
        plots.axial_streamlines(ax, np.arange(4.0), np.arange(3.0), np.zeros((4, 3, 2)))


def test_digits_keep_their_colours(ax):
    z, label = np.random.default_rng(0).normal(size=(40, 2)), np.repeat([2, 7], 20)
    dots = plots.latent_codes(ax, z, label)
    assert [d.get_label() for d in dots] == ["2", "7"]
    for artist, digit in zip(dots, (2, 7), strict=True):
        np.testing.assert_allclose(artist.get_facecolor()[0, :3], mpl.colors.to_rgb(plots.DIGIT_COLOURS[digit]))
    assert ax.get_aspect() == 1.0


def test_image_plane_puts_the_first_row_below(ax):
    images = np.zeros((2, 3, 4, 4))
    images[0, 2] = 1.0  # lowest z_2, largest z_1
    drawn = plots.image_plane(ax, images, (-1, 1, -1, 1)).get_array()
    assert drawn.shape == (8, 12)
    assert drawn[4:, 8:].min() == 1.0
    assert drawn.sum() == 16


def test_field_draws_values_at_their_coordinates(ax):
    values = np.arange(6.0).reshape(2, 3)
    mesh = plots.field(ax, [0, 1, 2], [0, 1], values, "value")
    np.testing.assert_array_equal(mesh.get_array(), values)
    assert ax.figure.axes[1].get_ylabel() == "value"


def test_indicatrices_are_steps_of_equal_length(ax):
    M = np.array([[[4.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 9.0]]])
    z = np.array([[0.0, 0.0], [3.0, -1.0]])
    plots.indicatrices(ax, z, M, scale=0.2)
    for line, point, tensor in zip(ax.lines, z, M, strict=True):
        step = line.get_xydata() - point
        np.testing.assert_allclose(np.einsum("ni,ij,nj->n", step, tensor, step), 0.04)


def test_axial_histogram_counts_an_axis_in_both_directions():
    figure, ax = plt.subplots(subplot_kw={"projection": "polar"})
    plots.axial_histogram(ax, [0.1, 0.1 + np.pi, 1.0], bins=8)
    areas = np.array([bar.get_height() ** 2 for bar in ax.patches])
    np.testing.assert_allclose(areas, [2 / 3, 1 / 3, 0, 0] * 2)
    plt.close(figure)


def test_numbers_of_close_points_do_not_cover_each_other():
    figure, axes = plt.subplots(1, 2, figsize=(9, 5), layout="constrained")
    rng = np.random.default_rng(0)
    starts = [0.4 * rng.standard_normal((20, 2)) for _ in axes]  # in the middle of axes that are 10 wide
    for ax in axes:
        ax.set(xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
    colours = plt.colormaps["hsv"](np.linspace(0, 0.9, 20))[:, :3]
    plots.pair_legend(axes, starts, colours)
    figure.canvas.draw()
    for ax, z in zip(axes, starts, strict=True):
        assert [text.get_text() for text in ax.texts] == [str(i) for i in range(1, 21)]
        np.testing.assert_allclose([text.xy for text in ax.texts], z)
        boxes = [text.get_bbox_patch().get_window_extent() for text in ax.texts]
        assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        np.testing.assert_allclose([text.get_bbox_patch().get_facecolor()[:3] for text in ax.texts], colours)
    (legend,) = figure.legends
    # Ten in a row: matplotlib fills columns first, so that rows read 1 to 10 and 11 to 20.
    assert [text.get_text() for text in legend.get_texts()][:4] == ["1", "11", "2", "12"]
    plt.close(figure)


def test_the_most_improved_lines_are_the_most_visible(ax):
    improvement = [5.0, 20.0, 0.0]
    lines = plots.improved_lines(ax, [[0, 0], [1, 1], [2, 2]], [[0, 1], [1, 2], [2, 3]], improvement, "in %")
    assert lines.get_array().tolist() == [0, 5, 20]
    assert lines.get_segments()[-1].tolist() == [[1, 1], [1, 2]]
    for visible in (lines.get_linewidths(), lines.get_alpha()):
        assert list(visible) == sorted(visible)
        assert visible[-1] > 1.5 * visible[0]
    assert ax.figure.axes[1].get_ylabel() == "in %"
