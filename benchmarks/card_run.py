"""The stages of benchmarks/card.py that start programs: the gpu tests, the data, and whole runs."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Record = dict[str, Any]
Parts = Iterator[tuple[str, Record]]
PRETENDED = """
from tests.card import pretended
pretended.install()
from consistune.cli.main import main
with pretended.card():
    main()
"""
OVERHEAD_S = 75.0
"""Of the run's seconds, for starting five programs, sampling and measuring."""
SHORTEST_S = 20.0
"""The least that is planned for training on CIFAR-10, whatever was left."""
ASSUMED_RATE = 600.0
"""Images a second where the stage `train` has measured none: an H100's, measured 611."""
WORKERS = 6
"""Processes of the tests, where pytest-xdist is there: each starts the device for itself."""
TINY_NETWORK = "network={kind: mlp, width: 16, blocks: 1}"
FAST = ("train.precision=bf16", "train.channels_last=true", "train.compile=false")
"""Not compiled: three programs would spend more on that than on a minute's training."""
OUTCOME = re.compile(
    r"^(?:\[gw\d+\].*? (?P<word>PASSED|FAILED|ERROR|SKIPPED|XFAIL) (?P<test>tests/\S.*)"
    r"|(?P<alone>tests/\S.*?) (?P<outcome>PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b.*)$"
)
"""A test's line of pytest -v, with processes and without."""


@dataclass(frozen=True)
class Setting:
    """Where and how the programs run.

    Attributes:
        mode: "card", "pretend" (the pretended card) or "rehearse" (the CPU).
        work: a folder for everything that is not kept. out: the folder of the results.
        archive: CIFAR-10's training images, a .tar.xz of train/CLASS/*.jpg; None: no run on them.
        seconds: what the stage may take. rate: images a second of an eager step in bf16, if known.
    """

    mode: str
    work: Path
    out: Path
    archive: Path | None
    seconds: float
    rate: float | None

    @property
    def small(self) -> bool:
        return self.mode != "card"

    def consistune(self, *words: str) -> list[str]:
        start = ["-c", PRETENDED] if self.mode == "pretend" else ["-m", "consistune"]
        return [sys.executable, *start, *words]

    @property
    def device(self) -> list[str]:
        return ["--device", "cpu" if self.mode == "rehearse" else "cuda"]


def tests(setting: Setting) -> Parts:
    """All tests marked gpu; on the pretended card a few of them."""
    some = ["-p", "tests.card.plugin", "tests/core/test_gpu.py"] if setting.small else gpu_tests()
    if not setting.small and find_spec("xdist"):
        some += ["-n", str(WORKERS)]
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-v", "-m", "gpu", "--durations=12", *some]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        found: dict[str, list[str]] = {}
        lines: list[str] = []
        for line in run.stdout:
            lines.append(line.rstrip().replace(f"{sys.prefix}/", ""))
            if match := OUTCOME.match(line):
                word, name = match["word"] or match["outcome"], match["test"] or match["alone"]
                found.setdefault(word.lower(), []).append(name)
                yield "counts", {outcome: len(names) for outcome, names in found.items()}
                if word in ("FAILED", "ERROR"):
                    yield "failures", {"tests": found.get("failed", []) + found.get("error", [])}
    yield "counts", {"exit status": run.returncode}
    yield "slowest", {"output": [line for line in lines if " call " in line]}
    if run.returncode:
        yield "failures", {"output": lines[-120:]}


def gpu_tests() -> list[str]:
    """The files that have tests marked gpu: to collect all others takes longer than to run these."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path) for path in files if "pytest.mark.gpu" in path.read_text(encoding="utf-8")]


def prepare(setting: Setting) -> Parts:
    """CIFAR-10 from its archive into the form that training reads, beside the other stages."""
    if setting.archive is None and not setting.small:
        yield "data", {"failed": "no archive of CIFAR-10 was carried"}
        return
    images = setting.work / "images"
    if setting.small:
        _few_images(images / "train")
    else:
        with tarfile.open(setting.archive) as archive:
            archive.extractall(images, filter="data")
    words = ("data", "prepare", str(images / "train"), str(setting.work / "cifar10"))
    yield "data", call(setting, *words, "--workers", "1" if setting.small else "8")


def run(setting: Setting) -> Parts:
    """CIFAR-10 from nothing to a measured model, with a kill and a continuation."""
    if setting.mode == "pretend":  # the pretended card is too slow for it
        return
    data = setting.work / "cifar10"
    if not data.is_dir():
        yield "CIFAR-10", {"failed": "its images were not prepared"}
        return
    yield from _cifar(setting, data, setting.seconds - OVERHEAD_S)


def call_log(process: int) -> str:
    """The file in the work folder with the output of the last command that a stage's process has run."""
    return f"call-{process}.log"


def call(setting: Setting, *words: str) -> Record:
    """Run a command of the package. Raises RuntimeError with the end of its output where it fails."""
    began, log = time.perf_counter(), setting.work / call_log(os.getpid())
    with log.open("w") as out:
        print("consistune", *words, file=out, flush=True)
        done = subprocess.run(setting.consistune(*words), stdout=out, stderr=out, cwd=setting.work)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {log.read_text()[-2000:]}")
    return {"command": _shown(setting, words), "seconds": round(time.perf_counter() - began, 1)}


