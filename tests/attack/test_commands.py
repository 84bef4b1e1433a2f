"""Mistyped commands: each ends with a line and status 0, 1 or 2, and never with a traceback.

Valid commands are mutated as people mistype them: a letter wrong, a word missing, twice or in another place,
another command's option, an odd number or path. They run in this process, through `main`.
"""

import random
import re
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from consistune.cli import main as command_line
from consistune.nn import store
from consistune.nn.card import ModelCard
from consistune.nn.precond import EDMPrecond
from consistune.nn.small import ResidualMLP
from tests.support.command import STOPS

pytestmark = pytest.mark.attack

SHORT, LONG = 200, 1000
SECONDS = 60
"""Of the processor, the most that one command may take."""
NETWORK = "network={kind: mlp, width: 8, blocks: 1}"
VALID = [
    "sample model --seeds 0-3 --steps 2 --out s.npz",
    "sample model --steps 2 --seeds 0,2 --classes 3 --guidance 1.5 --guidance-interval 0.1,5 --out s.png",
    "sample diffusion --steps 2 --seeds 0-1 --worse diffusion --guidance 2 --batch 2 --out pictures",
    "sample phased --eta 0.3 --seeds 0-1 --precision fp32 --device cpu --out s.npz",
    "evaluate model --data digits --samples 8 --metrics relative --features own:pixels --out e --batch 4",
    "evaluate samples.npz --data digits --samples 8 --metrics fd,pr --features own:pixels --out e",
    "evaluate model --data digits --samples 4 --steps 1,2 --labels uniform --seeds 2 --features own:pixels",
    "train digits-edm train.images=32 train.batch=16 --dry-run --device cpu",
    f"train digits-ect start_from=null '{NETWORK}' optimizer.lr=1e-3 --out r --dry-run",
    "train own.yaml data=digits train.ema=[0.9] --dry-run --out r",
    "train run --resume",
    "recipes list",
    "recipes show digits-sct train.images=64",
    "init mine --data digits --method ect",
    "data prepare pictures.npz set --size 8 --crop center --filter box --held-out 0.2 --seed 1 --workers 1",
    "data info set --verify",
    "import model.pkl m",
    "export model x.safetensors --format safetensors",
    "ema reconstruct run --std 0.1 --at 32 --out m",
    "reproduce --list",
    "reproduce phases --scale smoke --seeds 1 --set optimizer.lr=1 --data nowhere",
    "create nowhere --time 1m --size 32 --latents taef2 --flip --no-labels --yes --out job",
    "evaluate model diffusion phased --data digits --samples 4 --features own:pixels --no-anchors --out e",
    "check run --against digits-edm --json",
    "play nowhere --teacher model --host 127.0.0.1 --port 7861 --browser --device cpu",
    "analyze nowhere --times 0.5,2 --queries 16 --batch 8 --seed 1 --out a",
    "data prepare pictures.npz latent --latents taef2 --flip --store float16 --device cpu --workers 1",
    "data info set --show s.png",
    "import unet m --weights ema",
    "export model out --format diffusers",
    "export model x.onnx --format onnx",
    "--version",
    "doctor --json",
]
ODD = [
    "", "-1", "0", "1e11", "1" + "0" * 5000, "nan", "inf", "-inf",
    "1e-320", "0.5", "null", "None", "[]", "{", "~", "true",
    "a", "ä", "\udce4", "\x1b[31m", "/", "..", ".", "/dev/null",
    "/proc/self/mem", "nowhere", "a\nb", "x" * 300, "--", "-", "=", "a=b",
    "a.b=1", ".=1", "train=3", "train.images=[", "network.kind=song", "0-", "5-1", "1,2,3",
    ",", "model", "run", "own.yaml", "samples.npz", "set", "cuda:7", "own:",
    ".a:b", "meta", "%s", "[bold]", "--help", "-h", "--debugg", "objective=x",
    "estimator.reference=all", "optimizer.lr=.inf", "train.batch=1e11", "data=.", "start_from=model",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the valid commands find what they name."""
    folder = tmp_path_factory.mktemp("commands")
    torch.manual_seed(0)
    cards = {
        "model": ModelCard(objective="consistency", mid_t=(0.8,)),
        "diffusion": ModelCard(objective="diffusion"),
        "phased": ModelCard(objective="consistency", edges=(1.0,)),
    }
    for name, card in cards.items():
        model = EDMPrecond(ResidualMLP((1, 8, 8), num_classes=10, width=8, blocks=1))
        model.card = card
        store.save(model, folder / name)
    generator = np.random.default_rng(0)
    for name in ("samples", "pictures"):
        pixels = generator.integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", arr_0=pixels, arr_1=np.arange(12) % 2)
    (folder / "own.yaml").write_text(f"extends: digits-edm\n{NETWORK.replace('=', ': ', 1)}\n")
    (folder / "own.py").write_text("def pixels(images):\n    return images.flatten(1).float()\n")
    (folder / "model.pkl").write_bytes(b"\x80\x04K\x01.")
    (folder / "unet").mkdir()
    (folder / "unet" / "config.json").write_text('{"_class_name": "UNet2DModel", "sample_size": [8]}')
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text("objective: diffusion\n")
    return folder


def words_of(line: str) -> list[str]:
    return [a or b for a, b in re.findall(r"'([^']*)'|(\S+)", line)]


def mistyped(rng: random.Random) -> list[str]:
    """The words of a valid command with one to three mistakes."""
    words = words_of(rng.choice(VALID))
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(words)) if words else 0
        other = words_of(rng.choice(VALID))
        match rng.randrange(9):
            case 0 if words and words[at]:  # a letter wrong
                i = rng.randrange(len(words[at]))
                words[at] = words[at][:i] + rng.choice("aeix-=.,0 ") + words[at][i + rng.randrange(2) :]
            case 1 if words and len(words[at]) > 1:  # two letters in the wrong order
                i = rng.randrange(len(words[at]) - 1)
                words[at] = words[at][:i] + words[at][i + 1] + words[at][i] + words[at][i + 2 :]
            case 2 if words:
                del words[at]
            case 3 if words:
                words.insert(rng.randrange(len(words)), words[at])
            case 4:
                words.insert(at, rng.choice(ODD))
            case 5 | 6 if words:
                words[at] = rng.choice(ODD)
            case 7 if words:
                key, equals, _ = words[at].partition("=")
                words[at] = f"{key}={rng.choice(ODD)}" if equals else rng.choice(other)
            case _:
                i = rng.randrange(len(other))
                words[at:at] = other[i : i + 2]
    return words


def harmless(words: list[str]) -> bool:
    """The command, if it is valid after all, ends soon and writes into this folder alone."""
    slow = {"demo", "bench", "analyze", "reproduce", "create", "play"}  # play: until Ctrl-C
    long = slow & set(words) and "nowhere" not in words
    trains = "train" in words and "--dry-run" not in words and "--resume" not in words
    sizes = [after for word, after in pairwise([*words, ""]) if word == "--samples"]
    many = "evaluate" in words and sizes[-1:] not in (["4"], ["8"])
    absolute = any("/" in word and not word.startswith("/dev/null") for word in words)
    return not (long or trains or many or absolute)


def commands(seed: int, count: int) -> Iterator[list[str]]:
    rng = random.Random(seed)
    while count:
        words = mistyped(rng)
        if harmless(words):
            count -= 1
            yield words


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["consistune", *words])
    handlers = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGPROF)}
    signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(TimeoutError("too slow")))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            command_line.main()
    except SystemExit as left:
        return int(left.code or 0)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_mistyped_commands_end_in_a_line(
    place: Path, minutes: float, seed: int, keep_record, capfd: pytest.CaptureFixture[str], monkeypatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("COLUMNS", "100")
    statuses: Counter[int] = Counter()
    wrong = []
    for words in commands(seed, LONG if minutes else SHORT):
        status = run(words, monkeypatch)
        text = "".join(capfd.readouterr())
        statuses[status] += 1
        internal = re.search(r"Traceback|failed: (?!OSError)\w+", text)
        if status not in (0, 1, 2) or (internal and "--debug" not in words):
            wrong.append((words, status, text[-300:]))
        if status == 2 and "consistune: " not in text:
            wrong.append((words, status, "no line: " + text[-300:]))
    assert not wrong, "\n".join(f"{words}\n    {status} {text}" for words, status, text in wrong)
    assert statuses[2] > sum(statuses.values()) / 2
    keep_record("mistyped_commands", {"commands": sum(statuses.values()), "statuses": dict(statuses)})
