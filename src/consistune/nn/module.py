"""Networks that are not ours: any nn.Module inside a preconditioning, stored by the name of its class.

A model folder never runs code that it names: a class is taken from a module that the program has already
imported, or made by a factory that the caller gives.
"""

import inspect
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from consistune.errors import UserError, nearest
from consistune.nn.precond import EDMPrecond, Preconditioned, Scalings, evaluating
from consistune.nn.pretrained import need_diffusers

Labels = Literal["one-hot", "index"]
"""What a module takes as its third argument: one-hot rows [B, K], zeros where there is no label; or class
indices [B], K where there is no label (the module's embedding then has K + 1 rows)."""
Form = Literal["network", "denoiser"]
"""What a module is: F inside EDM's preconditioning, or D itself."""
UNET = "diffusers.models.unets.unet_2d:UNet2DModel"
"""The only class that is imported for a stored model, from a package that the user installed."""


class ModuleNetwork(nn.Module):
    """module(x [B, C, H, W], c_noise [B]), with labels module(x, c_noise, labels) → [B, C, H, W].

    A result with an attribute `sample`, as diffusers' networks give, stands for that attribute.

    Args:
        target: "package.module:Class" of the module.
        config: the arguments of that class, as JSON has them; None: only a factory can make it again.
        module: the module itself; None: made from target and config.
        frozen: the names of the module's parameters that training leaves as they are; none: those without a
            gradient, where others have one.

    Raises UserError where the class is not at hand.
    """

    def __init__(
        self,
        target: str,
        config: Mapping[str, Any] | None,
        image_shape: tuple[int, int, int],
        num_classes: int = 0,
        labels: Labels = "one-hot",
        module: nn.Module | None = None,
        frozen: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.module = make_module(target, config) if module is None else module
        self.frozen = frozenset(frozen) or _without_gradient(self.module)
        self.image_shape, self.num_classes, self.labels = tuple(image_shape), num_classes, labels
        self.options: dict[str, Any] = {
            "target": target,
            "config": None if config is None else dict(config),
            "image_shape": list(image_shape),
            "num_classes": num_classes,
            "labels": labels,
        }
        if self.frozen:
            self.options["frozen"] = sorted(self.frozen)

    def forward(self, x: Tensor, c_noise: Tensor, one_hot: Tensor | None) -> Tensor:
        given: tuple[Tensor, ...] = (x, c_noise)
        if self.num_classes and one_hot is not None:
            given += (one_hot if self.labels == "one-hot" else self._index(one_hot),)
        result = self.module(*given)
        return getattr(result, "sample", result)

    def _index(self, one_hot: Tensor) -> Tensor:
        """Raises UserError for "no label" where the embedding has no row for it; a card has its own error."""
        index = class_indices(one_hot)
        rows = getattr(getattr(self.module, "class_embedding", None), "num_embeddings", self.num_classes + 1)
        known = rows > self.num_classes or torch.compiler.is_compiling() or index.device.type != "cpu"
        if not known and bool((index == self.num_classes).any()):
            what = f"the network embeds {rows} labels for {self.num_classes} classes, and none for no label"
            raise UserError(what, "network", "give every image a label, or the embedding one row more")
        return index


class DenoiserPrecond(EDMPrecond):
    """No preconditioning: the network is itself the denoiser D(x, σ), with D(x, 0) = x for tuning.

    c_skip = 0, c_out = 1, c_in = 1, c_noise = σ.
    """

    kind = "none"

    def scalings(self, sigma: Tensor) -> Scalings:
        zero, one = torch.zeros_like(sigma), torch.ones_like(sigma)
        return Scalings(zero, one, one, sigma)


def _without_gradient(module: nn.Module) -> frozenset[str]:
    """The parameters without a gradient; none of a module in which none has one, as trained models are."""
    wanted = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    return frozenset(name for name in wanted if not wanted[name]) if any(wanted.values()) else frozenset()


def note_frozen(model: Any) -> None:
    """Give a Preconditioned model `frozen`: the names of its parameters that training leaves as they are."""
    names = model.network.frozen if isinstance(model.network, ModuleNetwork) else ()
    model.frozen = frozenset(f"{model.network_name}.module.{name}" for name in names)


def class_indices(one_hot: Tensor) -> Tensor:
    """One-hot rows [B, K] → classes [B], int64; K for a row of zeros."""
    return torch.where(one_hot.any(1), one_hot.argmax(1), one_hot.shape[1])


def make_module(target: str, config: Mapping[str, Any] | None) -> nn.Module:
    """An instance of a class that is imported already, or diffusers' UNet. Raises UserError for others."""
    remedy = "import it before the model is loaded, or give load(…, network=) a function that makes it"
    if config is None:
        raise UserError(f"the arguments of {target} were not stored", "network", remedy)
    name, _, attribute = target.partition(":")
    if target == UNET:
        need_diffusers("network")
        import_module(name)
    made = getattr(sys.modules.get(name), attribute, None)
    if not (inspect.isclass(made) and issubclass(made, nn.Module)):
        raise UserError(f"the network is {target}, which is not imported here", "network", remedy)
    from_config: Any = getattr(made, "from_config", None)
    built: nn.Module = from_config(dict(config)) if from_config else made(**config)
    return built


def wrap(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int = 0,
    *,
    form: Form = "network",
    config: Mapping[str, Any] | None = None,
    sigma_data: float = 0.5,
) -> Preconditioned:
    """Any module as a model that is trained, tuned, sampled, stored.

    Args:
        module: F(x, c_noise) or F(x, c_noise, labels), put into EDM's preconditioning; form="denoiser": a
            D(x, σ) or D(x, σ, labels). x float32 [B, C, H, W], c_noise = ln(σ)/4 and σ [B], labels one-hot
            [B, K] with zeros where there is none. A diffusers UNet2DModel takes 250·ln(σ) and class indices.
        num_classes: 0: the module is called without labels.
        config: the arguments of its class, for storing; None: its attribute `config`, where it has one.

    Parameters without a gradient stay as they are in training, and after loading: the model's `frozen`.

    Raises UserError where one call with two images does not give images of the same shape, and for a form
    that is not known.
    """
    if form not in get_args(Form):
        remedy = f"{nearest(form, get_args(Form))}use one of {', '.join(get_args(Form))}"
        raise UserError(f"{form!r} is not known", "form", remedy)
    if not isinstance(module, nn.Module):
        raise UserError(f"{type(module).__name__} is no network", "network", "give an nn.Module")
    compiled, module = module, getattr(module, "_orig_mod", module)
    if compiled is not module:
        warnings.warn("the network is taken without its torch.compile: train.compile has that", stacklevel=2)
    if isinstance(module, Preconditioned):
        raise UserError("the model has a preconditioning already", type(module).__name__, "give it as it is")
    own = getattr(module, "config", None) if config is None else config
    index = num_classes > 0 and getattr(module, "class_embedding", None) is not None
    network = ModuleNetwork(
        f"{type(module).__module__}:{type(module).__qualname__}",
        plain_config(own),
        image_shape,
        num_classes,
        "index" if index else "one-hot",
        module,
    )
    noise_scale = 1000.0 if hasattr(module, "time_proj") else 1.0
    model: Preconditioned = (
        DenoiserPrecond(network, sigma_data)
        if form == "denoiser"
        else EDMPrecond(network, sigma_data, noise_scale=noise_scale)
    )
    note_frozen(model)
    _try(model, image_shape, num_classes)
    return model


def plain_config(config: Any) -> dict[str, Any] | None:
    """A configuration as JSON has it; None where it is no mapping of plain values."""
    if not isinstance(config, Mapping):
        return None
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(config)))
    except (TypeError, ValueError):
        return None
    return plain


