"""Feature extractors: from files that the user names, and two that need no file."""

import hashlib
import importlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor
from torch.nn import functional as F

from consistune.errors import UserError
from consistune.metrics.classifier import FEATURES as CLASSIFIER_FEATURES
from consistune.metrics.classifier import ImageClassifier
from consistune.metrics.efficientnet import FEATURES as EFFICIENTNET_FEATURES
from consistune.metrics.efficientnet import load_efficientnet, weight_file
from consistune.metrics.sheet import WITHOUT_FILE, Input, Output, Protocol, checked, read_protocol
from consistune.system.files import file_digest

BATCH = 128
EFFICIENTNET_SIZES = {"efficientnet": 224, "efficientnet-64": 64}


@dataclass(frozen=True)
class Extractor:
    """uint8 images [n, C, H, W] → fp32 features [n, D] on the CPU.

    Attributes:
        protocol: what the network expects and gives, and the name of distances on its features.
        network: called as the protocol says.
        digest: SHA-256 of the weights or of the file.
    """

    protocol: Protocol
    network: Callable[..., Any]
    digest: str
    device: torch.device

    @property
    def name(self) -> str:
        """ "fid", or "fd-…" for anything that is not the official Inception."""
        return self.protocol.name

    @property
    def identity(self) -> str:
        """A hash of the weights and of the protocol: only features of one identity are compared."""
        text = json.dumps([self.protocol.model_dump(mode="json"), self.digest], sort_keys=True)
        return f"{self.name}:{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    @property
    def has_probabilities(self) -> bool:
        return self.protocol.probabilities is not None

    def __call__(self, images: Tensor) -> Tensor:
        """Features [n, D], batch by batch. Raises UserError where the network's answer is not that."""
        features, dim = self._run(images, self.protocol.output), self.protocol.dim
        if dim is not None and features.shape[1] != dim:
            raise UserError(f"{features.shape[1]} features came out, its protocol says {dim}", self.name)
        return features

    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities [n, K]. Raises UserError where the extractor has none."""
        if self.protocol.probabilities is None:
            raise UserError("gives no class probabilities", self.name, "leave the metric `is` out")
        return self._run(images, self.protocol.probabilities)

    @torch.inference_mode()
    def _run(self, images: Tensor, output: Output) -> Tensor:
        parts: list[Tensor] = []
        size = self.protocol.batch or BATCH
        for part in torch.split(images, size):
            prepared = prepare(part.to(self.device), self.protocol.input)
            if self.protocol.batch:  # fill the last batch with copies of its last image
                prepared = prepared[torch.arange(size, device=self.device).clamp(max=len(part) - 1)]
            answer = self.network(prepared, **output.call)
            values = answer if output.name is None else answer[output.name]
            if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(prepared):
                raise UserError("the network does not answer with one row an image", self.name)
            values = values[: len(part)].float()
            bad = (~values.isfinite().all(1)).nonzero()
            if len(bad):
                row = int(bad[0]) + sum(len(before) for before in parts)
                what = f"gives values that are not finite, beginning with image {row} of {len(images)}"
                raise UserError(what, f"extractor {self.name}", "look at its weights and its protocol")
            parts.append((values.softmax(1) if output.softmax else values).cpu())
        return torch.cat(parts)


def prepare(images: Tensor, rule: Input) -> Tensor:
    """uint8 images [n, C, H, W] in the form that the rule describes.

    Raises UserError for colour images where the extractor takes grey ones, or for a wrong size.
    """
    channels = images.shape[1]
    if channels == 1 and rule.channels == 3:
        images = images.expand(-1, 3, -1, -1)
    elif channels != rule.channels:
        raise UserError(f"images have {channels} channels, the extractor takes {rule.channels}", "features")
    if rule.dtype == "uint8":
        return images.contiguous()
    x = images.float()
    if rule.size is not None and rule.resize != "none" and x.shape[-2:] != (rule.size, rule.size):
        options = {"antialias": rule.antialias} if rule.resize in ("bilinear", "bicubic") else {}
        x = F.interpolate(x, size=(rule.size, rule.size), mode=rule.resize, **options)
    elif rule.size is not None and x.shape[-2:] != (rule.size, rule.size):
        raise UserError(
            f"images are {x.shape[-2]}×{x.shape[-1]}, the extractor takes {rule.size} and no resize rule",
            "features",
        )
    low, high = rule.range
    x = x * ((high - low) / 255) + low
    for values, act in ((rule.mean, torch.sub), (rule.std, torch.div)):
        if values:
            x = act(x, torch.tensor(values, device=x.device)[:, None, None])
    return x


def load_extractor(
    word: str,
    device: torch.device | str = "cpu",
    classifier: ImageClassifier | None = None,
) -> Extractor:
    """The extractor that `word` names.

    Args:
        word: "efficientnet" (224 px), "efficientnet-64" (64 px), "classifier", "package.module:attribute", or
            a file: TorchScript (.pt, .ts, .torchscript) or `torch.export` (.pt2), with its YAML beside it.
        classifier: of the data's own labels, for "classifier".

    A TorchScript file, an exported program and a Python path are programs: they run with the user's rights.
    Raises UserError for anything else, or where the classifier is not available.
    """
    device = torch.device(device)
    if word in EFFICIENTNET_SIZES:
        return _efficientnet(word, device)
    if word == "classifier":
        if classifier is None:
            raise UserError(
                "the data have no labels to train a classifier on", "--features classifier", WITHOUT_FILE
            )
        return classifier_extractor(classifier, device)
    path = Path(word)
    if path.is_file():
        return _file(path, device)
    if ":" in word and all(part.isidentifier() for part in word.replace(":", ".").split(".")):
        return _python(word, device)
    raise UserError(f"{word!r} is neither a file nor a known extractor", "--features", WITHOUT_FILE)


def _efficientnet(word: str, device: torch.device) -> Extractor:
    size = EFFICIENTNET_SIZES[word]
    rule = Input(size=size, resize="bilinear", range=(-127 / 128, 1.0))
    protocol = Protocol(name=f"fd-{word}", input=rule, dim=EFFICIENTNET_FEATURES)
    return Extractor(protocol, load_efficientnet().to(device), file_digest(weight_file()), device)


def classifier_extractor(model: ImageClassifier, device: torch.device) -> Extractor:
    """The features of a classifier of the data's own labels, under the name fd-classifier."""
    model = model.to(device)
    digest = hashlib.sha256(b"".join(p.cpu().numpy().tobytes() for p in model.state_dict().values()))
    channels = model.image_shape[0]
    protocol = Protocol(
        name="fd-classifier",
        input=Input(dtype="uint8", channels=1 if channels == 1 else 3),
        dim=CLASSIFIER_FEATURES,
    )
    return Extractor(protocol, model.features, digest.hexdigest(), device)


