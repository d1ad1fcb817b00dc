"""Shorter curves between latent points, many at once, each with a certificate (section 2.1)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from lgi.metric import Metric, curve_length
from lgi.spline import CubicBSpline, basis, uniform_knots

Method = Literal["gauss-newton", "lbfgs", "gradient"]
Starts = Literal["line", "graph", "multi"]


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """How shorter curves are looked for.

    Attributes
    ----------
    method : {"gauss-newton", "lbfgs", "gradient"}
        ``"gauss-newton"`` needs ``d`` forward derivatives a point now and then, ``"lbfgs"`` none: for large ``d``.
        ``"gradient"`` is the paper's gradient descent.
    n_control : int
        Largest number of control points. The paper's "maximal node count" has no number; 20 bring smooth closed forms
        to 1e-6.
    n_iterations : int
        Largest number of iterations of a curve, over all refinements.
    tolerance : float
        A curve has converged when its relative projected gradient (:class:`ShortenResult`) is at most this: then its
        energy is about ``tolerance**2``, relatively, above the smallest with so many control points.
    length_tolerance : float
        Control points are added as long as they promise to shorten the curve relatively by more than this.
    nodes : int
        Smallest number of points of a curve at which the metric is evaluated while optimising; the results are
        measured on at least four times as many. There are at least ``4`` a span.
    starts : {"line", "graph", "multi"}
        Where the search starts. ``"line"``: the straight line (the paper's). ``"multi"``: the line and ``n_starts - 1``
        bent curves. ``"graph"``: the line and the shortest path over a graph of given points.
    n_starts : int
        Number of initial curves of ``"multi"``.
    n_neighbours : int
        Neighbours that each point of the graph is joined to.
    chunk_size : int, optional
        Curves worked on at a time; by default as many as fit a bounded memory.
    seed : int
        Of the bent curves. Those of pair ``i`` depend on (seed, i) alone.
    progress : bool, optional
        Whether to show a progress bar; by default if the output is a terminal.
    """

    method: Method = "gauss-newton"
    n_control: int = 20
    n_iterations: int = 100
    tolerance: float = 1e-3
    length_tolerance: float = 1e-4
    nodes: int = 12
    starts: Starts = "line"
    n_starts: int = 4
    n_neighbours: int = 10
    chunk_size: int | None = None
    seed: int = 0
    progress: bool | None = None
