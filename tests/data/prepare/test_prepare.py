"""Preparing: the same bytes with any number of workers and after interruptions; bad images are listed."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from consistune.data.images import load_data
from consistune.data.prepare import run as module
from consistune.data.prepare import work
from consistune.data.prepare.run import PrepareOptions, Progress, prepare
from consistune.data.prepare.split import Rows, Split, held_out
from consistune.data.prepare.survey import ImageOptions
from consistune.data.prepared import damaged, read_meta
from consistune.data.sources.base import Source, SourceOptions
from consistune.errors import UserError
from consistune.system import files
from tests.support.makers import class_folders, edm_zip, encoded, imagenet_batches, pixels


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def mixed_folder(root: Path, count: int = 40, bad: tuple[int, ...] = (3, 17, 18)) -> Path:
    """Images of many sizes in five classes, some of them bad."""
    images: list[Any] = [pixels(1, 9 + k % 5, 8 + k % 7, 3, seed=k)[0] for k in range(count)]
    for k in bad:
        images[k] = b"not an image"
    return class_folders(root, images, [f"class {k % 5}" for k in range(count)])


OPTIONS = PrepareOptions(images=ImageOptions(size=8), split=Split(0.2, seed=3))


class Stop(Exception):
    """The power fails."""


class StopAfter(Progress):
    """Remembers how many images were done before, and stops after some calls."""

    def __init__(self, calls: int) -> None:
        self.calls, self.before, self.counts = calls, -1, []  # type: ignore[var-annotated]

    def started(self, source: Source, done: int) -> None:
        self.before = done

    def advanced(self, count: int) -> None:
        self.counts.append(count)
        self.calls -= 1
        if self.calls == 0:
            raise Stop


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of four images, each on the disk before the next."""
    monkeypatch.setattr(Source, "piece", 4)
    monkeypatch.setattr(module, "SYNC_SECONDS", 0.0)
    read = module.open_source
    monkeypatch.setattr(module, "open_source", lambda *a: replace_piece(read(*a)))


def replace_piece(source: Source) -> Source:
    source.piece = 4
    return source


@pytest.mark.parametrize("kind", ["folder", "zip", "batches"])
def test_a_stopped_preparation_goes_on_to_the_same_bytes(
    tmp_path: Path, small_pieces: None, kind: str
) -> None:
    options = OPTIONS
    if kind == "folder":
        source = mixed_folder(tmp_path / "set")
    elif kind == "zip":
        images = [b"bad" if k == 7 else pixels(1, 8, 8, 3, seed=k)[0] for k in range(40)]
        source = edm_zip(tmp_path / "set.zip", images, [k % 3 for k in range(40)])
    else:
        labels = [1 + k % 3 for k in range(40)]
        source = imagenet_batches(tmp_path / "set", pixels(40, 3, 16, 16), labels, npz=False, val=8)
        options = replace(OPTIONS, split=Split())
    whole = Progress()
    prepare(source, tmp_path / "whole", options, whole)
    done = 0
    for stop in (2, 1, 3):
        progress = StopAfter(stop)
        with pytest.raises(Stop):
            prepare(source, tmp_path / "again", options, progress)
        assert progress.before == done  # what was done is not done again
        done += sum(progress.counts)
        assert not (tmp_path / "again").exists()
    with (tmp_path / "again.part" / "work" / "journal").open("ab") as journal:
        journal.write(b'{"piece": 9, "ba')  # a line torn by the kill
    last = StopAfter(-1)
    prepare(source, tmp_path / "again", options, last)
    assert last.before == done
    assert last.before + sum(last.counts) == 40
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")
    assert not (tmp_path / "again.part").exists()


class FailingDisk:
    """Fails at the n-th time that something is to be on the disk."""

    def __init__(self, calls: int) -> None:
        self.calls, self.sync = calls, files.sync

    def __call__(self, path: Path) -> None:
        self.calls -= 1
        if self.calls == 0:
            raise Stop
        self.sync(path)


def test_a_kill_between_any_two_steps_of_the_end_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = mixed_folder(tmp_path / "set")
    prepare(source, tmp_path / "whole", OPTIONS)
    stopped = 0
    while not (tmp_path / "again").exists():
        with monkeypatch.context() as patch, contextlib.suppress(Stop):
            patch.setattr(files, "sync", FailingDisk(stopped + 1))
            prepare(source, tmp_path / "again", OPTIONS)
        stopped += 1
    assert stopped > 6
    assert contents(tmp_path / "again") == contents(tmp_path / "whole")


def test_two_processes_write_what_one_writes(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "set")
    prepare(source, tmp_path / "one", OPTIONS)
    prepare(source, tmp_path / "two", replace(OPTIONS, workers=2))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_killed_command_goes_on(tmp_path: Path) -> None:
    """SIGKILL of the whole command while its workers decode; then the command again."""
    source = tmp_path / "set"
    picture = encoded(Image.fromarray(pixels(1, 16, 16, 3)[0]).resize((320, 320), 0))
    class_folders(source, [picture] * 1024, [f"c{k % 3}" for k in range(1024)])
    command = [
        sys.executable,
        "-m",
        "consistune",
        "data",
        "prepare",
        str(source),
        str(tmp_path / "dest"),
        "--size",
        "8",
    ]
    command += ["--workers", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    journal = tmp_path / "dest.part" / "work" / "journal"
    deadline = time.monotonic() + 60
    while not (journal.exists() and b'{"piece"' in journal.read_bytes()) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "dest").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "continuing after" in done.stderr
    meta = prepare(source, tmp_path / "whole", PrepareOptions(images=ImageOptions(size=8)))
    assert meta.parts["train"].images == 1024
    assert contents(tmp_path / "dest") == contents(tmp_path / "whole")


