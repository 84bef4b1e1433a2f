"""The embedded data and how a set is grouped."""

from pathlib import Path

import torch

from consistune.core.posterior.mean import quantise
from consistune.data.images import ImageSet, digits, open_prepared
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.prepare.split import Split
from tests.support.makers import edm_zip, pixels


def test_digits_are_split_without_overlap_and_in_proportion() -> None:
    data = digits()
    assert (len(data.train), len(data.held_out)) == (1500, 297)
    assert data.train.image_shape == (1, 8, 8)
    shares = [torch.bincount(part.labels).double() / len(part) for part in (data.train, data.held_out)]
    assert (shares[0] - shares[1]).abs().max() < 0.005
    seen = {image.numpy().tobytes() for image in data.train.images}
    assert sum(image.numpy().tobytes() in seen for image in data.held_out.images) == 0
    assert int(data.train.images.max()) == 255


def test_classes_are_contiguous_and_the_reference_holds_just_them() -> None:
    data = digits().train
    assert (data.labels.diff() >= 0).all()
    reference = data.reference(by_class=True)
    for label in range(10):
        rows = slice(reference.offsets[label], reference.offsets[label + 1])
        assert (data.labels[rows] == label).all()
        assert rows.stop - rows.start == int((data.labels == label).sum())
    assert data.reference(by_class=False).offsets == (0, 1500)


def test_a_class_without_images_keeps_its_place() -> None:
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    data = ImageSet.of("x", images, torch.tensor([2, 0, 2, 0]), ("a", "b", "c"))
    assert data.images.flatten().tolist() == [1, 3, 0, 2]
    assert data.reference(by_class=True).offsets == (0, 2, 2, 4)


def test_a_batch_holds_its_rows_and_pixels_convert_back_exactly() -> None:
    data = digits().train
    rows = torch.tensor([5, 1400, 5])
    batch = data.batch(rows, conditional=True)
    assert batch.condition is not None
    assert torch.equal(batch.condition, data.labels[rows])
    assert torch.equal(quantise(batch.x_0), data.images[rows])
    assert data.batch(rows, conditional=False).condition is None


def test_the_fingerprint_is_of_images_and_labels(tmp_path: Path) -> None:
    images, labels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 0, 1, 1])
    brighter = images.clone()
    brighter[3, 0, 1, 1] = 1
    sets = [
        ImageSet("x", images, labels, ("a", "b")),
        ImageSet("x", brighter, labels, ("a", "b")),
        ImageSet("x", images, torch.tensor([0, 1, 1, 1]), ("a", "b")),
        ImageSet("x", images.view(4, 1, 1, 4), labels, ("a", "b")),
    ]
    assert len({data.fingerprint for data in sets}) == 4
    assert ImageSet("y", images.clone(), labels, ("a", "b")).fingerprint == sets[0].fingerprint


def test_a_prepared_set_has_the_fingerprint_of_its_files(tmp_path: Path) -> None:
    source = edm_zip(tmp_path / "set.zip", pixels(40, 8, 8), [i % 2 for i in range(40)])
    for name, options in {
        "a": PrepareOptions(),
        "b": PrepareOptions(),
        "c": PrepareOptions(split=Split(0.5)),
    }.items():
        prepare(source, tmp_path / name, options)
    a, b, c = (open_prepared(tmp_path / name).train.fingerprint for name in "abc")
    assert a == b != c
