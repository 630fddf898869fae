"""Serve an environment, or check whether it can be served."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model_server import deployment
from model_server.deployment import DeploymentConfig
from model_server.errors import ConfigurationError, DeploymentError, ModelLoadError

if TYPE_CHECKING:
    from model_server.classification import ClassificationSettings

OLLAMA_CALL_TOKENS = 512
"""Of a call that Ollama classifies; longer ones keep their head and tail. As the embedded classifier."""

EXAMPLES = """\
examples:
  python -m model_server environments/local.yml
      serve it; http://127.0.0.1:8000/docs describes what can be asked
  python -m model_server environments/local.yml serving.port=9000 optimization_settings.max_batch_size=8
      the same with two settings changed; variables work too: MODEL_SERVER_SERVING__PORT=9000
  python -m model_server check environments/production.yml
      does it fit its limits? prints the arithmetic; nothing is started

  curl http://127.0.0.1:8000/api/v1/classify -d '{"text": "宽带断了三天没人来修"}'
  curl http://127.0.0.1:8000/v1/chat/completions \\
      -d '{"model": "complaints-tiny", "messages": [{"role": "user", "content": "你好"}], "stream": true}'

while it runs:
  SIGTERM, Ctrl-C   accept nothing new, finish what was accepted, exit 0
  SIGHUP            read the settings again; so does a change of the file or of the key file
                    (at once: key file, rate_limit_per_minute, log_level; the log names what needs a restart)

exit codes: 0 served and drained, or it fits; 1 does not fit, cannot be loaded, or a request had to be cut;
2 the settings cannot be used
"""


def main(argv: Sequence[str]) -> int:
    """Run the command line; returns the exit code."""
    verb, words = ("check", argv[1:]) if argv[:1] == ["check"] else ("serve", argv)
    parser = argparse.ArgumentParser(
        prog="python -m model_server check" if verb == "check" else "python -m model_server",
        usage="python -m model_server [check] ENVIRONMENT.yml [key=value ...]",
        description="Serve one Qwen3 model over HTTP, as an environment describes it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("environment", type=Path, help="for example environments/local.yml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file")
    if verb == "check":
        parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    arguments = parser.parse_args(words)

    def read() -> DeploymentConfig:
        return deployment.load(arguments.environment, arguments.overrides, os.environ)

    if verb == "check":
        return check(read, as_json=arguments.json)
    # Before the seconds of loading: the first process of a container that has no handler is not told to end at all.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        return run(read, arguments.environment)
    except DeploymentError as error:
        print(f"cannot serve {arguments.environment}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1


def check(read: Callable[[], DeploymentConfig], *, as_json: bool) -> int:
    """Print the plan: 0 it fits, 1 it does not or the model is unusable, 2 the settings are."""
    from model_server import capacity

    try:
        plan = capacity.check(read())
    except DeploymentError as error:
        code = 2 if isinstance(error, ConfigurationError) else 1
        refusal = {"fits": False, "error": type(error).__name__, "reason": str(error)}
        print(json.dumps(refusal, ensure_ascii=False) if as_json else f"{type(error).__name__}: {error}")
        return code
    if as_json:
        print(json.dumps({"fits": True, **dataclasses.asdict(plan)}, ensure_ascii=False))
    else:
        print(plan.arithmetic)
    return 0


def run(read: Callable[[], DeploymentConfig], path: Path) -> int:
    """Check, build the engine, serve.

    Raises:
        DeploymentError: It cannot be served as it is described.
    """
    import uvloop

    from model_server import capacity, engines, server
    from model_server.model_source import resolve

    config = described = read()
    server.keys_of(config)
    try:
        files = resolve(config.model_source, config.model_revision, config.engine)
    except ModelLoadError as error:
        if config.model_fallback is None:
            raise
        # Files that are missing or altered will be so at a second and third try.
        print(f"{error}; loading the fallback {config.model_fallback!r}", file=sys.stderr)
        config = config.model_copy(update={"model_source": config.model_fallback, "model_fallback": None})
        files = resolve(config.model_source, engine=config.engine)
    # The plan of what was described: it knows that a fallback may have other bits than the model.
    plan = capacity.check(described, files)

    def classifier() -> ClassificationSettings | None:
        from model_server import classification  # numpy: a third of a second that the engine need not wait for

        if config.engine == "ollama":
            # A name carries no settings, but any instructed model can say a letter. It is only read as text:
            # temperature and threshold are never used, and any one-token alphabet will do.
            return classification.settings_for(
                lambda text: [ord(character) for character in text],
                temperature=1,
                review_threshold=1,
                max_call_tokens=OLLAMA_CALL_TOKENS,
            )
        if files.classification is None:
            return None
        return classification.load_settings(files.classification.parent)

    async def serve() -> int:
        engine = engines.create(config, plan, files)
        return await server.serve(
            config, engine, classifier=classifier, models=files.path, config_path=path, read_config=read
        )

    return uvloop.run(serve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
