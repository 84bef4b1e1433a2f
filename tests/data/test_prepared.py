"""A prepared folder read back: mapped, checked, and trained on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from consistune.data.images import load_data
from consistune.data.prepare.run import prepare
from consistune.data.prepare.split import Split
from consistune.data.prepared import damaged, read_meta
from consistune.errors import UserError
from tests.support.prepared import OPTIONS, mixed_folder


def test_images_stay_on_the_disk(tmp_path: Path) -> None:
    prepare(mixed_folder(tmp_path / "set"), tmp_path / "dest", OPTIONS)
    data = load_data(str(tmp_path / "dest"))
    with (tmp_path / "dest" / "train" / "images.npy").open("r+b") as file:
        file.seek(128)
        old = file.read(1)
        file.seek(128)
        file.write(bytes([old[0] ^ 255]))
    assert int(data.train.images[0, 0, 0, 0]) == old[0] ^ 255  # read from the file, not from a copy
    data.train.images[0] = 0  # private: the file is not written to
    assert damaged(tmp_path / "dest", read_meta(tmp_path / "dest")) == ["train/images.npy"]
    reference = data.train.reference(by_class=True)
    assert reference.offsets == read_meta(tmp_path / "dest").parts["train"].offsets


def test_a_damaged_prepared_folder_is_refused(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "set")
    prepare(source, tmp_path / "dest", OPTIONS)
    meta = json.loads((tmp_path / "dest" / "meta.json").read_text())
    files = {
        name: (tmp_path / "dest" / name).read_bytes() for name in ("train/images.npy", "train/labels.npy")
    }

    def restore() -> None:
        (tmp_path / "dest" / "meta.json").write_text(json.dumps(meta))
        for name, data in files.items():
            (tmp_path / "dest" / name).write_bytes(data)

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words):
            load_data(str(tmp_path / "dest"))
        restore()

    (tmp_path / "dest" / "train" / "images.npy").write_bytes(files["train/images.npy"][:-1])
    refused("meta.json says")
    (tmp_path / "dest" / "train" / "images.npy").unlink()
    refused("cannot be read")
    labels = bytearray(files["train/labels.npy"])
    labels[-8] = 200
    (tmp_path / "dest" / "train" / "labels.npy").write_bytes(labels)
    refused("labels")
    for change, words in [
        ({"format": 2}, "format 2"),
        ({"shape": [3, 8, 9]}, "meta.json says"),
        ({"surprise": 1}, "not what consistune wrote"),
        ({"class_names": ["one"]}, "offsets"),
        ({"parts": {}}, "no training images"),
    ]:
        (tmp_path / "dest" / "meta.json").write_text(json.dumps({**meta, **change}))
        refused(words)
    for text in ("[" * 100_000, "[]", "1"):
        (tmp_path / "dest" / "meta.json").write_text(text)
        refused("not what consistune wrote")
    with pytest.raises(UserError, match="consistune data prepare"):
        load_data(str(source))
    with pytest.raises(UserError, match="unknown data set"):
        load_data("nothing")


def test_missing_held_out_images_are_an_error(tmp_path: Path) -> None:
    prepare(mixed_folder(tmp_path / "set"), tmp_path / "dest", replace(OPTIONS, split=Split()))
    data = load_data(str(tmp_path / "dest"))
    assert data.held_out is None
    with pytest.raises(UserError, match="--held-out"):
        data.need_held_out("memorisation")


def test_training_reads_the_map(tmp_path: Path) -> None:
    """A recipe's whole way from a prepared folder: rows in, a step taken."""
    from consistune.recipe import read_recipe
    from consistune.recipe.plan import make_plan

    prepare(mixed_folder(tmp_path / "set"), tmp_path / "dest", OPTIONS)
    keys = [f"data={tmp_path / 'dest'}", "train.images=8", "train.batch=4"]
    plan = make_plan(read_recipe("digits-edm", keys))
    reports = list(plan.trainer().steps())
    assert len(reports) == 2
    assert all(report.finite for report in reports)
