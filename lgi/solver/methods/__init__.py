"""The methods of the solver. A new one is a subclass of :class:`lgi.solver.methods.base.Method` and a line here."""

from lgi.solver.methods.base import Method
from lgi.solver.methods.gauss_newton import GaussNewton
from lgi.solver.methods.gradient import GradientDescent
from lgi.solver.methods.newton_cg import NewtonCG

METHODS: dict[str, type[Method]] = {
    "gauss-newton": GaussNewton,
    "newton-cg": NewtonCG,
    "gradient": GradientDescent,
}
"""By the name that ``SolverSettings.method`` has."""

# Dimension above which the dense matrices of Gauss-Newton cost more than products with them: in forward passes of MLPs,
# 12,500 against 3,900 for a pair in 64 dimensions (tests/benchmarks/walls.py).
_LARGEST_DENSE = 32


def chosen(name: str, d: int) -> str:
    """Name of the method for curves in d dimensions, where ``"auto"`` is the cheapest that reaches a certificate."""
    if name != "auto":
        return name
    return "gauss-newton" if d <= _LARGEST_DENSE else "newton-cg"
