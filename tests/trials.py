"""Kills, full disks and races, made for real: ``python tests/trials.py [--only NAME] [-n N] [--seed S]``.

A trial does something to files or processes, each time something else, and asserts what must happen: nothing that was
finished is lost, nothing foreign is taken for ours, and the same call ends as if nothing had been. The end is a table
of how many were tried; what fails ends the trial, with the number that repeats it. test_robustness.py makes a few.
"""

# ruff: noqa: B023 - functions made in loops are called at once, and this is no file for pytest.

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import nbformat
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
if (notebooks := str(HERE.parent / "notebooks")) not in sys.path:
    sys.path.insert(0, notebooks)

import reproduce  # noqa: E402

from lgi import PullbackMetric, SolverSettings, algorithm1, artifacts, recipes, worst_case_improvement  # noqa: E402
from lgi.models import Architecture  # noqa: E402
from lgi.studies import UncertifiedWarning, load_study  # noqa: E402
from lgi.training import TrainingSettings  # noqa: E402

CHUNKS = "lgi_study_chunks"


class NotAllowed(Exception):  # noqa: N818
    """This machine does not let the trial be made."""


# --- what is run -----------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    latent_dim = 2

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 2, 12, dtype=torch.float64).view(6, 2).cos(), requires_grad=False)

    def forward(self, z):
        return torch.cat([z.sin(), (z @ self.weight.T).cos(), z.square() / 2], dim=1)


def study(folder):
    options = {"settings": SolverSettings(n_control=4, n_iterations=2), "chunk_size": 8, "folder": folder}
    return worst_case_improvement(PullbackMetric(Generator()), 32, progress=False, **options)


def samples_in(folder):
    """Bytes of the samples in each file, without the headers, in which dates and seconds are."""
    found = {path.name: path.read_bytes() for path in (folder / CHUNKS).glob("*.safetensors")}
    return {name: content[8 + int.from_bytes(content[:8], "little") :] for name, content in found.items()}


def temporary_files(folder):
    return [path for path in folder.rglob(".*") if path.is_file() and path.name != ".lock"]


def compute(folder):
    """A study as a program: its exit status."""
    try:
        study(folder)
    except artifacts.ArtifactError as error:
        print(error)
        return 2
    return 0


def command(folder):
    arguments = ["--model", "vae2", "--samples", "60", "--chunk-size", "10", "--n-control", "5", "--out", str(folder)]
    return algorithm1.main(arguments)


SECONDS = "import time; time.sleep(0.2)"
# Without lgi, whose import takes most of the time. What it writes, the trials of studies are about.
WRITES = """\
import os, pathlib
for name, text in (("results/NAME.json", '{"headline": "some"}'), ("figures/NAME.png", "drawn" * 2000)):
    path = pathlib.Path(os.environ["LGI_RUNS"], run, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    length = path.write_text(text)"""


def write_series(folder):
    """Write two small notebooks, and run them once."""
    (folder / "notebooks").mkdir(parents=True)
    for name in ("01_a", "02_b"):
        sources = ['seed: int = 0\nrun: str = "default"', SECONDS, WRITES.replace("NAME", name), SECONDS]
        cells = [nbformat.v4.new_markdown_cell(f"# {name}"), *map(nbformat.v4.new_code_cell, sources)]
        cells[1].metadata["tags"] = ["parameters"]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": reproduce.KERNEL})
        nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")
    assert end(start(lambda: series(folder))) == 0


def series(folder):
    os.environ["LGI_RUNS"] = str(folder / "runs")
    return reproduce.main(["--notebooks", str(folder / "notebooks")])


def finished(folder):
    """Results, executed notebooks and figures of a series, and the summary, each of which is whole."""
    run = folder / "runs" / "default"
    found = [*run.glob("*.ipynb"), *run.glob("results/*"), *run.glob("figures/*"), run / "summary.json"]
    for path in found:
        assert path.stat().st_size
        if path.suffix in (".json", ".ipynb"):
            json.loads(path.read_bytes())
    return sorted(path.relative_to(run).as_posix() for path in found)


RECIPE = recipes.Recipe(
    dataset="optdigits",
    digits=(2, 7),
    architecture=Architecture(channels=(2, 4), hidden=8, normalisation="batch", activation="silu"),
    training=TrainingSettings(epochs=6, batch_size=64, n_centres=4, n_rbf_steps=5),
)


