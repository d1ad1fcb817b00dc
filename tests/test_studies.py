"""Studies on disk: statistics, files, interruptions of any kind, shards."""

import itertools
import math
import shutil
import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from unittest.mock import DEFAULT, Mock

import numpy as np
import pandas
import pytest
import safetensors.numpy
import scipy.stats
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_artifacts import damages
from torch import nn

from lgi import algorithm1, artifacts, studies
from lgi.algorithm1 import worst_case_improvement
from lgi.fingerprints import one_computed_again
from lgi.metric import PullbackMetric
from lgi.solver import SolverSettings
from lgi.statistics import bootstrap_interval
from lgi.studies import UncertifiedWarning, load_study, merge_studies


class Generator(nn.Module):
    latent_dim = 2

    def __init__(self, radius=1.0):
        super().__init__()
        self.radius = nn.Parameter(torch.tensor(radius, dtype=torch.float64), requires_grad=False)

    def forward(self, z):
        return self.radius * torch.cat([z.sin(), z.cos(), z.square()], dim=1)


# Some tests want few samples certified, others do not care.
pytestmark = pytest.mark.filterwarnings("ignore::lgi.studies.UncertifiedWarning")

METRIC = PullbackMetric(Generator())
CHUNKS = "lgi_study_chunks"


@pytest.fixture
def quick_solver(monkeypatch):
    """A stand-in for `lgi.shorten` where its results do not matter, only that each sample has its own."""

    def shorten(metric, start, end, settings, *, first_pair):
        straight = (end - start).norm(dim=1) + start.norm(dim=1)
        length = straight * (1 - torch.exp(-start[:, 0].abs()) / 5)
        zero = torch.zeros_like(straight)
        return SimpleNamespace(
            straight_length=straight, length=length, improvement=1 - length / straight, converged=start[:, 1] < 1,
            residual=zero, refinement_gain=zero, length_error=zero, n_control=zero.long() + 4, n_rows=zero + 100,
        )  # fmt: skip

    monkeypatch.setattr(algorithm1, "shorten", shorten)
    monkeypatch.setattr(artifacts, "_git_commit", lambda: None)
    # Else one more call.
    monkeypatch.setattr(studies, "_measured_piece", lambda compute, samples, parallel: len(samples))


def run(folder=None, n=50, metric=METRIC, **options):
    return worst_case_improvement(metric, n, folder=folder, **{"chunk_size": 10, "progress": False} | options)


def samples_in(folder):
    """Bytes of the samples in each file of a folder: without the headers, in which dates and seconds are."""
    contents = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.safetensors")}
    return {str(name): content[8 + int.from_bytes(content[:8], "little") :] for name, content in contents.items()}


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(a, b):
    assert a.columns.keys() == b.columns.keys()
    assert all(np.array_equal(column, b.columns[name], equal_nan=True) for name, column in a.columns.items())
    assert a.settings == b.settings


def farthest(study):
    """Row of the sample that lies farthest out, of those whose straight line has a length."""
    distance = study.start.square().sum(1) + study.end.square().sum(1)
    return int(distance.where(study.straight_length.isfinite(), -1).argmax())


# --- statistics and files --------------------------------------------------------------------------------------------


