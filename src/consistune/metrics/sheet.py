"""What a feature extractor expects and gives: the YAML beside its file, checked strictly."""

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from consistune.errors import UserError

Resize = Literal["none", "nearest", "bilinear", "bicubic", "area"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Input(_Strict):
    """From uint8 images [n, C, H, W] to what the network is called with.

    Attributes:
        dtype: "uint8" passes the images unchanged; "float32" scales them as the other keys say.
        size: side in pixels after resizing; None: the images' own.
        resize, antialias: torch's interpolation rule; the result of bicubic is not clamped.
        range: values to which 0 and 255 are mapped (float32 only).
        mean, std: of each channel; subtracted, and divided by, after the range (float32 only).
        channels: 3: grey images are repeated three times; 1: only grey images are taken.
    """

    dtype: Literal["uint8", "float32"] = "float32"
    size: int | None = Field(default=None, ge=1)
    resize: Resize = "none"
    antialias: bool = False
    range: tuple[float, float] = Field(default=(0.0, 1.0), strict=False)
    mean: tuple[float, ...] = Field(default=(), strict=False)
    std: tuple[float, ...] = Field(default=(), strict=False)
    channels: Literal[1, 3] = 3


class Output(_Strict):
    """How the network is called, and which part of its answer is used.

    Attributes:
        call: keyword arguments of the call.
        name: key or index of the tensor in a dictionary or tuple; None: the answer is the tensor.
        softmax: the tensor holds logits, and the softmax turns them into probabilities.
    """

    call: dict[str, bool | int | float | str] = Field(default_factory=dict)
    name: str | int | None = None
    softmax: bool = False


class Protocol(_Strict):
    """One feature extractor's protocol.

    Attributes:
        name: what distances on its features are called, in full: "fid" for the Inception of 2015-12-05
            alone, "fd-…" for any other.
        dim: number of features, which is then checked; None: any.
        batch: the only batch size that the file takes (some exported programs); None: any.
        probabilities: where class probabilities come from, for the Inception Score; None: there are none.
    """

    name: str = Field(pattern=r"^(fid|fd-[a-z0-9.-]+)$")
    input: Input = Input()
    output: Output = Output()
    probabilities: Output | None = None
    dim: int | None = Field(default=None, ge=1)
    batch: int | None = Field(default=None, ge=1)


INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION = Protocol(
    name="fid",
    input=Input(dtype="uint8"),
    output=Output(call={"return_features": True}),
    probabilities=Output(call={"no_output_bias": True}),
    dim=2048,
)
"""The TorchScript file of the FID Inception: images uint8 of any size, the legacy resize is inside it; 2048
pooled features, or class probabilities, for the Inception Score without the output's bias."""

WITHOUT_FILE = (
    f"give --features {INCEPTION_FILE}, NVIDIA's TorchScript of the Inception of 2015-12-05 "
    "(nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics); without it there are two "
    "fallbacks, neither of them FID: --features efficientnet (fd-efficientnet, ImageNet features, colour) "
    "and --features classifier (fd-classifier, a small classifier of the data's own labels)"
)


def read_protocol(file: Path) -> Protocol:
    """The protocol of an extractor's file: from FILE with .yaml for its ending, or the official file's own.

    Raises UserError where there is none, or for unknown keys, by name.
    """
    sheet = file.with_suffix(".yaml")
    if sheet.is_file():
        try:
            table = yaml.safe_load(sheet.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise UserError(f"is not YAML ({error})", str(sheet)) from error
        return checked(table, str(sheet))
    if file.name == INCEPTION_FILE:
        return INCEPTION
    raise UserError(
        f"nothing says what {file.name} expects",
        str(file),
        f"put {sheet.name} beside it (docs/measures.md)",
    )


def checked(table: Any, where: str) -> Protocol:
    """A protocol from plain data. Raises UserError naming the key that is wrong."""
    try:
        return Protocol.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UserError(f"{key}: {first['msg'].lower()}", where) from error
