"""Shows that the tests notice faults: `python tests/mutations.py [--only NAME] [--jobs N] [--list]`.

Each fault of tests/faults.py is made in a copy of the working tree, by itself, and the tests that ought to notice it
run there. A fault counts as caught if one of these tests runs and fails; a fault that only keeps code from being
imported shows nothing, and is reported as broken. The exit status is 0 when all are caught, 1 when one is not, and 2
when nothing is shown: the copy fails without a fault, or another `lgi` than the copy's would be tested.
"""

import argparse
import importlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from xml.etree import ElementTree

from faults import FAULTS, Fault

ROOT = Path(__file__).resolve().parents[1]

# Imported once, and then there in every child: that takes longer than most of the tests.
_IMPORTS = (
    *("torch", "torch.func", "torchvision.datasets", "torchvision.models", "numpy", "pandas", "matplotlib.pyplot"),
    *("scipy.integrate", "scipy.interpolate", "scipy.sparse.csgraph", "scipy.stats", "sklearn.cluster", "seaborn"),
    *("sklearn.datasets", "sklearn.linear_model", "sklearn.model_selection", "sklearn.neighbors", "pytest"),
    "hypothesis.strategies",
)
_FOREIGN = 99
_SECONDS = 600
# What says that the fault is no working program, and nothing about the tests.
_NO_PROGRAM = re.compile(r"(NameError|UnboundLocalError|ImportError|ModuleNotFoundError|SyntaxError)\b")


class Refusal(Exception):  # noqa: N818 (as in notebooks/reproduce.py)
    """Nothing can be shown."""


@dataclass(frozen=True)
class Outcome:
    """What became of a fault: "caught", "survived", "broken" or "timed out"; by which test, or why."""

    word: str
    detail: str
    seconds: float


def mutated(fault: Fault, text: str) -> str:
    """Text of the file with the fault."""
    if (n := text.count(fault.old)) != 1:
        raise Refusal(f"{fault.name}: expected its old text once in {fault.file}, found it {n} times: {fault.old!r}")
    return text.replace(fault.old, fault.new)


