"""Small runs for the pretended card: a step of every kind."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from consistune.bench.workload import pictures
from consistune.core.estimators import Blend, OneSample, ScoreIdentity, Teacher
from consistune.core.noise import EDM, VP, RectifiedFlow
from consistune.core.objectives import (
    AdaptiveHuber,
    AdaptivePower,
    Consistency,
    ContinuousConsistency,
    Denoising,
    ImprovedMeanVelocity,
    MeanVelocity,
    Mixture,
    Trajectory,
    Truncated,
)
from consistune.core.posterior.bank import make_bank
from consistune.core.times import (
    ConstGap,
    FixedGrid,
    GridPairs,
    LogNormalPairs,
    Phased,
    TruncatedPairs,
)
from consistune.data.images import ImageSet
from consistune.nn import store
from consistune.nn.precond import Preconditioned
from consistune.training.augment import augment_batch
from consistune.training.ema import FixedAverage
from consistune.training.loop import Trainer
from consistune.training.optim import Optimizer
from consistune.training.options import TrainOptions

SHAPE, CLASSES = (1, 8, 8), 4
UNET = {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {"kind": "mlp", "width": 16, "blocks": 1},
    "dit": {"kind": "dit", "patch": 2, "width": 12, "blocks": 1},
    "patch-unet": {"kind": "patch-unet", "patch": 2, "model_channels": 16, "num_blocks": 1},
    "song": {"kind": "song", "model_channels": 8, **UNET},
    "adm": {"kind": "adm", "model_channels": 32, **UNET},
    "edm2": {"kind": "edm2", "model_channels": 8, "channels_per_head": 8, **UNET},
}
PAIRS = LogNormalPairs(gap=ConstGap(q=2))


def model(kind: str, classes: int = 0, **network: Any) -> Preconditioned:
    precond = {"kind": "edm2", "logvar_channels": 0} if kind == "edm2" else {"kind": "edm"}
    options = {**NETWORKS[kind], "image_shape": SHAPE, "num_classes": classes, "dropout": 0.1, **network}
    return store.build({"network": options, "precond": precond})


def images(count: int = 80) -> ImageSet:
    return ImageSet.of("pictures", pictures(count, SHAPE), torch.arange(count) % CLASSES, tuple("abcd"))


def consistency(estimator: Any, **options: Any) -> Consistency:
    return Consistency(EDM(), PAIRS, estimator, **options)


def identity(where: Any = "device", by_class: bool = False, **options: Any) -> ScoreIdentity:
    return ScoreIdentity(EDM(), make_bank(images().reference(by_class), "cuda", where), **options)


def frozen(kind: str, classes: int = 0) -> Preconditioned:
    return model(kind, classes).to("cuda").eval().requires_grad_(False)


def teacher() -> Teacher:
    return Teacher(frozen("song", CLASSES), guidance=1.5)


def trainer(objective: Any, kind: str = "mlp", classes: int = 0, **options: Any) -> Trainer:
    network, target = options.pop("network", {}), options.pop("target", None)
    device = options.pop("device", "cuda")
    settings = TrainOptions(**{"images": 1 << 40, "batch": 16, **options})
    extra = {} if target is None else {"target": target}
    return Trainer(
        model(kind, classes, **network), objective, images(), Optimizer(), settings, device, **extra
    )


def two_times(objective: MeanVelocity, kind: str = "mlp", **options: Any) -> Trainer:
    return trainer(objective, kind, network={"second_time": True}, **options)


Made = Callable[[], Trainer]
DERIVATIVES: dict[str, Callable[..., Trainer]] = {
    "continuous": partial(trainer, ContinuousConsistency(EDM(), OneSample())),
    "mean velocity": partial(two_times, MeanVelocity(RectifiedFlow(), OneSample())),
    "improved mean velocity": partial(two_times, ImprovedMeanVelocity(RectifiedFlow(), OneSample())),
}
"""The objectives that take the forward derivative of a network."""
STEPS: dict[str, Made] = {
    **{kind: partial(lambda k: trainer(consistency(OneSample()), k), kind) for kind in NETWORKS},
    "labels, hidden and flipped": lambda: trainer(
        consistency(OneSample()), classes=CLASSES, label_dropout=0.2, x_flip=True
    ),
    "all references": lambda: trainer(consistency(identity())),
    "references of the class": lambda: trainer(consistency(identity(by_class=True)), classes=CLASSES),
    "references on the host": lambda: trainer(consistency(identity("host"))),
    "references of the batch": lambda: trainer(consistency(ScoreIdentity(EDM()))),
    "references of the batch's class": lambda: trainer(consistency(ScoreIdentity(EDM())), classes=CLASSES),
    "16 references": lambda: trainer(consistency(identity(size=16))),
    "16 references of the class": lambda: trainer(
        consistency(identity(by_class=True, size=16)), classes=CLASSES
    ),
    "mirrored": lambda: trainer(consistency(identity(mirrored=True)), x_flip=True),
    "blend": lambda: trainer(consistency(Blend(EDM(), identity()))),
    "Heun, two steps": lambda: trainer(consistency(identity(), steps=2, method="heun")),
    "teacher and average": lambda: trainer(
        consistency(teacher()), classes=CLASSES, target=FixedAverage(0.95)
    ),
    "phased": lambda: trainer(Consistency(EDM(), Phased(PAIRS, (0.5, 2.0)), OneSample())),
    "grid": lambda: trainer(Consistency(EDM(), GridPairs(FixedGrid(18)), OneSample())),
    "cut law": lambda: trainer(
        Consistency(EDM(), LogNormalPairs(ConstGap(q=2), low=0.002, high=80.0), OneSample())
    ),
    "variance preserving": lambda: trainer(
        Consistency(VP(), LogNormalPairs(ConstGap(q=2), schedule=VP()), OneSample())
    ),
    **{name: partial(made, "mlp") for name, made in DERIVATIVES.items()},
    "radius of the own scatter": lambda: trainer(consistency(identity(), distance=AdaptiveHuber("own"))),
    "radius of the posterior": lambda: trainer(consistency(identity(), distance=AdaptiveHuber("posterior"))),
    "radius that is measured": lambda: trainer(consistency(identity(), distance=AdaptiveHuber("measured"))),
    "continuous, by differences": lambda: trainer(
        ContinuousConsistency(EDM(), OneSample(), difference=1e-3)
    ),
    "mean velocity, scale of the own scatter": lambda: two_times(
        MeanVelocity(RectifiedFlow(), OneSample(), scale=AdaptivePower(scatter="own"))
    ),
    "continuous, all references": lambda: trainer(ContinuousConsistency(EDM(), identity())),
    "mean velocity, guided": lambda: two_times(
        MeanVelocity(RectifiedFlow(), OneSample(), guidance=Mixture(2.0)), classes=CLASSES, label_dropout=0.2
    ),
    "truncated": lambda: trainer(
        Truncated(EDM(), pairs=TruncatedPairs(ConstGap(q=2)), estimator=OneSample(), below=frozen("mlp"))
    ),
    "trajectory": lambda: trainer(Trajectory(EDM(), Teacher(frozen("mlp")), steps=4)),
    "denoising": lambda: trainer(Denoising(EDM())),
    "augmented": lambda: trainer(
        Denoising(EDM(), augment=partial(augment_batch, probability=0.2)), "song", network={"augment_dim": 9}
    ),
    "all options": lambda: trainer(
        consistency(OneSample()), "song", microbatch=5, clip_norm=1e-3, checkpointing=True,
        channels_last=True, precision="bf16",
    ),
}  # fmt: skip
