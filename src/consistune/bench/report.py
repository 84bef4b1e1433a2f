"""`consistune bench`: the short form of all measurements, as lines of a table."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from consistune.bench import card, sampling, startup, training
from consistune.bench.card import Rows
from consistune.bench.timing import alternate, ratio, times_as_fast
from consistune.bench.workload import Workload, pictures
from consistune.core.estimators import ScoreIdentity
from consistune.core.noise import EDM
from consistune.core.posterior.mean import Reference

NOT_RUN = "not run: no CUDA device"


@dataclass(frozen=True)
class Line:
    """One line of the table: what is measured, its value, and what it is compared with."""

    section: str
    what: str
    value: str
    against: str = ""


@dataclass(frozen=True)
class Settings:
    """How much is measured; the defaults take a few minutes on two cores.

    Attributes:
        preset, batch: the network and the batch of the training step.
        references: the number of references of the score identity.
        batches: the batch sizes of sampling.
        memory_batch, startup_rounds: None leaves out memory, or start-up.
    """

    preset: str = "edm-cifar10-ddpmpp"
    batch: int = 2
    rounds: int = 2
    references: int = 5_000
    batches: tuple[int, ...] = (1, 4)
    memory_batch: int | None = 8
    startup_rounds: int | None = 2


def lines(settings: Settings = Settings()) -> Iterator[Line]:
    """The table's lines, each as soon as it is measured."""
    for section, rows in SECTIONS.items():
        yield from (Line(section, *row) for row in rows(settings))


def in_columns(table: list[Line]) -> str:
    """The table as text with aligned columns; a section's name stands on its first line alone."""
    rows = [[line.section, line.what, line.value, line.against] for line in table]
    for row, before in zip(rows[:0:-1], rows[-2::-1], strict=True):
        row[0] = "" if row[0] == before[0] else row[0]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _training_step(settings: Settings) -> Rows:
    errors, times = training.against_plain(Workload(settings.preset, settings.batch), settings.rounds)
    for word, error in errors.items():
        yield f"{word}: error of the gradient", f"{error.gradient:.1e}", "plain fp32 step"
    for name, timing in times.items():
        speed = f"{settings.batch / timing.median:.2f} images/s"
        yield f"{name}, batch {settings.batch}", speed, times_as_fast(times, name, "plain")


def _target(settings: Settings) -> Rows:
    workload = Workload(settings.preset, settings.batch)
    reference = Reference.ungrouped(pictures(settings.references, workload.image_shape))
    runs = {
        "one sample": training.our_step(workload, "bf16"),
        "score identity": training.our_step(workload, "bf16", estimator=ScoreIdentity(EDM(), reference)),
    }
    times = alternate(runs, settings.rounds)
    what = f"a step with {settings.references:,} references, batch {settings.batch}"
    yield (
        what,
        str(ratio(times["score identity"], times["one sample"])),
        "times a step's time with none (ECT)",
    )


def _sampling(settings: Settings) -> Rows:
    model = Workload(settings.preset, 1).model().eval()
    forms = {"fp32": sampling.ours(model, "fp32"), "bf16": sampling.ours(model, "bf16")}
    peers: dict[str, sampling.DrawImages] = {}
    if find_spec("onnx") and find_spec("onnxruntime"):
        forms["ONNX Runtime"] = sampling.onnx_runtime(model)
    else:
        yield "ONNX Runtime", 'not run: pip install "consistune[onnx]"', ""
    if find_spec("diffusers"):
        peers[sampling.PEER] = sampling.peer(model.image_shape[-1])[0]
    else:
        yield sampling.PEER, 'not run: pip install "consistune[bench]"', ""
    for name, levels in sampling.checked(forms).items():
        yield f"{name}: distance of its images", f"{levels:.0f} levels of 255", "fp32"
    for batch in settings.batches:
        times = sampling.timed({**forms, **peers}, batch, settings.rounds)
        for name, timing in times.items():
            value = f"{batch / timing.median:.2f} images/s, {timing.median * 1000:.0f} ms"
            against = times_as_fast(times, name, sampling.PEER) if peers else ""
            yield f"{name}, batch {batch}", value, against


def _memory(settings: Settings) -> Rows:
    if settings.memory_batch is None:
        return
    peaks = training.peaks(Workload(settings.preset, settings.memory_batch), ("bf16",))
    for name, size in peaks["bytes"].items():
        share = peaks["share of the plain loop's"].get(name)
        against = "" if share is None else f"{share:.2f} of the plain loop's"
        yield f"{name}, batch {settings.memory_batch}", f"{size / 2**30:.2f} GiB", against


def _startup(settings: Settings) -> Rows:
    if settings.startup_rounds is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        times = startup.timed(startup.commands(Path(folder)), settings.startup_rounds)
    for name, timing in times.items():
        yield name, f"{timing.median:.2f} s", ""


def _card(settings: Settings) -> Rows:
    for item, measure in card.ITEMS.items():
        if torch.cuda.is_available():
            yield from measure(Workload(settings.preset, card.BATCH), settings.rounds)
        else:
            yield item, NOT_RUN, ""


SECTIONS: dict[str, Callable[[Settings], Rows]] = {
    "training step": _training_step,
    "target": _target,
    "sampling": _sampling,
    "memory": _memory,
    "start-up": _startup,
    "card": _card,
}
"""The table's sections in order, and what measures each."""
