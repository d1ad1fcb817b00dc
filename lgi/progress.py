"""Long computations: their progress bars, the threads that commands take, and their end when somebody stops them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def progress_bar(
    total: int, *, desc: str, unit: str = "it", show: bool | None = None
) -> Iterator[Callable[[int], object]]:
    """Show a progress bar on the standard error while the block runs.

    Without a bar, tqdm is left alone: even hidden, its bars take a lock that forked processes share, and one of these
    that is killed there stops all others for good.

    Parameters
    ----------
    total : int
        Number of units.
    desc, unit : str
        What is computed, and of what.
    show : bool, optional
        Whether to show the bar; by default if the standard error is a terminal.

    Yields
    ------
    callable
        Takes the number of units that have been completed since its last call.
    """
    if show is None:
        # There may be no standard error, or one that only writes.
        isatty = getattr(sys.stderr, "isatty", None)
        show = isatty is not None and isatty()
    if not show:
        yield lambda _: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=desc, unit=unit, disable=False) as bar:  # whatever TQDM_DISABLE is
        yield bar.update


class Terminated(KeyboardInterrupt):
    """A SIGTERM, which ends a program as Ctrl-C does: files are whole, and it says how to go on."""


@contextmanager
def as_command() -> Iterator[None]:
    """What all commands have in common: one thread, and `Terminated` when a SIGTERM comes while the block runs.

    One thread, also in the processes that the command starts, unless OMP_NUM_THREADS is set. Threads of torch that wait
    for each other spin, and beside other busy processes take the processor from the very thread that they wait for: two
    are then many times slower than one. On a quiet machine they save a sixth of the time for networks as small as
    the shipped ones, and threads that sleep while they wait save nothing (tests/benchmarks/busy.py).
    """
    threads, unsaid = torch.get_num_threads(), "OMP_NUM_THREADS" not in os.environ
    if unsaid:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if unsaid:
            del os.environ["OMP_NUM_THREADS"]
            torch.set_num_threads(threads)


def exit_status(stop: KeyboardInterrupt) -> int:
    """Exit status of a program that was stopped, as shells count: 128 and the number of the signal."""
    return 128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
