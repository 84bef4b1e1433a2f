"""The package's page on an index: README with links that work there, and the address of the repository.

The address is that of the repository whose workflow builds the package (GitHub sets the variables). Elsewhere
no address is known: links into the repository are then plain words, and its pictures their descriptions.
"""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)")


def long_description(readme: str, repository: str | None, ref: str) -> str:
    """README with its relative links made absolute, or taken out where no address is known."""

    def link(found: re.Match[str]) -> str:
        picture, words, target = found.groups()
        if repository is None:
            return f"*(In the repository, a picture: {words}.)*" if picture else words
        return f"{picture}[{words}]({repository}/{'raw' if picture else 'blob'}/{ref}/{target})"

    return RELATIVE.sub(link, readme)


class Front(MetadataHookInterface):
    def update(self, metadata: dict) -> None:
        server, name, ref = (os.environ.get(f"GITHUB_{key}") for key in ("SERVER_URL", "REPOSITORY", "SHA"))
        repository = f"{server}/{name}" if server and name and ref else None
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = long_description(readme, repository, ref or "")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        if repository is not None:
            pages = {"Documentation": "docs/index.md", "Changes": "CHANGELOG.md"}
            metadata["urls"] = {"Repository": repository} | {
                title: f"{repository}/blob/{ref}/{page}" for title, page in pages.items()
            }
