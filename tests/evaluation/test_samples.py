"""Samples from folders and .npz files: what is read, what is named because it is not, what is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from consistune.data.images import digits
from consistune.errors import UserError
from consistune.evaluation.job import Job
from consistune.evaluation.request import Request
from consistune.evaluation.setup import build_suite, read_data
from consistune.evaluation.sources import is_samples, read_pngs
from consistune.metrics.classifier import ImageClassifier
from consistune.nn import store
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from tests.support.command import run_main

PIXELS = digits().train.images[::30].permute(0, 2, 3, 1).numpy()
LABELS = np.arange(len(PIXELS)) % 10
MU, SIGMA = np.zeros(3), np.eye(3)


class Listening:
    def __init__(self) -> None:
        self.said = ""

    def say(self, text: str) -> None:
        self.said += f"{text}\n"

    def advance(self, amount: int, note: str | None = None) -> None: ...

    @contextmanager
    def bar(self, description: str, total: int, done: int = 0) -> Iterator["Listening"]:
        yield self


@pytest.fixture(autouse=True)
def extractor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module three: three pixels of an image as its features."""
    (tmp_path / "three.py").write_text("def pixels(x):\n    return x[:, 0, 2:5, 3].flatten(1)\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def folder(path: Path, *names: str) -> Path:
    for name, image in zip([*(f"{i}.png" for i in range(8)), *names], PIXELS, strict=False):
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(place, "JPEG" if name.endswith("jpg") else "PNG")
    return path


def batch(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **{"arr_0": PIXELS, **arrays})
    return path


def said(samples: Path, **wanted: object) -> str:
    """What an evaluation of 8 samples says on the screen."""
    screen, out = Listening(), samples.parent / "out"
    options = {"data": "digits", "features": "three:pixels", "metrics": ("fd",), "samples": 8, **wanted}
    Job(Request(samples, out, **options), screen).run()
    return screen.said


@pytest.mark.parametrize("name", ["a.jpg", "inner/a.png", "a.heic"])
def test_images_beside_the_samples_are_refused_by_name(name: str, tmp_path: Path) -> None:
    place = folder(tmp_path / "f", *([] if name == "a.heic" else [name]))
    (place / name).touch()
    with pytest.raises(UserError, match=rf"f: has other images .* \(1\): {name}; give a folder of PNG"):
        said(place)


def test_pngs_in_capital_letters_are_read_and_junk_and_texts_are_named(tmp_path: Path) -> None:
    place = folder(tmp_path / "f", "z.PNG")
    (place / "._0.png").write_bytes(b"of macOS")
    (place / "notes.txt").touch()
    assert len(read_pngs(place)[0]) == 9
    words = said(place)
    assert "f: hidden and system entries were passed over: ._0.png" in words
    assert "f: files that are no images were passed over: notes.txt" in words


def test_a_folder_of_class_folders_and_an_empty_one_are_no_models(tmp_path: Path) -> None:
    (folder(tmp_path / "all") / "inner").mkdir()
    (tmp_path / "all").rename(tmp_path / "class")
    (tmp_path / "classes").mkdir()
    (tmp_path / "class").rename(tmp_path / "classes" / "0")
    (tmp_path / "dir.npz").mkdir()
    assert is_samples(tmp_path / "classes")
    with pytest.raises(UserError, match="classes: has other images"):
        said(tmp_path / "classes")
    with pytest.raises(UserError, match="holds no PNG files"):
        said(tmp_path / "dir.npz")


def test_what_pillow_does_not_know_is_named_without_an_objects_address(tmp_path: Path) -> None:
    (folder(tmp_path / "f") / "3.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"3\.png: cannot be read: it is no PNG$"):
        said(tmp_path / "f")


@pytest.mark.parametrize(
    ("arrays", "unread"),
    [({"y": LABELS}, "y"), ({"labels": LABELS, "label": LABELS}, "label"), ({"seeds": LABELS}, None)],
)
def test_arrays_of_samples_that_are_not_used_are_named(arrays, unread: str | None, tmp_path: Path) -> None:
    words = said(batch(tmp_path / "s.npz", **arrays))
    assert (f"s.npz: arrays that were not used: {unread}" in words) == (unread is not None)


def test_arrays_of_a_reference_batch_that_are_not_used_are_named(tmp_path: Path) -> None:
    samples = batch(tmp_path / "s.npz")
    other = batch(tmp_path / "other.npz", MU=MU, SIGMA=SIGMA)
    assert "other.npz: arrays that were not used: MU, SIGMA" in said(samples, data=str(other))
    whole = batch(tmp_path / "whole.npz", mu=MU, sigma=SIGMA)
    assert "not used" not in said(samples, data=str(whole))
    np.savez(tmp_path / "moments.npz", mu=MU, sigma=SIGMA)
    words = said(samples, data=str(whole), reference=tmp_path / "moments.npz")
    assert "whole.npz: arrays that were not used: mu, sigma" in words


def test_moments_that_are_not_whole_and_mirroring_of_moments_are_refused(tmp_path: Path) -> None:
    samples = batch(tmp_path / "s.npz")
    with pytest.raises(UserError, match=r"half\.npz: holds mu alone"):
        said(samples, data=str(batch(tmp_path / "half.npz", mu=MU)))
    whole = batch(tmp_path / "whole.npz", mu=MU, sigma=SIGMA)
    for wanted in ({"data": str(whole)}, {"reference": whole}):
        with pytest.raises(UserError, match="--x-flip: has no effect on a file of moments"):
            said(samples, x_flip=True, **wanted)


def test_own_moments_of_mirrored_images_are_used_again(tmp_path: Path) -> None:
    samples, kept = batch(tmp_path / "s.npz"), tmp_path / "kept.npz"
    said(samples, x_flip=True, save_reference=kept)
    said(samples, data=None, reference=kept, x_flip=True)
    with pytest.raises(UserError, match="was made with mirror images"):
        said(samples, data=None, reference=kept)


def test_labels_beyond_the_datas_are_refused_where_accuracy_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    untrained = ImageClassifier((1, 8, 8), 10).eval()
    monkeypatch.setattr("consistune.evaluation.setup.classifier_of", lambda *_: untrained)
    samples = batch(tmp_path / "s.npz", arr_1=np.where(LABELS == 3, 99, LABELS))
    said(samples)
    with pytest.raises(UserError, match="the samples have labels up to 99, the data 10 classes"):
        said(samples, metrics=("fd", "accuracy"))


@pytest.mark.parametrize(
    ("images", "metrics", "words"),
    [
        (PIXELS[:3], ("fd",), r"d\.npz: holds 3 images; give 4 or more"),
        (PIXELS[:1], ("fd",), r"d\.npz: holds 1 images; give 4 or more"),
        (np.full_like(PIXELS, 7), ("relative",), "--metrics relative: all real images have the same"),
    ],
)
def test_data_that_nothing_can_be_measured_by_are_refused(images, metrics, words, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", arr_0=images)
    request = Request(tmp_path, tmp_path, str(tmp_path / "d.npz"), features="three:pixels", metrics=metrics)
    with pytest.raises(UserError, match=words):
        build_suite(request, read_data(request.data), (1, 8, 8), False, Listening())


@pytest.mark.parametrize(
    ("objective", "options", "words"),
    [
        ("consistency", ("--steps", "3"), "3 steps need 2 times between"),
        ("consistency", ("--search", "eta"), "the model has no phases"),
        ("consistency", ("--search", "mid-t", "--mid-t", "0.5"), "is what --search mid-t varies"),
        ("consistency", ("--steps", "2", "--mid-t", "1e9"), "write falling times"),
        ("consistency", ("--steps", "2", "--mid-t", "1e-9"), "no noise level below 0.002"),
        ("diffusion", ("--mid-t", "0.5"), "the model is a diffusion model"),
    ],
)
def test_options_of_the_sampler_are_refused_before_the_work(
    objective: str, options: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = EDMPrecond(ResidualMLP((1, 8, 8), num_classes=10, width=8, blocks=1))
    model.card = ModelCard(objective=objective)
    store.save(model, tmp_path / "model")
    monkeypatch.setattr("consistune.evaluation.job.build_suite", None)
    done = run_main("evaluate", "model", "--data", "digits", *options, "--device", "cpu", cwd=tmp_path)
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


def test_files_are_kept_under_an_ending_in_capital_letters(tmp_path: Path) -> None:
    samples, names = batch(tmp_path / "s.npz"), ("k.NPZ", "r.Npz")
    words = ["--data", "digits", "--features", "three:pixels", "--metrics", "fd", "--samples", "8"]
    words += ["--no-anchors", "--device", "cpu", "--keep", names[0], "--save-reference", names[1]]
    done = run_main("evaluate", samples, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all((tmp_path / name).is_file() for name in names)
