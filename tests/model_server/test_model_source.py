from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from model_server import model_source
from model_server.errors import ModelLoadError
from model_server.model_source import MANIFEST, resolve, verify, write_manifest

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / "tests/tools"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 300,
    "max_position_embeddings": 2048,
    "intermediate_size": 128,
}
# Two constants as OpenVINO writes them; the second ends at byte 100.
XML = '<layer><data element_type="u8" shape="8, 5" offset="0" size="40"/><data offset="40" size="60"/></layer>'


def prepared(directory, **config):
    directory.mkdir()
    (directory / "openvino_model.xml").write_text(XML)
    (directory / "openvino_model.bin").write_bytes(bytes(range(100)))
    (directory / "tokenizer.json").write_text("{}")
    (directory / "config.json").write_text(json.dumps(CONFIG | config))
    return directory


@pytest.fixture
def directory(tmp_path):
    return prepared(tmp_path / "model")


@pytest.fixture
def listed(directory):
    write_manifest(
        directory,
        architecture="Qwen3ForCausalLM",
        engine="openvino",
        weight_bits=8,
        method="nncf int8",
        source="seed 0",
        versions={"nncf": "2.18"},
    )
    return directory


def refusal(source, *arguments, **more):
    with pytest.raises(ModelLoadError) as caught:
        resolve(str(source), *arguments, **more)
    message = str(caught.value)
    assert repr(str(source)) in message
    return message


def test_a_prepared_directory_tells_its_shape_and_size(listed):
    files = resolve(str(listed))
    shape = files.shape
    assert (files.kind, files.path, files.weights_bytes, files.weight_bits) == ("openvino", listed, 100, 8)
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.head_dim) == (2, 64, 4, 2, 32)
    assert (shape.vocab, shape.context, shape.intermediate) == (300, 2048, 128)
    assert files.classification is None


def test_a_classifier_is_known_by_its_settings(directory):
    (directory / "classification.json").write_text("{}")
    assert resolve(str(directory)).classification == directory / "classification.json"


def test_a_directory_without_a_manifest_is_taken_as_it_is(directory):
    files = resolve(str(directory))
    assert (files.manifest, files.weight_bits) == (None, None)


