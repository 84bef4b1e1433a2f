"""Mutated images, safetensors, recipes, protocols and our own JSON: read, or refused with a line."""

import random
import resource
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save as safetensors

from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.prepare.survey import ImageOptions
from consistune.data.prepare.transform import BadImage
from consistune.data.prepared import META, open_part, read_meta
from consistune.errors import UserError
from consistune.interop.checkpoints import load_checkpoint
from consistune.interop.export import export_model
from consistune.metrics.sheet import read_protocol
from consistune.nn import store
from consistune.recipe import read_recipe
from tests.attack.test_flipped_bits import made, same
from tests.attack.test_sources import mutated
from tests.support.makers import edm_zip, pixels

EACH, SLOW, MEMORY_MIB = 40, 2.0, 512
"""Mutants a kind in the test suite; the longest that one may take, and the most that memory may grow."""
IMAGES = ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "PPM")
RECIPE = b"""extends: digits-ect
network: &net {kind: mlp, width: 16, blocks: 2, dropout: 0.1}
start_from: null
train: {images: 640, batch: 64, ema: [0.9, {kind: power, std: 0.1}], snapshots: [0.25, 5.0e-1]}
pairs: {kind: lognormal, mean: -1.1, std: 2.0, gap: {kind: sigmoid, every_images: 128}}
"""
PROTOCOL = (
    b"name: fd-small\ndim: 5\ninput: {size: 8, resize: bicubic, mean: [0.4, 0.5], range: [-1.0, 1.0]}\n"
)


def image(format: str) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels(1, 16, 16, 3)[0]).save(file, format)
    return file.getvalue()


def kinds(folder: Path) -> dict[str, tuple[bytes, str, Callable[[Path], object]]]:
    """kind → a genuine file, the name that it must have, and what reads it."""
    model, transform = made(), ImageOptions(size=8).transform(grey=False)
    stored = store.save(model, folder / "model")
    exported = export_model(stored, folder / "export.safetensors").read_bytes()
    archive = edm_zip(folder / "a.zip", pixels(12, 8, 8), [k % 3 for k in range(12)])
    prepare(archive, folder / "set", PrepareOptions())

    def prepared(path: Path) -> None:
        for side in (meta := read_meta(path.parent)).parts:
            open_part(path.parent, meta, side)

    def export(path: Path) -> None:
        assert same(load_checkpoint(path), model)  # it has a checksum

    found: dict[str, tuple[bytes, str, Callable[[Path], object]]] = {
        "recipe": (RECIPE, "a.yaml", lambda path: read_recipe(str(path))),
        "protocol": (PROTOCOL, "a.yaml", lambda path: read_protocol(path.with_suffix(".pt"))),
        "export": (exported, "a.safetensors", export),
        "safetensors": (safetensors(model.state_dict()), "b.safetensors", load_checkpoint),
        "meta.json": ((folder / "set" / META).read_bytes(), f"set/{META}", prepared),
        "config.json": (
            (stored / store.CONFIG).read_bytes(),
            f"model/{store.CONFIG}",
            lambda p: store.load(p.parent),
        ),
    }
    for format in IMAGES:
        read = lambda path: transform.to_shape(path.read_bytes(), (3, 8, 8))
        found[format] = (image(format), f"a.{format.lower()}", read)
    return found


def attack(folder: Path, each: int, seconds: float, seed: int) -> dict[str, Any]:
    chance, files, began = random.Random(seed), kinds(folder), time.monotonic()
    outcomes = {name: Counter[str]() for name in files}
    for genuine, name, read in files.values():
        (folder / name).write_bytes(genuine)
        read(folder / name)
    slowest, before = dict.fromkeys(files, 0.0), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while min(map(Counter.total, outcomes.values())) < each or time.monotonic() - began < seconds:
        for kind, (genuine, name, read) in files.items():
            path = folder / name
            path.write_bytes(mutated(genuine, chance))
            start = time.process_time()
            try:
                read(path)
                outcome = "read"
            except (UserError, BadImage) as error:
                outcome = "refused" if str(error).isprintable() else f"not printable: {str(error)!a}"
            except Exception as error:  # what a user must never see
                outcome = f"{type(error).__name__}: {str(error)[:100]}"
                (folder / f"found-{kind}-{outcomes[kind].total()}").write_bytes(path.read_bytes())
            outcomes[kind][outcome] += 1
            slowest[kind] = max(slowest[kind], round(time.process_time() - start, 3))
            path.write_bytes(genuine)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    counts = {kind: dict(found) for kind, found in outcomes.items()}
    return {"outcomes": counts, "slowest_seconds": slowest, "memory_grew_mib": grown}


@pytest.mark.attack
def test_no_mutated_file_is_an_internal_error(
    tmp_path: Path, minutes: float, seed: int, keep_record: Callable[[str, dict[str, Any]], None]
) -> None:
    torch.set_num_threads(1)
    record = attack(tmp_path, EACH, 60 * minutes, seed)
    print(record)
    keep_record("attack_files", record)
    for kind, counts in record["outcomes"].items():
        assert set(counts) <= {"read", "refused"}, kind
        assert counts["refused"] > 0
    assert max(record["slowest_seconds"].values()) < SLOW
    assert record["memory_grew_mib"] < MEMORY_MIB
