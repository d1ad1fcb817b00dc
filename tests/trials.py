"""Kills, full disks, damage and races, made for real: ``python tests/trials.py [--only NAME] [-n N] [--seed S]``.

A trial does something to files or processes, each time something else, and asserts what must happen: nothing that was
finished is lost, nothing foreign is taken for ours, and the same call ends as if nothing had been. The end is a table
of how many were tried; what fails ends the trial, with the number that repeats it. test_robustness.py makes a few.
"""

# ruff: noqa: B023, PT017 - functions made in loops are called at once, and this is no file for pytest.

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
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import torch
from safetensors.torch import load_file, save_file
from torch import nn

HERE = Path(__file__).resolve().parent
if (notebooks := str(HERE.parent / "notebooks")) not in sys.path:
    sys.path.insert(0, notebooks)

import reproduce  # noqa: E402

from lgi import PullbackMetric, SolverSettings, algorithm1, artifacts, recipes, worst_case_improvement  # noqa: E402
from lgi.features import VGG19Features  # noqa: E402
from lgi.models import Architecture  # noqa: E402
from lgi.studies import UncertifiedWarning, load_study, merge_studies  # noqa: E402
from lgi.training import TrainingSettings  # noqa: E402

CHUNKS = "lgi_study_chunks"


class NotAllowed(Exception):  # noqa: N818
    """This machine does not let the trial be made."""


# --- what is run -----------------------------------------------------------------------------------------------------


class Generator(nn.Module):
    latent_dim = 2

    def __init__(self, change=lambda z, x: x):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 2, 12, dtype=torch.float64).view(6, 2).cos(), requires_grad=False)
        self.change = change

    def forward(self, z):
        return self.change(z, torch.cat([z.sin(), (z @ self.weight.T).cos(), z.square() / 2], dim=1))


def study(folder, generator=None, seed=0, shard=None):
    options = {"settings": SolverSettings(n_control=4, n_iterations=2), "chunk_size": 8, "folder": folder}
    return worst_case_improvement(
        PullbackMetric(generator or Generator()), 32, seed=seed, shard=shard, progress=False, **options
    )


def samples_in(folder):
    """Bytes of the samples in each file, without the headers, in which dates and seconds are."""
    found = {path.name: path.read_bytes() for path in (folder / CHUNKS).glob("*.safetensors")}
    return {name: content[8 + int.from_bytes(content[:8], "little") :] for name, content in found.items()}


def temporary_files(folder):
    return [path for path in folder.rglob(".*") if path.is_file() and path.name != ".lock"]


SECONDS = "import time; time.sleep(0.2)"
# Without lgi, whose import takes most of the time. What it writes, the trials of studies are about.
WRITES = """\
import os, pathlib
for name, text in (("results/NAME.json", '{"headline": "some"}'), ("figures/NAME.png", "drawn" * 2000)):
    path = pathlib.Path(os.environ["LGI_RUNS"], run, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    length = path.write_text(text)"""


def write_series(folder):
    """Write two small notebooks."""
    folder.mkdir(parents=True)
    for name in ("01_a", "02_b"):
        sources = ['seed: int = 0\nrun: str = "default"', SECONDS, WRITES.replace("NAME", name), SECONDS]
        cells = [nbformat.v4.new_markdown_cell(f"# {name}"), *map(nbformat.v4.new_code_cell, sources)]
        cells[1].metadata["tags"] = ["parameters"]
        nbformat.write(
            nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": reproduce.KERNEL}), folder / f"{name}.ipynb"
        )


def series(folder):
    os.environ["LGI_RUNS"] = str(folder / "runs")
    return reproduce.main(["--notebooks", str(folder / "notebooks")])


def finished(folder):
    """Results, executed notebooks and figures of a series, and the summary."""
    run = folder / "runs" / "default"
    kept = [*run.glob("*.ipynb"), *run.glob("results/*"), *run.glob("figures/*")]
    return {path: path.read_bytes() for path in [*kept, run / "summary.json"]}


