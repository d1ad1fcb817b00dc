"""Trained once, read where it is on disk; the command that trains the shipped models; the recipes themselves."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from test_training import QUICK, QUICK_GAN, TINY

import lgi
from lgi import artifacts, datasets, recipes
from lgi.models import PublishedArchitecture, RBFPrecision
from lgi.recipes import GAN_RECIPES, PUBLISHED, RECIPES, TRAININGS, GANRecipe, Recipe, main, train_or_load
from lgi.training import distance_to_generated, evaluate
from lgi.zoo import (
    N_TRAININGS,
    packed_rbf,
    restore_codes,
    restore_gan,
    restore_logistic_regression,
    restore_rbf,
    restore_vae,
)


@pytest.fixture(autouse=True)
def nothing_is_trained(tmp_path, monkeypatch):
    """Neither shipped nor in the cache."""
    monkeypatch.setenv("LGI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(artifacts, "data_folder", lambda: tmp_path)


def test_unknown_recipe():
    with pytest.raises(ValueError, match="vae1"):
        train_or_load("vae3")


@pytest.fixture
def trained(tmp_path):
    """``trained(name, recipe)``: the artefact, what was reported, and the test set; trained once, then read."""

    def train(name, recipe):
        seen, test = [], datasets.load("optdigits", "test")
        artifact = train_or_load(name, recipe, device="cpu", on_record=lambda *record: seen.append(record))
        assert artifact.source == "computed"
        assert train_or_load(name, recipe, device="cpu").source == "cache"
        assert not list((tmp_path / "cache" / "checkpoints").iterdir())
        assert torch.equal(restore_codes(artifact).label, test.label)
        return artifact, seen, test

    return train


def test_train_or_load_trains_once_and_restores(trained):
    artifact, seen, test = trained("vae1", Recipe(dataset="optdigits", architecture=TINY, training=QUICK))
    assert [s[0] for s in seen] == ["vae"] * 3 + ["rbf"] * 12
    result, codes = artifact.record["evaluation"], restore_codes(artifact)
    assert result["rbf_elbo"] > result["constant_elbo"]
    vae = restore_vae(artifact, fused=False)
    torch.testing.assert_close(vae.encoder(test.images)[0], codes.z, rtol=1e-5, atol=1e-5)
    fused = restore_vae(artifact)
    torch.testing.assert_close(fused.decoder(codes.z), vae.decoder(codes.z), rtol=1e-5, atol=1e-6)
    constant = restore_vae(artifact, std="constant").decoder(codes.z)[1]
    torch.testing.assert_close(constant, torch.full_like(constant, artifact.record["history"][-1]["std"]))
    again = evaluate(fused, test.images, n_samples=10).means("rbf_")
    assert again["rbf_elbo"] == pytest.approx(result["rbf_elbo"], rel=1e-5)


def test_models_are_trained_on_training_images(monkeypatch):
    seen = []

    def stop(vae, train, held_out, settings, **_):
        seen.extend((train, held_out))
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes.training, "train_vae", stop)
    with pytest.raises(KeyboardInterrupt):
        train_or_load("vae1", Recipe(dataset="optdigits", architecture=TINY, training=QUICK))
    for images, split in zip(seen, ("train", "validation"), strict=True):
        assert torch.equal(images, datasets.load("optdigits", split).images)


def test_logistic_regression_is_recorded():
    artifact = recipes.fit_or_load_logistic_regression(dataset="optdigits")
    test = datasets.load("optdigits", "test")
    model = restore_logistic_regression(artifact)
    assert model.accuracy(test.images, test.label) == pytest.approx(artifact.record["test_accuracy"])
    assert artifact.record["test_accuracy"] > 0.9


def test_train_or_load_of_a_gan(trained):
    artifact, seen, test = trained("gan", GANRecipe(dataset="optdigits", architecture=TINY, training=QUICK_GAN))
    assert [s[:3] for s in seen] == [("gan", i, 3) for i in (1, 2, 3)]
    codes = restore_codes(artifact)
    gan = restore_gan(artifact)
    torch.testing.assert_close(gan.generator(codes.z), restore_gan(artifact, fused=False).generator(codes.z))
    error = (gan.generator(codes.z) - test.images).square().mean((1, 2, 3)).sqrt()
    torch.testing.assert_close(error, artifact.tensors["codes.residual"], rtol=1e-4, atol=1e-5)
    result = artifact.record["evaluation"]
    assert result["inversion_residual"] == pytest.approx(error.mean().item(), rel=1e-4)
    assert result["distance"] == pytest.approx(distance_to_generated(gan.generator, test.images).mean().item())
    # The search ends nearer than the nearest of 4,000 draws.
    assert result["inversion_residual"] < result["distance"] * (1 + 1e-4)
    assert sum(result["digit_share"].values()) == pytest.approx(1)
    assert list(result["digit_share"]) == ["2", "4", "5", "7"]


def test_the_command_trains_what_it_is_asked_for(tmp_path, monkeypatch, capsys):
    recipe = GANRecipe(dataset="optdigits", architecture=TINY, training=dataclasses.replace(QUICK_GAN, epochs=1))
    monkeypatch.setitem(GAN_RECIPES, "gan", recipe)
    monkeypatch.setattr("sys.argv", ["lgi.recipes", "gan"])
    main()
    assert [file.name for file in (tmp_path / "models").iterdir()] == ["gan.safetensors"]
    artifact = artifacts.load(tmp_path / "models" / "gan", name="gan", settings=recipe)
    assert artifact.provenance["command"] == "python -m lgi.recipes gan"
    assert artifact.provenance["seed"] == 0
    monkeypatch.setattr("sys.argv", ["lgi.recipes", "gun"])
    with pytest.raises(SystemExit):
        main()
    assert "there is no gun; there are logistic_regression, vae1, vae2, published-0," in capsys.readouterr().err


def test_the_command_trains_what_is_shipped_if_nothing_is_named(monkeypatch):
    asked = []
    monkeypatch.setattr(recipes, "_renew_shipped", lambda names, *_: asked.extend(names))
    monkeypatch.setattr("sys.argv", ["lgi.recipes"])
    main()
    assert asked == ["logistic_regression", *RECIPES, *PUBLISHED, *GAN_RECIPES]


def test_another_training_is_there_once_it_is_trained(monkeypatch):
    for load in (lgi.load_model, lgi.load_codes):
        with pytest.raises(artifacts.ArtifactError, match=r"not shipped: python -m lgi.recipes vae1-2 trains it"):
            load("vae1", seed=2)
    training = dataclasses.replace(QUICK, seed=2)
    monkeypatch.setitem(TRAININGS, "vae1-2", Recipe(dataset="optdigits", architecture=TINY, training=training))
    monkeypatch.setitem(recipes.BANDWIDTHS, "vae1-2", {3: (1.25,)})
    monkeypatch.setattr("sys.argv", ["lgi.recipes", "vae1-2", "--device", "cpu"])
    main()
    own, other = (lgi.load_model("vae1", seed=2, n_centres=k).decoder for k in (None, 3))
    codes = lgi.load_codes("vae1", seed=2)
    assert torch.equal(own(codes.z)[0], other(codes.z)[0])
    assert (len(own.std_net.centres), len(other.std_net.centres)) == (QUICK.n_centres, 3)


def test_other_trainings_differ_in_their_seed_alone():
    seeds = {name: {0} for name in RECIPES}
    for name, recipe in TRAININGS.items():
        of = name.split("-")[0]
        assert dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, seed=0)) == RECIPES[of]
        seeds[of].add(recipe.training.seed)
    assert all(found == set(range(N_TRAININGS)) for found in seeds.values())


def test_published_recipe_is_the_public_code():
    for seed, recipe in enumerate(PUBLISHED.values()):
        assert recipe.training.seed == seed
        constants = {"batch_size": 16, "learning_rate": 5e-3, "weight_decay": 1e-4, "rate_decay": 0.95, "n_draws": 4}
        constants |= {"n_centres": 8, "bandwidth_factor": 1.0, "max_std": 10.0, "dither_std": 0.0}
        assert {name: getattr(recipe.training, name) for name in constants} == constants
        assert (recipe.architecture, recipe.digits, recipe.n_per_digit) == (PublishedArchitecture(), (2, 4, 5, 7), 3000)


def test_a_recipe_takes_so_many_images_of_each_digit_in_its_range():
    images = [datasets.load("optdigits", split) for split in ("train", "validation")]
    recipe = dataclasses.replace(PUBLISHED["published-0"], dataset="optdigits", n_per_digit=20)
    train, validation = recipes.images_of(recipe, images)
    assert train.label.bincount()[[2, 4, 5, 7]].tolist() == [20] * 4
    first = images[0].index[images[0].label == 4][:20]
    assert torch.equal(train.index[train.label == 4], first)
    torch.testing.assert_close(validation.images, 2 * images[1].images - 1)
    unchanged = recipes.images_of(RECIPES["vae1"], images)[0]
    assert torch.equal(unchanged.images, images[0].images)


def test_published_model_and_its_networks_are_trained_and_shipped(tmp_path, monkeypatch):
    recipe = dataclasses.replace(
        PUBLISHED["published-0"],
        dataset="optdigits",
        architecture=PublishedArchitecture(channels=4),
        training=dataclasses.replace(PUBLISHED["published-0"].training, epochs=1, n_draws=2, n_rbf_steps=1),
    )
    monkeypatch.setitem(PUBLISHED, "published-0", recipe)
    monkeypatch.setitem(recipes.BANDWIDTHS, "published-0", {3: (0.5, 1.0)})
    monkeypatch.setattr("sys.argv", ["lgi.recipes", "published-0", "--device", "cpu"])
    main()
    assert sorted(file.name for file in (tmp_path / "models").iterdir()) == [
        "published-0-rbf.safetensors",
        "published-0.safetensors",
    ]
    own, other = (lgi.load_model("published", n_centres=k).decoder for k in (None, 3))
    codes, test = lgi.load_codes("published"), datasets.load("optdigits", "test")
    assert torch.equal(codes.label, test.label)
    torch.testing.assert_close(own(codes.z)[0], other(codes.z)[0])
    assert (len(own.std_net.centres), len(other.std_net.centres)) == (8, 3)
    z, _ = lgi.load_model("published").encoder(2 * test.images - 1)
    torch.testing.assert_close(z, codes.z, rtol=2e-3, atol=2e-3)
    networks = recipes.fit_or_load_rbf("published-0")
    assert networks.source == "shipped"
    images = recipes.images_of(recipe, [datasets.load("optdigits", "validation")] * 2)[1].images
    again = evaluate(lgi.load_model("published", n_centres=3), images, n_samples=5).means()
    # of the network before its weights were kept in 8 bits
    assert networks.record["evaluation"]["k3.c1"] == pytest.approx(again, rel=1e-3)


def test_networks_are_kept_to_one_in_a_hundred():
    weight = torch.cat([torch.zeros(4, 1), torch.logspace(-1, 2, 783).expand(4, -1)], dim=1)
    net = RBFPrecision(torch.randn(4, 2), torch.rand(4) + 1, weight, floor=0.01, data_shape=(1, 28, 28))
    artifact = SimpleNamespace(tensors={f"k4.c0.5.{key}": value for key, value in packed_rbf(net).items()})
    again = restore_rbf(artifact, 4, 0.5)
    torch.testing.assert_close(again.weight, net.weight, rtol=0.01, atol=0.01)
    assert torch.equal(again.centres, net.centres)
    with pytest.raises(ValueError, match=r"n_centres=4 and bandwidth=0.6; there are \(k and c\): k4.c0.5, k8.c1$"):
        restore_rbf(artifact, 4, 0.6, own=(8, 1.0))


def test_recipes_are_those_of_the_paper():
    assert all(r.architecture.latent_dim == 2 and r.digits == (2, 4, 5, 7) for r in RECIPES.values())
    assert RECIPES["vae1"].architecture.normalisation != RECIPES["vae2"].architecture.normalisation
