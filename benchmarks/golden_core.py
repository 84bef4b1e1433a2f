"""The method's own parts, for golden.py: estimators, objectives, times and schedules, samplers."""

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import consistune as package
from consistune.core import estimators as E
from consistune.core import noise as N
from consistune.core import objectives as O
from consistune.core import sampling as S
from consistune.core import times as T
from consistune.core.guidance import Guided
from consistune.core.posterior.mean import Reference, dequantise
from consistune.core.rng import ImageNoise
from consistune.core.solve import Method, solve
from consistune.core.types import Batch, Times
from consistune.nn import store
from consistune.nn.card import ModelCard

SCHEDULES = {"edm": N.EDM(), "vp": N.VP(), "flow": N.RectifiedFlow(), "trig": N.Trigonometric()}
RATIOS = (0.003, 0.05, 0.4, 2.0, 20.0, 75.0)
METHODS: tuple[Method, ...] = ("euler", "heun")
Found = Iterator[tuple[str, Any]]
"""Names, and what is summed under them."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stirred(model: Any, seed: int = 0) -> Any:
    """The model with something added to every weight: fresh networks have many that are 0."""
    for k, (_, value) in enumerate(sorted(model.named_parameters())):
        value.data += 0.1 * drawn(*value.shape, seed=1000 * seed + k)
    return model.eval()


def answered(model: Any) -> list[Any]:
    """The weights and an answer in float32."""
    labels = torch.eye(model.num_classes)[:2] if model.num_classes > 1 else None
    with torch.no_grad():
        answer = model.eval()(drawn(2, *model.image_shape), torch.tensor([0.3, 4.0]), labels)
    return [model.state_dict(), answer]


def small(objective: str = "consistency", seed: int = 0, classes: int = 3, **meta: Any) -> Any:
    """A small class-conditional model for 1×8×8 images."""
    network = {"kind": "mlp", "image_shape": [1, 8, 8], "num_classes": classes, "width": 16, "blocks": 2}
    torch.manual_seed(seed)
    model = store.build({"network": network | {"dropout": 0.1}, "precond": {"kind": "edm"}})
    model.card = ModelCard.from_json({"objective": objective, **meta})
    return stirred(model, seed)


PIXELS = torch.randint(256, (24, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABELS = torch.arange(24) % 3
ROWS = torch.tensor([0, 5, 9, 14, 20, 22])


def batch_of(grouped: bool = True, conditions: Tensor | None = None) -> tuple[Reference, Batch]:
    """References, and a batch of six of their images with its rows among them."""
    reference = Reference.grouped(PIXELS, LABELS) if grouped else Reference.ungrouped(PIXELS)
    labels = LABELS[torch.argsort(LABELS, stable=True)][ROWS]
    if conditions is not None:
        reference = Reference(PIXELS, (0, len(PIXELS)), conditions)
    told = labels if grouped else None if conditions is None else conditions[ROWS]
    return reference, Batch(dequantise(reference.images[ROWS]), told, ROWS)


def chosen(schedule: N.NoiseSchedule) -> dict[str, tuple[Any, Batch]]:
    """Every estimator with a batch that fits it."""
    conditions = drawn(24, 2, seed=3)
    (classes, batch), (whole, plain), (near, told) = batch_of(), batch_of(False), batch_of(False, conditions)
    identity, teacher = E.ScoreIdentity(schedule, classes), N.Rescheduled(small("diffusion", 7), schedule)
    return {
        "one-sample": (E.OneSample(), batch),
        "teacher": (E.Teacher(teacher), batch),
        "guided teacher": (E.Teacher(teacher, 1.7), batch),
        "batch": (E.ScoreIdentity(schedule), batch),
        "batch without labels": (E.ScoreIdentity(schedule), plain),
        "class": (identity, batch),
        "all": (E.ScoreIdentity(schedule, whole), plain),
        "mirrored": (replace(identity, mirrored=True), batch),
        "4 random": (replace(identity, size=4), batch),
        "4 random, mirrored": (replace(identity, size=4, mirrored=True), batch),
        "1 random": (replace(identity, size=1), batch),
        "kernel": (E.ScoreIdentity(schedule, near, bandwidth=0.5), told),
        "nearest": (E.ScoreIdentity(schedule, near, nearest=5), told),
        "kernel, batch": (E.ScoreIdentity(schedule, bandwidth=0.5), told),
        "blend": (E.Blend(schedule, identity, 0.25), batch),
    }


def transitions(schedule: N.NoiseSchedule, ratio: float) -> Times:
    t = torch.full((6,), ratio) * torch.linspace(0.9, 1.05, 6)
    r = t * torch.tensor([0.0, 0.5, 0.9, 0.95, 0.99, 0.8])
    t, r = schedule.time_at(t), schedule.time_at(r)
    return Times(t, r, torch.zeros_like(t))


def estimates() -> Found:
    part = slice(2, 5)
    for word, schedule in SCHEDULES.items():
        for name, (estimator, batch) in chosen(schedule).items():
            found = []
            for ratio in RATIOS:
                times = transitions(schedule, ratio)
                x_t = schedule.diffuse(batch.x_0, drawn(6, 1, 8, 8, seed=1), times.t)
                bound = estimator.bind(batch, times, torch.Generator().manual_seed(5))
                found.append(bound.clean(x_t, times.t, batch))
                found.append(bound.rows(part).clean(x_t[part], times.t[part], batch.rows(part)))
                for steps, method in itertools.product((1, 4), METHODS):
                    if not bound.local:
                        found.append(solve(schedule, bound, x_t, times.t, times.r, batch, steps, method))
            yield f"{name}, {word}", found


def learned(objective: Any, batch: Batch, progress: int = 3000) -> Any:
    """Losses and gradients of a small network that drops out."""
    model, target = small(seed=1).train(), small(seed=2).train()
    denoisers = [N.rescheduled(network, objective.schedule) for network in (model, target)]
    torch.manual_seed(9)
    losses = objective(*denoisers, batch, progress, torch.Generator().manual_seed(4))
    losses.mean().backward()
    return losses, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def objectives() -> Found:
    distances: dict[str, O.Distance] = {
        "l2": O.Huber(), "huber": O.Huber(0.06), "huber/√d": O.Huber(0.0, 0.00054),
        "squared": O.SquaredL2(), "l1": O.L1(),
    }  # fmt: skip
    weights: dict[str, O.Weight] = {
        "1/gap": O.InverseGap(), "snr+": O.SNRPlus(), "1/c_out": O.InverseCOut(), "1": O.Uniform(),
    }  # fmt: skip
    for word, schedule in SCHEDULES.items():
        pairs: Any = T.LogNormalPairs(T.SigmoidGap(every_images=1000), schedule=schedule)
        kinds = chosen(schedule)
        identity, batch = kinds["class"]
        for name, distance in distances.items():
            each = [O.Consistency(schedule, pairs, identity, distance, weight) for weight in weights.values()]
            yield f"{name}, every weight, {word}", [learned(loss, batch) for loss in each]
        cases: dict[str, tuple[Any, Batch]] = {}
        for name, weight in weights.items():
            if name != "1/gap":
                cases[f"denoising, {name}"] = (O.Denoising(schedule, weight=weight), batch)
        cases["denoising, log-variance"] = (O.Denoising(schedule, log_variance=lambda t: t.log1p()), batch)
        for name, (estimator, own) in kinds.items():
            if own.condition is None or not own.condition.is_floating_point():
                cases[f"estimator {name}"] = (O.Consistency(schedule, pairs, estimator), own)
        for kind, steps, method in itertools.product(("teacher", "class"), (1, 4), METHODS):
            solver = O.Consistency(schedule, pairs, kinds[kind][0], steps=steps, method=method)
            cases[f"{kind}, {steps} steps, {method}"] = (solver, batch)
        for phases in (2, 4):
            phased = T.Phased(pairs, T.karras_edges(phases, schedule))
            cases[f"{phases} phases"] = (O.Consistency(schedule, phased, identity), batch)
        for name, (objective, own) in cases.items():
            yield f"{name}, {word}", learned(objective, own)


def clocks() -> Found:
    for law in (T.LogNormal(), T.LogNormal(-1.2, 1.2), T.LogNormal(-0.4, 1.0, 0.002, 80.0)):
        yield (
            f"law {law.mean}, {law.std}, {law.low}, {law.high}",
            law.sample(500, torch.Generator().manual_seed(1)),
        )
    ratios = torch.tensor(RATIOS)
    gaps: list[Any] = [T.SigmoidGap(), T.SigmoidGap(4.0, 1000, 3, 8.0, 2.0, 0.95), T.ConstGap(),
                       T.ConstGap(every_images=5000, stages_per_halving=float("inf"))]  # fmt: skip
    points = (0, 999, 7000, 4_000_000)
    names = ("sigmoid", "sigmoid, 3 stages", "const", "const, continuous")
    for name, gap in zip(names, gaps, strict=True):
        yield f"gap {name}", [gap.lower(ratios, k) for k in points]
    sizes: list[Any] = [T.FixedGrid(18), T.GrowingGrid(8000), T.DoublingGrid(8000)]
    yield "grid sizes", [size.points(k) for size in sizes for k in points]
    yield "target decay", [sizes[1].target_decay(k) for k in points]
    yield "karras grid", [T.karras_grid(n) for n in (2, 18, 150)]
    for word, schedule in SCHEDULES.items():
        pairs: list[Any] = [T.LogNormalPairs(gap, low=low, high=high, schedule=schedule)
                 for gap, (low, high) in itertools.product(gaps, ((None, None), (0.002, 80.0)))]  # fmt: skip
        pairs += [T.GridPairs(size, std=std, schedule=schedule) for size in sizes for std in (None, 2.0)]
        edges = T.karras_edges(4, schedule)
        everything = [*pairs, *(T.Phased(pair, edges) for pair in pairs)]
        found = [vars(p.sample(64, k, torch.Generator().manual_seed(2))) for p in everything for k in points]
        yield f"pairs and edges, {word}", [found, edges]
        t, s = schedule.time_at(ratios), schedule.time_at(ratios * 0.7)
        x, e = drawn(6, 3), drawn(6, 3, seed=1)
        yield f"schedule {word}", [
            t, schedule.alpha(t), schedule.sigma(t), schedule.noise_to_signal(t), schedule.diffuse(x, e, t),
            schedule.renoise(x, e, s, t), schedule.step(x, e, t, s), schedule.noise_hat(x, e, t),
            *(N.convert(x, t, schedule, other) for other in SCHEDULES.values()),
        ]  # fmt: skip


def samplers() -> Found:
    kinds: dict[str, Any] = {
        "heun": S.ODE(5), "euler": S.ODE(5, order=1), "one euler step": S.ODE(1),
        "churn": S.ODE(6, churn=10, churn_low=0.05, churn_high=50, churn_noise=1.003),
        "one step": S.Multistep(), "two steps": S.Multistep((0.821,)),
        "three steps, boundary": S.Multistep((5.0, 0.5), 60.0, 0.002),
        "phases": S.PhasedSteps((0.5, 5.0)), "phases, η": S.PhasedSteps((0.5, 5.0), (0.3, 0.9), 70.0),
        "phases skipped": S.PhasedSteps((0.5, 5.0), 0.0),
    }  # fmt: skip
    model, worse = small(seed=3), small(seed=4)
    denoisers: dict[str, Any] = {"plain": model, "unlabelled": Guided(model, None, 2.0),
                 "worse": Guided(model, worse, 1.5, 0.1, 30.0)}  # fmt: skip
    options: dict[str, Any] = {
        "plain": {},
        "unlabelled": {"guidance": 2.0},
        "worse": {"guidance": 1.5, "worse": worse, "guidance_interval": (0.1, 30.0)},
    }
    labels = torch.arange(5) % 3
    for (name, sampler), (guide, denoiser) in itertools.product(kinds.items(), denoisers.items()):
        with torch.no_grad():
            found = sampler(denoiser, N.EDM(), ImageNoise(range(5)), (1, 8, 8), labels)
        yield f"{name}, {guide}, direct", found
        yield f"{name}, {guide}, sample", package.sample(model, range(5), sampler=sampler, **options[guide])
    for word, schedule in SCHEDULES.items():
        within = N.Rescheduled(model, schedule)
        for name in ("heun", "one step", "two steps"):
            with torch.no_grad():
                found = kinds[name](within, schedule, ImageNoise(range(5)), (1, 8, 8), labels)
            yield f"{name}, {word}", found
    subjects: dict[str, Any] = {
        "diffusion": small("diffusion"),
        "plain": small(mid_t=[0.8]),
        "phased": small(edges=[1.0]),
    }
    for (name, subject), steps in itertools.product(subjects.items(), (None, 1, 2)):
        yield f"default of {name}, {steps}", package.sample(subject, range(7), steps, eta=0.7, batch=3)
    yield "given mid_t and label", package.sample(subjects["plain"], [3, 8], 3, 1, mid_t=(4.0, 0.3))
