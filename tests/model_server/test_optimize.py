from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_server import model_source, optimize
from model_server.cache import cache_dir
from model_server.errors import ModelLoadError
from training.random_model import Shape, write_model

SMALL = Shape(
    hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, head_dim=32, tokens=2000, vocab=2048, context=512
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    out = tmp_path_factory.mktemp("source") / "small"
    write_model(SMALL, out, 0, "small")
    return out


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """An export environment whose tool does what a test says. The real one is used by the training tier below."""
    home = tmp_path / "cache" / "venvs" / "export" / "bin"
    home.mkdir(parents=True)
    monkeypatch.setenv("QWEN3_STACK_CACHE", str(tmp_path / "cache"))

    def script(name, text):
        (home / name).write_text(f"#!/bin/sh\n{text}\n")
        (home / name).chmod(0o755)

    script("python", 'echo \'{"nncf": "3.4.0"}\'')

    def behave(text):
        script("optimum-cli", text)

    behave(
        'for last; do :; done; mkdir -p "$last"; echo "$@" > "$last/arguments"; '
        'umask 077; touch "$last/openvino_config.json" "$last/model.bin"'
    )
    return behave


def run(*words):
    return optimize.main([str(word) for word in words])


def test_the_directory_is_complete_and_its_manifest_names_files_method_and_versions(tools, source, tmp_path, capsys):
    out = tmp_path / "models" / "small-int4"
    assert run(source, out, "group_size=32") == 0
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert set(manifest["files"]) == {
        "arguments", "chat_template.jinja", "classification.json", "generation_config.json", "model.bin",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert (manifest["weight_bits"], manifest["engine"]) == (4, "openvino")
    assert "int4 symmetric, group 32" in manifest["method"]
    assert manifest["versions"] == {"nncf": "3.4.0"}
    assert str(tmp_path) not in (out / "manifest.json").read_text()
    assert {path.stat().st_mode & 0o444 for path in out.iterdir()} == {0o444}
    arguments = (out / "arguments").read_text()
    assert "--weight-format int4 --sym --group-size 32 --ratio 1.0" in arguments
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["out"] == str(out)


def test_a_tool_that_fails_is_quoted_and_leaves_nothing(tools, source, tmp_path, capsys):
    tools("echo loading; echo 'ValueError: no such layer' >&2; exit 3")
    out = tmp_path / "models" / "out"
    assert run(source, out, "bits=8") == 1
    told = capsys.readouterr().err
    assert "exited with 3" in told
    assert "ValueError: no such layer" in told
    assert list((tmp_path / "models").iterdir()) == []


def test_a_tool_that_is_killed_half_way_leaves_the_old_directory_as_it_was(tools, source, tmp_path):
    out = tmp_path / "out"
    assert run(source, out, "bits=8") == 0
    before = (out / "manifest.json").read_bytes()
    tools('for last; do :; done; mkdir -p "$last"; echo half > "$last/openvino_model.bin"; kill -9 $$')
    assert run(source, out, "bits=8", "overwrite=true") == 1
    assert (out / "manifest.json").read_bytes() == before
    assert not (out / "openvino_model.bin").exists()


def test_overwrite_replaces_the_directory(tools, source, tmp_path):
    out = tmp_path / "out"
    assert run(source, out, "bits=8") == 0
    assert run(source, out, "bits=16", "overwrite=true") == 0
    assert json.loads((out / "manifest.json").read_bytes())["weight_bits"] == 16


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: (s / "config.json").unlink(), "no model in"),
        (lambda s: (s / "model.safetensors").unlink(), "safetensors"),
        (lambda s: os.truncate(s / "model.safetensors", 1000), "model.safetensors"),
        (lambda s: (s / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda s: (s / "config.json").write_text("{"), "config.json"),
        (
            lambda s: (s / "config.json").write_text(
                (s / "config.json").read_text().replace("Qwen3ForCausalLM", "LlamaForCausalLM")
            ),
            "LlamaForCausalLM",
        ),
        (lambda s: (s / "openvino_model.xml").write_text("<net/>"), "loads this as it is"),
    ],
)
def test_a_source_that_cannot_be_used_is_a_clear_error(tools, tmp_path, capsys, change, told):
    broken = tmp_path / "broken"
    write_model(SMALL, broken, 0, "small")
    (broken / "manifest.json").unlink()
    change(broken)
    assert run(broken, tmp_path / "out") == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_altered_source_is_refused_by_its_manifest(tools, tmp_path):
    altered = tmp_path / "altered"
    write_model(SMALL, altered, 0, "small")
    text = (altered / "config.json").read_text().replace("40_960", "1").replace('"silu"', '"relu"')
    (altered / "config.json").write_text(text)
    wanted = optimize.Preparation(source=str(altered), out=tmp_path / "out", bits=8)
    with pytest.raises(ModelLoadError, match=r"config\.json"):
        optimize.prepare(wanted, print)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["bits=5"], "bits"),
        (["method=awq", "bits=8"], "method=awq is 4 bits"),
        (["method=awq", "group_size=32"], "LMDeploy loads AWQ in groups of 128 alone, got group_size=32"),
        (["method=awq"], "group_size=128 does not divide hidden_size 64"),
        (["group_size=96"], "does not divide hidden_size 64"),
        (["methd=awq"], "did you mean 'method'"),
    ],
)
def test_settings_that_do_not_suit_are_refused_before_anything_is_made(tools, source, tmp_path, capsys, words, told):
    assert run(source, tmp_path / "out", *words) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_in_the_way_stays(tools, source, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert run(source, tmp_path / "out", "bits=8") == 2
    assert run(source, tmp_path / "out", "bits=8", "overwrite=true") == 2
    assert "not prepared by this command" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.txt").read_text() == "years of work"


def test_what_follows_from_an_environment_s_limits_is_told_with_the_arithmetic(tmp_path, capsys):
    environment = Path(__file__).resolve().parents[2] / "environments" / "local.yml"
    model = Path(__file__).resolve().parents[2] / "models" / "complaints-tiny"
    wanted = optimize.Preparation(source="unused", out=model, bits=8, environment=environment)
    plan = optimize._derived(wanted)
    assert plan["kv_tokens"] >= 1024
    assert plan["threads"] >= 1
    assert "KV pool" in capsys.readouterr().out


def test_without_two_places_the_usage_is_shown(capsys):
    assert run("only-one") == 2
    assert "SOURCE OUT" in capsys.readouterr().err


@pytest.mark.training
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_the_real_tool_makes_a_directory_that_openvino_genai_loads(source, tmp_path, bits):
    export = cache_dir() / "venvs" / "export" / "bin" / "optimum-cli"
    if not export.exists():
        pytest.skip("no export environment: make export-env")
    out = tmp_path / f"int{bits}"
    home = {name: value for name, value in os.environ.items() if name != "CI"}
    (tmp_path / "home").mkdir()
    home |= {"HOME": str(tmp_path / "home"), "QWEN3_STACK_CACHE": str(cache_dir())}
    done = subprocess.run(
        [sys.executable, "-m", "model_server.optimize", source, out, f"bits={bits}", "group_size=32"],
        env=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # OpenVINO's reporter leaves its mark there before it sends, also without a network.
    assert not (tmp_path / "home" / "intel").exists()
    files = model_source.resolve(str(out))
    assert (files.kind, files.weight_bits) == ("openvino", bits)
    assert b"/" + str(source).encode()[1:] not in b"".join(path.read_bytes() for path in Path(out).iterdir())
    code = """
import sys, openvino_genai as genai
scheduler = genai.SchedulerConfig(); scheduler.num_kv_blocks = 64
pipe = genai.ContinuousBatchingPipeline(sys.argv[1], scheduler, "CPU", {"KV_CACHE_PRECISION": "u8"})
config = genai.GenerationConfig(); config.max_new_tokens = 4; config.ignore_eos = True
handle = pipe.add_request(0, "你好", config)
tokens = []
while pipe.has_non_finished_requests():
    pipe.step()
    while handle.can_read():
        tokens += handle.read()[0].generated_ids
print(len(tokens))
"""
    loaded = subprocess.run([sys.executable, "-c", code, out], capture_output=True, text=True, check=False)
    assert loaded.stdout.strip() == "4", loaded.stderr
