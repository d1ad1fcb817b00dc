"""Settings of the search for shorter curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from lgi.checks import one_of, whole
from lgi.solver.methods import METHODS

Starts = Literal["line", "graph", "multi"]


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """How shorter curves are looked for.

    Attributes
    ----------
    method : {"auto", "gauss-newton", "newton-cg", "gradient"}
        ``"gauss-newton"`` needs ``d`` forward derivatives a point now and then, and matrices of all control points;
        ``"newton-cg"`` takes Newton steps by products with second derivatives, and ``d`` forward derivatives at one
        point of a curve, for many dimensions; ``"auto"`` takes the first up to d = 32 and the second above.
        ``"gradient"`` is gradient descent on the energy from two free control points, with one more on each plateau,
        as in the paper, but for this: a plateau is one of the energy, which is what it lowers, and not of the length
        (relatively less than ``length_tolerance`` in five iterations); the size of the steps is not given, but found
        for each curve, longer after steps that keep their promise and shorter after others, and a step that raises the
        energy is taken back; the energy is that of spectral elements (of degree 6, whatever ``nodes``); and the line is
        returned where no shorter curve was found.
    n_control : int
        Largest number of control points. The paper's "maximal node count" has no number. 20 bring smooth closed forms
        to 1e-6; metrics that the standard deviation rules need up to 35 (tests/benchmarks/walls.py).
    n_iterations : int
        Largest number of iterations of a curve, over all refinements.
    tolerance : float
        A curve has converged when its relative projected gradient (:class:`ShortenResult`) is at most this: then its
        energy is about ``tolerance**2``, relatively, above the smallest with so many control points.
    length_tolerance : float
        Control points are added as long as they promise to shorten the curve relatively by more than this.
    nodes : int
        Number of intervals between the points of a curve at which the search starts to evaluate the metric; more are
        used where the curve needs them. Results are measured at 41 points or more, and at least half as many again as
        were searched on. Where that finds a residual a little above the tolerance, up to three more steps are taken
        there; ``length_error`` compares with the grid of the search either way.
    starts : {"line", "graph", "multi"}
        Where the search starts. ``"line"``: the straight line (the paper's). ``"multi"``: the line and ``n_starts - 1``
        bent curves. ``"graph"``: the line and the shortest path over a graph of given points.
    n_starts : int
        Number of initial curves of ``"multi"``.
    n_neighbours : int
        Neighbours that each point of the graph is joined to.
    chunk_size : int, optional
        Curves worked on at a time; by default as many as fit a bounded memory. On a CPU, results do not depend on it.
    seed : int
        Of the bent curves. Those of pair ``i`` depend on (seed, i) alone.
    progress : bool, optional
        Whether to show a progress bar; by default if the output is a terminal.
    """

    method: str = "auto"
    n_control: int = 20
    n_iterations: int = 100
    tolerance: float = 1e-3
    length_tolerance: float = 1e-3
    nodes: int = 8
    starts: Starts = "line"
    n_starts: int = 4
    n_neighbours: int = 10
    chunk_size: int | None = None
    seed: int = 0
    progress: bool | None = None

    def __post_init__(self) -> None:
        one_of(("auto", *METHODS), method=self.method)
        one_of(get_args(Starts), starts=self.starts)
        whole(4, n_control=self.n_control, nodes=self.nodes)
        whole(1, n_starts=self.n_starts, n_neighbours=self.n_neighbours, chunk_size=self.chunk_size)
        whole(0, n_iterations=self.n_iterations)
        if not (self.tolerance > 0 and self.length_tolerance > 0):
            raise ValueError(f"expected positive tolerances, got {self.tolerance} and {self.length_tolerance}")
