"""Do the forms of a trained model give the labels that it was evaluated with?

    python -m training.parity run_dir=runs/finetune-... [calls=500] [epsilon=0.05] [urls='{ollama: http://127.0.0.1:8001}']

in the default environment, after ``training.evaluate`` and ``training.export``. Test calls go through the engines of
the model server, over every form in the run's folder that they load, and over HTTP to servers that are named. Each
answer is compared with what the trained model scored:

    label        the same where the two best categories are further apart than epsilon
    review       asked for alike where the confidence is further than epsilon from the threshold
    temperature  the one that explains the form's probabilities best: within temperature_tolerance
    settings     classification.json of a form in the run's folder says what that of best/ says

Labels, review and temperature of a form of 4 bits are measured and not judged. That of LMDeploy, ``awq``, is read back
into float and measured by engine transformers: what its rounding costs, without a GPU. Writes
``run_dir/evaluation/parity.json``.

exit codes: 0 all agree; 1 a form differs; 2 usage
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from pydantic import Field
from scipy.special import softmax

import runconfig
from model_server import capacity, classification, deployment, engines, model_source
from model_server.cache import environment_python
from model_server.classification import LABELS, ClassificationSettings
from model_server.errors import ConfigurationError, DeploymentError
from training import metrics
from training.scores import Scored, read_scores

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / "environments" / "local.yml"
ENGINES = ("openvino", "transformers")
"""Of the model server, that run here on a CPU."""
BATCH = 16
FOUR_BITS = ("openvino-int4", "awq")
"""Forms that are measured and not judged; so are servers whose weights have so few."""
LIKELY = 1e-3
"""Probability from which a category says something of the temperature: engines floor what is less likely."""


class ParitySettings(runconfig.RunConfig):
    """What to compare."""

    run_dir: Path
    calls: int = Field(default=500, ge=1)
    """The first ones of the test calls."""
    epsilon: float = Field(default=0.05, ge=0, lt=1)
    """Of the calibrated probability: a smaller lead of the best category may be lost to rounding."""
    temperature_tolerance: float = Field(default=0.05, gt=0)
    """Share of the temperature. INT8 moved it by 0.0001 for the embedded model."""
    forms: tuple[str, ...] | None = None
    """Those of the run's folder to compare, for example openvino-int8; None takes all."""
    environment: Path = ENVIRONMENT
    """Whose limits the engines get."""
    urls: dict[str, str] = Field(default_factory=dict)
    """Name -> address of a model server that already serves a form of this model."""


@dataclass(frozen=True)
class Parity:
    """One form against the trained model.

    Attributes:
        clear: Calls whose best category leads by more than epsilon.
        differing: Clear calls with another label.
        differing_review: Calls that only one of both wants reviewed, with a confidence clearly on one side.
        largest_difference: Of a calibrated probability; None where the engine gives none.
        temperature_ratio: Of the form's temperature to that of the trained model; None where nothing tells it.
        accuracy_loss: Accuracy of the trained model less that of the form, on all calls; negative where it won.
        faults: What is judged and wrong, in words.
    """

    form: str
    judged: bool
    calls: int
    clear: int
    differing: int
    differing_unclear: int
    differing_review: int
    largest_difference: float | None
    temperature_ratio: float | None
    accuracy: float
    accuracy_loss: float
    macro_f1: float
    faults: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        return not self.faults


@dataclass(frozen=True)
class Reference:
    """What the trained model says of N calls.

    Attributes:
        probabilities: Calibrated, (N, K).
        truth: Place of the right label, (N,).
    """

    probabilities: np.ndarray
    truth: np.ndarray
    review_threshold: float


