"""The package's page on an index: every link of README leads somewhere, and no address is invented."""

import importlib.util
import re
from pathlib import Path

import pytest

pytest.importorskip("hatchling", reason="hatchling is not installed")

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"!?\[[^\]]*\]\(([^)]+)\)")
TARGETS = LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch):
    """What hatch_build.py says of the package where these variables are set."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def of(**variables: str) -> dict:
        for key in ("SERVER_URL", "REPOSITORY", "SHA"):
            monkeypatch.delenv(f"GITHUB_{key}", raising=False)
        for key, value in variables.items():
            monkeypatch.setenv(f"GITHUB_{key}", value)
        found: dict = {}
        module.Front(str(ROOT), {}).update(found)
        return found

    return of


def test_in_a_workflow_links_lead_to_its_repository(metadata) -> None:
    found = metadata(SERVER_URL="https://example.org", REPOSITORY="me/mine", SHA="abc")
    base = "https://example.org/me/mine"
    assert found["urls"]["Repository"] == base
    shown = LINK.findall(found["readme"]["text"])
    assert len(shown) == len(TARGETS)
    for target, link in zip(TARGETS, shown, strict=True):
        kind = "raw" if target.endswith(".png") else "blob"
        assert link == (target if target.startswith("https:") else f"{base}/{kind}/abc/{target}")
    for page in found["urls"].values():
        assert (ROOT / page.removeprefix(base).removeprefix("/blob/abc/").lstrip("/")).exists()


def test_elsewhere_no_address_is_given(metadata) -> None:
    found = metadata(REPOSITORY="me/mine")
    assert "urls" not in found
    text = found["readme"]["text"]
    assert LINK.findall(text) == [target for target in TARGETS if target.startswith("https:")]
    assert "picture: Twenty emoji" in text
