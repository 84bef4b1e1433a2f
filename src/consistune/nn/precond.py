"""Preconditioning: the scalars around a raw network F that make it a denoiser D (EDM, 2206.00364, eq. 7).

D(x; σ) = c_skip·x + c_out·F(c_in·x; c_noise)
"""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from consistune.core.types import Condition, Conditioning, expand
from consistune.errors import UserError
from consistune.nn.card import ModelCard
from consistune.nn.layers import set_product_dtype
from consistune.system.files import check_writable

Precision = Literal["fp32", "bf16", "fp16"]
"""The precision of the network's computation. Parameters, embedding and scalings stay fp32.

fp32: the precision of the parameters, which may be float64. fp16: all features of the images, as in official
models. bf16: convolutions and attention; sums and norms stay fp32. So the error of bf16's 8 bits is at most
0.8 % of the output; with sums and norms in bf16 it would be 1.3 %.
"""


LOWEST, HIGHEST = 0.002, 80.0
"""EDM's smallest and largest noise level (2206.00364, §5)."""


class Scalings(NamedTuple):
    """c_skip, c_out, c_in, c_noise, each [B]."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class Preconditioned(nn.Module):
    """A raw network with its preconditioning: the Denoiser that is trained, stored and sampled.

    The network is called as network(x, c_noise [B], one_hot [B, num_classes] or None), and with
    augment_labels [B, augment_dim] where some are given, and second=[B] where the network has a `second_time`
    (a two-time network D(x; σ, s), `core.flow`). It has the attributes `image_shape` (C, H, W),
    `num_classes` (0: unconditional) and `options` (its constructor's arguments, from which a folder rebuilds
    it). A network that also computes in bf16 and fp16, in the dtype of its first argument, lists its
    `precisions`; a network with augmentation labels has their width as `augment_dim`.

    Attributes:
        kind: the word for the preconditioning in config.json and recipes.
        precision: the precision of the network's computation; may be set.
        sigma_min, sigma_max: the range of noise levels for which the model is meant.
        card: what else is known of the model (how it is sampled, its training); stored with it.
    """

    kind: ClassVar[str]
    network_name: ClassVar[str] = "model"
    """The attribute that holds the network: official weights have it as the prefix of their names."""
    sigma_min: float = 0.0
    sigma_max: float = math.inf

    def __init__(self, network: nn.Module, precision: Precision = "fp32") -> None:
        super().__init__()
        setattr(self, self.network_name, network)
        self.precision = precision
        self.card = ModelCard()

    @property
    def network(self) -> nn.Module:
        return getattr(self, self.network_name)

    def save(self, folder: str | Path) -> Path:
        """Write the model's folder, as `nn.store.save`. Raises UserError where nothing can be written."""
        check_writable(Path(folder), "folder", folder=True)
        # By name, because those files import this one.
        path: Path = import_module("consistune.nn.store").save(self, folder)
        return path

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the model's folder to the Hugging Face Hub, as `nn.hub.push`; returns its address."""
        url: str = import_module("consistune.nn.hub").push(self, repo_id, **options)
        return url

    @staticmethod
    def from_pretrained(name: str, revision: str | None = None, **options: Any) -> "Preconditioned":
        """The model of "user/name" on the Hugging Face Hub, or of a folder or a name, as `models.load`.

        "user/name" is the Hub's unless there is such a path here, or a folder `user`.
        """
        if Path(name).exists():
            if revision is not None:
                raise UserError("a folder has no revisions", "revision", "leave it out")
        elif revision is not None:
            name = f"hf://{name.removeprefix('hf://')}@{revision}"
        elif name.count("/") == 1 and not Path(name).parent.is_dir():
            name = f"hf://{name}"
        model: Preconditioned = import_module("consistune.models").load(name, **options)
        return model

    @property
    def options(self) -> dict[str, object]:
        """The constructor's arguments beside the network, as JSON has them; each is an attribute too."""
        # Of __init__, because a sharded model's class has a __new__ with other arguments.
        names = list(inspect.signature(type(self).__init__).parameters)[2:]
        values = {name: getattr(self, name) for name in names}
        return {name: None if value == math.inf else value for name, value in values.items()}

    @property
    def precision(self) -> Precision:
        return self._precision

    @precision.setter
    def precision(self, value: Precision) -> None:
        known = getattr(self.network, "precisions", ("fp32",))
        if value not in known:
            raise ValueError(
                f"precision {value!r}: {type(self.network).__name__} computes in {', '.join(known)}"
            )
        self._precision = value
        set_product_dtype(self.network, torch.bfloat16 if value == "bf16" else None)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the scalings and the output: fp32, or float64 for a model that was converted to it."""
        return torch.promote_types(next(self.network.parameters()).dtype, torch.float32)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.network.image_shape  # type: ignore[return-value]

    @property
    def two_times(self) -> bool:
        """Whether the network takes the noise level where a jump ends."""
        return getattr(self.network, "second_time", False)

    @property
    def start(self) -> float:
        """The noise level from which the model is sampled: 80, or `sigma_max` where no more is known.

        A model of few steps that was trained here learned all levels up to 80, whatever its form is for.
        """
        card = self.card
        trained_here = card.start_from is not None or card.data is not None or card.data_sha256 is not None
        return HIGHEST if trained_here and not card.is_diffusion else min(HIGHEST, self.sigma_max)

    @property
    def num_classes(self) -> int:
        return self.network.num_classes  # type: ignore[return-value]

    def scalings(self, sigma: Tensor) -> Scalings:
        raise NotImplementedError

    def gap(self, sigma: Tensor, s: Tensor) -> Tensor:
        """ln((σ² + b²)/(s² + b²))/8 [B], b = 0.002: what a two-time network is given of s (our choice).

        It is 0 at s = σ, the difference of c_noise well above b, and finite at s = 0.
        """
        growth = torch.log((sigma.square() + LOWEST**2) / (s.square() + LOWEST**2))
        return growth / 8 * getattr(self, "noise_scale", 1.0)

    def one_hot(self, condition: Tensor | None, batch: int, like: Tensor) -> Tensor | None:
        """Class labels [B] or class weights [B, num_classes] → [B, num_classes]; None → zeros ("no class").

        Raises ValueError for labels outside 0 … num_classes − 1 (on a card they give NaN), for a wrong width,
        and for a condition given to an unconditional model.
        """
        if self.num_classes == 0:
            if condition is not None:
                raise ValueError("a condition was given, but the model is unconditional")
            return None
        if condition is None:
            return like.new_zeros(batch, self.num_classes)
        weights = condition.is_floating_point()
        expected = [batch, self.num_classes] if weights else [batch]
        if list(condition.shape) != expected:
            raise ValueError(f"condition has shape {list(condition.shape)}, expected {expected}")
        if weights:
            return condition.to(like)
        # A compiled graph cannot look at values, and a card would have to be waited for: NaN answers there.
        if not torch.compiler.is_compiling() and condition.device.type == "cpu" and condition.numel():
            low, high = (int(value) for value in condition.aminmax())
            if low < 0 or high >= self.num_classes:
                raise ValueError(f"class labels must lie in 0 … {self.num_classes - 1}")
        classes = torch.arange(self.num_classes, device=condition.device)
        one_hot = (condition[:, None] == classes).to(like)
        if condition.device.type == "cpu":
            return one_hot
        return one_hot.masked_fill(((condition < 0) | (condition >= self.num_classes))[:, None], torch.nan)

    def augmentation(self, labels: Tensor | None, batch: int, like: Tensor) -> Tensor | None:
        """Augmentation labels [B, augment_dim] as `like`. Raises ValueError for any other shape."""
        width = getattr(self.network, "augment_dim", 0)
        if labels is None:
            return None
        if labels.shape != (batch, width):
            raise ValueError(
                f"augment_labels have shape {list(labels.shape)}, the model takes "
                + (f"[{batch}, {width}]" if width else "none")
            )
        return labels.to(like)

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise level for which the model is defined: here sigma itself, as a tensor."""
        return torch.as_tensor(sigma)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        condition: Conditioning = None,
        s: Tensor | None = None,
    ) -> Tensor:
        """x [B, C, H, W], sigma [B] or a scalar, condition → x̂_0 [B, C, H, W] in fp32.

        s [B]: for a two-time network, the noise level where the jump ends; None: sigma, where x̂_0 is the
        posterior mean. Raises ValueError where s is given and the network has no second time.

        condition: labels as in `one_hot`, or a `Condition`: a hidden label is a one-hot vector of zeros.
        The noise levels, the scalings and the embedding are fp32 (float64 for a float64 model) in every
        precision; only the network between c_in·x and F computes in `precision`.
        """
        batch, dtype = x.shape[0], self.dtype
        x = x.to(dtype)
        # torch.as_tensor would make the input of a traced graph a constant.
        sigma = (sigma if isinstance(sigma, Tensor) else torch.tensor(sigma)).to(x.device, dtype)
        sigma = sigma.reshape(-1).expand(batch)
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        given = condition if isinstance(condition, Condition) else Condition(condition)
        one_hot = self.one_hot(given.label, batch, c_noise)
        if given.hidden is not None and one_hot is not None:
            one_hot = one_hot.masked_fill(given.hidden[:, None], 0.0)
        augment_labels = self.augmentation(given.augment, batch, c_noise)
        extra = () if augment_labels is None else (augment_labels,)
        second: dict[str, Tensor] = {}
        if self.two_times:
            end = sigma if s is None else s.to(x.device, dtype).reshape(-1).expand(batch)
            second["second"] = self.gap(sigma, end)
        elif s is not None:
            raise ValueError("the network has no second time: build it with second_time, or adapt() it")
        trunk = torch.float16 if self.precision == "fp16" else dtype
        raw = self.network((expand(c_in, x) * x).to(trunk), c_noise, one_hot, *extra, **second).to(dtype)
        return expand(c_skip, x) * x + expand(c_out, x) * raw[:, : x.shape[1]]


