"""tar archives, WebDataset's shards, and the layouts of ImageNet and Tiny-ImageNet."""

import gzip
import io
import lzma
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.sources import tars
from consistune.data.sources.base import SourceOptions
from consistune.data.sources.detect import detect, open_source
from tests.data.test_layouts import PNG, found, lay, refused
from tests.support.makers import encoded, pixels
from tests.support.prepared import check, prepared


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize(
    ("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tar.xz", "w:xz"), ("tgz", "w:gz")]
)
def test_a_tar_is_read_as_the_folder(tmp_path: Path, ending: str, mode: str) -> None:
    images = pixels(6, 6, 5, 3)
    folders = ("train/b", "train/a", "train/b", "train/a", "test/b", "test/a")
    names = [f"./set/{folder}/{'x' * 120}{k}.png" for k, folder in enumerate(folders)]
    source = make_tar(
        tmp_path / f"set.{ending}", {n: encoded(i) for n, i in zip(names, images, strict=True)}, mode
    )
    assert detect(source) == "tar"
    meta, train, held_out = prepared(source)
    check(train, images[:4].transpose(0, 3, 1, 2), [1, 0, 1, 0])
    assert held_out is not None
    check(held_out, images[4:].transpose(0, 3, 1, 2), [1, 0])
    assert meta.bad == []
    assert not list(tmp_path.glob("*.part"))


