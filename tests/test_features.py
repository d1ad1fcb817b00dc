"""Feature maps: logistic regression against closed forms and scikit-learn, VGG-19 against torchvision's own."""

import hashlib
import math
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression as SklearnLogisticRegression
from test_artifacts import damages

from lgi import artifacts, features
from lgi.features import LogisticRegression, VGG19Features

float64 = torch.float64
first_jvp_of_the_process = pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")


@pytest.fixture(scope="module")
def digits():
    """400 real 8 x 8 digits (2, 4, 5, 7) in [0, 1], as images (n, 1, 8, 8), and their labels."""
    data = load_digits()
    keep = np.isin(data.target, [2, 4, 5, 7])
    images = torch.from_numpy(data.images[keep][:400] / 16).unsqueeze(1)
    return images, torch.from_numpy(data.target[keep][:400])


@pytest.fixture(scope="module")
def fitted(digits):
    return LogisticRegression.fit_images(*digits)


class TestLogisticRegression:
    def test_two_classes_by_hand(self):
        weight, bias = torch.tensor([[0.0], [2.0]], dtype=float64), torch.tensor([0.0, -1.0], dtype=float64)
        x = torch.tensor([[0.5], [3.0]], dtype=float64)
        p = 1 / (1 + torch.exp(-(2 * x - 1)))
        expected = torch.cat([1 - p, p], dim=1)
        classes = torch.tensor([4, 7])
        model = LogisticRegression(weight, bias, classes)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-15)
        model = LogisticRegression(weight, bias, classes, output="log_probabilities")
        torch.testing.assert_close(model(x), expected.log(), rtol=1e-14, atol=1e-15)
        model = LogisticRegression(weight, bias, classes, output="logits")
        torch.testing.assert_close(model(x), torch.tensor([[0.0, 0.0], [0.0, 5.0]], dtype=float64))
        assert LogisticRegression(weight, bias, classes).predict(x[1:]).tolist() == [7]

    @pytest.mark.parametrize(
        ("n_classes", "dtype", "tolerance"), [(4, float64, 1e-10), (4, torch.float32, 1e-6), (2, float64, 1e-12)]
    )
    def test_equals_sklearn(self, digits, n_classes, dtype, tolerance):
        images, labels = digits[0].to(dtype), digits[1] if n_classes == 4 else (digits[1] > 4).long()
        model = LogisticRegression.fit_images(images, labels)
        x = digits[0].flatten(1).numpy()
        oracle = SklearnLogisticRegression(max_iter=1000).fit(x, labels.numpy())
        assert model(images).dtype == dtype
        assert np.abs(model(images).numpy() - oracle.predict_proba(x)).max() < tolerance
        assert np.array_equal(model.predict(images).numpy(), oracle.predict(x))
        assert model.accuracy(images, labels) == pytest.approx(oracle.score(x, labels.numpy()), abs=1e-15)

    def test_penalty_shrinks_the_weights(self, digits, fitted):
        strong = LogisticRegression.fit_images(*digits, C=1e-3)
        assert strong.weight.norm() < 0.2 * fitted.weight.norm()

    def test_state_dict_round_trip(self, digits, fitted):
        images, _ = digits
        blank = LogisticRegression(*(torch.zeros_like(x) for x in (fitted.weight, fitted.bias, fitted.classes)))
        assert not torch.equal(blank(images), fitted(images))
        blank.load_state_dict(fitted.state_dict())
        assert torch.equal(blank(images), fitted(images))
        assert torch.equal(blank.predict(images), fitted.predict(images))
        assert set(fitted.state_dict()) == {"weight", "bias", "classes"}

    def test_frozen_and_independent_of_the_callers_tensors(self):
        weight, bias = torch.ones(3, 2, requires_grad=True), torch.zeros(3)
        model = LogisticRegression(weight, bias, torch.arange(3))
        with torch.no_grad():
            weight.mul_(5)
            bias.add_(1)
        assert model.weight.max() == 1
        assert model.bias.max() == 0
        assert not any(tensor.requires_grad for tensor in model.state_dict(keep_vars=True).values())
        assert not model.training

    def test_bad_input(self, digits, fitted):
        weight, bias, classes = torch.zeros(3, 4), torch.zeros(3), torch.arange(3)
        images, labels = digits
        for message, call, *arguments in (
            ("output must be one of", partial(LogisticRegression, output="softmax"), weight, bias, classes),
            (r"\(3, 4\), \(2,\) and \(3,\)", LogisticRegression, weight, bias[:2], classes),
            ("at least two", LogisticRegression, weight[:1], bias[:1], classes[:1]),
            (r"64 entries each, got \(2, 9\)", fitted, torch.zeros(2, 9, dtype=float64)),
            (r"64 entries each, got \(64,\)", fitted, torch.zeros(64, dtype=float64)),
            (r"dtype torch.float64, .* got torch.float32", fitted, torch.zeros(2, 64)),
            ("one integer label for each of the 400 images", LogisticRegression.fit_images, images, labels[:-1]),
            ("integer label", LogisticRegression.fit_images, images, labels.double()),
            (r"400 images, got .* of shape \(1,\)", fitted.accuracy, images, labels[:1]),
        ):
            with pytest.raises(ValueError, match=message):
                call(*arguments)

    def test_no_images_in_no_features_out(self, fitted):
        assert fitted(torch.zeros(0, 1, 8, 8, dtype=float64)).shape == (0, 4)


