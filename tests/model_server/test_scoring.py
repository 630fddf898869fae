"""What the engine's process computes together."""

from __future__ import annotations

import pytest

from model_server.engines.openvino_child import Scoring
from model_server.engines.openvino_wire import Score


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
