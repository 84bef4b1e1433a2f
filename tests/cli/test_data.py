"""consistune data prepare and consistune data info as a user sees them."""

import json
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from consistune.cli.main import app, explain
from consistune.data.images import load_data, read_unprepared
from consistune.errors import UserError
from tests.support.latents import source
from tests.support.makers import edm_zip, encoded, imagenet_batches, pixels

RUN = CliRunner()


def consistune(*arguments: object) -> tuple[int, str, str]:
    done = RUN.invoke(app, [str(a) for a in arguments])
    if isinstance(done.exception, UserError):
        status, line = explain(done.exception)
        return status, done.stdout, line
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_prepare_says_where_it_is_and_info_what_it_is(tmp_path: Path) -> None:
    source = edm_zip(tmp_path / "a.zip", [*pixels(19, 8, 8, 3), b"bad"], [k % 2 for k in range(20)])
    status, out, _ = consistune("data", "info", source)
    assert status == 0
    assert "20 images, 2 classes" in out
    assert f"consistune data prepare {source} DEST" in out
    arguments = ("data", "prepare", source, tmp_path / "set", "--held-out", 0.2, "--workers", 1)
    status, _, line = consistune(*arguments)
    assert status == 2
    assert "1 image would be left out (1 is not an image that can be read, the first is" in line
    assert "--allow-missing 1" in line
    status, out, err = consistune(*arguments, "--allow-missing", 1)
    assert (status, out) == (0, f"{tmp_path / 'set'}\n")
    assert "continuing after 20 images" in err
    rows = [line.split("│") for line in err.splitlines() if "│" in line]
    cells = [[cell.strip() for cell in row[1:-1]] for row in rows]
    bad = "1 is not an image that can be read"
    assert sorted(cells) == [["held-out", "4", "3", "1", bad], ["train", "16", "16", "0", ""]]
    status, out, _ = consistune("data", "info", tmp_path / "set", "--verify")
    assert status == 0
    for words in ("16 train and 3 held-out images, 3×8×8, 2 classes", "left out    1 images", "as they were"):
        assert words in out
    meta = json.loads((tmp_path / "set" / "meta.json").read_text())
    assert meta["source"]["sha256"] in out
    with (tmp_path / "set" / "train" / "images.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\x01\x02\x03\x04")
    status, out, _ = consistune("data", "info", tmp_path / "set", "--verify")
    assert status == 1
    assert "damaged: train/images.npy" in out


def test_every_option_reaches_the_preparation(tmp_path: Path) -> None:
    source = edm_zip(
        tmp_path / "a.zip", pixels(20, 8, 12, 4), [k % 2 for k in range(20)], group=list(range(20))
    )
    options = "--size 6 --crop pad --filter box --background #102030 --mode grey --held-out 0.25"
    options += " --split-by group --seed 5 --format zip --strict --workers 1"
    assert consistune("data", "prepare", source, tmp_path / "set", *options.split())[0] == 0
    meta = json.loads((tmp_path / "set" / "meta.json").read_text())
    assert meta["transform"] == {
        "mode": "grey", "size": 6, "crop": "pad", "filter": "box", "background": [16, 32, 48],
    }  # fmt: skip
    assert meta["held_out"] == {"fraction": 0.25, "by": "group", "seed": 5}
    assert meta["shape"] == [1, 6, 6]
    assert {side: part["images"] for side, part in meta["parts"].items()} == {"train": 16, "held-out": 4}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("data", "prepare", "nothing", "dest"), "neither a file nor a folder"),
        (("data", "info", "nothing"), "neither a file nor a folder"),
        (("data", "prepare", "SOURCE", "dest", "--crop", "center"), "--size"),
        (("data", "prepare", "SOURCE", "dest", "--workers", 0), "--workers"),
        (("data", "prepare", "SOURCE", "dest", "--held-out", 0.1), "test set of its own"),
        (("data", "info", "SOURCE", "--verify"), "nothing to verify"),
    ],
)
def test_bad_input_gives_status_2_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...], words: str
) -> None:
    source = imagenet_batches(tmp_path / "in", pixels(6, 3, 4, 4), [1] * 6, npz=True, val=2)
    monkeypatch.chdir(tmp_path)
    status, _, line = consistune(*(source if a == "SOURCE" else a for a in arguments))
    assert status == 2
    assert words in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def test_analyze_takes_a_prepared_folder(tmp_path: Path) -> None:
    source = edm_zip(tmp_path / "a.zip", pixels(40, 4, 4), [k % 2 for k in range(40)])
    assert consistune("data", "prepare", source, tmp_path / "set", "--workers", 1)[0] == 0
    arguments = ("--times", "0.5,5", "--queries", 16, "--batch", 8, "--out", tmp_path / "out")
    status, out, _ = consistune("analyze", tmp_path / "set", *arguments)
    assert status == 0
    assert all(Path(line).stat().st_size > 0 for line in out.splitlines())
    assert out


