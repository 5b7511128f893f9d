"""Shared prefixes on the real model: what is computed again, and that the text is the same."""
import pytest

from cluster import Cluster
from conftest import NAME

PAGE = 16
WORDS = ("river", "bridge", "winter", "copper", "garden", "letter", "market", "shadow", "engine", "window")


def chat(cluster, messages, salt):
    status, body = cluster.post("/v1/chat/completions", {
        "model": NAME, "messages": messages, "max_tokens": 16, "temperature": 0, "return_token_ids": True,
        "cache_salt": salt})
    assert status == 200, body
    return body["choices"][0], body["usage"]


def conversation(cluster, salt):
    """Ten turns; of each the prompt's ids, the output's ids, the text and the usage."""
    messages, turns = [], []
    for word in WORDS:
        messages.append({"role": "user", "content": f"Write one short sentence about a {word}."})
        status, prompt = cluster.post("/tokenize", {"messages": messages})
        assert status == 200, prompt
        choice, usage = chat(cluster, messages, salt)
        turns.append((prompt["tokens"], choice["token_ids"], choice["message"]["content"], usage))
        messages.append({"role": "assistant", "content": choice["message"]["content"]})
    return turns


@pytest.fixture(scope="module")
def uncached(tmp_path_factory):
    log = tmp_path_factory.mktemp("uncached") / "log"
    with Cluster(log, "--dtype", "float32", "--served-model-name", NAME, "--no-enable-prefix-caching") as cluster:
        yield cluster


def cached(usage) -> int:
    return usage["prompt_tokens_details"]["cached_tokens"]


def test_a_conversation_computes_only_what_is_new(cluster, uncached):
    names = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
    cluster.wait_idle()
    before = [cluster.metric(name) for name in names]
    turns = conversation(cluster, "ten turns")
    assert cached(turns[0][3]) == 0
    for (prompt, output, _, _), (next_prompt, _, _, usage) in zip(turns, turns[1:]):
        assert usage["prompt_tokens"] == len(next_prompt)
        # In pages: the prompt and the output but for its last id, which was never fed back.
        known = prompt + output[:-1]
        common = next((i for i, (a, b) in enumerate(zip(known, next_prompt)) if a != b), len(known))
        assert cached(usage) == common // PAGE * PAGE
        assert common >= len(known) - 1  # the text came back as the ids it was made of
    queries = sum(len(prompt) for prompt, *_ in turns)
    hits = sum(cached(usage) for *_, usage in turns)
    assert queries - hits < 10 * (16 + 40)  # new in a turn: an answer, a question, less than a page besides
    cluster.wait_until(lambda: [cluster.metric(n) - b for n, b in zip(names, before)] == [queries, hits],
                       f"counters up by {queries} and {hits}")

    for (_, ids, text, _), (_, same_ids, same_text, usage) in zip(turns, conversation(uncached, "ten turns")):
        assert (ids, text) == (same_ids, same_text)
        assert cached(usage) == 0
    assert uncached.metric("vllm:prefix_cache_hits_total") == 0


def test_salts_share_nothing(cluster):
    question = [{"role": "user", "content": "Name the four seasons of the year, one after the other, in order."}]
    answers = [chat(cluster, question, salt) for salt in ("one", "two", "one", "two", "three")]
    assert len({choice["message"]["content"] for choice, _ in answers}) == 1
    whole = (answers[0][1]["prompt_tokens"] - 1) // PAGE * PAGE
    assert whole > 0
    assert [cached(usage) for _, usage in answers] == [0, 0, whole, whole, 0]


def test_prompt_logprobs_are_the_same_when_the_prompt_is_known(cluster):
    body = {"model": NAME, "prompt": "The quick brown fox jumps over the lazy dog, and then it goes home to sleep. " * 2,
            "max_tokens": 4, "temperature": 0, "prompt_logprobs": 0, "cache_salt": "logprobs"}
    first, second = (cluster.post("/v1/completions", body)[1] for _ in range(2))
    assert cached(second["usage"]) == 0
    assert first["choices"][0]["prompt_logprobs"] == second["choices"][0]["prompt_logprobs"]
    assert len(second["choices"][0]["prompt_logprobs"]) == second["usage"]["prompt_tokens"]
    del body["prompt_logprobs"]
    third = cluster.post("/v1/completions", body)[1]
    assert cached(third["usage"]) > 0 and third["choices"][0]["text"] == first["choices"][0]["text"]
