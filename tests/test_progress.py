"""Progress bars: who sees one, and that hidden ones are none."""

import io
import threading

import pytest
import torch
from torch import nn
from tqdm import tqdm

import lgi
from lgi.improvement import worst_case_improvement
from lgi.inversion import invert
from lgi.metric import metric_fields
from lgi.progress import progress_bar

METRIC = lgi.PullbackMetric(nn.Linear(2, 3), latent_dim=2)
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


def test_without_standard_error(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    with progress_bar(2, desc="nothing") as advance:
        advance(2)


def test_units_add_up(capsys):
    with progress_bar(10, desc="half", unit="steps", show=True) as advance:
        advance(2)
        advance(3)
    assert "5/10" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMPUTATIONS)
def test_without_a_bar_nothing_waits_for_other_bars(tmp_path, name):
    # As if a forked process had been killed while it made a bar.
    with tqdm.get_lock():
        thread = threading.Thread(target=COMPUTATIONS[name], args=(False, tmp_path), daemon=True)
        thread.start()
        thread.join(timeout=60)
        waits = thread.is_alive()
    thread.join()
    assert not waits
