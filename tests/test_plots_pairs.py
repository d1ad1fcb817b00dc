"""Numbers of pairs on several axes, none on top of another; lines that are seen as much as they improve."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np

from lgi import plots


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


def test_the_most_improved_lines_are_the_most_visible():
    improvement = [5.0, 20.0, 0.0]
    figure, ax = plt.subplots()
    lines = plots.improved_lines(ax, [[0, 0], [1, 1], [2, 2]], [[0, 1], [1, 2], [2, 3]], improvement, "in %")
    assert lines.get_array().tolist() == [0, 5, 20]
    assert lines.get_segments()[-1].tolist() == [[1, 1], [1, 2]]
    for visible in (lines.get_linewidths(), lines.get_alpha()):
        assert list(visible) == sorted(visible)
        assert visible[-1] > 1.5 * visible[0]
    assert figure.axes[1].get_ylabel() == "in %"
    plt.close(figure)
