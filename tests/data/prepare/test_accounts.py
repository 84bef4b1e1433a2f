"""Every image is accounted for: found = taken + left out, and none is left out unless that is allowed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.prepared import Account, read_meta
from consistune.data.sources.base import SourceOptions
from consistune.errors import UserError
from tests.support.makers import class_folders, edm_zip, encoded, pixels

LINK = "is a symbolic link, which is not followed (--follow-links)"


def test_found_is_taken_and_left_out_in_each_split(tmp_path: Path) -> None:
    root = tmp_path / "set"
    images = [*pixels(4, 4, 4, 3), b"bad"]
    class_folders(root / "train", images, list("aabba"))
    class_folders(root / "val", [*pixels(2, 4, 4, 3), b"bad", b"bad"], list("abab"))
    (root / "test").mkdir()
    (root / "test" / "1.png").write_bytes(encoded(images[0]))
    (root / "train" / "stray.png").write_bytes(encoded(images[0]))
    (root / "val" / "a" / "link.png").symlink_to(root / "val" / "a" / "0000.png")
    meta = prepare(root, tmp_path / "dest", PrepareOptions())
    unreadable = "is not an image that can be read"
    assert meta.accounts == [
        Account("train", 6, 4, {"lies outside the class folders": 1, unreadable: 1}),
        Account("held-out", 5, 2, {unreadable: 2, LINK: 1}),
        Account("test", 1, 0, {"has no labels": 1}),
    ]
    assert read_meta(tmp_path / "dest").accounts == meta.accounts
    assert sum(a.found - a.taken for a in meta.accounts[:2]) == len(meta.bad)


def test_more_are_left_out_only_where_that_is_allowed(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "set", [*pixels(4, 4, 4, 3), b"bad", b"bad"], list("aaabbb"))
    options = PrepareOptions(allow_missing=1)
    with pytest.raises(UserError, match=r"2 images would be left out .*--allow-missing 2"):
        prepare(source, tmp_path / "dest", options)
    assert not (tmp_path / "dest").exists()
    meta = prepare(source, tmp_path / "dest", replace(options, allow_missing=2))  # goes on
    assert meta.parts["train"].images == 4
    (source / "outside.png").write_bytes(encoded(pixels(1, 4, 4, 3)[0]))
    with pytest.raises(UserError, match="1 lies outside the class folders"):
        prepare(source, tmp_path / "other", PrepareOptions(allow_missing=0))
    assert not (tmp_path / "other.part").exists()  # known before any work


def test_a_held_out_split_without_labels_counts_where_there_is_no_other(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "set" / "train", pixels(2, 4, 4, 3), list("ab")).parent
    (source / "val").mkdir()
    (source / "val" / "1.png").write_bytes(encoded(pixels(1, 4, 4, 3)[0]))
    with pytest.raises(UserError, match="1 val: has no labels"):
        prepare(source, tmp_path / "dest", PrepareOptions(allow_missing=0))


def test_links_are_followed_where_that_is_asked(tmp_path: Path) -> None:
    store = class_folders(tmp_path / "store", pixels(3, 4, 4, 3), list("aab"))
    source = tmp_path / "set"
    (source / "b").mkdir(parents=True)
    (source / "a").symlink_to(store / "a")
    (source / "b" / "1.png").symlink_to(store / "b" / "0002.png")
    (source / "b" / "loop").symlink_to(source)
    (source / "b" / "nothing.png").symlink_to(tmp_path / "nothing")
    meta = prepare(source, tmp_path / "dest", PrepareOptions(SourceOptions(links=True)))
    assert (meta.class_names, meta.parts["train"].offsets) == (("a", "b"), (0, 2, 3))
    assert {entry["image"] for entry in meta.bad} == {"b/loop", "b/nothing.png"}
    with pytest.raises(UserError, match="--follow-links"):
        prepare(source, tmp_path / "other", PrepareOptions(allow_missing=0))
    source = edm_zip(tmp_path / "a.zip", pixels(1, 4, 4), [0])
    with pytest.raises(UserError, match="--follow-links means nothing to zip"):
        prepare(source, tmp_path / "other", PrepareOptions(SourceOptions(links=True)))


def test_what_is_noticed_on_the_way_is_noted(tmp_path: Path) -> None:
    frames = [Image.fromarray(image) for image in pixels(3, 4, 4, 3)]
    moving = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    source = edm_zip(tmp_path / "a.zip", [moving, *pixels(2, 4, 4, 3)], [0, 0, 2], class_names=list("xyz"))
    meta = prepare(source, tmp_path / "dest", PrepareOptions())
    assert meta.notes == [
        "1 image has several frames; the first was taken", "classes without training images: y",
    ]  # fmt: skip


def test_the_common_size_is_that_of_upright_images(tmp_path: Path) -> None:
    upright = pixels(3, 4, 6, 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(np.ascontiguousarray(np.rot90(upright[0], 1)), exif=exif)
    source = class_folders(tmp_path / "set", [turned, *upright[1:]], list("aab"))
    meta = prepare(source, tmp_path / "dest", PrepareOptions())
    assert (meta.shape, meta.bad) == ((3, 4, 6), [])
    assert json.loads((tmp_path / "dest" / "meta.json").read_text())["accounts"][0]["taken"] == 3
