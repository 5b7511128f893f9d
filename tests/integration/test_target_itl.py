"""--target-itl-ms on the real model: long prompts are cut small beside running requests, and the text is the same."""
import pytest

from cluster import Cluster, stream_completion
from conftest import NAME

LONG = "The river runs under the old bridge, past the market and the garden, and on to the sea. " * 40
MIN_PROMPT_TOKENS = 64  # scheduler/step_budget.h


@pytest.fixture(scope="module")
def hurried(tmp_path_factory):
    """Less than any step takes here: prompts get the least there is."""
    log = tmp_path_factory.mktemp("hurried") / "log"
    with Cluster(log, "--dtype", "float32", "--served-model-name", NAME, "--target-itl-ms", "0.1",
                 "--no-enable-prefix-caching") as cluster:
        yield cluster


def steps(cluster, tokens) -> float:
    """Steps so far of at most so many tokens; a bucket of the histogram."""
    page = cluster.get("/metrics")[1]
    lines = [l for l in page.splitlines() if l.startswith("vllm:iteration_tokens_total_bucket") and f'le="{tokens}"' in l]
    return sum(float(line.split()[-1]) for line in lines)


def test_a_long_prompt_beside_a_running_stream(cluster, hurried):
    body = dict(prompt=LONG, max_tokens=16, temperature=0, cache_salt="itl")
    expected = cluster.complete(**body)
    count = len(hurried.post("/tokenize", {"prompt": LONG})[1]["tokens"])
    assert count > 8 * MIN_PROMPT_TOKENS

    stream = stream_completion(hurried, dict(prompt="Once upon a time", max_tokens=1500, temperature=0, ignore_eos=True))
    next(stream)
    before = [steps(hurried, n) for n in (64, 128, "+Inf")]
    assert hurried.complete(**body) == expected
    assert hurried.metric("penstock_step_token_budget") == 1 + MIN_PROMPT_TOKENS  # the stream still runs
    small, chunked, every = (steps(hurried, n) - b for n, b in zip((64, 128, "+Inf"), before))
    assert chunked == every  # no step beside the stream had more
    assert chunked - small >= count // MIN_PROMPT_TOKENS
    stream.close()


def test_without_a_target_the_budget_is_the_largest(cluster):
    cluster.complete("Once", max_tokens=2, temperature=0)
    assert cluster.metric("penstock_step_token_budget") == 512
