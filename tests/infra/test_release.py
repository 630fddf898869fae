"""What a bare server is given."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import pytest

from infra.release import pack
from model_server.errors import ConfigurationError

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path):
    shutil.copytree(REPOSITORY / "model_server", tmp_path / "project/model_server")
    shutil.copy(REPOSITORY / "runconfig.py", tmp_path / "project")
    (tmp_path / "project/requirements").mkdir()
    shutil.copy(REPOSITORY / "requirements/server.txt", tmp_path / "project/requirements")
    return tmp_path / "project"


def test_the_same_sources_are_the_same_version_and_another_byte_is_another(project, tmp_path):
    first, archive = pack(project, None, tmp_path / "a")
    os.utime(project / "runconfig.py", (0, 0))
    second, again = pack(project, None, tmp_path / "b")
    assert first == second
    assert archive.read_bytes() == again.read_bytes()

    with (project / "runconfig.py").open("a") as file:
        file.write("\n")
    third, _ = pack(project, None, tmp_path / "a")
    assert third != first


def test_the_archive_has_the_sources_the_pins_and_the_wheels_and_no_bytecode(project, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "a-1-py3-none-any.whl").write_bytes(b"wheel")
    _, archive = pack(project, wheels, tmp_path / "out")

    with tarfile.open(archive) as tar:
        names = tar.getnames()
        assert {"app/runconfig.py", "app/model_server/__main__.py", "requirements.txt"} < set(names)
        assert "wheels/a-1-py3-none-any.whl" in names
        assert not [name for name in names if name.endswith(".pyc")]
        assert {(entry.uid, entry.mtime, entry.mode) for entry in tar.getmembers()} == {(0, 0, 0o644)}


def test_a_wheelhouse_without_wheels_is_refused(project, tmp_path):
    with pytest.raises(ConfigurationError, match="there are no wheels in"):
        pack(project, tmp_path / "nothing", tmp_path / "out")