def _shown(setting: Setting, words: tuple[str, ...]) -> str:
    """A command without the machine's paths."""
    return " ".join(words).replace(f"{setting.work}/", "")


def digits(setting: Setting) -> Parts:
    """Digits from nothing to a measured model."""
    if setting.mode == "rehearse":  # the same commands follow, and each takes seconds to start
        return
    images = (256, 256) if setting.small else (256_000, 64_000)
    keys = [TINY_NETWORK, "train.batch=64"] if setting.small else []
    teacher, model = setting.work / "digits-edm", setting.work / "digits-sct"
    train = ("train", "digits-edm", *keys, f"train.images={images[0]}", "--out", str(teacher))
    yield "digits: diffusion", call(setting, *train, *setting.device)
    keys = ["train.batch=64"] if setting.small else []
    words = ("train", "digits-sct", *keys, f"start_from={teacher}/model", f"train.images={images[1]}")
    yield "digits: SCT", call(setting, *words, "--out", str(model), *setting.device)
    yield (
        "digits: measures",
        _measured(setting, model / "model", "digits", "classifier", 64 if setting.small else 2000),
    )


def _cifar(setting: Setting, data: Path, seconds: float) -> Parts:
    """seconds: for both trainings together."""
    teacher, model = setting.work / "edm", setting.work / "sct"
    rate, left = setting.rate or ASSUMED_RATE, max(seconds, SHORTEST_S)
    batch = 8 if setting.small else 512
    first, second = (int(share * left * rate) // batch * batch for share in (0.35, 0.45))
    if setting.small:
        first, second = 2 * batch, 40 * batch
    network = [TINY_NETWORK, "augment=0"] if setting.small else []
    common = [f"data={data}", f"train.batch={batch}", f"train.log_images={batch}", "train.ema=[0.99]"]
    common += [] if setting.small else FAST
    warm = f"optimizer.warmup_images={first // 4}"
    words = ("train", "cifar10-edm", *network, *common, f"train.images={first}", warm, "--out", str(teacher))
    yield "CIFAR-10: diffusion", call(setting, *words, *setting.device)
    keys = [f"train.images={second}", f"train.checkpoint_images={second // 4 // batch * batch}"]
    keys += [f"start_from={teacher}/model", f"pairs.gap.every_images={max(second // 8, 1)}"]
    words = ("train", "cifar10-sct", *common, *keys, "--out", str(model), *setting.device)
    killed = _killed(setting, words, model / "checkpoints")
    yield "CIFAR-10: SCT, killed", killed
    yield "CIFAR-10: SCT, continued", call(setting, "train", str(model), "--resume", *setting.device)
    yield "CIFAR-10: SCT, continued", _continued(model, second)
    sheet = setting.out / "card-samples.png"
    drawn = call(
        setting, "sample", str(model / "model"), "--seeds", "0-63", "--out", str(sheet), *setting.device
    )
    yield "CIFAR-10: samples", drawn
    count = 16 if setting.small else 5000
    yield "CIFAR-10: measures", _measured(setting, model / "model", str(data), "efficientnet", count)


def _killed(setting: Setting, words: tuple[str, ...], checkpoints: Path) -> Record:
    """Start a training and kill it, without any warning, once it has written a checkpoint after step 0."""
    log = setting.work / "killed.log"
    with log.open("w") as out:
        process = subprocess.Popen(setting.consistune(*words), stdout=out, stderr=out, cwd=setting.work)
    later = "step-*[1-9]*-*.pt"
    while not any(checkpoints.glob(later)) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(
            f"ended before it was killed, status {process.returncode}: {log.read_text()[-2000:]}"
        )
    lines = (checkpoints.parent / "metrics.jsonl").read_text().splitlines()
    return {
        "command": _shown(setting, words),
        "killed after a record of images": _records(lines)[-1].get("images"),
    }


def _continued(run_folder: Path, images: int) -> Record:
    """What the log of a continued run says. Raises RuntimeError where it is not one whole run."""
    records = [r for r in _records((run_folder / "metrics.jsonl").read_text().splitlines()) if "loss" in r]
    seen = [record["images"] for record in records]
    if seen != sorted(set(seen)) or seen[-1] != images:
        raise RuntimeError(
            f"the log of the continued run has gaps or repetitions, and ends at {seen[-1]} of {images}"
        )
    return {"images": images, "first loss": records[0]["loss"], "last loss": records[-1]["loss"]}


def _records(lines: list[str]) -> list[Record]:
    """Lines of metrics.jsonl; a line that a killed run left unfinished is not one."""
    return [json.loads(line) for line in lines if line.endswith("}")]


def _measured(setting: Setting, model: Path, data: str, features: str, samples: int) -> Record:
    out = setting.work / f"measured-{features}"
    options = ("--data", data, "--features", features, "--samples", str(samples), "--out", str(out))
    done = call(setting, "evaluate", str(model), *options, *setting.device)
    rows = json.loads((out / "results.json").read_text())["rows"]
    return {**done, **{name: value["mean"] for name, value in rows[0]["summary"].items()}}


def _few_images(folder: Path) -> None:
    """Ten classes of four small JPEG files, in place of CIFAR-10."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for label in range(10):
        (folder / f"class{label}").mkdir(parents=True)
        for index in range(4):
            pixels = generator.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{index:04d}.jpg")


STAGES = {"tests": tests, "prepare": prepare, "digits": digits, "run": run}
"""Stages that start programs; `card_stages` has those that measure in one process."""
