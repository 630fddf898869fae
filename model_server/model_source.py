"""Where a model comes from, what it is, and whether its files are the ones that were prepared.

:func:`resolve` turns ``model_source`` into files on this machine: a prepared OpenVINO directory, a GGUF
file, a Hugging Face directory, a hub id at a pinned commit, or an Ollama name. A directory with a
``manifest.json`` is checked against it, file by file, before an engine reads a byte.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field

from model_server import gguf_header
from model_server.errors import ModelLoadError
from runconfig import ConfigError, RunConfig, validate

SourceKind: TypeAlias = Literal["openvino", "gguf", "huggingface", "ollama"]

MANIFEST = "manifest.json"
ARCHITECTURE = "Qwen3ForCausalLM"
PREPARE = "python -m model_server.optimize"

_IR = ("openvino_model.xml", "openvino_model.bin", "tokenizer.json", "config.json")
# What an engine would read if it lay there; anything else (README, licences) needs no entry in the manifest.
_READ_BY_ENGINES = {".xml", ".bin", ".json", ".jinja", ".safetensors", ".gguf", ".txt", ".model"}
RUN_FORMS = {
    "openvino": ("openvino-int8", "openvino-int4", "openvino-fp16"),
    "transformers": ("merged",),
    "lmdeploy": ("awq", "merged"),
}
"""Folders of a run directory of training/ (training/export.py) that each engine loads."""
_HUB_ID = re.compile(r"(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<commit>[0-9a-f]{40}))?")
_HUB_IGNORED = ["*.onnx", "*.h5", "*.msgpack", "*.pt", "*.pth", "pytorch_model*", "original/*", "*.zip"]


class FileDigest(RunConfig):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(RunConfig):
    """What a prepared directory holds and how it was made."""

    format: Literal[1] = 1
    """Version of this file's layout."""
    architecture: str
    """As in ``config.json``, for example Qwen3ForCausalLM."""
    engine: str
    """The engine that it was prepared for."""
    weight_bits: int = Field(ge=1, le=32)
    """Bits of a weight of the large matrices."""
    method: str
    """For example ``nncf int4 symmetric, group 128``."""
    source: str
    """What it was made from: a hub id at a commit, a run of training/, a seed."""
    command: str = ""
    """Makes it again."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Package -> version of what made it."""
    files: dict[str, FileDigest]
    """Path below the directory -> digest."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes that memory depends on."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    """Longest sequence the model was made for, tokens."""
    intermediate: int


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model on this machine.

    Attributes:
        source: As it was asked for.
        path: Directory, or the GGUF file; None for a name that Ollama knows.
        weights_bytes: Size of the weights on disk; None where they are not here.
        weight_bits: None when nothing says.
        classification: Settings of a classifier; a second form of the weights is compiled for its labels.
    """

    kind: SourceKind
    source: str
    path: Path | None
    manifest: Manifest | None = None
    shape: ModelShape | None = None
    weights_bytes: int | None = None
    weight_bits: int | None = None
    classification: Path | None = None


def resolve(
    source: str, revision: str | None = None, engine: str = "openvino", *, check_hashes: bool = True
) -> ModelFiles:
    """Find the model and refuse it early if ``engine`` cannot load it.

    sha256 of 383 MB takes 0.27 s with SHA-NI (2026-11-23), against 1.5 s for the load; hashing releases the
    GIL, so files go in parallel.

    Args:
        source: ``model_source`` or ``model_fallback``.
        revision: Commit of a hub id; ``org/name@commit`` says the same.
        check_hashes: False checks presence and sizes only, for plans and for a start that runs
            :func:`verify` beside the engine's own loading.

    Raises:
        ModelLoadError: Missing, truncated, altered, of another architecture, or not prepared for ``engine``.
    """
    if engine == "ollama":
        return ModelFiles("ollama", source, None)
    path = Path(source).expanduser()
    if path.exists():
        if revision is not None:
            raise ModelLoadError(source, f"model_revision {revision} is set but this is a local path: remove it")
    else:
        path = _from_hub(source, revision)
    if (path / "best").is_dir():
        path = _form_of_run(source, path, engine)
    files = _gguf_file(source, path) if path.is_file() else _directory(source, path)
    _accept(files, engine)
    if check_hashes and path.is_dir() and files.path is not None:
        folder = files.path if files.path.is_dir() else files.path.parent
        expected = _blob_digests(folder) if files.manifest is None else _listed_digests(files.manifest)
        _check_hashes(source, folder, expected)
    return files