def _file(path: Path, device: torch.device) -> Extractor:
    protocol = read_protocol(path)
    try:
        if path.suffix == ".pt2":
            network: Any = torch.export.load(path).module().to(device)
        else:
            network = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"cannot be loaded ({reason})", str(path), "give TorchScript (.pt) or torch.export (.pt2)"
        ) from error
    return Extractor(protocol, network, file_digest(path), device)


def _python(word: str, device: torch.device) -> Extractor:
    module_name, _, attribute = word.partition(":")
    try:
        module = importlib.import_module(module_name)
        made = getattr(module, attribute)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UserError(f"cannot be imported ({error})", f"--features {word}") from error
    stated = getattr(made, "protocol", None) or {"name": f"fd-{attribute.lower().replace('_', '-')}"}
    source = Path(module.__file__) if module.__file__ else None
    if not callable(made) or source is None:
        raise UserError("is not a function of a Python file", f"--features {word}")
    network = made.to(device).eval() if isinstance(made, torch.nn.Module) else made
    return Extractor(checked(stated, f"{word}.protocol"), network, file_digest(source), device)


def image_digest(images: Tensor) -> str:
    """SHA-256 of uint8 images [n, C, H, W]: their shape and their pixels in order."""
    sha = hashlib.sha256(repr(tuple(images.shape)).encode())
    for part in blocks(images):
        sha.update(part.contiguous().numpy().data)
    return sha.hexdigest()


def blocks(images: Tensor, size: int = 1024) -> Iterator[Tensor]:
    """The images in runs of `size` rows: a memory map is read run by run."""
    for start in range(0, len(images), size):
        yield images[start : start + size]
