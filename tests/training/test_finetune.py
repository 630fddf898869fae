"""Training: what the loss is, what is trained, that it learns, and what it says of what cannot be trained."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

import runconfig
from model_server.cache import cache_dir
from model_server.classification import LABELS
from training import prepared
from training.calls import CallSettings, make_splits
from training.data import DataSettings
from training.settings import FineTuningSettings

pytestmark = pytest.mark.training
ROOT = Path(__file__).resolve().parents[2]
TRAINING = cache_dir() / "venvs/training/bin"
CONFIGS = ROOT / "training" / "configs"


@pytest.fixture(scope="module")
def trained(training, small):
    """The configuration of the fixture, run once."""
    run_dir = small.folder / "trained"
    done = training.finetune(small.config, f"run_dir={run_dir}")
    assert done.status == 0, done.stderr
    done.run_dir = run_dir
    return done


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def adapter_sha256(run_dir):
    return hashlib.sha256((run_dir / "best" / "adapter_model.safetensors").read_bytes()).hexdigest()


# --- the loss ----------------------------------------------------------------------------------------------


def test_the_scores_are_those_after_the_last_token_of_each_prompt(training, small):
    """Expected: transformers' own forward pass over each whole prompt alone, at its last position.

    At the position before, scores differ by far more than is allowed here, so a shift by one fails.
    """
    code = f"""
import json, torch
from transformers import Qwen3ForCausalLM
from training.label_tokens import label_logits
model = Qwen3ForCausalLM.from_pretrained({str(small.base)!r}).eval()
torch.manual_seed(0)
for parameter in model.parameters():
    parameter.data += 0.1 * torch.randn_like(parameter)
prefix, rows = [5, 6, 7, 8], [[9, 10, 11], [12], [13, 14, 15, 16, 17]]
with torch.no_grad():
    ours = [label_logits(model, prefix, rows, 0), torch.cat([label_logits(model, prefix, [row], 0) for row in rows])]
    whole = [model(input_ids=torch.tensor([prefix + row])).logits[0] for row in rows]
right, before = (torch.stack([logits[at] for logits in whole]) for at in (-1, -2))
print(json.dumps([[float((each - other).abs().max()) for other in (right, before)] for each in ours]))
"""
    for to_right, to_before in training.code(code):
        assert to_right < 1e-4
        assert to_before > 0.1


def test_a_label_is_what_the_tokeniser_makes_of_its_letter_after_the_prompt(training, small):
    """The row ends where the letter would follow: prompt, row and label put together are the encoded text."""
    code = f"""
import json, runconfig
from pathlib import Path
from training import inputs
from training.settings import FineTuningSettings
given = inputs.read(runconfig.load(FineTuningSettings, Path({str(small.config)!r})))
letters = list(given.settings.labels)
found = [
    given.tokenizer.decode([*given.prefix, *row, given.settings.label_ids[letters[truth]]])
    for row, truth in zip(given.train.rows, given.train.truth)
]
print(json.dumps(found, ensure_ascii=False))
"""
    found = training.code(code)
    calls = make_splits(CallSettings(seed=5), {"train": 120, "validation": 24, "test": 24})["train"]
    assert len({call.complaint_category for call in calls}) > 6
    for text, call in zip(found, calls, strict=True):
        (letter,) = [letter for letter, name in LABELS.items() if name == call.complaint_category]
        assert text.startswith("<|im_start|>system\n")
        assert text.endswith(f"<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n{letter}")


def test_the_loss_agrees_with_torch_and_with_numbers_worked_by_hand(training):
    code = """
