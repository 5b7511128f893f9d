"""Queue limits and deadlines as clients see them, on the null device: it computes nothing, at a pace that is given."""
import contextlib
import json
import re
import socket

import grpc
import httpx
import pytest

from cluster import Cluster, stream_completion

LONG = dict(prompt="x", max_tokens=4000, ignore_eos=True)  # 80 s at 20 ms a step
COMPLETIONS = "/v1/completions"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One request runs, two may wait."""
    with Cluster(tmp_path_factory.mktemp("small") / "log", "--device", "null", "--null-step-us", "20000",
                 "--max-num-seqs", "1", "--max-queued-requests", "2") as cluster:
        yield cluster


@contextlib.contextmanager
def unfinished(cluster):
    """A long request whose answer nobody reads."""
    body = json.dumps(LONG).encode()
    with socket.create_connection(("127.0.0.1", cluster.http_port)) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        yield


@pytest.fixture
def fill(small):
    """fill(count): so many requests are there, one of which runs, until the test ends."""
    with contextlib.ExitStack() as requests:
        def fill(count):
            for _ in range(count):
                requests.enter_context(unfinished(small))
            small.wait_until(lambda: numbers(small) == (1, count - 1), f"{count} requests are there")
        yield fill
    small.wait_idle()


def numbers(cluster):
    return tuple(int(cluster.metric(f"vllm:num_requests_{state}")) for state in ("running", "waiting"))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("n", [1, 3])
def test_full_queue(small, fill, stream, n):
    fill(3)
    reply = httpx.post(small.url + COMPLETIONS, json=dict(prompt="x", stream=stream, n=n), timeout=60)
    assert reply.status_code == 429 and reply.headers["content-type"] == "application/json"
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.json()["error"]["type"] == "rate_limit_error" and reply.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_choices_that_do_not_all_fit_are_refused_together(small, fill, stream):
    fill(2)  # room for one more
    reply = httpx.post(small.url + COMPLETIONS, json=dict(prompt="x", stream=stream, n=3), timeout=60)
    assert reply.status_code == 429 and reply.json()["error"]["type"] == "rate_limit_error"
    small.wait_until(lambda: numbers(small) == (1, 1), "those that fitted are gone too")


def test_full_queue_over_grpc(small, fill, protos):
    fill(3)
    m = protos.messages
    with grpc.insecure_channel(small.grpc_address) as channel:
        call = protos.services.InferenceStub(channel).Generate(m.GenerateRequest(text="x"))
        with pytest.raises(grpc.RpcError) as error:
            list(call)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(error.value.trailing_metadata())
    seconds = int(trailers["retry-after"])
    assert seconds >= 1
    # google.rpc.Status with one google.rpc.RetryInfo: retry_delay (field 1) with seconds (field 1).
    delay = bytes([0x08, seconds])
    assert trailers["grpc-status-details-bin"].endswith(
        b"type.googleapis.com/google.rpc.RetryInfo" + b"\x12\x04\x0a\x02" + delay)


def test_timeout_while_it_waits(small, fill):
    fill(1)
    reply = httpx.post(small.url + COMPLETIONS, json=LONG | {"timeout": 0.5}, timeout=60)
    assert reply.status_code == 504, reply.text
    assert reply.json()["error"]["type"] == "timeout_error" and reply.json()["error"]["code"] == "deadline_exceeded"
    small.wait_until(lambda: numbers(small) == (1, 0), "it waits no longer")


def test_timeout_while_it_runs(small):
    reply = httpx.post(small.url + COMPLETIONS, json=LONG | {"timeout": 0.5, "n": 2}, timeout=60)
    assert reply.status_code == 504, reply.text
    small.wait_idle()


def test_timeout_of_a_stream(small):
    body = json.dumps(LONG | {"timeout": 1, "stream": True})
    with httpx.stream("POST", small.url + COMPLETIONS, content=body, timeout=60) as reply:
        assert reply.status_code == 200
        events = [line[6:] for line in reply.iter_lines() if line.startswith("data: ")]
    assert json.loads(events[0])["choices"] and events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["type"] == "timeout_error"
    small.wait_idle()


def test_timeout_over_grpc(small, protos):
    m = protos.messages
    with grpc.insecure_channel(small.grpc_address) as channel:
        with pytest.raises(grpc.RpcError) as error:
            list(protos.services.InferenceStub(channel).Generate(m.GenerateRequest(
                text="x", timeout_ms=500, sampling=m.SamplingParams(max_tokens=4000, ignore_eos=True))))
    assert error.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    small.wait_idle()


def test_enough_time_is_no_limit(small):
    *_, (finish, usage) = stream_completion(small, LONG | {"max_tokens": 5, "timeout": 3600})
    assert finish == "length" and usage["completion_tokens"] == 5


def test_a_timeout_goes_on_while_the_scheduler_starts_anew(small):
    """The resubmission has a deadline too (what it says is left: tests/unit/router/engine/submit_test.cc)."""
    stream = stream_completion(small, LONG | {"timeout": 3})
    next(stream)
    small.kill("scheduler")
    with pytest.raises(AssertionError, match="timeout_error"):
        list(stream)
    small.wait_ready()
    assert re.search(r'msg="requests submitted again"|time was up', small.log())
    small.wait_idle()
