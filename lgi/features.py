"""Feature maps on top of a generator: logistic regression and VGG-19 activations (section 2.2, App. B).

A feature map is any callable ``(n, *data_shape) -> (n, *feature_shape)``. The two of the paper are modules that are
frozen, in eval mode, free of in-place operations, and differentiable in reverse and forward mode.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Self, get_args

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lgi import artifacts
from lgi.checks import one_of

ClassifierOutput = Literal["logits", "log_probabilities", "probabilities"]

# Of the images VGG-19 was trained on: torchvision's constants, for RGB in [0, 1].
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# Of its trained layers, as far as we have them: first digits of the SHA-256 of weight and bias, in float32.
_IMAGENET_DIGESTS = {
    "conv1_1": "ccf442a0e5c48867", "conv1_2": "93eb5ae2ee741f61",
    "conv2_1": "59893f1f9fe10839", "conv2_2": "93f3878961f14881",
    "conv3_1": "a71094a6fa3a9336", "conv3_2": "a9d72dd626a6b334",
    "conv3_3": "3cc34b25f5dce47f", "conv3_4": "bb839d4c2b158630",
}  # fmt: skip


def _check_images(images: Tensor, weight: Tensor) -> None:
    """Refuse what the layers would otherwise answer with an error about their own insides."""
    if images.dtype != weight.dtype:
        raise ValueError(f"expected images of dtype {weight.dtype}, as the weights, got {images.dtype}: convert one")


def _check_labels(labels: Tensor, images: Tensor) -> None:
    if labels.shape != images.shape[:1] or labels.is_floating_point():
        raise ValueError(
            f"expected one integer label for each of the {len(images)} images, got {labels.dtype} of shape "
            f"{tuple(labels.shape)} for images of shape {tuple(images.shape)}"
        )


class LogisticRegression(nn.Module):
    """Multinomial logistic regression on flattened data, the feature map of App. B.

    p(c | x) = softmax(W x + b)_c

    Parameters
    ----------
    weight : Tensor, shape (n_classes, n_features)
        W; ``n_features`` is the number of entries of one data point.
    bias : Tensor, shape (n_classes,)
        b, of the dtype of the weight.
    classes : Tensor, shape (n_classes,), integer
        The label that each row stands for.
    output : {"probabilities", "log_probabilities", "logits"}
        What `forward` returns. The probabilities are the paper's map: nearly constant inside the region of a class, so
        that only crossings between classes cost length. The logits W x + b are affine in x.

    Raises
    ------
    ValueError
        If the shapes do not belong together, there are fewer than two classes, or `output` is not one of the three.
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor

    def __init__(
        self, weight: Tensor, bias: Tensor, classes: Tensor, *, output: ClassifierOutput = "probabilities"
    ) -> None:
        super().__init__()
        one_of(get_args(ClassifierOutput), output=output)
        if weight.ndim != 2 or weight.shape[0] < 2 or not bias.shape == classes.shape == weight.shape[:1]:
            raise ValueError(
                "expected weight (n_classes, n_features), bias (n_classes,) and classes (n_classes,) with at least two "
                f"classes, got {tuple(weight.shape)}, {tuple(bias.shape)} and {tuple(classes.shape)}"
            )
        self.output = output
        # Buffers: they move and are saved with the module, and never require a gradient. Contiguous, as scikit-learn's
        # coefficients are not: safetensors insists, and the order of summation must not change on a round trip.
        self.register_buffer("weight", weight.detach().clone(memory_format=torch.contiguous_format))
        self.register_buffer("bias", bias.detach().clone())
        self.register_buffer("classes", classes.detach().clone())
        self.eval()

    @classmethod
    def fit_images(cls, images: Tensor, labels: Tensor, *, C: float = 1.0) -> Self:
        """Fit by scikit-learn's L-BFGS, which is deterministic, in float64.

        Parameters
        ----------
        images : Tensor, shape (n, *data_shape)
            In the range that the generator uses: the regression keeps no scaling of its own.
        labels : Tensor, shape (n,), integer
            At least two different ones.
        C : float
            Inverse strength of the L2 penalty on the weights (scikit-learn's default).

        Returns
        -------
        LogisticRegression
            With the dtype of the images, on their device. Its probabilities are those of scikit-learn's model.

        Raises
        ------
        ValueError
            If the numbers of images and labels differ, or the labels are not integers.
        """
        _check_labels(labels, images)
        from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression

        estimator = SklearnLogisticRegression(C=C, max_iter=1000)
        estimator.fit(images.detach().flatten(1).double().cpu().numpy(), labels.cpu().numpy())
        weight, bias = (torch.as_tensor(x, dtype=images.dtype) for x in (estimator.coef_, estimator.intercept_))
        if len(weight) == 1:  # of two classes, scikit-learn keeps the difference: the rows are 0 and w
            weight, bias = (torch.cat([torch.zeros_like(x), x]) for x in (weight, bias))
        return cls(weight, bias, torch.as_tensor(estimator.classes_)).to(images.device)

    def extra_repr(self) -> str:
        """Show the sizes and the output in the module's representation."""
        return f"n_features={self.weight.shape[1]}, classes={self.classes.tolist()}, output={self.output!r}"

    def forward(self, images: Tensor) -> Tensor:
        """Features of the images.

        Parameters
        ----------
        images : Tensor, shape (n, *data_shape)
            Data with ``n_features`` entries each.

        Returns
        -------
        Tensor, shape (n, n_classes)
            Logits, log-probabilities or probabilities, as asked for at construction.

        Raises
        ------
        ValueError
            If an image has another number of entries, or the dtype is not that of the weights.
        """
        logits = self.logits(images)
        return logits if self.link is None else self.link(logits, -1)

    @property
    def link(self) -> Callable[[Tensor, int], Tensor] | None:
        """What is made of the logits, ``link(logits, dim)``; None where these themselves are the output."""
        return {"probabilities": torch.softmax, "log_probabilities": torch.log_softmax}.get(self.output)

    def predict(self, images: Tensor) -> Tensor:
        """Most probable labels, shape (n,), of images (n, *data_shape)."""
        return self.classes[self.logits(images).argmax(-1)]

    def accuracy(self, images: Tensor, labels: Tensor) -> float:
        """Fraction, in [0, 1], of the images (n, *data_shape) whose predicted label is that of `labels` (n,)."""
        _check_labels(labels, images)
        return (self.predict(images) == labels).double().mean().item()

    def logits(self, images: Tensor) -> Tensor:
        """``W x + b``, shape (n, n_classes), of images (n, *data_shape), whatever `output` is."""
        _check_images(images, self.weight)
        if images.ndim < 2 or images.shape[1:].numel() != self.weight.shape[1]:
            raise ValueError(
                f"expected images (n, *data_shape) with {self.weight.shape[1]} entries each, got {tuple(images.shape)}"
            )
        return nn.functional.linear(images.flatten(1), self.weight, self.bias)