def training(folder):
    """Train a small model by the command; its weights are then in `folder`."""
    recipes.RECIPES["vae1"] = RECIPE
    artifacts.data_folder = lambda: folder
    os.environ["LGI_CACHE"], sys.argv = str(folder / "cache"), ["recipes", "vae1"]
    recipes.main()
    return 0


def weights(folder):
    content = (folder / "models" / "vae1.safetensors").read_bytes()
    return content[8 + int.from_bytes(content[:8], "little") :]


@dataclass(frozen=True)
class Program:
    """What is disturbed while it writes into a folder."""

    run: Callable[[Path], int]  # its exit status
    result: Callable[[Path], object]  # what it has to leave in the end, whatever came between
    prepare: Callable[[Path], object] = Path.mkdir  # makes the folder, with what is there before
    survives: bool = False  # whether the result was there before, and stays whatever happens
    n_bytes: int = 15_000  # that it writes, about
    says: Callable[[Path], str] = lambda folder: "interrupted"  # when it is stopped by a signal


def says_how_many(folder):
    return f"interrupted with {len(load_study(folder)) if samples_in(folder) else 0} samples in"


PROGRAMS = {
    "study": Program(compute, samples_in),
    "command": Program(command, samples_in, says=says_how_many),
    "series": Program(series, finished, prepare=write_series, survives=True, n_bytes=30_000),
    "training": Program(training, weights, n_bytes=200_000),
}


# --- processes, kills, disks -----------------------------------------------------------------------------------------


def start(act, errors=None) -> int:
    """Begin to call it in a forked process, whose exit status is what it returns, or asks to exit with."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    status = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        output = os.open(errors or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        status = int(act() or 0)
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        status = 98
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stderr.flush()
        os._exit(status)


def end(child) -> int:
    """Exit status of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_at(event, act):
    """What dies by SIGKILL when it is about to do the n-th thing to a file: to open it for writing, rename, delete."""
    names = re.compile(r"open|os\.(rename|remove|mkdir|rmdir|truncate)|shutil\.(rmtree|copyfile)")

    def act_and_die():
        left = event

        def hook(name, arguments):
            nonlocal left
            if names.fullmatch(name) and (name != "open" or (isinstance(arguments[2], int) and arguments[2] & 3)):
                left -= 1
                if not left:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        return act()

    return act_and_die


