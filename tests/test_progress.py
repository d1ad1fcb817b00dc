"""Progress bars: who sees one, and that hidden ones are none."""

import io
import os
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn
from tqdm import tqdm

import lgi
from lgi import studies
from lgi.algorithm1 import worst_case_improvement
from lgi.inversion import invert
from lgi.metric import metric_fields
from lgi.progress import progress_bar
from lgi.solver import shortening

METRIC = lgi.PullbackMetric(lambda z: z @ torch.eye(2, 3), latent_dim=2)
START, END = torch.zeros(4, 2), torch.ones(4, 2)
COMPUTATIONS = {
    "improvement": lambda show, _: worst_case_improvement(METRIC, 4, progress=show),
    "improvement, kept": lambda show, folder: worst_case_improvement(METRIC, 4, progress=show, folder=folder),
    "shorten": lambda show, _: lgi.shorten(METRIC, START, END, lgi.SolverSettings(progress=show)),
    "metric": lambda show, _: metric_fields(METRIC, [torch.linspace(0, 1, 2)] * 2, progress=show),
    "invert": lambda show, _: invert(nn.Linear(2, 3), torch.ones(4, 3), latent_dim=2, progress=show),
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("terminal", "show", "seen"),
    [(True, None, True), (True, True, True), (True, False, False), (False, None, False), (False, True, True),
     (False, False, False)],
)  # fmt: skip
@pytest.mark.parametrize("name", COMPUTATIONS)
def test_a_bar_is_seen_in_a_terminal_or_where_it_is_asked_for(monkeypatch, tmp_path, name, terminal, show, seen):
    output = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", output)
    COMPUTATIONS[name](show, tmp_path)
    last = output.getvalue().rstrip().rpartition("\r")[2]
    assert (last.startswith(f"{name.partition(',')[0]}: 100%") and "4/4" in last) is seen
    assert bool(last) is seen


@pytest.mark.parametrize(
    "output", [None, SimpleNamespace(write=print, flush=print)], ids=["none", "one that only writes"]
)
def test_other_standard_errors(monkeypatch, capsys, output):
    monkeypatch.setattr("sys.stderr", output)
    with progress_bar(2, desc="nothing") as advance:
        advance(2)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("value", ["0", "1"])
def test_who_asks_for_a_bar_sees_it_whatever_the_environment_says(value):
    # tqdm reads its environment when it is imported.
    script = (
        "from lgi.progress import progress_bar\nwith progress_bar(2, desc='some', show=True) as advance: advance(2)"
    )
    environment = os.environ | {"TQDM_DISABLE": value}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "some: 100%" in done.stderr


@pytest.mark.parametrize("folder", [None, "study"])
def test_a_study_that_fails_ends_its_bar(tmp_path, capsys, folder):
    settings = {"n_samples": 4, "chunk_size": 2, "seed": 0, "latent_dim": 2, "fingerprint": {}}
    # The exception is kept, and with it all that is alive where it was raised.
    with pytest.raises(ZeroDivisionError) as raised:
        studies.run(settings, lambda number: 1 // 0, folder and tmp_path / folder, progress=True)
    assert capsys.readouterr().err.endswith("\n")
    assert raised.tb is not None


@pytest.mark.parametrize("starts", ["line", "multi", "graph"])
def test_the_bar_of_shorten_moves_as_curves_finish(monkeypatch, starts):
    told = []

    @contextmanager
    def bar(total, **_):
        told.append(total)
        yield told.append

    monkeypatch.setattr(shortening, "progress_bar", bar)
    generator = torch.Generator().manual_seed(0)
    start, end = torch.randn(2, 30, 2, generator=generator, dtype=torch.float64)
    end[:3] = start[:3]
    metric = lgi.PullbackMetric(lambda z: torch.cat([z, (2 * z).sin()], dim=1), latent_dim=2)
    points = torch.randn(50, 2, generator=generator, dtype=torch.float64) if starts == "graph" else None
    lgi.shorten(metric, start, end, lgi.SolverSettings(starts=starts, n_starts=3), points=points)
    total, coincident, *steps = told
    per_pair = {"line": 1, "multi": 3, "graph": 2}[starts]
    assert (total, coincident) == (30 * per_pair, 3 * per_pair)
    assert sum(steps) == 27 * per_pair
    assert len([step for step in steps if step]) > per_pair
    assert min(steps) >= 0


@pytest.fixture
def held_lock(monkeypatch):
    """The lock of all bars, when a forked process was killed while it made one; who would wait for it fails."""
    # The first bar of a process starts a thread that looks after all bars, and takes their lock now and then.
    if tqdm.monitor is not None:
        tqdm.monitor.exit()
        tqdm.monitor = None
    lock = MagicMock()
    lock.__enter__.side_effect = lock.acquire.side_effect = AssertionError("waits for another bar")
    monkeypatch.setattr(tqdm, "_lock", lock, raising=False)  # what tqdm.get_lock returns


@pytest.mark.parametrize("name", COMPUTATIONS)
def test_without_a_bar_nothing_waits_for_other_bars(held_lock, tmp_path, name):
    COMPUTATIONS[name](False, tmp_path)
