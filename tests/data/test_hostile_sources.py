"""Sources made to do harm: refused, or the image listed, at once, and nothing is written elsewhere."""

import io
import json
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from consistune.data.prepare.run import PrepareOptions, prepare
from consistune.data.prepare.survey import ImageOptions, survey
from consistune.data.sources.base import SourceOptions
from consistune.errors import UserError
from tests.support.hostile import CALLS
from tests.support.makers import cifar_files, class_folders, edm_zip, encoded, pixels, tar
from tests.support.memory import at_most


def refused(source: Path, options: PrepareOptions = PrepareOptions()) -> str:
    """The line; within 10 s of the processor and 100 MiB; nothing is left beside what was there."""
    before = set(source.parent.parent.rglob("*"))
    began = time.process_time()
    with at_most(100), pytest.raises(UserError) as caught:
        prepare(source, source.parent / "dest", options)
    assert time.process_time() - began < 10
    assert set(source.parent.parent.rglob("*")) == before
    assert str(caught.value).isprintable()
    return str(caught.value)


# --- archives --------------------------------------------------------------------------------------------


def tar_with(path: Path, change: Callable[[tarfile.TarInfo], None], name: str = "data_batch_1") -> Path:
    """CIFAR's archive in which one member is something else."""
    files = cifar_files(pixels(6, 3, 32, 32), [0] * 6, 2, 2)
    with tarfile.open(path, "w:gz") as archive:
        for key, data in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{key}")
            info.size = len(data)
            if key == name:
                change(info)
            archive.addfile(info, io.BytesIO(data) if info.isfile() else None)
    return path


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_no_file_is_refused(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "work").mkdir()

    def change(info: tarfile.TarInfo) -> None:
        info.type, info.size, info.linkname = kind, 0, "/etc/passwd"

    line = refused(tar_with(tmp_path / "work" / "cifar.tar.gz", change))
    assert "not a plain file" in line or "cannot be unpacked" in line


def test_a_tar_member_is_never_written_outside_the_work_folder(tmp_path: Path) -> None:
    """A tar member is written under its last name only, and only if it is one of CIFAR's."""
    (tmp_path / "work").mkdir()
    files = cifar_files(pixels(6, 3, 32, 32), [0] * 6, 2, 2)
    source = tmp_path / "work" / "cifar.tar.gz"
    with tarfile.open(source, "w:gz") as archive:
        for name, data in {**files, "../../escaped": b"x", "../../../test_batch.py": b"x"}.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    prepare(source, tmp_path / "work" / "dest", PrepareOptions())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["work"]
    assert sorted(p.name for p in (tmp_path / "work").iterdir()) == ["cifar.tar.gz", "dest"]


def test_a_member_of_many_gigabytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    source = tmp_path / "work" / "cifar.tar.gz"
    info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    info.size = 1 << 40
    source.write_bytes(zlib.compress(info.tobuf(), wbits=31))
    assert "larger files than CIFAR" in refused(source)


@pytest.mark.parametrize("label", ["posix.system", "builtins.eval", "numpy.load", "builtins.getattr"])
def test_a_batch_that_names_a_function_is_refused(tmp_path: Path, label: str) -> None:
    (tmp_path / "work").mkdir()
    files = cifar_files(pixels(6, 3, 32, 32), [0] * 6, 2, 2)
    files["data_batch_2"] = CALLS.get(label, CALLS["builtins.open"])
    assert "is not allowed at byte" in refused(tar(tmp_path / "work" / "cifar.tar.gz", files))


