"""Do the forms of a trained model give the labels that it was evaluated with?

    python -m training.parity run_dir=runs/finetune-... [calls=500] [epsilon=0.05] [urls='{ollama: http://127.0.0.1:8001}']

in the default environment, after ``training.evaluate`` and ``training.export``. Test calls go through the engines of
the model server, over every form in the run's folder that they load, and over HTTP to servers that are named. Each
answer is compared with what the trained model scored: where its two best categories are further apart than epsilon,
the label must be the same. Forms of 4 bits are measured and not judged. Writes ``run_dir/evaluation/parity.json``.

exit codes: 0 all agree; 1 a label differs beyond epsilon; 2 usage
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from pydantic import Field
from scipy.special import softmax

import runconfig
from model_server import capacity, classification, deployment, engines, model_source
from model_server.classification import LABELS, ClassificationSettings
from model_server.errors import ConfigurationError, DeploymentError
from training import metrics
from training.scores import Scored, read_scores

ENVIRONMENT = Path(__file__).resolve().parents[1] / "environments" / "local.yml"
ENGINES = ("openvino", "transformers")
"""Of the model server, that run here on a CPU."""
BATCH = 16


class ParitySettings(runconfig.RunConfig):
    """What to compare."""

    run_dir: Path
    calls: int = Field(default=500, ge=1)
    """The first ones of the test calls."""
    epsilon: float = Field(default=0.05, ge=0, lt=1)
    """Of the calibrated probability: a smaller lead of the best category may be lost to rounding."""
    environment: Path = ENVIRONMENT
    """Whose limits the engines get."""
    urls: dict[str, str] = Field(default_factory=dict)
    """Name -> address of a model server that already serves a form of this model."""


@dataclass(frozen=True)
class Parity:
    """One form against the trained model.

    Attributes:
        clear: Calls whose best category leads by more than epsilon.
        differing: Clear calls with another label; what is judged.
        largest_difference: Of a calibrated probability; None where the engine gives none.
        accuracy_loss: Accuracy of the trained model less that of the form, on all calls; negative where it won.
    """

    form: str
    judged: bool
    calls: int
    clear: int
    differing: int
    differing_unclear: int
    largest_difference: float | None
    accuracy: float
    accuracy_loss: float
    macro_f1: float

    @property
    def agrees(self) -> bool:
        return self.differing == 0 or not self.judged


def compare(
    form: str,
    reference: np.ndarray,
    answers: Sequence[Mapping[str, Any]],
    truth: np.ndarray,
    epsilon: float,
    *,
    judged: bool,
) -> Parity:
    """
    Args:
        reference: Calibrated probabilities of the trained model, (N, K).
        answers: As ``/api/v1/classify`` gives them.
        truth: Place of the right label, (N,).
    """
    names = list(LABELS.values())
    second, first = np.sort(reference, axis=1)[:, -2:].T
    clear = first - second > epsilon
    ours = np.array([names.index(answer["category"]) for answer in answers])
    other = ours != reference.argmax(1)
    given = [answer["probabilities"] for answer in answers]
    difference = None
    if all(given):
        difference = float(np.abs(np.array([[row[name] for name in names] for row in given]) - reference).max())
    accuracy = float((ours == truth).mean())
    return Parity(
        form=form,
        judged=judged,
        calls=len(truth),
        clear=int(clear.sum()),
        differing=int((other & clear).sum()),
        differing_unclear=int((other & ~clear).sum()),
        largest_difference=difference,
        accuracy=accuracy,
        accuracy_loss=float((reference.argmax(1) == truth).mean()) - accuracy,
        macro_f1=float(np.nanmean(metrics.f1_scores(metrics.confusion(truth, ours, len(names))))),
    )


async def by_engine(source: Path, engine_name: str, environment: Path, texts: Sequence[str]) -> list[Mapping[str, Any]]:
    """What the server would answer from this form, by the engine that it would have."""
    files = model_source.resolve(str(source), engine=engine_name)
    bits = 16 if files.weight_bits is None else files.weight_bits
    words = [
        f"model_source={source}",
        f"engine={engine_name}",
        f"optimization_settings.quantization_bits={bits}",
        f"optimization_settings.enable_quantization={str(bits < 16).lower()}",
    ]
    config = deployment.load(environment, words, environ={})
    engine = engines.create(config, capacity.check(config, files), files)
    settings = classification.load_settings(source)
    assert settings is not None
    await engine.load()
    try:
        return [
            answer
            for at in range(0, len(texts), BATCH)
            for answer in await _batch(engine, settings, texts[at : at + BATCH])
        ]
    finally:
        await engine.close()


async def _batch(engine: Any, settings: ClassificationSettings, texts: Sequence[str]) -> list[Mapping[str, Any]]:
    prompts = []
    for text in texts:
        call = classification.prepare_call(text, settings, lambda part: engine.prompt(part).tokens)
        prompts.append(engine.prompt(classification.prompt_text(call, settings)))
    rows = await engine.score(prompts, list(settings.label_ids.values()))
    return [classification.decide(row, settings) for row in rows]


async def by_http(url: str, texts: Sequence[str]) -> list[Mapping[str, Any]]:
    """
    Raises:
        ConfigurationError: The server does not answer as it should.
    """
    answers: list[Mapping[str, Any]] = []
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        for text in texts:
            try:
                answer = await client.post("/api/v1/classify", json={"text": text})
            except httpx2.HTTPError as error:
                raise ConfigurationError(f"{url} does not answer: {error}") from error
            if answer.status_code != 200:
                raise ConfigurationError(f"{url} answered {answer.status_code}: {answer.text[:200]}")
            answers.append(answer.json())
    return answers


def forms_of(run_dir: Path) -> dict[str, tuple[Path, str]]:
    """Name -> folder and engine of what the server can load here."""
    found = {}
    for engine in ENGINES:
        for name in model_source.RUN_FORMS[engine]:
            if (run_dir / name / classification.FILE_NAME).is_file():
                found[name] = (run_dir / name, engine)
    return found


async def main(config: ParitySettings) -> list[Parity]:
    """
    Raises:
        DeploymentError: The run has no scores, or a form cannot be loaded.
    """
    scored = read_scores(config.run_dir / "evaluation" / "scores.parquet")["test"]
    scored = Scored(scored.calls[: config.calls], scored.logprobs[: config.calls])
    settings = classification.load_settings(config.run_dir / "best")
    if settings is None:
        raise ConfigurationError(f"{config.run_dir} has no best/{classification.FILE_NAME}: evaluate it first")
    reference = softmax(classification.unweighted(scored.logprobs, settings) / settings.temperature, axis=1)
    texts, truth = [call.input_text for call in scored.calls], scored.truth
    found = []
    for name, url in config.urls.items():
        print(f"{name} at {url} ...", file=sys.stderr, flush=True)
        found.append(compare(name, reference, await by_http(url, texts), truth, config.epsilon, judged=True))
    for form, (folder, engine) in forms_of(config.run_dir).items():
        print(f"{form} by {engine} ...", file=sys.stderr, flush=True)
        answers = await by_engine(folder, engine, config.environment, texts)
        found.append(compare(form, reference, answers, truth, config.epsilon, judged=not form.endswith("int4")))
    if not found:
        raise ConfigurationError(f"{config.run_dir} has no form that can be compared: python -m training.export first")
    return found


def show(found: Sequence[Parity], epsilon: float) -> None:
    head = f"{'form':<16}{'calls':>7}{'clear':>7}{'differ':>8}{'unclear':>9}{'max |dp|':>10}{'accuracy':>10}{'loss':>9}"
    print(f"{head}   (clear: a lead of more than {epsilon})")
    for one in found:
        difference = "-" if one.largest_difference is None else f"{one.largest_difference:.4f}"
        print(
            f"{one.form:<16}{one.calls:>7}{one.clear:>7}{one.differing:>8}{one.differing_unclear:>9}{difference:>10}"
            f"{one.accuracy:>10.4f}{one.accuracy_loss:>+9.4f}{'' if one.judged else '   not judged'}"
        )


def run(words: Sequence[str]) -> int:
    try:
        config = runconfig.load(ParitySettings, None, words)
        found = asyncio.run(main(config))
    except (runconfig.ConfigError, DeploymentError) as error:
        print(error, file=sys.stderr)
        return 2
    rows = [asdict(one) for one in found]
    path = config.run_dir / "evaluation" / "parity.json"
    path.write_text(json.dumps({"epsilon": config.epsilon, "forms": rows}, indent=2) + "\n", encoding="utf-8")
    show(found, config.epsilon)
    print(json.dumps({"agree": all(one.agrees for one in found), "parity": str(path)}))
    return 0 if all(one.agrees for one in found) else 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
