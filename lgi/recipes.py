"""The recipes of the shipped models, and what is trained by them: read where it is on disk, trained where it is not.

``python -m lgi.recipes`` (``make models``) trains the shipped models anew and writes them to ``data/models``.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lgi import artifacts, datasets, models, training, zoo
from lgi.features import LogisticRegression
from lgi.inversion import invert
from lgi.models import GAN, VAE, Architecture, Decoder, PublishedArchitecture, pick_device
from lgi.progress import as_command, exit_status, progress_bar
from lgi.training import RECIPE_VERSION, GANSettings, Records, TrainingSettings, evaluate
from lgi.zoo import N_TRAININGS, rbf_key

OnRecord = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with (phase, step, number of steps, record)."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that determines a trained VAE. Its hash keys the artefact."""

    dataset: str = "mnist"
    digits: tuple[int, ...] = datasets.DIGITS
    architecture: models.AnyArchitecture = field(default_factory=Architecture)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    likelihood: str = field(default="gaussian", metadata={"added_later": True})
    n_per_digit: int | None = field(default=None, metadata={"added_later": True})  # at most so many to train with
    rbf_by_adam: bool = field(default=False, metadata={"added_later": True})  # fit_rbf_by_adam, not fit_rbf_precision


# hidden = 67 makes VAE1 16.05 times as large as VAE2; the paper asks for 16 and does not give the architectures.
RECIPES: dict[str, Recipe] = {
    "vae1": Recipe(architecture=Architecture(channels=(16, 32), hidden=67, normalisation="batch", activation="silu")),
    "vae2": Recipe(architecture=Architecture(channels=(4, 8), hidden=16, normalisation="spectral", activation="gelu")),
}

# Other trainings of both, whose studies notebook 04 shows. Not shipped, for their size: `python -m lgi.recipes vae1-3`.
TRAININGS: dict[str, Recipe] = {
    f"{name}-{seed}": replace(recipe, training=replace(recipe.training, seed=seed))
    for name, recipe in RECIPES.items()
    for seed in range(1, N_TRAININGS)
}


# The paper's public code (github.com/mmichelis/GenerativeLatentSpace, 2021-04-24), once for each seed. Ours: the seeds,
# k-means of scikit-learn, residuals of the images that the codes are of, and the split. The RBF network is that of the
# committed call: c = "curveMetric" = 1, zeta = 1e-2 (hence the largest std), k = 4 d centres, 50 epochs. The code has
# 200 epochs; ours were stopped after 193, when the rate had fallen to 5e-5 of its first value.
_PUBLISHED_TRAINING = TrainingSettings(
    epochs=193,
    batch_size=16,
    learning_rate=5e-3,
    weight_decay=1e-4,
    rate_decay=0.95,
    n_draws=4,
    n_centres=8,
    bandwidth_factor=1.0,
    dither_std=0.0,
    max_std=10.0,
    n_rbf_steps=50,
)
PUBLISHED: dict[str, Recipe] = {
    f"published-{seed}": Recipe(
        architecture=PublishedArchitecture(),
        training=replace(_PUBLISHED_TRAINING, seed=seed),
        n_per_digit=3000,
        rbf_by_adam=True,
    )
    for seed in range(N_TRAININGS)
}


@dataclass(frozen=True, kw_only=True)
class GANRecipe:
    """Everything that determines a trained GAN: data, architecture, training. Its hash keys the artefact."""

    dataset: str = "mnist"
    digits: tuple[int, ...] = datasets.DIGITS
    architecture: Architecture = field(default_factory=lambda: Architecture(normalisation="none"))
    training: GANSettings = field(default_factory=GANSettings)


# Beside RECIPES, which are the paper's two models. About as many parameters as VAE1 and as many latent dimensions, so
# that pictures can be compared: two are enough for all four digits to be generated equally often.
GAN_RECIPES: dict[str, GANRecipe] = {"gan": GANRecipe()}


_load_or_compute = partial(artifacts.load_or_compute, version=RECIPE_VERSION, folder="models")