def test_names_in_a_zip_are_not_used_as_paths(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    source = tmp_path / "work" / "a.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for name in ("../../escaped.png", "/absolute.png", "a/../b.png"):
            archive.writestr(name, encoded(pixels(1, 4, 4)[0]))
    meta = prepare(source, tmp_path / "work" / "dest", PrepareOptions())
    assert meta.parts["train"].images == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["work"]
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr("dataset.json", json.dumps({"labels": [["../../escaped.png", 0]]}))
    with pytest.raises(UserError, match="not a name below"):
        prepare(source, tmp_path / "work" / "labelled", PrepareOptions())


def test_members_of_another_size_than_announced_are_listed(tmp_path: Path) -> None:
    source = edm_zip(tmp_path / "a.zip", [*pixels(4, 64, 64), bytes(1 << 20)], [0] * 5)
    data = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        infos = [info for info in archive.infolist() if info.filename.endswith(".png")]
        start = archive.start_dir
    entries = [data.index(info.filename.encode(), start) - 46 for info in infos]
    struct.pack_into("<I", data, entries[0] + 24, 1 << 30)  # says it is 1 GB
    struct.pack_into("<I", data, entries[1] + 24, 100)  # is larger than it says
    struct.pack_into("<I", data, entries[2] + 42, 7)  # begins elsewhere
    struct.pack_into("<I", data, entries[4] + 24, 1000)  # a bomb that says it is small
    source.write_bytes(data)
    with at_most(20):
        meta = prepare(source, tmp_path / "dest", PrepareOptions())
    assert meta.parts["train"].images == 1
    reasons = {entry["image"][-5]: entry["reason"] for entry in meta.bad}
    assert "more than" in reasons["0"]
    assert "damaged" in reasons["1"]
    assert "does not begin" in reasons["2"]
    assert "damaged" in reasons["4"]


def test_encrypted_and_oddly_compressed_members_are_listed(tmp_path: Path) -> None:
    source = tmp_path / "a.zip"
    with zipfile.ZipFile(source, "w") as archive:
        for name, kind in (
            ("a.png", zipfile.ZIP_STORED),
            ("b.png", zipfile.ZIP_LZMA),
            ("c.png", zipfile.ZIP_BZIP2),
        ):
            archive.writestr(name, encoded(pixels(1, 4, 4)[0]), kind)
    meta = prepare(source, tmp_path / "dest", PrepareOptions())
    assert [entry["image"] for entry in meta.bad] == ["b.png", "c.png"]


# --- arrays ----------------------------------------------------------------------------------------------


def npy(shape: str, descr: str = "'|u1'", pad: int = 0) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode() + b" " * pad + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header)) + header + bytes(12)


HEADERS = {
    "a shape beyond the file": npy("(1099511627776, 4, 4, 3)"),
    "a shape beyond 64 bits": npy(f"({'9' * 30}, 4, 4, 3)"),
    "a negative shape": npy("(-1, 2, 2, 3)"),
    "two negative sides": npy("(-2, -2, 1, 3)"),
    "an open bracket": npy("("),
    "a giant header": npy("(1, 2, 2, 3)", pad=50_000_000),
    "objects": npy("(1, 2, 2, 3)", "'|O'"),
    "a nested header": npy("(" * 5000 + ")" * 5000),
    "a header that calls": npy("__import__('os').system('true')"),
    "no header": b"\x93NUMPY\x02\x00\xff\xff\xff\xff",
    "nothing": b"",
}


@pytest.mark.parametrize("label", HEADERS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_malformed_npy_is_refused(tmp_path: Path, label: str, packed: bool) -> None:
    (tmp_path / "work").mkdir()
    source = tmp_path / "work" / ("a.npz" if packed else "a.npy")
    if packed:
        with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", HEADERS[label])
    else:
        source.write_bytes(HEADERS[label])
    refused(source)


def test_a_number_with_labels_is_no_set_of_images(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    np.savez(tmp_path / "work" / "a.npz", images=np.uint8(3), labels=np.arange(1))
    refused(tmp_path / "work" / "a.npz")


def test_a_label_array_that_is_too_large_is_refused(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    source = tmp_path / "work" / "a.npz"
    np.savez_compressed(source, images=pixels(2, 4, 4), labels=np.zeros(1 << 25, np.int64))
    assert "more than" in refused(source)


# --- tables ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "table",
    [
        "[" * 200_000,
        '{"labels": [["a.png", 1e400]]}',
        '{"labels": [["a.png", 99999999999999999999]]}',
        '{"labels": [["a.png", true]]}',
        '{"labels": [["a.png", 0], ["a.png", 1]]}',
        '{"labels": [[["a.png"], 0]]}',
        '{"labels": [["a.png", 0]], "group": "x"}',
        '{"labels": [["a.png", "x"]], "class_names": ["y"]}',
        '{"labels": 7}',
        "null",
        "\x00\xff",
    ],
)
def test_malformed_tables_are_refused(tmp_path: Path, table: str) -> None:
    folder = class_folders(tmp_path / "outer", pixels(1, 4, 4), ["set"]) / "set"
    (folder / "0000.png").rename(folder / "a.png")
    (folder / "dataset.json").write_text(table, encoding="latin-1")
    refused(folder)


def test_a_bomb_among_images_is_listed(tmp_path: Path) -> None:
    from tests.data.prepare.test_transform import giant

    source = class_folders(tmp_path / "set", [*pixels(3, 8, 8, 3), giant()], ["a"] * 4)
    began = time.process_time()
    meta = prepare(source, tmp_path / "dest", PrepareOptions(SourceOptions(), ImageOptions(size=8)))
    assert time.process_time() - began < 25
    assert ["decompression bomb" in entry["reason"] for entry in meta.bad] == [True]


def test_a_look_at_large_images_holds_one_at_a_time(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for number, image in enumerate(pixels(12, 600, 600, 3)):
            archive.writestr(f"{number}.png", encoded(image))
    assert (tmp_path / "set.zip").stat().st_size > 10 << 20
    with at_most(4):
        seen = survey(tmp_path / "set.zip")
    assert (seen.channels, seen.side) == (3, 600)
