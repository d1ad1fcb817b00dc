"""Everything on a simulated accelerator: nothing is mixed with the CPU, results are the CPU's, and waiting is rare."""

import itertools
import random
from functools import partial

import pytest
import torch
from accelerator import NAME, simulated, table, waits
from torch.testing import assert_close

import lgi
from lgi import SolverSettings, datasets, training
from lgi.algorithm1 import worst_case_improvement
from lgi.features import VGG19Features
from lgi.metric import metric_fields
from lgi.metric.derivatives import differentiable
from lgi.models import GAN, VAE, Architecture
from lgi.paper import shorter_curve, stochastic_metric
from lgi.solver import search
from lgi.training import GANSettings, TrainingSettings, evaluate, fit_rbf_precision, train_gan, train_vae

pytestmark = [
    pytest.mark.skipif(
        not hasattr(torch._C._acc, "register_python_privateuseone_hook"), reason="this torch cannot simulate a device"
    ),
    # torch 2.11 warns so when a process's first product on a GPU is one of a backward pass, and then makes the context.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS"),
]
START = torch.tensor([[0.5, -0.5], [0.0, 0.5], [-1.0, 1.0]])
END = torch.tensor([[1.0, 0.3], [1.0, -1.0], [0.5, 0.5]])
TINY = Architecture(channels=(2, 4), hidden=8, normalisation="batch", activation="silu")


@pytest.fixture(autouse=True, params=[NAME, *(["cuda"] if torch.cuda.is_available() else [])])
def there(request):
    """The device: the simulated one, and a GPU where there is one."""
    if request.param == NAME:
        with simulated():
            yield NAME
    else:
        state = random.getstate()  # which torch's optimisers draw from there
        yield request.param
        random.setstate(state)


def metric(device="cpu", *, feature_map=None, model="vae1"):
    """The metric of a shipped model on a device."""
    loaded = lgi.load_model(model, device)
    features = None if feature_map is None else lgi.load_model("logistic_regression", device, output=feature_map)
    return lgi.PullbackMetric(getattr(loaded, "decoder", None) or loaded.generator, features)


def same(result, expected, **tolerances):
    """Results on the simulated device equal those of the CPU."""
    if isinstance(expected, tuple):
        for one, other in zip(result, expected, strict=True):
            same(one, other, **tolerances)
    else:
        assert result.device.type != "cpu"
        tolerances = {"rtol": 1e-4, "atol": 1e-6} | tolerances
        if result.device.type == "cuda":  # which sums in another order
            tolerances["rtol"] *= 10
        assert_close(result.cpu(), expected, **tolerances)


def test_the_simulation_is_as_strict_as_a_gpu(there):
    ours, x = torch.ones(3, device=there), torch.ones(3)
    with pytest.raises(RuntimeError, match="device"):
        ours + x
    with pytest.raises((RuntimeError, TypeError)):
        ours.numpy()
    assert (ours * 2 + torch.tensor(1.0)).tolist() == [3, 3, 3]  # a number, which a GPU takes from the CPU too
    waits.clear()
    assert bool((ours > 0).all())
    assert len(ours[ours > 0]) == 3
    if there == NAME:
        assert waits.total() == 2


@pytest.mark.parametrize("feature_map", [None, "logits", "probabilities"])
def test_metric_and_lengths(there, feature_map):
    ours, theirs = metric(there, feature_map=feature_map), metric(feature_map=feature_map)
    for name in ("tensor", "eigh", "log_volume", "log_condition", "decode"):
        result, expected = getattr(ours, name)(START.to(there)), getattr(theirs, name)(START)
        # Of an eigenvector, the sign is arbitrary.
        same(result[0] if name == "eigh" else result, expected[0] if name == "eigh" else expected, rtol=1e-3)
    for name in ("speed", "squared_speed", "apply", "squared_speed_and_gradient"):
        same(getattr(ours, name)(START.to(there), END.to(there)), getattr(theirs, name)(START, END), rtol=1e-3)
    line, here = (lgi.CubicBSpline.line(START.to(to), END.to(to)) for to in (there, "cpu"))
    same(lgi.curve_length(ours, line), lgi.curve_length(theirs, here))
    same(lgi.curve_energy(ours, line), lgi.curve_energy(theirs, here))