def train_or_load(
    name: str,
    recipe: Recipe | GANRecipe | None = None,
    *,
    retrain: bool = False,
    device: str = "auto",
    download: bool = False,
    on_record: OnRecord | None = None,
) -> artifacts.Artifact:
    """Trained VAE or GAN of a recipe: read where it is recorded, trained where it is not.

    Parameters
    ----------
    name
        Of the artefact; ``RECIPES``, ``PUBLISHED`` and ``GAN_RECIPES`` are shipped, ``TRAININGS`` are not.
    recipe
        Settings; by default those of the shipped model of this name. Any change makes it another artefact.
    retrain
        Train even if the result is on disk.
    device
        Where to train.
    download
        Whether MNIST may be downloaded.
    on_record
        Called with (phase, step, number of steps, record) at each step; phase is "vae", "rbf" or "gan".

    Returns
    -------
    lgi.artifacts.Artifact
        Tensors ``model.*``, ``codes.z``, ``codes.std``, ``codes.label``, ``codes.index``; record
        ``n_parameters``, ``history``, ``evaluation`` and, of a VAE, ``rbf_history``. The codes of a GAN are found by
        inversion of the test images. See :func:`lgi.zoo.restore_vae` and :func:`lgi.zoo.restore_gan`.
    """
    recipes = _recipes()
    if recipe is None and name not in recipes:
        raise ValueError(f"there is no recipe named {name!r}; give one, or a name among {sorted(recipes)}")
    chosen = recipe or recipes[name]
    key = artifacts.settings_hash(name, chosen, RECIPE_VERSION)
    checkpoint = artifacts.cache_folder() / "checkpoints" / f"{name}-{key[:16]}"

    def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
        images = _loaded(chosen, "train", "validation", "test", download=download)
        how = images, pick_device(device), checkpoint, on_record
        model, codes, record = _train_gan(chosen, *how) if isinstance(chosen, GANRecipe) else _train_vae(chosen, *how)
        codes |= {"label": images[-1].label, "index": images[-1].index}
        tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
        tensors |= {f"codes.{key}": value for key, value in codes.items()}
        return tensors, {"n_parameters": model.n_parameters} | record

    artifact = _load_or_compute(name, chosen, compute, recompute=retrain)
    if artifact.source == "computed":
        # Not before: until the result is on disk, the checkpoint is all that a full disk or a kill leaves.
        artifacts.remove(checkpoint)
    return artifact


def fit_or_load_logistic_regression(
    *,
    dataset: str = "mnist",
    digits: tuple[int, ...] = datasets.DIGITS,
    refit: bool = False,
    download: bool = False,
) -> artifacts.Artifact:
    """Logistic regression on the training images, by scikit-learn: read where it is recorded, fitted where not.

    Parameters
    ----------
    dataset, digits
        Training data.
    refit
        Fit even if the result is on disk.
    download
        Whether MNIST may be downloaded.

    Returns
    -------
    lgi.artifacts.Artifact
        Tensors ``weight``, ``bias``, ``classes``; record ``train_accuracy``, ``test_accuracy`` (fractions).
        :func:`lgi.zoo.restore_logistic_regression` makes the module of it.
    """
    settings = {"dataset": dataset, "digits": digits, "inverse_penalty": 1.0}  # C of scikit-learn

    def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
        train, test = (datasets.load(dataset, s, digits=digits, download=download) for s in ("train", "test"))
        model = LogisticRegression.fit_images(train.images, train.label)
        images = {"train_accuracy": train, "test_accuracy": test}
        return dict(model.state_dict()), {name: model.accuracy(x.images, x.label) for name, x in images.items()}

    return _load_or_compute("logistic_regression", settings, compute, recompute=refit)


# c of the RBF networks that are shipped beside those of the models' own recipes, by k; of the published ones with the
# recipe's own, so that all are evaluated alike.
_GRID = (1.0, 0.8, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.3)
BANDWIDTHS: dict[str, dict[int, tuple[float, ...]]] = {
    **{name: {64: (1.0, 0.8)} for name in (*RECIPES, *TRAININGS)},
    "published-0": {8: _GRID, 64: _GRID},
    **{f"published-{seed}": {8: _GRID} for seed in range(1, N_TRAININGS)},
}


def fit_or_load_rbf(
    name: str, *, refit: bool = False, device: str = "cpu", download: bool = False, on_record: OnRecord | None = None
) -> artifacts.Artifact:
    """RBF networks of a shipped VAE with other numbers of centres and bandwidths: read, or fitted where not recorded.

    Parameters
    ----------
    name
        One of ``BANDWIDTHS``, which has what is fitted.
    refit
        Fit even if the result is on disk.
    device, download, on_record
        As in `train_or_load`.

    Returns
    -------
    lgi.artifacts.Artifact
        Tensors of each network (see :func:`lgi.zoo.restore_rbf`); record ``evaluation``, by network the mean ELBO, log
        likelihood and KL divergence of the validation images (5 draws each, nats per image).
    """
    base = train_or_load(name, device=device, download=download)
    recipe: Recipe = _recipes()[name]  # type: ignore[assignment]
    settings = {"recipe": recipe, "networks": {str(k): c for k, c in BANDWIDTHS[name].items()}}

    def compute() -> tuple[dict[str, Tensor], dict[str, Any]]:
        images = images_of(recipe, _loaded(recipe, "train", "validation", download=download))
        vae, tensors, evaluation = zoo.restore_vae(base).to(pick_device(device)), dict[str, Tensor](), {}
        for key, k, c in ((rbf_key(k, c), k, c) for k, bandwidths in BANDWIDTHS[name].items() for c in bandwidths):
            settings = replace(recipe.training, n_centres=k, bandwidth_factor=c)
            _fit_rbf(vae, replace(recipe, training=settings), images, on_record)
            evaluation[key] = evaluate(vae, images[1].images, n_samples=5).means()
            net = zoo.packed_rbf(cast(models.RBFPrecision, vae.decoder.std_net))
            tensors |= {f"{key}.{part}": value for part, value in net.items()}
        return tensors, {"evaluation": evaluation}

    return _load_or_compute(f"{name}-rbf", settings, compute, recompute=refit)


