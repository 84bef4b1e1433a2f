"""Latents from training to evaluation: decoded to look and to measure, refused where they do not fit."""

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from torch.nn.functional import avg_pool2d
from typer.testing import CliRunner

from consistune import front, models
from consistune.cli.main import app, explain
from consistune.core.posterior.mean import restored
from consistune.data.images import load_data
from consistune.errors import UserError
from consistune.evaluation.job import FLOOR, Job
from consistune.evaluation.request import Request
from consistune.evaluation.sources import DecodedSource
from consistune.evaluation.while_training import training_evaluation
from consistune.metrics.features import Extractor
from consistune.metrics.sheet import Input, Protocol
from consistune.nn import store
from consistune.nn.autoencoder.space import LatentSpace, from_model
from consistune.nn.autoencoder.table import AUTOENCODERS
from consistune.recipe import cost, validate
from consistune.recipe.plan import make_plan
from consistune.recipe.reading import read_recipe
from tests.support.autoencoders import tiny
from tests.support.latents import latent_set, source

RUN = CliRunner()
NETWORK = {"kind": "mlp", "width": 16, "blocks": 1}


def teacher_recipe(data: Path, **train):
    keys = {"objective": "diffusion", "data": str(data), "network": NETWORK}
    return validate({**keys, "train": {"images": 64, "batch": 16, "ema": [0.5], **train}})


def student_recipe(data: Path, teacher: Path, **keys):
    pairs = {
        "kind": "lognormal",
        "mean": -1.1,
        "std": 2.0,
        "gap": {"kind": "sigmoid", "q": 2, "every_images": 16},
    }
    estimator = {"kind": "score-identity", "reference": "class"}
    known = {"objective": "consistency", "data": str(data), "start_from": str(teacher), "pairs": pairs}
    train = {"images": 32, "batch": 16, "ema": [0.5]}
    return validate({**known, "estimator": estimator, "train": train, **keys})


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return latent_set(tmp_path_factory.mktemp("data"))[0]


@pytest.fixture(scope="module")
def teacher(data: Path, tmp_path_factory) -> Path:
    return trained(teacher_recipe(data), tmp_path_factory.mktemp("teacher") / "model")


def trained(recipe, folder: Path) -> Path:
    trainer = make_plan(recipe).trainer()
    for _ in trainer.steps():
        pass
    return store.save(trainer.averaged, folder)


