"""The bank gives the same numbers wherever it lies, and holds no more than it says."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.multiprocessing import spawn

from consistune.core.estimators import ScoreIdentity
from consistune.core.noise import EDM, VP
from consistune.core.posterior import bank
from consistune.core.posterior.bank import HostReference, ShardedReference, make_bank, prefetched
from consistune.core.posterior.integers import fast_bytes
from consistune.core.posterior.mean import Reference, posterior
from consistune.core.types import Batch, Times
from tests.core.posterior.test_mean import noisy, pixels, relative
from tests.support.exact import posterior_exact

SIZES = (30, 0, 116, 7, 47)
"""Images a class: one class is 58 % of the set, one is empty."""


@pytest.fixture
def mapped(tmp_path: Path) -> Reference:
    """200 images in a file, mapped, in five classes."""
    np.save(tmp_path / "images.npy", pixels(sum(SIZES)).numpy())
    images = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))
    return Reference(images, (0, *np.cumsum(SIZES).tolist()))


def queries(reference: Reference, n: int = 12, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images at all noise levels, and their classes."""
    x_t, _ = noisy(reference.images, 1.0, n=n, seed=seed)
    t = torch.logspace(-2.7, 1.9, n)
    x_t = x_t * t.view(-1, 1, 1, 1)
    group = torch.tensor([0, 2, 2, 3, 4, 2]).repeat(n)[:n]
    return x_t, t, group


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_bank_on_the_host_answers_as_one_on_the_device_bit_for_bit(mapped, mirrored) -> None:
    host, device = make_bank(mapped, "cpu", "host"), make_bank(mapped, "cpu", "device")
    assert isinstance(host, HostReference)
    x_t, t, group = queries(mapped)
    for block in (1, 16, 2048):
        a = posterior(x_t, t, EDM(), host, group, mirrored=mirrored, block=block)
        b = posterior(x_t, t, EDM(), device, group, mirrored=mirrored, block=block)
        assert torch.equal(a.mean, b.mean)
        assert torch.equal(a.effective_size, b.effective_size)


def test_random_references_come_from_the_host_too(mapped) -> None:
    x_t, t, group = queries(mapped)
    batch = Batch(x_t, group, torch.tensor([mapped.offsets[int(c)] + 1 for c in group]))
    answers = []
    for where in ("host", "device"):
        identity = ScoreIdentity(EDM(), make_bank(mapped, "cpu", where), size=5)
        bound = identity.bind(batch, Times(t, t / 2, 0 * t), torch.Generator().manual_seed(0))
        answers.append(bound.clean(x_t, t, batch))
    assert torch.equal(*answers)


def test_blocks_come_in_order_and_a_failure_on_the_way_is_raised() -> None:
    images = pixels(40)
    spans = [(0, 9), (31, 40), (4, 5), (0, 40)]
    came = [rows.clone() for rows in prefetched(images, spans, torch.device("cpu"))]
    assert all(torch.equal(rows, images[a:b]) for rows, (a, b) in zip(came, spans, strict=True))
    assert list(prefetched(images, [], torch.device("cpu"))) == []
    with pytest.raises(RuntimeError, match="size"):
        list(prefetched(images, [(0, 8), (38, 46)], torch.device("cpu")))


@pytest.mark.parametrize(
    ("free", "processes", "expected"),
    [(100, 1, "device"), (99, 1, "host"), (99, 2, "sharded"), (49, 2, "host"), (100, 8, "device")],
)
def test_auto_takes_half_of_the_free_memory_at_the_most(free, processes, expected) -> None:
    assert bank._fitting_kind(50, processes, free) == expected


def test_auto_asks_the_device(mapped, monkeypatch) -> None:
    monkeypatch.setattr(bank, "free_memory", lambda _: mapped.images.nbytes)
    assert isinstance(make_bank(mapped, "cpu"), HostReference)
    monkeypatch.undo()
    assert type(make_bank(mapped, "cpu")) is Reference


def test_one_process_has_nothing_to_share(mapped) -> None:
    with pytest.raises(ValueError, match="several processes"):
        make_bank(mapped, "cpu", "sharded")


# Several processes ----------------------------------------------------------------------------------------

PROCESSES, EACH = 2, 6


def cases(mapped: Reference) -> dict[str, tuple[Reference, dict]]:
    """name → reference and what is asked of it."""
    images = mapped.images.clone()
    even = Reference(images, (0, 40, 100, 130, 170, 200))  # the cut at 100 is a class's end
    small = Reference(images, tuple(range(0, 201, 2)))
    return {
        "classes cut between": (even, {}),
        "classes cut between, mirrored": (even, {"mirrored": True}),
        "one large class cut": (Reference(images, mapped.offsets), {}),
        "one group": (Reference.ungrouped(images), {}),
        "one group, mirrored": (Reference.ungrouped(images), {"mirrored": True}),
        "floating point": (Reference(images.double() / 127.5 - 1, even.offsets), {}),
        "another process": (even, {"schedule": VP()}),
        "small classes of one process": (small, {}),
        "small classes of both": (small, {"spread": 20, "mirrored": True}),
    }


