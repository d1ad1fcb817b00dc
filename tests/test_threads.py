"""What `make` and the commands of lgi start takes one thread, unless the user has said something else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OWN = [({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")]


def run(command, own):
    """Output of a command of a user who has set these variables."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | own
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("own", "n"), OWN)
def test_a_command_and_what_it_starts(own, n):
    """Torch has been loaded before the command is there to say so."""
    shown = "lambda: print(torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])"
    code = f"import os, torch, lgi.progress as p; p.as_command()({shown})()"
    assert run([sys.executable, "-c", code], own).split() == [n, n]


@pytest.mark.parametrize(("own", "n"), OWN)
def test_make(own, n):
    assert run(["make", "--no-print-directory", "--eval=shown:; @echo $$OMP_NUM_THREADS", "shown"], own) == n


@pytest.mark.slow
def test_a_kernel_of_reproduce(series):
    series.write("01_a", "import torch\nassert torch.get_num_threads() == 1")
    run([sys.executable, str(ROOT / "notebooks" / "reproduce.py"), "--notebooks", str(series.folder)], {})


BUSY = """
import os, sys, time
import torch
import lgi
from lgi.progress import as_command
sys.path.insert(0, "tests")
from benchmarks.busy import busy

metric = lgi.PullbackMetric(lgi.load_model("vae1").decoder)
lgi.worst_case_improvement(metric, 4, progress=False)

@as_command()
def command():
    with busy(2 * os.cpu_count()):
        for n in (torch.get_num_threads(), 1):
            torch.set_num_threads(n)
            before = time.monotonic()
            lgi.worst_case_improvement(metric, 20, progress=False)
            print(time.monotonic() - before)

command()"""


@pytest.mark.alone
def test_busy_processes_beside_slow_a_command_down_no_more_than_five_times_as_one_thread():
    """Two threads that spin are many times slower than one here."""
    own, one = map(float, run([sys.executable, "-c", BUSY], {}).split())
    assert own < 5 * one
