"""How long it takes, and how much memory, to prepare sets of the published sizes.

    python benchmarks/prepare_data.py --work /var/tmp/prepare       some minutes, 5 GB of disk, removed again
    python benchmarks/prepare_data.py --only cifar

Three sources, made here in the official layouts from noise over smooth pictures:

- cifar: an archive of 60,000 images 3×32×32 in six Python-2 pickles;
- imagenet64: 131,072 images 3×64×64 in ten npz batches, a tenth of the full set;
- zip: 1,281,167 members, as many as ImageNet has, each a tiny PNG: what names cost.

`consistune data prepare` runs as a user runs it. Memory is sampled 20 times a second over the tree of
processes: the sum of the resident set less file pages (what the system
cannot take back), and of the resident set as it is.
Writes results/prepare_data.json.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.support.makers import cifar_files, encoded, tar

from consistune.system.host import machine
from pages import fill

RESULT = Path(__file__).parent / "results" / "prepare_data.json"
IMAGENET = 1_281_167


def pictures(count: int, side: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Smooth colours with noise on them, uint8 [count, 3, side, side]."""
    chance = np.random.default_rng(seed)
    coarse = chance.integers(0, 200, (count, 3, 4, 4), dtype=np.uint8)
    large = coarse.repeat(side // 4, 2).repeat(side // 4, 3)
    return large + chance.integers(0, 56, large.shape, dtype=np.uint8)


def make_cifar(folder: Path) -> Path:
    labels = (np.arange(60_000) * 7 % 10).tolist()
    return tar(folder / "cifar-10-python.tar.gz", cifar_files(pictures(60_000, 32, 0), labels, 5, 10_000))


def make_imagenet64(folder: Path) -> Path:
    root = folder / "Imagenet64_train"
    root.mkdir()
    for k in range(1, 11):
        count = 13_108 if k < 10 else 131_072 - 9 * 13_108
        labels = np.random.default_rng(k).integers(1, 1001, count)
        np.savez(
            root / f"train_data_batch_{k}.npz", data=pictures(count, 64, k).reshape(count, -1), labels=labels
        )
    return root


def make_zip(folder: Path) -> Path:
    path = folder / "members.zip"
    data = encoded(np.zeros((4, 4), np.uint8))
    table = []
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(IMAGENET):
            name = f"{k // 1000:05d}/img{k:08d}.png"
            archive.writestr(zipfile.ZipInfo(name), data)
            table.append([name, k % 1000])
        archive.writestr("dataset.json", json.dumps({"labels": table}))
    return path


TITLES = {
    "cifar": "CIFAR-10's archive",
    "imagenet64": "downsampled ImageNet, ten npz batches",
    "zip": "EDM's ZIP with as many members as ImageNet has",
}
MAKERS = {"cifar": make_cifar, "imagenet64": make_imagenet64, "zip": make_zip}


def tree(root: int) -> list[int]:
    """A process and all below it."""
    found = [root]
    for pid in found:
        try:
            for task in os.listdir(f"/proc/{pid}/task"):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        except OSError:
            continue
    return found


def memory(pids: list[int]) -> tuple[int, int]:
    """Bytes: anonymous, and resident, of all together."""
    anonymous = resident = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        fields = dict(
            line.split(":", 1) for line in lines if line.startswith("Rss") or line.startswith("VmRSS")
        )
        anonymous += 1024 * int(fields.get("RssAnon", "0 kB").split()[0])
        resident += 1024 * int(fields.get("VmRSS", "0 kB").split()[0])
    return anonymous, resident


def timed(command: list[str]) -> dict[str, float]:
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    anonymous = resident = 0
    while process.poll() is None:
        found = memory(tree(process.pid))
        anonymous, resident = max(anonymous, found[0]), max(resident, found[1])
        time.sleep(0.05)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise RuntimeError(process.stderr.read().decode() if process.stderr else "")
    return {"seconds": seconds, "anonymous_mib": anonymous / 2**20, "resident_mib": resident / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/var/tmp/consistune-prepare-benchmark"))
    parser.add_argument("--only", choices=sorted(MAKERS), action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--make", action="store_true", help="make the sources and keep them for a later run")
    options = parser.parse_args()
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name in options.only or sorted(MAKERS):
        folder = options.work / name
        if not (folder / "made").exists():
            folder.mkdir(parents=True)
            (folder / "made").write_text(str(MAKERS[name](folder)))
        if options.make:
            continue
        source, dest = (folder / "made").read_text(), folder / "prepared"
        rounds = []
        for _ in range(options.rounds):
            rounds.append(timed([sys.executable, "-m", "consistune", "data", "prepare", source, str(dest)]))
            meta = json.loads((dest / "meta.json").read_text())
            shutil.rmtree(dest)
        images = sum(part["images"] for part in meta["parts"].values())
        results[name] = {"images": images, "shape": meta["shape"], "rounds": rounds, "machine": machine()}
        shutil.rmtree(folder)
        print(name, json.dumps(results[name], indent=1), flush=True)
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
        page(results)


def page(results: dict[str, Any]) -> None:
    lines = [
        "| source | images | seconds | images a second | memory |",
        "|---|---|---|---|---|",
    ]
    for name, title in TITLES.items():
        if name in results:
            found = results[name]
            seconds = [part["seconds"] for part in found["rounds"]]
            memory = max(part["anonymous_mib"] for part in found["rounds"])
            resident = max(part["resident_mib"] for part in found["rounds"])
            speed = found["images"] / statistics.median(seconds)
            lines.append(
                f"| {title} | {found['images']:,} of {'×'.join(map(str, found['shape']))} "
                f"| {', '.join(f'{s:.1f}' for s in seconds)} | {speed:,.0f} "
                f"| {memory:,.0f} MiB ({resident:,.0f}) |"
            )
    fill("data.md", "prepare", "\n".join(lines))


if __name__ == "__main__":
    main()
