"""What is evaluated: a model with the settings of its sampler, or a file of samples."""

import hashlib
from pathlib import Path

from torch import Tensor

from consistune.errors import UserError
from consistune.evaluate.request import Request
from consistune.evaluate.sources import FileSource, ModelSource
from consistune.metrics.features import file_digest
from consistune.metrics.statistics import read_samples
from consistune.models import default_sampler, load
from consistune.nn.precond import Preconditioned


class ModelSubject:
    """A model.

    Attributes:
        digest: SHA-256 of the weights.
        labelled: the model takes labels.
    """

    def __init__(self, request: Request, labels: Tensor | None) -> None:
        """`labels` of the training images; None: not known. Raises UserError where there is no model."""
        self.request, self.labels = request, labels
        self.model = load(request.model, request.device)
        self.digest = weights_digest(self.model)
        self.image_shape, self.labelled = self.model.image_shape, self.model.num_classes > 0
        self.worse = None if request.worse is None else load(request.worse, request.device)

    def source(self, steps: int | None) -> ModelSource:
        """The samples in a number of steps. Raises UserError for steps that the sampler cannot take."""
        request = self.request
        try:
            sampler = default_sampler(self.model, steps, request.mid_t, request.eta)
        except ValueError as error:
            raise UserError(str(error), "--steps") from error
        rule, batch = request.label_rule, request.batch
        return ModelSource(self.model, sampler, self.labels, rule, self.worse, request.omega, batch)


class FileSubject:
    """A file of samples (.npz). Its attributes are as those of `ModelSubject`, the digest is the file's."""

    labelled = True

    def __init__(self, request: Request) -> None:
        """Raises UserError for too few samples, and for settings that a file does not have."""
        if not request.model.is_file():
            raise UserError("no such file of samples", str(request.model))
        images, labels = read_samples(request.model)
        self.source = FileSource(images, labels)
        self.digest = file_digest(request.model)
        _, *shape = images.shape
        self.image_shape = (shape[0], shape[1], shape[2])
        if request.blocks * request.samples + request.first_seed > len(images):
            raise UserError(f"holds {len(images)} samples", str(request.model), "lower --samples or --seeds")
        if request.search is not None or request.steps != (None,):
            raise UserError("samples are drawn already", "--search, --steps", "give a model")


def weights_digest(model: Preconditioned) -> str:
    """SHA-256 of names, shapes and values: the same in every file format."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def run_folder_of(path: Path) -> Path | None:
    """The folder of the training run that a model lies in, with its metrics; None: there is none."""
    for folder in (path, path.parent):
        if (folder / "metrics.jsonl").is_file():
            return folder
    return None
