"""One folder a workspace, and one rule that says where it is."""

from pathlib import Path

import pytest

from schemas.errors import NotFound, StorageError
from store.workspace import Workspace, locate_workspace, open_workspace


def test_the_command_line_wins_over_the_environment_and_that_over_the_spec(tmp_path: Path) -> None:
    spec = tmp_path / "digits.toml"
    environment = {"WINNOW_WORKSPACE": str(tmp_path / "from-environment")}
    assert locate_workspace(spec, None, {}).root == tmp_path / ".winnow"
    assert locate_workspace(spec, None, environment).root == tmp_path / "from-environment"
    there = locate_workspace(spec, tmp_path / "there", environment)
    assert there.root == tmp_path / "there"


def test_locating_creates_nothing_and_opening_creates_the_folder(tmp_path: Path) -> None:
    spec = tmp_path / "digits.toml"
    assert not locate_workspace(spec, None, {}).root.exists()
    workspace = open_workspace(spec, None, {})
    assert workspace.artifacts.is_dir()
    assert (workspace.root / ".gitignore").read_text() == "*\n"
    assert open_workspace(spec, None, {}) == workspace


def test_every_path_is_inside_the_workspace(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path)
    paths = [
        workspace.ledger,
        workspace.published,
        workspace.artifacts,
        workspace.mlflow_db,
        workspace.mlartifacts,
        workspace.prefect,
        workspace.progress,
    ]
    assert len(set(paths)) == 7
    assert all(path.parent == tmp_path for path in paths)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".winnow").write_text("")
    with pytest.raises(NotFound, match="is a file; name a folder with --workspace"):
        open_workspace(tmp_path / "digits.toml", None, {})


def test_a_spec_in_a_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="check the spec's path"):
        open_workspace(tmp_path / "nowhere" / "digits.toml", None, {})


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot create the workspace"):
        open_workspace(None, tmp_path / "file" / "below", {})
