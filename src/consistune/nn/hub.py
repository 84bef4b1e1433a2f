"""Models on the Hugging Face Hub: a model's folder with a README that says what it is."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from consistune.errors import UserError
from consistune.nn import pretrained, store
from consistune.nn.autoencoder.space import from_model
from consistune.nn.precond import Preconditioned

PREFIX, PICTURES = "hf://", "samples.png"
DIFFUSERS = (
    "model_index.json",
    f"unet/{pretrained.CONFIG}",
    f"unet/{pretrained.WEIGHTS}",
    pretrained.WEIGHTS,
    "scheduler/scheduler_config.json",
    "scheduler_config.json",
)
"""The files of a pipeline of diffusers from which a model is read (`interop.pipelines`)."""
CONNECTIONS = ("httpx", "httpx2", "requests")
"""The libraries by which versions of huggingface_hub speak HTTP; their errors are those of a connection."""


def push(
    model: Preconditioned,
    repo_id: str,
    *,
    license: str | None = None,
    command: str | None = None,
    distances: Mapping[str, float] | None = None,
    pictures: str | Path | None = None,
    update: bool = False,
    private: bool = False,
    token: str | None = None,
    message: str = "Upload a model of consistune",
) -> str:
    """Upload a model's folder with a README to the repository "user/name"; returns its address.

    Args:
        license: of the weights, by the Hub's word ("apache-2.0", "cc-by-4.0"); it depends on the data and on
            the weights that the training started from.
        command, distances: for the README: how the model was made, and {measure: number} of
            `consistune.evaluate`.
        pictures: a PNG for the README, of `consistune sample` or of a run's folder `samples`.
        update: add a commit to a repository that is there; without, a name that is taken is refused.
        token: None: the one that `hf auth login` stored.

    Raises UserError where the Hub refuses or cannot be reached, and for pictures that are no PNG.
    """
    from huggingface_hub import HfApi

    if pictures is not None and not _is_png(Path(pictures)):
        raise UserError("is no PNG file", str(pictures), "give one that consistune sample has written")
    with tempfile.TemporaryDirectory() as work, _hub_errors(repo_id):
        folder = store.save(model, Path(work) / "model")
        if pictures is not None:
            shutil.copyfile(pictures, folder / PICTURES)
        text = readme(model, repo_id, license, command, distances or {}, pictures is not None)
        (folder / "README.md").write_text(text, encoding="utf-8")
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=update)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        return f"{api.endpoint}/{repo_id}"


def resolved(path: str | Path) -> str | Path:
    """The folder of the model that "hf://user/name" names, downloaded; any other path as it is."""
    if not isinstance(path, str | Path):
        what = f"{type(path).__name__} is no model"
        raise UserError(what, "model", "give a folder, a file or a built-in name; wrap a network")
    if path == "":
        raise UserError("is empty", "model", 'write a path; "." is the current folder')
    text = path.as_posix() if isinstance(path, Path) else path
    start = PREFIX[:-1]  # a Path has one stroke only
    return download(PREFIX + text[len(start) :].lstrip("/")) if text.startswith(start) else path


def download(name: str) -> Path:
    """The local copy of a model's folder, ours or diffusers', "hf://user/name" or "hf://user/name@revision".

    Raises UserError where there is none, or where the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    repo_id, _, revision = name.removeprefix(PREFIX).partition("@")
    if repo_id.count("/") != 1:
        raise UserError("is no repository", name, f"write {PREFIX}user/name")
    with _hub_errors(name):
        return Path(
            snapshot_download(
                repo_id, revision=revision or None, allow_patterns=[store.CONFIG, store.WEIGHTS, *DIFFUSERS]
            )
        )


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Every failure of the Hub as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if library not in (*CONNECTIONS, "huggingface_hub") and not isinstance(error, ConnectionError):
            raise
        raise _said(error, name) from error


def _said(error: Exception, name: str) -> UserError:
    """What the Hub's answer means, and what to do."""
    from huggingface_hub import constants, errors

    cause = error.__cause__  # of LocalEntryNotFoundError: why the Hub gave no files
    status = getattr(getattr(error, "response", getattr(cause, "response", None)), "status_code", None)
    line = " ".join(str(error if cause is None else cause).split())[:200]
    said = f"the Hub cannot be reached ({type(error).__name__})", name, "look at the network, or try later"
    if isinstance(error, errors.OfflineModeIsEnabled) or constants.HF_HUB_OFFLINE:
        said = "HF_HUB_OFFLINE is set, and there is no local copy", name, "unset it, or give a folder"
    elif isinstance(error, errors.GatedRepoError):
        said = "is gated", name, "ask for access on its page, then: hf auth login"
    elif isinstance(error, errors.RepositoryNotFoundError):
        what = "the Hub has no such repository, or it is private"
        said = what, name, "for a private one: hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        said = "the Hub has no such revision", name, "leave @revision out, or give one of its branches"
    elif status == 409:
        said = "the name is taken", name, "choose another, or give update=True to add to your own repository"
    elif status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
        said = "the Hub denies access", name, "hf auth login, with a token that may do this"
    elif (status is not None and status < 500) or isinstance(error, errors.HFValidationError):
        return UserError(f"the Hub refuses: {line}", name)
    return UserError(*said)


def readme(
    model: Preconditioned,
    repo_id: str,
    license: str | None = None,
    command: str | None = None,
    distances: Mapping[str, float] = MappingProxyType({}),
    pictures: bool = False,
) -> str:
    """The text of a model's README, with the Hub's header; the arguments as for `push`.

    pictures: whether the file PICTURES lies beside it.
    """
    from huggingface_hub import EvalResult, ModelCardData

    card, latents = model.card, from_model(model)
    channels, height, width = model.image_shape if latents is None else latents.picture_shape
    name, data, task = repo_id.partition("/")[2], card.data or "not known", "unconditional-image-generation"
    head = ModelCardData(
        license=license,
        library_name="consistune",
        pipeline_tag=task,
        model_name=name if distances else None,
        eval_results=[EvalResult(task, data, data, key, value) for key, value in distances.items()] or None,
    )
    facts = {
        "images": f"{channels} × {height} × {width}",
        "classes": ", ".join(card.class_names) or str(model.num_classes or "none"),
        "objective": card.objective or "not known",
        "training images": data,
        "licence of the weights": license or "not given",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        **{key: f"{value:.4g}" for key, value in distances.items()},
    }
    if card.start_from is not None:
        facts["started from"] = card.start_from.path
    table = "\n".join(f"| {_cell(key)} | {_cell(value)} |" for key, value in facts.items())
    made = "" if command is None else f"\nMade by `{_cell(command)}`.\n"
    shown = f"\n![Samples]({PICTURES})\n" if pictures else ""
    return f"""---
{head.to_yaml()}
---
# {name}

A model of [consistune](https://pypi.org/project/consistune) (Stable Consistency Tuning, arXiv 2410.18958).
{shown}
| | |
|---|---|
{table}
{made}
```python
import consistune

model = consistune.load("{PREFIX}{repo_id}")
images = consistune.sample(model, seeds=range(16))  # uint8 [16, {channels}, {height}, {width}]
```
"""


def _is_png(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8) == b"\x89PNG\r\n\x1a\n"


def _cell(text: str) -> str:
    """Text from outside, for one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