def copy_tree(target: Path) -> Path:
    """Copy what git tracks, and what it would track if it were added."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        # A file that is deleted and not committed is still listed.
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    return target


# --- running tests ---------------------------------------------------------------------------------------------------


def _child(copy: Path, folder: Path, arguments: Sequence[str]) -> None:
    """Run pytest in a copy, in a forked process that has imported everything but `lgi`."""
    with (folder / "output").open("wb") as output:
        for descriptor in (1, 2):
            os.dup2(output.fileno(), descriptor)
    os.chdir(copy)
    # Not the tree of this script, neither by an editable install nor by its own folder.
    sys.path[:] = [str(copy), *(entry for entry in sys.path if Path(entry).resolve() not in (ROOT, ROOT / "tests"))]
    # For processes that tests start.
    os.environ["PYTHONPATH"] = str(copy)
    # A fault of the same size in the same second would not be noticed by the cache of compiled files.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    import pytest

    import lgi

    if not Path(lgi.__file__).resolve().is_relative_to(copy):
        print(f"would test {lgi.__file__}, not the copy in {copy}", file=sys.stderr)
        sys.exit(_FOREIGN)
    # Only this plugin, as the others take long to import; and assertions are not rewritten, for which it is too late.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    always = ["-q", "-p", "hypothesispytest", "--hypothesis-seed=0", "-p", "no:cacheprovider", "--assert=plain"]
    sys.exit(pytest.main([*always, *arguments]))


@dataclass(frozen=True)
class _Run:
    """Tests that are being run in a copy."""

    process: BaseProcess
    copy: Path
    folder: Path
    begin: float

    @classmethod
    def start(cls, copy: Path, tests: Sequence[str], *options: str) -> "_Run":
        folder = Path(tempfile.mkdtemp(dir=copy.parent))
        arguments = [*options, f"--junit-xml={folder / 'report.xml'}", *(f"tests/{test}" for test in tests)]
        process = multiprocessing.get_context("fork").Process(target=_child, args=(copy, folder, arguments))
        process.start()
        return cls(process, copy, folder, time.monotonic())

    def overdue(self) -> bool:
        return time.monotonic() - self.begin > _SECONDS

    def outcome(self) -> Outcome:
        """Wait for the end; "survived" if all tests have passed."""
        self.process.join(max(0, _SECONDS - (time.monotonic() - self.begin)))
        seconds = time.monotonic() - self.begin
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
            return Outcome("timed out", f"after {_SECONDS} s", seconds)
        said = (self.folder / "output").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = said[-1] if said else "nothing was said"
        if self.process.exitcode == _FOREIGN:
            raise Refusal(last)
        report = self.folder / "report.xml"
        cases = list(ElementTree.parse(report).iter("testcase")) if report.exists() else []
        # Failures only: what breaks in collection or in a fixture is an error.
        failed = {case.get("name", ""): found.get("message", "") for case in cases for found in case.findall("failure")}
        shown = [name for name, message in failed.items() if not _NO_PROGRAM.match(message)]
        if shown:
            return Outcome("caught", shown[0], seconds)
        passed = sum(len(case) == 0 for case in cases)
        if self.process.exitcode or not passed:
            return Outcome("broken", next(iter(failed.values()), last), seconds)
        return Outcome("survived", f"{passed} passed", seconds)


def judge(faults: Sequence[Fault], n_jobs: int = 1) -> Iterator[tuple[Fault, Outcome]]:
    """Faults with their outcomes, as they come; first of all, the tests must pass without a fault.

    Raises
    ------
    Refusal
        If they do not, a fault does not fit its file, or another `lgi` than the copy's would be tested.
    """
    with tempfile.TemporaryDirectory(prefix="lgi-mutations-") as folder:
        copies = [copy_tree(Path(folder).resolve() / f"{i}") for i in range(n_jobs)]
        plain = copies[0]
        for fault in faults:
            mutated(fault, (plain / fault.file).read_text(encoding="utf-8"))
        found = _Run.start(plain, sorted({test for fault in faults for test in fault.tests})).outcome()
        if found.word != "survived":
            raise Refusal(f"without a fault, the tests do not pass: {found.word}, {found.detail}")
        print(f"without a fault: {found.detail}, {found.seconds:.0f} s", flush=True)
        waiting, running = list(reversed(faults)), {}
        while waiting or running:
            while waiting and copies:
                fault, copy = waiting.pop(), copies.pop()
                text = (copy / fault.file).read_text(encoding="utf-8")
                (copy / fault.file).write_text(mutated(fault, text), encoding="utf-8")
                running[fault.name] = fault, text, _Run.start(copy, fault.tests, "-x")
            wait([run.process.sentinel for _, _, run in running.values()], timeout=1)
            for fault, text, run in list(running.values()):
                if not run.process.is_alive() or run.overdue():
                    yield fault, run.outcome()
                    (run.copy / fault.file).write_text(text, encoding="utf-8")
                    copies.append(run.copy)
                    del running[fault.name]


def line(fault: Fault, found: Outcome) -> str:
    """Outcome, seconds, file and name of a fault, and the test that has noticed it."""
    word = found.word if found.word == "caught" else found.word.upper()
    return f"{word:<9} {found.seconds:4.0f} s  {fault.file:<20} {fault.name:<48} {found.detail}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this fault alone; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="faults tried at a time")
    parser.add_argument("--list", action="store_true", help="say what the faults are, and try none")
    args = parser.parse_args(argv)
    if unknown := set(args.only or ()) - {fault.name for fault in FAULTS}:
        parser.error(f"there is no fault {', '.join(sorted(unknown))}; --list names them")
    faults = [fault for fault in FAULTS if args.only is None or fault.name in args.only]
    if args.list:
        for fault in faults:
            print(f"{fault.file}: {fault.name}: {fault.why}")
        return 0
    begin = time.monotonic()
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in _IMPORTS:
        importlib.import_module(module)
    outcomes: dict[str, Outcome] = {}
    try:
        for fault, found in judge(faults, args.jobs):
            outcomes[fault.name] = found
            print(line(fault, found), flush=True)
    except Refusal as refusal:
        print(f"mutations: {refusal}", file=sys.stderr)
        return 2
    missed = [fault for fault in faults if outcomes[fault.name].word != "caught"]
    print(f"\n{len(faults) - len(missed)} of {len(faults)} faults caught, {time.monotonic() - begin:.0f} s")
    for fault in missed:
        print(f"{line(fault, outcomes[fault.name])}: {fault.why}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