def test_latents_are_prepared_described_and_shown(tmp_path: Path) -> None:
    pictures = source(tmp_path)
    words = ("--latents", "tiny", "--flip", "--store", "float16", "--workers", 1, "--held-out", 0.25)
    status, out, _ = consistune("data", "prepare", pictures, tmp_path / "set", *words)
    assert (status, out) == (0, f"{tmp_path / 'set'}\n")
    status, out, _ = consistune("data", "info", tmp_path / "set", "--verify", "--show", tmp_path / "a.png")
    assert status == 0
    for text in (
        "36 train and 6 held-out latents, 6×4×4",
        "tiny, factor 4, of pictures 3×16×16, with mirror",
    ):
        assert text in out
    for text in ("float16, deviation 0.5", "dB PSNR", "as they were written"):
        assert text in out
    assert Image.open(tmp_path / "a.png").size == ((8 * 17 - 1) * 3, (6 * 17 - 1) * 3)


@pytest.mark.parametrize("option", [("--seed", 0), ("--seed", 7), ("--split-by", "group")])
def test_options_of_the_split_without_held_out_images_are_refused(tmp_path: Path, option: tuple) -> None:
    source = edm_zip(tmp_path / "a.zip", pixels(4, 8, 8, 3), [0, 0, 1, 1])
    status, _, line = consistune("data", "prepare", source, tmp_path / "set", *option)
    assert status == 2
    assert line.startswith(f"{option[0]}: has no effect without --held-out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_each_note_is_a_line(tmp_path: Path) -> None:
    """And the keys of dataset.json that mean nothing here are named."""
    table = {"class_names": ["zebra", "ant"], "licence": "CC0", "years": []}
    source = edm_zip(tmp_path / "a.zip", pixels(4, 8, 8, 3), [0, 0, 1, 1], **table)
    status, _, err = consistune("data", "prepare", source, tmp_path / "set", "--workers", 1)
    assert status == 0
    assert any(
        line.startswith("note: ") and line.endswith("not read: licence, years") for line in err.splitlines()
    )
    assert json.loads((tmp_path / "set" / "meta.json").read_text())["class_names"] == ["zebra", "ant"]


def test_options_of_latents_without_latents_are_refused(tmp_path: Path) -> None:
    pictures = source(tmp_path)
    for option in (("--flip",), ("--store", "uint8"), ("--device", "cpu")):
        status, _, line = consistune("data", "prepare", pictures, tmp_path / "set", *option)
        assert status == 2
        assert line.startswith(f"{option[0]}: has no effect without --latents")
    status, _, line = consistune(
        "data", "prepare", pictures, tmp_path / "set", "--latents", "tiny", "--store", "int4"
    )
    assert (status, "--store: 'int4' is not known" in line) == (2, True)
    assert consistune("data", "prepare", pictures, tmp_path / "set", "--workers", 1)[0] == 0
    status, _, line = consistune("data", "info", tmp_path / "set", "--show", tmp_path / "a.png")
    assert (status, "holds pictures, not latents" in line) == (2, True)


def test_analyze_takes_the_training_images_of_a_zip_and_names_the_rest(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for k, image in enumerate(pixels(44, 4, 4)):
            split = "train" if k < 40 else "val" if k < 42 else "test"
            archive.writestr(f"{split}/{k % 2}/{k}.png", encoded(image))
        archive.writestr("more.npz", b"x")
    lines: list[str] = []
    assert len(read_unprepared(tmp_path / "a.zip", lines.append)) == 40
    arguments = ("--times", "5", "--queries", 16, "--batch", 8, "--out", tmp_path / "out")
    status, _, err = consistune("analyze", tmp_path / "a.zip", *arguments)
    assert status == 0
    assert set(lines) <= set(err.splitlines())
    for words in (
        "not read: more.npz",
        "2 held-out images are left out",
        "test: 2 images are left out, val is",
    ):
        assert any(words in line for line in lines)


def test_strict_and_images_that_may_be_missing_are_refused_together(tmp_path: Path) -> None:
    source = edm_zip(tmp_path / "a.zip", pixels(4, 8, 8, 3), [0, 0, 1, 1])
    status, _, line = consistune("data", "prepare", source, tmp_path / "s", "--strict", "--allow-missing", 2)
    assert (status, line.startswith("--allow-missing: has no effect with --strict")) == (2, True)


def test_a_command_that_is_offered_takes_a_path_with_spaces(tmp_path: Path) -> None:
    source = edm_zip(tmp_path / "my set.zip", pixels(4, 8, 8, 3), [0, 0, 1, 1])
    assert f"consistune data prepare '{source}' DEST" in consistune("data", "info", source)[1]
    with pytest.raises(UserError, match=r"consistune data prepare '.*my set\.zip' DEST"):
        load_data(str(source))