import json, math, torch
from torch.nn.functional import cross_entropy as entropy
from training.label_tokens import label_loss
torch.manual_seed(0)
logits, ids, truth = torch.randn(8, 40), torch.arange(5, 17), torch.arange(8)
weights = torch.rand(12)
half = [label_loss(logits[p], ids, truth[p], 0.1, divisor=8.0) for p in (slice(0, 3), slice(3, 8))]
two = torch.zeros(1, 20); two[0, 3] = math.log(9)
print(json.dumps({
    "plain": [label_loss(logits, ids, truth, 0.0).item(), entropy(logits[:, 5:17], truth).item()],
    "whole": [label_loss(logits, ids, truth, 1.0).item(), entropy(logits, truth + 5).item()],
    "weighted": [
        label_loss(logits, ids, truth, 0.0, class_weights=weights).item(),
        entropy(logits[:, 5:17], truth, weight=weights).item(),
    ],
    "halves": [sum(half).item(), label_loss(logits, ids, truth, 0.1).item()],
    "mixed": label_loss(two, torch.tensor([3, 4]), torch.tensor([0]), 0.1).item(),
    "focal": label_loss(two, torch.tensor([3, 4]), torch.tensor([0]), 0.0, focal_gamma=2.0).item(),
}))
"""
    found = training.code(code)
    for name in ("plain", "whole", "weighted", "halves"):
        ours, expected = found[name]
        assert ours == pytest.approx(expected, rel=1e-5), name
    # Label probabilities are 0.9 and 0.1, their mass is 10/28: -ln 0.9 - 0.1 ln(10/28); focal: 0.1^2 of -ln 0.9.
    assert found["mixed"] == pytest.approx(0.10536 + 0.1 * 1.02962, abs=1e-4)
    assert found["focal"] == pytest.approx(0.01 * 0.10536, abs=1e-6)


def test_the_loss_of_replayed_answers_is_transformers_own(training, small):
    code = f"""
import json, torch
from transformers import Qwen3ForCausalLM
from training.label_tokens import answer_loss
model = Qwen3ForCausalLM.from_pretrained({str(small.base)!r}).eval()
prompts, answers = [[5, 6, 7], [8]], [[9, 10], [11, 12, 13, 14]]
rows = torch.tensor([[5, 6, 7, 9, 10], [8, 11, 12, 13, 14]])
labels = torch.tensor([[-100, -100, -100, 9, 10], [-100, 11, 12, 13, 14]])
with torch.no_grad():
    expected = model(input_ids=rows, labels=labels).loss.item()
    print(json.dumps([answer_loss(model, prompts, answers, 0).item(), expected]))
"""
    ours, expected = training.code(code)
    assert ours == pytest.approx(expected, rel=1e-5)


# --- what is trained ---------------------------------------------------------------------------------------


def test_the_adapter_is_on_the_seven_linear_layers_of_each_block_and_nowhere_else(training, trained):
    code = f"""
import json
from safetensors.torch import load_file
weights = load_file({str(trained.run_dir / "best" / "adapter_model.safetensors")!r})
print(json.dumps({{name: [list(tensor.shape), str(tensor.dtype)] for name, tensor in weights.items()}}))
"""
    weights = training.code(code)
    layers = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    layers += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert set(weights) == {
        f"base_model.model.model.layers.{block}.{layer}.lora_{side}.weight"
        for block in range(2)
        for layer in layers
        for side in "AB"
    }
    assert weights["base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"] == [[16, 128], "torch.float32"]
    config = json.loads((trained.run_dir / "best" / "adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (16, 32, 0.05)
    assert config["target_modules"] == [layer.partition(".")[2] for layer in layers]
    assert not config["use_rslora"]
    assert not config["use_dora"]


def test_a_finished_run_holds_what_others_read(trained, small):
    run = trained.run_dir
    assert sorted(path.name for path in run.iterdir()) == [
        "best",
        "checkpoints",
        "config.yml",
        "manifest.json",
        "metrics.jsonl",
    ]
    settings = json.loads((run / "best" / "classification.json").read_bytes())
    assert (settings["temperature"], settings["review_threshold"]) == (1.0, 0.0)
    assert (run / "best" / "chat_template.jinja").is_file()
    manifest = json.loads((run / "manifest.json").read_bytes())
    weights = hashlib.sha256((small.base / "model.safetensors").read_bytes()).hexdigest()
    train = hashlib.sha256((small.data / "train.parquet").read_bytes()).hexdigest()
    assert manifest["base"]["sha256"]["model.safetensors"] == weights
    assert manifest["data"]["train.parquet"] == train
    assert {"torch", "peft", "transformers"} <= set(manifest["versions"])
    lines = metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8]
    best = max(line["validation_macro_f1"] for line in lines if "validation_macro_f1" in line)
    report = json.loads(trained.stdout.splitlines()[-1])
    assert report["best_validation_macro_f1"] == best
    assert runconfig.load(FineTuningSettings, run / "config.yml").run_dir == run


def test_the_best_model_loads_again_and_scores_as_the_evaluation_said(training, trained, small):
    """Its share of right validation calls, counted here, is what metrics.jsonl says of the best step."""
    code = f"""
