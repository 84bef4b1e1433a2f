"""Official checkpoints in: read safely, recognised, loaded strictly, written as a model folder of ours."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consistune.errors import UserError
from consistune.interop.files import Checkpoint
from consistune.interop.pipelines import CONFIG, is_pipeline, load_pipeline
from consistune.interop.reading import read_checkpoint
from consistune.interop.recognise import configuration
from consistune.interop.wrappers import WEIGHT_FILES
from consistune.system.files import check_writable
from consistune.system.own import is_own

if TYPE_CHECKING:  # torch is imported only after a file has been read and accepted
    from consistune.nn.card import ModelCard
    from consistune.nn.module import Factory
    from consistune.nn.precond import Preconditioned

OWN_KEYS = ("format", "network", "precond")
"""Of the configuration in a model folder of this program."""
LICENCES = {
    "EDM": "EDM's and EDM2's weights are under CC BY-NC-SA 4.0; so are copies and what is tuned from them",
    "unknown": "the file does not say; if it comes from EDM's or EDM2's weights, CC BY-NC-SA 4.0",
    "CM": "openai/consistency_models' weights are under the MIT licence",
}


def load_checkpoint(
    path: str | Path, weights: str | None = None, network: "Factory | None" = None
) -> "Preconditioned":
    """The model in a checkpoint file, with `card.provenance`; fp16 and bf16 weights are widened to fp32.

    path: a file, or a folder of accelerate, Lightning or diffusers (`interop.pipelines`).
    weights: which of several networks in the file; None: the averaged one, or the only one.
    network: for an export of a model around a module that is not ours, a function that makes the module.

    Nothing in the file is executed. Raises UserError for a file that is not a known checkpoint.
    """
    if is_pipeline(Path(path)):
        if weights is not None:
            raise UserError("a folder of diffusers holds one model", "--weights", "leave --weights out")
        if network is not None:
            raise UserError("a pipeline's network is built from its folder", "network", "leave it out")
        return load_pipeline(Path(path))
    _check_foreign(Path(path))
    checkpoint = read_checkpoint(path, weights)
    config = configuration(checkpoint)
    from consistune.interop.weights import build_model

    if network is not None and config["network"].get("kind") != "module":
        raise UserError("a checkpoint's network is built from its file", "network", "leave it out")
    model = build_model(config, checkpoint, network)
    model.card = model.card.updated(provenance=_provenance(checkpoint, model.card))
    return model


def _check_foreign(path: Path) -> None:
    """Raises UserError for a model's or run's folder of this program, and for the weights alone in it."""
    places = (path, path / "model") if path.is_dir() else (path.parent,)
    folder = next((place for place in places if is_own(place / CONFIG, OWN_KEYS)), None)
    if folder is not None and (path.is_dir() or path.name == WEIGHT_FILES[0]):
        raise UserError("is a model of consistune already", str(path), f"use the folder {folder} as it is")


def _provenance(checkpoint: Checkpoint, card: "ModelCard") -> dict[str, Any]:
    licence = LICENCES[checkpoint.origin]
    if checkpoint.origin == "unknown":  # the file's own card may say more
        licence = (card.source or {}).get("licence", licence)
    before = card.provenance
    provenance = {
        "file": checkpoint.file.path.name,
        "sha256": checkpoint.file.sha256(),
        "format": checkpoint.format,
        "class": checkpoint.class_name,
        "stored_as": sorted({record.dtype for record in checkpoint.tensors.values()}),
        "dropped": checkpoint.dropped,
        "licence": licence,
    }
    if checkpoint.weights:
        provenance["weights"] = checkpoint.weights
    if checkpoint.others:
        provenance["other_weights"] = list(checkpoint.others)
    return provenance | {"before": before} if before else provenance


def import_checkpoint(checkpoint: str | Path, dest: str | Path, weights: str | None = None) -> str:
    """Write a checkpoint as a model folder. Returns `summary`'s lines.

    Raises UserError where the destination holds something already, and as `load_checkpoint` does.
    """
    dest = Path(dest)
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise UserError("there is something there already", str(dest), "choose another DEST, or remove it")
    check_writable(dest, "DEST", folder=True)
    model = load_checkpoint(checkpoint, weights)
    from consistune.nn import store

    store.save(model, dest)
    return summary(model, dest)


def summary(model: "Preconditioned", dest: Path) -> str:
    """What was imported: the network, its file, what was dropped, the licence."""
    provenance: Any = model.card.provenance
    count = sum(p.numel() for p in model.parameters())
    lines = [
        f"{dest}: {model.kind} preconditioning, images {list(model.image_shape)}, "
        f"{model.num_classes or 'no'} classes, {count:,} parameters",
        f"from {provenance['file']} ({provenance['format']}), sha256 {provenance['sha256']}",
    ]
    if "weights" in provenance:
        others = ", ".join(map(repr, provenance.get("other_weights", ())))
        also = f"; also there: {others} (--weights chooses)" if others else ""
        lines.append(f"weights: those under {provenance['weights']!r}{also}")
    if provenance["dropped"]:
        lines.append(f"dropped: {', '.join(provenance['dropped'])}")
    if model.card.assumed:
        lines.append(f"assumed, the file does not say: {json.dumps(model.card.assumed)}")
    return "\n".join([*lines, f"licence: {provenance['licence']}"])
