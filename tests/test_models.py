"""Architectures, the RBF precision network and the fused inference form."""

import dataclasses
import math
import re

import pytest
import torch
from torch import nn

from lgi import models
from lgi.models import GAN, VAE, Architecture, Decoder, Encoder, PublishedArchitecture, RBFPrecision, fuse
from lgi.recipes import RECIPES


def test_parameter_ratio_is_that_of_the_paper():
    large, small = (VAE(RECIPES[name].architecture) for name in ("vae1", "vae2"))
    assert abs(large.n_parameters / small.n_parameters / 16 - 1) < 0.02
    assert small.n_parameters == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("latent_dim", [1, 2, 7])
@pytest.mark.parametrize("normalisation", ["batch", "spectral", "none"])
def test_shapes_follow_the_latent_dimension(latent_dim, normalisation):
    vae = VAE(Architecture(latent_dim=latent_dim, channels=(2, 3), hidden=4, normalisation=normalisation)).eval()
    z, z_std = vae.encoder(torch.rand(5, 1, 28, 28))
    assert z.shape == z_std.shape == (5, latent_dim)
    assert (z_std > 0).all()
    mean, std = vae.decoder(z)
    assert mean.shape == std.shape == (5, 1, 28, 28)
    assert (vae.decoder.latent_dim, vae.decoder.data_shape) == (latent_dim, (1, 28, 28))
    assert mean.min() >= 0
    assert mean.max() <= 1


@pytest.mark.parametrize(
    ("architecture", "layer", "power"),
    [(Architecture(channels=(2, 3), hidden=4), -1, 1), (PublishedArchitecture(), -2, 2)],
    ids=["ours", "published, of log-variances"],
)
def test_encoder_gives_mean_and_standard_deviation(architecture, layer, power):
    """Where the last layer has no weights, its biases are the mean and the logarithm of a power of the deviation."""
    encoder = VAE(architecture).encoder
    with torch.no_grad():
        encoder.body[layer].weight.zero_()
        encoder.body[layer].bias.copy_(torch.tensor([0.5, -2.0, power * math.log(0.3), power * math.log(2.0)]))
    mean, std = encoder(torch.rand(3, 1, 28, 28))
    torch.testing.assert_close(mean, torch.tensor([0.5, -2.0]).expand(3, 2))
    torch.testing.assert_close(std, torch.tensor([0.3, 2.0]).expand(3, 2))


def test_published_architecture():
    vae = VAE(PublishedArchitecture())
    assert vae.n_parameters == sum(p.numel() for p in vae.parameters()) == 43_813  # that of the public code at d = 2
    images, std = vae.decoder(3 * torch.randn(200, 2))
    assert images.shape == std.shape == (200, 1, 28, 28)
    assert images.min() < 0 < images.max() <= 1
    assert torch.equal(std, torch.full_like(std, math.exp(0.25)))


OF_ALL_NORMS = [Architecture(channels=(4, 6), hidden=8, normalisation=n) for n in ("batch", "spectral", "none")]


@pytest.mark.parametrize("architecture", [*OF_ALL_NORMS, PublishedArchitecture(channels=3)])
def test_fused_equals_original(architecture):
    torch.manual_seed(0)
    vae = VAE(architecture).double()
    vae.train()
    for _ in range(5):  # running statistics and power iterations that are not at their initial values
        vae.decoder(3 * torch.randn(20, 2, dtype=torch.float64))
        vae.encoder(torch.rand(20, 1, 28, 28, dtype=torch.float64))
    fused = fuse(vae)
    vae.eval()
    z, x = torch.randn(30, 2, dtype=torch.float64), torch.rand(10, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(fused.decoder(z), vae.decoder(z), rtol=0, atol=1e-12)
    torch.testing.assert_close(fused.encoder(x), vae.encoder(x), rtol=1e-12, atol=1e-12)
    for network in (fused.decoder, fused.encoder):
        kinds = {type(part).__name__ for part in network.modules()}
        assert not any("BatchNorm" in kind or "Parametri" in kind for kind in kinds)
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize("latent_dim", [2, 5])
@pytest.mark.parametrize("normalisation", ["batch", "spectral", "none"])
def test_gan(latent_dim, normalisation):
    torch.manual_seed(0)
    gan = GAN(Architecture(latent_dim=latent_dim, channels=(2, 3), hidden=4, normalisation=normalisation)).double()
    for _ in range(3):
        gan.generator(torch.randn(20, latent_dim, dtype=torch.float64))
    z = torch.randn(7, latent_dim, dtype=torch.float64)
    fused, images = fuse(gan.generator), gan.eval().generator(z)
    assert images.shape == (7, 1, 28, 28)
    assert images.min() >= 0
    assert images.max() <= 1
    torch.testing.assert_close(fused(z), images, rtol=0, atol=1e-12)
    assert (fused.latent_dim, fused.data_shape) == (latent_dim, (1, 28, 28))
    assert gan.discriminator(images).shape == (7,)
    assert gan.n_parameters == sum(p.numel() for p in gan.parameters())
    # the network of a decoder's mean
    decoder = Decoder(gan.architecture).double().eval()
    decoder.mean_net.load_state_dict(gan.generator.network.state_dict())
    torch.testing.assert_close(decoder(z)[0], images, rtol=0, atol=1e-12)


def test_discriminator_sees_how_much_a_batch_varies():
    torch.manual_seed(0)
    discriminator = models.Discriminator(Architecture(channels=(2, 3), hidden=4))
    x = torch.rand(6, 1, 28, 28)
    same, among_others = discriminator(x[:1].expand(6, -1, -1, -1)), discriminator(x)
    torch.testing.assert_close(same, same[:1].expand(6))
    assert (same[0] - among_others[0]).abs() > 1e-4
    alone = discriminator(x[:1].requires_grad_())
    torch.testing.assert_close(alone, same[:1])
    assert torch.autograd.grad(alone.sum(), discriminator.body[0].weight)[0].isfinite().all()


def test_fuse_leaves_the_original_trainable():
    vae = VAE(Architecture(channels=(2, 3), hidden=4))
    fuse(vae)
    assert vae.training
    assert all(p.requires_grad for p in vae.parameters())
    assert any(isinstance(part, nn.BatchNorm2d) for part in vae.modules())


def test_fuse_folds_dense_and_transposed_layers():
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Unflatten(1, (2, 2, 2)), nn.ConvTranspose2d(2, 3, 2), nn.BatchNorm2d(3)
    ).double()
    for _ in range(3):
        network(torch.randn(16, 3, dtype=torch.float64))
    fused = fuse(network)
    assert [type(layer).__name__ for layer in fused] == ["Linear", "Unflatten", "ConvTranspose2d"]
    z = torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(fused(z), network.eval()(z), rtol=1e-12, atol=1e-12)


