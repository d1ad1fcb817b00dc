"""The methods of the solver. A new one is a subclass of :class:`lgi.solver.methods.base.Method` and a line here."""

from lgi.solver.methods.base import Method
from lgi.solver.methods.gauss_newton import GaussNewton
from lgi.solver.methods.gradient import GradientDescent
from lgi.solver.methods.lbfgs import LBFGS

METHODS: dict[str, type[Method]] = {"gauss-newton": GaussNewton, "lbfgs": LBFGS, "gradient": GradientDescent}
"""By the name that ``SolverSettings.method`` has; the first is the default."""
