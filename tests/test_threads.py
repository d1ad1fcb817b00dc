"""What `make` and the commands of lgi start takes one thread, unless the user has said something else."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks.busy import busy
from series import Series

ROOT = Path(__file__).resolve().parents[1]
OWN = [({}, "1"), ({"OMP_NUM_THREADS": "2"}, "2")]
ALGORITHM1 = [sys.executable, "-m", "lgi.algorithm1", "--model", "vae1"]


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
    assert run(["make", "--eval=shown:; @echo $$OMP_NUM_THREADS", "shown"], own) == n


@pytest.mark.slow
def test_a_kernel_of_reproduce(tmp_path, monkeypatch):
    series = Series(tmp_path, monkeypatch)
    series.write("01_a", "import torch\nassert torch.get_num_threads() == 1")
    run([sys.executable, str(ROOT / "notebooks" / "reproduce.py"), "--notebooks", str(series.folder)], {})


@pytest.mark.alone
def test_busy_processes_beside_slow_a_command_down_no_more_than_five_times_as_one_thread(tmp_path):
    """Two threads that spin are tens of times slower than one here."""
    seconds = []
    with busy(os.cpu_count() or 1):
        for own, out in (({"OMP_NUM_THREADS": "1"}, "one"), ({}, "own")):
            before = time.monotonic()
            run([*ALGORITHM1, "--samples", "20", "--out", str(tmp_path / out)], own)
            seconds.append(time.monotonic() - before)
    assert seconds[1] < 5 * seconds[0]
