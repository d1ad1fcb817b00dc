"""For nbval: cells with the tag nbval-ignore-output are compared too, as numbers within tolerances (tests/recorded.py).

nbval itself compares text, which differs between processors where a number lies at the edge of its last digit.
"""

from collections.abc import Generator
from pathlib import Path

import pytest
import recorded

try:
    from nbval.plugin import IPyNbCell
except ImportError:
    IPyNbCell = ()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """After a cell has run, compare what it shows with what is committed."""
    yield
    if isinstance(item, IPyNbCell) and "nbval-ignore-output" in item.cell.metadata.get("tags", []):
        where = f"{Path(item.path).stem}/{item.cell.id}"
        found, committed = ({where: recorded.shown(outputs)} for outputs in (item.test_outputs, item.cell.outputs))
        said = recorded.differences(found, committed, recorded.CELLS, recorded.CELLS_NOT_COMPARED)
        if said:
            remedy = "if this is meant to be so, make what is committed anew: make notebooks"
            item.raise_cell_error("\n".join(["numbers differ from the committed ones", *said, remedy]))