def compare(
    form: str,
    reference: Reference,
    answers: Sequence[Mapping[str, Any]],
    epsilon: float,
    temperature_tolerance: float,
    *,
    judged: bool,
    other_settings: Sequence[str] = (),
) -> Parity:
    """
    Args:
        answers: As ``/api/v1/classify`` gives them.
        other_settings: Keys of the form's settings that differ from those of the trained model.
    """
    names, truth, expected = list(LABELS.values()), reference.truth, reference.probabilities
    second, first = np.sort(expected, axis=1)[:, -2:].T
    clear = first - second > epsilon
    ours = np.array([names.index(answer["category"]) for answer in answers])
    other = ours != expected.argmax(1)
    given = [answer["probabilities"] for answer in answers]
    difference = ratio = None
    review = np.zeros(len(truth), dtype=bool)
    if all(given):
        found = np.array([[row[name] for name in names] for row in given])
        difference = float(np.abs(found - expected).max())
        ratio = temperature_ratio(expected, found)
        needs = np.array([answer["needs_review"] for answer in answers])
        certain = np.abs(first - reference.review_threshold) > epsilon
        review = certain & (needs != (first < reference.review_threshold))
    differing = int((other & clear).sum())
    faults = [f"other settings: {', '.join(other_settings)}"] if other_settings else []
    if judged and differing:
        faults.append(f"{differing} of {int(clear.sum())} clear calls have another label")
    if judged and review.any():
        faults.append(f"{int(review.sum())} calls are sent to review, or not, against the threshold")
    if judged and ratio is not None and abs(ratio - 1) > temperature_tolerance:
        faults.append(f"its temperature is {ratio:.3f} times that of the evaluation")
    accuracy = float((ours == truth).mean())
    return Parity(
        form=form,
        judged=judged,
        calls=len(truth),
        clear=int(clear.sum()),
        differing=differing,
        differing_unclear=int((other & ~clear).sum()),
        differing_review=int(review.sum()),
        largest_difference=difference,
        temperature_ratio=ratio,
        accuracy=accuracy,
        accuracy_loss=float((expected.argmax(1) == truth).mean()) - accuracy,
        macro_f1=float(np.nanmean(metrics.f1_scores(metrics.confusion(truth, ours, len(names))))),
        faults=tuple(faults),
    )


def temperature_ratio(expected: np.ndarray, found: np.ndarray) -> float | None:
    """How many times the temperature of ``expected`` that of ``found`` is, by least squares over the log-odds.

    Rounding of weights moves single log-odds and averages out; another temperature stretches all of them alike.

    Args:
        expected, found: Probabilities of the same calls, (N, K).

    Returns:
        None where no call has two likely categories of different probability.
    """
    likely = expected > LIKELY
    number = likely.sum(1, keepdims=True)  # at least one: the best of K

    def centred(probabilities: np.ndarray) -> np.ndarray:
        logs = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
        deviations: np.ndarray = (logs - (logs * likely).sum(1, keepdims=True) / number) * likely
        return deviations

    ours, theirs = centred(expected), centred(found)
    covered = float((ours * theirs).sum())
    return float((ours**2).sum()) / covered if covered > 0 else None


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
        return await answers_of(engine, settings, texts)
    finally:
        await engine.close()


async def answers_of(engine: Any, settings: ClassificationSettings, texts: Sequence[str]) -> list[Mapping[str, Any]]:
    """What a loaded engine makes of the calls, as ``/api/v1/classify`` gives it."""
    answers: list[Mapping[str, Any]] = []
    for at in range(0, len(texts), BATCH):
        prompts = []
        for text in texts[at : at + BATCH]:
            call = classification.prepare_call(text, settings, lambda part: engine.prompt(part).tokens)
            prompts.append(engine.prompt(classification.prompt_text(call, settings)))
        rows = await engine.score(prompts, list(settings.label_ids.values()))
        answers += [classification.decide(row, settings) for row in rows]
    return answers


