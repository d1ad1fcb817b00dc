"""What all tests share: where files go, which data are there, one thread; and that no test depends on others.

The order of tests is random, and many files share a process: what one leaves behind, others find.
"""

import locale
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import settings

from lgi import artifacts, datasets

# make unit sets it; without make, one thread, as other tests run beside.
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
# Here, not in the environment: kernels that tests start have a backend of their own.
mpl.use("Agg")

# A shared machine can stall any example; the time limit would then fail tests that are right.
settings.register_profile("lgi", deadline=None)
settings.load_profile("lgi")


def _missing_data(item: pytest.Item) -> str | None:
    folders = artifacts.raw_data_folders()
    for marker, files in (("needs_mnist", "MNIST/raw"), ("needs_vgg", "vgg19/*"), ("needs_authors", "authors/*")):
        there = datasets.has_mnist() if marker == "needs_mnist" else any(any(f.glob(files)) for f in folders)
        if item.get_closest_marker(marker) and not there:
            return f"no {files} in {' or '.join(map(str, folders))} (LGI_DATA names another folder)"
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := _missing_data(item):
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def scratch_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Runs and cache of the tests, and of the processes they start, go into a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LGI_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("LGI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A folder of tiny notebooks (series.py)."""
    from series import Series

    return Series(tmp_path, monkeypatch)


# Chromium's sandbox is not to be had in most containers, and their /dev/shm is small.
_CHROMIUM = "--no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking --no-first-run"


@pytest.fixture(scope="module")
def new_page() -> Iterator[Callable[..., Any]]:
    """Opens pages of Chromium without its window, driven by playwright; skips the test where there is none."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    timeout = 900_000  # milliseconds: not how long it should take, but how long a busy machine might

    def opened(**options: Any) -> Any:
        page = browser.new_page(**options)
        page.set_default_timeout(timeout)
        return page

    before = random.getstate()  # playwright draws from it
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=_CHROMIUM.split(), timeout=timeout)
        yield opened
        browser.close()
    random.setstate(before)


# Set by pytest for each test, and by scikit-learn and parts of torch when something first imports them.
_NOBODYS = {"PYTEST_CURRENT_TEST", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR"}
_ABSENT = "absent"


def _process_state() -> dict[str, object]:
    """What all test files of a process share, by name.

    Without warnings.filters and the standard streams, which pytest itself puts back after each test.
    """
    pyplot = sys.modules.get("matplotlib.pyplot")
    os.umask(umask := os.umask(0o077))
    # torch 2.5 puts a folder of its own into sys.path when it is first asked for a forward derivative.
    own = getattr(sys.modules.get("torch.distributed.nn.jit.instantiator"), "INSTANTIATED_TEMPLATE_DIR_PATH", None)
    _, numbers, position, *_ = np.random.get_state()  # noqa: NPY002 (others may draw from it)
    state: dict[str, object] = {
        "matplotlib: open figures": pyplot.get_fignums() if pyplot else [],
        "sys.path": [path for path in sys.path if path != own],
        # Hashes, because these are long.
        "random state of random": hash(random.getstate()),
        "random state of numpy": hash((numbers.tobytes(), position)),
        "random state of torch": hash(torch.get_rng_state().numpy().tobytes()),
        "torch: threads": torch.get_num_threads(),
        "torch: default dtype": torch.get_default_dtype(),
        "torch: default device": torch.get_default_device(),
        "torch: gradients": torch.is_grad_enabled(),
        "torch: deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch: TF32 in products": torch.backends.cuda.matmul.allow_tf32,
        "torch: TF32 in convolutions": torch.backends.cudnn.allow_tf32,
        "current directory": str(Path.cwd()),
        "umask": umask,
        "locale": locale.setlocale(locale.LC_ALL),
    }
    state |= {f"matplotlib: {name}": value for name, value in mpl.rcParams.copy().items()}
    state |= {f"os.environ: {name}": value for name, value in os.environ.items() if name not in _NOBODYS}
    state |= {f"sys.modules: {name}": module for name, module in sys.modules.items()}
    state |= {f"signal: {number.name}": signal.getsignal(number) for number in signal.Signals}
    return state


def _is_import(name: str) -> bool:
    """Whether this part of the state is a module that was imported, and not made by hand."""
    kind, _, module = name.partition(": ")
    if kind != "sys.modules":
        return False
    # Compiled modules bring parts without a __spec__, which they have as attributes; Cython's own two have nothing.
    parent, _, part = module.rpartition(".")
    is_part = parent in sys.modules and getattr(sys.modules[parent], part, None) is sys.modules[module]
    return (
        is_part
        or getattr(sys.modules[module], "__spec__", None) is not None
        or module.startswith(("_cython", "cython"))
    )


def _left_behind(before: dict[str, object]) -> str:
    """What is not as it was, and what to do; empty if everything is. Imported modules may stay."""
    after = _process_state()
    told = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if old != new and not (old is _ABSENT and _is_import(name)):
            told.append(f"  {name}: {old!s:.200} -> {new!s:.200}")
    remedy = (
        "Put it back where it is changed (monkeypatch, mpl.rc_context, torch.random.fork_rng, try/finally), "
        "or change it in a process of its own."
    )
    return "\n".join(["this file leaves behind what others find in the same process:", *told, remedy]) if told else ""


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Fail the test file whose import leaves the process in another state."""
    before = _process_state()
    report = yield
    if isinstance(collector, pytest.Module) and report.passed and (left := _left_behind(before)):
        report.outcome, report.longrepr = "failed", left
    return report


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_behind(scratch_folders: None) -> Iterator[None]:
    """Fail the test file that leaves the process in another state than it found it in."""
    before = _process_state()
    yield
    if left := _left_behind(before):
        pytest.fail(left, pytrace=False)


@pytest.fixture(autouse=True)
def same_random_state() -> Iterator[None]:
    """Every test draws the same, whatever was drawn before it; fixtures of a whole file need streams of their own."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    torch.set_rng_state(before[2])
