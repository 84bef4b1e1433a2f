"""`consistune bench`: the short form of all measurements, as lines of a table. Correctness comes first."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from consistune.bench import card, memory, sampling, startup, training
from consistune.bench.timing import alternate, ratio
from consistune.bench.workload import Workload, pictures
from consistune.core.estimators import ScoreIdentity
from consistune.core.noise import EDM
from consistune.core.posterior.mean import Reference

NOT_RUN = "not run: no CUDA device"


@dataclass(frozen=True)
class Line:
    """One line of the table: what, how much, against what."""

    section: str
    what: str
    value: str
    against: str = ""


@dataclass(frozen=True)
class Settings:
    """How much is run: the defaults are meant for a few minutes on two cores.

    Attributes:
        preset, batch: of the training step.
        references: of the score identity's target.
        batches: of sampling.
        memory_batch, startup_rounds: None: memory, or start-up, is not measured.
    """

    preset: str = "edm-cifar10-ddpmpp"
    batch: int = 2
    rounds: int = 2
    references: int = 5_000
    batches: tuple[int, ...] = (1, 4)
    memory_batch: int | None = 8
    startup_rounds: int | None = 2


def lines(settings: Settings = Settings()) -> Iterator[Line]:
    """The table, a line as soon as it is known."""
    sections: tuple[Callable[[Settings], Iterator[Line]], ...] = (
        _steps, _target, _sampling, _memory, _startup, _card,
    )  # fmt: skip
    for section in sections:
        yield from section(settings)


def as_json(table: list[Line]) -> list[dict[str, Any]]:
    return [asdict(line) for line in table]


def in_columns(table: list[Line]) -> str:
    """The table as text: columns as wide as their longest entry, a section's name where it begins."""
    rows = [[line.section, line.what, line.value, line.against] for line in table]
    for row, before in zip(rows[:0:-1], rows[-2::-1], strict=True):
        row[0] = "" if row[0] == before[0] else row[0]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _steps(settings: Settings) -> Iterator[Line]:
    workload = Workload(settings.preset, settings.batch)
    for word in training.ROOM:
        errors = training.checked(workload, word)  # type: ignore[arg-type]
        error = f"{errors.gradient:.1e}"
        yield Line("training step", f"{word}: error of the gradient", error, "plain fp32 step")
    runs = {word: training.our_step(workload, word) for word in training.ROOM}  # type: ignore[arg-type]
    times = alternate(runs | {"plain": training.plain_step(workload)}, settings.rounds)
    for word, timing in times.items():
        faster = "" if word == "plain" else f"{ratio(times['plain'], timing)} times as fast as plain"
        speed = f"{settings.batch / timing.median:.2f} images/s"
        yield Line("training step", f"{word}, batch {settings.batch}", speed, faster)


def _target(settings: Settings) -> Iterator[Line]:
    workload = Workload(settings.preset, settings.batch)
    reference = Reference.ungrouped(pictures(settings.references, workload.image_shape))
    runs = {
        "one sample": training.our_step(workload, "bf16"),
        "score identity": training.our_step(workload, "bf16", estimator=ScoreIdentity(EDM(), reference)),
    }
    times = alternate(runs, settings.rounds)
    yield Line(
        "target",
        f"a step with {settings.references:,} references, batch {settings.batch}",
        f"{ratio(times['score identity'], times['one sample'])}",
        "times a step's time with none (ECT)",
    )


def _sampling(settings: Settings) -> Iterator[Line]:
    model = Workload(settings.preset, 1).model().eval()
    forms = {"fp32": sampling.ours(model, "fp32"), "bf16": sampling.ours(model, "bf16")}
    extras: dict[str, sampling.Draw] = {}
    if find_spec("onnx") and find_spec("onnxruntime"):
        forms["ONNX Runtime"] = sampling.onnx_runtime(model)
    else:
        yield Line("sampling", "ONNX Runtime", "not run: pip install 'consistune[onnx]'")
    if find_spec("diffusers"):
        extras[sampling.PEER] = sampling.peer(model.image_shape[-1])[0]
    else:
        yield Line("sampling", sampling.PEER, "not run: pip install 'consistune[bench]'")
    for name, off in sampling.checked(forms).items():
        yield Line("sampling", f"{name}: distance of its images", f"{off:.0f} levels of 255", "fp32")
    for batch in settings.batches:
        times = sampling.timed({**forms, **extras}, batch, settings.rounds)
        for name, timing in times.items():
            against = ""
            if extras and name not in extras:
                against = f"{ratio(times[sampling.PEER], timing)} times as fast as {sampling.PEER}"
            value = f"{batch / timing.median:.2f} images/s, {timing.median * 1000:.0f} ms"
            yield Line("sampling", f"{name}, batch {batch}", value, against)


def _memory(settings: Settings) -> Iterator[Line]:
    if settings.memory_batch is None:
        return
    peaks = memory.against_plain(Workload(settings.preset, settings.memory_batch), ("bf16",))
    for name, size in peaks["bytes"].items():
        share = peaks["share of the plain loop's"].get(name)
        against = "" if share is None else f"{share:.2f} of the plain loop's"
        yield Line("memory", f"{name}, batch {settings.memory_batch}", f"{size / 2**30:.2f} GiB", against)


def _startup(settings: Settings) -> Iterator[Line]:
    if settings.startup_rounds is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        times = startup.measured(Path(folder), settings.startup_rounds)["times"]
    for name, timing in times.items():
        yield Line("start-up", name, f"{timing['median']:.2f} s")


def _card(settings: Settings) -> Iterator[Line]:
    for item, measure in card.ITEMS.items():
        if not torch.cuda.is_available():
            yield Line("card", item, NOT_RUN)
            continue
        for what, value, against in measure(Workload(settings.preset, card.BATCH), settings.rounds):
            yield Line("card", what, value, against)
