"""What the engine's process computes together."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from model_server.engines.openvino_child import Scoring
from model_server.engines.openvino_wire import PADDED_TO, Score

TINY = Path(__file__).parents[2] / "models/complaints-tiny"


class Channel:
    def __init__(self):
        self.sent = []

    def send(self, message):
        self.sent.append(message)


class Scorer:
    """Notes the passes it is asked for; a prompt's score is its token."""

    def __init__(self):
        self.passes = []

    def batches(self, prompts, label_ids):
        self.passes.append(len(prompts))
        yield [[float(prompt[0])] for prompt in prompts]


@pytest.mark.parametrize(("slots", "passes"), [(1, [1, 1, 1, 1, 2, 1]), (3, [3, 3, 1]), (16, [7])])
def test_no_more_prompts_than_slots_are_computed_together(slots, passes):
    channel, scorer = Channel(), Scorer()
    scoring = Scoring(channel, scorer, slots)
    requests = [[[1]], [[2]], [[3]], [[4]], [[5], [6]], [[7]]]
    for number, prompts in enumerate(requests):
        scoring.add(Score(number, prompts, [0]))

    while scoring.busy:
        scoring.step()

    assert scorer.passes == passes
    assert [(answer.id, answer.logprobs) for answer in channel.sent] == [
        (number, [[float(prompt[0])] for prompt in prompts]) for number, prompts in enumerate(requests)
    ]


def test_scores_depend_on_nothing_that_a_pass_computes_beside_them(monkeypatch):
    """Neither on other prompts nor on what pads the pass; the real form of the embedded model."""
    from model_server.engines import openvino_scorer

    chance = random.Random(0)
    prompts = [[7] * 64 + [chance.randrange(5, 1500) for _ in range(length)] for length in (1, 6, 8, 40, 97, 150)]
    properties = {"INFERENCE_NUM_THREADS": 1, "KV_CACHE_PRECISION": "u8"}

    def scores(*passes, padded_to):
        monkeypatch.setattr(openvino_scorer, "PADDED_TO", padded_to)
        scorer = openvino_scorer.Scorer(str(TINY), properties, 256)
        return [row for each in passes for rows in scorer.batches(each, range(12)) for row in rows]

    alone = scores(*([prompt] for prompt in prompts), padded_to=1)
    assert scores(prompts, padded_to=PADDED_TO) == alone
    assert scores(*([prompt] for prompt in prompts), padded_to=PADDED_TO) == alone