def test_the_manifest_holds_the_sha256_and_size_of_every_file(listed):
    """Digests come from sha256sum."""
    manifest = json.loads((listed / MANIFEST).read_text())
    lines = subprocess.run(
        ["sha256sum", *sorted(manifest["files"])], cwd=listed, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert {name: entry["sha256"] for name, entry in manifest["files"].items()} == {
        line.split()[1]: line.split()[0] for line in lines
    }
    assert manifest["files"].keys() == {path.name for path in listed.iterdir()} - {MANIFEST}
    assert manifest["files"]["openvino_model.bin"]["bytes"] == 100
    assert verify(listed).versions == {"nncf": "2.18"}


@pytest.mark.parametrize("name", ["openvino_model.xml", "openvino_model.bin", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("with_manifest", [True, False], ids=["listed", "unlisted"])
def test_a_missing_file_is_named(directory, request, name, with_manifest):
    if with_manifest:
        request.getfixturevalue("listed")
    (directory / name).unlink()
    message = refusal(directory)
    assert name in message
    assert "missing" in message


def test_a_truncated_file_is_named_with_both_sizes(listed):
    with (listed / "openvino_model.bin").open("r+b") as file:
        file.truncate(60)
    message = refusal(listed, check_hashes=False)
    assert "openvino_model.bin" in message
    assert "expects 100 bytes, got 60" in message


def test_truncated_weights_are_noticed_without_a_manifest_too(directory):
    """OpenVINO maps the file: reading past its end would be a SIGBUS."""
    with (directory / "openvino_model.bin").open("r+b") as file:
        file.truncate(99)
    assert "openvino_model.bin is truncated" in refusal(directory)


def test_one_altered_bit_is_noticed(listed):
    path = listed / "openvino_model.bin"
    data = bytearray(path.read_bytes())
    expected = hashlib.sha256(data).hexdigest()
    data[50] ^= 1
    path.write_bytes(data)
    message = refusal(listed)
    assert "openvino_model.bin was altered" in message
    assert expected in message
    assert hashlib.sha256(data).hexdigest() in message


def test_hashes_can_be_left_for_later(listed):
    (listed / "tokenizer.json").write_text("[]")
    assert resolve(str(listed), check_hashes=False).kind == "openvino"
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json was altered"):
        verify(listed)


def test_a_file_that_an_engine_would_read_must_be_listed(listed):
    (listed / "README.md").write_text("harmless")
    assert resolve(str(listed)).kind == "openvino"
    (listed / "generation_config.json").write_text("{}")
    assert "generation_config.json is not listed" in refusal(listed)


@pytest.mark.parametrize("with_manifest", [True, False], ids=["listed", "unlisted"])
def test_another_architecture_is_refused(tmp_path, with_manifest):
    directory = prepared(tmp_path / "llama", architectures=["LlamaForCausalLM"])
    if with_manifest:
        write_manifest(
            directory, architecture="LlamaForCausalLM", engine="openvino", weight_bits=8, method="", source=""
        )
    message = refusal(directory)
    assert "LlamaForCausalLM" in message
    assert "expected Qwen3ForCausalLM" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2"),
        ({"files": {"../../etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "outside the directory"),
        ({"files": {"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}}, "outside the directory"),
        ({"extra": 1}, "extra: unknown key"),
        ({"architecture": "LlamaForCausalLM"}, "says architecture LlamaForCausalLM"),
    ],
)
def test_a_manifest_that_cannot_be_believed_is_refused(listed, change, said):
    manifest = json.loads((listed / MANIFEST).read_text()) | change
    (listed / MANIFEST).write_text(json.dumps(manifest))
    assert said in refusal(listed)


@pytest.mark.parametrize("name", [MANIFEST, "config.json"])
@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff\xfe"])
def test_broken_json_is_named(directory, name, data):
    (directory / name).write_bytes(data)
    assert name in refusal(directory)


def test_a_config_that_describes_no_decoder_is_refused(directory):
    (directory / "config.json").write_text(json.dumps({"architectures": ["Qwen3ForCausalLM"]}))
    assert "does not describe a decoder" in refusal(directory)


def test_the_embedded_model_is_what_its_manifest_says():
    files = resolve(str(ROOT / "models/complaints-tiny"))
    assert files.kind == "openvino"
    assert files.classification is not None
    assert files.manifest is not None


# Hugging Face directories ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Hugging Face directory and GGUF files of it, written by tools of the tests."""
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run([sys.executable, TOOLS / "tiny_qwen3.py", folder / "hf"], check=True)
    for kind in ("f16", "q8_0", "q4_0"):
        subprocess.run(
            [sys.executable, "-m", "training.gguf_model", folder / "hf", folder / f"{kind}.gguf", kind], check=True
        )
    return folder


@pytest.fixture
def hf(tiny, tmp_path):
    shutil.copytree(tiny / "hf", tmp_path / "hf")
    return tmp_path / "hf"


def test_unconverted_weights_are_refused_by_openvino_and_the_remedy_is_named(hf):
    assert f"python -m model_server.optimize {hf}" in refusal(hf)


@pytest.mark.parametrize("engine", ["transformers", "lmdeploy"])
def test_unconverted_weights_are_what_the_torch_engines_read(hf, engine):
    files = resolve(str(hf), engine=engine)
    assert (files.kind, files.shape.layers, files.weight_bits) == ("huggingface", 2, 16)
    assert files.weights_bytes == (hf / "model.safetensors").stat().st_size


def test_awq_weights_have_the_bits_their_config_gives(hf):
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq", "bits": 4}}))
    assert resolve(str(hf), engine="lmdeploy").weight_bits == 4


def test_the_form_of_a_run_directory_that_suits_the_engine_is_found(hf, tmp_path):
    run = tmp_path / "run"
    (run / "best").mkdir(parents=True)
    assert "forms=[merged]" in refusal(run, engine="transformers")
    shutil.copytree(hf, run / "merged")
    files = resolve(str(run), engine="transformers")
    assert (files.kind, files.path) == ("huggingface", run / "merged")
    assert f"training.export run_dir={run} forms=[openvino-int8]" in refusal(run)
    shutil.copytree(hf, run / "awq")
    assert f"the run has awq and merged: name one, as in {run}/awq" in refusal(run, engine="lmdeploy")


def test_truncated_safetensors_are_named_with_both_sizes(hf):
    path = hf / "model.safetensors"
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(whole - 10)
    message = refusal(hf, engine="transformers")
    assert f"model.safetensors is truncated or altered: its header expects {whole} bytes, got {whole - 10}" in message


@pytest.mark.parametrize("data", [b"", b"\x01", struct.pack("<Q", 10**12), struct.pack("<Q", 3) + b"abc"])
def test_safetensors_without_a_header_are_refused(hf, data):
    (hf / "model.safetensors").write_bytes(data)
    assert "model.safetensors" in refusal(hf, engine="transformers")


def test_a_missing_shard_is_named(hf):
    (hf / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-2.safetensors"}}))
    assert "model-2.safetensors cannot be read" in refusal(hf, engine="transformers")


def test_engines_refuse_each_others_formats(directory, tiny):
    assert "got an OpenVINO directory: use engine openvino" in refusal(directory, engine="transformers")
    assert "got a GGUF file: use engine openvino" in refusal(tiny / "q8_0.gguf", engine="lmdeploy")


def test_an_adapter_alone_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "LoRA adapter without its base" in refusal(tmp_path)


def test_an_empty_directory_says_what_was_expected(tmp_path):
    message = refusal(tmp_path)
    assert "openvino_model.xml" in message
    assert "found nothing" in message


# GGUF -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "bits"), [("f16", 16), ("q8_0", 8), ("q4_0", 4)])
def test_a_gguf_header_tells_shape_and_bits(tiny, kind, bits):
    """The gguf package wrote the file; config.json is where the numbers came from."""
    config = json.loads((tiny / "hf/config.json").read_text())
    files = resolve(str(tiny / f"{kind}.gguf"))
    assert (files.kind, files.weight_bits, files.shape.architecture) == ("gguf", bits, "Qwen3ForCausalLM")
    assert files.shape.layers == config["num_hidden_layers"]
    assert files.shape.hidden == config["hidden_size"]
    assert files.shape.kv_heads == config["num_key_value_heads"]
    assert files.shape.head_dim == config["head_dim"]
    assert files.shape.vocab == config["vocab_size"]
    assert files.shape.context == config["max_position_embeddings"]


def test_a_gguf_file_alone_in_a_directory_is_found(tiny, tmp_path):
    shutil.copy(tiny / "q8_0.gguf", tmp_path)
    files = resolve(str(tmp_path))
    assert (files.kind, files.path) == ("gguf", tmp_path / "q8_0.gguf")


def test_a_manifest_beside_a_gguf_file_is_checked_too(tiny, tmp_path):
    path = Path(shutil.copy(tiny / "q8_0.gguf", tmp_path))
    write_manifest(tmp_path, architecture="Qwen3ForCausalLM", engine="openvino", weight_bits=8, method="", source="")
    assert resolve(str(tmp_path)).manifest is not None
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "q8_0.gguf was altered" in refusal(tmp_path)


def test_a_gguf_file_cut_anywhere_is_refused(tiny, tmp_path):
    data = (tiny / "q8_0.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (0, 3, 4, 10, 24, 100, 1000, len(data) // 2, len(data) - 32):
        path.write_bytes(data[:length])
        assert "cut.gguf" in refusal(path)


def test_a_gguf_file_of_another_architecture_is_refused(tiny, tmp_path):
    """The name is in the header; one of the same length keeps everything else in place."""
    path = tmp_path / "other.gguf"
    path.write_bytes((tiny / "q8_0.gguf").read_bytes().replace(b"qwen3", b"llama"))
    assert "architecture is llama" in refusal(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "model.txt").write_text("hello")
    assert "not a GGUF file" in refusal(tmp_path / "model.txt")


# Names ----------------------------------------------------------------------------------------------------


def test_an_ollama_name_is_left_to_ollama():
    files = resolve("qwen3:0.6b", engine="ollama")
    assert (files.kind, files.path, files.source) == ("ollama", None, "qwen3:0.6b")


def test_a_path_that_is_not_there_asks_for_the_commit_if_it_is_a_hub_id():
    message = refusal("models/not-there")
    assert "no such file or directory" in message
    assert "model_revision" in message


def test_a_name_that_cannot_be_a_hub_id_says_so():
    assert "does not look like a hub id" in refusal("/nowhere/at/all")


def test_a_revision_with_a_local_path_is_refused(directory):
    assert "this is a local path" in refusal(directory, COMMIT)


# The hub --------------------------------------------------------------------------------------------------


class Hub(http.server.ThreadingHTTPServer):
    """As much of the hub's HTTP as a download needs. ``files`` may be changed, ``asked`` tells the paths."""

    def __init__(self, files):
        self.files, self.asked, self.wrong = files, [], {}
        super().__init__(("127.0.0.1", 0), Answer)


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        hub = self.server
        path = self.path.partition("?")[0]
        hub.asked.append(path)
        api, raw = f"/api/models/org/name/tree/{COMMIT}", f"/org/name/resolve/{COMMIT}/"
        if path == api:
            tree = [
                {"type": "file", "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "path": name}
                for name, data in hub.files.items()
            ]
            self.answer(200, json.dumps(tree).encode())
        elif path.startswith(raw):
            name = path.removeprefix(raw)
            etag = f'"{hashlib.sha256(hub.files[name]).hexdigest()}"'
            self.answer(200, hub.wrong.get(name, hub.files[name]), **{"ETag": etag, "X-Repo-Commit": COMMIT})
        elif path.startswith("/api/models/org/name/"):
            self.answer(404, b"{}", **{"X-Error-Code": "RevisionNotFound"})
        else:
            self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

    def do_HEAD(self):
        self.do_GET()

    def answer(self, status, data, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(directory):
    server = Hub({path.name: path.read_bytes() for path in directory.iterdir()} | {"model.onnx": b"not wanted"})
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch(hub, tmp_path):
    """Resolve in a process of its own: huggingface_hub reads its environment when it is imported."""

    def fetch(source, revision=None):
        program = (
            "import sys\n"
            "from model_server.errors import ModelLoadError\nfrom model_server.model_source import resolve\n"
            "try: print(resolve(sys.argv[1], sys.argv[2] or None).path)\n"
            "except ModelLoadError as error: print('refused:', error)"
        )
        environ = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
            "HF_HOME": str(tmp_path / "hf-home"),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        command = [sys.executable, "-c", program, source, revision or ""]
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environ, timeout=120)
        return answer.stdout.strip()

    return fetch


def test_a_hub_id_is_fetched_at_its_commit_from_hf_endpoint_and_then_cached(hub, fetch, directory):
    path = Path(fetch("org/name", COMMIT))
    assert {entry.name for entry in path.iterdir()} == set(hub.files) - {"model.onnx"}
    assert (path / "openvino_model.bin").read_bytes() == (directory / "openvino_model.bin").read_bytes()
    assert any(COMMIT in asked for asked in hub.asked)

    hub.asked.clear()
    assert fetch(f"org/name@{COMMIT}") == str(path)
    assert not [asked for asked in hub.asked if "org/name" in asked]


def test_a_download_that_arrives_altered_is_refused(hub, fetch):
    """Same length, other bytes: the hub's own name for the blob is its sha256."""
    hub.wrong["openvino_model.bin"] = bytes(100)
    answer = fetch("org/name", COMMIT)
    assert answer.startswith("refused:")
    assert "openvino_model.bin was altered" in answer


def test_what_the_hub_does_not_have_is_said_plainly(fetch):
    assert "the hub has no such model" in fetch("org/other", COMMIT)
    assert f"the hub has no commit {'f' * 40}" in fetch("org/name", "f" * 40)


def test_the_manifest_is_written_last(directory, monkeypatch):
    """A preparation that is killed leaves no manifest that could be believed."""

    def killed(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_source, "_sha256", killed)
    with pytest.raises(KeyboardInterrupt):
        write_manifest(directory, architecture="x", engine="openvino", weight_bits=8, method="", source="")
    assert not (directory / MANIFEST).exists()