def _recipes() -> dict[str, Recipe | GANRecipe]:
    return {**RECIPES, **PUBLISHED, **GAN_RECIPES, **TRAININGS}


def _history(phase: str, n_steps: int, records: Records, on_record: OnRecord | None) -> list[dict[str, float]]:
    """All records of a phase of training; each is told when it comes."""
    history = []
    for record in records:
        history.append(record)
        if on_record is not None:
            on_record(phase, len(history), n_steps, record)
    return history


Images = Sequence[datasets.ImageData]
"""For training, validation and test."""

Trained = tuple[VAE | GAN, dict[str, Tensor], dict[str, Any]]
"""A model, the codes of the test images, and a record."""


def _loaded(recipe: Recipe | GANRecipe, *splits: datasets.Split, download: bool) -> Images:
    return [datasets.load(recipe.dataset, split, digits=recipe.digits, download=download) for split in splits]


def images_of(recipe: Recipe, images: Images) -> Images:
    """What a recipe takes of the images of the three splits: so many a digit to train with, in its range."""
    least, greatest = recipe.architecture.image_range
    taken = []
    for k, part in enumerate(images):
        keep = torch.ones(len(part), dtype=torch.bool)
        if k == 0 and recipe.n_per_digit is not None:
            for digit in recipe.digits:
                keep &= (part.label != digit) | ((part.label == digit).cumsum(0) <= recipe.n_per_digit)
        scaled = least + (greatest - least) * part.images[keep]
        taken.append(replace(part, images=scaled, label=part.label[keep], index=part.index[keep]))
    return taken


def _fit_rbf(vae: VAE, recipe: Recipe, images: Images, on_record: OnRecord | None) -> list[dict[str, float]]:
    fit = training.fit_rbf_by_adam if recipe.rbf_by_adam else training.fit_rbf_precision
    records = fit(vae, images[0].images, images[1].images, recipe.training)
    return _history("rbf", recipe.training.n_rbf_steps, records, on_record)


def _train_vae(
    recipe: Recipe, images: Images, device: torch.device, checkpoint: Path, on_record: OnRecord | None
) -> Trained:
    """Both phases, the evaluation on test data, and the codes: what :func:`train_or_load` records."""
    train, validation, test = images = images_of(recipe, images)
    settings = recipe.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        vae = VAE(recipe.architecture, recipe.likelihood).to(device)
    records = training.train_vae(vae, train.images, validation.images, settings, checkpoint=checkpoint)
    history, rbf_history = _history("vae", settings.epochs, records, on_record), []
    # Only a Gaussian has a standard deviation, constant until here.
    gaussian = isinstance(vae.decoder, Decoder)
    evaluation = evaluate(vae, test.images, n_samples=10).means("constant_" if gaussian else "")
    if gaussian:
        if settings.dither_std:  # else pixels that are always black have no best standard deviation
            vae.decoder.std_net = training.pixelwise_std(vae, train.images, settings)
            evaluation |= evaluate(vae, test.images, n_samples=10).means("pixelwise_")
        rbf_history = _fit_rbf(vae, recipe, images, on_record)
        evaluation |= evaluate(vae, test.images, n_samples=10).means("rbf_")
    with torch.no_grad():
        z, std = vae.encoder(test.images.to(device))
    spread = {"code_variance": z.var(0).tolist(), "kl_per_dimension": training.kl_to_prior(z, std).mean(0).tolist()}
    record = {"evaluation": evaluation | spread, "history": history, "rbf_history": rbf_history}
    return vae, {"z": z, "std": std}, record


