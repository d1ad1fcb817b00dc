"""README.md: its generated parts are current, its example runs, and what it links to is there."""

import re

import pytest
from faults import FAULTS
from readme import ROOT, generated

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_generated_parts_are_current():
    assert generated(README) == README, "run: .venv/bin/python tests/readme.py"


def test_a_stale_number_is_noticed():
    stale = re.sub(r"reproduced", "refuted", README)
    assert stale != README
    assert generated(stale) != stale


def test_a_missing_part_is_an_error():
    with pytest.raises(ValueError, match="benchmark"):
        generated(README.replace("<!-- benchmark -->", ""))


def test_number_of_faults_is_the_present_one():
    assert f"`make mutations` makes {len(FAULTS)}\n" in README


def test_own_generator_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["M"].shape == (1000, 3, 3)
    assert names["lengths"].shape == (500,)
    assert (names["lengths"] > 0).all()
    assert (names["result"].improvement >= 0).all()


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    for link in links:
        assert (ROOT / link).exists(), link
