"""Bad input gets the right status and a message that says what to do, and the cluster serves on (conftest.serves_on)."""
import concurrent.futures
import json
import mmap
import os
import pathlib
import shutil
import socket
import struct
import subprocess

import pytest

from cluster import BIN, SMOLLM, Cluster, free_port, stream_completion
from conftest import NAME

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]

BAD = {
    "unknown model": (COMPLETIONS, {"model": "none", "prompt": "x"}, 404, "model", NAME),
    "prompt over the context": (COMPLETIONS, {"prompt": [7] * 9000}, 400, "prompt", "9000 tokens"),
    "text over the context": (COMPLETIONS, {"prompt": "one two " * 5000}, 400, "prompt", "8192"),
    "conversation over the context": (CHAT, {"messages": [{"role": "user", "content": "one " * 9000}]}, 400,
                                      "messages", "8192"),
    "max_tokens 0": (COMPLETIONS, {"prompt": "x", "max_tokens": 0}, 400, "max_tokens", "max_tokens is 0"),
    "max_tokens negative": (COMPLETIONS, {"prompt": "x", "max_tokens": -3}, 400, "max_tokens", "-3"),
    "max_tokens over the context": (COMPLETIONS, {"prompt": "x", "max_tokens": 8192}, 400, "max_tokens", "8192"),
    "max_tokens a word": (COMPLETIONS, {"prompt": "x", "max_tokens": "many"}, 400, "max_tokens", "string"),
    "temperature negative": (COMPLETIONS, {"prompt": "x", "temperature": -1}, 400, "temperature", "-1"),
    "temperature a list": (COMPLETIONS, {"prompt": "x", "temperature": [1]}, 400, "temperature", "array"),
    "temperature infinite": (COMPLETIONS, b'{"prompt": "x", "temperature": 1e999}', 400, None, ""),
    "temperature NaN": (COMPLETIONS, b'{"prompt": "x", "temperature": NaN}', 400, None, "JSON"),
    "invalid JSON": (COMPLETIONS, b'{"prompt": "x"', 400, None, "JSON"),
    "no JSON": (COMPLETIONS, b"", 400, None, "JSON"),
    "a list": (COMPLETIONS, b"[1]", 400, None, "object"),
    "bad UTF-8": (COMPLETIONS, b'{"prompt": "\xff\xfe"}', 400, None, "UTF-8"),
    "half a surrogate": (COMPLETIONS, b'{"prompt": "\\ud83d"}', 400, None, "JSON"),
    "deep nesting": (COMPLETIONS, b"[" * 1_000_000, 400, None, "JSON"),
    "prompt missing": (COMPLETIONS, {}, 400, "prompt", "missing"),
    "prompt empty": (COMPLETIONS, {"prompt": ""}, 400, "prompt", "empty"),
    "prompt a number": (COMPLETIONS, {"prompt": 7}, 400, "prompt", "string"),
    "id of no token": (COMPLETIONS, {"prompt": [49152]}, 400, "prompt", "49151"),
    "messages missing": (CHAT, {}, 400, "messages", "missing"),
    "messages empty": (CHAT, {"messages": []}, 400, "messages", "empty"),
    "messages a text": (CHAT, {"messages": "Hi"}, 400, "messages", "array"),
    "role missing": (CHAT, {"messages": [{"content": "Hi"}]}, 400, "messages[0].role", "role"),
    "content a number": (CHAT, {"messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content", "string"),
    "stop of 17": (CHAT, {"messages": HI, "stop": ["x"] * 17}, 400, "stop", "at most 16"),
    "bias of no token": (CHAT, {"messages": HI, "logit_bias": {"99999": 1}}, 400, "logit_bias", "49151"),
    "n too large": (CHAT, {"messages": HI, "n": 129}, 400, "n", "n is 129: give an integer from 1 to 128"),
    "n 0": (CHAT, {"messages": HI, "n": 0}, 400, "n", "n is 0"),
    "n negative": (COMPLETIONS, {"prompt": "x", "n": -1}, 400, "n", "-1"),
    "n a fraction": (COMPLETIONS, {"prompt": "x", "n": 1.5}, 400, "n", "integer"),
    "best_of below n": (COMPLETIONS, {"prompt": "x", "n": 3, "best_of": 2}, 400, "best_of", "from n, 3, to 128"),
    "best_of too large": (COMPLETIONS, {"prompt": "x", "best_of": 1000}, 400, "best_of", "1000"),
    "best_of in a stream": (COMPLETIONS, {"prompt": "x", "best_of": 2, "stream": True}, 400, "best_of", "streams"),
    "best_of in a chat": (CHAT, {"messages": HI, "best_of": 2}, 400, "best_of", "support"),
    "priority negative": (COMPLETIONS, {"prompt": "x", "priority": -1}, 400, "priority", "0 (goes first) to 9"),
    "priority too large": (CHAT, {"messages": HI, "priority": 10}, 400, "priority", "10"),
    "timeout 0": (COMPLETIONS, {"prompt": "x", "timeout": 0}, 400, "timeout", "positive number of seconds"),
    "timeout in the past": (CHAT, {"messages": HI, "timeout": -0.5}, 400, "timeout", "-0.5"),
    "timeout NaN": (COMPLETIONS, b'{"prompt": "x", "timeout": NaN}', 400, None, "JSON"),
    "timeout a word": (COMPLETIONS, {"prompt": "x", "timeout": "soon"}, 400, "timeout", "string"),
    "user of 300 bytes": (COMPLETIONS, {"prompt": "x", "user": "x" * 300}, 400, "user", "at most 256"),
    "cache_salt of 300 bytes": (COMPLETIONS, {"prompt": "x", "cache_salt": "x" * 300}, 400, "cache_salt", "300"),
    "tools": (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, 400, "tools", "support"),
    "tokenize a number": ("/tokenize", {"prompt": 7}, 400, "prompt", "string"),
    "detokenize no token": ("/detokenize", {"tokens": [-1]}, 400, "tokens", "-1"),
}


@pytest.mark.parametrize("path, body, code, param, says", BAD.values(), ids=BAD.keys())
def test_requests(cluster, path, body, code, param, says):
    status, reply = cluster.post(path, body)
    error = reply["error"]
    assert (status, error["param"]) == (code, param), error
    assert error["type"] == "invalid_request_error" and says in error["message"], error


def test_errors_of_streams_are_no_streams(cluster):
    status, reply = cluster.post(COMPLETIONS, {"prompt": "x", "max_tokens": 0, "stream": True})
    assert status == 400 and reply["error"]["param"] == "max_tokens"


@pytest.mark.parametrize("name, says", [(b"x" * 257, "257 bytes"), (b"\xff", "UTF-8")], ids=["long", "no UTF-8"])
def test_fairness_id(cluster, name, says):
    body = b'{"prompt": "x"}'
    with socket.create_connection(("127.0.0.1", cluster.http_port), timeout=30) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                  b"x-gateway-inference-fairness-id: %s\r\nContent-Length: %d\r\n\r\n%s" % (name, len(body), body))
        reply = s.makefile("rb").read().decode()
    assert reply.startswith("HTTP/1.1 400 ") and says in reply


