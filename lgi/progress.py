"""Progress bars of long computations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


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