def write_manifest(
    directory: Path,
    *,
    architecture: str,
    engine: str,
    weight_bits: int,
    method: str,
    source: str,
    command: str = "",
    versions: Mapping[str, str] | None = None,
) -> Manifest:
    """Digest every file of ``directory`` into its ``manifest.json``. Call it last: a half-made one has none."""
    names = sorted(_files_below(directory))
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(_sha256, [directory / name for name in names]))
    manifest = Manifest(
        architecture=architecture,
        engine=engine,
        weight_bits=weight_bits,
        method=method,
        source=source,
        command=command,
        versions=dict(versions or {}),
        files={
            name: FileDigest(sha256=digest, bytes=(directory / name).stat().st_size)
            for name, digest in zip(names, hashes, strict=True)
        },
    )
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
    (directory / MANIFEST).write_text(text, encoding="utf-8")
    return manifest


def verify(directory: Path, source: str | None = None) -> Manifest:
    """Check presence, size and sha256 of every file that the manifest lists, and that it lists all needed.

    Raises:
        ModelLoadError: Naming the file, what was expected and what is there.
    """
    name = str(directory) if source is None else source
    manifest = _read_manifest(name, directory)
    if manifest is None:
        raise ModelLoadError(name, f"no {MANIFEST} in {directory}: make one with `{PREPARE}`")
    _check_listing(name, directory, manifest)
    _check_hashes(name, directory, _listed_digests(manifest))
    return manifest


# Directories ---------------------------------------------------------------------------------------------


def _directory(source: str, path: Path) -> ModelFiles:
    manifest = _read_manifest(source, path)
    if manifest is not None:
        _check_listing(source, path, manifest)
    if any((path / name).exists() for name in _IR[:2]):
        return _openvino_directory(source, path, manifest)
    if (path / "config.json").exists():
        return _huggingface_directory(source, path, manifest)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return replace(_gguf_file(source, ggufs[0]), manifest=manifest)
    if (path / "adapter_config.json").exists():
        raise ModelLoadError(source, "this is a LoRA adapter without its base: merge it with training.export")
    found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
    raise ModelLoadError(
        source,
        f"no model in {path}: expected {', '.join(_IR)}, or config.json with *.safetensors, or one *.gguf; "
        f"found {found}",
    )


def _form_of_run(source: str, path: Path, engine: str) -> Path:
    there = [name for name in RUN_FORMS[engine] if (path / name / "config.json").is_file()]
    if len(there) > 1:
        raise ModelLoadError(
            source, f"the run has {' and '.join(there)}: name one, as in {source.rstrip('/')}/{there[0]}"
        )
    if not there:
        raise ModelLoadError(
            source,
            f"the run has nothing that engine {engine} loads: "
            f"python -m training.export run_dir={source} forms=[{RUN_FORMS[engine][0]}]",
        )
    return path / there[0]


def _openvino_directory(source: str, path: Path, manifest: Manifest | None) -> ModelFiles:
    missing = [name for name in _IR if not (path / name).is_file()]
    if missing:
        raise ModelLoadError(source, f"{', '.join(missing)} missing in {path}: prepare it again with `{PREPARE}`")
    size = (path / "openvino_model.bin").stat().st_size
    needed = _ir_weights_end(path / "openvino_model.xml")
    if size < needed:
        raise ModelLoadError(
            source,
            f"openvino_model.bin is truncated: openvino_model.xml refers to {needed} bytes, got {size}: copy it again",
        )
    settings = path / "classification.json"
    return ModelFiles(
        kind="openvino",
        source=source,
        path=path,
        manifest=manifest,
        shape=_shape(source, path / "config.json"),
        weights_bytes=size,
        weight_bits=None if manifest is None else manifest.weight_bits,
        classification=settings if settings.is_file() else None,
    )


def _huggingface_directory(source: str, path: Path, manifest: Manifest | None) -> ModelFiles:
    config = _json(source, path / "config.json")
    index = path / "model.safetensors.index.json"
    if index.exists():
        parts = sorted(set(_json(source, index).get("weight_map", {}).values()))
    else:
        parts = sorted(entry.name for entry in path.glob("*.safetensors"))
    if not parts:
        raise ModelLoadError(source, f"no *.safetensors in {path}: copy the weights beside config.json")
    for part in parts:
        _check_safetensors(source, path / part)
    quantization = config.get("quantization_config") or {}
    settings = path / "classification.json"
    return ModelFiles(
        kind="huggingface",
        source=source,
        path=path,
        manifest=manifest,
        shape=_shape(source, path / "config.json"),
        weights_bytes=sum((path / part).stat().st_size for part in parts),
        weight_bits=int(quantization.get("bits", 16)),
        classification=settings if settings.is_file() else None,
    )