import json, runconfig, torch
from pathlib import Path
from training import base_model, inputs
from training.label_tokens import label_logits
from training.settings import FineTuningSettings
given = inputs.read(runconfig.load(FineTuningSettings, Path({str(small.config)!r})))
model, _ = base_model.load_trained(Path({str(trained.run_dir / "best")!r}))
ids = list(given.settings.label_ids.values())
with torch.no_grad():
    chosen = [label_logits(model, given.prefix, [row], 0)[0, ids].argmax().item() for row in given.validation.rows]
print(json.dumps(sum(c == t for c, t in zip(chosen, given.validation.truth)) / len(chosen)))
"""
    report = json.loads(trained.stdout.splitlines()[-1])
    (line,) = [
        line
        for line in metrics(trained.run_dir)
        if line["step"] == report["best_step"] and "validation_accuracy" in line
    ]
    assert training.code(code) == pytest.approx(line["validation_accuracy"])


def test_the_same_seed_gives_the_same_adapter_and_another_another(training, small, trained):
    hashes = []
    for seed in (0, 1):
        run_dir = small.folder / f"seed-{seed}"
        done = training.finetune(
            small.config, f"run_dir={run_dir}", f"seed={seed}", environment={"PYTHONHASHSEED": "9"}
        )
        assert done.status == 0, done.stderr
        hashes.append(adapter_sha256(run_dir))
    assert hashes[0] == adapter_sha256(trained.run_dir)
    assert hashes[1] != hashes[0]


def test_how_a_step_is_split_changes_rounding_only(training, small, trained):
    """Dropout is drawn by micro-batch, so it is off here; the losses of all steps agree."""
    losses = []
    for micro_batch in (8, 2):
        run_dir = small.folder / f"micro-{micro_batch}"
        words = [f"run_dir={run_dir}", f"micro_batch={micro_batch}", "lora.dropout=0", "steps=4"]
        done = training.finetune(small.config, *words)
        assert done.status == 0, done.stderr
        losses.append([line["loss"] for line in metrics(run_dir) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.computing
def test_two_processes_learn_what_one_does(training, small, trained, tmp_path):
    """With dropout: masks follow from step and micro-batch, not from the process. accelerate starts torchrun."""
    run_dir = tmp_path / "two"
    start = ["launch", "--config_file", CONFIGS / "accelerate_2_cpu.yml", "-m", "training.finetune"]
    command = [TRAINING / "accelerate", *start, small.config, f"run_dir={run_dir}"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["steps"] == 8
    manifest = json.loads((run_dir / "manifest.json").read_bytes())
    assert manifest["processes"] == 2
    assert manifest["order_sha256"] == json.loads((trained.run_dir / "manifest.json").read_bytes())["order_sha256"]
    one, two = metrics(trained.run_dir), metrics(run_dir)
    assert len(one) == len(two) == 10
    for expected, found in zip(one, two, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.computing
def test_an_adapter_can_learn_its_calls_by_heart(training, small, tmp_path):
    """On a base that has learned other calls (on random weights no adapter does), 16 new ones until all are right."""
    data = tmp_path / "data"
    training.write_data(data, seed=77, train=16, validation=16, test=1)
    shutil.copyfile(data / "train.parquet", data / "validation.parquet")
    prepared.write_manifest(data, {})
    words = ["steps=150", "evaluate_every=150", "checkpoint_every=null", "learning_rate=3e-3"]
    full = [f"run_dir={tmp_path / 'full'}", "method=full", "batch=24", "micro_batch=24"]
    done = training.finetune(small.config, *words, *full)
    assert done.status == 0, done.stderr
    adapter = [f"run_dir={tmp_path / 'run'}", f"base_model={tmp_path / 'full' / 'best'}", f"data={data}"]
    done = training.finetune(small.config, *words, *adapter, "batch=16", "micro_batch=16")
    assert done.status == 0, done.stderr
    lines = metrics(tmp_path / "run")
    assert lines[0]["loss"] > 2
    assert lines[-2]["loss"] < 0.2
    assert lines[-1]["validation_accuracy"] == 1.0


def test_it_ends_early_when_the_validation_calls_gain_nothing(training, small, tmp_path):
    words = [f"run_dir={tmp_path / 'run'}", "learning_rate=1e-12", "steps=50", "evaluate_every=2", "patience=3"]
    done = training.finetune(small.config, *words)
    assert done.status == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["best_step"], report["steps"], report["finished"]) == (2, 8, "early stop")
    again = training.finetune(small.config, *words)
    assert (again.status, "finished" in again.stderr) == (0, True)


def test_the_learning_rate_warms_up_and_falls_to_its_floor(training, small, trained):
    """2 steps of warm-up, then half a cosine over 8 steps, to 2 %: worked here with other words."""
    found = [line["learning_rate"] for line in metrics(trained.run_dir) if "loss" in line]
    cosine = [1e-3 * (0.02 + 0.98 * math.cos(math.pi * step / 16) ** 2) for step in range(8)]
    assert found == pytest.approx([cosine[0] / 2, *cosine[1:]])


def test_in_a_terminal_there_is_a_bar_and_elsewhere_plain_lines(training, small, trained, tmp_path):
    """FORCE_COLOR is how rich is told of a terminal."""
    assert "step 1/8  loss" in trained.stderr
    assert "s left" in trained.stderr
    assert "━" not in trained.stderr
    done = training.finetune(small.config, f"run_dir={tmp_path / 'run'}", "steps=2", environment={"FORCE_COLOR": "1"})
    assert done.status == 0, done.stderr
    assert "━" in done.stderr
    assert "validation macro-F1" in done.stderr


def test_every_call_is_seen_once_an_epoch_in_an_order_that_changes(training):
    code = """
