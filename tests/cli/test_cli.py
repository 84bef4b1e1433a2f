"""The command line as a user sees it: exit statuses, errors in one line, no partial files."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from rich.console import Console

import consistune as package
from consistune.cli import images_out
from consistune.cli import screen as screen_module
from consistune.cli.main import app
from consistune.cli.options import parse_ranges, parse_times
from consistune.cli.screen import Screen
from consistune.errors import UserError
from consistune.nn import store
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from tests.support.command import run_main

TINY = [
    "network={kind: mlp, width: 8, blocks: 1}",
    "train={images: 640, batch: 64, checkpoint_images: 256, log_images: 128}",
]


def consistune(
    *arguments: str | Path, start: Sequence[str] = ("-m", "consistune")
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *start, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = EDMPrecond(ResidualMLP((1, 8, 8), num_classes=10, width=8, blocks=1))
    model.card = ModelCard(objective="consistency", mid_t=(0.8,))
    return store.save(model, tmp_path_factory.mktemp("models") / "model")


def help_requests(command: Any, *names: str) -> Iterator[list[str]]:
    """The words that ask for the help of a command, and of all commands below it."""
    yield [*names, "--help"]
    for name, part in getattr(command, "commands", {}).items():
        yield from help_requests(part, *names, name)


HELP = """
import os, sys
from consistune.cli.main import main

for number, words in enumerate({requests}):
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{folder}/{{number}}", os.O_WRONLY | os.O_CREAT), 1)
        sys.argv = ["consistune", *words]
        try:
            main()
        except SystemExit as left:
            assert not left.code, words
        heavy = {{"torch", "numpy", "matplotlib", "sklearn", "yaml"}}
        if words == ["--help"]:
            heavy.add("pydantic")  # typer itself uses it for the options of a command
        assert not heavy & set(sys.modules), (words, heavy & set(sys.modules))
        break
    _, status, used = os.wait4(child, 0)
    assert status == 0, words
    assert used.ru_utime < 10, words  # its own time, which other work on the machine does not lengthen
