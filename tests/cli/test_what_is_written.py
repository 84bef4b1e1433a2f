"""What a command writes at its end is tried at its start; formats; many seeds; models of unfinished runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from consistune.cli import images_out
from consistune.cli.analyze import analyze
from consistune.cli.data import info, prepare
from consistune.cli.evaluate import evaluate
from consistune.cli.interop import export, import_
from consistune.cli.machine import bench
from consistune.cli.options import parse_ranges
from consistune.cli.reproduce import demo, reproduce
from consistune.cli.sample import sample
from consistune.cli.train import train
from consistune.errors import UserError
from consistune.evaluation import sources
from consistune.interop.export import format_of
from consistune.nn import store
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from consistune.recipe import plan, read_recipe, to_yaml
from consistune.recipe.plan import make_plan
from consistune.training.run import RunFolder
from tests.support.command import run_main


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return store.save(EDMPrecond(ResidualMLP((1, 8, 8), width=8, blocks=1)), tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "format", "expected"),
    [
        ("grid.PNG", None, "png"),
        ("a.npz", None, "npz"),
        ("ect_lr1e-4_v1.0", None, "folder"),
        ("plain", None, "folder"),
        ("a.png", "folder", "folder"),
        ("samples.zip", None, None),
        ("grid.jpg", None, None),
        ("a.npz", "png", None),
        ("a", "gif", None),
    ],
)
def test_the_format_of_samples(name: str, format: str | None, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UserError):
            images_out.format_of(Path(name), format)
    else:
        assert images_out.format_of(Path(name), format) == expected


def test_an_export_is_what_its_name_says() -> None:
    assert format_of(Path("a.ONNX"), None) == "onnx"
    assert format_of(Path("out/edm.v1"), "diffusers") == "diffusers"
    assert format_of(Path("a.safetensors"), "safetensors") == "safetensors"
    for name, format in (("a.onnx", "safetensors"), ("a.pt", None), ("a", None), ("a.onnx", "gguf")):
        with pytest.raises(UserError):
            format_of(Path(name), format)


COMMANDS = ["sample", "export", "evaluate", "train", "dry run", "analyze", "reproduce", "demo", "bench"]


@pytest.mark.parametrize("command", [*COMMANDS, "import", "prepare", "info"])
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "file").write_text("mine")
    missing, out = tmp_path / "no model", tmp_path / "file" / "deep" / "out"
    monkeypatch.setattr(store, "load", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(plan, "make_plan", lambda *_: pytest.fail("the training was planned"))
    run = {
        "sample": lambda: sample(missing, out=out.with_suffix(".npz"), device="cpu"),
        "export": lambda: export(missing, out.with_suffix(".onnx")),
        "evaluate": lambda: evaluate(missing, data="digits", out=out, device="cpu"),
        "train": lambda: train("digits-edm", out=tmp_path / "file", device="cpu"),
        "dry run": lambda: train("digits-edm", out=out, device="cpu", dry_run=True),
        "analyze": lambda: analyze("mixture", out=tmp_path / "file"),
        "reproduce": lambda: reproduce("unify", out=out, device="cpu"),
        "demo": lambda: demo(out=tmp_path / "file"),
        "bench": lambda: bench(json_file=out),
        "import": lambda: import_(missing, out),
        "prepare": lambda: prepare(missing, out),
        "info": lambda: info(missing, show=out.with_suffix(".png")),
    }[command]
    with pytest.raises(UserError, match=r"cannot be written|is a file"):
        run()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_billion_seeds_take_no_memory_before_the_first_image() -> None:
    seeds = images_out.Seeds(parse_ranges("0-1000000000,7", "--seeds"))
    assert len(seeds) == 1_000_000_002
    assert next(seeds.batches(3)) == [0, 1, 2]


def test_png_files_are_the_images_of_the_archive_and_are_evaluated_alike(model: Path, tmp_path: Path) -> None:
    sample(model, "0-6", 1, out=tmp_path / "a.npz", batch=3, device="cpu")
    sample(model, "0-6", 1, out=tmp_path / "pngs.v1", batch=3, format="folder", device="cpu")
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["seeds"].tolist() == list(range(7))
        pixels = arrays["arr_0"]
    assert pixels.shape == (7, 8, 8, 1)
    assert sources.is_samples(tmp_path / "pngs.v1")
    assert not sources.is_samples(model)
    images, _ = sources.read_pngs(tmp_path / "pngs.v1")
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pixels)
    Image.new("RGB", (9, 9)).save(tmp_path / "pngs.v1" / "z.png")
    with pytest.raises(UserError, match="the first is"):
        sources.read_pngs(tmp_path / "pngs.v1")


def test_a_cut_png_and_another_kind_of_picture_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    at_a_chunk = whole.index(b"IDAT", whole.index(b"IDAT") + 4) + 2
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    for content in (whole[:at_a_chunk], whole[:1000], (tmp_path / "a.jpg").read_bytes(), b"%!PS-Adobe-3.0"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            sources.read_pngs(tmp_path)


def test_an_interrupted_archive_leaves_nothing(model: Path, tmp_path: Path) -> None:
    shape, seeds = store.load(model).image_shape, images_out.Seeds([range(4)])

    def stopped() -> None:
        with images_out.opened(tmp_path / "a.npz", "npz", seeds, shape, labelled=False) as writer:
            writer.write(torch.zeros(2, *shape, dtype=torch.uint8), [0, 1], None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


KEYS = [
    "network={kind: mlp, width: 8, blocks: 1}",
    "train.batch=64",
    "train.log_images=64",
    "optimizer.lr_schedule={kind: constant}",
]


def test_the_newest_checkpoint_of_a_run_is_sampled(tmp_path: Path) -> None:
    recipe = read_recipe("digits-edm", [*KEYS, "train={images: 640, checkpoint_images: 192}"])
    run, trainer = RunFolder(tmp_path / "run", to_yaml(recipe), resume=False), make_plan(recipe).trainer()
    with pytest.raises(UserError, match="no sound checkpoint"):
        sample(tmp_path / "run", at="latest", out=tmp_path / "a.npz", device="cpu")
    steps = run.steps(trainer)
    for _ in range(4):
        next(steps)
    steps.close()
    with pytest.raises(UserError, match=r"not finished.*train .*run --resume; or sample with --at latest"):
        sample(tmp_path / "run", out=tmp_path / "a.npz", device="cpu")
    sample(tmp_path / "run", "0-3", 2, at="latest", out=tmp_path / "a.npz", device="cpu")
    store.save(trainer.averaged, tmp_path / "model")  # of one step later
    sample(tmp_path / "model", "0-3", 2, out=tmp_path / "b.npz", device="cpu")
    assert np.load(tmp_path / "a.npz")["arr_0"].shape == (4, 8, 8, 1)
    with pytest.raises(UserError, match="--at"):
        sample(tmp_path / "run", at="best", out=tmp_path / "a.npz", device="cpu")


def test_a_finished_run_is_continued_further(tmp_path: Path) -> None:
    def train(*words: str) -> int:
        return run_main("train", *words, "--device", "cpu").returncode

    run = str(tmp_path / "run")
    assert train("digits-edm", *KEYS, "train.images=320", "--out", run) == 0
    assert train(run, "--until", "200") == 2  # it is further than that
    assert train(run, "--until", "640") == 0
    assert train(run, "--until", "320") == 2
    assert "continued at 320 images" in (tmp_path / "run" / "log.txt").read_text()
    records = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(records) == 10
    assert read_recipe(run + "/recipe.yaml", []).train.images == 640
    whole = tmp_path / "whole"
    assert train("digits-edm", *KEYS, "train.images=640", "--out", str(whole)) == 0
    a, b = store.load(run).state_dict(), store.load(whole).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)  # its rate does not depend on the end


def test_an_average_is_not_made_where_it_cannot_be_written(tmp_path: Path) -> None:
    """The place is tried first: the run is not looked for."""
    (tmp_path / "a.png").touch()
    words = ("--std", "0.08", "--out", tmp_path / "a.png" / "x")
    done = run_main("ema", "reconstruct", tmp_path / "run", *words)
    assert done.returncode == 2
    assert "--out: " in done.stderr
    assert "cannot be written" in done.stderr