def test_statistics(quick_solver):
    found = run(n=400)
    x = found.improvement.numpy()
    assert found.mean == pytest.approx(x.mean())
    assert found.std == pytest.approx(x.std(ddof=1))
    assert found.quantiles == {q: pytest.approx(np.quantile(x, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    assert found.certified == pytest.approx((found.start[:, 1] < 1).double().mean().item())
    assert 0.5 < found.certified < 1
    half_width = 1.96 * x.std(ddof=1) / math.sqrt(400)
    low, high = found.confidence_interval
    assert (low, high) == pytest.approx((found.mean - half_width, found.mean + half_width), abs=0.15 * half_width)
    for text in (f"{found.mean:.2%}", f"{low:.2%}", "400 of 400 samples"):
        assert text in str(found)


def test_bootstrap_of_one_and_of_equal_values():
    assert bootstrap_interval(np.array([0.3])) == (0.3, 0.3)
    assert bootstrap_interval(np.full(7, 0.25)) == (0.25, 0.25)


SKEWED = {  # both of skewness 3.8, with their mean
    "lognormal": (lambda rng, shape: rng.lognormal(0, 0.8119, shape), math.exp(0.8119**2 / 2)),
    "gamma": (lambda rng, shape: rng.gamma(0.277, size=shape), 0.277),
}


@pytest.mark.parametrize(("n", "least"), [(20, 0.9), (100, 0.92)])
@pytest.mark.parametrize("name", SKEWED)
def test_interval_covers_the_mean(name, n, least):
    """Percentiles cover it in 88 and 84 % at n = 20."""
    draw, mean = SKEWED[name]
    x = draw(np.random.default_rng(1), (400, n))
    assert scipy.stats.skew(draw(np.random.default_rng(0), 10**6)) == pytest.approx(3.8, abs=0.4)
    low, high = np.array([bootstrap_interval(sample) for sample in x]).T
    assert least < ((low < mean) & (high > mean)).mean() < 0.99
    assert (low < x.mean(1)).all()
    assert (x.mean(1) < high).all()


def test_interval_is_finite_scales_and_ends_where_it_must():
    for x in ([0.0, 1.0], [0.1, 0.2, 0.5], [0.0] * 19 + [1.0], [0.3] * 10 + [0.3 + 1e-16], [0.0, 1e-200]):
        low, high = bootstrap_interval(np.array(x))
        assert min(x) - 20 * max(x) <= low <= np.mean(x) <= high <= 20 * max(x)
        scaled = bootstrap_interval(np.array(x) * 1024)
        assert scaled == pytest.approx((1024 * low, 1024 * high))
    assert bootstrap_interval(np.array([0.0, 1.0]), least=0, most=1) == (0, 1)


def test_means_over_all_and_over_certified_samples_side_by_side(quick_solver):
    with pytest.warns(UncertifiedWarning, match=r"only 8\d\.\d% of the curves are certified \(the mean over") as warned:
        found = run(n=400)
    assert warned[0].filename == __file__
    x, sure = found.improvement, found.converged
    assert found.mean_certified == pytest.approx(x[sure].mean().item())
    assert abs(found.mean_certified - found.mean) > 1e-4
    for text in (f"{found.mean_certified:.2%} over the {found.certified:.1%}", "; warning: only 8", found.warning):
        assert text in str(found)
    for n_lost, warns in ((20, False), (21, True)):  # of 400: 95 %
        part = replace(found, converged=torch.arange(400) >= n_lost)
        assert bool(part.warning) is warns
        assert ("warning" in str(part)) is warns
    none = replace(found, converged=torch.zeros(400, dtype=torch.bool))
    assert math.isnan(none.mean_certified)
    assert "none certified" in str(none)
    assert "(none at all)" in none.warning


def test_a_study_without_statistics_is_kept_too(tmp_path, quick_solver):
    found = run()
    for value, reason in ((0.0, "have length 0"), (torch.nan, "lead to where the metric is not finite")):
        lost = replace(found, straight_length=torch.full_like(found.straight_length, value))
        lost.save(tmp_path / reason)
        assert f"none with an improvement, 50 left out: their straight lines {reason}" in str(lost)
        with pytest.raises(ValueError, match=reason):
            _ = lost.mean


def test_samples_without_an_improvement_are_in_no_statistic(quick_solver):
    found = run(n=40)
    defined = torch.arange(40) >= 10
    names = ("straight_length", "improvement")
    partly = replace(found, **{name: getattr(found, name).where(defined, 0.0) for name in names})
    sure = found.converged[10:]
    assert partly.certified == pytest.approx(sure.double().mean().item())
    assert partly.mean_certified == pytest.approx(found.improvement[10:][sure].mean().item())
    x = found.improvement[10:].numpy()
    assert partly.mean == pytest.approx(x.mean())
    assert partly.std == pytest.approx(x.std(ddof=1))
    assert partly.confidence_interval == bootstrap_interval(x, least=0, most=1)
    assert partly.quantiles[0.5] == pytest.approx(np.median(x))
    assert "10 left out" in str(partly)


def test_pandas_reads_a_study_in_one_line(tmp_path, quick_solver):
    found = run()
    found.save(tmp_path / "study")
    table = pandas.DataFrame(safetensors.numpy.load_file(tmp_path / "study.safetensors"))
    assert len(table) == 50
    assert {"index", "start_0", "start_1", "end_0", "end_1", "straight_length", "improvement", "converged"} <= {*table}
    assert table.improvement.mean() == pytest.approx(found.mean)
    assert table.converged.dtype == bool
    np.testing.assert_array_equal(table[["end_0", "end_1"]].to_numpy(), found.end.numpy())
    in_memory = pandas.DataFrame(found.columns)
    pandas.testing.assert_frame_equal(table[[*in_memory]], in_memory)


def test_saved_and_loaded(tmp_path, quick_solver):
    codes = torch.rand(20, 2, dtype=torch.float64)
    found = run(direction="pairs", codes=codes, about={"who": ("me", 1)})
    found.save(tmp_path / "mine")
    for path in (tmp_path / "mine", str(tmp_path / "mine.safetensors")):
        same(load_study(path), found)
    assert load_study(tmp_path / "mine").start_code.dtype == torch.int64
    record = artifacts.load(tmp_path / "mine", name="study").record
    assert record["mean"] == found.mean
    assert record["confidence_interval"] == list(found.confidence_interval)


def test_nothing_to_load(tmp_path, quick_solver):
    with pytest.raises(ValueError, match="no study"):
        load_study(tmp_path)
    with pytest.raises(ValueError, match=r"no study .*nowhere"):
        load_study(tmp_path / "nowhere")


def with_columns(change):
    """Write a chunk anew, all right in itself, with other columns."""

    def write(file, _):
        kept = artifacts.load(file.with_suffix(""), name="study chunk")
        about = {"name": "study chunk", "settings": kept.settings, "version": kept.version}
        artifacts.save(file.with_suffix(""), change(kept.tensors), kept.record, **about)

    return write


def with_index(change):
    return with_columns(lambda columns: columns | {"index": change(columns["index"])})


_HEADER = b'{"__metadata__":{"lgi":"' + b"[" * 99_999 + b'"}}'
NESTED = len(_HEADER).to_bytes(8, "little") + _HEADER
# What is done to chunk 3, and perhaps 1; whether reading says so, and which files are set aside when it is resumed.
FAULTS = {
    "cut": (lambda file, _: file.write_bytes(file.read_bytes()[:-1]), "000003.safetensors is truncated", [3]),
    "nested": (lambda file, _: file.write_bytes((99_999).to_bytes(8, "little") + b"[" * 99_999), "3.*truncated", [3]),
    "nested settings": (lambda file, _: file.write_bytes(NESTED), "3.*truncated", [3]),
    "copied": (lambda file, other: file.write_bytes(other.read_bytes()), "000003.* holds samples 10 to 19", [3]),
    "exchanged": (
        lambda file, other: (other.rename(file.with_name("x")), file.rename(other), file.with_name("x").rename(file)),
        "000001.safetensors holds samples 30 to 39",
        [1, 3],
    ),
    "one number twice": (
        with_index(lambda index: index.clamp_max(38)),
        "000003.safetensors holds samples 30 to 38",
        [3],
    ),
    "last samples only": (
        with_columns(lambda columns: {name: column[4:].clone() for name, column in columns.items()}),
        "000003.safetensors holds samples 34 to 39, by its number those from 30",
        [3],
    ),
    "none": (
        with_columns(lambda columns: {name: column[:0].clone() for name, column in columns.items()}),
        "000003.safetensors holds no samples",
        [3],
    ),
    "beyond the last": (
        lambda file, _: file.with_name("000009.safetensors").write_bytes(file.read_bytes()),
        "000009.safetensors holds samples 30 to 39, by its number those from 90",
        [9],
    ),
    "deleted": (lambda file, _: file.unlink(), None, []),
    "left by a kill": (lambda file, _: file.rename(file.with_name(f".{file.name}.{'0' * 32}.tmp")), None, []),
}


def set_aside(folder):
    """Numbers of the chunks that are set aside, as they are and with a word, when a study is gone on with."""
    files = {path: path.read_bytes() for path in (folder / CHUNKS).glob("*.safetensors")}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", UncertifiedWarning)
        same(run(folder), run())
    found = {path.name.split(".")[0]: path for path in (folder / CHUNKS).glob("*.damaged-*")}
    assert all(path.name in str(said.message) for path, said in zip(sorted(found.values()), told, strict=True))
    assert all(path.read_bytes() == files[folder / CHUNKS / f"{name}.safetensors"] for name, path in found.items())
    assert [path.name for path in (folder / CHUNKS).glob(".*")] == []
    return sorted(map(int, found))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_chunk_is_refused_when_read_and_computed_again_when_resumed(tmp_path, quick_solver, fault):
    act, message, aside = FAULTS[fault]
    run(tmp_path)
    before = samples_in(tmp_path)
    folder = tmp_path / CHUNKS
    act(folder / "000003.safetensors", folder / "000001.safetensors")
    changed = contents(tmp_path)
    if message is None:
        assert len(load_study(tmp_path)) == 40
    else:
        for read in (load_study, lambda folder: merge_studies([folder]), lambda folder: merge_studies([folder] * 2)):
            with pytest.raises(
                artifacts.DamagedError, match=f"{message}.* let the call that computes this study do so"
            ):
                read(tmp_path)
    assert contents(tmp_path) == changed
    assert set_aside(tmp_path) == aside
    assert samples_in(tmp_path) == before


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 4), damage=damages())
def test_a_damaged_chunk_is_never_read_as_another_and_computed_again(tmp_path, quick_solver, number, damage):
    shutil.rmtree(tmp_path / CHUNKS, ignore_errors=True)
    whole = run(tmp_path)
    before = samples_in(tmp_path)
    damage(file := tmp_path / CHUNKS / f"{number:06d}.safetensors")
    refused = []
    for read in (load_study, lambda folder: merge_studies([folder])):
        try:
            same(read(tmp_path), whole)  # a bit between two words of the header
        except artifacts.DamagedError as error:
            refused.append(file.name in str(error))
    assert refused in ([], [True, True])
    assert set_aside(tmp_path) == [number] * any(refused)
    assert samples_in(tmp_path) == before


def test_damage_in_another_study_is_not_touched(tmp_path, quick_solver):
    run(tmp_path, seed=1)
    (tmp_path / CHUNKS / "000001.safetensors").write_bytes(b"cut")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="another study: seed is 1, not 0"):
        run(tmp_path)
    assert contents(tmp_path) == before


