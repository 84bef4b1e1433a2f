"""What a preparation writes: bad images are listed, the others keep their pixels and order."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from consistune.data.images import load_data
from consistune.data.prepare import work
from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.prepare.split import Split
from consistune.data.prepare.survey import ImageOptions
from consistune.errors import UserError
from tests.support.makers import class_folders, edm_zip, imagenet_batches, pixels
from tests.support.prepared import OPTIONS, mixed_folder


def test_bad_images_are_listed_and_the_others_close_up(tmp_path: Path) -> None:
    meta = prepare(mixed_folder(tmp_path / "set"), tmp_path / "all", OPTIONS)
    assert [entry["image"] for entry in meta.bad] == [
        "class 2/0017.png",
        "class 3/0003.png",
        "class 3/0018.png",
    ]
    good = mixed_folder(tmp_path / "good", bad=())
    for name in (entry["image"] for entry in meta.bad):
        (good / name).unlink()
    options = replace(OPTIONS, split=Split())
    prepare(tmp_path / "set", tmp_path / "a", options)
    prepare(good, tmp_path / "b", options)
    a, b = load_data(str(tmp_path / "a")).train, load_data(str(tmp_path / "b")).train
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.labels, b.labels)


def test_strict_stops_at_the_first_bad_image(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "set")
    with pytest.raises(UserError, match=r"class 2/0017\.png is not an image"):
        prepare(source, tmp_path / "dest", replace(OPTIONS, strict=True))
    assert not (tmp_path / "dest").exists()
    (source / "class 0" / "link.png").symlink_to(source / "class 0" / "0000.png")
    with pytest.raises(UserError, match=r"link\.png is a symbolic link"):
        prepare(source, tmp_path / "other", replace(OPTIONS, strict=True))


def test_nothing_but_bad_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of 4 images can be read"):
        prepare(mixed_folder(tmp_path / "set", 4, (0, 1, 2, 3)), tmp_path / "dest", OPTIONS)


def test_the_traps_of_the_official_tree(shared: Path, tmp_path: Path) -> None:
    """A grey image, a CMYK one and a PNG named .JPEG are what Pillow makes of them, in RGB."""
    tree = shared / "data" / "formats" / "imagenet64-format" / "ILSVRC-tree"
    meta = prepare(tree, tmp_path / "dest", PrepareOptions(images=ImageOptions(size=64, crop="dhariwal")))
    assert (meta.bad, meta.shape) == ([], (3, 64, 64))
    train = load_data(str(tmp_path / "dest")).train
    files = sorted(path for path in (tree / "train").rglob("*.JPEG"))
    for row, path in enumerate(files):
        image = Image.open(path).convert("RGB")
        while min(image.size) >= 128:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = 64 / min(image.size)
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC
        )
        left, top = (image.width - 64) // 2, (image.height - 64) // 2
        expected = np.asarray(image.crop((left, top, left + 64, top + 64))).transpose(2, 0, 1)
        assert np.array_equal(train.images[row].numpy(), expected), path
    names = [path.stem for path in files]
    grey = train.images[names.index("n01443537_10061")]
    assert bool((grey[0] == grey[1]).all() and (grey[1] == grey[2]).all())


def test_the_hash_of_a_source(tmp_path: Path) -> None:
    """Of one file, its own; of a tree, of the sorted lines of its files, whatever is beside them."""
    source = edm_zip(tmp_path / "a.zip", pixels(4, 4, 4), [0, 1, 0, 1])
    meta = prepare(source, tmp_path / "zip", PrepareOptions())
    assert meta.source["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    tree = class_folders(tmp_path / "tree", pixels(4, 4, 4), ["b", "a", "b", "c"])
    lines = [
        f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.stat().st_size}  {p.relative_to(tree)}\n"
        for p in sorted(tree.rglob("*.png"), key=lambda p: str(p.relative_to(tree)))
    ]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert prepare(tree, tmp_path / "a", PrepareOptions()).source["sha256"] == expected
    batches = imagenet_batches(tmp_path / "in", pixels(6, 3, 4, 4), [1] * 6, npz=True, val=2)
    first = prepare(batches, tmp_path / "in1", PrepareOptions()).source["sha256"]
    with (batches / "val_data.npz").open("ab") as file:
        file.write(b"\0")
    assert prepare(batches, tmp_path / "in2", PrepareOptions()).source["sha256"] != first


def test_a_worker_imports_no_torch() -> None:
    modules = ("prepare.work", "sources.arrays", "sources.zips", "sources.files", "sources.parquet")
    code = "".join(f"import consistune.data.{module}\n" for module in modules)
    code += "import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert hashlib.sha256().digest_size == work.DIGEST_BYTES