def mount(folder, size):
    """Mount a disk of so many bytes, for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_mounts, new_user = 0x00020000, 0x10000000
    if libc.unshare(new_mounts | (new_user if os.geteuid() else 0)):
        raise NotAllowed("no right to mount anything here")
    for command in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]):
        if subprocess.run(["mount", *command], capture_output=True, check=False).returncode:
            raise NotAllowed("no right to mount anything here")


def fill(folder, left):
    """Take all space but `left` bytes."""
    with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
        space = os.statvfs(folder)
        file.write(b"\0" * max(0, space.f_bavail * space.f_frsize - left))


# --- trials: each yields a word for what it has made and survived ----------------------------------------------------


def undisturbed(program, folder):
    """Prepare a folder, and run the program in a copy of it; its result, and how many seconds it takes."""
    program.prepare(folder / "before")
    here = copied(folder, folder / "whole")
    begin = time.monotonic()
    assert end(start(lambda: program.run(here))) == 0
    return program.result(here), time.monotonic() - begin


def copied(folder, here):
    return Path(shutil.copytree(folder / "before", here))


def goes_on(program, here, expected):
    """Assert that nothing was lost, and that the same call ends as if nothing had been."""
    assert not program.survives or program.result(here) == expected
    assert end(start(lambda: program.run(here))) == 0
    assert program.result(here) == expected
    assert temporary_files(here) == []


def killed(program, folder, draw):
    """Killed at each of its writes."""
    expected, _ = undisturbed(program, folder)
    for event in draw.sample(range(1, 100), 99):
        here = copied(folder, folder / f"{event}")
        status = end(start(killed_at(event, lambda: program.run(here))))
        if status == 0:  # it has not so many
            continue
        assert status == -signal.SIGKILL
        goes_on(program, here, expected)
        yield f"at write {event}"


def on_a_full_disk(program, folder, draw):
    """On a disk that is full after any number of bytes: it says so, and leaves no half of a file."""
    expected, _ = undisturbed(program, folder)
    (disk := folder / "disk").mkdir()
    mount(disk, 8 << 20)
    while True:
        here, log, left = copied(folder, disk / "here"), folder / "log", draw.randrange(2 * program.n_bytes)
        fill(disk, left)
        log.write_text("")
        status = end(start(lambda: program.run(here), str(log)))
        assert status == 0 or (status in (1, 2) and "No space left" in log.read_text()), log.read_text()
        assert temporary_files(here) == []
        (disk / "ballast").unlink()
        goes_on(program, here, expected)
        shutil.rmtree(here)
        yield f"with {left} bytes left: {'refused' if status else 'done'}"


def stopped(program, folder, draw):
    """SIGINT, SIGTERM and SIGKILL at any moment: it says how far it is."""
    expected, seconds = undisturbed(program, folder)
    for number in itertools.count():
        here, log = copied(folder, folder / f"{number}"), folder / f"log {number}"
        by = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
        child = start(lambda: program.run(here), str(log))
        time.sleep(draw.uniform(0.05, seconds))
        os.kill(child, by)
        status, said = end(child), log.read_text() if log.exists() else ""
        # 98 and a negative one: before or after what main() does, in the few lines of this script.
        assert status in (0, 128 + by, 98, -by), (status, said)
        assert status != 128 + by or (program.says(here) in said and "Traceback" not in said), said
        goes_on(program, here, expected)
        words = {0: "done before", 98: "before it began", -signal.SIGTERM: "before it began", -signal.SIGKILL: "killed"}
        yield f"{by.name}: {words.get(status, 'interrupted')}"


def two_writers(folder, draw):
    """Two processes that compute one study at the same time: both end well."""
    study(folder / "whole")
    for number in itertools.count():
        here = folder / f"{number}"
        pauses = draw.uniform(0, 0.2), draw.uniform(0, 0.2)
        log = str(folder / "log")
        children = [start(lambda pause=pause: time.sleep(pause) or (study(here) and 0), log) for pause in pauses]
        assert [end(child) for child in children] == [0, 0], Path(log).read_text()
        assert samples_in(here) == samples_in(folder / "whole")
        assert temporary_files(here) == []
        yield "race"


TRIALS: dict[str, Callable[[Path, random.Random], Iterator[str]]] = {"two_writers": two_writers}
TRIALS |= {
    f"{name}_{disturbed.__name__}": partial(disturbed, PROGRAMS[name])
    for disturbed, names in (
        (killed, ("study", "series")),
        (on_a_full_disk, ("study", "series", "training")),
        (stopped, ("series", "command", "training")),
    )
    for name in names
}


def made(name, n, seed) -> int:
    """Make a trial so many times, and say what came of it; 0 if all was survived, or nothing can be made here."""
    counts: Counter[str] = Counter()
    try:
        with tempfile.TemporaryDirectory(prefix="lgi-trial-") as folder:
            try:
                for what in itertools.islice(TRIALS[name](Path(folder), random.Random(seed)), n):
                    counts[re.sub(r"\d+", "...", what)] += 1
            finally:
                subprocess.run(["umount", "--lazy", f"{folder}/disk"], capture_output=True, check=False)
        said = f"{counts.total()} tried, all survived ({dict(counts)})"
    except NotAllowed as reason:
        said = f"not made: {reason}"
    except BaseException:
        traceback.print_exc(file=sys.__stdout__)
        said = f"FAILED after {counts.total()}, --seed {seed}"
    print(f"{name}: {said}", file=sys.__stdout__, flush=True)
    return int("FAILED" in said)


def main(argv=None) -> int:
    """Run the command line; 0 if all was survived, 1 if not."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=TRIALS, metavar="NAME", help=f"of {', '.join(TRIALS)}")
    parser.add_argument("-n", type=int, default=20, help="times each; by default 20")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UncertifiedWarning)
    study(None)  # what a first call imports takes seconds, in each process again
    failed = False
    for name in args.only or TRIALS:
        # In a process of its own: a trial mounts disks and changes modules.
        sys.stdout.flush()
        if not (child := os.fork()):
            os._exit(made(name, args.n, args.seed))
        failed |= end(child) != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