def test_two_alike_request_ids_are_both_served(cluster):
    """Request ids are for logs: those who share one get their own answers, each once."""
    body = dict(temperature=0, max_tokens=12, request_id="twice", ignore_eos=True)
    prompts = ["One, two,", "The capital of France is"] * 2
    alone = [cluster.complete(prompt, **body | {"request_id": ""}) for prompt in prompts[:2]]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda prompt: cluster.complete(prompt, **body), prompts)) == alone * 2
    assert cluster.log().count('request=twice outcome="length"') == 4


def test_a_cancelled_id_may_be_used_again(cluster):
    body = dict(prompt="Once upon a time", request_id="again", ignore_eos=True, temperature=0)
    stream = stream_completion(cluster, body | {"max_tokens": 4000})
    next(stream)
    stream.close()
    assert cluster.complete(**body, max_tokens=8)
    cluster.wait_until(lambda: 'request=again outcome="cancelled"' in cluster.log(), "the first is cancelled")
    assert cluster.log().count('request=again outcome="length" prompt=4') == 1


def test_what_can_never_fit_is_refused_at_once(tmp_path):
    """A prompt of fewer tokens than the context has, and more than there are KV pages."""
    with Cluster(tmp_path / "log", "--device", "null", "--num-kv-pages", "8") as cluster:
        for stream in (False, True):
            status, reply = cluster.post(COMPLETIONS, {"prompt": [7] * 200, "max_tokens": 5, "stream": stream})
            assert status == 400 and reply["error"]["type"] == "invalid_request_error", reply
            assert "200" in reply["error"]["message"] and "128" in reply["error"]["message"], reply
        assert cluster.post(COMPLETIONS, {"prompt": [7] * 100, "max_tokens": 5})[0] == 200
        cluster.wait_idle()


