"""penstock bench: counts and fields of its reports, and its errors. Never times."""
import json
import subprocess

import pytest

from cluster import BIN, SMOLLM

SUMMARY = {"count", "mean", "min", "p50", "p95", "p99", "max"}


def bench(*flags, code=0, timeout_s=120):
    """Runs `penstock bench`; the report that --json - prints, or what it says when it fails."""
    json_flags = ["--json", "-"] if code == 0 else []
    done = subprocess.run([BIN / "penstock", "bench", *map(str, flags), *json_flags], capture_output=True, text=True,
                          timeout=timeout_s)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if code == 0 else done.stderr


def check_load(load, requests, prompt_tokens, output_len):
    assert (load["completed"], load["failed"]) == (requests, 0)
    assert load["input_tokens"] == requests * prompt_tokens
    assert load["output_tokens"] == requests * output_len
    assert load["requests_per_s"] > 0 and load["output_tokens_per_s"] > 0
    for name in "ttft_ms", "tpot_ms", "itl_ms", "e2e_ms":
        summary = load[name]
        assert set(summary) == SUMMARY
        assert summary["min"] <= summary["p50"] <= summary["p95"] <= summary["p99"] <= summary["max"]
    assert load["ttft_ms"]["count"] == load["e2e_ms"]["count"] == requests


def check_head(report, benchmark):
    assert report["benchmark"] == benchmark
    assert report["machine"]["cores"] > 0 and report["machine"]["cpu"]
    assert report["versions"]["penstock"]


def test_engine_with_the_null_device():
    report = bench("engine", "--device", "null", "--batch-sizes", "1,4,9999", "--input-len", 16, "--output-len", 5,
                   "--prefill", "2x32", "--max-concurrency", "1,8", "--num-prompts", "4,16",
                   "--load-input-len", 20, "--load-output-len", 6, "--repeat", 2)
    check_head(report, "engine")
    assert report["start_to_ready_s"] > 0
    one, four, too_many = report["latency"]
    assert [one["batch_size"], four["batch_size"]] == [1, 4]
    assert len(four["time_1_ms"]) == len(four["time_n_ms"]) == 2
    assert "--max-num-seqs" in too_many["skipped"]
    assert report["prefill"][0]["tokens_per_s"] > 0
    for load, (clients, requests) in zip(report["load"], [(1, 4), (8, 16)], strict=True):
        assert load["max_concurrency"] == clients and load["max_open_requests"] <= clients
        check_load(load, requests, 20, 6)
        assert load["itl_ms"]["count"] <= requests * 5


def test_engine_with_a_model():
    report = bench("engine", SMOLLM, "--batch-sizes", "2", "--input-len", 8, "--output-len", 3, "--prefill", "none",
                   "--repeat", 1)
    assert report["latency"][0]["tpot_ms"] is not None
    assert report["engine"]["vocab_size"] == 49152
    assert "prefill" not in report


@pytest.mark.parametrize("api", ["http", "grpc"])
def test_serve(cluster, api):
    address = cluster.grpc_address if api == "grpc" else cluster.url
    report = bench("serve", f"--{api}", address, "--num-prompts", "3,6", "--max-concurrency", "1,3", "--input-len", 12,
                   "--output-len", 5, "--prefix-len", 4)
    check_head(report, "serve")
    assert report["server"]["model"] == "smollm2" and report["server"]["api"] == api
    for load, (clients, requests) in zip(report["load"], [(1, 3), (3, 6)], strict=True):
        assert load["max_open_requests"] <= clients
        check_load(load, requests, 16, 5)


def test_serve_at_a_rate(cluster):
    report = bench("serve", "--http", cluster.url, "--num-prompts", 5, "--request-rate", 20, "--input-len", 4,
                   "--output-len", 2)
    check_load(report["load"][0], 5, 4, 2)
    assert report["load"][0]["duration_s"] >= 0.25  # the last one is sent then


@pytest.mark.parametrize("flags, code, words", [
    (["engine"], 2, "MODEL"),
    (["engine", "/no/such.gguf"], 2, "/no/such.gguf"),
    (["engine", "--device", "null", "--batch-sizes", "1,zwei"], 2, "--batch-sizes"),
    (["engine", "--device", "null", "--prefill", "512"], 2, "BATCHxLENGTH"),
    (["engine", "--devise", "null"], 2, "--device"),
    (["serve", "--request-rate", "0"], 2, "--request-rate"),
    (["serve", "--http", "127.0.0.1:1"], 1, "penstock serve MODEL"),
    (["serve", "--grpc", "127.0.0.1:1"], 1, "penstock serve MODEL"),
    (["serve", "--http", "https://localhost:1"], 2, "https"),
    (["nothing"], 2, "unknown benchmark"),
])
def test_bad_flags(flags, code, words):
    assert words in bench(*flags, code=code)


def test_serve_says_why_requests_fail(cluster):
    error = bench("serve", "--http", cluster.url, "--vocab-size", 1000000, "--input-len", 64, code=1)
    assert "token id" in error and "49151" in error