def test_what_is_no_plain_file_of_a_tar_is_listed(tmp_path: Path) -> None:
    source = make_tar(
        tmp_path / "a.tar", {"1.png": PNG, "../../2.png": PNG, "._1.png": PNG, "notes": b"text"}
    )
    with tarfile.open(source, "a") as archive:
        for name, kind in (
            ("link.png", tarfile.SYMTYPE),
            ("pipe.png", tarfile.FIFOTYPE),
            ("x", tarfile.DIRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    opened = open_source(source, SourceOptions(format="tar"), tmp_path / "work")
    assert sorted(opened.name(k) for k in range(len(opened))) == ["1.png", "2.png"]
    assert sorted(name for name, _ in opened.skipped) == ["link.png", "pipe.png"]


def test_a_name_that_is_twice_in_a_tar_is_listed(tmp_path: Path) -> None:
    """As when a file is appended to an archive that has it: the last one counts."""
    source, new = (
        make_tar(tmp_path / "a.tar", {"1.png": b"old", "2.png": PNG}),
        encoded(pixels(1, 4, 4, 3, seed=1)[0]),
    )
    make_tar(source, {"1.png": new}, "a")
    opened = open_source(source, SourceOptions(), tmp_path / "work")
    assert (len(opened), [name for name, _ in opened.skipped]) == (2, ["1.png"])
    assert list(opened.read(opened.task(0, 1))) == [new]


def test_damaged_and_swollen_tars_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_tar(tmp_path / "a.tar", {f"{k}.png": PNG for k in range(3)}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(PNG)])
    (tmp_path / "cut.tar.xz").write_bytes(lzma.compress(data)[:-40])
    long = tarfile.TarInfo("x")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 36
    (tmp_path / "long.tar").write_bytes(data[:1024] + long.tobuf() + bytes(10240))
    packed = bytearray(gzip.compress(data))
    packed[40:60] = bytes(20)
    (tmp_path / "bad.tar.gz").write_bytes(packed)
    for name in ("cut.tar", "cut.tar.xz", "long.tar", "bad.tar.gz"):
        assert str(tmp_path / name) in refused(tmp_path / name, format="tar")
    monkeypatch.setattr(tars, "ALWAYS", 1 << 20)
    (tmp_path / "bomb.tar.xz").write_bytes(lzma.compress(data + bytes(1 << 25)))
    assert "grows too large" in refused(tmp_path / "bomb.tar.xz", format="tar")


def test_imagenets_own_archives(tmp_path: Path) -> None:
    """A tar of tars of synsets, a flat tar of validation images, and the devkit with their labels."""
    savemat = pytest.importorskip("scipy.io").savemat
    images = iter(pixels(6, 6, 6, 3))
    synsets = {name: make_tar(tmp_path / name, {f"{name}_{k}.JPEG": encoded(next(images)) for k in range(2)})
               for name in ("n02", "n01")}  # fmt: skip
    folder = tmp_path / "imagenet"
    inner = {f"{name}.tar": path.read_bytes() for name, path in synsets.items()}
    make_tar(folder / "ILSVRC2012_img_train.tar", inner)
    val = {f"ILSVRC2012_val_{k:08d}.JPEG": encoded(next(images)) for k in (1, 2)}
    make_tar(folder / "ILSVRC2012_img_val.tar", val)
    table = np.array([(1, "n02"), (2, "n01")], [("ILSVRC2012_ID", "i4"), ("WNID", "O")])
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": table})
    devkit = {"ILSVRC2012_devkit_t12/data/meta.mat": buffer.getvalue()}
    devkit["ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"] = b"2\n1\n"
    make_tar(folder / "ILSVRC2012_devkit_t12.tar.gz", devkit, "w:gz")
    _, train, held_out = prepared(folder)
    planar = pixels(6, 6, 6, 3).transpose(0, 3, 1, 2)
    assert train.class_names == ("n01", "n02")
    check(train, planar[[2, 3, 0, 1]], [0, 0, 1, 1])
    assert held_out is not None
    check(held_out, planar[4:], [0, 1])


def test_kaggles_imagenet(tmp_path: Path) -> None:
    root = lay(
        tmp_path / "set",
        "ILSVRC/Data/CLS-LOC/train/n02/n02_1.JPEG",
        "ILSVRC/Data/CLS-LOC/train/n01/n01_1.JPEG",
    )
    data = root / "ILSVRC" / "Data" / "CLS-LOC"
    lay(
        data,
        "val/ILSVRC2012_val_00000001.JPEG",
        "val/ILSVRC2012_val_00000002.JPEG",
        "test/ILSVRC2012_test_1.JPEG",
    )
    lay(root, "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml", content=b"<annotation/>")
    solution = b"ImageId,PredictionString\nILSVRC2012_val_00000002,n01 1 2 3 4 n01 5 6 7 8\n"
    solution += b"ILSVRC2012_val_00000001,n02 85 1 499 272\n"
    assert "none" not in found(root)[1]
    assert open_source(root, SourceOptions(), tmp_path / "w").own_held_out is None  # no labels yet
    lay(root, "LOC_val_solution.csv", content=solution)
    expected = {"ILSVRC2012_val_00000001.JPEG": "n02", "ILSVRC2012_val_00000002.JPEG": "n01"}
    train, held_out, left = found(root)
    assert {Path(name).name: word for name, word in held_out.items()} == expected
    assert (sorted(train.values()), left) == (["n01", "n02"], [])
    (root / "LOC_val_solution.csv").rename(tmp_path / "LOC_val_solution.csv")
    held_out = found(data, labels=str(tmp_path / "LOC_val_solution.csv"))[1]
    assert {Path(name).name: word for name, word in held_out.items()} == expected


def test_tiny_imagenet(tmp_path: Path) -> None:
    root = lay(tmp_path / "tiny", "train/n2/images/n2_0.JPEG", "train/n1/images/n1_0.JPEG")
    lay(
        root,
        "val/images/val_0.JPEG",
        "val/images/val_1.JPEG",
        "val/images/val_2.JPEG",
        "test/images/test_0.JPEG",
    )
    lay(
        root, "val/val_annotations.txt", content=b"val_0.JPEG\tn2\t0\t0\t63\t63\nval_1.JPEG\tn1\t1\t2\t3\t4\n"
    )
    assert found(root) == (
        {"train/n1/images/n1_0.JPEG": "n1", "train/n2/images/n2_0.JPEG": "n2"},
        {"val/images/val_0.JPEG": "n2", "val/images/val_1.JPEG": "n1"},
        ["val/images/val_2.JPEG"],
    )
    assert found(root / "val")[0] == {"images/val_0.JPEG": "n2", "images/val_1.JPEG": "n1"}


def test_the_real_tiny_imagenet(shared: Path, tmp_path: Path) -> None:
    source = shared / "data" / "tiny-imagenet-20.tar.xz"
    opened = open_source(source, SourceOptions(), tmp_path / "work")
    own = opened.own_held_out
    assert own is not None
    assert (len(opened), int(own.sum()), len(opened.class_names), opened.skipped) == (11_000, 1_000, 20, [])
    assert isinstance(opened, tars.TarImages)
    with tarfile.open(opened.tars[0]) as archive:
        annotations = archive.extractfile("tiny-imagenet-200/val/val_annotations.txt")
        assert annotations is not None
        labels = dict(line.split("\t")[:2] for line in annotations.read().decode().splitlines())
        wnids = archive.extractfile("tiny-imagenet-200/wnids.txt")
        assert wnids is not None
        assert opened.class_names == tuple(sorted(wnids.read().decode().split()))
        k = int(np.flatnonzero(own)[123])
        member = archive.extractfile(opened.name(k))
        assert member is not None
        assert list(opened.read(opened.task(k, k + 1))) == [member.read()]
    for k in np.flatnonzero(own):
        assert opened.class_names[opened.labels[k]] == labels[Path(opened.name(int(k))).name]


# --- WebDataset --------------------------------------------------------------------------------------------


def web_shard(path: Path, images: Any, labels: Any, first: int = 0) -> Path:
    files = {}
    for k, (image, label) in enumerate(zip(images, labels, strict=True), first):
        files |= {f"{k:06d}.jpg": encoded(image), f"{k:06d}.cls": str(label).encode(), f"{k:06d}.json": b"{}"}
    return make_tar(path, files)


def test_web_dataset_shards(tmp_path: Path) -> None:
    images, labels = pixels(9, 6, 5, 3), [2, 10, 0, 2, 2, 0, 10, 0, 2]
    root = tmp_path / "shards"
    web_shard(root / "imagenet-train-000000.tar", images[:3], labels[:3])
    web_shard(root / "imagenet-train-000001.tar", images[3:6], labels[3:6])  # the keys of the first again
    web_shard(root / "imagenet-val-000000.tar", images[6:], labels[6:])
    assert detect(root) == "tar"
    meta, train, held_out = prepared(root)
    index = {0: 0, 2: 1, 10: 2}
    assert train.class_names == ("0", "2", "10")
    planar = images.transpose(0, 3, 1, 2)
    check(train, planar[:6], [index[k] for k in labels[:6]])
    assert held_out is not None
    check(held_out, planar[6:], [index[k] for k in labels[6:]])
    assert meta.bad == []
    assert any("0, 2, 10 are classes 0 … 2" in note for note in meta.notes)
    for k in range(2):
        web_shard(
            tmp_path / "plain" / f"shard-{k:06d}.tar", images[3 * k : 3 * k + 3], labels[3 * k : 3 * k + 3]
        )
    check(prepared(tmp_path / "plain")[1], planar[:6], [index[k] for k in labels[:6]])
    web_shard(tmp_path / "one.tar", images[:2], ["dog", "cat"])
    check(prepared(tmp_path / "one.tar")[1], planar[:2], [1, 0])


def test_halves_of_samples_are_listed(tmp_path: Path) -> None:
    files = {
        "a/1.jpg": PNG,
        "a/1.cls": b"3",
        "a/1.seg.png": PNG,
        "a/2.jpg": PNG,
        "a/3.cls": b"4",
        "a/5.v1.cls": b"9",
    }
    train, _, left = found(make_tar(tmp_path / "a.tar", files))
    assert (train, left) == ({"a/1.jpg": "3"}, ["a/1.seg.png", "a/2.jpg", "a/3.cls"])
    assert "is empty" in refused(make_tar(tmp_path / "b.tar", {"1.jpg": PNG, "1.cls": b" \n"}))
    assert "KEY.cls" in refused(make_tar(tmp_path / "c.tar", {"1.jpg": PNG, "2.cls": b"1"}))


def test_several_tars_are_folders_or_shards(tmp_path: Path) -> None:
    for name in ("n01440764", "n01443537"):
        make_tar(tmp_path / "synsets" / f"{name}.tar", {f"{name}_1.JPEG": PNG})
    assert set(found(tmp_path / "synsets")[0].values()) == {"n01440764", "n01443537"}
    for k in range(2):
        make_tar(tmp_path / "shards" / f"images-{k:03d}.tar", {f"{k}.png": PNG})
    assert found(tmp_path / "shards")[0] == {"0.png": "all", "1.png": "all"}
    make_tar(tmp_path / "shards" / "images-002.tar", {"1.png": PNG})
    assert "has a member 1.png, as images-001.tar has" in refused(tmp_path / "shards")


def test_the_result_of_a_tar_is_that_of_the_folder_to_the_byte(tmp_path: Path) -> None:
    names = [f"{folder}/{k}.png" for k, folder in enumerate("abcab")]
    images = pixels(5, 7, 7, 3)
    source = make_tar(tmp_path / "a.tar", {n: encoded(i) for n, i in zip(names, images, strict=True)})
    for name, image in zip(names, images, strict=True):
        lay(tmp_path / "a", name, content=encoded(image))
    prepare(source, tmp_path / "one", PrepareOptions(workers=2))
    prepare(tmp_path / "a", tmp_path / "two", PrepareOptions())
    for name in ("train/images.npy", "train/labels.npy"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
