"""--target-itl-ms on the real model: long prompts are cut small beside running requests, and the text is the same."""
import re
import urllib.request

import pytest

from cluster import Cluster, free_port, stream_completion
from conftest import NAME

LONG = "The river runs under the old bridge, past the market and the garden, and on to the sea. " * 40
MIN_PROMPT_TOKENS = 64  # scheduler/step_budget.h


class Hurried(Cluster):
    """With a target that no step can meet: prompts get the least there is. The scheduler's own metrics can be had."""

    def __init__(self, log):
        self.metrics_port = free_port()
        super().__init__(log, "--dtype", "float32", "--served-model-name", NAME, "--no-enable-prefix-caching",
                         "--target-itl-ms", "0.1", "--metrics-port", str(self.metrics_port))

    def scheduler_metric(self, name, label="") -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as response:
            page = response.read().decode()
        return float(re.search(rf"^{re.escape(name)}{{[^}}]*{re.escape(label)}[^}}]*}} (\S+)$", page, re.M)[1])

    def steps(self, tokens) -> float:
        """Steps so far of at most so many tokens."""
        return self.scheduler_metric("vllm:iteration_tokens_total_bucket", f'le="{tokens}"')


@pytest.fixture(scope="module")
def hurried(tmp_path_factory):
    with Hurried(tmp_path_factory.mktemp("hurried") / "log") as cluster:
        yield cluster


def test_a_long_prompt_beside_a_running_stream(cluster, hurried):
    body = dict(prompt=LONG, max_tokens=16, temperature=0, cache_salt="itl")
    expected = cluster.complete(**body)
    count = len(hurried.post("/tokenize", {"prompt": LONG})[1]["tokens"])
    assert count > 8 * MIN_PROMPT_TOKENS

    stream = stream_completion(hurried, dict(prompt="Once upon a time", max_tokens=2000, temperature=0, ignore_eos=True))
    next(stream)
    before = [hurried.steps(n) for n in (64, 128, "+Inf")]
    assert hurried.complete(**body) == expected
    # The stream still runs: the budget is that of a step with a decode.
    assert hurried.scheduler_metric("penstock_step_token_budget") == 1 + MIN_PROMPT_TOKENS
    small, chunked, every = (hurried.steps(n) - b for n, b in zip((64, 128, "+Inf"), before))
    assert chunked == every  # no step beside the stream had more
    assert chunked - small >= count // MIN_PROMPT_TOKENS
    stream.close()
