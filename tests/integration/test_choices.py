"""n and best_of on the real model: several choices of one request, over both APIs."""
import json
import socket

import pytest

from conftest import NAME

PROMPT = "Once upon a time"
SAMPLED = dict(model=NAME, prompt=PROMPT, temperature=1.0, seed=7, max_tokens=16, extra_body={"ignore_eos": True})
QUESTION = [{"role": "user", "content": "Name a river."}]


@pytest.fixture(scope="module")
def three(client):
    """Choices of n = 3, whole."""
    answer = client.completions.create(n=3, **SAMPLED)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    return answer


def test_seeds(client, three):
    """Choice 0 is what n = 1 gives, the others differ, and all come again."""
    texts = [c.text for c in three.choices]
    assert texts[0] == client.completions.create(**SAMPLED).choices[0].text
    assert len(set(texts)) == 3
    assert [c.text for c in client.completions.create(n=3, **SAMPLED).choices] == texts
    assert [c.text for c in client.completions.create(n=2, **SAMPLED).choices] == texts[:2]
    assert [c.text for c in client.completions.create(n=2, **SAMPLED | {"seed": 8}).choices] != texts[:2]


def test_usage_counts_the_prompt_once(client, three):
    one = client.completions.create(**SAMPLED).usage
    assert (three.usage.prompt_tokens, three.usage.completion_tokens) == (one.prompt_tokens, 3 * 16)
    assert three.usage.total_tokens == one.prompt_tokens + 3 * 16


def test_without_a_seed_they_differ(client):
    choices = client.completions.create(n=4, **SAMPLED | {"seed": None}).choices
    assert len({c.text for c in choices}) > 1


def test_greedy_choices_are_alike(client):
    answer = client.completions.create(model=NAME, prompt="The capital of France is", n=3, temperature=0, max_tokens=8)
    assert len({c.text for c in answer.choices}) == 1 and answer.choices[2].text.startswith(" Paris")


def test_stream(client, three):
    chunks = list(client.completions.create(n=3, stream=True, stream_options={"include_usage": True}, **SAMPLED))
    *deltas, last = chunks
    assert last.choices == [] and last.usage == three.usage.model_copy(
        update={"prompt_tokens_details": last.usage.prompt_tokens_details})
    for choice in three.choices:
        mine = [c.choices[0] for c in deltas if c.choices[0].index == choice.index]
        assert "".join(c.text for c in mine) == choice.text
        assert [c.finish_reason for c in mine] == [None] * (len(mine) - 1) + ["length"]
    assert len({c.id for c in chunks}) == 1


def test_continuous_usage(client):
    chunks = list(client.completions.create(
        n=2, stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True}, **SAMPLED))
    counts = [c.usage.completion_tokens for c in chunks]
    assert counts == sorted(counts) and counts[-1] == 32 and all(c.usage.prompt_tokens == 4 for c in chunks)


def test_chat(client):
    parameters = dict(model=NAME, messages=QUESTION, n=3, seed=3, temperature=1.5, max_tokens=12)
    whole = client.chat.completions.create(**parameters)
    assert [c.message.role for c in whole.choices] == ["assistant"] * 3
    texts, roles, ends = {}, [], []
    for chunk in client.chat.completions.create(stream=True, **parameters):
        choice, = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        roles += [choice.index] if choice.delta.role else []
        ends += [choice.index] if choice.finish_reason else []
    assert [texts[i] for i in range(3)] == [c.message.content for c in whole.choices]
    assert sorted(roles) == sorted(ends) == [0, 1, 2]


def test_stop_strings_end_a_choice_alone(client, three):
    """A stop string that one choice has and another hasn't."""
    texts = [c.text for c in three.choices]
    stop = next(word for word in texts[1].split() if all(word not in t for t in (texts[0], texts[2])))
    cut = client.completions.create(n=3, stop=[stop], **SAMPLED)
    assert [c.finish_reason for c in cut.choices] == ["length", "stop", "length"]
    assert [c.text for c in cut.choices] == [texts[0], texts[1][:texts[1].index(stop)], texts[2]]


