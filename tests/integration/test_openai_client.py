"""The official openai package, unmodified."""
import concurrent.futures
import math

import openai
import pytest

from conftest import ALIAS, NAME

GREEDY = dict(model=NAME, temperature=0)
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]


def test_models(client):
    models = client.models.list().data
    assert [m.id for m in models] == [NAME, ALIAS]
    assert models[0].root.endswith(".gguf") and models[0].max_model_len == 8192
    assert client.models.retrieve(ALIAS).id == ALIAS
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_chat(client):
    answer = client.chat.completions.create(messages=MESSAGES, max_tokens=32, **GREEDY)
    choice = answer.choices[0]
    assert "Paris" in choice.message.content and choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert answer.model == NAME and answer.object == "chat.completion" and answer.id.startswith("chatcmpl-")
    usage = answer.usage
    assert usage.prompt_tokens > 5 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_chat_streams_the_same(client):
    whole = client.chat.completions.create(messages=MESSAGES, max_tokens=32, **GREEDY)
    chunks = list(client.chat.completions.create(
        messages=MESSAGES, max_tokens=32, stream=True, stream_options={"include_usage": True}, **GREEDY))
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content
    assert all(c.choices[0].delta.role is None for c in chunks[1:-1])
    assert "".join(c.choices[0].delta.content for c in chunks[:-1]) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        whole.choices[0].finish_reason]
    usage = chunks[-1].usage
    assert chunks[-1].choices == []
    assert (usage.prompt_tokens, usage.total_tokens) == (whole.usage.prompt_tokens, whole.usage.total_tokens)
    assert usage.prompt_tokens_details.cached_tokens == (usage.prompt_tokens - 1) // 16 * 16  # all but the last page
    assert len({c.id for c in chunks}) == 1


def test_stream_without_usage(client):
    chunks = list(client.completions.create(prompt="One, two,", max_tokens=5, stream=True, **GREEDY))
    assert all(c.choices and c.usage is None for c in chunks)


def test_continuous_usage(client):
    chunks = list(client.completions.create(
        prompt="One, two,", max_tokens=5, stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True}, **GREEDY))
    counts = [c.usage.completion_tokens for c in chunks]
    assert counts == sorted(counts) and counts[-1] == 5


def test_completion_of_text_ids_and_a_list(client, cluster):
    prompt = "The capital of France is"
    text = client.completions.create(prompt=prompt, max_tokens=8, **GREEDY).choices[0].text
    assert text.startswith(" Paris")
    ids = cluster.post("/tokenize", {"prompt": prompt})[1]["tokens"]
    for form in (ids, [ids], [prompt]):
        assert client.completions.create(prompt=form, max_tokens=8, **GREEDY).choices[0].text == text


def test_alias_and_served_default(client, cluster):
    assert client.completions.create(model=ALIAS, prompt="Hi", max_tokens=1).model == ALIAS
    assert cluster.post("/v1/completions", {"prompt": "Hi", "max_tokens": 1})[1]["model"] == NAME


def test_max_completion_tokens_goes_first(client):
    answer = client.chat.completions.create(messages=MESSAGES, max_completion_tokens=3, max_tokens=9, **GREEDY)
    assert answer.usage.completion_tokens == 3 and answer.choices[0].finish_reason == "length"


def test_seed(client):
    def text(seed):
        return client.completions.create(model=NAME, prompt="Once upon a time", max_tokens=24, temperature=1.0,
                                         seed=seed).choices[0].text
    assert text(1) == text(1)
    assert len({text(seed) for seed in range(2, 6)}) > 1


def test_stop_strings(client):
    free = client.completions.create(prompt="1, 2, 3, 4,", max_tokens=24, **GREEDY).choices[0].text
    assert "7" in free
    cut = client.completions.create(prompt="1, 2, 3, 4,", max_tokens=24, stop=["zzz", "7"], **GREEDY).choices[0]
    assert cut.text == free[:free.index("7")] and cut.finish_reason == "stop" and cut.stop_reason == "7"
    kept = client.completions.create(prompt="1, 2, 3, 4,", max_tokens=24, stop="7",
                                     extra_body={"include_stop_str_in_output": True}, **GREEDY).choices[0]
    assert kept.text == free[:free.index("7") + 1]