def torchvision_features(layer_index, state):
    """Torchvision's own first layers, with their in-place ReLUs, and the weights of `state`."""
    from torchvision.models.vgg import cfgs, make_layers

    reference = make_layers(cfgs["E"])[: layer_index + 1]
    reference.load_state_dict({name.removeprefix("features."): state[name] for name in state})
    return reference.eval().requires_grad_(False)


def normalised_rgb(images):
    """What torchvision's preset does to RGB images in [0, 1]."""
    from torchvision.transforms.functional import normalize

    return normalize(images.expand(-1, 3, -1, -1), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def grey(n=2, size=28, dtype=torch.float32):
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)


class RunsCode:
    """What a pickle of it does where it is read: open a file for writing."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class TestVGG19Features:
    # Indices from torchvision's documentation of vgg19().features.
    @pytest.mark.parametrize(
        ("layer", "index", "shape"),
        [
            ("conv1_1", 0, (64, 28, 28)),
            ("relu1_2", 3, (64, 28, 28)),
            ("pool1", 4, (64, 14, 14)),
            ("conv2_2", 7, (128, 14, 14)),
            ("relu3_4", 17, (256, 7, 7)),
            ("pool3", 18, (256, 3, 3)),
            ("relu4_1", 20, (512, 3, 3)),
            ("relu5_4", 35, (512, 1, 1)),
        ],
    )
    def test_layer_is_torchvisions(self, layer, index, shape):
        model = VGG19Features(layer, weights=None)
        assert len(model.features) == index + 1
        expected = torchvision_features(index, model.state_dict())(normalised_rgb(grey()))
        torch.testing.assert_close(model(grey()), expected)
        assert model(grey()).shape[1:] == shape

    @pytest.mark.needs_vgg
    def test_real_weights_equal_torchvision_in_float64(self):
        path = features._imagenet_file(download=False)
        images = grey(dtype=float64)
        model = VGG19Features().double()
        names = set(model.state_dict())
        reference = torchvision_features(17, {name: value for name, value in load_file(path).items() if name in names})
        expected = reference.double()(normalised_rgb(images))
        torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
        single = VGG19Features()(images.float())
        torch.testing.assert_close(single, expected.float(), rtol=0, atol=1e-4 * expected.max().item())

    @pytest.mark.parametrize("channels", [1, 3])
    def test_value_range_and_channels(self, channels):
        images = grey().expand(-1, channels, -1, -1)
        unit = VGG19Features("relu1_2", weights=None)
        signed = VGG19Features("relu1_2", weights=unit.state_dict(), value_range=(-1.0, 1.0))
        torch.testing.assert_close(unit(grey()), unit(images))
        torch.testing.assert_close(signed(2 * images - 1), unit(images), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(signed(images), unit(images), atol=1e-2)

    def test_colour_is_not_thrown_away(self):
        images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(2))
        model = VGG19Features("conv1_1", weights=None)
        assert not torch.allclose(model(images), model(images.flip(1)), atol=1e-2)

    @first_jvp_of_the_process
    def test_jvp_matches_finite_differences_and_reverse_mode(self):
        # Between two kinks of the ReLUs and pools the map is affine: central differences are exact but for rounding.
        model = VGG19Features("pool2", weights=None).double()
        images = grey(1, 12, float64)
        tangent = torch.randn(images.shape, generator=torch.Generator().manual_seed(3), dtype=float64)
        before = images.clone()
        value, derivative = torch.func.jvp(model, (images,), (tangent,))
        step = 1e-7
        difference = (model(images + step * tangent) - model(images - step * tangent)) / (2 * step)
        torch.testing.assert_close(derivative, difference, rtol=1e-6, atol=1e-6)
        assert torch.equal(images, before)
        assert torch.equal(value, model(images))
        cotangent = torch.randn(value.shape, generator=torch.Generator().manual_seed(4), dtype=float64)
        (gradient,) = torch.func.vjp(model, images)[1](cotangent)
        assert (cotangent * derivative).sum().item() == pytest.approx((gradient * tangent).sum().item(), rel=1e-10)

    def test_frozen_eval_and_out_of_place(self):
        model = VGG19Features("relu2_1", weights=None)
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
        assert not any(module.inplace for module in model.features if isinstance(module, torch.nn.ReLU))
        assert set(model.state_dict()) == {f"features.{i}.{kind}" for i in (0, 2, 5) for kind in ("weight", "bias")}

    def test_random_weights_have_their_own_seeded_stream(self):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        first = VGG19Features("relu1_1", weights=None, seed=1)
        assert torch.equal(torch.rand(3), expected)
        assert torch.equal(first(grey()), VGG19Features("relu1_1", weights=None, seed=1)(grey()))
        assert not torch.equal(first(grey()), VGG19Features("relu1_1", weights=None, seed=2)(grey()))
        # He's initialisation with fan out: variance 2 / (64 * 9).
        assert first.features[0].weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.1)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_weights_from_file_and_mapping(self, tmp_path, suffix):
        state = VGG19Features("conv2_1", weights=None, seed=5).state_dict()
        path = tmp_path / f"weights{suffix}"
        save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
        expected = VGG19Features("pool1", weights=state)(grey())
        torch.testing.assert_close(VGG19Features("pool1", weights=path)(grey()), expected, rtol=0, atol=0)
        torch.testing.assert_close(VGG19Features("pool1", weights=str(path))(grey()), expected, rtol=0, atol=0)
        model = VGG19Features("pool1", weights=state)
        model.features[0].weight.zero_()
        assert state["features.0.weight"].abs().max() > 0
        with pytest.raises(ValueError, match=r'up to conv2_2(.|\n)* "features\.7\.weight", "features\.7\.bias"\.'):
            VGG19Features("conv2_2", weights=path)

    def test_imagenet_weights_are_found_on_disk_and_downloaded_only_on_request(self, tmp_path, monkeypatch):
        monkeypatch.setattr(artifacts, "raw_data_folders", lambda: [tmp_path / "none", tmp_path])
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
        mine, theirs = (VGG19Features("conv1_1", weights=None, seed=seed).state_dict() for seed in (7, 8))
        cache = tmp_path / "home" / "hub" / "checkpoints"

        def fetch(url, **_):
            cache.mkdir(parents=True)
            torch.save(theirs, cache / url.rsplit("/", 1)[1])

        def found(**options):
            return VGG19Features("conv1_1", **options).features[0].weight

        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fetch)
        monkeypatch.setattr(features, "_IMAGENET_DIGESTS", {"conv1_1": ""})
        with pytest.raises(FileNotFoundError, match=r"LGI_DATA .* or pass download=True"):
            found()
        assert torch.equal(found(download=True), theirs["features.0.weight"])
        # What was downloaded once is used without asking, unless there is something in a folder of raw data.
        assert [file.name for file in cache.iterdir()] == ["vgg19-dcbb9e9d.pth"]
        assert torch.equal(found(), theirs["features.0.weight"])
        (tmp_path / "vgg19").mkdir()
        save_file(mine, tmp_path / "vgg19" / "some.safetensors")
        assert torch.equal(found(), mine["features.0.weight"])

    @pytest.mark.needs_vgg
    @pytest.mark.parametrize(
        ("layer", "damage", "message"),
        [
            ("relu1_1", {}, None),
            ("relu3_4", {}, None),
            # One bit of an exponent, in the first layer or in the last one asked for.
            ("relu2_2", {"features.7.weight": lambda x: x.view(torch.int32)[5].bitwise_xor_(1 << 28)}, "conv2_2"),
            ("relu2_2", {"features.0.bias": lambda x: x.view(torch.int32)[:1].bitwise_xor_(1 << 24)}, "conv1_1 cannot"),
            ("relu3_4", {"features.16.weight": lambda x: x[0, 0].mul_(1 + 1e-6)}, "conv3_4 cannot"),
            ("relu1_1", {"features.0.weight": lambda x: x[:1].fill_(math.nan)}, "features.0.weight has NaN"),
            ("relu1_1", {"features.0.bias": lambda x: x[:1].fill_(math.inf)}, "features.0.bias has NaN or infinite"),
            # Not in what is asked for.
            ("relu1_1", {"features.2.weight": lambda x: x.zero_()}, None),
            # Layers of which no digest is known, unless torchvision's name tells that of the file.
            ("relu4_1", {"features.19": None}, "conv4_1 cannot be shown"),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("where", ["folder of raw data", "torch's cache"])
    def test_only_the_weights_trained_on_imagenet_are_taken_for_them(
        self, tmp_path, monkeypatch, layer, damage, message, where
    ):
        (file,) = (f for folder in artifacts.raw_data_folders() for f in (folder / "vgg19").glob("*.safetensors"))
        state = load_file(file)
        for name, change in damage.items():
            if change is None:
                state |= {f"{name}.weight": torch.ones(512, 256, 3, 3), f"{name}.bias": torch.ones(512)}
            else:
                change(state[name])
        monkeypatch.setattr(artifacts, "raw_data_folders", lambda: [tmp_path])
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
        if where == "torch's cache":
            path = tmp_path / "home" / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
            path.parent.mkdir(parents=True)
            torch.save(state, path)
        else:
            path = tmp_path / "vgg19" / "vgg19.safetensors"
            path.parent.mkdir()
            save_file(state, path)
        if message is None:
            found = VGG19Features(layer)
            assert (
                found.digest == VGG19Features(layer, weights=file).digest != VGG19Features(layer, weights=None).digest
            )
            return
        with pytest.raises(ValueError, match=message) as refusal:
            VGG19Features(layer)
        assert str(path) in str(refusal.value)
        # By its path a file is taken as it is, as long as there are numbers in it.
        if "NaN" not in message:
            VGG19Features(layer, weights=path)

    @pytest.mark.needs_vgg
    @settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(damage=damages())
    def test_damage_anywhere_never_changes_the_features(self, tmp_path, damage):
        file = tmp_path / "vgg19" / "vgg19.safetensors"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(features._imagenet_file(download=False).read_bytes())
        whole = VGG19Features("relu2_2").digest
        damage(file)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(artifacts, "raw_data_folders", lambda: [tmp_path])
            with suppress(ValueError):
                assert VGG19Features("relu2_2").digest == whole

    def test_layers_without_a_known_digest_are_torchvisions_by_the_name_of_its_file(self, tmp_path, monkeypatch):
        monkeypatch.setattr(artifacts, "raw_data_folders", lambda: [])
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(features, "_IMAGENET_DIGESTS", {})
        cached = tmp_path / "hub" / "checkpoints" / "vgg19-dcbb9e9d.pth"
        cached.parent.mkdir(parents=True)
        torch.save(VGG19Features("conv1_1", weights=None).state_dict(), cached)
        with pytest.raises(ValueError, match="conv1_1 cannot be shown"):
            VGG19Features("conv1_1")
        digest = hashlib.sha256(cached.read_bytes()).hexdigest()
        named = cached.rename(cached.with_name(f"vgg19-{digest[:8]}.pth"))
        monkeypatch.setattr(features, "_imagenet_file", lambda _: named)
        VGG19Features("conv1_1")

    def test_bad_weights(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
            VGG19Features("conv1_1", weights=tmp_path / "nowhere.safetensors")
        for name in ("broken.safetensors", "broken.pth"):
            (tmp_path / name).write_bytes(b"not weights")
        torch.save(torch.zeros(3), tmp_path / "tensor.pth")
        torch.save(RunsCode(tmp_path / "proof"), tmp_path / "evil.pth")
        state = VGG19Features("conv1_1", weights=None).state_dict()
        for message, weights in (
            ("broken.safetensors is not a readable state dict", tmp_path / "broken.safetensors"),
            ("broken.pth is not a readable state dict", tmp_path / "broken.pth"),
            (r"evil\.pth is not a readable state dict", tmp_path / "evil.pth"),
            (r"expected a state dict in .*tensor.pth, got Tensor", tmp_path / "tensor.pth"),
            (r"\[64, 1, 3, 3\].*\[64, 3, 3, 3\]", state | {"features.0.weight": torch.zeros(64, 1, 3, 3)}),
            (r"the mapping has not all(.|\n)*features\.0\.weight", {"weight": torch.zeros(1)}),
        ):
            with pytest.raises(ValueError, match=message):
                VGG19Features("conv1_1", weights=weights)
        assert not (tmp_path / "proof").exists()

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"layer must be one of conv1_1, relu1_1, .* got 'relu3_5'"):
            VGG19Features("relu3_5", weights=None)
        with pytest.raises(ValueError, match="black < white"):
            VGG19Features("conv1_1", weights=None, value_range=(1.0, 1.0))
        model = VGG19Features("pool2", weights=None)
        for message, images in (
            (r"got \(2, 2, 28, 28\)", torch.zeros(2, 2, 28, 28)),
            (r"got \(28, 28\)", torch.zeros(28, 28)),
            ("at least 4 x 4 pixels for pool2", torch.zeros(1, 1, 3, 8)),
            (r"torch.float32, .* got torch.float64", torch.zeros(1, 1, 8, 8, dtype=float64)),
        ):
            with pytest.raises(ValueError, match=message):
                model(images)
        assert model(torch.zeros(1, 1, 4, 4)).shape == (1, 128, 1, 1)