def test_metric_fields(there):
    axes = torch.linspace(-2, 2, 3), torch.linspace(-1, 1, 2)
    ours, theirs = metric_fields(metric(there), [x.to(there) for x in axes]), metric_fields(metric(), axes)
    assert_close(ours.eigenvalues, theirs.eigenvalues, rtol=1e-4, atol=1e-6)  # for figures, hence on the CPU


@pytest.mark.needs_vgg
def test_vgg_features(there):
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    features = VGG19Features("relu1_2")
    expected = features(images)
    with differentiable(torch.device(there)):  # as a metric calls them: without TensorFloat-32
        same(features.to(there)(images.to(there)), expected, atol=1e-3)  # of values up to 500


@pytest.mark.parametrize(
    ("method", "starts", "n_iterations"),
    [
        ("gauss-newton", "line", 100),
        ("gauss-newton", "multi", 100),
        ("gauss-newton", "graph", 100),
        ("newton-cg", "line", 100),
        ("gradient", "line", 10),
    ],
)
def test_shorter_curves(there, method, starts, n_iterations):
    settings = SolverSettings(method=method, starts=starts, n_starts=3, n_control=8, n_iterations=n_iterations)
    points = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) if starts == "graph" else None
    ours = lgi.shorten(
        metric(there), START.to(there), END.to(there), settings, points=None if points is None else points.to(there)
    )
    theirs = lgi.shorten(metric(), START, END, settings, points=points)
    same(ours.length, theirs.length)
    same(ours.straight_length, theirs.straight_length)
    same(ours.improvement, theirs.improvement, atol=1e-5)
    assert ours.status.tolist() == theirs.status.tolist()
    certificate, expected = lgi.certify(metric(there), ours.curve), lgi.certify(metric(), theirs.curve)
    same(certificate.length, expected.length)
    assert certificate.minimum.tolist() == expected.minimum.tolist()


def test_a_metric_without_embedding(there):
    settings = SolverSettings(n_iterations=5, n_control=5)

    def length(to):
        return lgi.shorten(metric(to, feature_map="probabilities"), START[:1].to(to), END[:1].to(to), settings).length

    same(length(there), length("cpu"), rtol=1e-2)  # a handful of steps in a rough metric: rounding is amplified


# What the search waits for, however many curves there are. In an iteration: which curves go on, which have stale second
# derivatives, which may hope, which model has no minimum, which curve has won, and whether a std is negative. At a
# visit of a level: which curves begin, end, are certified, look for kinks, go on where.
PER_ITERATION, PER_VISIT = 6, 70


@pytest.mark.parametrize("n_pairs", [2, 40])
def test_an_iteration_waits_for_the_device_a_handful_of_times(there, n_pairs, monkeypatch):
    if there != NAME:
        pytest.skip("only the simulation counts")
    calls = {"_iterate": 0, "_visit": 0}

    def counted(name):
        original = getattr(search.Search, name)

        def call(*args):
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(search.Search, name, call)

    for name in calls:
        counted(name)
    ours = metric(there)
    start, end = torch.randn(2, n_pairs, 2, generator=torch.Generator().manual_seed(0)).to(there)
    ours.speed(start[:1], end[:1])  # looks at the generator
    waits.clear()
    lgi.shorten(ours, start, end)
    allowed = calls["_iterate"] * PER_ITERATION + calls["_visit"] * PER_VISIT
    assert waits.total() <= allowed, f"{calls}, allowed {allowed}, waited\n{table(waits)}"


