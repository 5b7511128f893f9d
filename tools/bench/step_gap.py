#!/usr/bin/env python3
"""Whether the control plane keeps a device busy: router, scheduler and worker before a null device whose steps take 5 ms.

    tools/bench/step_gap.py [--bin build/release/bin] [--model GGUF] [--out FILE.json]

`penstock bench serve` (gRPC, the same cores) keeps --streams requests running; step-gaps watches the engine's shared
memory. Prints a table and one JSON object. Of each case:

  gap            time that the device idled before a step though there was work (ResultHeader.idle_ns): the figure that counts.
                 The null device is one that begins a step as soon as the one before has ended and it has been launched.
  plan ahead     how long before that the step's plan was there; below 0 there would be a gap
  between        from one step's end to the next one's begin as the worker saw them, wake-ups of its threads included
  cpu            share of one core of each process, and of the client

On a machine that has other things to do: `chrt -r 1 tools/bench/step_gap.py`, so that these do not count.

`idle` is the same processes without requests: CPU and awakenings (voluntary context switches) a second.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import urllib.request

from control_plane import MODEL, ROOT, Cluster, write_report

CASES = {
    # Nobody comes or goes.
    "steady": dict(input=32, output=2600, requests=256, ratio=0),
    # Some requests end and others are admitted in every second step.
    "churn": dict(input=64, output=400, requests=2400, ratio=0.9),
    # The same, and prompts come in chunks.
    "documents": dict(input=2000, output=300, requests=2400, ratio=0.5),
}


def processes(launcher) -> dict:
    """The launcher and its children: name to pid."""
    found = {"launcher": launcher.pid}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            continue
        if int(stat[stat.rindex(")") + 2:].split()[1]) == launcher.pid:
            found[stat[stat.index("(") + 1:stat.rindex(")")].removeprefix("penstock-")] = int(pid)
    return found


def usage(pids) -> dict:
    """Of each process: CPU seconds and voluntary context switches so far, over its threads; and the latter by thread."""
    used = {}
    for name, pid in pids.items():
        cpu, switches, threads = 0.0, 0, {}
        for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
            cpu += int((task / "schedstat").read_text().split()[0]) * 1e-9
            count = next(int(l.split()[1]) for l in (task / "status").read_text().splitlines()
                         if l.startswith("voluntary_ctxt_switches"))
            thread = f"{(task / 'comm').read_text().strip()}.{int(task.name) - pid}"
            threads[thread] = count
            switches += count
        used[name] = (cpu, switches, threads)
    return used


def difference(before, after, seconds) -> dict:
    return {name: {"cpu_share": round((after[name][0] - before[name][0]) / seconds, 5),
                   "wakeups_per_s": round((after[name][1] - before[name][1]) / seconds, 1),
                   "threads": {t: round(rate, 1) for t, n in after[name][2].items()
                               if (rate := (n - before[name][2].get(t, 0)) / seconds) >= 0.05}}
            for name in before}


def running(cluster) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{cluster.http}/metrics") as response:
        return float(re.search(r"^vllm:num_requests_running{.*} (\S+)$", response.read().decode(), re.M)[1])


def load_average() -> float:
    return os.getloadavg()[0]


def measure(args, name) -> dict:
    engine = f"gap-{os.getpid()}"
    with Cluster(args, "--engine-id", engine, "--null-step-us", str(args.step_us), "--max-num-seqs", str(args.streams),
                 "--num-kv-pages", "200000", "--max-model-len", "8192", *args.flag) as cluster:
        if name == "idle":
            time.sleep(2)
            pids = processes(cluster.process)
            load, before = load_average(), usage(pids)
            time.sleep(10)
            return {"load_average": load, "processes": difference(before, usage(pids), 10)}
        case, pids = CASES[name], processes(cluster.process)
        client = subprocess.Popen(
            [args.bin / "penstock", "bench", "serve", "--grpc", f"127.0.0.1:{cluster.grpc}", "--max-concurrency",
             str(args.streams), "--num-prompts", str(case["requests"]), "--input-len", str(case["input"]), "--output-len",
             str(case["output"]), "--range-ratio", str(case["ratio"])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        pids["client"] = client.pid
        # The client tries one request first.
        while running(cluster) < min(32, args.streams):
            time.sleep(0.2)
        load = load_average()
        watch = subprocess.Popen([args.bin / "step-gaps", engine, "--steps", str(args.steps), "--skip", "100"],
                                 stdout=subprocess.PIPE, text=True)
        before, begin = usage(pids), time.monotonic()
        out, _ = watch.communicate()
        after, seconds = usage(pids), time.monotonic() - begin
        client.kill()
        client.wait()
        if watch.returncode != 0:
            sys.exit(f"{name}: step-gaps failed, see {args.log}")
        return dict(json.loads(out), load_average=load, processes=difference(before, after, seconds))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--model", type=pathlib.Path, default=MODEL / "SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--step-us", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--cases", default=",".join([*CASES, "idle"]))
    parser.add_argument("--flag", action="append", default=[], help="a further flag of penstock serve")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--log", default="/tmp/penstock-bench.log")
    args = parser.parse_args()

    results = {}
    for name in args.cases.split(","):
        results[name] = r = measure(args, name)
        shares = " ".join(f"{n} {u['cpu_share']:.4f}" for n, u in r["processes"].items())
        if name == "idle":
            wakeups = " ".join(f"{n} {u['wakeups_per_s']}" for n, u in r["processes"].items())
            print(f"idle: cpu {shares}; awakenings a second {wakeups}; load {r['load_average']:.2f}", flush=True)
            continue
        gap, ahead, between = (", ".join(f"{k} {r[field][k]:.0f}" for k in keys) for field, keys in (
            ("gap_us", ("p50", "p99", "max")), ("plan_ahead_us", ("min", "p50")), ("between_us", ("p50", "p99", "max"))))
        print(f"{name}: gap us {gap} ({r['gaps_above_50us']} of {r['steps']} above 50); plan ahead us {ahead}; between us {between}; {r['steps_per_s']:.1f} steps/s of "
              f"{r['rows_a_step']:.0f} rows; cpu {shares}; load {r['load_average']:.2f}", flush=True)

    write_report(args.out, "step_gap", results, streams=args.streams, step_us=args.step_us)


if __name__ == "__main__":
    main()
