#!/usr/bin/env python3
"""Penstock against llama.cpp's llama-server on this CPU: same GGUF, same threads, side by side.

The two servers run one after the other, in alternating order from round to round, never at once; each is
started anew for every measurement. Both stream /v1/completions over the loopback.

  tools/bench/cpu_vs_llamacpp.py MODEL.gguf
  tools/bench/cpu_vs_llamacpp.py MODEL.gguf --only llama --rounds 2
  tools/bench/cpu_vs_llamacpp.py MODEL.gguf --only penstock --penstock-url http://127.0.0.1:8000
"""

import argparse
import asyncio
import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import platform
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import load

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIGURES = ["tokens_per_s", "ttft_p50_ms", "itl_p50_ms", "itl_p95_ms", "tokens_per_chunk", "client_cpu_share"]
CONTEXT_PER_CLIENT = 512
START_LIMIT_S, STOP_LIMIT_S = 120, 20


def output_of(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({error})"
    return (done.stdout + done.stderr).strip()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_ready(port: int, path: str, process: subprocess.Popen, log: pathlib.Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"{process.args[0]} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        with contextlib.suppress(urllib.error.URLError, OSError):
            if urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).status == 200:
                return
        time.sleep(0.05)
    raise SystemExit(f"{process.args[0]} wasn't ready within {START_LIMIT_S} s:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def server(command: list[str], port: int, ready_path: str, threads: int):
    """Runs a server in a process group of its own; its log is shown if it fails to start."""
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as folder:
        log = pathlib.Path(folder) / "log"
        with log.open("w") as sink:
            process = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                       start_new_session=True,
                                       env={**os.environ, "OMP_NUM_THREADS": str(threads)})
        try:
            wait_ready(port, ready_path, process, log)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                print(f"{command[0]} didn't stop within {STOP_LIMIT_S} s of SIGTERM: killed", file=sys.stderr)
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Llama:
    name = "llama"
    # Off, since prompts are distinct anyway: it could only cost llama-server time.
    extra_body = {"cache_prompt": False}

    def __init__(self, args):
        self.args = args
        self.binary = args.llama_server or subprocess.run(
            [ROOT / "tools/bench/peers/llama_server.sh"], check=True, stdout=subprocess.PIPE,
            text=True).stdout.strip().splitlines()[-1]
        self.version = f"{output_of(self.binary, '--version')}; {pathlib.Path(self.binary).parents[2].name}"

    @contextlib.contextmanager
    def running(self, clients: int):
        port = free_port()
        command = [self.binary, "--model", str(self.args.model), "--host", "127.0.0.1", "--port", str(port),
                   "--threads", str(self.args.threads), "--parallel", str(clients),
                   "--ctx-size", str(CONTEXT_PER_CLIENT * clients), "--cache-ram", "0",
                   *shlex.split(self.args.llama_args)]
        with server(command, port, "/health", self.args.threads):
            yield port


class Penstock:
    name = "penstock"
    extra_body: dict = {}

    def __init__(self, args):
        self.args = args
        self.version = args.penstock_url or output_of(str(args.penstock), "--version")
        if not args.penstock_url and not args.penstock.exists():
            raise SystemExit(f"{args.penstock} doesn't exist: build it, give --penstock, or say --only llama")

    @contextlib.contextmanager
    def running(self, clients: int):
        if self.args.penstock_url:
            yield urllib.parse.urlparse(self.args.penstock_url).port
            return
        port = free_port()
        command = [str(self.args.penstock), "serve", str(self.args.model), "--port", str(port),
                   "--grpc-port", str(free_port()), "--threads", str(self.args.threads),
                   "--served-model-name", self.args.model_name, *shlex.split(self.args.penstock_args)]
        with server(command, port, "/ready", self.args.threads):
            yield port


def measure(peer, clients: int, round_number: int, args) -> dict:
    body = {"model": args.model_name, "max_tokens": args.max_tokens, "temperature": 0, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True}, **peer.extra_body}
    # The same prompts for both servers in a round, new ones in every round, others still to warm up.
    seed = 1_000_000 * clients + 1_000 * round_number
    with peer.running(clients) as port:
        asyncio.run(load.drive(port, clients, 1, 500_000 + seed, {**body, "max_tokens": 8}))
        load_average = os.getloadavg()[0]
        result = asyncio.run(load.drive(port, clients, args.requests, seed, body))
    return {"server": peer.name, "clients": clients, "round": round_number,
            "load_average_before": load_average, **result}