def test_body_of_10_mb(cluster):
    status, reply = cluster.post(COMPLETIONS, {"prompt": "x" * 10_000_000})
    assert status == 413 and "--max-body-mb" in reply["error"]["message"]


def test_body_of_7_mb_is_read_and_refused_for_its_length(cluster):
    status, reply = cluster.post(COMPLETIONS, {"prompt": "x " * 3_500_000})
    assert status == 400 and "8192" in reply["error"]["message"]


def test_what_is_no_http(cluster):
    with socket.create_connection(("127.0.0.1", cluster.http_port), timeout=30) as s:
        s.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n")  # TLS
        assert s.makefile("rb").read().startswith(b"HTTP/1.1 400 ")


def serve(*flags, command=(), model=SMOLLM):
    """`penstock serve` that is to fail: its exit code and what it said."""
    done = subprocess.run([*command, BIN / "penstock", "serve", model, "--port", str(free_port()), "--grpc-port", "0",
                           *flags], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_absent_model():
    code, said = serve(model="/nowhere/model.gguf")
    assert code == 2 and "/nowhere/model.gguf" in said and "no such file" in said


@pytest.mark.parametrize("size", [0, 3, 24, 5000, 2_000_000, 60_000_000])
def test_truncated_model(tmp_path, size):
    path = tmp_path / "cut.gguf"
    with open(SMOLLM, "rb") as whole:
        path.write_bytes(whole.read(size))
    code, said = serve(model=path)
    assert code == 2 and str(path) in said and "Ready" not in said


@pytest.mark.parametrize("offset, value", [(0, b"GGML"), (4, b"\x63\0\0\0"), (8, b"\xff" * 8), (16, b"\xff" * 8),
                                           (24, b"\xff" * 8), (5000, b"\xff" * 64)],
                         ids=["magic", "version", "tensor count", "key count", "key length", "a value"])
def test_corrupt_model(tmp_path, offset, value):
    path = tmp_path / "corrupt.gguf"
    shutil.copy(SMOLLM, path)
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(value)
    code, said = serve(model=path)
    assert code == 2 and str(path) in said and "Ready" not in said


def test_no_gpu(monkeypatch):
    """Says so, and what to do, whether or not the build has the CUDA engine."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, said = serve("--device", "cuda")
    assert code == 2 and "Ready" not in said
    assert ("no GPU" in said and "--device cpu" in said) or \
        ("no CUDA engine: build where nvcc 13 is installed" in said and 'or give --device cpu" exit_code' in said)


def test_several_gpus():
    code, said = serve("--device", "cuda", "--tensor-parallel-size", "2")
    assert code == 2 and "Ready" not in said
    assert "--tensor-parallel-size 2 with --device cuda is not built yet" in said


@pytest.mark.parametrize("flag", ["--port", "--grpc-port"])
def test_port_in_use(flag):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = serve(flag, str(taken.getsockname()[1]))
    assert code == 2 and flag in said and "in use" in said.lower()


def test_shm_too_small():
    """In a mount namespace of its own, where /dev/shm has 1 MiB."""
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c",
               'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody make a mount namespace")
    code, said = serve(command=command)
    assert code == 2 and "/dev/shm" in said and "--shm-size" in said


def test_segment_of_another_version(tmp_path):
    engine = f"test-version-{os.getpid()}"
    segment = pathlib.Path("/dev/shm") / f"penstock-{engine}"
    scheduler = subprocess.Popen([BIN / "penstock-scheduler", f"--engine-id={engine}",
                                  f"--listen=ipc://{tmp_path}/engine"], stderr=subprocess.PIPE, text=True)
    try:
        for line in scheduler.stderr:
            if "scheduler started" in line:
                break
        with open(segment, "r+b") as file, mmap.mmap(file.fileno(), 4096) as header:
            version, = struct.unpack_from("<I", header, 8)  # after the magic
            struct.pack_into("<I", header, 8, version + 1)
        worker = subprocess.run([BIN / "penstock-worker", f"--engine-id={engine}", "--device=null",
                                 f"--model={SMOLLM}"], capture_output=True, text=True, timeout=60)
        assert worker.returncode not in (0, -6, -11)
        assert f"layout version {version + 1}" in worker.stderr and str(version) in worker.stderr
    finally:
        scheduler.terminate()
        scheduler.communicate(timeout=30)
        segment.unlink(missing_ok=True)
