"""The table of autoencoders: built-in ones, those that other packages add, and folders of diffusers."""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

from consistune.errors import UserError, load_entry_point
from consistune.nn.autoencoder.base import Autoencoder
from consistune.nn.autoencoder.diffusers import open_folder
from consistune.nn.autoencoder.taef2 import taef2
from consistune.nn.pretrained import CONFIG

AUTOENCODERS: dict[str, Callable[[], Autoencoder]] = {"taef2": taef2}
"""By name. A package adds one by the entry point "autoencoder:NAME" in the group consistune.parts."""


def register(name: str, make: Callable[[], Autoencoder]) -> None:
    """Make an autoencoder known by a name, for example `register("mine", lambda: Pair(encoder, decoder))`."""
    AUTOENCODERS[name] = make


def open_autoencoder(name: str, where: str = "--latents") -> Autoencoder:
    """The autoencoder of a name or a folder, in evaluation mode, without gradients, on the CPU.

    Raises UserError for an unknown name, and for weights that are missing or damaged.
    """
    if name not in AUTOENCODERS:
        for entry in entry_points(group="consistune.parts", name=f"autoencoder:{name}"):
            register(name, load_entry_point(entry))
    if name in AUTOENCODERS:
        return AUTOENCODERS[name]().eval().requires_grad_(False)
    if (Path(name) / CONFIG).is_file():
        return open_folder(Path(name)).eval().requires_grad_(False)
    known = ", ".join(sorted(AUTOENCODERS))
    raise UserError(
        f"no such autoencoder: {name!r}", where, f"give one of: {known}; or a folder of diffusers"
    )