def machine() -> dict:
    info = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split("\t: ", 1) for line in map(lambda l: l.replace("\t\t", "\t"), info) if "\t: " in line)
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")
    return {"cpu": fields.get("model name", platform.processor()), "cores": os.cpu_count(),
            "cpu_features": [f for f in wanted if f in fields.get("flags", "").split()],
            "kernel": platform.release(), "python": platform.python_version(),
            "load_average_at_start": os.getloadavg()}


def summarise(results: list[dict], servers: list[str]) -> list[dict]:
    out = []
    for clients in sorted({r["clients"] for r in results}):
        rows = {s: [r for r in results if r["server"] == s and r["clients"] == clients] for s in servers}
        entry = {"clients": clients,
                 "median": {s: {f: statistics.median(r[f] for r in rows[s]) for f in FIGURES} for s in servers}}
        if len(servers) == 2:
            pairs = zip(*(sorted(rows[s], key=lambda r: r["round"]) for s in ("penstock", "llama")))
            ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in pairs]
            entry["tokens_per_s_ratio"] = {"median": statistics.median(ratios), "per_round": ratios}
        out.append(entry)
    return out


def print_table(summary: list[dict]) -> None:
    print(f"\n{'clients':>7} {'server':<9} {'tok/s':>8} {'TTFT p50':>9} {'ITL p50':>8} {'ITL p95':>8} {'tok/chunk':>9}")
    for entry in summary:
        for name, m in entry["median"].items():
            print(f"{entry['clients']:>7} {name:<9} {m['tokens_per_s']:>8.1f} {m['ttft_p50_ms']:>9.1f} "
                  f"{m['itl_p50_ms']:>8.2f} {m['itl_p95_ms']:>8.2f} {m['tokens_per_chunk']:>9.2f}")
        if "tokens_per_s_ratio" in entry:
            print(f"{entry['clients']:>7} penstock / llama, tok/s: {entry['tokens_per_s_ratio']['median']:.2f}")
    print("(medians over the rounds; times in ms; ITL is between pieces of text as they arrive)")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=lambda p: pathlib.Path(p).resolve(strict=True))
    parser.add_argument("--penstock", type=pathlib.Path, default=ROOT / "build/release/bin/penstock")
    parser.add_argument("--penstock-url", help="measure a penstock that already runs, on 127.0.0.1")
    parser.add_argument("--penstock-args", default="", help="more flags for `penstock serve`")
    parser.add_argument("--llama-server", help="default: what peers/llama_server.sh builds")
    parser.add_argument("--llama-args", default="", help="more flags for llama-server")
    parser.add_argument("--only", choices=["llama", "penstock"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=4, help="requests a client sends in a round")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--model-name", default="bench", help="what to call the model (with --penstock-url: its name there)")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bench/cpu_vs_llamacpp.json")
    return parser.parse_args()


def main() -> None:
    args = parse()
    # Ended by SIGTERM as by Ctrl-C: through the `finally` that stops the server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    peers = [kind(args) for kind in (Penstock, Llama) if args.only in (None, kind.name)]
    report = {
        "benchmark": "cpu_vs_llamacpp", "time": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "machine": machine(),
        "git_commit": output_of("git", "-C", str(ROOT), "rev-parse", "HEAD"),
        "git_dirty": bool(output_of("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")),
        "versions": {peer.name: peer.version for peer in peers},
        "model": args.model.name, "model_sha256": hashlib.sha256(args.model.read_bytes()).hexdigest(),
        "settings": {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(args).items()},
    }
    if os.getloadavg()[0] > 0.5:
        print(f"warning: load average {os.getloadavg()[0]:.1f}: something else runs here, and threads that wait "
              "for each other suffer most; figures will be far too low", file=sys.stderr)
    results = []
    for round_number in range(args.rounds):
        for clients in args.clients:
            order = peers if round_number % 2 == 0 else peers[::-1]
            pair = [measure(peer, clients, round_number, args) for peer in order]
            if len({r["prompt_tokens"] for r in pair}) > 1:
                raise SystemExit(f"the servers count prompt tokens differently: {pair}")
            results += pair
            for r in pair:
                print(f"round {round_number}, {clients} clients, {r['server']}: {r['tokens_per_s']:.1f} tok/s, "
                      f"TTFT {r['ttft_p50_ms']:.1f} ms, load average {r['load_average_before']:.1f}", flush=True)
    summary = summarise(results, [peer.name for peer in peers])
    print_table(summary)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps({**report, "summary": summary, "rounds": results}, indent=1) + "\n")
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