def test_rbf_at_a_centre_far_from_the_others():
    """At a lone centre v = 1: the precision is that centre's weight plus the floor, in closed form."""
    centres = torch.tensor([[0.0, 0.0], [100.0, 0.0]], dtype=torch.float64)
    weight = torch.tensor([[3.0, 8.0], [15.0, 24.0]], dtype=torch.float64)
    rbf = RBFPrecision(centres, torch.tensor([2.0, 0.5], dtype=torch.float64), weight, floor=1.0, data_shape=(2,))
    torch.testing.assert_close(rbf(centres), (weight + 1) ** -0.5, rtol=1e-14, atol=0)
    # one bandwidth away, v = exp(-1/2)
    at = torch.tensor([[0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(rbf.precision(at), weight[:1] * math.exp(-0.5) + 1, rtol=1e-14, atol=0)


def test_rbf_far_away_is_the_largest_std():
    stream = torch.Generator().manual_seed(0)
    centres, positive = torch.randn(5, 2, generator=stream).double(), torch.rand(5, 6, generator=stream).double()
    rbf = RBFPrecision(centres, positive[:, 0] + 0.5, positive, floor=0.25, data_shape=(1, 2, 3))
    torch.testing.assert_close(rbf(torch.full((1, 2), 1e3).double()), torch.full((1, 1, 2, 3), 2.0).double())
    assert (rbf(torch.randn(100, 2, dtype=torch.float64)) < 2.0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": -torch.ones(5, 6)}, "non-negative"),
        ({"weight": torch.ones(4, 6)}, r"\(n_centres, 6\)"),
        ({"bandwidths": torch.zeros(5)}, "positive"),
        ({"bandwidths": torch.full((5,), torch.inf)}, "finite"),
        ({"floor": 0.0}, "floor"),
    ],
)
def test_rbf_refuses(change, message):
    good = {"centres": torch.zeros(5, 2), "bandwidths": torch.ones(5), "weight": torch.ones(5, 6), "floor": 1.0}
    RBFPrecision(**good, data_shape=(6,))
    with pytest.raises(ValueError, match=message):
        RBFPrecision(**good | change, data_shape=(6,))


def test_constant_std():
    std = models.ConstantStd((1, 2, 2), 0.2)(torch.zeros(3, 2))
    torch.testing.assert_close(std, torch.full((3, 1, 2, 2), 0.2))


@pytest.mark.parametrize(
    "change",
    [{"latent_dim": 0}, {"hidden": 0}, {"channels": (1, 0)}, {"normalisation": "layer"}, {"activation": "relu"}],
)
def test_architecture_refuses(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(Architecture(), **change)


@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        (Decoder, (3, 4), "2"),
        (Encoder, (3, 28, 28), "1, 28, 28"),
        (models.ImageGenerator, (2,), "2"),
        (models.Discriminator, (3, 28, 28), "1, 28, 28"),
    ],
)
def test_wrong_shapes_are_named(make, shape, expected):
    with pytest.raises(ValueError, match=re.escape(f"(n, {expected}), got {shape}")):
        make(Architecture())(torch.zeros(shape))


def test_pick_device():
    assert models.pick_device("cpu").type == "cpu"
    assert models.pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="auto"):
        models.pick_device("tpu9000")
