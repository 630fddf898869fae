"""The command that measures; its times depend on the machine and are not judged here."""

from __future__ import annotations

import json

from monitoring.measure import main, row_of
from monitoring.request_files import RequestLine


def test_the_command_measures_and_judges(tmp_path, capsys):
    code = main(["requests=2000", f"folder={tmp_path}"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])

    assert code == (0 if found["holds"] else 1)
    assert found["requests"] == 2000
    assert found["recording_ms"] > 0
    assert found["proxy_recording_ms"] > 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_measured_is_a_whole_line():
    assert {"timestamp", *row_of(1.0)} == set(RequestLine.model_fields)


def test_what_cannot_be_used_is_said_in_one_line(tmp_path, capsys):
    assert main(["requests=5"]) == 2
    assert "greater than or equal to 1000" in capsys.readouterr().err
    assert main([f"folder={tmp_path}/no"]) == 2
    assert "No such file" in capsys.readouterr().err