def test_stop_string_over_token_borders_in_a_stream(client):
    free = client.completions.create(prompt="The capital of France is", max_tokens=16, **GREEDY).choices[0].text
    stop = free[3:9]  # begins and ends inside tokens
    chunks = list(client.completions.create(prompt="The capital of France is", max_tokens=16, stop=[stop],
                                            stream=True, **GREEDY))
    assert "".join(c.choices[0].text for c in chunks) == free[:3]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_stop_token_ids_and_ignore_eos(client, cluster):
    answer = client.chat.completions.create(messages=[{"role": "user", "content": "Say: ok"}], max_tokens=64, **GREEDY)
    assert answer.choices[0].finish_reason == "stop"
    longer = client.chat.completions.create(messages=[{"role": "user", "content": "Say: ok"}], max_tokens=64,
                                            extra_body={"ignore_eos": True}, **GREEDY)
    assert longer.usage.completion_tokens == 64
    comma = cluster.post("/tokenize", {"prompt": ","})[1]["tokens"][0]
    cut = client.completions.create(prompt="1, 2, 3", max_tokens=24, extra_body={"stop_token_ids": [comma]}, **GREEDY)
    assert cut.choices[0].finish_reason == "stop" and cut.choices[0].stop_reason == comma
    assert cut.choices[0].text == ""


def test_chat_logprobs(client):
    choice = client.chat.completions.create(messages=MESSAGES, max_tokens=8, logprobs=True, top_logprobs=3,
                                            **GREEDY).choices[0]
    content = choice.logprobs.content
    assert "".join(t.token for t in content).startswith(choice.message.content)
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.token == token.top_logprobs[0].token  # greedy
        assert bytes(token.bytes).decode() == token.token
        assert sum(math.exp(t.logprob) for t in token.top_logprobs) <= 1.001


def test_completion_logprobs_and_echo(client):
    answer = client.completions.create(prompt="The capital of France is", max_tokens=4, logprobs=2, echo=True,
                                       **GREEDY).choices[0]
    assert answer.text.startswith("The capital of France is Paris")
    logprobs = answer.logprobs
    assert "".join(logprobs.tokens) == answer.text
    assert logprobs.token_logprobs[0] is None and all(x <= 0 for x in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == [len("".join(logprobs.tokens[:i])) for i in range(len(logprobs.tokens))]


def test_logit_bias(client, cluster):
    token = cluster.post("/tokenize", {"prompt": " banana"})[1]["tokens"][0]
    answer = client.completions.create(prompt="The capital of France is", max_tokens=3, logit_bias={str(token): 100},
                                       **GREEDY)
    assert answer.choices[0].text == " banana" * 3


def test_content_parts(client):
    parts = [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": "of France?"}]
    joined = [{"role": "user", "content": "What is the capital\nof France?"}]
    a = client.chat.completions.create(messages=[{"role": "user", "content": parts}], max_tokens=8, **GREEDY)
    b = client.chat.completions.create(messages=joined, max_tokens=8, **GREEDY)
    assert a.choices[0].message.content == b.choices[0].message.content


def test_many_at_once(client):
    def count(n):
        return client.completions.create(prompt=f"{n}, {n + 1},", max_tokens=12, **GREEDY).choices[0].text
    alone = [count(n) for n in range(3)]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(pool.map(count, [n % 3 for n in range(32)]))
    assert all(text for text in together)
    assert together == [alone[i % 3] for i in range(32)]


def test_client_that_leaves_frees_its_pages(client, cluster):
    stream = client.completions.create(prompt="Once upon a time", max_tokens=4000, stream=True, model=NAME,
                                       extra_body={"ignore_eos": True})
    next(iter(stream))
    assert cluster.metric("penstock_router_open_streams") == 1
    stream.close()
    cluster.wait_idle()
    assert cluster.metric("penstock_router_open_streams") == 0


@pytest.mark.parametrize("more", [dict(n=0), dict(priority=-1),
                                  dict(tools=[{"type": "function", "function": {"name": "f"}}]),
                                  dict(response_format={"type": "json_object"}), dict(top_logprobs=5),
                                  dict(temperature=-1), dict(max_tokens=0)], ids=lambda m: next(iter(m)))
def test_errors_name_their_parameter(client, more):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(messages=MESSAGES, model=NAME, extra_body=more)
    assert error.value.param == next(iter(more)) and error.value.type == "invalid_request_error"


def test_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(messages=MESSAGES, model="gpt-9")
    assert error.value.code == "model_not_found" and NAME in error.value.message
