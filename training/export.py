"""Forms of a trained model that servers load.

    python -m training.export run_dir=runs/finetune-... [forms='[merged, openvino-int8]'] [overwrite=true]

in the training environment. From ``run_dir/best`` it writes, each in a folder of its own beside it:

    adapter        LoRA alone, for LMDeploy's PyTorch engine: the scale and the keys that it understands
    merged         Hugging Face directory, adapter merged into a freshly loaded base; for transformers and LMDeploy
    openvino-int8  openvino-int4, openvino-fp16: for the engine openvino
    gguf-q8_0      gguf-f16, gguf-q4_0: for Ollama and llama.cpp
    awq            4 bits in groups of 128, for LMDeploy; made on a CPU, computed with on a GPU alone

``model_source: run_dir`` then finds the form for its engine. What quantisation costs is measured by
``python -m training.parity``.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import runconfig
from model_server import classification, optimize
from model_server.errors import ConfigurationError, DeploymentError
from training.scores import read_scores

Form = Literal[
    "adapter",
    "merged",
    "openvino-fp16",
    "openvino-int8",
    "openvino-int4",
    "gguf-f16",
    "gguf-q8_0",
    "gguf-q4_0",
    "awq",
]
ADAPTER = "adapter_config.json"
REFERENCE = "reference_scores.json"
"""Conversation id -> log-probabilities of the labels by the trained model, for comparison with any form of it."""
REFERENCE_CALLS = 200
OPENVINO_BITS: dict[str, Literal[4, 8, 16]] = {"fp16": 16, "int8": 8, "int4": 4}

# peft 0.14, which LMDeploy 0.18 pins, loses r, alpha and targets when it meets a key it does not know (measured).
ADAPTER_KEYS = (
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "peft_type",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
)
NOT_SERVED = {
    "use_dora": "DoRA",
    "modules_to_save": "modules trained beside the adapter",
    "rank_pattern": "ranks that differ between modules",
    "alpha_pattern": "scales that differ between modules",
    "lora_bias": "biases of the adapter",
    "trainable_token_indices": "trained embeddings",
    "target_parameters": "adapted parameters that are no modules",
    "layer_replication": "replicated layers",
}


class ExportSettings(runconfig.RunConfig):
    """What to write."""

    run_dir: Path
    forms: tuple[Form, ...] = ("merged", "openvino-int8")
    group_size: int | None = None
    """Weights that share a scale in openvino-int4, where model_server.optimize's default does not divide the model's
    widths."""
    overwrite: bool = False
    """Replace forms that are there."""


def normalised_config(config: dict[str, Any]) -> dict[str, Any]:
    """An adapter's configuration that means the same to every server, or a refusal.

    LMDeploy and llama.cpp take the scale for alpha / r whatever ``use_rslora`` says; alpha * sqrt(r) makes that true.

    Raises:
        ConfigurationError: No server but PEFT itself can apply such an adapter.
    """
    if config.get("peft_type") != "LORA":
        raise ConfigurationError(f"peft_type is {config.get('peft_type')!r}: only LORA can be served, export merged")
    if wrong := [what for key, what in NOT_SERVED.items() if config.get(key)]:
        raise ConfigurationError(
            f"the adapter has {' and '.join(wrong)}, which servers ignore or refuse: export merged"
        )
    if config.get("bias", "none") != "none":
        raise ConfigurationError(f"the adapter trained biases ({config['bias']}), which servers refuse: export merged")
    targets = config.get("target_modules")
    if not isinstance(targets, list) or not targets:
        raise ConfigurationError(f"target_modules is {targets!r}: give a list of names; or export merged")
    if outside := sorted({"lm_head", "embed_tokens"} & set(targets)):
        raise ConfigurationError(f"the adapter changes {' and '.join(outside)}, which servers refuse: export merged")
    kept = {key: config[key] for key in ADAPTER_KEYS if key in config}
    if config.get("use_rslora"):
        alpha = config["lora_alpha"] * math.sqrt(config["r"])
        kept |= {"use_rslora": False, "lora_alpha": int(alpha) if alpha.is_integer() else alpha}
    return kept | {"target_modules": sorted({name.rsplit(".", 1)[-1] for name in targets})}


def write_adapter(best: Path, out: Path) -> None:
    """
    Raises:
        ConfigurationError: ``best`` is no adapter, or one that cannot be served as such.
    """
    from safetensors.torch import load_file, save_file

    path = best / ADAPTER
    if not path.is_file():
        raise ConfigurationError(f"{best} is no adapter (the run trained all weights): export merged")
    config = normalised_config(json.loads(path.read_text(encoding="utf-8")))
    tensors = load_file(best / "adapter_model.safetensors")
    if odd := [name for name in tensors if name.split(".")[-2] not in {"lora_A", "lora_B"}]:
        raise ConfigurationError(f"{odd[0]} is neither lora_A nor lora_B, which servers refuse: export merged")
    out.mkdir(parents=True)
    (out / ADAPTER).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})


def write_merged(best: Path, out: Path) -> None:
    """In the precision of the base; an adapter is merged into a freshly loaded one, never into 4 bits."""
    from training import base_model

    model, tokenizer = base_model.load_trained(best, merged=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for name in (classification.FILE_NAME, "README.md"):
        if (best / name).is_file():
            shutil.copyfile(best / name, out / name)


def main(config: ExportSettings, progress: optimize.Progress) -> dict[str, str]:
    """Form -> folder.

    Raises:
        ConfigurationError: A form is there already, or cannot be made of this run.
    """
    best = config.run_dir / "best"
    if classification.load_settings(best) is None:
        raise ConfigurationError(f"there is no {best / classification.FILE_NAME}: give the folder of a finished run")
    forms = list(config.forms)
    if any(form != "adapter" for form in forms) and "merged" not in forms and not (config.run_dir / "merged").exists():
        forms.insert(0, "merged")
    there = [form for form in forms if (config.run_dir / form).exists()]
    if there and not config.overwrite:
        raise ConfigurationError(f"{config.run_dir / there[0]} is there already: overwrite=true replaces it")
    written: dict[str, str] = {}
    for form in sorted(forms, key=lambda form: form != "merged"):
        out = config.run_dir / form
        progress(f"{form} ...")
        write_form(form, config, out, progress)
        written[form] = str(out)
    return written


def write_form(form: Form, config: ExportSettings, out: Path, progress: optimize.Progress) -> None:
    best, merged = config.run_dir / "best", config.run_dir / "merged"
    tool, _, kind = form.partition("-")
    if tool in {"openvino", "awq"}:
        raw = {"source": str(merged), "out": out, "overwrite": config.overwrite}
        raw |= {"method": "openvino", "bits": OPENVINO_BITS[kind]} if kind else {"method": "awq"}
        if form == "openvino-int4" and config.group_size is not None:
            raw["group_size"] = config.group_size
        wanted = runconfig.validate(optimize.Preparation, raw, f"forms=[{form}]")
        optimize.prepare(
            wanted, progress, extra=about(config.run_dir), made_by=f"python -m training.export forms=[{form}]"
        )
        return
    shutil.rmtree(out, ignore_errors=True)
    if form == "adapter":
        write_adapter(best, out)
    elif form == "merged":
        write_merged(best, out)
    else:
        out.mkdir()
        command = [sys.executable, "-m", "training.gguf_model", str(merged), str(out / "model.gguf"), kind]
        subprocess.run(command, check=True, stdout=sys.stderr)
        shutil.copyfile(best / classification.FILE_NAME, out / classification.FILE_NAME)


def about(run_dir: Path) -> dict[str, str]:
    """What travels with a form: its card, all figures, and what the trained model scored; nothing before evaluation."""
    evaluation = run_dir / "evaluation"
    if not (evaluation / "evaluation.json").is_file():
        return {}
    test = read_scores(evaluation / "scores.parquet")["test"]
    reference = {
        call.conversation_id: [round(score, 5) for score in scores]
        for call, scores in zip(test.calls[:REFERENCE_CALLS], test.logprobs.tolist(), strict=False)
    }
    return {
        "README.md": (run_dir / "best" / "README.md").read_text(encoding="utf-8"),
        "evaluation.json": (evaluation / "evaluation.json").read_text(encoding="utf-8"),
        REFERENCE: json.dumps(reference, indent=0) + "\n",
    }


def run(words: Sequence[str]) -> int:
    try:
        settings = runconfig.load(ExportSettings, None, words)
        written = main(settings, lambda line: print(line, file=sys.stderr, flush=True))
    except (runconfig.ConfigError, DeploymentError) as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(written))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