class VGG19Features(nn.Module):
    """Activations of VGG-19 (Simonyan & Zisserman 2015) at one layer, as a perceptual feature map (section 2.2).

    F(x) = layer((rgb(x) - m) / s), where rgb repeats a grey channel and maps the value range to [0, 1], and m, s are
    the mean and standard deviation of ImageNet's channels.

    Only the layers up to the one asked for exist. Their names in the state dict are torchvision's
    (``features.0.weight`` ...). All is frozen, in eval mode, with no in-place operation: forward mode works.

    Parameters
    ----------
    layer : str
        ``conv{block}_{i}``, ``relu{block}_{i}`` or ``pool{block}``, from ``conv1_1`` to ``pool5``; blocks 1 and 2 have
        two convolutions, blocks 3 to 5 four. Default ``relu3_4`` (ours: the paper does not name the layer).
    weights : "imagenet", path, mapping or None
        ``"imagenet"``: the trained weights, from ``vgg19/*.safetensors`` in `artifacts.raw_data_folders`, else from
        torchvision's download cache, else by download where `download` allows it; they are compared with known digests
        (beyond conv3_4, where we know none, with that of torchvision's file). A path: a state dict as safetensors,
        or as written by ``torch.save``. A mapping: a state dict. None: random (He et al. 2015), drawn from `seed`.
    value_range : (float, float)
        The values of the input that stand for black and white, (0, 1) or (-1, 1) say.
    download : bool
        Whether torchvision may fetch its weights (548 MB, once) where they are nowhere on disk.
    seed : int
        Of the random weights.

    Attributes
    ----------
    digest : str
        SHA-256 of the weights in float32, 64 hexadecimal digits: what a result may say that it was computed with.

    Raises
    ------
    ValueError
        For an unknown layer, weights that lack a layer, have wrong shapes or are not finite, files of which
        ``"imagenet"`` is asked and that hold something else, or an empty value range.
    FileNotFoundError
        If the weights are not on disk.

    Notes
    -----
    Each pool halves height and width, rounding down: 28 x 28 images give 256 x 7 x 7 = 12544 features at ``relu3_4``,
    512 x 3 x 3 at ``relu4_4``, 512 x 1 x 1 at ``relu5_4`` and nothing (an error) at ``pool5``.

    References
    ----------
    Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015.
    """

    def __init__(
        self,
        layer: str = "relu3_4",
        weights: str | Path | Mapping[str, Tensor] | None = "imagenet",
        *,
        value_range: tuple[float, float] = (0.0, 1.0),
        download: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        names = _vgg19_layers()
        one_of(names, layer=layer)
        if not value_range[0] < value_range[1]:
            raise ValueError(f"expected value_range (black, white) with black < white, got {value_range}")
        self.layer = layer
        self.value_range = value_range
        # Built without storage, so that loading draws no random number from the caller's stream.
        with torch.device("meta"):
            self.features = _build_vgg19(names[: names.index(layer) + 1])
        if weights is None:
            self.load_state_dict(self._random_state(seed), assign=True)
        else:
            self._load(weights, download)
        self.digest = _sha256(*self.state_dict().values())
        self.requires_grad_(False).eval()

    def extra_repr(self) -> str:
        """Show the layer and the range in the module's representation."""
        return f"layer={self.layer!r}, value_range={self.value_range}"

    def forward(self, images: Tensor) -> Tensor:
        """Activations of the images.

        Parameters
        ----------
        images : Tensor, shape (n, 1, height, width) or (n, 3, height, width)
            Grey or RGB, with values in `value_range`.

        Returns
        -------
        Tensor, shape (n, n_channels, height / 2^p, width / 2^p)
            At the layer, p pools down (rounded down at each).

        Raises
        ------
        ValueError
            If the images have another shape, are too small for the layer, or have another dtype than the weights.
        """
        _check_images(images, next(self.parameters()))
        n_pools = sum(isinstance(module, nn.MaxPool2d) for module in self.features)
        if images.ndim != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < 2**n_pools:
            raise ValueError(
                f"expected images (n, 1 or 3, height, width) of at least {2**n_pools} x {2**n_pools} pixels for "
                f"{self.layer}, got {tuple(images.shape)}"
            )
        black, white = self.value_range
        # Constants in the dtype of the input: buffers would keep float32's rounding after .double().
        mean = images.new_tensor(_IMAGENET_MEAN).view(3, 1, 1)
        std = images.new_tensor(_IMAGENET_STD).view(3, 1, 1)
        normalised: Tensor = ((images - black) / (white - black) - mean) / std
        return self.features(normalised)

    def _random_state(self, seed: int) -> dict[str, Tensor]:
        """Torchvision's initialisation of a VGG, from a stream of its own."""
        generator = torch.Generator().manual_seed(seed)
        state = {name: torch.zeros(parameter.shape) for name, parameter in self.state_dict().items()}
        for value in state.values():
            if value.ndim == 4:
                nn.init.kaiming_normal_(value, mode="fan_out", nonlinearity="relu", generator=generator)
        return state

    def _load(self, weights: str | Path | Mapping[str, Tensor], download: bool) -> None:
        """Take copies, in float32, of the weights that the layers need."""
        source: str | Path = "the mapping"
        trained = weights == "imagenet"
        if not isinstance(weights, Mapping):
            source = path = _imagenet_file(download) if trained else Path(weights)
            weights = _read_state(path)
        known = {key: weights[key].detach().to(torch.float32, copy=True) for key in self.state_dict().keys() & weights}
        try:
            self.load_state_dict(known, assign=True)
        except RuntimeError as error:
            raise ValueError(
                f"{source} has not all of VGG-19's weights up to {self.layer}, by torchvision's names. Ask for a layer "
                f"that they reach, or give weights that go further. {error}"
            ) from error
        if bad := [name for name, value in known.items() if not bool(value.isfinite().all())]:
            raise ValueError(f"{source}: {', '.join(sorted(bad))} has NaN or infinite entries; restore the weights")
        if trained:
            self._verify(Path(source))

    def _verify(self, path: Path) -> None:
        """Refuse a file that does not hold the weights trained on ImageNet."""
        layers = zip(_vgg19_layers(), self.features, strict=False)
        digests = {name: _sha256(*layer.parameters()) for name, layer in layers if isinstance(layer, nn.Conv2d)}
        wrong = [name for name, digest in digests.items() if not digest.startswith(_IMAGENET_DIGESTS.get(name, ""))]
        if unknown := sorted(digests.keys() - _IMAGENET_DIGESTS.keys()):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if path.name != f"vgg19-{digest[:8]}.pth":  # the name that torchvision gives to its file
                wrong += unknown
        if wrong:
            raise ValueError(
                f"{path}: {', '.join(wrong)} cannot be shown to be VGG-19's, trained on ImageNet: another digest, or "
                "none that is known. Restore or delete that file; weights of your own are given by their path"
            )


def _sha256(*parameters: Tensor) -> str:
    """Digest of parameters, one after the other."""
    return hashlib.sha256(b"".join(p.detach().cpu().contiguous().numpy().tobytes() for p in parameters)).hexdigest()


def _vgg19_layers() -> list[str]:
    """Names of the modules of torchvision's ``vgg19().features``, in order."""
    names = []
    for block, n_convolutions in enumerate((2, 2, 4, 4, 4), start=1):
        for i in range(1, n_convolutions + 1):
            names += [f"conv{block}_{i}", f"relu{block}_{i}"]
        names.append(f"pool{block}")
    return names


def _build_vgg19(names: list[str]) -> nn.Sequential:
    """Build the layers of these names, convolutions as torchvision configures them, ReLUs not in place."""
    from torchvision.models.vgg import cfgs, make_layers

    n_stages = sum(not name.startswith("relu") for name in names)
    layers = make_layers(cfgs["E"][:n_stages])[: len(names)]
    for module in layers:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return layers


def _imagenet_file(download: bool) -> Path:
    """Find the trained weights: raw data folders, then torchvision's cache, then (on request) the network."""
    folders = [folder / "vgg19" for folder in artifacts.raw_data_folders()]
    if found := [path for folder in folders for path in sorted(folder.glob("*.safetensors"))]:
        return found[0]
    from torchvision.models import VGG19_Weights

    url = VGG19_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if not path.exists():
        if not download:
            raise FileNotFoundError(
                f"no ImageNet weights of VGG-19: neither *.safetensors in {', '.join(map(str, folders))} nor {path}. "
                "Point LGI_DATA at a folder with vgg19/*.safetensors, or pass download=True"
            )
        torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    return path


def _read_state(path: Path) -> Mapping[str, Tensor]:
    """State dict in a safetensors file, or in one that ``torch.save`` wrote; executes nothing from it."""
    if not path.is_file():
        raise FileNotFoundError(f"no file of weights at {path}")
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # safetensors, zip and pickle each raise their own kinds
        raise ValueError(f"{path} is not a readable state dict ({error}): restore or delete it") from error
    if not isinstance(state, Mapping):
        raise ValueError(f"expected a state dict in {path}, got {type(state).__name__}")
    return state
