"""The package's structure: who imports whom, what importing costs, what is exported."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lgi

ROOT = Path(__file__).resolve().parents[1]

# Design section 2: an import goes only to a lower rank.
RANKS = {
    "artifacts": 0,
    "progress": 0,
    "spline": 1,
    "metric": 1,
    "models": 1,
    "features": 1,
    "study": 1,
    "solver": 2,
    "datasets": 2,
    "zoo": 2,
    "inversion": 3,
    "improvement": 3,
    "training": 4,
    "plots": 5,
}

# Design section 3, by the module that defines them. A name is required as soon as its module exists.
CONTRACT = {
    "metric": ["PullbackMetric", "curve_length", "curve_energy"],
    "spline": ["CubicBSpline"],
    "zoo": ["load_model", "load_codes"],
    "solver": ["shorten", "SolverSettings"],
    "improvement": ["worst_case_improvement", "compare_models"],
    "inversion": ["invert"],
    "study": ["load_study", "merge_studies"],
}

HEAVY = {"torchvision", "sklearn", "matplotlib", "seaborn", "scipy", "pandas", "IPython", "papermill"}


def imported_modules(source):
    """Names of the modules of lgi that a source imports, anywhere in it; '' stands for the package itself."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name.partition(".")[2].partition(".")[0] for name in names if name.partition(".")[0] == "lgi"}
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.add("a relative import")
        elif isinstance(node, ast.ImportFrom) and node.module == "lgi":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module.startswith("lgi."):
            found.add(node.module.split(".")[1])
    return found


def forbidden_imports(module, source):
    """Imports of `module` that do not go to a lower rank; plots may import nothing."""
    limit = 0 if module == "plots" else RANKS[module]
    return sorted(name for name in imported_modules(source) if RANKS.get(name, 99) >= limit)


# Modules and folders; those of a folder are not told apart here.
SOURCES = {path: path.relative_to(ROOT / "lgi").parts[0].removesuffix(".py") for path in (ROOT / "lgi").rglob("*.py")}
MODULES = sorted(set(SOURCES.values()) - {"__init__"})


def test_every_module_has_a_rank():
    assert set(MODULES) <= set(RANKS)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_to_lower_ranks(module):
    for path in (path for path, own in SOURCES.items() if own == module):
        assert set(forbidden_imports(module, path.read_text(encoding="utf-8"))) <= {module}


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("metric", "from lgi import spline", ["spline"]),
        ("metric", "from lgi import artifacts, solver as s", ["solver"]),
        ("metric", "def f():\n    import lgi.zoo", ["zoo"]),
        ("zoo", "from lgi.training import fit", ["training"]),
        ("zoo", "from lgi import PullbackMetric", ["PullbackMetric"]),
        ("zoo", "import lgi", [""]),
        ("zoo", "from . import models", ["a relative import"]),
        ("plots", "from lgi import artifacts", ["artifacts"]),
        ("zoo", "from lgi import artifacts, models\nimport torch\nfrom lgi.metric import PullbackMetric", []),
    ],
)
def test_a_forbidden_import_is_found(module, source, found):
    assert forbidden_imports(module, source) == found


IMPORT = """\
import sys
def no_network(event, arguments):
    assert not event.startswith(("socket.connect", "socket.getaddrinfo", "socket.bind")), event
sys.addaudithook(no_network)
import lgi
print(*sorted({name.partition(".")[0] for name in sys.modules}))"""


def test_import_is_light_and_opens_no_connection(tmp_path):
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    loaded = set(done.stdout.split())
    assert "torch" in loaded
    assert loaded & HEAVY == set()


def test_contract_is_exported():
    expected = {name for module, names in CONTRACT.items() if module in MODULES for name in names}
    assert expected <= set(lgi.__all__)
    for name in lgi.__all__:
        assert getattr(lgi, name).__doc__, name
