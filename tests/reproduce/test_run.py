"""Experiments' folders: which are taken."""

from pathlib import Path

import pytest

from consistune.errors import UserError
from consistune.reproduce.run import check_results


def test_a_kill_while_the_record_was_written_does_not_make_the_folder_anothers(tmp_path: Path) -> None:
    (tmp_path / ".data.json.27740.partial").write_text("{")
    check_results(tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UserError, match=r"mine\.txt.* is already there"):
        check_results(tmp_path)
