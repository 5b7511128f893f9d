"""grpcio against penstock.v1.Inference, health and reflection."""
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from conftest import ALIAS, NAME

PROMPT = "The capital of France is"


def collect(stream):
    messages = list(stream)
    return "".join(m.text for m in messages), messages


def test_generate(stub, protos):
    m = protos.messages
    text, messages = collect(stub.Generate(m.GenerateRequest(
        text=PROMPT, request_id="mine", sampling=m.SamplingParams(temperature=0, max_tokens=8))))
    assert text.startswith(" Paris")
    assert messages[0].request_id == "mine" and all(not x.request_id for x in messages[1:])
    assert [x.finish_reason for x in messages] == [0] * (len(messages) - 1) + [m.FINISH_REASON_LENGTH]
    assert messages[-1].usage.completion_tokens == 8 and messages[-1].usage.prompt_tokens == 5
    assert not any(x.token_ids for x in messages)


def test_ids_in_and_out(stub, protos):
    m = protos.messages
    ids = stub.Tokenize(m.TokenizeRequest(text=PROMPT)).token_ids
    sampling = m.SamplingParams(temperature=0, max_tokens=8)
    text, messages = collect(stub.Generate(m.GenerateRequest(
        token_ids=m.TokenIds(ids=ids), sampling=sampling, return_token_ids=True, return_text=True)))
    out = [i for x in messages for i in x.token_ids]
    assert len(out) == 8 and stub.Detokenize(m.DetokenizeRequest(token_ids=out)).text == text
    only_ids, messages = collect(stub.Generate(m.GenerateRequest(
        token_ids=m.TokenIds(ids=ids), sampling=sampling, return_token_ids=True)))
    assert only_ids == "" and [i for x in messages for i in x.token_ids] == out


def test_chat_says_what_http_says(stub, protos, client):
    m = protos.messages
    text, messages = collect(stub.Chat(m.ChatRequest(
        messages=[m.ChatMessage(role="user", content="What is the capital of France?")],
        sampling=m.SamplingParams(temperature=0, max_tokens=24))))
    answer = client.chat.completions.create(
        model=NAME, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0,
        max_tokens=24)
    assert text == answer.choices[0].message.content
    assert messages[-1].usage.prompt_tokens == answer.usage.prompt_tokens


def test_stop_and_its_reason(stub, protos):
    m = protos.messages
    text, messages = collect(stub.Generate(m.GenerateRequest(
        text="1, 2, 3, 4,", sampling=m.SamplingParams(temperature=0, max_tokens=24, stop=["7"]))))
    assert "7" not in text and text.endswith(" ")
    assert messages[-1].finish_reason == m.FINISH_REASON_STOP and messages[-1].stop_reason == "7"


def test_logprobs(stub, protos):
    m = protos.messages
    _, messages = collect(stub.Generate(m.GenerateRequest(
        text=PROMPT, return_token_ids=True,
        sampling=m.SamplingParams(temperature=0, max_tokens=4, logprobs=2, prompt_logprobs=0))))
    tokens = [t for x in messages for t in x.logprobs]
    assert [t.token_id for t in tokens] == [i for x in messages for i in x.token_ids]
    assert all(t.rank == 1 and len(t.top) == 2 and t.top[0].token_id == t.token_id for t in tokens)
    assert len(messages[0].prompt_logprobs) == 4 and not any(x.prompt_logprobs for x in messages[1:])
    assert all(t.logprob <= 0 for t in messages[0].prompt_logprobs)


def test_get_model(stub, protos):
    model = stub.GetModel(protos.messages.GetModelRequest())
    assert model.model == NAME and list(model.aliases) == [ALIAS]
    assert model.max_model_len == 8192 and model.vocab_size == 49152 and model.version
    assert model.eos_token_ids


def test_cancel_frees_its_pages(stub, protos, cluster):
    m = protos.messages
    stream = stub.Generate(m.GenerateRequest(
        text=PROMPT, sampling=m.SamplingParams(max_tokens=2000, ignore_eos=True)))
    next(stream)
    stream.cancel()
    cluster.wait_idle()
    cluster.wait_until(lambda: cluster.metric("penstock_router_open_streams") == 0, "the stream is closed")


def test_deadline_frees_its_pages(stub, protos, cluster):
    m = protos.messages
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Generate(m.GenerateRequest(
            text=PROMPT, sampling=m.SamplingParams(max_tokens=2000, ignore_eos=True)), timeout=1))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    cluster.wait_idle()


def test_slow_reader_gets_everything_and_holds_up_nobody(stub, protos, cluster):
    m = protos.messages
    slow = stub.Generate(m.GenerateRequest(
        text="Once upon a time", sampling=m.SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)))
    text = next(slow).text
    for _ in range(3):
        assert cluster.complete(PROMPT, max_tokens=8, temperature=0)
    last = None
    for message in slow:
        text += message.text
        last = message
    assert last.usage.completion_tokens == 200
    assert text == cluster.complete("Once upon a time", max_tokens=200, temperature=0, ignore_eos=True)


def sampling(**parameters):
    return dict(sampling=parameters)


