"""The methods of the solver. A new one is a subclass of :class:`lgi.solver.methods.base.Method` and a line here."""

from lgi.solver.methods.base import Method
from lgi.solver.methods.gauss_newton import GaussNewton
from lgi.solver.methods.gradient import GradientDescent
from lgi.solver.methods.lbfgs import LBFGS
from lgi.solver.methods.newton_cg import NewtonCG

METHODS: dict[str, type[Method]] = {
    "gauss-newton": GaussNewton,
    "newton-cg": NewtonCG,
    "lbfgs": LBFGS,
    "gradient": GradientDescent,
}
"""By the name that ``SolverSettings.method`` has."""

# Dimension above which the dense matrices of Gauss-Newton cost more than the iterations of L-BFGS: in forward passes of
# MLPs (tests/benchmarks/walls.py), 26,600 against 39,100 for a pair in 96 dimensions, 69,900 against 44,000 in 128.
_LARGEST_DENSE = 100


def chosen(name: str, d: int) -> str:
    """Name of the method for curves in d dimensions, where ``"auto"`` is the cheapest that reaches a certificate."""
    if name != "auto":
        return name
    return "gauss-newton" if d <= _LARGEST_DENSE else "lbfgs"