def nothing_lost(folder, before):
    """Assert that each file of a series is there and whole, the old one or a new one."""
    found = finished(folder)
    assert found.keys() == before.keys()
    for path, content in found.items():
        assert content
        if path.suffix in (".json", ".ipynb"):
            json.loads(content)


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


def study_killed(folder, draw):
    """A study killed at every write, then called again: the same bytes, no temporary files."""
    assert end(start(lambda: study(folder / "whole") and 0)) == 0
    whole = samples_in(folder / "whole")
    for event in itertools.count(1):
        here = folder / f"{event}"
        status = end(start(killed_at(event, lambda here=here: study(here) and 0)))
        if status == 0:
            return
        assert status == -signal.SIGKILL
        assert end(start(lambda here=here: study(here) and 0)) == 0
        assert samples_in(here) == whole
        assert temporary_files(here) == []
        yield f"at write {event}"


def study_on_a_full_disk(folder, draw):
    """A disk that is full after any number of bytes: said so, then, with space, the same samples."""
    study(folder / "whole")
    size = sum(path.stat().st_size for path in (folder / "whole").rglob("*.safetensors"))
    disk = folder / "disk"
    disk.mkdir()
    mount(disk, 8 << 20)
    while True:
        left = draw.randrange(2 * size)
        fill(disk, left)
        with contextlib.suppress(artifacts.ArtifactError):
            study(disk / "study")
            assert left > size // 2
        assert temporary_files(disk) == []
        (disk / "ballast").unlink()
        found = study(disk / "study")
        assert found.complete
        assert samples_in(disk / "study") == samples_in(folder / "whole")
        shutil.rmtree(disk / "study")
        yield f"with {left} bytes left"


HEADER = b'{"__metadata__":{"lgi":"' + b"[" * 99_999 + b'"}}'
NESTED = len(HEADER).to_bytes(8, "little") + HEADER
DAMAGE: dict[str, Callable[[Path, Path, random.Random], object]] = {
    "a bit": lambda file, other, draw: file.write_bytes(flipped(file.read_bytes(), draw)),
    "cut": lambda file, other, draw: file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)]),
    "nested": lambda file, other, draw: file.write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000),
    "nested settings": lambda file, other, draw: file.write_bytes(NESTED),
    "another chunk": lambda file, other, draw: file.write_bytes(other.read_bytes()),
    "exchanged": lambda file, other, draw: exchange(file, other),
}


def flipped(content, draw):
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def exchange(file, other):
    content = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(content)


def study_damaged(folder, draw):
    """Chunks damaged, or of another number: refused when read; set aside with a word, computed again when resumed."""
    whole = study(folder / "whole")
    for kind in itertools.cycle(DAMAGE):
        here = folder / "study"
        shutil.copytree(folder / "whole", here)
        files = sorted((here / CHUNKS).iterdir())
        file, other = draw.sample(files, 2)
        before = {path.name: path.read_bytes() for path in files}
        DAMAGE[kind](file, other, draw)
        for read in (load_study, lambda here: merge_studies([here])):
            try:
                assert (read(here).improvement == whole.improvement).all(), (
                    kind
                )  # a bit between two words of the header
            except artifacts.ArtifactError as error:
                assert file.name in str(error) or other.name in str(error), error
        changed = {path.name: path.read_bytes() for path in files if path.read_bytes() != before[path.name]}
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            warnings.simplefilter("ignore", UncertifiedWarning)
            found = study(here)
        assert (found.improvement == whole.improvement).all()
        assert samples_in(here) == samples_in(folder / "whole")
        aside = {path.name.partition(".safetensors.")[0]: path for path in (here / CHUNKS).glob("*.damaged-*")}
        assert len(aside) == len(told)
        assert all(path.read_bytes() == changed[f"{name}.safetensors"] for name, path in aside.items())
        shutil.rmtree(here)
        yield kind


