"""`consistune init` after a kill."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from consistune.cli.main import app
from consistune.errors import UserError


@pytest.mark.parametrize("whole", [True, False])
def test_init_goes_on_after_its_first_file_and_replaces_no_other(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("init", "foo", "--data", "digits")
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    Path("foo.yaml").unlink()
    if whole:
        assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
        assert Path("foo.yaml").exists()
    else:
        Path("foo-teacher.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"foo-teacher\.yaml: is already there"):
        CliRunner().invoke(app, words, catch_exceptions=False)
    assert Path("foo.yaml").exists() == whole
