"""Models on the Hugging Face Hub: a model's folder with a README that says what it is."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from consistune.errors import UserError
from consistune.nn import pretrained, store
from consistune.nn.precond import Preconditioned

PREFIX = "hf://"
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
    private: bool = False,
    token: str | None = None,
    message: str = "Upload a model of consistune",
) -> str:
    """Upload a model's folder with a README to the repository "user/name"; returns its address.

    license: of the weights, by the Hub's word ("apache-2.0", "cc-by-4.0"); it depends on the data and on the
    weights that the training started from. token: None: the one that `hf auth login` stored.
    Raises UserError where the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as work, _hub_errors(repo_id):
        folder = store.save(model, Path(work) / "model")
        (folder / "README.md").write_text(readme(model, repo_id, license), encoding="utf-8")
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        return f"{api.endpoint}/{repo_id}"


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
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except (HFValidationError, HfHubHTTPError) as error:
        raise UserError(f"the Hub refuses: {' '.join(str(error).split())[:200]}", name) from error
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if library not in CONNECTIONS and not isinstance(error, LocalEntryNotFoundError | ConnectionError):
            raise
        raise UserError(
            f"the Hub cannot be reached ({type(error).__name__})", name, "look at the network, or try later"
        ) from error


def readme(model: Preconditioned, repo_id: str, license: str | None = None) -> str:
    """The text of a model's README, with the Hub's header: what the card knows, and how it is used."""
    card = model.card
    channels, height, width = model.image_shape
    head = ["library_name: consistune", "pipeline_tag: unconditional-image-generation"]
    if license is not None:
        head.insert(0, f"license: {license}")
    facts = {
        "images": f"{channels} × {height} × {width}",
        "classes": ", ".join(card.class_names) or str(model.num_classes or "none"),
        "objective": card.objective or "not known",
        "training images": card.data or "not known",
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
    }
    if card.start_from is not None:
        facts["started from"] = card.start_from.path
    table = "\n".join(f"| {name} | {_cell(value)} |" for name, value in facts.items())
    front = "\n".join(head)
    return f"""---
{front}
---
# {repo_id.partition("/")[2]}

A model of [consistune](https://pypi.org/project/consistune) (Stable Consistency Tuning, arXiv 2410.18958).

| | |
|---|---|
{table}

```python
import consistune

model = consistune.load("{PREFIX}{repo_id}")
images = consistune.sample(model, seeds=range(16))  # uint8 [16, {channels}, {height}, {width}]
```
"""


def _cell(text: str) -> str:
    """Text from outside, for one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
