"""README.md: its generated parts are current, its example runs, and what it links to is there."""

import re

import pytest
import torch
from faults import FAULTS
from readme import PAGES, ROOT, generated

import lgi

README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_generated_parts_are_current(page):
    text = page.read_text(encoding="utf-8")
    assert generated(page, text) == text, "run: .venv/bin/python tests/readme.py"


def test_a_stale_number_is_noticed():
    stale = re.sub(r"reproduced", "refuted", README)
    assert stale != README
    assert generated(ROOT / "README.md", stale) != stale


def test_a_missing_part_is_an_error():
    with pytest.raises(ValueError, match="speed"):
        generated(ROOT / "README.md", README.replace("<!-- speed -->", ""))


def test_number_of_faults_is_the_present_one():
    assert f"`make mutations` makes {len(FAULTS)}\n" in README


EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def shown(number: int) -> dict:
    names: dict = {}
    exec(EXAMPLES[number], names)
    return names


def test_own_generator_example_runs():
    names = shown(0)
    assert names["M"].shape == (1000, 3, 3)
    assert names["lengths"].shape == (500,)
    assert (names["lengths"] > 0).all()
    assert (names["result"].improvement >= 0).all()
    assert (names["certificate"].residual >= 0).all()
    table = re.search(r"\| what for \|.*?\n\n", README, re.DOTALL)
    assert sorted(re.findall(r"`(\w+)`", table[0])) == sorted(lgi.__all__)


def test_a_users_vae(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = shown(1)
    assert names["images"].shape == (5, 10, 1, 8, 8)
    assert torch.equal(names["again"].decode(10), names["images"])
    assert (names["arc"] > 0).all()
    assert [metric.latent_dim for metric in names["shipped"]] == [2, 2]


def test_a_conditional_gan():
    names = shown(2)
    distances = names["distances"]
    assert torch.equal(distances, distances.T)
    assert ((distances > 0) | torch.eye(6, dtype=bool)).all()
    assert (names["study"].start.norm(dim=1) - 8**0.5).abs().max() < 1e-5


def test_latents_that_are_not_flat():
    names = shown(3)
    assert names["M"].shape == (3, 16, 16)
    assert torch.linalg.eigvalsh(names["M"]).min() > -1e-4 * names["M"].max()


def test_fisher_and_rao():
    names = shown(4)
    z = torch.randn(3, 2)
    p, J = names["classifier"](z), torch.func.vmap(torch.func.jacrev(names["classifier"]))(z)
    torch.testing.assert_close(names["metric"].tensor(z), J.mT @ (J / p[:, :, None]))


def test_numpy_with_its_jacobian():
    names = shown(5)
    expected = torch.diag_embed(torch.stack([1 + names["z"][:, 0] ** 2, torch.ones(10)], dim=1))
    assert (names["M"] - expected).abs().max() < 1e-12
    assert len(EXAMPLES) == 7


def test_one_table_of_many_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    metric = lgi.PullbackMetric(lambda z: torch.cat([z, z.sin()], dim=1), latent_dim=2)
    for model, step in (runs := [("a", 0.5), ("a", 1.0), ("b", 1.0)]):
        about, folder = {"model": model}, f"runs/{model}{step}"
        lgi.worst_case_improvement(metric, 2, step_size=step, folder=folder, about=about, progress=False)
    means = shown(6)["means"]
    assert means.index.tolist() == runs
    assert (means[0] >= 0).all()
    assert (tmp_path / "results.csv").read_text(encoding="utf-8").count("\n") == 4


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert "://" in link or (page.parent / link).exists(), link