class EDMPrecond(Preconditioned):
    """EDM's preconditioning (2206.00364, table 1), F's input, output and target at unit variance.

    c_skip = σ_d²/((σ − b)² + σ_d²), c_out = (σ − b)·σ_d/√(σ² + σ_d²), c_in = 1/√(σ² + σ_d²),
    c_noise = ln(σ)/4, with the consistency boundary D(x; b) = x at b = 0; `CMPrecond` moves it. At σ = 0 the
    logarithm is clamped; its factor c_out is 0.

    Args:
        sigma_min, sigma_max: the range of noise levels; sigma_max None: unbounded.
        noise_scale: c_noise's factor; 1000 for the networks of consistency_models (2303.01469).
    """

    kind = "edm"

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float = 0.5,
        sigma_min: float = 0.0,
        sigma_max: float | None = None,
        noise_scale: float = 1.0,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(network, precision)
        if not 0 < sigma_data < math.inf:
            raise UserError(f"{sigma_data!r} is no deviation", "sigma_data", "give a positive number: 0.5")
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min
        self.sigma_max = math.inf if sigma_max is None else sigma_max
        self.noise_scale = noise_scale

    @property
    def boundary(self) -> float:
        """The noise level b with D(x; b) = x."""
        return 0.0

    def scalings(self, sigma: Tensor) -> Scalings:
        above, variance = sigma - self.boundary, self.sigma_data**2
        c_in = (sigma.square() + variance).rsqrt()
        c_noise = sigma.clamp(min=torch.finfo(sigma.dtype).tiny).log() / 4 * self.noise_scale
        return Scalings(variance / (above.square() + variance), above * self.sigma_data * c_in, c_in, c_noise)


class CMPrecond(EDMPrecond):
    """EDM's preconditioning with its boundary at σ_min: D(x; σ_min) = x (consistency models, 2303.01469)."""

    kind = "cm"

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float | None = 80.0,
        noise_scale: float = 1000.0,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(network, sigma_data, sigma_min, sigma_max, noise_scale, precision)

    @property
    def boundary(self) -> float:
        return self.sigma_min


class ECTPrecond(EDMPrecond):
    """ECT's preconditioning (2406.14548): EDM's in training, CM's with the boundary σ_min in evaluation."""

    kind = "ect"

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float = 0.5,
        sigma_min: float = 0.003,
        sigma_max: float | None = None,
        noise_scale: float = 1.0,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__(network, sigma_data, sigma_min, sigma_max, noise_scale, precision)

    @property
    def boundary(self) -> float:
        return 0.0 if self.training else self.sigma_min


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """The model, if it is a module, in evaluation mode, in the block; then each part in its own mode."""
    if not isinstance(model, nn.Module):
        yield
        return
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