def _train_gan(
    recipe: GANRecipe, images: Images, device: torch.device, checkpoint: Path, on_record: OnRecord | None
) -> Trained:
    """Training, what is generated, and the codes of test images: what :func:`train_or_load` records."""
    (train, validation, test), settings = images, recipe.training
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        gan = GAN(recipe.architecture).to(device)
    records = training.train_gan(gan, train.images, validation.images, settings, checkpoint=checkpoint)
    history = _history("gan", settings.epochs, records, on_record)
    generator = models.fuse(gan.generator)
    codes = invert(generator, test.images.to(device), progress=False)
    noise = torch.randn(4000, generator.latent_dim, generator=training.stream_of(settings.seed, -1))
    generated = torch.cat([generator(part.to(device)).cpu() for part in noise.split(500)])
    fitted = fit_or_load_logistic_regression(dataset=recipe.dataset, digits=recipe.digits)
    classifier = zoo.restore_logistic_regression(fitted)
    probability = classifier(generated)
    share = torch.bincount(probability.argmax(1), minlength=len(recipe.digits)).double() / len(generated)
    evaluation = {
        "digit_share": dict(zip(map(str, classifier.classes.tolist()), share.tolist(), strict=True)),
        "classifier_confidence": probability.amax(1).mean().item(),
        "distance": training.distance_to_generated(generator, test.images).mean().item(),
        "inversion_residual": codes.residual.mean().item(),
        "inversion_converged": codes.converged.float().mean().item(),
    }
    # An inversion is a point: it has no standard deviation.
    found = {"z": codes.z, "std": torch.zeros_like(codes.z), "residual": codes.residual}
    return gan, found, {"evaluation": evaluation, "history": history}


@as_command()
def main() -> None:
    """Train models by their recipes and write them to data/models; ``make models`` runs it for all that are shipped."""
    parser = argparse.ArgumentParser(prog="python -m lgi.recipes", description=main.__doc__)
    names = ["logistic_regression", *_recipes()]
    shipped = [name for name in names if name not in TRAININGS]
    parser.add_argument("names", nargs="*", metavar="name", help=f"which of {', '.join(names)}; by default the shipped")
    parser.add_argument("--device", default="auto", help="where to train; by default the GPU when there is one")
    arguments = parser.parse_args()
    chosen, device = arguments.names, arguments.device
    if unknown := set(chosen) - set(names):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    command = f"python -m lgi.recipes {' '.join(chosen)}" if chosen else "make models"
    try:
        _renew_shipped(chosen or shipped, command, device)
    except (artifacts.ArtifactError, datasets.DatasetError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt as stop:
        told = "the same command goes on from the last whole epoch, models before it are trained anew"
        parser.exit(exit_status(stop), f"\ninterrupted: {told}\n")


def _renew_shipped(names: Sequence[str], command: str, device: str) -> None:
    folder = artifacts.data_folder() / "models"
    artifacts.check_writable(folder, "The trained models are written there: make it writable")
    for name in names:
        if name == "logistic_regression":
            _ship(name, fit_or_load_logistic_regression(refit=True), command)
            continue
        settings = _recipes()[name].training
        n_networks = sum(map(len, BANDWIDTHS.get(name, {}).values()))
        n_rbf_steps = getattr(settings, "n_rbf_steps", 0) * (1 + n_networks)
        with progress_bar(settings.epochs + n_rbf_steps, desc=name) as advance:
            how: dict[str, Any] = {"device": device, "on_record": lambda *_, advance=advance: advance(1)}
            _ship(name, train_or_load(name, retrain=True, **how), command)
            if n_networks:
                # Of small steps, at which a GPU is no faster.
                _ship(f"{name}-rbf", fit_or_load_rbf(name, refit=True, **how | {"device": "cpu"}), command)


def _ship(name: str, artifact: artifacts.Artifact, command: str) -> None:
    """Write a trained model to data/models; of the published ones, of which there are many, with half the digits."""
    settings, tensors = artifact.settings, artifact.tensors
    # The regression draws nothing.
    seed = (settings.get("training") or settings.get("recipe", {}).get("training", {})).get("seed")
    if name in PUBLISHED:
        tensors = {key: x.half() if x.is_floating_point() else x for key, x in tensors.items()}
        label, index = (tensors[f"codes.{key}"] for key in ("label", "index"))
        tensors |= {"codes.label": label.to(torch.uint8), "codes.index": index.short()}
    by = artifacts.provenance(seed=seed, command=command) | artifact.provenance
    kept: dict[str, Any] = {"name": name, "settings": settings, "version": artifact.version}
    artifacts.save(artifacts.data_folder() / "models" / name, tensors, artifact.record, **kept, provenance=by)


if __name__ == "__main__":
    main()