def test_samples_outside_a_study_are_refused(quick_solver):
    found = run()
    with pytest.raises(ValueError, match="expected samples 0 to 49, got 1 to 50"):
        merge_studies([replace(found, index=found.index + 1)])


# --- interruptions ---------------------------------------------------------------------------------------------------


def test_folder_changes_nothing(tmp_path, quick_solver):
    same(run(tmp_path), run())
    assert sorted(samples_in(tmp_path)) == [f"{CHUNKS}/{number:06d}.safetensors" for number in range(5)]
    kept = artifacts.load(tmp_path / CHUNKS / "000004", name="study chunk")
    assert kept.record["samples"] == [40, 50]
    assert kept.record["seconds"] > 0
    assert kept.provenance["versions"]["torch"]


def test_finished_study_is_read_not_computed(tmp_path, quick_solver, monkeypatch):
    found = run(tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(algorithm1, "shorten", None)
    same(run(tmp_path), found)
    assert contents(tmp_path) == before


@pytest.fixture
def at_call(quick_solver, monkeypatch):
    """``at_call(n, act)``: before the n-th chunk is computed, something happens."""

    def set_up(n, act):
        real, calls = algorithm1.shorten, itertools.count(1)

        def shorten(*arguments, **options):
            if next(calls) == n:
                act()
            return real(*arguments, **options)

        monkeypatch.setattr(algorithm1, "shorten", shorten)

    return set_up


def test_interrupt_leaves_a_usable_study(tmp_path, at_call):
    whole = run()
    at_call(3, Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    partial = load_study(tmp_path)
    assert not partial.complete
    assert (len(partial), partial.n_samples) == (20, 50)
    assert "20 of 50 samples" in str(partial)
    for name, column in partial.columns.items():
        assert np.array_equal(column, whole.columns[name][:20])
    assert partial.mean == pytest.approx(whole.improvement[:20].mean().item())
    same(run(tmp_path), whole)
    assert load_study(tmp_path).complete


@pytest.fixture
def slow_solver(quick_solver, monkeypatch):
    """Samples of so many seconds by a clock of their own; sizes and places of what was computed, times of writing."""
    real, save, now, seen = algorithm1.shorten, artifacts.save, [0.0], SimpleNamespace(calls=[], written=[])
    monkeypatch.setattr(studies.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(studies, "_measured_piece", MEASURED_PIECE)

    def set_up(seconds):
        def shorten(metric, start, *arguments, **options):
            now[0] += seconds * len(start)
            seen.calls.append((len(start), options["first_pair"]))
            return real(metric, start, *arguments, **options)

        monkeypatch.setattr(algorithm1, "shorten", shorten)
        return seen

    monkeypatch.setattr(artifacts, "save", lambda *args, **kwargs: (seen.written.append(now[0]), save(*args, **kwargs)))
    return set_up


MEASURED_PIECE = studies._measured_piece


@pytest.mark.parametrize(("seconds", "piece"), [(0.001, 50), (0.19, 50), (0.21, 13), (1.5, 4), (4.4, 1), (40, 1)])
def test_a_chunk_is_written_every_ten_seconds_or_sample(tmp_path, slow_solver, seconds, piece):
    seen = slow_solver(seconds)
    found = run(tmp_path, n=100, chunk_size=50)
    assert np.diff([0, *seen.written]).max() <= max(10.3 + 8 * seconds, 2 * seconds)
    assert len(seen.written) == 2 * math.ceil(50 / piece)
    # Where a sample lies in its chunk is what bent curves depend on.
    assert sorted({first for _, first in seen.calls}) == [*range(0, 50, piece)]
    assert sorted(samples_in(tmp_path)) == [f"{CHUNKS}/00000{number}.safetensors" for number in range(2)]
    assert artifacts.load(tmp_path / CHUNKS / "000001", name="study chunk").record["samples"] == [50, 100]
    assert artifacts.load(tmp_path / CHUNKS / "000001", name="study chunk").record["seconds"] == pytest.approx(
        50 * seconds
    )
    same(found, run(n=100, chunk_size=50))


@pytest.mark.parametrize(
    ("alone", "each", "parallel", "piece"), [(3, 0.001, True, 500), (3, 0.2, True, 32), (3, 0.001, False, 2)]
)
def test_pieces_on_a_gpu_go_by_what_more_samples_add(monkeypatch, alone, each, parallel, piece):
    """There a search takes as long for one sample as for hundreds, and its start is no sample's."""
    now = [0.0]
    monkeypatch.setattr(studies.time, "perf_counter", lambda: now[0])

    def compute(samples):
        now[0] += alone + each * len(samples)

    assert MEASURED_PIECE(compute, range(500), parallel=parallel) == piece


def test_pieces_are_gone_on_with_as_they_were_begun(tmp_path, slow_solver, monkeypatch):
    """Whoever goes on, how fast his machine may be: the solver is asked for the same samples together."""
    seen = slow_solver(1.5)
    run(tmp_path / "whole", n=30)
    whole = seen.calls[1:]  # the first is for its time
    assert [size for size, _ in whole] == [3, 3, 3, 1] * 3
    for n_calls in (2, 4, 5, 6, 9):
        seen = slow_solver(1.5)
        seen.calls.clear()
        interrupted = Mock(wraps=algorithm1.shorten, side_effect=[DEFAULT] * n_calls + [KeyboardInterrupt])
        monkeypatch.setattr(algorithm1, "shorten", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / f"{n_calls}", n=30)
        kept = load_study(tmp_path / f"{n_calls}")
        assert len(kept) == sum(size for size, _ in whole[: n_calls - 1])
        slow_solver(0.001)
        same(run(tmp_path / f"{n_calls}", n=30), load_study(tmp_path / "whole"))
        calls = seen.calls[1:]
        # One stored sample is computed once more before it goes on, by itself and as at its place in its chunk.
        assert calls.pop(n_calls - 1) == (1, int(kept.index[farthest(kept)]) % 10)
        assert calls == whole
        assert samples_in(tmp_path / f"{n_calls}") == samples_in(tmp_path / "whole")


def test_a_run_that_is_behind_takes_over_what_another_has_written(tmp_path, slow_solver, monkeypatch):
    seen = slow_solver(1.5)
    behind, other = algorithm1.shorten, []

    def shorten(*arguments, **options):
        if len(seen.calls + seen.written) > 3 and not other:
            other.append(True)
            run(tmp_path)
            seen.written.clear()
        return behind(*arguments, **options)

    monkeypatch.setattr(algorithm1, "shorten", shorten)
    same(run(tmp_path), run())
    assert seen.written == []
    assert load_study(tmp_path).complete


# --- another study in the folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed is 0, not 1"),
        ({"n": 60}, "n_samples is 50, not 60"),
        ({"step_size": 0.5}, "step_size is 1.0, not 0.5"),
        ({"direction": "minimal"}, "direction is 'maximal', not 'minimal'"),
        ({"chunk_size": 5}, "chunk_size is 10, not 5"),
        ({"settings": SolverSettings(n_control=7)}, f"solver: n_control is {SolverSettings().n_control}, not 7"),
        ({"dtype": torch.float32}, "dtype is 'float64', not 'float32'"),
        ({"about": {"model": "x"}}, "about: model is None, not 'x'"),
        ({"metric": PullbackMetric(Generator(1.01))}, "parameters of the metric differ; speeds in the metric differ"),
        ({"metric": PullbackMetric(lambda z: METRIC.generator(2 * z) / 2, latent_dim=2), "dtype": torch.float64},
         "speeds in the metric differ"),
        ({"codes": torch.ones(3, 2)}, "codes differ"),
        # As little as a thousandth, or only in places.
        ({"metric": PullbackMetric(Generator(1 + 3e-4))}, "parameters of the metric differ; .*the samples are"),
        ({"metric": PullbackMetric(lambda z: METRIC.generator(z) * (1 + 3e-4), latent_dim=2), "dtype": torch.float64},
         "speeds where the samples are differ"),
        ({"metric": PullbackMetric(lambda z: METRIC.generator(z) * (1 + 0.01 * (z[:, :1] > 1.5)), latent_dim=2),
          "dtype": torch.float64}, "speeds where the samples are differ"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("finished", [True, False])
def test_another_study_is_refused(tmp_path, quick_solver, options, message, finished):
    (run if finished else unfinished)(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=message) as refusal:
        run(tmp_path, **options)
    assert str(tmp_path) in str(refusal.value)
    assert contents(tmp_path) == before


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(axis=st.integers(0, 1), bound=st.floats(-2, 2), size=st.floats(3e-3, 1), sign=st.sampled_from([1, -1]))
def test_a_generator_that_differs_beyond_any_border_is_refused(tmp_path, quick_solver, axis, bound, size, sign):
    unfinished(tmp_path)
    before = contents(tmp_path)
    assume((load_study(tmp_path).start[:, axis] > bound).any())

    def other(z):
        return METRIC.generator(z) * (1 + sign * size * (z[:, axis : axis + 1] > bound))

    with pytest.raises(ValueError, match="another study"):
        run(tmp_path, metric=PullbackMetric(other, latent_dim=2), dtype=torch.float64)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("change", [lambda w: w.flip(0), lambda w: -w, lambda w: w * (1 + 3e-4)])
def test_parameters_are_told_apart_by_order_signs_and_size(tmp_path, quick_solver, change):
    class Unused(Generator):  # so that no speed shows it
        def __init__(self, weight):
            super().__init__()
            self.weight = nn.Parameter(weight, requires_grad=False)

    weight = torch.linspace(-1, 2, 7).exp()
    run(tmp_path, metric=PullbackMetric(Unused(weight)))
    with pytest.raises(ValueError, match="of the metric"):
        run(tmp_path, metric=PullbackMetric(Unused(change(weight))))


def test_one_sample_is_computed_again_before_a_study_is_gone_on_with(tmp_path, quick_solver, monkeypatch):
    unfinished(tmp_path)
    before = contents(tmp_path)
    stored = load_study(tmp_path)
    sample = farthest(stored)
    # As if of an earlier version, which took no fingerprint where the samples are; and of a solver that has changed.
    real = algorithm1.shorten

    def shorten(*arguments, **options):
        found = real(*arguments, **options)
        found.straight_length = found.straight_length * 1.002
        return found

    monkeypatch.setattr(algorithm1, "shorten", shorten)
    with pytest.raises(ValueError, match=f"another study: straight_length of sample {sample} is .* computed again"):
        run(tmp_path)
    assert contents(tmp_path) == before


def test_a_study_with_unknown_samples_is_gone_on_with(tmp_path, quick_solver):
    """The farthest sample is one of them: NaN then, and NaN when it is computed again."""
    inside = PullbackMetric(lambda z: METRIC.generator(z.where(z.norm(dim=1)[:, None] < 1.7, torch.nan)), latent_dim=2)
    options = {"metric": inside, "dtype": torch.float64}
    whole = run(tmp_path, **options)
    lost = whole.straight_length.isnan()
    assert bool(lost[whole.start.norm(dim=1).argmax()])
    assert 5 < int(lost.sum()) < 45
    assert load_study(tmp_path).settings["fingerprint"]["speeds where the samples are"].count(-1) == int(lost.sum())
    (tmp_path / CHUNKS / "000002.safetensors").unlink()
    same(run(tmp_path, **options), whole)
    # And where nothing but such samples is kept.
    columns = {name: torch.from_numpy(column)[lost] for name, column in whole.columns.items()}
    row = int(lost.nonzero()[0])
    again = {name: column[row : row + 1] for name, column in whole.columns.items()}
    assert one_computed_again(columns, lambda samples, end: again if samples == [row] else None) == []
    again["straight_length"] = np.ones(1)
    assert one_computed_again(columns, lambda samples, end: again) == [
        f"straight_length of sample {row} is nan, and 1 when it is computed again"
    ]


def test_a_study_where_eigenvalues_lie_close_together_is_gone_on_with(tmp_path):
    """Rounding, which differs between one sample and many, turns the eigenvectors of float32."""
    draw = torch.Generator().manual_seed(0)
    rotate = torch.linalg.qr(torch.randn(300, 300, generator=draw, dtype=torch.float64))[0].float()
    stretch = torch.tensor([1, 1 + 4e-6])

    def generator(z):
        return torch.cat([(z * stretch).sin(), (z * stretch).cos()], dim=1) @ rotate[:4] @ rotate.T @ rotate

    solver = SolverSettings(n_control=4, n_iterations=2)
    for seed in range(4):
        folder = tmp_path / f"{seed}"
        whole = run(folder, 64, PullbackMetric(generator), settings=solver, seed=seed, chunk_size=32, latent_dim=2)
        (folder / CHUNKS / "000001.safetensors").unlink()
        same(run(folder, 64, PullbackMetric(generator), settings=solver, seed=seed, chunk_size=32, latent_dim=2), whole)


def test_the_packages_version_is_among_the_settings(tmp_path, quick_solver, monkeypatch):
    unfinished(tmp_path)
    assert load_study(tmp_path).settings["lgi"] == artifacts.installed_version()
    with monkeypatch.context() as patch:
        patch.setattr(algorithm1, "installed_version", lambda: "9.0")
        with pytest.raises(ValueError, match=r"another study: lgi is '0\..*', not '9\.0'"):
            run(tmp_path)
        patch.setattr(algorithm1, "installed_version", lambda: None)  # as in studies of earlier versions
        run(tmp_path)


@pytest.mark.parametrize("change", [lambda z: z[[0, 1, 3, 2, *range(4, 300)]], lambda z: -z], ids=["order", "signs"])
def test_order_and_signs_of_codes_tell_studies_apart(tmp_path, quick_solver, change):
    codes = torch.randn(300, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    run(tmp_path, codes=codes)
    with pytest.raises(ValueError, match="order and signs of the codes differ"):
        run(tmp_path, codes=change(codes))
    same(run(tmp_path, codes=codes * (1 + 1e-8)), load_study(tmp_path))


def test_order_of_codes_does_not_hang_on_cancellation(tmp_path, quick_solver):
    codes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    run(tmp_path, codes=codes)
    assert len(run(tmp_path, codes=codes + torch.tensor([1e-9, 0], dtype=torch.float64))) == 50


def unfinished(folder, **options):
    """Leave two chunks of five."""
    run(folder, **options)
    for path in (folder / CHUNKS).glob("00000[234]*"):
        path.unlink()


@pytest.mark.parametrize(
    "options",
    [
        {"metric": PullbackMetric(Generator(1 + 1e-7))},
        {"settings": SolverSettings(chunk_size=3, progress=False), "progress": True},
    ],
    ids=["rounding of another machine", "what changes no result"],
)
def test_what_is_the_same_study(tmp_path, quick_solver, options):
    unfinished(tmp_path)
    run(tmp_path, **options)
    same(load_study(tmp_path), run())


def test_foreign_files_survive_and_are_ignored(tmp_path, quick_solver):
    names = (f"{CHUNKS}/{n}.safetensors" for n in (2024, "1_b", "0000001"))
    foreign = [tmp_path / name for name in ("mine.csv", "000000.safetensors", *names)]
    for file in foreign:
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    with pytest.raises(ValueError, match="no study"):
        load_study(tmp_path)
    for _ in range(2):
        same(run(tmp_path), run())
    assert all(file.read_text() == "{}" for file in foreign)


def test_shards_share_a_folder(tmp_path, at_call):
    def second_shard():
        # While the first shard computes its second chunk; from another machine.
        found = run(tmp_path, shard=(2, 2), metric=PullbackMetric(Generator(1 + 1e-7)))
        assert (len(found), found.complete) == (40, False)

    at_call(2, second_shard)
    same(run(tmp_path, shard=(1, 2)), load_study(tmp_path))
    assert load_study(tmp_path).complete
    assert load_study(tmp_path).index.tolist() == list(range(50))


def test_two_studies_at_once_in_one_folder(tmp_path, at_call):
    """Who writes a chunk first wins."""
    at_call(1, lambda: run(tmp_path, seed=1))
    with pytest.raises(ValueError, match="another study: seed is 1, not 0"):
        run(tmp_path)
    same(load_study(tmp_path), run(seed=1))


def test_files_of_two_studies_in_one_folder_are_refused(tmp_path, quick_solver):
    run(tmp_path / "one")
    run(tmp_path / "two", seed=1)
    (tmp_path / "two" / CHUNKS / "000003.safetensors").replace(tmp_path / "one" / CHUNKS / "000003.safetensors")
    with pytest.raises(ValueError, match=r"000000 and .*000003 are of different studies: seed is 0, not 1"):
        load_study(tmp_path / "one")


def test_unwritable_folder_is_refused_before_anything_is_computed(tmp_path, quick_solver, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(algorithm1, "shorten", None)
    with pytest.raises(artifacts.ArtifactError, match=r"cannot write to .*file.* --out"):
        run(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_study_is_not_written_over_another(tmp_path, quick_solver):
    found = run()
    found.save(tmp_path / "mine")
    found.save(tmp_path / "mine.safetensors")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="mine holds another study: seed is 0, not 1"):
        run(seed=1).save(tmp_path / "mine")
    part = replace(found, **{name: getattr(found, name)[:10] for name in studies._FIELDS if "code" not in name})
    with pytest.raises(ValueError, match="holds 50 samples of this study, more than these 10"):
        part.save(tmp_path / "mine")
    assert contents(tmp_path) == before
    part.save(tmp_path / "part")
    found.save(tmp_path / "part")
    same(load_study(tmp_path / "part"), found)


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5])
def test_shards_make_the_same_samples(tmp_path, n):
    options = {"metric": PullbackMetric(Generator()), "n": 47, "settings": SolverSettings(n_control=5)}
    whole = run(tmp_path / "whole", **options)
    shards = [run(tmp_path / f"{i}", shard=(i, n), **options) for i in range(1, n + 1)]
    assert sum(len(shard) for shard in shards) == 47
    copied = {name: samples for i in range(1, n + 1) for name, samples in samples_in(tmp_path / f"{i}").items()}
    assert copied == samples_in(tmp_path / "whole")
    merged = merge_studies([tmp_path / f"{i}" for i in range(n, 0, -1)], folder=tmp_path / "merged")
    for found in (merged, merge_studies(shards), load_study(tmp_path / "merged")):
        same(found, whole)
    whole.save(tmp_path / "saved")
    assert (tmp_path / "merged" / "study.safetensors").read_bytes() == (tmp_path / "saved.safetensors").read_bytes()


def test_parts_that_do_not_make_a_study(tmp_path, quick_solver):
    one, two, three = (run(tmp_path / f"{i}", shard=(i, 3)) for i in (1, 2, 3))
    assert len(merge_studies([one, two, three])) == 50
    with pytest.raises(ValueError, match="got none"):
        merge_studies([])
    with pytest.raises(ValueError, match="10 of 50 samples are missing, the first is number 0"):
        merge_studies([tmp_path / "2", three])
    with pytest.raises(ValueError, match=r"10 samples are there twice, in study 1 and .*1$"):
        merge_studies([one, two, tmp_path / "1"])
    with pytest.raises(ValueError, match="study 1 and study 3 are of different studies: seed is 0, not 4"):
        merge_studies([one, two, run(shard=(3, 3), seed=4)])
    with pytest.raises(ValueError, match="different studies: parameters of the metric differ"):
        merge_studies([one, two, run(shard=(3, 3), metric=PullbackMetric(Generator(0.5)))])
    near = run(shard=(3, 3), metric=PullbackMetric(Generator(1 + 1e-7)))
    assert merge_studies([one, two, near]).settings == run().settings


def test_merged_parts_are_kept(tmp_path, quick_solver, monkeypatch):
    for i in (1, 2):
        run(tmp_path, shard=(i, 2))
    for _ in range(2):  # the same once more is fine
        same(merge_studies([tmp_path], folder=tmp_path), load_study(tmp_path))
    assert artifacts.load(tmp_path / "study", name="study").record["samples"] == 50
    monkeypatch.setattr(algorithm1, "shorten", None)
    same(run(tmp_path), load_study(tmp_path / "study.safetensors"))


@pytest.mark.parametrize("kind", ["foreign", "whole", "half", "damaged"])
def test_a_lone_file_is_never_written_over_nor_mixed(tmp_path, quick_solver, recwarn, kind):
    whole = run()
    {"foreign": run(seed=1), "half": run(shard=(1, 2))}.get(kind, whole).save(tmp_path / "study")
    file = tmp_path / "study.safetensors"
    if kind == "damaged":
        file.write_bytes(file.read_bytes()[:-1])
    before = file.read_bytes()
    if kind == "foreign":
        for write in (run, partial(merge_studies, [whole]), lambda folder: whole.save(folder / "study")):
            with pytest.raises(ValueError, match="holds another study: seed is 1, not 0"):
                write(folder=tmp_path)
    else:
        same(run(tmp_path), whole)
        assert any(str(told.message).startswith(str(file)) for told in recwarn) is (kind == "damaged")
        assert load_study(tmp_path).complete
    assert before in [path.read_bytes() for path in tmp_path.iterdir() if path.is_file()]


def test_merged_parts_are_not_written_over_another_study(tmp_path, quick_solver):
    shards = [run(shard=(i, 2)) for i in (1, 2)]
    for begin in (lambda folder: run(seed=1).save(folder / "study"), lambda folder: unfinished(folder, seed=1)):
        folder = tmp_path / f"{len([*tmp_path.iterdir()])}"
        begin(folder)
        before = contents(folder)
        with pytest.raises(ValueError, match="holds another study: seed is 1, not 0"):
            merge_studies(shards, folder=folder)
        assert contents(folder) == before


def test_studies_of_version_0_1_are_read_and_gone_on_with(tmp_path, quick_solver):
    """There, a shard was a study of its own, in a folder of its own, and wrote all its samples into one file."""
    whole, version = run(), {"name": "study", "version": 2}
    for i in (1, 2):
        part = run(shard=(i, 2))
        old = part.settings | {"shard": [i, 2]}
        artifacts.save(tmp_path / f"shard_{i}_of_2" / "study", part.columns, {}, settings=old, **version)
    same(run(tmp_path / "shard_1_of_2", shard=(1, 2)), run(shard=(1, 2)))
    same(merge_studies([*tmp_path.iterdir()], folder=tmp_path / "merged"), whole)
    # One that was interrupted.
    first = {name: column[:10] for name, column in whole.columns.items()}
    file, old = tmp_path / "unfinished" / CHUNKS / "000000", whole.settings | {"shard": None}
    artifacts.save(file, first, {"seconds": 1.0}, settings=old, **version | {"name": "study chunk"})
    same(run(tmp_path / "unfinished"), whole)
