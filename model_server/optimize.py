"""Prepare a model directory that the server loads: OpenVINO IR at 16, 8 or 4 bits, or AWQ for LMDeploy.

    python -m model_server.optimize SOURCE OUT [bits=4|8|16] [method=openvino|awq] [group_size=128] [overwrite=true]
                                    [environment=environments/local.yml]

SOURCE is a Hugging Face directory (config.json, *.safetensors, tokenizer.json) or a hub id with its commit
(org/name@40 hex digits). The tools want packages that the server must not have, so they run in environments
of their own below ``$QWEN3_STACK_CACHE`` (default ~/.cache/qwen3-stack), made when missing. OUT appears whole,
with a manifest of its files, or not at all. With ``environment`` the KV cache and CPU settings that follow
from its limits are printed. The last line of stdout is one JSON object; progress goes to stderr.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

import runconfig
from model_server import classification, model_source
from model_server.cache import cache_dir
from model_server.errors import ConfigurationError, DeploymentError, ModelLoadError

Progress = Callable[[str], None]

_COPIED = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
_PACKAGES = {
    "export": ("nncf", "openvino", "openvino-tokenizers", "optimum", "optimum-intel", "torch", "transformers"),
    "lmdeploy": ("lmdeploy", "torch", "transformers"),
}
_TOOL = {"export": "optimum-cli", "lmdeploy": "lmdeploy"}
_SIZE = {"export": "6 GB", "lmdeploy": "7.4 GB"}
AWQ_GROUP = 128
"""Weights that share a scale; the only number with which LMDeploy's TurboMind loads AWQ (0.18, turbomind/converter.py,
_SUPPORTED_GROUP_SIZES)."""


class Preparation(runconfig.RunConfig):
    """What to make of which model."""

    source: str = Field(min_length=1)
    """A Hugging Face directory, or a hub id at a commit."""
    out: Path
    """Directory to write. It must not exist, or ``overwrite`` must be set."""
    bits: Literal[4, 8, 16] = 4
    """Of a weight of the large matrices; embeddings stay at 8 when it is 4."""
    method: Literal["openvino", "awq"] = "openvino"
    group_size: int = Field(default=128, ge=16, le=1024)
    """Weights that share a scale, at 4 bits."""
    overwrite: bool = False
    """Replace OUT, if it is a directory with a manifest."""
    environment: Path | None = None
    """Environment file whose limits decide on KV cache, threads and slots."""

    @model_validator(mode="after")
    def _awq_is_what_lmdeploy_loads(self) -> Preparation:
        if self.method == "awq" and self.bits != 4:
            raise ValueError(f"method=awq is 4 bits by definition, got bits={self.bits}: leave bits out")
        if self.method == "awq" and self.group_size != AWQ_GROUP:
            raise ValueError(
                f"LMDeploy loads AWQ in groups of {AWQ_GROUP} alone, got group_size={self.group_size}: leave it out"
            )
        return self


def prepare(
    wanted: Preparation, progress: Progress, *, extra: Mapping[str, str] | None = None, made_by: str = ""
) -> model_source.Manifest:
    """Write ``wanted.out``.

    Args:
        wanted: What to make of which model.
        progress: Takes a line for people.
        extra: Name -> text of further files that belong into the directory.
        made_by: Command for the manifest, where this is one step of another.

    Raises:
        ModelLoadError: The source cannot be used, or the tool failed on it.
        ConfigurationError: OUT is in the way, or the settings do not suit the model.
    """
    _check_out(wanted)
    source, shape = _source(wanted)
    name = "lmdeploy" if wanted.method == "awq" else "export"
    if wanted.bits == 4:
        _check_groups(wanted, shape)
    tools = environment(name, progress)
    wanted.out.parent.mkdir(parents=True, exist_ok=True)
    partial = wanted.out.parent / f".{wanted.out.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        command, method, engine = _command(wanted, tools, source, partial)
        _run(command, wanted.source, progress)
        # Names the source's path on this machine, and nothing reads it.
        (partial / "openvino_config.json").unlink(missing_ok=True)
        for file in (*_COPIED, classification.FILE_NAME):
            if (source / file).is_file() and not (partial / file).exists():
                shutil.copyfile(source / file, partial / file)
        for file, text in (extra or {}).items():
            (partial / file).write_text(text, encoding="utf-8")
        for path in partial.iterdir():
            path.chmod(0o644)  # safetensors writes 0600, and servers run under users of their own
        _check_result(partial, wanted.source)
        manifest = model_source.write_manifest(
            partial,
            architecture=shape.architecture,
            engine=engine,
            weight_bits=wanted.bits,
            method=method,
            source=_source_name(wanted.source, source),
            command=made_by
            or f"python -m model_server.optimize SOURCE {wanted.out.name} bits={wanted.bits} method={wanted.method}"
            + (f" group_size={wanted.group_size}" if wanted.bits == 4 else ""),
            versions=_versions(tools, _PACKAGES[name]),
        )
        _replace(partial, wanted.out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def environment(name: str, progress: Progress) -> Path:
    """The ``bin`` folder of a tools environment, which is made when it is missing.

    Raises:
        ConfigurationError: It is missing and cannot be made.
    """
    home = cache_dir() / "venvs" / name
    tools = home / "bin"
    if (tools / _TOOL[name]).exists() and _imports(tools):
        return tools
    pins = Path(__file__).resolve().parents[1] / "requirements" / f"{name}.txt"
    if not pins.is_file():
        raise ConfigurationError(
            f"the {name} environment is missing in {home} and {pins} is not here: work in a checkout"
        )
    progress(f"making the {name} environment in {home} (about {_SIZE[name]}, once) ...")
    steps: list[list[str]] = [[sys.executable, "-m", "venv", "--clear", str(home)]]
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is not None:
        steps.append([uv, "pip", "install", "-q", "-p", str(tools / "python"), "--require-hashes", "-r", str(pins)])
    else:
        pip = [str(tools / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        steps.append([*pip, "--require-hashes", "-r", str(pins)])
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigurationError(
                f"the {name} environment could not be made (`{' '.join(step[:4])} ...` exited with {done.returncode}): "
                f"{done.stderr.strip()[-600:]}"
            )
    (home / ".ready").touch()  # the Makefile's stamp
    return tools


# --- checks before anything is computed ------------------------------------------------------------------


def _check_out(wanted: Preparation) -> None:
    if not wanted.out.exists():
        return
    if not wanted.overwrite:
        raise ConfigurationError(f"{wanted.out} is already there: name another OUT, or add overwrite=true")
    if not (wanted.out / model_source.MANIFEST).is_file() and any(wanted.out.iterdir()):
        raise ConfigurationError(
            f"{wanted.out} has no {model_source.MANIFEST}, so it was not prepared by this command and is not "
            "replaced: remove it yourself, or name another OUT"
        )


def _source(wanted: Preparation) -> tuple[Path, model_source.ModelShape]:
    if (Path(wanted.source) / "openvino_model.xml").exists() or wanted.source.endswith(".gguf"):
        raise ModelLoadError(
            wanted.source, "engine openvino loads this as it is; optimize needs the weights it was made from"
        )
    # "transformers" stands for any engine that reads a Hugging Face directory.
    files = model_source.resolve(wanted.source, engine="transformers")
    if files.path is None or files.shape is None:
        raise ModelLoadError(wanted.source, "not a Hugging Face directory")
    if files.shape.architecture != model_source.ARCHITECTURE:
        raise ModelLoadError(
            wanted.source, f"architecture is {files.shape.architecture}, expected {model_source.ARCHITECTURE}"
        )
    if files.weight_bits is not None and files.weight_bits < 16:
        raise ModelLoadError(wanted.source, f"its weights have {files.weight_bits} bits already: start from 16 or 32")
    if not (files.path / "tokenizer.json").is_file():
        raise ModelLoadError(wanted.source, "tokenizer.json is missing: copy it beside config.json")
    return files.path, files.shape


def _check_groups(wanted: Preparation, shape: model_source.ModelShape) -> None:
    widths = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "attention": shape.heads * shape.head_dim,
    }
    if uneven := {name: width for name, width in widths.items() if width % wanted.group_size}:
        fitting = math.gcd(*widths.values())
        cure = f"use a divisor of {fitting}"
        if wanted.method == "awq":
            cure = f"LMDeploy loads no other; serve it unquantised, or by engine openvino (group_size: {cure})"
        raise ConfigurationError(
            f"group_size={wanted.group_size} does not divide "
            f"{', '.join(f'{name} {width}' for name, width in uneven.items())} of {wanted.source}: {cure}"
        )


# --- the work --------------------------------------------------------------------------------------------


def _command(wanted: Preparation, tools: Path, source: Path, out: Path) -> tuple[list[str], str, str]:
    """The tool's command line, the method in words, and the engine it is for."""
    if wanted.method == "awq":
        # Without calibration calls no data set is fetched; bfloat16 is refused on a CPU (LMDeploy 0.18). Calibrated on
        # 64 x 512 tokens of its own training prompts, a model of 1 M parameters lost as much as without: log-odds moved
        # by 0.072 and 0.069 nats (root mean square), and 1 in 80 labels.
        command = [str(tools / "lmdeploy"), "lite", "auto_awq", str(source), "--calib-samples", "0"]
        command += ["--device", "cpu", "--dtype", "float16", "--w-group-size", str(wanted.group_size)]
        return (
            [*command, "--work-dir", str(out)],
            f"lmdeploy auto_awq int4, group {wanted.group_size}, without calibration calls",
            "lmdeploy",
        )
    command = [str(tools / "optimum-cli"), "export", "openvino", "-m", str(source)]
    command += ["--task", "text-generation-with-past"]
    match wanted.bits:
        case 4:
            command += ["--weight-format", "int4", "--sym", "--group-size", str(wanted.group_size), "--ratio", "1.0"]
            method = f"nncf int4 symmetric, group {wanted.group_size}, ratio 1.0, embeddings int8"
        case 8:
            command += ["--weight-format", "int8"]
            method = "nncf int8 asymmetric, per channel"
        case 16:
            command += ["--weight-format", "fp16"]
            method = "fp16"
    return [*command, str(out)], method, "openvino"


