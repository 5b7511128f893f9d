#!/usr/bin/env python3
"""The control plane's cost: router, scheduler and worker with the null device, driven by stream-client over gRPC and SSE.

    tools/bench/control_plane.py [--bin build/release/bin] [--model GGUF] [--out FILE.json]

Everything shares this machine's cores, the client included. Prints a table and one JSON object.
"""
import argparse
import json
import os
import pathlib
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = pathlib.Path(os.environ.get("PENSTOCK_MODEL_DIR", pathlib.Path.home() / ".cache/penstock/models"))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster:
    """penstock serve with the null device; ended with the block."""

    def __init__(self, args, *flags):
        self.http, self.grpc = free_port(), free_port()
        self.process = subprocess.Popen(
            [args.bin / "penstock", "serve", args.model, "--device", "null", "--port", str(self.http),
             "--grpc-port", str(self.grpc), *flags],
            stdout=subprocess.PIPE, stderr=open(args.log, "a"), text=True)
        line = self.process.stdout.readline()
        if not line.startswith("Ready"):
            sys.exit(f"penstock did not start: see {args.log}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def run(self, args, api, **options):
        flags = [x for k, v in options.items() for x in (f"--{k}", str(v))]
        port = self.grpc if api == "grpc" else self.http
        done = subprocess.run([args.bin / "stream-client", f"--{api}", f"127.0.0.1:{port}", *flags],
                              stdout=subprocess.PIPE, check=True, text=True)
        return json.loads(done.stdout)


def cpu_seconds(process) -> dict:
    """CPU seconds so far of each child of the launcher, by program."""
    used = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        name, fields = stat[stat.index("(") + 1:stat.rindex(")")], stat[stat.rindex(")") + 2:].split()
        if int(fields[1]) == process.pid:
            used[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def write_report(out: pathlib.Path | None, benchmark: str, results: dict, **settings):
    """One JSON object with the machine and the commit: to a file, or printed."""
    cpu = next((l.split(":", 1)[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), "?")
    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    report = {"benchmark": benchmark, "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
              "machine": {"cpu": cpu, "cores": os.cpu_count(), "kernel": platform.release()},
              "commit": commit.stdout.strip(), **settings, "results": results}
    if out:
        out.write_text(json.dumps(report, indent=1) + "\n")
    else:
        print(json.dumps(report))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--model", type=pathlib.Path, default=MODEL / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--log", default="/tmp/penstock-bench.log")
    args = parser.parse_args()

    cases = {
        "grpc, coalescing": ((), "grpc", dict(streams=256, tokens=1000, rounds=2)),
        "grpc, a message a token": (("--grpc-message-per-token",), "grpc", dict(streams=256, tokens=500, rounds=2)),
        "sse": ((), "http", dict(streams=256, tokens=1000, rounds=2)),
        "one stream, one token": ((), "grpc", dict(streams=1, tokens=1, rounds=2000)),
        "one stream, grpc": ((), "grpc", dict(streams=1, tokens=2000, rounds=2)),
        "one stream, sse": ((), "http", dict(streams=1, tokens=2000, rounds=2)),
    }
    results = {}
    for name, (flags, api, options) in cases.items():
        with Cluster(args, *flags) as cluster:
            cluster.run(args, api, streams=options["streams"], tokens=min(50, options["tokens"]), rounds=1)  # warm-up
            before = cpu_seconds(cluster.process)
            rounds = [cluster.run(args, api, **options) for _ in range(args.rounds)]
            after = cpu_seconds(cluster.process)
        seconds = sum(r["seconds"] for r in rounds)
        results[name] = {
            "tokens_per_s": statistics.median(r["tokens_per_s"] for r in rounds),
            "tokens_per_message": statistics.median(r["tokens"] / max(1, r["messages"]) for r in rounds),
            "gap_ms_p50": statistics.median(r["gap_ms"]["p50"] if r["gap_ms"] else 0 for r in rounds),
            "first_ms_p50": statistics.median(r["first_ms"]["p50"] for r in rounds),
            "request_ms_p50": statistics.median(r["request_ms"]["p50"] for r in rounds),
            "cpu_share": {k: round((after[k] - before.get(k, 0)) / seconds, 3) for k in after},
            "rounds": rounds,
        }
        r = results[name]
        print(f"{name:<26} {r['tokens_per_s']:>9.0f} tokens/s  {r['tokens_per_message']:>6.2f} a message  "
              f"gap p50 {r['gap_ms_p50']:.3f} ms  first p50 {r['first_ms_p50']:.3f} ms  cpu {r['cpu_share']}", flush=True)

    write_report(args.out, "control_plane", results)


if __name__ == "__main__":
    main()
