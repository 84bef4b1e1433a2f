"""What is assessed: a model or a file of samples, with the hash by which it is known again."""

import hashlib
from pathlib import Path

from torch import device as Device

from sct.errors import UserError
from sct.evaluate.features import file_digest
from sct.models import load
from sct.nn.precond import Preconditioned


def load_subject(path: Path, device: Device) -> tuple[Preconditioned, str]:
    """The model and the SHA-256 of its weights. Raises UserError for what is none."""
    model = load(path, device)
    return model, weights_digest(model)


def weights_digest(model: Preconditioned) -> str:
    """SHA-256 of names, shapes and values: the same in every file format."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def run_folder_of(path: Path) -> Path | None:
    """The run that a model lies in, with its metrics; None where it lies in none."""
    for folder in (path, path.parent):
        if (folder / "metrics.jsonl").is_file():
            return folder
    return None


def sample_file_digest(path: Path) -> str:
    if not path.is_file():
        raise UserError("no such file of samples", str(path))
    return file_digest(path)