def test_other_options_do_not_go_on_from_a_stopped_run(tmp_path: Path, small_pieces: None) -> None:
    source = mixed_folder(tmp_path / "set")
    with pytest.raises(Stop):
        prepare(source, tmp_path / "dest", OPTIONS, StopAfter(1))
    with pytest.raises(UserError, match="other options"):
        prepare(source, tmp_path / "dest", replace(OPTIONS, images=ImageOptions(size=7)))
    (source / "class 0" / "new.png").write_bytes(encoded(pixels(1, 9, 9, 3)[0]))
    with pytest.raises(UserError, match="another source"):
        prepare(source, tmp_path / "dest", OPTIONS)


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    source = mixed_folder(tmp_path / "set")
    from consistune.data.prepare.journal import Journal

    with Journal(tmp_path / "dest.part" / "work" / "journal"), pytest.raises(UserError, match="another run"):
        prepare(source, tmp_path / "dest", OPTIONS)
    prepare(source, tmp_path / "dest", OPTIONS)
    with pytest.raises(UserError, match="already there"):
        prepare(source, tmp_path / "dest", OPTIONS)


# --- what is in the result -------------------------------------------------------------------------------


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


# --- held out --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_each_class_gives_its_share(fraction: float) -> None:
    labels = np.random.default_rng(0).integers(0, 7, 1000)
    chosen = held_out(labels, None, Split(fraction, seed=1))
    for label in range(7):
        of_class = labels == label
        assert chosen[of_class].sum() == round(fraction * of_class.sum())
    assert not np.array_equal(chosen, held_out(labels, None, Split(fraction, seed=2)))


def test_no_group_is_on_both_sides(shared: Path, tmp_path: Path) -> None:
    """emoji32: the same emoji by another vendor, or in another skin tone, must not be in training."""
    import zipfile

    source = shared / "data" / "emoji32.zip"
    with zipfile.ZipFile(source) as archive:
        table = json.loads(archive.read("dataset.json"))
    labels, groups = np.array([label for _, label in table["labels"]]), [str(g) for g in table["group"]]
    chosen = held_out(labels, groups, Split(0.1, "group"))
    assert not {g for g, c in zip(groups, chosen, strict=True) if c} & {
        g for g, c in zip(groups, chosen, strict=True) if not c
    }
    for label in range(9):
        assert chosen[labels == label].mean() == pytest.approx(0.1, abs=0.015)
    by_image = held_out(labels, None, Split(0.1))
    both = {g for g, c in zip(groups, by_image, strict=True) if c} & {
        g for g, c in zip(groups, by_image, strict=True) if not c
    }
    assert len(both) > 100  # by image it is not so, which is why the option is there


def test_an_impossible_split_is_refused(tmp_path: Path) -> None:
    source = edm_zip(tmp_path / "a.zip", pixels(4, 4, 4), [0, 1, 0, 1])
    own = imagenet_batches(tmp_path / "in", pixels(6, 3, 4, 4), [1] * 6, npz=True, val=2)
    for path, split, words in [
        (source, Split(0.5, "group"), "no groups"),
        (own, Split(0.5), "test set of its own"),
    ]:
        with pytest.raises(UserError, match=words):
            prepare(path, tmp_path / "dest", PrepareOptions(split=split))
    for values in ({"fraction": 1.0}, {"fraction": -0.1}, {"by": "vendor"}):
        with pytest.raises(UserError):
            Split(**values)  # type: ignore[arg-type]


def test_rows_are_a_permutation_grouped_by_class_and_stable() -> None:
    labels = np.random.default_rng(0).integers(0, 5, 200)
    chosen = held_out(labels, None, Split(0.3))
    rows = Rows.of(labels, chosen)
    for part in (0, 1):
        items = np.flatnonzero(chosen == part)
        order = items[np.argsort(rows.row[items])]
        assert sorted(rows.row[items]) == list(range(len(items)))
        assert order.tolist() == sorted(items.tolist(), key=lambda i: labels[i])


# --- reading back ----------------------------------------------------------------------------------------


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
    (tmp_path / "dest" / "meta.json").write_text("[" * 100_000)
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


def test_a_worker_imports_no_torch() -> None:
    modules = ("prepare.work", "sources.arrays", "sources.zips", "sources.files", "sources.parquet")
    code = "".join(f"import consistune.data.{module}\n" for module in modules)
    code += "import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert hashlib.sha256().digest_size == work.DIGEST_BYTES


def test_labels_is_a_table_for_zips_too(tmp_path: Path) -> None:
    source = edm_zip(tmp_path / "a.zip", pixels(4, 4, 4), None)
    table = {f"00000/img{k:08d}.png": word for k, word in enumerate(("b", "a", "b"))}
    table["00001/img00000003.png"] = "a"
    (tmp_path / "labels.json").write_text(json.dumps(table))
    prepare(source, tmp_path / "dest", PrepareOptions(SourceOptions(labels=str(tmp_path / "labels.json"))))
    train = load_data(str(tmp_path / "dest")).train
    assert torch.equal(train.images[:, 0], torch.from_numpy(pixels(4, 4, 4)[[1, 3, 0, 2]]))
