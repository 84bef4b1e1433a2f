"""Official checkpoints in: read safely, recognised, loaded strictly, written as a folder of ours."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consistune.errors import UserError
from consistune.interop.contents import Snapshot
from consistune.interop.openai_cm import is_consistency_model, to_adm
from consistune.interop.recognise import configuration
from consistune.interop.snapshot import read_snapshot

if TYPE_CHECKING:  # torch comes in only when a file has been read and found sound
    from consistune.nn.precond import Preconditioned

LICENCES = {
    "EDM": "EDM's and EDM2's weights are under CC BY-NC-SA 4.0; so are copies and what is tuned from them",
    "unknown": "the file does not say; if it comes from EDM's or EDM2's weights, CC BY-NC-SA 4.0",
    "CM": "openai/consistency_models' weights are under the MIT licence",
}


def load_checkpoint(path: str | Path) -> "Preconditioned":
    """The model in a checkpoint file, with `card.provenance`; fp16 weights are widened to fp32.

    Raises UserError, one line, for anything that is not a known checkpoint; nothing in it is executed.
    """
    snapshot = read_snapshot(path)
    foreign = snapshot.class_name is None and is_consistency_model(snapshot.tensors)
    if foreign:
        snapshot = to_adm(snapshot)
    config = configuration(snapshot)
    if foreign:
        config |= _consistency_model(Path(path).name)
    from consistune.interop.weights import build_model

    model = build_model(config, snapshot.tensors, str(path), consistency_model=foreign)
    model.card = model.card.updated(provenance=_provenance(snapshot, config, foreign))
    return model


def _consistency_model(name: str) -> dict[str, Any]:
    """Its files do not say whether they hold the diffusion teacher; their names do (openai-cm §7)."""
    teacher = name.startswith("edm_")
    meta = {
        "objective": "diffusion" if teacher else "consistency",
        "assumed": [f"from the name {name[:80]!a}"],
    }
    precond = {"kind": "edm", "noise_scale": 1000.0} if teacher else {"kind": "cm"}
    return {"precond": precond, "meta": meta}


def _provenance(snapshot: Snapshot, config: dict[str, Any], foreign: bool) -> dict[str, Any]:
    before = config.get("meta", {}).get("provenance")
    dtypes = sorted({record.dtype for record in snapshot.tensors.values()})
    found = {
        "file": snapshot.source.path.name,
        "sha256": snapshot.source.sha256(),
        "format": snapshot.kind,
        "class": snapshot.class_name,
        "stored_as": dtypes,
        "dropped": snapshot.dropped,
        "licence": LICENCES["CM" if foreign else "EDM" if snapshot.class_name else "unknown"],
    }
    return found | {"before": before} if before else found


def import_checkpoint(checkpoint: str | Path, dest: str | Path) -> str:
    """Write a checkpoint as a model folder; returns what was done, in a few lines.

    Raises UserError where the destination holds something already, and as `load_checkpoint` does.
    """
    dest = Path(dest)
    if dest.exists() and not (dest.is_dir() and not any(dest.iterdir())):
        raise UserError("there is something there already", str(dest), "choose another DEST, or remove it")
    model = load_checkpoint(checkpoint)
    from consistune.nn import store

    store.save(model, dest)
    return summary(model, dest)


def summary(model: "Preconditioned", dest: Path) -> str:
    """What was imported: network, source, what was dropped, the licence."""
    provenance: Any = model.card.provenance
    count = sum(p.numel() for p in model.parameters())
    lines = [
        f"{dest}: {model.kind} preconditioning, images {list(model.image_shape)}, "
        f"{model.num_classes or 'no'} classes, {count:,} parameters",
        f"from {provenance['file']} ({provenance['format']}), sha256 {provenance['sha256']}",
    ]
    if provenance["dropped"]:
        lines.append(f"dropped: {', '.join(provenance['dropped'])}")
    if model.card.assumed:
        lines.append(f"assumed, the file does not say: {json.dumps(model.card.assumed)}")
    return "\n".join([*lines, f"licence: {provenance['licence']}"])