@pytest.mark.parametrize("eigenvectors", ["eigh", "lanczos"])
def test_algorithm_1(there, eigenvectors):
    settings = {"n_samples": 6, "eigenvectors": eigenvectors}
    ours, theirs = (worst_case_improvement(metric(to), device=to, **settings) for to in (there, "cpu"))
    assert_close(ours.improvement, theirs.improvement, rtol=1e-3, atol=1e-5)
    assert_close(ours.end, theirs.end, rtol=1e-4, atol=1e-4)


def test_algorithm_1_between_codes(there):
    codes = lgi.load_codes("vae1").z[:50]
    settings = {"n_samples": 3, "direction": "pairs"}
    ours = worst_case_improvement(metric(there), codes=codes.to(there), **settings)
    theirs = worst_case_improvement(metric(), codes=codes, **settings)
    assert_close(ours.improvement, theirs.improvement, rtol=1e-3, atol=1e-5)


def test_comparison(there):
    def compared(to):
        ends = (x.to(to) for x in (START, END, START.flip(1), END.flip(1)))
        return lgi.compare_models(metric(to), metric(to, model="gan"), *ends)

    ours, theirs = compared(there), compared("cpu")
    assert_close(ours.improvement_a, theirs.improvement_a, rtol=1e-4, atol=1e-5)
    assert_close(ours.improvement_b, theirs.improvement_b, rtol=1e-4, atol=1e-5)
    assert ours.comparable.tolist() == theirs.comparable.tolist()


@pytest.mark.parametrize("d", [2, 6])
def test_inversion(there, d):
    settings = {"n_candidates": 64, "n_starts": 2, "n_iterations": 20}
    torch.manual_seed(0)
    generator = torch.nn.Sequential(torch.nn.Linear(d, 16), torch.nn.Tanh(), torch.nn.Linear(16, 12))
    generator.requires_grad_(False)
    x = generator(torch.randn(3, d)) + 0.01
    expected = lgi.invert(generator, x, d, **settings)
    result = lgi.invert(generator.to(there), x.to(there), d, **settings)
    same(result.residual, expected.residual, rtol=1e-3)


@pytest.fixture(scope="module")
def images():
    return datasets.load("optdigits", "train").images[:200], datasets.load("optdigits", "validation").images[:50]


@pytest.mark.parametrize("kind", ["vae", "gan"])
def test_training(there, images, kind):
    make, train, make_settings = (VAE, train_vae, TrainingSettings) if kind == "vae" else (GAN, train_gan, GANSettings)
    settings = make_settings(epochs=1, batch_size=64)
    records = []
    for to in (there, "cpu"):
        torch.manual_seed(0)
        model = make(TINY).to(to)
        records.append(next(iter(train(model, *images, settings))))
        if kind == "gan":
            distance = training.distance_to_generated(model.generator, images[1], n_samples=50)
            records[-1]["distance"] = float(distance.mean())
    assert records[0].keys() == records[1].keys()
    for name in records[0].keys() - {"seconds"}:
        assert records[0][name] == pytest.approx(records[1][name], rel=2e-3, abs=1e-5), name


def test_rbf_fit(there, images):
    settings = TrainingSettings(n_centres=4, n_rbf_steps=3)
    records = []
    for to in (there, "cpu"):
        vae = lgi.load_model("vae1", std="constant").to(to)
        steps = list(itertools.islice(fit_rbf_precision(vae, *images, settings), 3))
        records.append(steps[-1] | {"elbo": evaluate(vae, images[1]).means()["elbo"]})
    for name in records[0].keys() - {"seconds"}:
        assert records[0][name] == pytest.approx(records[1][name], rel=2e-3), name


def test_the_paper_on_one_page(there):
    """lgi.paper makes its tensors where those that it is given are."""

    def control(to):
        metric = partial(stochastic_metric, lgi.load_model("vae1", to).decoder)
        return shorter_curve(metric, START[0].to(to), END[0].to(to), n_steps=3)[0]

    same(control(there), control("cpu"))