BAD = {
    "unknown model": (dict(text="x", model="none"), "NOT_FOUND", NAME),
    "no prompt": (dict(), "INVALID_ARGUMENT", "prompt is missing"),
    "empty prompt": (dict(text=""), "INVALID_ARGUMENT", "prompt is empty"),
    "id of no token": (dict(token_ids=dict(ids=[49152])), "INVALID_ARGUMENT", "49152"),
    "negative id": (dict(token_ids=dict(ids=[-1])), "INVALID_ARGUMENT", "-1"),
    "max_tokens 0": (dict(text="x", **sampling(max_tokens=0)), "INVALID_ARGUMENT", "max_tokens is 0"),
    "max_tokens negative": (dict(text="x", **sampling(max_tokens=-5)), "INVALID_ARGUMENT", "-5"),
    "max_tokens over the context": (dict(text="x", **sampling(max_tokens=9000)), "INVALID_ARGUMENT", "8192"),
    "prompt over the context": (dict(token_ids=dict(ids=[7] * 9000)), "INVALID_ARGUMENT", "9000 tokens"),
    "temperature NaN": (dict(text="x", **sampling(temperature=float("nan"))), "INVALID_ARGUMENT", "nan"),
    "temperature negative": (dict(text="x", **sampling(temperature=-1)), "INVALID_ARGUMENT", "temperature"),
    "top_p infinite": (dict(text="x", **sampling(top_p=float("inf"))), "INVALID_ARGUMENT", "top_p"),
    "bias of no token": (dict(text="x", **sampling(logit_bias={-7: 1.0})), "INVALID_ARGUMENT", "-7"),
    "n too large": (dict(text="x", **sampling(n=129)), "INVALID_ARGUMENT", "from 1 to 128"),
    "n 0": (dict(text="x", **sampling(n=0)), "INVALID_ARGUMENT", "n is 0"),
    "priority negative": (dict(text="x", priority=-1), "INVALID_ARGUMENT", "0 (goes first) to 9"),
    "priority too large": (dict(text="x", priority=10), "INVALID_ARGUMENT", "priority is 10"),
    "timeout 0": (dict(text="x", timeout_ms=0), "INVALID_ARGUMENT", "timeout_ms is 0"),
    "timeout in the past": (dict(text="x", timeout_ms=-1), "INVALID_ARGUMENT", "milliseconds"),
    "cache_salt of 300 bytes": (dict(text="x", cache_salt="x" * 300), "INVALID_ARGUMENT", "at most 256"),
    "17 stop strings": (dict(text="x", **sampling(stop=["x"] * 17)), "INVALID_ARGUMENT", "at most 16"),
}


@pytest.mark.parametrize("request_, code, says", BAD.values(), ids=BAD.keys())
def test_bad_requests(stub, protos, cluster, request_, code, says):
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Generate(protos.messages.GenerateRequest(**request_)))
    assert error.value.code().name == code and says in error.value.details()


def test_long_tenant(stub, protos, cluster):
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Generate(protos.messages.GenerateRequest(text="x"),
                           metadata=[("x-gateway-inference-fairness-id", "x" * 257)]))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "257 bytes" in error.value.details()


@pytest.mark.parametrize("timeout", [0, -1])
def test_deadline_in_the_past(stub, protos, cluster, timeout):
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Generate(protos.messages.GenerateRequest(text="x"), timeout=timeout))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_empty_messages(stub, protos, cluster):
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Chat(protos.messages.ChatRequest()))
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "messages is empty" in error.value.details()


@pytest.mark.parametrize("method", ["Generate", "Chat", "Tokenize"])
def test_bytes_that_are_no_message(channel, cluster, method):
    """Bad UTF-8 in a string field, which no stub would send."""
    bad = b"\x0a\x02\xff\xfe"  # field 1, model
    make = channel.unary_unary if method == "Tokenize" else channel.unary_stream
    call = make(f"/penstock.v1.Inference/{method}", request_serializer=bytes, response_deserializer=bytes)
    with pytest.raises(grpc.RpcError) as error:
        reply = call(bad)
        list(reply)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT and "UTF-8" in error.value.details()


def test_message_of_10_mb(stub, protos, cluster):
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Generate(protos.messages.GenerateRequest(text="x" * 10_000_000)))
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_health(channel, cluster):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "penstock.v1.Inference"):
        reply = health.Check(health_pb2.HealthCheckRequest(service=service))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as error:
        health.Check(health_pb2.HealthCheckRequest(service="none"))
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    watch = health.Watch(health_pb2.HealthCheckRequest(service="penstock.v1.Inference"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_reflection(channel, cluster):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="penstock.v1.Inference")]
    listing, file = stub.ServerReflectionInfo(iter(requests))
    names = {s.name for s in listing.list_services_response.service}
    assert {"penstock.v1.Inference", "grpc.health.v1.Health"} <= names
    assert b"GenerateRequest" in file.file_descriptor_response.file_descriptor_proto[0]


def test_calls_are_counted(stub, protos, cluster):
    before = cluster.metric("penstock_router_grpc_requests_total")
    stub.GetModel(protos.messages.GetModelRequest())
    cluster.wait_until(lambda: cluster.metric("penstock_router_grpc_requests_total") > before, "counted")
