"""What conftest.py promises: a file that leaves something behind fails, and every test draws the same."""

import os
import re
import shutil
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
# They share one run of pytest, over a file for each leak.
pytest_plugins = ["pytester"]
pytestmark = pytest.mark.slow

BEGIN = """\
import colorsys, io, locale, os, random, sched, signal, sys, types, warnings
import matplotlib as mpl, matplotlib.pyplot as plt, numpy as np, pytest, torch
"""
LEAKING = """
@pytest.fixture(scope="module")
def leak():
    {}

def test_{}(leak):
    pass
"""
# What such a file does, and what it is then said to leave behind; nothing that disturbs the files after it.
LEAKS = {
    "backend": ("plt.switch_backend('svg')", "matplotlib: backend"),
    "rcparams": ("mpl.rcParams['lines.linewidth'] = 7", "matplotlib: lines.linewidth"),
    "figure": ("plt.figure()", "matplotlib: open figures"),
    "new_variable": ("os.environ['LGI_NEW'] = '1'", "os.environ: LGI_NEW"),
    "changed_variable": ("os.environ['LGI_RUNS'] = 'elsewhere'", "os.environ: LGI_RUNS"),
    "stand_in": ("sys.modules['stand_in'] = types.ModuleType('stand_in')", "sys.modules: stand_in"),
    "stand_in_for_a_part": ("sys.modules['lgi.x'] = types.ModuleType('x')", "sys.modules: lgi.x"),
    "replaced_module": ("sys.modules['sched'] = types.ModuleType('sched')", "sys.modules: sched"),
    "removed_module": ("del sys.modules['colorsys']", "sys.modules: colorsys"),
    "path": ("sys.path.append('/nowhere')", "sys.path"),
    "threads": ("torch.set_num_threads(2)", "torch: threads"),
    "dtype": ("torch.set_default_dtype(torch.float64)", "torch: default dtype"),
    "device": ("torch.set_default_device('meta')", "torch: default device"),
    "gradients": ("torch.set_grad_enabled(False)", "torch: gradients"),
    "deterministic": ("torch.use_deterministic_algorithms(True)", "torch: deterministic algorithms"),
    "products": ("torch.backends.cuda.matmul.allow_tf32 = True", "torch: TF32 in products"),
    "convolutions": ("torch.backends.cudnn.allow_tf32 = False", "torch: TF32 in convolutions"),
    "directory": ("os.chdir('/')", "current directory"),
    "signal": ("signal.signal(signal.SIGUSR1, signal.SIG_IGN)", "signal: SIGUSR1"),
    "umask": ("os.umask(os.umask(0) ^ 0o007)", "umask"),
    "locale": ("locale.setlocale(locale.LC_CTYPE, 'C')", "locale"),
    # Tests may draw from these, as they start anew for each; what is set up for a whole file must not.
    "random": ("random.random()", "random state of random"),
    "numpy": ("np.random.rand()", "random state of numpy"),
    "torch": ("torch.rand(1, device='cpu')", "random state of torch"),
}
CLEAN = """
def test_what_is_put_back(monkeypatch, tmp_path):
    import tabnanny
    monkeypatch.setenv("LGI_RUNS", "elsewhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "stand_in", types.ModuleType("stand_in"))
    with mpl.rc_context({"lines.linewidth": 7}):
        plt.close(plt.figure())

@pytest.mark.parametrize("time", range(2))
def test_what_pytest_puts_back(time):
    assert not isinstance(sys.stdout, io.StringIO)
    sys.stdout = io.StringIO()
    with pytest.raises(UserWarning):
        warnings.warn("as in any other test")
    warnings.simplefilter("ignore")

drawn = set()

@pytest.mark.parametrize("time", range(3))
def test_every_test_draws_the_same(time):
    drawn.add((random.random(), np.random.rand(), torch.rand(1, device="cpu").item()))
    assert len(drawn) == 1
"""


def test_what_a_file_leaves_behind_is_named(pytester, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in [name for name in os.environ if name.startswith(("LC_ALL", "PYTEST_"))]:
        monkeypatch.delenv(name)
    shutil.copy(TESTS / "conftest.py", pytester.path)
    files = {f"test_{name}": BEGIN + LEAKING.format(line, name) for name, (line, _) in LEAKS.items()}
    files |= {"test_at_import": BEGIN + "torch.set_num_threads(3)\n\ndef test_that_passes(): pass\n"}
    pytester.makepyfile(**files, test_a_clean=BEGIN + CLEAN, test_z_clean=BEGIN + CLEAN)
    options = ("-c", TESTS.parent / "pyproject.toml", "--rootdir", pytester.path, "--continue-on-collection-errors")
    result = pytester.runpytest_subprocess(*options, "-p", "no:cacheprovider", pytester.path)
    result.assert_outcomes(passed=len(LEAKS) + 12, errors=len(LEAKS) + 1)
    said = re.findall(
        r"_ ERROR (?:at teardown of|collecting) (\w+)\W.*?\n(.*?)(?=\n_+ ERROR|\n=+ )", str(result.stdout), re.DOTALL
    )
    errors = dict(said)
    for name, (_, expected) in LEAKS.items():
        (line,) = [line.strip() for line in errors[f"test_{name}"].splitlines() if " -> " in line]
        assert line.startswith(f"{expected}: ")
        assert "Put it back" in errors[f"test_{name}"]
    assert "torch: threads: 1 -> 3" in errors["test_at_import"]
    assert len(errors) == len(LEAKS) + 1