def test_best_of(client):
    """The n of best_of with the highest mean log-probability, best first; all of them are counted."""
    everything = client.completions.create(n=5, logprobs=0, **SAMPLED)

    def mean(choice):
        values = choice.logprobs.token_logprobs
        return sum(values) / len(values)
    ranked = [c.text for c in sorted(everything.choices, key=mean, reverse=True)]
    best = client.completions.create(n=2, best_of=5, **SAMPLED)
    assert [c.text for c in best.choices] == ranked[:2] and [c.index for c in best.choices] == [0, 1]
    assert best.choices[0].logprobs is None
    assert best.usage.completion_tokens == 5 * 16 and best.usage.prompt_tokens == everything.usage.prompt_tokens
    one = client.completions.create(best_of=5, logprobs=1, **SAMPLED)
    assert [c.text for c in one.choices] == ranked[:1] and len(one.choices[0].logprobs.token_logprobs) == 16


def test_best_of_n_may_stream(client):
    chunks = client.completions.create(n=2, best_of=2, stream=True, **SAMPLED)
    assert {c.choices[0].index for c in chunks} == {0, 1}


def test_echo(client, three):
    echoed = client.completions.create(n=3, echo=True, **SAMPLED)
    assert [c.text for c in echoed.choices] == [PROMPT + c.text for c in three.choices]


def test_grpc(stub, protos, three):
    m = protos.messages
    messages = list(stub.Generate(m.GenerateRequest(text=PROMPT, request_id="three", sampling=m.SamplingParams(
        n=3, seed=7, temperature=1, max_tokens=16, ignore_eos=True))))
    for choice in three.choices:
        mine = [x for x in messages if x.choice == choice.index]
        assert "".join(x.text for x in mine) == choice.text
        assert [x.finish_reason for x in mine] == [0] * (len(mine) - 1) + [m.FINISH_REASON_LENGTH]
    assert [x.request_id for x in messages] == ["three"] + [""] * (len(messages) - 1)
    assert [x.HasField("usage") for x in messages] == [False] * (len(messages) - 1) + [True]
    usage = messages[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (three.usage.prompt_tokens, 48)


def test_many(client, cluster):
    before = cluster.metric("vllm:prompt_tokens_total")
    answer = client.completions.create(model=NAME, prompt=PROMPT, n=128, max_tokens=2, extra_body={"ignore_eos": True})
    assert len(answer.choices) == 128 and answer.usage.completion_tokens == 256
    assert cluster.metric("vllm:prompt_tokens_total") - before == answer.usage.prompt_tokens


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_client_that_leaves_cancels_all(cluster, stream):
    body = json.dumps({"prompt": PROMPT, "max_tokens": 3000, "ignore_eos": True, "stream": stream, "n": 4,
                       "request_id": f"left-{stream}"}).encode()
    with socket.create_connection(("127.0.0.1", cluster.http_port), timeout=60) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        cluster.wait_until(lambda: cluster.metric("vllm:num_requests_running") == 4, "all run")
        assert cluster.metric("penstock_router_open_streams") == 1
    cluster.wait_idle()
    cluster.wait_until(lambda: cluster.metric("penstock_router_open_streams") == 0, "the stream is closed")
    for i in range(4):
        assert f'request=left-{stream}-{i} outcome="cancelled"' in cluster.log()


def test_grpc_client_that_leaves_cancels_all(stub, protos, cluster):
    m = protos.messages
    stream = stub.Generate(m.GenerateRequest(
        text=PROMPT, sampling=m.SamplingParams(n=4, max_tokens=3000, ignore_eos=True)))
    next(stream)
    stream.cancel()
    cluster.wait_idle()
    cluster.wait_until(lambda: cluster.metric("penstock_router_open_streams") == 0, "the stream is closed")
