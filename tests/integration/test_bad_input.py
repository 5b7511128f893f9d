"""Bad input gets the right status and a message that says what to do, and the cluster serves on (conftest.serves_on)."""
import json
import mmap
import os
import pathlib
import shutil
import socket
import struct
import subprocess

import pytest

from cluster import BIN, SMOLLM, free_port
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
    "two answers": (CHAT, {"messages": HI, "n": 2}, 400, "n", "only 1"),
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