def _run(command: Sequence[str], source: str, progress: Progress) -> None:
    """Run a tool and pass its lines on; the last ones explain a failure."""
    started = time.monotonic()
    progress(f"{Path(command[0]).name} {' '.join(command[1:3])} ...")
    tail: deque[str] = deque(maxlen=25)
    # A local directory is complete: nothing may be looked up, and a failing look-up costs minutes of retries.
    # Where CI is true, OpenVINO and NNCF report their use to nobody (openvino_telemetry: OptInChecker._run_in_ci).
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CI": "true"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True, env=offline
    ) as tool:
        assert tool.stdout is not None
        for line in tool.stdout:  # universal newlines: a bar redrawn with \r comes as lines
            text = line.rstrip()
            if text:
                tail.append(text)
                progress(f"  {time.monotonic() - started:5.0f} s  {text[:160]}")
    if tool.returncode:
        why = "\n  ".join(tail)
        raise ModelLoadError(source, f"{Path(command[0]).name} exited with {tool.returncode}:\n  {why}")


def _check_result(directory: Path, source: str) -> None:
    """A classifier's labels must be what the tokeniser that was copied makes of them."""
    from model_server import tokenizer

    settings = classification.load_settings(directory)
    if settings is not None:
        classification.check_labels(settings, tokenizer.load(directory).encode, source)


