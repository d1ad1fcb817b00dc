"""Threads of torch that wait sleep, unless the user has said something else, and a busy machine does not stop them."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from series import Series

ROOT = Path(__file__).resolve().parents[1]
VARIABLES = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"}


def environment(**variables):
    """The environment of a user who has set these, and OpenMP told to print what it has read."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES} | variables


@pytest.mark.parametrize(
    ("command", "own", "policy"),
    [
        (["-c", "import lgi"], {}, "PASSIVE"),
        (["-m", "lgi.algorithm1", "--help"], {}, "PASSIVE"),
        (["-c", "import lgi"], {"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
    ],
)
def test_openmp_is_told_before_it_is_loaded(command, own, policy):
    shown = environment(OMP_DISPLAY_ENV="TRUE", **own)
    done = subprocess.run([sys.executable, *command], env=shown, capture_output=True, text=True, check=True)
    if "OMP_WAIT_POLICY" not in done.stderr:
        pytest.skip("this OpenMP does not show its environment")
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr


@pytest.mark.slow
def test_a_kernel_of_reproduce_is_told(tmp_path, monkeypatch):
    series = Series(tmp_path, monkeypatch)
    # Before any import: notebooks import torch before lgi.
    series.write("01_a", "import os\nassert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'")
    command = [sys.executable, str(ROOT / "notebooks" / "reproduce.py"), "--notebooks", str(series.folder)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_make_tells_the_kernels_that_it_starts_by_other_ways():
    (ROOT / "Makefile").read_text(encoding="utf-8").index("\nexport OMP_WAIT_POLICY ?= PASSIVE\n")


@pytest.mark.alone
def test_busy_processes_beside_slow_it_down_no_more_than_five_times_as_one_thread():
    """Two threads that spin are tens of times slower than one here, and two that sleep about as fast."""
    spec = importlib.util.spec_from_file_location("busy", ROOT / "tests" / "benchmarks" / "busy.py")
    busy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(busy)
    with busy.busy(2 * (os.cpu_count() or 1)):
        one, own = (busy.seconds(busy.SETTINGS[name], 20, 600) for name in ("one thread", "as started"))
    assert one is not None
    assert own is not None
    assert own[0] < 5 * one[0]