def _try(model: Preconditioned, image_shape: tuple[int, int, int], num_classes: int) -> None:
    """Call the model once on two images. Raises UserError where it fails or cannot be trained."""
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise UserError("the network has no parameters", "network")
    x = torch.zeros(2, *image_shape, device=parameter.device, dtype=model.dtype)
    labels = torch.zeros(2, dtype=torch.long, device=parameter.device) if num_classes else None
    module: Any = model.network.module
    name = type(module).__name__
    try:
        with evaluating(model):
            raw = model.network(x, x.new_ones(2), model.one_hot(labels, 2, x))
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        takes = "(x, c_noise, labels)" if num_classes else "(x, c_noise)"
        raise UserError(
            f"{name}{takes} fails on images [2, {', '.join(map(str, image_shape))}]: "
            f"{type(error).__name__}: {line}",
            "network",
            _remedy(line, module, num_classes),
        ) from error
    if not isinstance(raw, Tensor) or raw.shape != x.shape:
        seen = list(raw.shape) if isinstance(raw, Tensor) else type(raw).__name__
        remedy = "" if isinstance(raw, Tensor) else "return the tensor alone"
        raise UserError(f"{name} gives {seen}, expected images {list(x.shape)}", "network", remedy)
    if not raw.is_floating_point() or not raw.requires_grad:
        what = f"{name} gives {raw.dtype} without a gradient: nothing can be trained"
        raise UserError(what, "network", "let its result depend on parameters that require a gradient")
    if not bool(raw.isfinite().all()):
        raise UserError(f"{name} gives values that are not finite", "network", "look at its weights")


def _remedy(error: str, module: nn.Module, num_classes: int) -> str:
    """What to change in a module that fails with an error; "" where nothing is known."""
    if any(parameter.dtype in (torch.bfloat16, torch.float16) for parameter in module.parameters()):
        return "give it fp32 weights, as .float() does: train.precision sets the arithmetic"
    if num_classes and "Long" in error:
        return "labels are one-hot floats [N, K]: take labels.argmax(1), or call the layer class_embedding"
    if f"{type(module).__name__}.forward() missing" in error:
        return "give its further arguments defaults"
    if f"{type(module).__name__}.forward() takes" not in error:
        return ""
    without = "conditional=False, in wrap num_classes=0"
    return f"give it a third argument for labels, or {without}" if num_classes else "give it x and c_noise"


Factory = Callable[[], nn.Module]
"""Makes the module of a stored model, with any weights."""
