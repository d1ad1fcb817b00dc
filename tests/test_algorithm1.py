"""Algorithm 1: closed forms, directions, samples, errors, command line."""

import math
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import DEFAULT, Mock

import analytic
import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

import lgi
from lgi import algorithm1
from lgi.algorithm1 import main, worst_case_improvement
from lgi.metric import ExplicitMetric, PullbackMetric
from lgi.solver import SolverSettings

# Of searches without iterations hardly a curve is certified.
pytestmark = pytest.mark.filterwarnings("ignore::lgi.studies.UncertifiedWarning")

OWN_STREAM = np.random.default_rng(0)
QUICK = SolverSettings(n_control=4)
DOUBLE = {"dtype": torch.float64}

# A chart of the sphere around a point of its equator in which the largest stretch is along circles of latitude.
SCALE = torch.tensor([0.3, 1.2], dtype=torch.float64)


def chart(z):
    return z * SCALE.to(z) + torch.tensor([math.pi / 2, 0.0]).to(z)


def sphere():
    return PullbackMetric(lambda z: analytic.sphere_embed(chart(z)), latent_dim=2)


class Decoder(nn.Module):
    """A small smooth generator with parameters."""

    def __init__(self, d=2, width=16, seed=0, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        A, B = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((d, width), (width, 3 * d)))
        self.A, self.B = (nn.Parameter(x.to(dtype), requires_grad=False) for x in (A / d**0.5, B))
        self.latent_dim = d

    def forward(self, z):
        return torch.tanh(z @ self.A) @ self.B


def study(metric, n=20, **options):
    return worst_case_improvement(metric, n, **{"settings": QUICK} | options)


# --- closed forms ----------------------------------------------------------------------------------------------------


def test_mean_on_the_sphere_is_the_exact_one():
    found = worst_case_improvement(sphere(), 1000, settings=SolverSettings(length_tolerance=1e-7), **DOUBLE)
    start, end = chart(found.start), chart(found.end)
    # Along the circle of latitude, towards the meridian of the origin.
    torch.testing.assert_close(end[:, 0], start[:, 0])
    torch.testing.assert_close(end[:, 1], start[:, 1] - 1.2 * start[:, 1].sign())
    straight = 1.2 * analytic.SPHERE_RADIUS * start[:, 0].sin()
    exact = 1 - analytic.sphere_distance(start, end) / straight
    torch.testing.assert_close(found.straight_length, straight, rtol=1e-9, atol=0)
    assert abs(found.mean - exact.mean().item()) < 1e-5
    assert (found.improvement - exact).abs().max() < 1e-4
    assert found.mean > 0.005
    assert found.certified == 1


def test_half_plane_steps_towards_the_origin():
    metric = analytic.HALF_PLANE.metric
    codes = torch.tensor([[0.5, 4.0], [-1.0, 3.0]], dtype=torch.float64)
    found = worst_case_improvement(metric, 12, codes=codes, settings=SolverSettings(length_tolerance=1e-7), **DOUBLE)
    # All directions are maximal; vertical lines and nothing else are geodesics.
    expected = found.start - found.start / found.start.norm(dim=1, keepdim=True)
    torch.testing.assert_close(found.end, expected)
    exact = analytic.half_plane_distance(found.start, found.end)
    torch.testing.assert_close(found.length, exact, rtol=1e-6, atol=0)
    assert set(found.start_code.tolist()) == {0, 1}
    assert torch.equal(found.start, codes[found.start_code])


def test_affine_generator_has_no_improvement():
    for direction in ("maximal", "minimal", "random"):
        found = study(PullbackMetric(analytic.AffineDecoder.random(3)), direction=direction, **DOUBLE)
        assert found.improvement.max() < 1e-9


# --- samples ---------------------------------------------------------------------------------------------------------


def test_ends_lie_a_step_along_the_eigenvector_that_points_to_the_origin():
    metric = PullbackMetric(Decoder(3))
    for direction, column in (("maximal", -1), ("minimal", 0)):
        found = study(metric, 50, step_size=0.7, direction=direction)
        step = (found.end - found.start) / 0.7
        eigenvector = metric.eigh(found.start)[1][..., column]
        torch.testing.assert_close((step * eigenvector).sum(-1).abs(), torch.ones(50, dtype=torch.float64))
        assert ((step * found.start).sum(-1) < 0).all()
        assert found.improvement.min() >= 0


