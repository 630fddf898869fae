"""What a bare server is given."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from infra import release
from infra.release import UNIT, check_model, check_wheelhouse, pack, pack_wheels, version
from model_server import deployment
from model_server.errors import ConfigurationError, ModelLoadError

REPOSITORY = Path(__file__).parents[2]
MODEL = REPOSITORY / "models/complaints-tiny"


@pytest.fixture
def project(tmp_path):
    shutil.copytree(REPOSITORY / "model_server", tmp_path / "project/model_server")
    shutil.copy(REPOSITORY / "runconfig.py", tmp_path / "project")
    (tmp_path / "project/requirements").mkdir()
    shutil.copy(REPOSITORY / "requirements/server.txt", tmp_path / "project/requirements")
    shutil.copytree(REPOSITORY / UNIT, tmp_path / "project" / UNIT)
    return tmp_path / "project"


def test_the_same_sources_are_the_same_version_and_another_byte_is_another(project, tmp_path):
    first, archive = pack(project, tmp_path / "a")
    os.utime(project / "runconfig.py", (0, 0))
    second, again = pack(project, tmp_path / "b")
    assert first == second
    assert archive.read_bytes() == again.read_bytes()

    with (project / "runconfig.py").open("a") as file:
        file.write("\n")
    third, _ = pack(project, tmp_path / "a")
    assert third != first


def test_the_archive_has_the_sources_and_the_pins_and_no_bytecode(project, tmp_path):
    _, archive = pack(project, tmp_path / "out")

    with tarfile.open(archive) as tar:
        names = tar.getnames()
        assert {"app/runconfig.py", "app/model_server/__main__.py", "requirements.txt"} < set(names)
        assert not [name for name in names if name.endswith(".pyc")]
        assert {(entry.uid, entry.mtime, entry.mode) for entry in tar.getmembers()} == {(0, 0, 0o644)}


def test_wheels_travel_apart_and_a_wheelhouse_without_any_is_refused(tmp_path):
    (tmp_path / "a-1-py3-none-any.whl").write_bytes(b"wheel")
    with tarfile.open(pack_wheels(tmp_path, tmp_path / "out")) as tar:
        assert tar.getnames() == ["a-1-py3-none-any.whl"]
    with pytest.raises(ConfigurationError, match="there are no wheels in"):
        pack_wheels(tmp_path / "nothing", tmp_path / "out")


def environment(*words):
    return deployment.load(REPOSITORY / "environments/onprem.yml", words, {})


def test_what_takes_a_restart_is_another_version_and_what_applies_at_once_is_not():
    first = version("release", environment())
    assert first.startswith("2026-11-01-")
    assert version("release", environment("serving.rate_limit_per_minute=1", "serving.log_level=DEBUG")) == first
    assert version("release", environment("rollout.gate=null", "replicas.max=3")) == first

    assert version("other", environment()) != first
    assert version("release", environment("optimization_settings.max_batch_size=4")) != first
    assert version("release", environment("serving.request_timeout_s=61")) != first


def test_a_version_is_a_folder_whatever_the_models_is_called():
    assert version("release", environment('model_version="../v 2/√"')).startswith("v-2-")


def test_a_wheelhouse_that_lacks_a_package_is_refused_and_says_which(tmp_path):
    pins = (REPOSITORY / "requirements/server.txt").read_text().splitlines(keepends=True)
    start = next(at for at, line in enumerate(pins) if line.startswith("certifi=="))
    end = next(at for at in range(start, len(pins)) if not pins[at].rstrip().endswith("\\"))
    requirements = tmp_path / "server.txt"
    requirements.write_text("".join(pins[start : end + 1]))
    (tmp_path / "wheels").mkdir()

    with pytest.raises(ConfigurationError, match=r"for Python 3\.11: No matching distribution found for certifi=="):
        check_wheelhouse(tmp_path / "wheels", requirements, "3.11")

    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-r",
        requirements,
        "-d",
        tmp_path / "wheels",
    ]
    subprocess.run(command, check=True)
    check_wheelhouse(tmp_path / "wheels", requirements, "3.11")
    [wheel] = (tmp_path / "wheels").iterdir()
    wheel.write_bytes(wheel.read_bytes()[:-1])
    with pytest.raises(ConfigurationError, match=r"(?i)hash"):
        check_wheelhouse(tmp_path / "wheels", requirements, "3.11")


@pytest.fixture
def archive(tmp_path):
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as tar:
        tar.add(MODEL, "complaints-tiny")
    return tmp_path / "model.tar.gz"


def test_an_archive_is_taken_with_its_checksum_alone(archive):
    right = hashlib.sha256(archive.read_bytes()).hexdigest()
    check_model(archive, right, environment())

    with pytest.raises(ConfigurationError, match="give its checksum too"):
        check_model(archive, "", environment())
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(ConfigurationError, match=f"and {right} was given: it is another archive, or was damaged"):
        check_model(archive, right, environment())


def test_an_archive_of_several_folders_is_refused(tmp_path):
    with tarfile.open(tmp_path / "model.tar", "w") as tar:
        tar.add(MODEL / "manifest.json", "a/manifest.json")
        tar.add(MODEL / "manifest.json", "b/manifest.json")
    right = hashlib.sha256((tmp_path / "model.tar").read_bytes()).hexdigest()
    with pytest.raises(ConfigurationError, match="holds a, b: expected one folder"):
        check_model(tmp_path / "model.tar", right, environment())


def test_a_folder_that_differs_from_its_manifest_is_refused(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    check_model(tmp_path / "model", "", environment())
    weights = tmp_path / "model/openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(ModelLoadError, match=r"openvino_model\.bin"):
        check_model(tmp_path / "model", "", environment())


def test_the_command_says_what_the_role_needs(capsys):
    assert release.main([str(REPOSITORY / "environments/onprem.yml"), f"model={MODEL}", "wheelhouse="]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said.keys() == {"release", "version", "archive", "packages", "wheels"}
    assert Path(said["archive"]).is_file()


@pytest.mark.parametrize("words", [[], ["environments/onprem.yml", "modle=x"], ["environments/onprem.yml", "model"]])
def test_words_that_mean_nothing_are_refused(words, capsys):
    assert release.main(words) == 2
    assert "python -m infra.release ENVIRONMENT.yml" in capsys.readouterr().err
