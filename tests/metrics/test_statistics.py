"""References: kept by what they were made of, read from others' files, refused where they do not fit."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from consistune.errors import UserError
from consistune.metrics import statistics
from consistune.metrics.features import Extractor, load_extractor
from consistune.metrics.moments import moments
from consistune.metrics.statistics import build_reference, random_rows, read_reference, read_samples
from tests.support.inception import write_inception

IMAGES = torch.randint(0, 256, (40, 3, 10, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Counting:
    """A network that says how many images it saw."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return images.float().flatten(1)[:, :6]


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Extractor, Counting]:
    (tmp_path / "six.py").write_text("def six(x): return x\nsix.protocol = {'name': 'fd-six', 'dim': 6}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "six", raising=False)
    made, network = load_extractor("six:six"), Counting()
    return Extractor(made.protocol, network, made.digest, made.device), network


def test_a_reference_is_made_once_and_again_for_other_data_or_flips(counting, tmp_path: Path) -> None:
    extractor, network = counting
    first = build_reference("set", IMAGES, extractor, cache=tmp_path)
    assert network.seen == 40
    mean, covariance = moments(IMAGES.float().flatten(1)[:, :6] / 255)
    assert torch.allclose(first.mean, mean)
    assert torch.allclose(first.covariance, covariance)
    again = build_reference("set", IMAGES, extractor, cache=tmp_path)
    assert network.seen == 40
    assert torch.equal(again.covariance, first.covariance)
    assert torch.allclose(again.features[slice(3, 5)], IMAGES.float().flatten(1)[3:5, :6] / 255)
    changed = IMAGES.clone()
    changed[7, 0, 0, 0] ^= 1
    build_reference("set", changed, extractor, cache=tmp_path)
    assert network.seen == 80
    both = build_reference("set", IMAGES, extractor, mirrored=True, cache=tmp_path)
    assert network.seen == 160
    assert both.count == 80
    assert not list(tmp_path.glob("reference/.partial*"))


def test_the_rows_that_are_kept_are_spread_over_the_set_in_order_and_always_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert torch.equal(random_rows(5), torch.arange(5))
    monkeypatch.setattr(statistics, "KEPT_ROWS", 10)
    rows = random_rows(1000)
    assert torch.equal(random_rows(1000), rows)
    assert len(rows) == 10
    assert torch.equal(rows, rows.unique())
    assert int(rows.min()) < 500 < int(rows.max())


def test_a_broken_off_pass_leaves_nothing(counting, tmp_path: Path) -> None:
    extractor, _ = counting

    def fails(images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("power cut")

    broken = Extractor(extractor.protocol, fails, extractor.digest, extractor.device)
    with pytest.raises(RuntimeError, match="power cut"):
        build_reference("set", IMAGES, broken, cache=tmp_path)
    assert list((tmp_path / "reference").iterdir()) == []


def test_our_own_file_refuses_what_it_was_not_made_for(counting, tmp_path: Path) -> None:
    extractor, _ = counting
    build_reference("set", IMAGES, extractor, cache=tmp_path).save(tmp_path / "own.npz")
    own = read_reference(tmp_path / "own.npz", extractor)
    own.check(extractor, (3, 10, 10), False)
    biased = own.in_convention("biased")
    biased.save(tmp_path / "biased.npz")
    expected = np.cov((IMAGES.float().flatten(1)[:, :6] / 255).double().numpy().T, bias=True)
    assert np.allclose(read_reference(tmp_path / "biased.npz", extractor).covariance, expected)
    assert torch.allclose(biased.in_convention("unbiased").covariance, own.covariance)
    with pytest.raises(UserError, match="images"):
        own.check(extractor, (3, 12, 12), False)
    with pytest.raises(UserError, match="without mirror"):
        own.check(extractor, (3, 10, 10), True)
    other = Extractor(extractor.protocol, extractor.network, "another", extractor.device)
    with pytest.raises(UserError, match="was made with"):
        own.check(other, (3, 10, 10), False)


def test_published_files_are_read_and_checked(tmp_path: Path) -> None:
    fid = load_extractor(str(write_inception(tmp_path)[0]))
    mean, covariance = np.arange(2048.0), np.diag(np.arange(2048.0) + 1)
    np.savez(tmp_path / "edm.npz", mu=mean, sigma=covariance)
    stored = {"num_images": 50, "fid": {"mu": mean, "sigma": covariance}}
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps(stored))
    for name, count in (("edm.npz", None), ("edm2.pkl", 50)):
        found = read_reference(tmp_path / name, fid)
        assert np.array_equal(found.mean, mean)
        assert np.array_equal(found.covariance, covariance)
        assert (found.count, found.identity) == (count, None)
        found.check(fid, (3, 64, 64), False)
    np.savez(tmp_path / "small.npz", mu=mean[:9], sigma=covariance[:9, :9])
    with pytest.raises(UserError, match="9 features, fid has 2048"):
        read_reference(tmp_path / "small.npz", fid).check(fid, (3, 64, 64), False)
    (tmp_path / "dino.pkl").write_bytes(pickle.dumps({"fd_dinov2": {"mu": mean}}))
    with pytest.raises(UserError, match="no statistics 'fid', only fd_dinov2"):
        read_reference(tmp_path / "dino.pkl", fid)


def test_a_hostile_pickle_is_not_executed(tmp_path: Path) -> None:
    fid = load_extractor(str(write_inception(tmp_path)[0]))

    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "boom",)

    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps({"fid": Bomb()}))
    with pytest.raises(UserError):
        read_reference(tmp_path / "bomb.pkl", fid)
    assert not (tmp_path / "boom").exists()