def _shape(source: str, path: Path) -> ModelShape:
    config = _json(source, path)
    try:
        heads = int(config["num_attention_heads"])
        return ModelShape(
            architecture=str((config.get("architectures") or ["none named"])[0]),
            layers=int(config["num_hidden_layers"]),
            hidden=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            vocab=int(config["vocab_size"]),
            context=int(config["max_position_embeddings"]),
            intermediate=int(config["intermediate_size"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(source, f"{path} does not describe a decoder: {error!r}") from error


def _accept(files: ModelFiles, engine: str) -> None:
    """Refuse what ``engine`` cannot load, before anything is started."""
    architecture = None if files.shape is None else files.shape.architecture
    if engine == "openvino":
        if files.kind == "huggingface":
            local = files.path if Path(files.source).exists() else None
            raise ModelLoadError(
                files.source,
                f"engine 'openvino' cannot read unconverted weights: run `{PREPARE} {local or files.source}` first "
                "and point model_source at the directory that it writes",
            )
        if architecture != ARCHITECTURE:
            raise ModelLoadError(files.source, f"architecture is {architecture}, expected {ARCHITECTURE}")
    elif files.kind != "huggingface":
        raise ModelLoadError(
            files.source,
            f"engine {engine!r} reads a Hugging Face directory (config.json, *.safetensors), got "
            f"{'an OpenVINO directory' if files.kind == 'openvino' else 'a GGUF file'}: use engine openvino",
        )
    manifest = files.manifest
    if manifest is not None and manifest.architecture != architecture:
        raise ModelLoadError(
            files.source,
            f"{MANIFEST} says architecture {manifest.architecture}, config.json says {architecture}",
        )


# Manifest ------------------------------------------------------------------------------------------------


def _read_manifest(source: str, directory: Path) -> Manifest | None:
    path = directory / MANIFEST
    if not path.exists():
        return None
    raw = _json(source, path)
    if raw.get("format") != 1:
        raise ModelLoadError(source, f"{path} has format {raw.get('format')!r}, this version reads format 1")
    try:
        return validate(Manifest, raw, str(path))
    except ConfigError as error:
        raise ModelLoadError(source, str(error)) from error


def _check_listing(source: str, directory: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelLoadError(source, f"{MANIFEST} lists {name!r}, which is outside the directory")
        if not path.is_file():
            raise ModelLoadError(source, f"{name} is missing: {MANIFEST} expects {expected.bytes} bytes")
        size = path.stat().st_size
        if size != expected.bytes:
            raise ModelLoadError(
                source, f"{name} has another size: {MANIFEST} expects {expected.bytes} bytes, got {size}"
            )
    for name in sorted(_files_below(directory)):
        if name not in manifest.files and Path(name).suffix in _READ_BY_ENGINES:
            raise ModelLoadError(
                source, f"{name} is not listed in {MANIFEST}: remove it, or prepare the directory again"
            )


def _check_hashes(source: str, directory: Path, expected: Mapping[str, str]) -> None:
    # Largest first: the small ones are done beside it.
    names = sorted(expected, key=lambda name: (directory / name).stat().st_size, reverse=True)
    with ThreadPoolExecutor() as pool:
        for name, got in zip(names, pool.map(_sha256, [directory / name for name in names]), strict=True):
            if got != expected[name]:
                raise ModelLoadError(source, f"{name} was altered: expected sha256 {expected[name]}, got {got}")


def _listed_digests(manifest: Manifest) -> dict[str, str]:
    return {name: digest.sha256 for name, digest in manifest.files.items()}


def _blob_digests(directory: Path) -> dict[str, str]:
    """Of files in the hub's cache: links to blobs, and large ones are named for their sha256."""
    targets = {name: (directory / name).resolve().name for name in _files_below(directory)}
    return {name: target for name, target in targets.items() if re.fullmatch(r"[0-9a-f]{64}", target)}


def _files_below(directory: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            relative = (Path(folder) / name).relative_to(directory).as_posix()
            if relative != MANIFEST and not name.startswith("."):
                yield relative


def _sha256(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# File formats --------------------------------------------------------------------------------------------


def _json(source: str, path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(source, f"{path} cannot be read: {error}") from error
    if not isinstance(raw, dict):
        raise ModelLoadError(source, f"{path} must hold an object, got a {type(raw).__name__}")
    return raw


def _ir_weights_end(xml: Path) -> int:
    """Bytes of weights that the graph refers to. OpenVINO maps the file: past its end is only SIGBUS."""
    pattern = re.compile(rb'\boffset="(\d+)"[^>]*?\bsize="(\d+)"')
    return max((int(a) + int(b) for a, b in pattern.findall(xml.read_bytes())), default=0)


def _check_safetensors(source: str, path: Path) -> None:
    """Source: the safetensors format, an 8-byte length, a JSON header, then the data."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = path.stat().st_size
            header = json.loads(file.read(length)) if length < size else {}
    except (OSError, struct.error, ValueError) as error:
        raise ModelLoadError(source, f"{path.name} cannot be read: {error}") from error
    ends = (entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelLoadError(
            source, f"{path.name} is truncated or altered: its header expects {expected} bytes, got {size}"
        )


def _gguf_file(source: str, path: Path) -> ModelFiles:
    size = path.stat().st_size
    try:
        metadata, tensors, data_start = gguf_header.read(path)
    except ValueError as error:
        raise ModelLoadError(source, f"{path.name} {error}") from error
    end = data_start + max((offset + length for _, offset, length in tensors.values()), default=0)
    if size < end:
        raise ModelLoadError(source, f"{path.name} is truncated: its header expects {end} bytes, got {size}")
    name = metadata.get("general.architecture")
    try:
        heads = int(metadata[f"{name}.attention.head_count"])
        shape = ModelShape(
            architecture=ARCHITECTURE if name == "qwen3" else f"{name} (GGUF)",
            layers=int(metadata[f"{name}.block_count"]),
            hidden=int(metadata[f"{name}.embedding_length"]),
            heads=heads,
            kv_heads=int(metadata[f"{name}.attention.head_count_kv"]),
            head_dim=int(metadata.get(f"{name}.attention.key_length") or metadata[f"{name}.embedding_length"] // heads),
            vocab=int(metadata.get(f"{name}.vocab_size") or metadata["tokenizer.ggml.tokens"]),
            context=int(metadata[f"{name}.context_length"]),
            intermediate=int(metadata[f"{name}.feed_forward_length"]),
        )
    except KeyError as error:
        raise ModelLoadError(source, f"{path.name} does not describe a decoder: {error} is missing") from error
    large = max(tensors.values(), key=lambda tensor: tensor[2], default=None)
    attention = tensors.get("blk.0.attn_q.weight", large)
    bits = None
    if attention is not None:
        weights, block = gguf_header.BLOCKS[attention[0]]
        bits = 16 if weights == 1 else 8 * (block - 2) // weights
    return ModelFiles("gguf", source, path, shape=shape, weights_bytes=size - data_start, weight_bits=bits)


# The hub -------------------------------------------------------------------------------------------------


def _from_hub(source: str, revision: str | None) -> Path:
    """Download ``org/name`` at its commit into the hub's cache; a complete copy there needs no network.

    huggingface_hub repeats what fails 5 times, with exponential back-off (23 s in all, seen with 2.4).
    """
    match = _HUB_ID.fullmatch(source)
    if match is None:
        raise ModelLoadError(source, "no such file or directory, and it does not look like a hub id (org/name)")
    commit = match["commit"] or revision
    if commit is None:
        raise ModelLoadError(
            source,
            "no such file or directory; if it is a hub id, pin its commit: model_revision=<40 hex digits> "
            "(a branch moves, and then replicas differ)",
        )
    from huggingface_hub import errors, snapshot_download

    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        path = Path(snapshot_download(match["repo"], revision=commit, ignore_patterns=_HUB_IGNORED, endpoint=endpoint))
    except errors.RepositoryNotFoundError as error:
        raise ModelLoadError(source, "the hub has no such model, or it needs a token (HF_TOKEN)") from error
    except errors.RevisionNotFoundError as error:
        raise ModelLoadError(source, f"the hub has no commit {commit} of it") from error
    except (errors.HfHubHTTPError, OSError) as error:
        reason = " ".join(str(error).split())
        raise ModelLoadError(
            source,
            f"could not be fetched from {endpoint or 'the hub'}: {reason}; HF_ENDPOINT names a mirror, and a "
            "directory in model_source needs no network",
        ) from error
    return path