def study_beside_a_file(folder, draw):
    """A lone study.safetensors, of this study or another, whole or in part: never written over, never mixed."""
    whole, foreign = study(folder / "whole"), study(folder / "foreign", seed=1)
    half = study(folder / "half", shard=(1, 2))
    for number in itertools.count():
        here = folder / f"{number}"
        kind = draw.choice(["foreign", "whole", "half", "damaged"])
        {"foreign": foreign, "half": half}.get(kind, whole).save(here / "study")
        file = here / "study.safetensors"
        if kind == "damaged":
            file.write_bytes(file.read_bytes()[:-1])
        before = file.read_bytes()
        if kind == "foreign":
            for write in (
                lambda: study(here),
                lambda: merge_studies([whole], folder=here),
                lambda: whole.save(here / "study"),
            ):
                try:
                    write()
                    raise AssertionError("was taken for ours")
                except ValueError as error:
                    assert "holds another study: seed is 1, not 0" in str(error)
        else:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                warnings.simplefilter("ignore", UncertifiedWarning)
                assert (study(here).improvement == whole.improvement).all()
            assert len(told) == (kind == "damaged")
            assert load_study(here).complete
        assert before in [path.read_bytes() for path in here.iterdir() if path.is_file()]
        yield kind


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


def scaled(factor):
    generator = Generator()
    generator.weight *= factor
    return generator