def test_random_directions_are_uniform_but_for_their_sign():
    found = study(PullbackMetric(Decoder(2)), 400, direction="random", settings=SolverSettings(n_iterations=0))
    step = found.end - found.start
    torch.testing.assert_close(step.norm(dim=1), torch.ones(400, dtype=torch.float64))
    assert ((step * found.start).sum(-1) < 0).all()
    axial = torch.atan2(step[:, 1], step[:, 0]) % math.pi / math.pi
    assert scipy.stats.kstest(axial.numpy(), "uniform").pvalue > 0.01


def test_starts_are_of_the_prior():
    # Nothing but the drawing: no iterations, so cheap.
    found = study(sphere(), 2000, direction="random", settings=SolverSettings(n_iterations=0), **DOUBLE)
    for column in found.start.T:
        assert scipy.stats.kstest(column.numpy(), "norm").pvalue > 0.01
    assert abs(np.corrcoef(found.start.T.numpy())[0, 1]) < 0.08
    # Neighbouring streams are independent.
    assert abs(np.corrcoef(found.start[:-1, 0].numpy(), found.start[1:, 0].numpy())[0, 1]) < 0.08


def on_the_sphere(n):
    return nn.functional.normalize(torch.randn(n, 2), dim=-1)


@pytest.mark.parametrize(
    ("prior", "holds"),
    [
        (torch.distributions.Uniform(2.0, 3.0), lambda z: ((z > 2) & (z < 3)).all()),
        (torch.distributions.MultivariateNormal(torch.full((2,), 9.0), torch.eye(2)), lambda z: (z > 4).all()),
        (on_the_sphere, lambda z: ((z.norm(dim=1) - 1).abs() < 1e-6).all()),
    ],
)
def test_starts_are_of_the_prior_that_is_given(prior, holds):
    state = torch.get_rng_state()
    found = study(PullbackMetric(Decoder()), prior=prior)
    assert holds(found.start)
    assert len(found.start.unique()) == 40
    assert torch.equal(study(PullbackMetric(Decoder()), prior=prior, chunk_size=3).start, found.start)
    assert not torch.equal(study(PullbackMetric(Decoder()), prior=prior, seed=1).start, found.start)
    assert found.settings["starts"] == "own prior"
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sample_is_the_same_whatever_is_drawn_beside_it():
    metric = PullbackMetric(Decoder())
    whole = study(metric, 23, chunk_size=23)
    assert torch.equal(whole.index, torch.arange(23))
    for n, chunk_size in ((23, 5), (23, 1), (9, 4)):
        part = study(metric, n, chunk_size=chunk_size)
        assert torch.equal(part.start, whole.start[:n])
        torch.testing.assert_close(part.end, whole.end[:n], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(part.improvement, whole.improvement[:n], rtol=1e-4, atol=1e-8)
    assert torch.equal(study(metric, 23, direction="random").start, whole.start)
    assert not torch.equal(study(metric, 23, seed=1).start, whole.start)


def test_samples_do_not_depend_on_the_precision():
    coarse, fine = (study(PullbackMetric(Decoder(dtype=dtype)), 30) for dtype in (torch.float32, torch.float64))
    assert (coarse.start.dtype, fine.start.dtype) == (torch.float32, torch.float64)
    torch.testing.assert_close(coarse.end.double(), fine.end, rtol=0, atol=1e-4)
    assert abs(coarse.mean - fine.mean) < 1e-4


def test_pairs_of_codes_never_have_identical_ends():
    codes = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    found = study(PullbackMetric(Decoder()), 60, direction="pairs", codes=codes)
    assert torch.equal(found.start, codes[found.start_code])
    assert torch.equal(found.end, codes[found.end_code])
    assert (found.straight_length > 0).all()
    assert set(found.start_code.tolist()) == {0, 1, 2, 3}
    assert found.settings["step_size"] is None


MEMORY = """
import resource, sys, torch
from types import SimpleNamespace
from lgi import algorithm1
from lgi.metric import PullbackMetric
def shorten(metric, start, end, settings, first_pair):
    one = torch.ones(len(start))
    names = "straight_length length improvement residual refinement_gain length_error n_control n_rows"
    return SimpleNamespace(converged=one.bool(), **{name: one for name in names.split()})
algorithm1.shorten = shorten
metric = PullbackMetric(lambda z: torch.cat([z, z.sin(), z.cos()], dim=1), latent_dim=2)
algorithm1.worst_case_improvement(metric, 2000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = algorithm1.worst_case_improvement(metric, 20000)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
columns = sum(column.nbytes for column in found.columns.values())
print(grown * 1024 / columns)
"""


@pytest.mark.slow
def test_memory_is_that_of_the_columns():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    # Twice while they are joined, and what the allocator keeps.
    assert float(done.stdout) < 5


# --- directions ------------------------------------------------------------------------------------------------------


def test_eigenvectors_are_chosen_by_dimension():
    still = {"settings": SolverSettings(n_iterations=0)}
    small, large = (PullbackMetric(Decoder(d, width=20)) for d in (8, 80))
    assert study(small, 3, **still).settings["eigenvectors"] == "eigh"
    found = study(large, 3, **still)
    assert found.settings["eigenvectors"] == "lanczos"
    assert study(large, 3, direction="minimal", **still).settings["eigenvectors"] == "eigh"
    exact = study(large, 3, eigenvectors="eigh", **still)
    torch.testing.assert_close(found.end, exact.end, rtol=0, atol=1e-6)
    forced = study(small, 3, eigenvectors="lanczos", **still)
    torch.testing.assert_close(forced.end, study(small, 3, **still).end, rtol=0, atol=1e-6)


def test_lanczos_projects_onto_an_eigenspace():
    """As eigh does: where all directions are maximal, the origin's; where 20 of 70 are, the projection onto these."""
    for dtype in (torch.float32, torch.float64):
        scale = torch.cat([torch.full((20,), 2.0), torch.linspace(0.5, 1, 50)])
        for weights, dimensions in ((torch.ones(70), 70), (scale, 20)):
            metric = PullbackMetric(lambda z, w=weights: torch.cat([w.to(z) * z, w.to(z) * z], 1), latent_dim=70)
            still = {"settings": SolverSettings(n_iterations=0), "dtype": dtype, "eigenvectors": "lanczos"}
            found = study(metric, 10, **still)
            step = (found.end - found.start).double()
            expected = -found.start.double()
            expected[:, dimensions:] = 0
            assert (1 - nn.functional.cosine_similarity(step, expected)).max() < 2e-4


def test_lanczos_finds_what_is_perpendicular_to_the_start():
    """All starts lie on the first axis, an eigenvector of a smaller eigenvalue, closer than half the digits show."""
    weights = torch.ones(70)
    weights[-1] = 1.05
    metric = PullbackMetric(lambda z: torch.cat([weights.to(z) * z, weights.to(z) * z], 1), latent_dim=70)
    codes = torch.eye(70)[:1] * torch.tensor([[1.0], [2.0]])
    found = study(metric, 4, codes=codes, settings=SolverSettings(n_iterations=0), eigenvectors="lanczos")
    assert ((found.end - found.start)[:, -1].abs() > 0.99).all()


def test_inference_mode_changes_nothing():
    metric = PullbackMetric(Decoder(70, width=20))
    codes = torch.randn(5, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = study(metric, 3, codes=codes)
    assert expected.settings["eigenvectors"] == "lanczos"
    with torch.inference_mode():
        found = study(metric, 3, codes=codes.clone())
        made_inside = PullbackMetric(Decoder(70, width=20))
    assert torch.equal(found.end, expected.end)
    assert torch.equal(found.length, expected.length)
    with pytest.raises(ValueError, match=r"made in torch.inference_mode .* make it outside"):
        study(made_inside, 3)


def test_the_module_is_there_at_once():
    code = "import sys, lgi; assert 'lgi.algorithm1' not in sys.modules; print(lgi.algorithm1.main)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, "n_samples to be at least 1, got 0"),
        ({"n_samples": 10.0}, "n_samples to be a whole number"),
        ({"n_samples": True}, "n_samples to be a whole number"),
        ({"seed": -1}, "seed to be at least 0"),
        ({"chunk_size": 0}, "chunk_size to be at least 1"),
        ({"step_size": 0.0}, "positive step_size, got 0.0"),
        ({"step_size": math.nan}, "positive step_size"),
        ({"direction": "largest"}, "maximal, minimal, random, pairs, got 'largest'"),
        ({"eigenvectors": "power"}, "auto, eigh, lanczos"),
        ({"eigenvectors": "lanczos", "direction": "minimal"}, 'use eigenvectors="eigh"'),
        ({"direction": "pairs"}, "give codes"),
        ({"direction": "pairs", "codes": torch.ones(5, 2)}, "no pairs of different points"),
        ({"codes": torch.ones(5, 3)}, r"metric.latent_dim = 2, codes.shape\[-1\] = 3"),
        ({"codes": torch.ones(5)}, r"codes \(n_codes, d\), got torch.float32 of shape \(5,\)"),
        ({"codes": torch.ones(5, 2).long()}, "int64"),
        ({"codes": torch.tensor([[0.0, math.nan]])}, "1 of 1 codes are NaN"),
        ({"prior": torch.distributions.Uniform(0, 1), "codes": torch.ones(5, 2)}, "from codes or from a prior"),
        ({"prior": lambda n: torch.rand(n, 3)}, r"a tensor \(1, 2\) for n = 1, got torch.float32 of shape \(1, 3\)"),
        ({"prior": lambda n: np.ones((n, 2))}, "got a ndarray"),
        ({"prior": lambda n: torch.from_numpy(OWN_STREAM.random((n, 2)))}, "other points when"),
        ({"shard": (0, 2)}, "counted from 1"),
        ({"shard": (3, 2)}, "1 <= i <= n"),
        ({"shard": "1/2"}, r"shard = \(i, n\), integers .* got '1/2'"),
        ({"shard": (1.0, 2)}, r"shard = \(i, n\), integers .* got \(1.0, 2\)"),
        ({"shard": (1, 2, 3)}, r"shard = \(i, n\), integers"),
        ({"step_size": "1"}, "positive step_size, got '1'"),
        ({"dtype": torch.float16}, "with dtype=torch.float16 and device='cpu'"),
        ({"shard": (1, 5), "chunk_size": 500}, "5 shards of 2 chunks"),
        ({"settings": SolverSettings(starts="graph")}, "needs points"),
        ({"about": {"model": Decoder()}}, "about to be made of finite numbers"),
        ({"about": {"std": math.nan}}, "about to be made of finite numbers"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        worst_case_improvement(PullbackMetric(Decoder()), **options)


def test_bad_metrics():
    with pytest.raises(TypeError, match="expected a metric"):
        worst_case_improvement(Decoder())
    with pytest.raises(ValueError, match="give latent_dim"):
        worst_case_improvement(PullbackMetric(lambda z: z.repeat(1, 3)))
    assert len(study(PullbackMetric(lambda z: z.repeat(1, 3)), 2, latent_dim=2)) == 2
    nowhere = PullbackMetric(lambda z: z.repeat(1, 3) * torch.nan, latent_dim=2)
    with pytest.raises(ValueError, match="NaN or infinity"):
        study(nowhere, 10)
    indefinite = ExplicitMetric(lambda z: torch.diag_embed(torch.stack([z[:, 0], 1 + z[:, 0] ** 2], -1)), latent_dim=2)
    with pytest.raises(ValueError, match=r"samples \d+ to \d+: .*positive semi-definite"):
        study(indefinite, 100, chunk_size=10, codes=torch.tensor([[1.0, 0.0], [1.2, 0.0], [-1.0, 0.0]]))


def test_lines_of_length_zero_are_left_out():
    # Constant where the first coordinate is negative, whichever way a step leads from there.
    metric = PullbackMetric(lambda z: torch.nn.functional.relu(z[:, :1]) * torch.ones(1, 4).to(z), latent_dim=2)
    found = study(metric, 60, direction="random", step_size=0.01, settings=SolverSettings(n_iterations=5), **DOUBLE)
    undefined = ~found.defined
    assert 15 < undefined.sum() < 45
    assert (found.straight_length[undefined] == 0).all()
    assert found.improvement.isfinite().all()
    assert found.mean == found.improvement[found.defined].mean()
    assert f"{undefined.sum()} left out" in str(found)


HOLES = {
    "far starts": lambda z: z[:, 0].abs() > 1.2,
    "ends alone": lambda z: z.norm(dim=1) < 0.3,
    "a strip that the first nodes may miss": lambda z: (z[:, 0] - 0.5).abs() < 0.03,
    "the fingerprint's first point": lambda z: (z[:, 0] - 0.12).abs() < 0.1,
}


@pytest.mark.parametrize(
    ("hole", "kind", "value", "starts"),
    [
        ("far starts", "deterministic", math.nan, "multi"),
        ("far starts", "explicit", math.inf, "line"),
        ("ends alone", "stochastic", math.inf, "multi"),
        ("a strip that the first nodes may miss", "deterministic", math.nan, "line"),
        ("ends alone", "feature map", math.nan, "line"),
        ("the fingerprint's first point", "stochastic", math.nan, "line"),
    ],
)
def test_samples_where_the_metric_is_not_finite_are_kept_and_left_out(tmp_path, hole, kind, value, starts):
    inside, decoder = HOLES[hole], Decoder()

    def metric(holed):
        def values(z):
            return torch.where((inside(z) & holed)[:, None], value, decoder(z))

        if kind == "explicit":
            return ExplicitMetric(lambda z: torch.diag_embed(1 + values(z)[:, :2] ** 2), latent_dim=2)
        std = "stochastic", "feature map"
        generator = (lambda z: (values(z), 0.1 + values(z) ** 2)) if kind in std else values
        return PullbackMetric(generator, torch.sin if kind == "feature map" else None, latent_dim=2)

    options = {"step_size": 0.8, "settings": SolverSettings(n_iterations=6, starts=starts, n_starts=2)} | DOUBLE
    found = worst_case_improvement(metric(True), 24, folder=tmp_path, **options)
    whole = worst_case_improvement(metric(False), 24, **options)
    lost = ~found.defined
    assert len(found) == 24
    assert 0 < lost.sum() < 20
    assert torch.equal(lost, found.straight_length.isnan())
    assert found.improvement[lost].eq(0).all()
    assert not found.converged[lost].any()
    assert torch.equal(found.start, whole.start)
    ends = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None, None]
    lines = whole.start + ends * (whole.end - whole.start)
    assert inside(lines[:, lost].flatten(0, 1)).unflatten(0, (2001, -1)).any(0).all()
    assert found.improvement[~lost].max() > 0.005
    # The search may meet a hole beside the line; the line itself is the same.
    for name in ("end", "straight_length"):
        torch.testing.assert_close(getattr(found, name)[~lost], getattr(whole, name)[~lost], rtol=1e-3, atol=0)
    assert math.isfinite(found.mean)
    assert f"{lost.sum()} left out: their straight lines lead to where the metric is not finite" in str(found)
    found.save(tmp_path / "study")
    record = lgi.artifacts.load(tmp_path / "study", name="study").record
    assert (record["undefined"], record["not_finite"]) == (lost.sum(), lost.sum())


# --- command line ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_command_line(tmp_path, capsys):
    options = ["--model", "vae2", "--samples", "6", "--chunk-size", "2", "--n-control", "5", "--device", "cpu"]
    options += ["--seed", "3", "--out", str(tmp_path)]
    # In a process of its own: the module must not be imported twice, nor warn of anything.
    command = [sys.executable, "-W", "error", "-m", "lgi.algorithm1", *options, "--shard", "1/2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mean relative improvement" in done.stdout
    assert main([*options, "--shard", "2/2"]) == 0
    shared = lgi.load_study(tmp_path)
    assert str(shared) in capsys.readouterr().out
    assert main(["merge", str(tmp_path), "--out", str(tmp_path / "merged")]) == 0
    merged = lgi.load_study(tmp_path / "merged")
    assert str(merged) == str(shared)
    metric = PullbackMetric(lgi.load_model("vae2").decoder)
    expected = study(metric, 6, seed=3, chunk_size=2, settings=SolverSettings(n_control=5))
    assert torch.equal(merged.start, expected.start)
    torch.testing.assert_close(merged.length, expected.length, rtol=1e-4, atol=0)
    assert merged.settings["about"] == {"model": "vae2", "std": "rbf", "feature_map": None}
    # Once more is fine; over another study is not.
    assert main(["merge", str(tmp_path), "--out", str(tmp_path / "merged")]) == 0
    study(metric, 6, seed=4, chunk_size=2).save(tmp_path / "other" / "study")
    with pytest.raises(SystemExit):
        main(["merge", str(tmp_path), "--out", str(tmp_path / "other")])
    assert "another study" in capsys.readouterr().err
    # A second call reads; one of another study is refused.
    assert main([*options, "--shard", "2/2"]) == 0
    with pytest.raises(SystemExit) as refusal:
        main([*options, "--shard", "2/2", "--step-size", "2"])
    assert refusal.value.code == 2
    assert "step_size is 1.0, not 2.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "vae1"], "--out"),
        (["--model", "vae9", "--out", "x"], "no shipped model named 'vae9'"),
        (["--model", "vae1-x", "--out", "x"], "invalid variant value: 'vae1-x'"),
        (["--model", "vae1", "--out", "x", "--shard", "3of4"], "expected I/N, such as 3/20"),
        (["--model", "vae1", "--out", "x", "--shard", "4/3"], "1 <= i <= n"),
        (["--model", "vae1", "--out", "x", "--shard", "1/3"], "3 shards of 2 chunks"),
        (["--model", "vae1", "--out", "x", "--samples", "0"], "n_samples"),
        (["--model", "vae1", "--out", "x", "--n-control", "2"], "n_control"),
        (["--model", "vae1", "--out", "x", "--device", "abacus"], "abacus"),
        (["merge", "nowhere", "--out", "x"], "nowhere"),
        (["merge", "--out", "x"], "PART"),
    ],
)
def test_command_line_refuses(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as refusal:
        main(arguments)
    assert refusal.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_command_line_options_reach_the_study(tmp_path, capsys):
    options = ["--model", "vae1", "--samples", "2", "--n-control", "4", "--quiet", "--device", "cpu"]
    more = ["--std", "constant", "--feature-map", "logits", "--direction", "pairs"]
    assert main([*options, *more, "--out", str(tmp_path / "a")]) == 0
    found = lgi.load_study(tmp_path / "a")
    assert found.settings["about"] == {"model": "vae1", "std": "constant", "feature_map": "logits"}
    assert torch.equal(found.end, lgi.load_codes("vae1").z[found.end_code])
    feature_map = lgi.load_model("logistic_regression", output="logits")
    metric = PullbackMetric(lgi.load_model("vae1", std="constant").decoder, feature_map)
    straight = lgi.curve_length(metric, lgi.CubicBSpline.line(found.start, found.end))
    torch.testing.assert_close(found.straight_length, straight, rtol=1e-3, atol=0)
    assert capsys.readouterr().out == ""


def test_interrupted_command_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    options = ["--model", "vae2", "--samples", "6", "--chunk-size", "2", "--n-control", "4", "--device", "cpu"]
    # A first call for its time.
    interrupted = Mock(wraps=algorithm1.shorten, side_effect=[DEFAULT, DEFAULT, KeyboardInterrupt])
    with monkeypatch.context() as patch:
        patch.setattr(algorithm1, "shorten", interrupted)
        with pytest.raises(SystemExit) as stop:
            main([*options, "--out", str(tmp_path)])
    assert stop.value.code == 130
    assert "interrupted with 2 samples" in capsys.readouterr().err
    assert main([*options, "--out", str(tmp_path)]) == 0
    assert lgi.load_study(tmp_path).complete


def test_command_line_takes_the_generator_of_the_gan(tmp_path, monkeypatch):
    gan = SimpleNamespace(generator=Decoder(dtype=torch.float32))
    monkeypatch.setattr(algorithm1.zoo, "load_model", lambda name, device: {"gan": gan}[name])
    options = ["--model", "gan", "--samples", "2", "--n-control", "4", "--quiet", "--device", "cpu"]
    assert main([*options, "--out", str(tmp_path)]) == 0
    found = lgi.load_study(tmp_path)
    assert torch.equal(found.end, study(PullbackMetric(gan.generator), 2).end)
    assert found.settings["about"] == {"model": "gan", "std": None, "feature_map": None}
