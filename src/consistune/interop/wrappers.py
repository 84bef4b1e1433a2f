"""Networks inside what training programs wrap around them: prefixes of names, parts of a file, folders.

torch.compile, DDP, Lightning, averages and a program's own classes put words before a tensor's name, and a
checkpoint holds several networks. A network is found by a name that only it has, whatever stands before it.
"""

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consistune.errors import UserError
from consistune.interop.files import ACCEPTED, MAX_NAME
from consistune.interop.records import TensorRecord

ANYWHERE = re.compile(r"(^|\.)(?:_orig_mod|module|_fsdp_wrapped_module)\.")
"""Words that torch.compile, DDP and FSDP put before the names of whatever they wrap, at any depth."""
ANCHOR = re.compile(
    r"(?P<prefix>(?:.*?\.)??)(?:(?:model|unet)\.|)(?:enc\.(\d+)x\2_conv\.weight)"
    r"|(?P<cm>(?:.*?\.)??)input_blocks\.0\.0\.weight"
)
"""The first layer of EDM's and EDM2's networks, with or without preconditioning, and of ADM's own."""
COUNTERS = ("n_averaged", "initted", "step")
"""What classes of averages (torch's AveragedModel, ema_pytorch) store beside the network."""
MAX_ENTRIES, MAX_DEPTH, MAX_NETWORKS = 250_000, 4, 100
"""What is looked at: a file may name one dictionary, or one tensor, many times over."""
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "last.ckpt")
"""Of accelerate's folders, and of Lightning's."""


@dataclass(frozen=True)
class Group:
    """The tensors of one network by their official names, where they stood in the file, counters beside."""

    name: str
    tensors: dict[str, TensorRecord]
    counters: list[str]

    @property
    def averaged(self) -> bool:
        return any("ema" in word.lower().split("_") for word in self.words)

    @property
    def words(self) -> list[str]:
        return self.name.split(".")


def flat(top: Mapping[Any, Any]) -> dict[str, TensorRecord]:
    """The tensors in nested dictionaries, named by the words on the way to them."""
    found: dict[str, TensorRecord] = {}
    pending: deque[tuple[str, Any, int]] = deque([("", top, 0)])
    left = MAX_ENTRIES
    while pending and left > 0:
        prefix, values, depth = pending.popleft()
        left -= len(values)
        for key, value in values.items():
            if type(key) is not str or len(prefix) + len(key) > MAX_NAME:
                continue
            if type(value) is TensorRecord:
                found[prefix + key] = value
            elif type(value) is dict and depth < MAX_DEPTH:
                pending.append((f"{prefix}{key}.", value, depth + 1))
    return found


def groups(tensors: Mapping[str, TensorRecord]) -> list[Group]:
    """The networks among these tensors, in the order of the file."""
    names: dict[str, str] = {}
    for name in tensors:
        plain = name
        while (shorter := ANYWHERE.sub(r"\1", plain)) != plain:
            plain = shorter
        names[name] = plain
    matches = [match for plain in names.values() if (match := ANCHOR.fullmatch(plain))]
    prefixes = list(dict.fromkeys(match["prefix"] or match["cm"] or "" for match in matches))[:MAX_NETWORKS]
    counters = [name for name, plain in names.items() if plain in COUNTERS]
    found = []
    for prefix in prefixes:
        longer = tuple(p for p in prefixes if p != prefix and p.startswith(prefix))
        own = {
            plain.removeprefix(prefix): tensors[name]
            for name, plain in names.items()
            if plain.startswith(prefix) and not (longer and plain.startswith(longer)) and name not in counters
        }
        if any(name.startswith("enc.") for name in own):  # a network without its preconditioning
            part = "unet." if "out_gain" in own else "model."
            own = {part + name: record for name, record in own.items()}
        found.append(Group(prefix.rstrip("."), own, counters))
    return found


def chosen(found: list[Group], weights: str | None, where: str) -> Group:
    """The network that is taken: the one that `weights` names, else the averaged one, else the only one.

    Raises UserError where the choice is not clear.
    """
    named = ", ".join(repr(group.name[:80]) for group in found)
    if weights is not None:
        fitting = [group for group in found if group.name == weights]
        fitting = fitting or [group for group in found if weights in group.words]
        if len(fitting) != 1:
            raise UserError(f"{weights!a} is not one of its networks: {named}", f"{where}: --weights")
        return fitting[0]
    averaged = [group for group in found if group.averaged]
    candidates = averaged or found
    if len(candidates) != 1:
        raise UserError(f"it holds several networks: {named}", where, "choose one with --weights")
    return candidates[0]


def file_in(folder: Path) -> Path:
    """The weights' file in a folder of accelerate or Lightning. Raises UserError where it is not clear."""
    for place in (folder, folder / "checkpoints"):
        for name in WEIGHT_FILES:
            if (place / name).is_file():
                return place / name
        found = sorted(place.glob("*.ckpt"))
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(ascii(path.name) for path in found[:8])
            raise UserError(f"holds several checkpoints: {names}", str(folder), "give one of these files")
    raise UserError(f"is a folder without {', '.join(WEIGHT_FILES)} or a .ckpt", str(folder), ACCEPTED)
