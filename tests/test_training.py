"""The evidence lower bound against closed forms, the loops, the RBF fit, and resumption."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from lgi import artifacts, datasets, training
from lgi.models import GAN, VAE, Architecture, gaussian_log_likelihood
from lgi.training import GANSettings, TrainingSettings, elbo_terms, evaluate, fit_rbf_precision, train_gan, train_vae

TINY = Architecture(channels=(2, 4), hidden=8, normalisation="batch", activation="silu")
QUICK_GAN = GANSettings(epochs=3, batch_size=64, averaging=0.9)
QUICK = TrainingSettings(epochs=3, batch_size=64, n_centres=8, n_rbf_steps=12)


@pytest.fixture(scope="module")
def images():
    return datasets.load("optdigits", "train").images, datasets.load("optdigits", "validation").images


def trained(images, settings=QUICK, *, seed=None, epochs=None, **kwargs):
    """A VAE or a GAN and its records, after training or so many epochs of it; from another start if there is a seed."""
    torch.manual_seed(settings.seed if seed is None else seed)
    make, train = (GAN, train_gan) if isinstance(settings, GANSettings) else (VAE, train_vae)
    model = make(TINY)
    return model, list(itertools.islice(train(model, *images, settings, **kwargs), epochs))


def without_seconds(records):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def same_weights(a, b):
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


of_both_kinds = pytest.mark.parametrize("settings", [QUICK, QUICK_GAN], ids=["vae", "gan"])


def test_likelihood_and_kl_against_torch_distributions():
    stream = torch.Generator().manual_seed(0)
    x, mean = torch.randn(2, 5, 2, 3, generator=stream, dtype=torch.float64)
    std = torch.rand(5, 2, 3, generator=stream, dtype=torch.float64) + 0.1
    expected = torch.distributions.Normal(mean, std).log_prob(x).sum((1, 2))
    torch.testing.assert_close(gaussian_log_likelihood(x, mean, std), expected, rtol=1e-13, atol=1e-13)
    q, p = torch.distributions.Normal(mean, std), torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    torch.testing.assert_close(
        training.kl_to_prior(mean, std), torch.distributions.kl_divergence(q, p), rtol=1e-12, atol=1e-12
    )


def test_elbo_of_a_linear_gaussian_model():
    """x | z ~ N(W z, s^2 I): with q the exact posterior the bound is log N(x; 0, W W^T + s^2 I), whatever the noise.

    The posterior is diagonal because the columns of W are orthogonal.
    """
    stream, s = torch.Generator().manual_seed(1), 0.3
    basis, _ = torch.linalg.qr(torch.randn(6, 2, generator=stream, dtype=torch.float64))
    W = basis * torch.tensor([1.5, 0.7], dtype=torch.float64)
    variance = 1 / (1 + W.square().sum(0) / s**2)
    vae = SimpleNamespace(
        encoder=lambda x: ((x @ W / s**2) * variance, variance.sqrt().expand(len(x), 2)),
        decoder=SimpleNamespace(log_likelihood=lambda x, z: gaussian_log_likelihood(x, z @ W.T, torch.full_like(x, s))),
    )
    x = torch.randn(4, 6, generator=stream, dtype=torch.float64)
    noise = torch.randn(20000, 4, 2, generator=stream, dtype=torch.float64)
    terms = elbo_terms(vae, x, noise)
    covariance = W @ W.T + s**2 * torch.eye(6, dtype=torch.float64)
    evidence = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=torch.float64), covariance).log_prob(x)
    torch.testing.assert_close(terms.elbo, evidence, rtol=0, atol=0.03)
    # E_q |x - W z|^2 in closed form: the likelihood term alone, with the Monte Carlo error of 20,000 draws
    mean, _ = vae.encoder(x)
    expected = -0.5 * ((x - mean @ W.T).square().sum(1) + (variance * W.square().sum(0)).sum()) / s**2
    expected -= 6 * (math.log(s) + 0.5 * math.log(2 * math.pi))
    torch.testing.assert_close(terms.log_likelihood, expected, rtol=0, atol=0.03)


def test_training_improves_the_bound_and_reports_it(images):
    vae, records = trained(images, dataclasses.replace(QUICK, epochs=6))
    assert [r["epoch"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1]["elbo"] > records[0]["elbo"] + 50
    assert not vae.training
    again = evaluate(vae, images[1]).means()
    for name, value in again.items():
        assert records[-1][name] == pytest.approx(value, rel=1e-6)
    assert again["elbo"] == pytest.approx(again["log_likelihood"] - again["kl"], rel=1e-5)


@of_both_kinds
def test_training_is_seeded(images, settings):
    (a, first), (b, second) = trained(images, settings), trained(images, settings)
    torch.rand(7)  # the global stream must not matter
    c, _ = trained(images, dataclasses.replace(settings, seed=1))
    assert without_seconds(first) == without_seconds(second)
    assert same_weights(a, b)
    assert not same_weights(a, c)


def test_epochs_have_batches_and_noise_of_their_own(images, monkeypatch):
    seen = []

    def noting(function):
        def wrapped(model, x, noise, **options):
            seen.append((x.detach().clone(), noise))
            return function(model, x, noise, **options)

        return wrapped

    settings = {"epochs": 3, "batch_size": len(images[0])}
    monkeypatch.setattr(training, "elbo_terms", noting(elbo_terms))
    monkeypatch.setattr(training, "evaluate", lambda *_: training.ElboTerms(torch.zeros(1), torch.zeros(1)))
    trained(images, dataclasses.replace(QUICK, **settings))
    monkeypatch.setattr(training, "_discriminator_losses", noting(training._discriminator_losses))
    trained(images, dataclasses.replace(QUICK_GAN, **settings))
    assert len(seen) == 6
    for epochs in (seen[:3], seen[3:]):
        for (x, noise), (other_x, other_noise) in itertools.combinations(epochs, 2):
            assert not torch.equal(x, other_x)
            assert not torch.equal(noise, other_noise)
            # All images, in another order.
            torch.testing.assert_close(x.sum(0), other_x.sum(0))


@of_both_kinds
def test_interrupted_training_resumes_to_the_same_model(images, tmp_path, settings, monkeypatch):
    whole, expected = trained(images, settings)
    # As a GPU writes a checkpoint: with flags of Adam that are not for a CPU.
    own, flags = training.Adam.state_dict, {"fused": True, "capturable": True}
    with monkeypatch.context() as patch:
        groups = lambda adam: [group | flags for group in own(adam)["param_groups"]]  # noqa: E731
        patch.setattr(training.Adam, "state_dict", lambda adam: own(adam) | {"param_groups": groups(adam)})
        trained(images, settings, epochs=2, checkpoint=tmp_path / "run")
    # A fresh process: other initial weights, replaced by the checkpoint's.
    resumed, records = trained(images, settings, seed=99, checkpoint=tmp_path / "run")
    assert without_seconds(records) == without_seconds(expected)
    assert same_weights(whole, resumed)
    with pytest.raises(artifacts.ArtifactError, match="run"):
        trained(images, dataclasses.replace(settings, learning_rate=1e-4), checkpoint=tmp_path / "run")
    file = tmp_path / "run.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(artifacts.ArtifactError, match=r"run\.safetensors is truncated.*else delete it"):
        trained(images, settings, checkpoint=tmp_path / "run")


def test_checkpoint_of_an_earlier_format_is_ignored(images, tmp_path):
    identity = {"settings": QUICK, "architecture": TINY, "n": [len(part) for part in images]}
    # As it was written first: one optimizer, without a name.
    old = {f"model.{key}": 0 * value for key, value in VAE(TINY).state_dict().items()}
    old |= {"optimizer.0.step": torch.ones(())}
    path, record = tmp_path / "run", {"history": [{"epoch": 1.0}]}
    artifacts.save(path, old, record, name="checkpoint", settings=identity, version=training.RECIPE_VERSION)
    _, records = trained(images, epochs=1, checkpoint=path)
    assert {"epoch", "train_elbo"} <= set(records[0])
    # What is written over it is read.
    assert trained(images, epochs=1, checkpoint=path)[1] == records


@pytest.mark.parametrize(
    "settings",
    [dataclasses.replace(QUICK, learning_rate=1e6, epochs=20), dataclasses.replace(QUICK_GAN, learning_rate=1e30)],
)
def test_divergence_is_an_error(images, settings):
    with pytest.raises(FloatingPointError, match="learning_rate"):
        trained(images, settings)


def test_rbf_fit_beats_the_constant_and_descends(images):
    vae, _ = trained(images, dataclasses.replace(QUICK, epochs=10))
    constant = evaluate(vae, images[1]).means()
    records = list(fit_rbf_precision(vae, *images, QUICK))
    losses = [r["train_loss"] for r in records]
    assert all(b <= a + 1e-3 for a, b in itertools.pairwise(losses))
    assert losses[-1] < losses[0]
    assert records[-1]["elbo"] > constant["elbo"]
    assert records[-1]["kl"] == pytest.approx(constant["kl"], rel=1e-6)
    std = vae.decoder(torch.tensor([[50.0, 50.0]]))[1]
    torch.testing.assert_close(std, torch.full_like(std, QUICK.max_std))
    assert (vae.decoder.std_net.weight >= 0).all()


def vae_of_mean_zero():
    vae = VAE(TINY).eval()
    vae.decoder.mean_net = torch.nn.Sequential(torch.nn.Linear(2, 784), torch.nn.Unflatten(1, (1, 28, 28)))
    for parameter in vae.decoder.mean_net[0].parameters():
        torch.nn.init.zeros_(parameter)
    return vae


def test_rbf_fit_recovers_a_known_variance_at_each_code():
    """Two far clusters with pixel stds 0.1 and 0.4, decoder mean 0: each centre must find the std of its own images.

    The original code paired codes with residuals of other images; then both would find the mixture.
    """
    stream = torch.Generator().manual_seed(3)
    vae = vae_of_mean_zero()
    vae.encoder.forward = lambda x: (x[:, 0, 0, :2], torch.full((len(x), 2), 1e-4))
    noisy = torch.rand(3000, generator=stream) < 0.5
    x = torch.where(noisy, 0.4, 0.1)[:, None, None, None] * torch.randn(3000, 1, 28, 28, generator=stream)
    x[:, 0, 0, :2] = 0.01 * torch.randn(3000, 2, generator=stream)  # what the encoder above takes for the code
    x[:, 0, 0, 0] += torch.where(noisy, 30.0, -30.0)
    settings = dataclasses.replace(QUICK, n_centres=2, n_rbf_steps=200, dither_std=0.03, bandwidth_factor=50.0)
    list(fit_rbf_precision(vae, x, x[:10], settings))
    for members, place in ((noisy, 30.0), (~noisy, -30.0)):
        fitted = vae.decoder.std_net(torch.tensor([[place, 0.0]]))[0, 0, 1]  # a row of ordinary pixels
        expected = (x[members, 0, 1].square().mean(0) + 0.03**2).sqrt()
        torch.testing.assert_close(fitted, expected, rtol=2e-3, atol=0)


def test_rbf_fit_by_adam_reaches_the_variance_that_it_sees():
    """One centre, so wide that it is 1 everywhere; and what weight decay makes of a pixel without any residual."""
    stream, vae = torch.Generator().manual_seed(5), vae_of_mean_zero()
    vae.encoder.forward = lambda x: (x[:, 0, 0, :2], torch.full((len(x), 2), 1e-4))
    x = 0.2 * torch.randn(600, 1, 28, 28, generator=stream)
    x[:, 0, 2] = 0
    settings = dataclasses.replace(
        QUICK, batch_size=4, n_centres=1, n_rbf_steps=16, dither_std=0.0, bandwidth_factor=1e3, weight_decay=1e-4
    )
    records = list(training.fit_rbf_by_adam(vae, x, x[:10], settings))
    precision = vae.decoder.std_net.precision(torch.zeros(1, 2))[0, 0]
    # 4 terms 1 / (2 W) of a batch against the decay 1e-4 W
    torch.testing.assert_close(precision[2], torch.full((28,), math.sqrt(2 / 1e-4)), rtol=0.3, atol=0)
    # a constant rate of 1 leaves single weights restless
    torch.testing.assert_close(precision[3:].mean(), (1 / x[:, 0, 3:].square().mean(0)).mean(), rtol=0.03, atol=0)
    assert [r["step"] for r in records] == list(range(1, 17))
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    assert records[-1]["elbo"] == pytest.approx(evaluate(vae, x[:10]).means()["elbo"])


def test_learning_rates():
    cosine, steps = QUICK, dataclasses.replace(QUICK, epochs=200, rate_decay=0.95)
    assert [cosine.rate(p) / cosine.learning_rate for p in (0, 0.5)] == pytest.approx([1, 0.5])
    for epoch in range(200):  # the same from the first to the last step of an epoch
        for step in (0, 0.5, 0.99):
            assert steps.rate((epoch + step) / 200) == pytest.approx(steps.learning_rate * 0.95**epoch)


def test_pixelwise_baseline_is_the_best_constant_of_each_pixel():
    """Against the closed form, and against constants to both sides of it."""
    stream = torch.Generator().manual_seed(4)
    x = torch.rand(300, 1, 28, 28, generator=stream) * torch.linspace(0, 1, 784).reshape(1, 28, 28)
    vae = vae_of_mean_zero()
    std = training.pixelwise_std(vae, x, dataclasses.replace(QUICK, dither_std=0.05))(torch.randn(2, 2))
    expected = (x.square().mean(0) + 0.05**2).sqrt()
    torch.testing.assert_close(std, expected.expand(2, 1, 28, 28), rtol=1e-5, atol=0)

    def loss(std):  # negative log likelihood of dithered data, in expectation
        return (0.5 * (x.square() + 0.05**2) / std**2 + std.log()).sum()

    assert loss(std[0]) < min(loss(std[0] * 1.02), loss(std[0] * 0.98))


def test_centres_of_coincident_codes_have_a_bandwidth():
    codes = torch.tensor([[0.0, 0.0]] * 5 + [[4.0, 0.0], [4.0, 0.2]], dtype=torch.float64)
    centres, bandwidths = training.place_centres(codes, 2, 2.0, 0)
    order = centres[:, 0].argsort()
    torch.testing.assert_close(centres[order], torch.tensor([[0.0, 0.0], [4.0, 0.1]], dtype=torch.float64))
    half_gap = 0.5 * math.hypot(4.0, 0.1)
    expected = torch.tensor([0.5 / (2 * half_gap) ** 2, 0.5 / (2 * 0.1) ** 2], dtype=torch.float64)
    torch.testing.assert_close(bandwidths[order], expected)


def test_what_is_refused(images):
    for message, call, *arguments in (
        (r"\(n_samples, 3, 2\)", elbo_terms, VAE(TINY).eval(), images[0][:3], torch.zeros(3, 2)),
        ("distinct", training.place_centres, torch.zeros(10, 2), 3, 2.0, 0),
        ("train mode", evaluate, VAE(TINY), images[1]),
        ("train mode", lambda *all_: next(fit_rbf_precision(*all_)), VAE(TINY), *images, QUICK),
    ):
        with pytest.raises(ValueError, match=message):
            call(*arguments)


@pytest.mark.parametrize(
    ("settings", "name", "value"),
    [
        *((QUICK, "epochs", 0), (QUICK, "learning_rate", -1.0), (QUICK, "dither_std", 2.0)),
        *((QUICK, "n_draws", 0), (QUICK, "weight_decay", -1.0), (QUICK, "rate_decay", -1.0)),
        *((QUICK_GAN, "epochs", 0), (QUICK_GAN, "learning_rate", 0.0)),
        *((QUICK_GAN, "averaging", 1.0), (QUICK_GAN, "gradient_penalty", -1.0)),
    ],
)
def test_settings_are_checked(settings, name, value):
    with pytest.raises(ValueError, match=name):
        dataclasses.replace(settings, **{name: value})


def test_discriminator_losses_of_a_linear_discriminator():
    """D(x) = w x + b: the logistic losses by hand, and |w|^2 as the penalty; no gradient reaches the generator."""
    stream = torch.Generator().manual_seed(0)
    w, x, z = (torch.randn(*shape, generator=stream, dtype=torch.float64) for shape in ((12,), (5, 12), (5, 2)))
    generator = torch.nn.Linear(2, 12).double()
    gan = SimpleNamespace(generator=generator, discriminator=lambda x: x @ w + 0.3)
    loss, squared_norm = training._discriminator_losses(gan, x.clone(), z, penalised=True)
    expected = -(x @ w + 0.3).sigmoid().log().mean() - (1 - (generator(z) @ w + 0.3).sigmoid()).log().mean()
    torch.testing.assert_close(loss, expected)
    assert squared_norm.item() == pytest.approx(w.square().sum().item())
    plain, nothing = training._discriminator_losses(gan, x.clone(), z, penalised=False)
    torch.testing.assert_close(plain, expected)
    assert nothing.item() == 0
    assert loss.requires_grad
    assert generator.weight.grad is None
    assert not plain.requires_grad


def test_distance_to_generated():
    """A generator of grey images: each image is compared with its nearest grey."""

    def grey(z):
        return z[:, :1, None, None].sigmoid().expand(-1, 1, 28, 28)

    generator = torch.nn.Module()
    generator.scale, generator.latent_dim, generator.forward = torch.nn.Parameter(torch.ones(1)), 2, grey
    x = torch.cat([torch.full((1, 1, 28, 28), 0.4), torch.full((1, 1, 28, 28), 2.0), torch.zeros(1, 1, 28, 28)])
    x[2, ..., :14] = 1
    few = training.distance_to_generated(generator, x, n_samples=3000)
    torch.testing.assert_close(few[[0, 2]], torch.tensor([0.0, 0.5]), rtol=0, atol=2e-3)
    assert 1 < few[1] < 1.1


def test_gan_learns_and_reports_it(images):
    gan, records = trained(images, dataclasses.replace(QUICK_GAN, epochs=10, batch_size=32))
    assert [r["epoch"] for r in records] == list(range(1, 11))
    assert records[-1]["distance"] < 0.7 * records[0]["distance"]
    assert not gan.training
    again = training.distance_to_generated(gan.generator, images[1]).mean().item()
    assert records[-1]["distance"] == pytest.approx(again, rel=1e-5)
    assert all(0 < r["discriminator_loss"] < 3 and r["gradient_norm"] > 0 for r in records)


def test_gan_training_averages(images):
    averaged, first = trained(images, QUICK_GAN)
    # the average takes no part in the game
    last, plain = trained(images, dataclasses.replace(QUICK_GAN, averaging=0.0))
    assert [r["generator_loss"] for r in plain] == [r["generator_loss"] for r in first]
    assert not same_weights(averaged.generator, last.generator)
    _, free = trained(images, dataclasses.replace(QUICK_GAN, gradient_penalty=0.0))
    assert free[-1]["gradient_norm"] > first[-1]["gradient_norm"]