def test_every_damaged_byte_of_a_packed_file_is_answered_in_a_line(counting, tmp_path: Path) -> None:
    extractor, _ = counting
    path = tmp_path / "packed.npz"
    mean = np.linspace(0, 1, 6)
    np.savez_compressed(
        path,
        mu=mean,
        sigma=np.eye(6),
        arr_0=IMAGES.div(64, rounding_mode="floor").permute(0, 2, 3, 1).numpy(),
    )
    sound, refused = path.read_bytes(), 0
    for place in range(0, len(sound), 7):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x41]) + sound[place + 1 :])
        for read in (lambda: read_reference(path, extractor), lambda: read_samples(path)):
            try:
                read()
            except UserError:
                refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    ("arrays", "complaint"),
    [
        ({"mu": np.zeros(3)}, "no mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((3, 4))}, "sigma"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
        ({"mu": np.full(3, 1j), "sigma": np.eye(3)}, "no numbers"),
        ({"mu": np.array("x"), "sigma": np.eye(3)}, "no numbers"),
        ({"mu": np.zeros(3), "sigma": -np.eye(3)}, "no covariance"),
        ({"mu": np.zeros(3), "sigma": np.triu(np.ones((3, 3)))}, "no covariance"),
        *(
            ({"mu": np.zeros(3), "sigma": np.eye(3), "consistune": np.array(facts)}, "makes no sense")
            for facts in ("[]", "{", '{"count": "many"}', '{"count": 0}', '{"image_shape": 3}', "[" * 100_000)
        ),
    ],
)
def test_broken_statistics_are_refused(arrays, complaint: str, counting, tmp_path: Path) -> None:
    np.savez(tmp_path / "broken.npz", **arrays)
    with pytest.raises(UserError, match=complaint):
        read_reference(tmp_path / "broken.npz", counting[0])


@pytest.mark.parametrize("header", ["(", "{'descr'", "(" * 9_000, "{'shape': (1" + "0" * 17 + ",)}"])
def test_an_array_whose_header_makes_no_sense_is_refused(header: str, counting, tmp_path: Path) -> None:
    path = tmp_path / "odd.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("arr_0", "mu"):
            magic = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
            archive.writestr(f"{name}.npy", magic + header.encode())
    for read in (lambda: read_reference(path, counting[0]), lambda: read_samples(path)):
        with pytest.raises(UserError):
            read()


def test_a_missing_file_a_single_array_and_no_images_are_refused(counting, tmp_path: Path) -> None:
    np.save(tmp_path / "mu.npy", np.zeros(3))
    for name in ("mu.npy", "missing.npz", "missing.pkl"):
        with pytest.raises(UserError, match="cannot be read"):
            read_reference(tmp_path / name, counting[0])
    (tmp_path / "mu.npy").rename(tmp_path / "mu.npz")
    np.savez(tmp_path / "empty.npz", arr_0=np.zeros((0, 8, 8, 3), np.uint8))
    for name, complaint in (("mu.npz", "single array"), ("empty.npz", "no images")):
        with pytest.raises(UserError, match=complaint):
            read_samples(tmp_path / name)


def test_a_sample_batch_is_read_as_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "batch.npz", arr_0=IMAGES.permute(0, 2, 3, 1).numpy(), arr_1=np.arange(40))
    images, labels = read_samples(tmp_path / "batch.npz")
    assert torch.equal(images, IMAGES)
    assert labels is not None
    assert labels.tolist() == list(range(40))
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((2, 4, 4, 3)))
    with pytest.raises(UserError, match="not uint8"):
        read_samples(tmp_path / "float.npz")


@pytest.mark.parametrize("name", ["arr_1", "labels", "label"])
def test_labels_that_do_not_fit_the_samples_are_refused(name: str, tmp_path: Path) -> None:
    pixels = IMAGES.permute(0, 2, 3, 1).numpy()
    wrong = [np.arange(39), np.arange(41), np.zeros((40, 1), int), np.zeros(40), np.full(40, -1), np.int64(0)]
    wrong += [np.full(40, 1 << 40), np.full(40, (1 << 63) + 5, np.uint64)]
    for labels in wrong:
        np.savez(tmp_path / "batch.npz", arr_0=pixels, **{name: labels})
        with pytest.raises(UserError, match="not 40 labels from 0"):
            read_samples(tmp_path / "batch.npz")
    np.savez(tmp_path / "batch.npz", arr_0=pixels, **{name: np.arange(40, dtype=">i8")})
    labels = read_samples(tmp_path / "batch.npz")[1]
    assert labels is not None
    assert labels.tolist() == list(range(40))