def ask(case: tuple[Reference, dict], reference: Reference, rows: slice) -> Tensor:
    x_t, t, group = queries(case[0], PROCESSES * EACH)
    schedule = case[1].get("schedule", EDM())
    t, group = schedule.time_at(t), group * case[1].get("spread", 1)
    labels = None if len(reference.offsets) == 2 else group[rows]
    mirrored = "mirrored" in case[1]
    return posterior(x_t[rows], t[rows], schedule, reference, labels, mirrored=mirrored).mean


def _one_process(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES
    )
    mapped = Reference(torch.load(f"{folder}/images.pt"), (0, *np.cumsum(SIZES).tolist()))
    found = {}
    for name, case in cases(mapped).items():
        reference = make_bank(case[0], "cpu", "sharded")
        assert isinstance(reference, ShardedReference)
        assert len(reference.images) == 100
        for form, walks in (("", True), (", as on a card", False)):
            ShardedReference.walks = walks  # type: ignore[misc, assignment]
            found[name + form] = ask(case, reference, slice(rank * EACH, (rank + 1) * EACH))
    torch.save(found, f"{folder}/found-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def from_two_processes(tmp_path_factory) -> tuple[Reference, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("processes")
    images = pixels(sum(SIZES))
    torch.save(images, folder / "images.pt")
    spawn(_one_process, (str(folder),), nprocs=PROCESSES)
    parts = [torch.load(folder / f"found-{rank}.pt") for rank in range(PROCESSES)]
    mapped = Reference(images, (0, *np.cumsum(SIZES).tolist()))
    return mapped, {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


NAMES = ["classes cut between", "classes cut between, mirrored", "one large class cut", "one group",
         "one group, mirrored", "floating point", "another process", "small classes of one process",
         "small classes of both"]  # fmt: skip


@pytest.mark.parametrize("form", ["", ", as on a card"])
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_with_half_each_answer_as_one_with_all(name, form, from_two_processes) -> None:
    mapped, found = from_two_processes
    case = cases(mapped)[name]
    alone = ask(case, case[0], slice(None))
    if name.startswith("classes cut between") and not form and fast_bytes(torch.device("cpu")):
        assert torch.equal(found[name], alone)
    torch.testing.assert_close(found[name + form], alone, rtol=1e-5, atol=3e-7)


def test_a_copy_of_a_reference_answers_alike(mapped) -> None:
    x_t, t, group = queries(mapped)
    expected = posterior(x_t, t, EDM(), mapped, group).mean
    assert torch.equal(posterior(x_t, t, EDM(), replace(mapped, scale=1.0), group).mean, expected)


def test_a_sharded_bank_refuses_what_it_cannot_do() -> None:
    share = ShardedReference(pixels(4), (0, 4), global_offsets=(0, 8), cuts=(0, 4, 8))
    with pytest.raises(ValueError, match="every image"):
        share.take(torch.tensor([0]))
    with pytest.raises(ValueError, match="weighted"):
        posterior(torch.zeros(1, 3, 8, 8), torch.ones(1), EDM(), share, log_prior=lambda *_: torch.zeros(1))


# Memory ---------------------------------------------------------------------------------------------------

UNDER_A_LIMIT = """
import resource, sys, numpy as np, torch
torch.set_num_threads(1)
from consistune.core.noise import EDM
from consistune.core.posterior.mean import Reference, posterior
from consistune.core.posterior.bank import make_bank
images = torch.from_numpy(np.load(sys.argv[1], mmap_mode="r+"))
mapped = Reference(images, (0, len(images) // 2, len(images)))
x_t, group = torch.randn(2, 3, 32, 32), torch.tensor([0, 1])
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 200 * 2**20,) * 2)
posterior(x_t, torch.ones(2), EDM(), make_bank(mapped, "cpu", "host"), group)
print("answered")
images.clone()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit on a process's own memory is Linux's")
def test_a_set_larger_than_memory_may_be_is_answered_from_the_host(tmp_path: Path) -> None:
    """400 MB of images under a limit of 200 MB, which a copy of the set would break."""
    path = tmp_path / "images.npy"
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(136_000, 3, 32, 32)).flush()
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, str(path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "answered\n", done.stderr
    assert "alloc" in done.stderr


# On a card ------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("mirrored", [False, True])
def test_banks_for_a_card_answer_alike_and_exactly(mapped, mirrored) -> None:
    x_t, t, group = queries(mapped)
    found = {}
    for where in ("host", "device"):
        reference = make_bank(mapped, "cuda", where)
        for block in (16, 2048):
            found[where, block] = posterior(
                x_t.cuda(), t.cuda(), EDM(), reference, group.cuda(), mirrored=mirrored, block=block
            ).mean.cpu()
    for block in (16, 2048):
        torch.testing.assert_close(found["host", block], found["device", block], rtol=0, atol=1e-5)
    for c in (0, 2, 3, 4):
        mine, images = group == c, mapped.images[mapped.offsets[c] : mapped.offsets[c + 1]]
        images = torch.cat([images, images.flip(-1)]) if mirrored else images
        exact = posterior_exact(x_t[mine], t[mine], EDM(), images)
        for mean in found.values():
            assert relative(mean[mine], exact) < 1e-5