def test_a_model_remembers_its_latents_and_gives_pictures(data: Path, teacher: Path, tmp_path: Path) -> None:
    student = trained(student_recipe(data, teacher), tmp_path / "student")
    model = models.load(student)
    record = load_data(str(data)).train.latents
    assert record is not None
    assert from_model(model) == record
    assert models.picture_shape(model) == (3, 16, 16)
    pictures = models.sample(model, range(5))
    assert (pictures.dtype, pictures.shape) == (torch.uint8, (5, 3, 16, 16))
    latents = models.sample(model, range(5), latents=True)
    assert (latents.dtype, latents.shape) == (torch.float32, (5, 6, 4, 4))
    with torch.no_grad():
        decoded = tiny().decode(latents)
    assert (decoded * 127.5 + 127.5 - pictures.float()).abs()[(decoded.abs() < 1)].max() <= 0.501
    assert torch.equal(models.sample(model, [3, 1]), pictures[[3, 1]])
    assert models.sample(model, []).shape == (0, 3, 16, 16)
    models.draw_sheet(model, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size == ((8 * 17 - 1) * 3,) * 2


def test_a_model_of_pictures_gives_no_latents() -> None:
    model = make_plan(read_recipe("digits-edm")).model
    with pytest.raises(UserError, match="makes pictures, not latents"):
        models.sample(model, [0], latents=True)


def test_transforms_of_pictures_are_refused(data: Path) -> None:
    with pytest.raises(UserError, match=r"train\.x_flip: mirrored latents are not"):
        make_plan(teacher_recipe(data, x_flip=True))
    augmented = {"objective": "diffusion", "data": str(data), "network": NETWORK, "augment": 0.1}
    with pytest.raises(UserError, match="augment: these transforms are of pictures"):
        make_plan(validate({**augmented, "train": {"images": 16}}))


def test_weights_of_other_latents_or_of_pictures_are_refused(
    data: Path, teacher: Path, tmp_path: Path, monkeypatch
) -> None:
    record = load_data(str(data)).train.latents
    assert record is not None
    shifted = latent_set(tmp_path / "shifted", like=replace(record, mean=tuple(m + 1 for m in record.mean)))[
        0
    ]
    with pytest.raises(UserError, match="normalised by another mean and deviation"):
        make_plan(student_recipe(shifted, teacher))
    distilled = {
        "estimator": {"kind": "teacher", "model": str(teacher)},
        "network": NETWORK,
        "start_from": None,
    }
    with pytest.raises(UserError, match=r"estimator\.model: are normalised by another"):
        make_plan(student_recipe(shifted, teacher, **distilled))
    monkeypatch.setitem(AUTOENCODERS, "tiny", lambda: tiny(seed=1))
    other = latent_set(tmp_path / "other")[0]
    with pytest.raises(UserError, match=r"are latents of tiny \(\w{8}\) .* the model's are of tiny"):
        make_plan(student_recipe(other, teacher))
    monkeypatch.undo()
    model = models.load(teacher)
    model.card = model.card.without("latents")
    plain = store.save(model, tmp_path / "plain")
    with pytest.raises(UserError, match="the model makes pictures"):
        make_plan(student_recipe(data, plain))


def test_a_model_of_latents_is_not_trained_on_pictures(data: Path, teacher: Path) -> None:
    with pytest.raises(UserError, match="makes latents of tiny, the data are pictures"):
        make_plan(student_recipe(data / "pictures", teacher))


def test_the_autoencoder_must_still_be_the_same(teacher: Path, monkeypatch) -> None:
    monkeypatch.setitem(AUTOENCODERS, "tiny", lambda: tiny(seed=1))
    model = models.load(teacher)
    model.card = model.card.updated(latents={**model.card.latents, "psnr": 1.0})  # not in the cache
    with pytest.raises(UserError, match="the latents were made with"):
        models.sample(model, [0])
    model.card = model.card.updated(latents={"autoencoder": "tiny"})
    with pytest.raises(UserError, match=r"meta\.latents\.identity"):
        models.sample(model, [0])
    record = models.load(teacher).card.latents
    for change, said in (
        ({"mean": record["mean"][:5]}, r"meta\.latents: .*5 means and 6 deviations"),
        (
            {"mean": record["mean"][:5], "deviation": record["deviation"][:5]},
            r"config\.json: says latents of",
        ),
        ({"picture_shape": [3, 32, 32]}, r"config\.json: says latents of"),
    ):
        model.card = model.card.updated(latents={**record, **change})
        with pytest.raises(UserError, match=said):
            models.sample(model, [0])


def test_the_dry_run_names_the_latents(data: Path, tmp_path: Path) -> None:
    plan = make_plan(teacher_recipe(data))
    rows = dict(cost.report(plan, cost.estimate(plan), tmp_path))
    assert rows["latents"] == "of 3×16×16 pictures by tiny"
    assert "latents" not in dict(
        cost.report(make_plan(read_recipe("digits-edm")), cost.estimate(plan), tmp_path)
    )


def consistune(*arguments: object) -> tuple[int, str]:
    done = RUN.invoke(app, [str(a) for a in arguments])
    if isinstance(done.exception, UserError):
        return explain(done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout


def test_the_command_samples_pictures_or_latents(data: Path, teacher: Path, tmp_path: Path) -> None:
    assert consistune("sample", teacher, "--seeds", "0-3", "--out", tmp_path / "a.npz")[0] == 0
    assert np.load(tmp_path / "a.npz")["arr_0"].shape == (4, 16, 16, 3)
    assert consistune("sample", teacher, "--seeds", "0-3", "--latents", "--out", tmp_path / "b.npz")[0] == 0
    assert np.load(tmp_path / "b.npz")["arr_0"].shape == (4, 4, 4, 6)
    status, line = consistune("sample", teacher, "--latents", "--out", tmp_path / "b.png")
    assert (status, "latents are no picture" in line) == (2, True)
    assert not (tmp_path / "b.png").exists()


def test_prepare_takes_the_normalisation_of_a_model(data: Path, teacher: Path, tmp_path: Path) -> None:
    pictures = source(tmp_path)
    words = ("--workers", 1, "--latents", teacher)
    assert consistune("data", "prepare", pictures, tmp_path / "set", *words)[0] == 0
    make_plan(student_recipe(tmp_path / "set", teacher))
    model = models.load(teacher)
    model.card = model.card.without("latents")
    plain = store.save(model, tmp_path / "plain")
    status, line = consistune("data", "prepare", pictures, tmp_path / "other", "--latents", plain)
    assert (status, "is a model of pictures" in line) == (2, True)


def frechet(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖μ_a − μ_b‖² + tr(A + B − 2·√(AB)), of features [n, D]."""
    (mean_a, cov_a), (mean_b, cov_b) = ((f.mean(0).numpy(), np.cov(f.numpy().T)) for f in (a, b))
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real))


class Quiet:
    def say(self, text: str) -> None: ...
    def advance(self, amount: int, note: str | None = None) -> None: ...

    @contextmanager
    def bar(self, description: str, total: int, done: int = 0):
        yield self


@pytest.fixture
def pooled(monkeypatch, tmp_path: Path) -> Extractor:
    """Features without a network: 4×4 means of the pixels."""
    protocol = Protocol(name="fd-pooled", input=Input(dtype="uint8", channels=3))
    extractor = Extractor(
        protocol, lambda x: avg_pool2d(x.float(), 8).flatten(1), "pooled", torch.device("cpu")
    )
    for module in ("evaluation.setup", "metrics.scores"):
        monkeypatch.setattr(f"consistune.{module}.load_extractor", lambda *_: extractor)
    monkeypatch.setenv("CONSISTUNE_CACHE", str(tmp_path / "cache"))
    return extractor


@pytest.mark.parametrize("on", ["latents", "pictures"])
def test_evaluate_measures_pictures_and_states_the_floor(
    data: Path, teacher: Path, tmp_path: Path, pooled: Extractor, on: str
) -> None:
    folder = data if on == "latents" else data / "pictures"
    request = Request(
        teacher, tmp_path / "out", str(folder), samples=18, batch=7, steps=(2,), keep=tmp_path / "k.npz"
    )
    page = Job(request, Quiet()).run()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    drawn, floor = results["rows"]
    assert floor["name"] == FLOOR
    assert floor["sampler"]["autoencoder"] == "tiny"
    assert not any(name.startswith("novelty") for name in floor["summary"])
    assert np.load(tmp_path / "k.npz")["arr_0"].shape == (18, 16, 16, 3)
    known = load_data(str(data))
    assert known.train.latents is not None
    raw = LatentSpace(known.train.latents, tiny()).raw(known.train.batch(torch.arange(18), False).x_0)
    with torch.no_grad():
        decoded = (tiny().decode(raw).clamp(-1, 1) * 127.5 + 127.5).round()
    features = [pooled(images).double() for images in (decoded, known.to_look_at.train.images)]
    exact = frechet(*features)
    assert floor["summary"]["fd-pooled"]["mean"] == pytest.approx(exact, rel=0.01)
    assert "fd-pooled" in drawn["summary"]
    assert FLOOR in page.read_text()


def test_the_floor_decodes_each_picture_once_and_none_mirrored(tmp_path: Path) -> None:
    data = load_data(str(latent_set(tmp_path, flip=True)[0]))
    record = data.train.latents
    assert record is not None
    space, stored = LatentSpace(record, tiny()), data.train.images[::2]
    decoded, labels = DecodedSource(space, data)(range(len(stored)))
    order = torch.randperm(len(stored), generator=torch.Generator().manual_seed(0))
    assert torch.equal(decoded, space.decode(restored(stored, record.scale))[order])
    assert labels is not None
    assert torch.equal(labels, data.to_look_at.train.labels[order])


def test_evaluate_from_python_measures_pictures(data: Path, teacher: Path, pooled: Extractor) -> None:
    values = front.evaluate(models.load(teacher), str(data), samples=16, steps=2, features="pooled")
    assert values["fd-pooled_percent"] > 0


def test_evaluate_refuses_latents_of_another_autoencoder(
    teacher: Path, tmp_path: Path, pooled: Extractor, monkeypatch
) -> None:
    monkeypatch.setitem(AUTOENCODERS, "tiny", lambda: tiny(seed=1))
    other = latent_set(tmp_path / "other")[0]
    with pytest.raises(UserError, match="are latents of tiny"):
        Job(Request(teacher, tmp_path / "out", str(other), samples=8), Quiet())


def test_evaluation_while_training_measures_pictures(data: Path, teacher: Path, pooled: Extractor) -> None:
    measure = training_evaluation(load_data(str(data)).to_look_at, samples=16)
    values = measure(models.load(teacher))
    assert values["fd-pooled_percent"] > 0


def test_analyze_measures_latents_in_their_own_units(data: Path, tmp_path: Path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        "consistune.analyze.report.analyze", lambda images, *_, **__: seen.append(images) or []
    )
    assert consistune("analyze", data, "--out", tmp_path / "out")[0] == 0
    assert seen[0].std() == pytest.approx(0.5, abs=0.01)