async def by_http(url: str, texts: Sequence[str]) -> tuple[list[Mapping[str, Any]], int | None]:
    """What a server answers, and the bits of its weights (None where it does not know).

    Raises:
        ConfigurationError: The server does not answer as it should.
    """

    async def ask(method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            answer = await client.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise ConfigurationError(f"{url} does not answer: {error}") from error
        if answer.status_code != 200:
            raise ConfigurationError(f"{url} answered {answer.status_code}: {answer.text[:200]}")
        return answer.json()

    async with httpx2.AsyncClient(base_url=url, timeout=120) as client:
        bits = (await ask("GET", "/api/v1/model"))["weight_bits"]
        return [await ask("POST", "/api/v1/classify", {"text": text}) for text in texts], bits


def forms_of(run_dir: Path) -> dict[str, tuple[Path, str]]:
    """Name -> folder and engine of what the server can load here."""
    found = {}
    for engine in ENGINES:
        for name in model_source.RUN_FORMS[engine]:
            if (run_dir / name / classification.FILE_NAME).is_file():
                found[name] = (run_dir / name, engine)
    if (run_dir / "awq" / classification.FILE_NAME).is_file():
        found["awq"] = (run_dir / "awq", "transformers")
    return found


@contextmanager
def readable(form: str, folder: Path) -> Iterator[Path]:
    """The form as its engine here can load it.

    Raises:
        ConfigurationError: AWQ's weights cannot be read back.
    """
    if form != "awq":
        yield folder
        return
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "awq"
        command: list[str | Path] = [environment_python("training"), "-m", "training.awq_weights", folder, out]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigurationError(f"{folder} cannot be read: {done.stderr.strip()[-600:]}")
        yield out


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
    reference = Reference(
        softmax(classification.unweighted(scored.logprobs, settings) / settings.temperature, axis=1),
        scored.truth,
        settings.review_threshold,
    )
    texts = [call.input_text for call in scored.calls]
    limits = (config.epsilon, config.temperature_tolerance)
    found = []
    for name, url in config.urls.items():
        print(f"{name} at {url} ...", file=sys.stderr, flush=True)
        answers, bits = await by_http(url, texts)
        found.append(compare(name, reference, answers, *limits, judged=bits is None or bits > 4))
    forms = forms_of(config.run_dir)
    if missing := sorted(set(config.forms or ()) - set(forms)):
        raise ConfigurationError(f"{config.run_dir} has no form {missing[0]}, it has {', '.join(forms) or 'none'}")
    for form, (folder, engine) in forms.items():
        if config.forms is not None and form not in config.forms:
            continue
        print(f"{form} by {engine} ...", file=sys.stderr, flush=True)
        with readable(form, folder) as source:
            answers = await by_engine(source, engine, config.environment, texts)
        judged, others = form not in FOUR_BITS, _other_settings(settings, folder)
        found.append(compare(form, reference, answers, *limits, judged=judged, other_settings=others))
    if not found:
        raise ConfigurationError(f"{config.run_dir} has no form that can be compared: python -m training.export first")
    return found


def _other_settings(settings: ClassificationSettings, form: Path) -> list[str]:
    own = classification.load_settings(form)
    assert own is not None
    return [key for key, value in settings if getattr(own, key) != value]


def show(found: Sequence[Parity], epsilon: float) -> None:
    head = f"{'form':<16}{'calls':>7}{'clear':>7}{'differ':>8}{'unclear':>9}{'review':>8}{'max |dp|':>10}"
    print(f"{head}{'T ratio':>9}{'accuracy':>10}{'loss':>9}   (clear: a lead of more than {epsilon})")
    for one in found:
        difference = "-" if one.largest_difference is None else f"{one.largest_difference:.4f}"
        ratio = "-" if one.temperature_ratio is None else f"{one.temperature_ratio:.4f}"
        print(
            f"{one.form:<16}{one.calls:>7}{one.clear:>7}{one.differing:>8}{one.differing_unclear:>9}"
            f"{one.differing_review:>8}{difference:>10}{ratio:>9}{one.accuracy:>10.4f}{one.accuracy_loss:>+9.4f}"
            + ("" if one.judged else "   not judged")
        )
    for one in found:
        for fault in one.faults:
            print(f"{one.form}: {fault}", file=sys.stderr)


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