"""


def test_help_is_quick_and_imports_nothing_heavy(tmp_path: Path) -> None:
    """Each help in a process of its own, forked from one that has imported the command line alone."""
    requests = [*help_requests(typer.main.get_command(app))]
    code = HELP.format(requests=requests, folder=tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for number, words in enumerate(requests):
        assert (" ".join(words[:-1]) or "train") in (tmp_path / str(number)).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "no-such-recipe"], ["no-such-recipe", "digits-edm"]),
        (["train", "digits-edm", "train.imgs=3"], ["train.imgs", "images"]),
        (["train", "{tmp}/typo.yaml"], ["typo.yaml", "objectiv", "objective"]),
        (["train", "digits-ect"], ["runs/digits-edm/model", "train it first"]),
        (["train", "digits-edm", "--resume", "--out", "{tmp}/none"], ["no run to continue"]),
        (["sample", "{tmp}/missing"], ["missing", "no such model folder"]),
        (["sample", "{tmp}"], ["not a model folder", "config.json"]),
        (["sample", "a" * 256], ["aaa", "name too long"]),
        (["sample", "{model}", "--classes", "10"], ["--classes", "0 to 9"]),
        (["sample", "{model}", "--classes", ""], ["--classes", "0-63"]),
        (["sample", "{model}", "--out", ""], ["--out", "is empty"]),
        (["sample", "{model}", "--out="], ["--out", "is empty"]),
        (["sample", ""], ["model", "is empty"]),
        (["sample", "{model}", "--seeds", f"0-{2**62 - 2},0-{2**62 - 2}"], ["--seeds", "write fewer"]),
        (["export", "{model}/model.safetensors", "{tmp}/x.onnx"], ["consistune import"]),
        (["sample", "{model}", "--seeds", "a"], ["--seeds", "0-63"]),
        (["evaluate", "{model}", "--steps", "1-99999999999"], ["--steps", "at most 10,000"]),
        (["sample", "{model}", "--guidance-interval", "3,1"], ["--guidance-interval", "LOW,HIGH"]),
        (["sample", "{model}", "--steps", "5"], ["--steps", "mid_t"]),
        (["sample", "{model}", "--out", "{tmp}/x.jpg"], ["--out", ".jpg", ".png"]),
        (["sample", "{model}", "--device", "tpu9"], ["--device", "cpu"]),
        (["sample", "{model}", "--precision", "bf16"], ["--precision", "fp32"]),
        (["export", "{model}", "{tmp}/x", "--format", "gguf"], ["--format", "safetensors, onnx"]),
        (["bench", "--threads", "0"], ["--threads", "at least 1"]),
        (["smaple"], ["smaple"]),
        (["sample"], ["model"]),
    ],
)
def test_bad_input_gives_one_line_and_status_2(
    arguments: list[str], words: list[str], tmp_path: Path, model: Path
) -> None:
    (tmp_path / "typo.yaml").write_text("objectiv: diffusion\ntrain: {images: 1}\n")
    before = sorted(tmp_path.rglob("*"))
    done = run_main(*(a.format(tmp=tmp_path, model=model) for a in arguments), cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("consistune: ")]
    assert len(lines) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word.lower() in lines[0].lower()
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_before_or_after_the_command_shows_the_traceback(tmp_path: Path) -> None:
    stderr = consistune("--debug", "sample", tmp_path).stderr
    assert "Traceback" in stderr
    assert "not a model folder" in stderr
    with pytest.raises(UserError, match="not a model folder"):
        run_main("sample", tmp_path, "--debug")


def test_debug_after_two_dashes_is_an_argument(tmp_path: Path) -> None:
    done = run_main("sample", "--", "--debug", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("consistune: --debug: no such model folder")


def test_version_names_the_package_torch_and_the_device() -> None:
    done = run_main("--version")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert done.returncode == 0
    versions = f"consistune {package.__version__}, torch {torch.__version__}"
    assert done.stdout.startswith(f"{versions}, device {device}")


def test_a_full_disk_is_status_1(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "out.png")

    monkeypatch.setattr(images_out.Sheet, "save", full)
    done = run_main("sample", model, "--out", tmp_path / "out.png")
    assert done.returncode == 1
    assert "the disk is full: out.png" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_samples_as_grid_array_and_files(model: Path, tmp_path: Path) -> None:
    for out in ("grid.png", "array.npz", "folder"):
        done = run_main("sample", model, "--seeds", "0-4,9", "--classes", "3", "--out", tmp_path / out)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(tmp_path / out)
    arrays = np.load(tmp_path / "array.npz")
    assert arrays["arr_0"].shape == (6, 8, 8, 1)
    assert arrays["arr_1"].tolist() == [3] * 6
    assert arrays["seeds"].tolist() == [0, 1, 2, 3, 4, 9]
    single = np.array(Image.open(tmp_path / "folder" / "000009.png"))
    assert (single == arrays["arr_0"][5, :, :, 0]).all()
    grid = np.array(Image.open(tmp_path / "grid.png"))
    side = 48 // 8
    assert (grid[:48:side, :48:side] == arrays["arr_0"][0, :, :, 0]).all()


def test_classes_are_assigned_in_turn_by_seed_whatever_the_batch(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.npz"
    done = run_main("sample", model, "--seeds", "7-10", "--classes", "4-6", "--batch", "2", "--out", out)
    assert done.returncode == 0, done.stderr
    with np.load(out) as arrays:
        assert arrays["arr_1"].tolist() == [5, 6, 4, 5]


INTERRUPTED = """
import os, signal
from consistune.__main__ import main
from consistune.training.log import Telemetry

def write(self, report, before=Telemetry.write):
    before(self, report)
    if report.step == 5:
        os.kill(os.getpid(), signal.SIGINT)

Telemetry.write = write
main()
"""


def test_ctrl_c_saves_and_the_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    """Ctrl-C comes in the fifth of 20 steps."""
    keys = [TINY[0], "train={images: 1280, batch: 64, checkpoint_images: 1280, log_images: 64}"]
    stopped = consistune("train", "digits-edm", *keys, "--out", tmp_path / "run", start=("-c", INTERRUPTED))
    assert stopped.returncode == 130, stopped.stderr
    assert f"consistune train {tmp_path / 'run'} --resume" in stopped.stderr
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.pt"))
    assert not (tmp_path / "run" / "model").exists()
    done = run_main("train", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    unbroken = run_main("train", "digits-edm", *keys, "--out", tmp_path / "unbroken")
    assert unbroken.returncode == 0
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "unbroken")]
    assert weights[0] == weights[1]


def test_lists_of_numbers() -> None:
    assert parse_ranges("0-3,7", "x") == [range(4), range(7, 8)]
    assert parse_times("2,0.5", "x") == (2.0, 0.5)
    for text in ("", "1-", "3-1", "a"):
        with pytest.raises(UserError):
            parse_ranges(text, "x")


def test_a_bar_that_never_moved_is_taken_away(monkeypatch, capsys) -> None:
    monkeypatch.setattr(screen_module, "console", Console(stderr=True, width=120))
    with Screen() as screen:
        with pytest.raises(KeyError), screen.bar("not begun", 2):
            raise KeyError
        with screen.bar("begun", 2) as bar:
            bar.advance(1)
    shown = capsys.readouterr().err
    assert "begun" in shown
    assert "not begun" not in shown