def _imports(tools: Path) -> bool:
    """Whether the environment's interpreter starts: it does not where the Python it was made with is gone."""
    return subprocess.run([tools / "python", "-c", ""], capture_output=True, check=False).returncode == 0


def _versions(tools: Path, packages: Sequence[str]) -> dict[str, str]:
    code = "import importlib.metadata as m,json,sys;print(json.dumps({p:m.version(p) for p in sys.argv[1:]}))"
    answer = subprocess.run([tools / "python", "-c", code, *packages], capture_output=True, text=True, check=True)
    versions: dict[str, str] = json.loads(answer.stdout)
    return versions


def _source_name(source: str, path: Path) -> str:
    """How the manifest names the source: a hub id as it is, a directory by its last name and its weights' hash."""
    if not Path(source).exists():
        return source
    digest = hashlib.sha256()
    for part in sorted(path.glob("*.safetensors")):
        with part.open("rb", buffering=0) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"{path.resolve().name} (weights sha256 {digest.hexdigest()})"


def _replace(new: Path, out: Path) -> None:
    """Put ``new`` in the place of ``out``. A reader sees the old directory, for a moment none, or the new one."""
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


# --- command line ----------------------------------------------------------------------------------------


def _derived(wanted: Preparation) -> dict[str, Any]:
    """Print and return what follows from the limits of an environment for the prepared model."""
    from model_server import capacity, deployment

    assert wanted.environment is not None
    config = deployment.load(
        wanted.environment,
        [f"model_source={wanted.out}", f"optimization_settings.quantization_bits={wanted.bits}", "model_revision=null"],
    )
    plan = capacity.check(config)
    print(plan.arithmetic)
    return {
        "threads": plan.threads,
        "max_batch_size": plan.slots,
        "kv_cache_bits": config.optimization_settings.kv_cache_bits,
        "kv_pool_bytes": plan.kv_pool_bytes,
        "kv_tokens": plan.kv_tokens,
        "predicted_resident_bytes": plan.predicted_resident_bytes,
    }


def main(arguments: Sequence[str]) -> int:
    places = [word for word in arguments if "=" not in word]
    words = dict(word.split("=", 1) for word in arguments if "=" in word)
    if len(places) != 2 or "--help" in arguments or "-h" in arguments:
        print(__doc__, file=sys.stderr)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    started = time.monotonic()
    try:
        raw = {"source": places[0], "out": places[1], **words}
        for key in ("bits", "group_size"):
            if key in raw and raw[key].isdigit():
                raw[key] = int(raw[key])  # type: ignore[assignment]
        wanted = runconfig.validate(Preparation, raw, "python -m model_server.optimize")
        manifest = prepare(wanted, lambda line: print(line, file=sys.stderr, flush=True))
        result: dict[str, Any] = {
            "out": str(wanted.out),
            "method": manifest.method,
            "bytes": sum(file.bytes for file in manifest.files.values()),
            "seconds": round(time.monotonic() - started, 1),
        }
        if wanted.environment is not None:
            print(f"{wanted.out} is prepared; with the limits of {wanted.environment}:")
            result["settings"] = _derived(wanted)
    except (runconfig.ConfigError, ConfigurationError) as error:
        print(error, file=sys.stderr)
        return 2
    except DeploymentError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