def noisy(size, seed):
    generator = Generator()
    noise = torch.randn(generator.weight.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    generator.weight *= 1 + size * noise
    return generator


def another_generator(folder, draw):
    """A study that is gone on with by another generator, whatever differs: refused."""
    whole = study(folder / "whole")
    while True:
        shutil.rmtree(folder / "study", ignore_errors=True)
        axis, bound, size = draw.randrange(2), draw.uniform(-2, 2), draw.choice([-1, 1]) * draw.uniform(3e-3, 1)
        made = {
            "weights x (1 + 3e-4)": lambda: scaled(1 + 3e-4),
            "weights + 3e-4": lambda: noisy(3e-4, draw.randrange(1 << 30)),
            "two weights exchanged": lambda: scaled(1),
            "a half plane": lambda: Generator(
                lambda z, x: torch.where(z[:, axis : axis + 1] > bound, x * (1 + size), x)
            ),
            "all of it": lambda: Generator(lambda z, x: x * (1 + size)),
        }
        kind = draw.choice([*made])
        generator = made[kind]()
        if "exchanged" in kind:
            a, b = draw.sample(range(6), 2)
            generator.weight[[a, b]] = generator.weight[[b, a]]
        here = folder / "study"
        shutil.copytree(folder / "whole", here)
        for file in draw.sample(sorted((here / CHUNKS).iterdir()), draw.randrange(1, 3)):
            file.unlink()
        before = samples_in(here)
        try:
            study(here, generator)
        except ValueError as error:
            assert "another study" in str(error), error
        else:
            if kind == "a half plane" and not (whole.start[:, axis] > bound).any():
                continue  # where none of the samples is
            raise AssertionError(f"{kind} (from {bound:.3g} on axis {axis}, by {size:.3g}) was taken for the same")
        assert samples_in(here) == before
        yield kind


def vgg_damaged(folder, draw):
    """A bit of VGG-19's trained weights flipped, or one of them not finite: refused, or not in what was asked for."""
    found = [file for where in artifacts.raw_data_folders() for file in (where / "vgg19").glob("*.safetensors")]
    if not found:
        raise NotAllowed("no weights of VGG-19 here (LGI_DATA)")
    content, whole = found[0].read_bytes(), VGG19Features("relu2_2").digest
    header = 8 + int.from_bytes(content[:8], "little")
    (folder / "vgg19").mkdir()
    file = folder / "vgg19" / "vgg19.safetensors"
    artifacts.raw_data_folders = lambda: [folder]
    while True:
        if kind := draw.randrange(4):
            place = draw.randrange(header if kind == 1 else len(content))
            file.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
        else:
            state = load_file(found[0])
            flat = state[draw.choice([*state])].view(-1)
            flat[draw.randrange(len(flat))] = draw.choice([float("nan"), float("inf"), 0.0])
            save_file(state, file)
        try:
            assert VGG19Features("relu2_2").digest == whole
            yield "in another layer"
        except ValueError:
            yield "refused"


def series_killed(folder, draw):
    """``make reproduce`` killed at any write: the old is there, or the new in its place; the next run ends well."""
    write_series(folder / "notebooks")
    assert end(start(lambda: series(folder))) == 0
    before = finished(folder)
    assert len(before) == 7
    while True:
        event = draw.randrange(1, 40)
        status = end(start(killed_at(event, lambda: series(folder))))
        assert status in (0, -signal.SIGKILL)
        nothing_lost(folder, before)
        yield f"at write {event}" if status else f"before write {event} it was done"
        if draw.random() < 0.2:
            assert end(start(lambda: series(folder))) == 0
            assert temporary_files(folder) == []


def series_on_a_full_disk(folder, draw):
    """``make reproduce`` on a disk that is full after any number of bytes: says so, and the last run is still there."""
    disk = folder / "disk"
    disk.mkdir()
    mount(disk, 4 << 20)
    write_series(disk / "notebooks")
    assert end(start(lambda: series(disk))) == 0
    before = finished(disk)
    while True:
        left, log = draw.randrange(60_000), folder / "log"
        fill(disk, left)
        status = end(start(lambda: series(disk), str(log)))
        nothing_lost(disk, before)
        if status:
            assert status == 1
            assert "No space left" in log.read_text()
        (disk / "ballast").unlink()
        log.unlink()
        assert end(start(lambda: series(disk))) == 0
        yield f"with {left} bytes left: " + ("all ran" if status == 0 else "refused")


def stop(act, seconds, draw, log) -> tuple[int, str, str]:
    """Stop a process by a signal at any moment; its exit status, that in words, and what it said."""
    number = draw.choice([signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
    log.write_text("")
    child = start(act, str(log))
    time.sleep(draw.uniform(0.05, seconds))
    os.kill(child, number)
    status = end(child)
    said = log.read_text()
    # 98 and a negative one: before or after what main() does, in the few lines of this script.
    assert status in (0, 128 + number, 98, -number), (status, said)
    if status == 128 + number:
        assert "interrupted" in said, said
        assert "Traceback" not in said, said
    words = {0: "done before", 98: "before it began", -signal.SIGTERM: "before it began", -signal.SIGKILL: "killed"}
    return status, f"{number.name}: {words.get(status, 'interrupted')}", said


def series_stopped(folder, draw):
    """SIGINT and SIGTERM during ``make reproduce``: the last run is there, and the next one ends well."""
    write_series(folder / "notebooks")
    begin = time.monotonic()
    assert end(start(lambda: series(folder))) == 0
    seconds, before = time.monotonic() - begin, finished(folder)
    while True:
        _, word, _ = stop(lambda: series(folder), seconds, draw, log := folder / "log")
        nothing_lost(folder, before)
        assert end(start(lambda: series(folder), str(log))) == 0, f"{word}: {log.read_text()}"
        assert temporary_files(folder) == []
        yield word


def command_stopped(folder, draw):
    """SIGINT and SIGTERM during ``python -m lgi.algorithm1``: it says how far it is, and the same command goes on."""

    def command(here):
        arguments = ["--model", "vae2", "--samples", "60", "--chunk-size", "10", "--n-control", "5", "--out", str(here)]
        return lambda: algorithm1.main(arguments)

    begin = time.monotonic()
    assert end(start(command(folder / "whole"))) == 0
    seconds = time.monotonic() - begin
    for number in itertools.count():
        here = folder / f"{number}"
        status, word, said = stop(command(here), seconds, draw, folder / "log")
        if status > 100:
            done = len(load_study(here)) if samples_in(here) else 0
            assert f"interrupted with {done} samples in" in said, said
        assert end(start(command(here))) == 0
        assert samples_in(here) == samples_in(folder / "whole")
        assert temporary_files(here) == []
        yield word


def training_stopped(folder, draw):
    """SIGINT and SIGTERM during ``python -m lgi.recipes``: the same command goes on, and ends with the same weights."""
    begin = time.monotonic()
    assert end(start(lambda: training(folder / "whole"))) == 0
    seconds = time.monotonic() - begin
    whole = load_file(folder / "whole" / "models" / "vae1.safetensors")
    for number in itertools.count():
        here = folder / f"{number}"
        _, word, _ = stop(lambda here=here: training(here), seconds, draw, folder / "log")
        assert end(start(lambda here=here: training(here))) == 0
        found = load_file(here / "models" / "vae1.safetensors")
        assert all(torch.equal(value, found[key]) for key, value in whole.items())
        assert temporary_files(here) == []
        yield word


def training_on_a_full_disk(folder, draw):
    """Training on a disk that is full after any number of bytes: said so, gone on with when there is space."""
    assert end(start(lambda: training(folder / "whole"))) == 0
    whole = load_file(folder / "whole" / "models" / "vae1.safetensors")
    disk, log = folder / "disk", folder / "log"
    disk.mkdir()
    mount(disk, 8 << 20)
    while True:
        left = draw.randrange(400_000)
        fill(disk, left)
        status = end(start(lambda: training(disk), str(log)))
        assert status == 0 or (status == 2 and "No space left" in log.read_text()), log.read_text()
        (disk / "ballast").unlink()
        assert temporary_files(disk) == []
        assert end(start(lambda: training(disk))) == 0
        found = load_file(disk / "models" / "vae1.safetensors")
        assert all(torch.equal(value, found[key]) for key, value in whole.items())
        log.unlink()
        shutil.rmtree(disk / "models")
        shutil.rmtree(disk / "cache")
        yield f"with {left} bytes left: " + ("refused" if status else "trained")


TRIALS: dict[str, Callable[[Path, random.Random], Iterator[str]]] = {
    trial.__name__: trial
    for trial in (
        *(study_killed, study_on_a_full_disk, study_damaged, study_beside_a_file, two_writers, another_generator),
        *(vgg_damaged, series_killed, series_on_a_full_disk, series_stopped, command_stopped, training_stopped),
        training_on_a_full_disk,
    )
}


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

        def trial(name=name):
            counts: dict[str, int] = {}
            try:
                with tempfile.TemporaryDirectory(prefix="lgi-trial-") as folder:
                    try:
                        for made in itertools.islice(TRIALS[name](Path(folder), random.Random(args.seed)), args.n):
                            kind = re.sub(r"\d+", "...", made)
                            counts[kind] = counts.get(kind, 0) + 1
                    finally:
                        subprocess.run(["umount", "--lazy", f"{folder}/disk"], capture_output=True, check=False)
            except NotAllowed as reason:
                print(f"{name}: not made: {reason}", file=sys.__stdout__, flush=True)
                return 0
            except BaseException:
                traceback.print_exc(file=sys.__stdout__)
                print(
                    f"{name}: FAILED after {sum(counts.values())}, --seed {args.seed}", file=sys.__stdout__, flush=True
                )
                return 1
            print(f"{name}: {sum(counts.values())} tried, all survived ({counts})", file=sys.__stdout__, flush=True)
            return 0

        # In a process of its own: a trial mounts disks and changes modules.
        sys.stdout.flush()
        if not (child := os.fork()):
            os._exit(trial())
        failed |= end(child) != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