import json
from training.batches import Order, corrupt
import random
order = Order(3, 10, [1] * 25)
steps = [order.calls(step) for step in range(10)]
blurred = corrupt(list(range(1000)), 0.3, 100, random.Random(0), 5000)
print(json.dumps([sum(steps, []), order.calls(7), blurred]))
"""
    seen, again, blurred = training.code(code)
    epochs = [seen[at : at + 25] for at in range(0, 100, 25)]
    assert all(sorted(epoch) == list(range(25)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert again == seen[70:80]
    changed = [at for at, token in enumerate(blurred) if token != at]
    assert max(changed) < 900
    assert 200 < len(changed) < 340


# --- what cannot be trained --------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_names_the_calls_and_keeps_the_last_checkpoint(training, small, tmp_path):
    """One entry of the embedding is NaN (the output layer has its own weights, so that only calls that hold the token
    meet it); with one call a pass, the calls named are exactly those.
    """
    base = tmp_path / "base"
    shutil.copytree(small.base, base)
    (base / "manifest.json").unlink()
    code = f"""
import collections, json, runconfig, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from training import batches, inputs
from training.settings import FineTuningSettings
config = runconfig.load(FineTuningSettings, Path({str(small.config)!r}))
given = inputs.read(config)
count = collections.Counter(token for row in given.train.rows for token in set(row))
first, second, third = (given.order.calls(step) for step in range(3))
before = {{token for at in first + second for token in given.train.rows[at]}}
bad = next(t for t in sorted(count) if t not in before and any(t in given.train.rows[at] for at in third))
weights = load_file({str(base / "model.safetensors")!r})
weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
weights["model.embed_tokens.weight"][bad] = float("nan")
save_file(weights, {str(base / "model.safetensors")!r}, {{"format": "pt"}})
print(json.dumps([given.train.conversation_ids[at] for at in third if bad in given.train.rows[at]]))
"""
    ids = training.code(code)
    config = json.loads((base / "config.json").read_bytes())
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    run_dir = tmp_path / "run"
    words = [f"base_model={base}", f"run_dir={run_dir}", "micro_batch=1", "checkpoint_every=1", "mass_weight=0"]
    done = training.finetune(small.config, *words)
    assert done.status == 1, done.stderr
    assert f"step 3: the loss is not a finite number on the calls {', '.join(ids)};" in done.stderr
    assert f"{run_dir}/checkpoints/step-000002 is kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert [line["step"] for line in metrics(run_dir)] == [1, 2]


def poison_tokenizer(base):
    """A tokeniser that reads the line feeds before a label and the label as one token."""
    path = base / "tokenizer.json"
    state = json.loads(path.read_bytes())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    state["added_tokens"].append({"id": len(state["model"]["vocab"]) + 5, "content": "\n\nC", **flags})
    path.write_text(json.dumps(state))


def other_architecture(base):
    config = json.loads((base / "config.json").read_bytes())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (poison_tokenizer, ["its tokeniser cannot name the categories", "each label must be one token", "'C'"]),
        (other_architecture, ["architecture is LlamaForCausalLM, expected Qwen3ForCausalLM"]),
        (lambda base: (base / "model.safetensors").write_bytes(b"123"), ["model.safetensors", "cannot be read"]),
        (lambda base: (base / "tokenizer.json").unlink(), ["its tokeniser cannot be loaded"]),
    ],
    ids=["label not one token", "architecture", "weights", "no tokeniser"],
)
def test_a_base_that_does_not_do_is_refused(training, small, tmp_path, change, told):
    base = tmp_path / "base"
    shutil.copytree(small.base, base)
    (base / "manifest.json").unlink()
    change(base)
    done = training.finetune(small.config, f"base_model={base}", f"run_dir={tmp_path / 'run'}")
    assert done.status == 2, done.stderr
    assert all(part in done.stderr for part in told), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_hub_id_without_a_network_is_explained(training, small, tmp_path):
    """What huggingface_hub itself says when it may not ask the hub and has no copy."""
    done = training.finetune(small.config, "base_model=Qwen/Qwen3-0.6B")
    assert done.status == 2, done.stderr
    assert "Qwen/Qwen3-0.6B" in done.stderr
    assert "a directory in base_model needs no network" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("keep", "told"),
    [
        ("call.complaint_category == '收费争议'", "training calls are '收费争议'"),
        ("seen.append(call) or len(seen) <= 5", "there are 5 training calls for 12 categories"),
        ("seen.append(call) or len(seen) <= 40", "the validation part has no calls"),
    ],
    ids=["one class", "fewer rows than classes", "empty part"],
)
def test_calls_that_nothing_can_be_learned_from_are_refused(training, small, tmp_path, keep, told):
    data = tmp_path / "data"
    training.write_data(data, keep, "seen = []", train=40, validation=24, test=1)
    done = training.finetune(small.config, f"data={data}", f"run_dir={tmp_path / 'run'}")
    assert done.status == 2, done.stderr
    assert told in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["stepss=3"], "did you mean 'steps'"),
        (["epochs=1"], "give either steps or epochs"),
        (["micro_batch=3"], "must be a multiple"),
        (["method=full", "adapter=x"], "leave adapter out"),
        (["data=nowhere"], "there is no train.parquet in nowhere"),
        (["base_model=nowhere"], "no such file or directory"),
        (["device=cuda"], "torch finds no GPU here"),
        (["class_weights={收费争议: 2}"], "class_weights must give each of the categories a weight"),
        (["replay.file=nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["batch=65536", "micro_batch=65536"], "this run does not fit: memory"),
        (["run_dir=/dev/null/run"], "run_dir /dev/null/run cannot be written"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_misuse_is_explained(training, small, words, told):
    done = training.finetune(small.config, *words)
    assert done.status == 2, done.stderr
    assert told in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_directory_of_another_run_is_refused_and_says_what_differs(training, small, trained, tmp_path):
    run = f"run_dir={trained.run_dir}"
    done = training.finetune(small.config, run, "learning_rate=0.5", f"base_model={small.folder / 'other'}")
    assert done.status == 2
    assert "config.learning_rate: was 0.001, is 0.5" in done.stderr
    assert "config.base_model: was" in done.stderr
    assert "base: was" in done.stderr
    assert "name another run_dir" in done.stderr
    data = tmp_path / "data"
    shutil.copytree(small.data, data)
    training.write_data(data, train=80, validation=24, test=1)
    done = training.finetune(small.config, run, f"data={data}")
    assert done.status == 2
    assert "data: was" in done.stderr
    assert training.finetune(small.config, run, "resume=never").status == 2


def test_an_adapter_of_another_base_is_refused_and_one_of_the_same_is_gone_on_from(training, small, trained, tmp_path):
    adapter = f"adapter={trained.run_dir / 'best'}"
    words = [f"run_dir={tmp_path / 'run'}", adapter, "steps=1", "lora.dropout=0"]
    done = training.finetune(small.config, *words, f"base_model={small.folder / 'other'}")
    assert done.status == 2
    assert "it was trained on another base" in done.stderr
    assert not (tmp_path / "run").exists()
    done = training.finetune(small.config, *words)
    assert done.status == 0, done.stderr
    fresh = tmp_path / "fresh"
    assert training.finetune(small.config, f"run_dir={fresh}", "steps=1", "lora.dropout=0").status == 0
    # The first loss is that of the adapter gone on from, which has learned something already.
    assert metrics(tmp_path / "run")[0]["loss"] < metrics(fresh)[0]["loss"] - 1e-4
    done = training.finetune(small.config, f"run_dir={tmp_path / 'rank'}", adapter, "lora.rank=4")
    assert done.status == 2, done.stderr
    assert "its weights do not fit" in done.stderr


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yml")), ids=lambda path: path.name)
def test_every_configuration_that_is_shipped_reads(path, training):
    """Each file belongs to a reader: a new one that does not is noticed here."""
    raw = yaml.safe_load(path.read_text())
    if path.name.startswith("accelerate_"):
        code = f"""
