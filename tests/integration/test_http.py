"""HTTP by hand: paths, methods, errors, keep-alive, streams, clients that leave or read slowly."""
import json
import socket
import subprocess
import threading

import httpx
import pytest

from cluster import SMOLLM, Cluster, stream_completion
from conftest import NAME

PROMPT = "The capital of France is"


@pytest.fixture(scope="session")
def http(cluster):
    with httpx.Client(base_url=cluster.url, timeout=60) as http:
        yield http


def curl(cluster, path, *arguments):
    done = subprocess.run(["curl", "-sS", "-N", "-i", cluster.url + path, *arguments], capture_output=True, check=True)
    head, _, body = done.stdout.decode().partition("\r\n\r\n")
    return head, body


def test_curl_as_the_readme_says(cluster):
    head, body = curl(cluster, "/v1/chat/completions", "-H", "Content-Type: application/json", "-d", json.dumps(
        {"model": NAME, "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 24}))
    assert head.startswith("HTTP/1.1 200 OK")
    assert json.loads(body)["choices"][0]["message"]["content"]


def test_stream_is_made_of_events(cluster):
    head, body = curl(cluster, "/v1/completions", "-d", json.dumps(
        {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "stream": True}))
    assert "text/event-stream" in head
    events = body.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]"
    assert all(e.startswith("data: {") for e in events[:-2])


def test_http_1_0_gets_a_stream_too(cluster):
    head, body = curl(cluster, "/v1/completions", "--http1.0", "-d", json.dumps(
        {"prompt": PROMPT, "max_tokens": 6, "stream": True}))
    assert "Transfer-Encoding" not in head and body.endswith("data: [DONE]\n\n")


def test_models_health_ready_metrics_and_the_page(http):
    assert [m["id"] for m in http.get("/v1/models").json()["data"]][0] == NAME
    assert http.get("/health").json() == {"status": "ok"} and http.get("/ready").json() == {"status": "ok"}
    assert "<title>Penstock</title>" in http.get("/").text
    metrics = http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in ("vllm:time_to_first_token_seconds_bucket", "vllm:inter_token_latency_seconds_bucket",
                 "vllm:e2e_request_latency_seconds_bucket", "vllm:request_time_per_output_token_seconds_bucket",
                 "vllm:request_success_total", "vllm:generation_tokens_total", "vllm:num_requests_running",
                 "vllm:kv_cache_usage_perc", "penstock_router_open_streams"):
        assert f"\n{name}{{" in metrics.text, name


def test_metrics_count(cluster):
    tokens, stops = (cluster.metric(m) for m in ("vllm:generation_tokens_total", "vllm:request_success_total"))
    cluster.complete(PROMPT, max_tokens=7, ignore_eos=True)
    assert cluster.metric("vllm:generation_tokens_total") == tokens + 7
    assert cluster.metric("vllm:request_success_total") == stops + 1


def test_tokenize_and_detokenize(http):
    reply = http.post("/tokenize", json={"prompt": "Hello, world", "return_token_strs": True}).json()
    assert reply["count"] == len(reply["tokens"]) == len(reply["token_strs"]) and reply["max_model_len"] == 8192
    assert "".join(reply["token_strs"]) == "Hello, world"
    assert http.post("/detokenize", json={"tokens": reply["tokens"]}).json() == {"prompt": "Hello, world"}
    chat = http.post("/tokenize", json={"messages": [{"role": "user", "content": "Hi"}]}).json()
    text = http.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_paths_and_methods(http):
    missing = http.get("/v2/models")
    assert missing.status_code == 404 and missing.json()["error"]["message"]
    wrong = http.get("/v1/completions")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
    assert http.delete("/v1/models").status_code == 405
    assert http.get("/v1/models?x=1").status_code == 200


def test_one_connection_for_many_requests(cluster):
    with socket.create_connection(("127.0.0.1", cluster.http_port), timeout=60) as s:
        stream = s.makefile("rb")
        body = json.dumps({"prompt": PROMPT, "max_tokens": 2, "stream": True}).encode()
        post = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        s.sendall(post * 3 + b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        everything = stream.read()
    assert everything.count(b"HTTP/1.1 200 OK") == 4 and everything.count(b"data: [DONE]") == 3
    assert everything.endswith(b'{"status":"ok"}')


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_client_that_leaves_frees_its_pages(cluster, stream):
    body = json.dumps({"prompt": PROMPT, "max_tokens": 6000, "ignore_eos": True, "stream": stream}).encode()
    with socket.create_connection(("127.0.0.1", cluster.http_port), timeout=60) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        cluster.wait_until(lambda: cluster.metric("vllm:kv_cache_usage_perc") > 0, "it runs")
    cluster.wait_idle()
    assert 'outcome="length" prompt=5 output=6000' not in cluster.log()


def test_slow_reader_gets_everything_and_holds_up_nobody(cluster):
    request = dict(prompt="Once upon a time", max_tokens=200, temperature=0, ignore_eos=True)
    body = json.dumps(request | {"stream": True, "logprobs": 5}).encode()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(60)
        s.connect(("127.0.0.1", cluster.http_port))
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                  % (len(body), body))
        cluster.wait_until(lambda: cluster.metric("vllm:num_requests_running") == 1, "it runs")
        for _ in range(3):
            assert cluster.complete(PROMPT, max_tokens=8, temperature=0)
        # The engine goes on to the end though nobody reads: its pages are free before a byte was taken.
        cluster.wait_until(lambda: cluster.metric("vllm:num_requests_running") == 0, "it has run")
        text = s.makefile("rb").read().decode()
    chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    assert "".join(c["choices"][0]["text"] for c in chunks) == cluster.complete(**request)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_api_key_and_two_names(tmp_path):
    with Cluster(tmp_path / "log", "--device", "null", "--api-key", "secret") as cluster:
        url, post = cluster.url, {"prompt": "x", "max_tokens": 1}
        for key, status in ((None, 401), ("Bearer wrong", 401), ("Bearer secretive", 401), ("Bearer secret", 200)):
            headers = {"Authorization": key} if key else {}
            for reply in (httpx.post(url + "/v1/completions", json=post, headers=headers),
                          httpx.get(url + "/v1/models", headers=headers)):
                assert reply.status_code == status
                assert status == 200 or "www-authenticate" in reply.headers
        assert httpx.get(url + "/health").status_code == 200  # probes have no key


def test_full_queue_says_when_to_come_back(tmp_path):
    with Cluster(tmp_path / "log", "--device", "null", "--null-step-us", "20000", "--max-num-seqs", "1",
                 "--max-queued-requests", "2") as cluster:
        body = dict(prompt="x", max_tokens=100, ignore_eos=True)
        replies = []

        def post():
            replies.append(httpx.post(cluster.url + "/v1/completions", json=body, timeout=60))
        threads = [threading.Thread(target=post) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(reply.status_code for reply in replies)
        assert set(codes) == {200, 429} and codes.count(200) >= 3
        refused = next(reply for reply in replies if reply.status_code == 429)
        assert refused.headers["retry-after"] and refused.json()["error"]["type"] == "rate_limit_error"
        cluster.wait_idle()


def test_drain_refuses_new_requests_and_ends_old_ones(tmp_path):
    cluster = Cluster(tmp_path / "log", "--device", "null", "--null-step-us", "10000", model=SMOLLM)
    stream = stream_completion(cluster, dict(prompt="x", max_tokens=300, ignore_eos=True, seed=1))
    next(stream)
    cluster.process.terminate()
    cluster.wait_until(lambda: httpx.get(cluster.url + "/ready").status_code == 503, "it drains")
    late = httpx.post(cluster.url + "/v1/completions", json={"prompt": "x"})
    assert late.status_code == 503 and late.headers["retry-after"] and "drains" in late.json()["error"]["message"]
    *_, (finish, usage) = stream
    assert finish == "length" and usage["completion_tokens"] == 300
    assert cluster.process.wait(60) == 0