from accelerate.commands.config.config_args import load_config_from_file
print(load_config_from_file({str(path)!r}).num_processes)
"""
        assert training.code(code) == raw["num_processes"]
    elif path.name.startswith("finetune_"):
        assert runconfig.load(FineTuningSettings, path).base_model == raw["base_model"]
    elif path.name.startswith("data_"):
        assert str(runconfig.load(DataSettings, path).out) == raw["out"]
    else:
        assert path.name == "new_base_tiny.yml"
        assert Path(raw["out"]).parts[0] in {"models", "runs"}


# --- what trains a small model from nothing ----------------------------------------------------------------


def test_rows_of_a_step_have_about_one_length(training):
    """But for the two steps where one epoch ends and the next begins."""
    code = """
import json, random
from training.batches import Order
lengths = [random.Random(at).randrange(1, 200) for at in range(1003)]
order = Order(0, 16, lengths)
seen = [order.calls(step) for step in range(3 * 1003 // 16)]
print(json.dumps([seen, lengths]))
"""
    seen, lengths = training.code(code)
    flat = [place for calls in seen for place in calls]
    assert sorted(flat[:1003]) == sorted(flat[1003:2006]) == list(range(1003))
    spread = sorted(max(lengths[at] for at in calls) - min(lengths[at] for at in calls) for calls in seen)
    assert spread[len(seen) - 7] < 16
    assert [calls[0] for calls in seen[:5]] != sorted(calls[0] for calls in seen[:5])


WITH_ALL = (
    "method=full",
    "optimiser=muon",
    "rationale_weight=0.5",
    "corruption=0.08",
    "steps=24",
    "learning_rate=5e-3",
)


def test_muon_and_rationales_learn_and_a_killed_run_goes_on_bit_for_bit(training, small, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = training.finetune(small.config, *WITH_ALL, f"run_dir={whole}")
    assert done.status == 0, done.stderr
    lines = [line for line in metrics(whole) if "loss" in line]
    assert 0 < lines[-1]["rationale_loss"] < lines[0]["rationale_loss"]
    cut_after = {"kill_after_lines": [str(cut / "metrics.jsonl"), 5], "signal": 9}
    assert training.finetune(small.config, *WITH_ALL, f"run_dir={cut}", watched=str(cut), **cut_after).status == -9
    done = training.finetune(small.config, *WITH_ALL, f"run_dir={cut}")
    assert "going on from" in done.stderr
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    weights = [(run / "best" / "model.safetensors").read_bytes() for run in (cut, whole)]
    assert weights[0] == weights[1]


def test_muon_s_step_is_the_one_of_its_paper(training, small, tmp_path):
    """Worked out in numpy: momentum 0.95 with Nesterov, five Newton-Schulz steps, as long as AdamW's, decay apart."""
    code = """
import json, numpy as np, torch
from training.finetune import optimisers_for
from types import SimpleNamespace
torch.manual_seed(0)
named = {"model.layers.0.w": torch.nn.Parameter(torch.randn(6, 4)), "model.norm": torch.nn.Parameter(torch.randn(4))}
config = SimpleNamespace(optimiser="muon", learning_rate=0.1, weight_decay=0.05)
adamw, muon = optimisers_for(config, named)
before = named["model.layers.0.w"].detach().numpy().copy()
gradient = torch.randn(6, 4); named["model.layers.0.w"].grad = gradient
named["model.norm"].grad = torch.zeros(4)
muon.step(); adamw.step()
names = [[len(group["params"]) for group in each.param_groups] for each in (adamw, muon)]
after = named["model.layers.0.w"].detach().numpy()
print(json.dumps([before.tolist(), gradient.tolist(), after.tolist(), names]))
"""
    before, gradient, after, names = training.code(code)
    assert names == [[1], [1]]
    momentum = 0.05 * np.array(gradient)
    update = (0.05 * np.array(gradient) + 0.95 * momentum).T  # wide
    update /= np.linalg.norm(update)
    for _ in range(5):
        gram = update @ update.T
        update = 3.4445 * update + (-4.7750 * gram + 2.0315 * gram @ gram) @ update
    moved = np.array(before) * (1 - 0.1 * 0.05) - 0.1 * 0.2 * math.sqrt(6) * update.T
    assert np.array(after) == pytest.approx(moved, abs=0.02)  # torch works in bfloat16


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["optimiser=muon"], "optimiser muon is for method full"),
        (["rationale_weight=0.5", "data=DATA"], "no training call has metadata.rationales"),
    ],
)
def test_what_these_need_is_said(training, small, tmp_path, words, told):
    before = "def bare(call):\n    call.metadata.pop('rationales')\n    return True"
    training.write_data(tmp_path / "data", keep="bare(call)", before=before, train=60, validation=24, test=24)
    words = [word.replace("DATA", str(tmp_path / "data")) for word in words]
    done = training.finetune(small.config, f"run_dir={tmp_path / 'run'}", *words)
    assert done.status == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
