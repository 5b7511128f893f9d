"""A whole cluster for a test: `penstock serve` as a process, its children, its ports."""
import contextlib
import json
import os
import pathlib
import re
import selectors
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[1]
BIN = pathlib.Path(os.environ.get("PENSTOCK_BIN_DIR", ROOT / "build/release/bin"))
MODELS = pathlib.Path(os.environ.get("PENSTOCK_MODEL_DIR", pathlib.Path.home() / ".cache/penstock/models"))
SMOLLM = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster:
    """Starts on construction, is ready when the constructor returns; `stop()` or the end of a with-block ends it."""

    def __init__(self, log: pathlib.Path, *flags: str, model=SMOLLM, timeout_s=120, programs=BIN, env=None):
        self.http_port, self.grpc_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.grpc_address = f"127.0.0.1:{self.grpc_port}"
        self.engine_id = f"test-{os.getpid()}-{self.http_port}"
        self.log_path = log
        path = pathlib.Path(model)
        self.model = path.stem if path.suffix == ".gguf" else path.name
        self.process = subprocess.Popen(
            [programs / "penstock", "serve", model, "--port", str(self.http_port), "--grpc-port", str(self.grpc_port),
             "--engine-id", self.engine_id, "--check-invariants", *flags],
            stdout=subprocess.PIPE, stderr=log.open("ab"), text=True, env=env)
        try:
            # The ready line and a curl line, printed together.
            self.ready_lines = [self._first_line(timeout_s), self.process.stdout.readline().strip()]
        except BaseException:
            self.process.kill()
            raise
        assert self.ready_lines[0].startswith("Ready"), self.log()

    def _first_line(self, timeout_s):
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            assert selector.select(timeout_s), f"not ready within {timeout_s} s: {self.log()}"
        line = self.process.stdout.readline()
        assert line, f"ended before it was ready: {self.log()}"
        return line.strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self, timeout_s=60) -> int:
        """SIGTERM, then the launcher's exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout_s)
        self.process.stdout.close()
        return code

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def pid(self, process: str) -> int:
        """The process's latest pid: router, scheduler, worker-0 ..."""
        return int(re.findall(rf'msg="started" process={process} pid=(\d+)', self.log())[-1])

    def kill(self, process: str) -> int:
        """kill -9; returns the pid it had."""
        pid = self.pid(process)
        os.kill(pid, signal.SIGKILL)
        return pid

    def get(self, path: str, timeout_s=30):
        with urllib.request.urlopen(self.url + path, timeout=timeout_s) as response:
            return response.status, response.read().decode()

    def post(self, path: str, body, timeout_s=120):
        """The status and parsed body of a POST, errors included."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def complete(self, prompt, timeout_s=120, **parameters) -> str:
        status, body = self.post("/v1/completions", dict(prompt=prompt, **parameters), timeout_s)
        assert status == 200, body
        return body["choices"][0]["text"]

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels; 0 if it is not there yet."""
        values = re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", self.get("/metrics")[1], re.M)
        return sum(map(float, values))

    def wait_until(self, condition, what: str, timeout_s=60):
        """Waits for a condition that only shows in what the cluster tells when asked."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s\n{self.log()[-4000:]}"
            time.sleep(0.05)

    def wait_ready(self, timeout_s=60):
        """Until /ready answers 200, whatever is starting anew."""
        def ready():
            try:
                return self.get("/ready")[0] == 200
            except OSError:  # refused, or an HTTP status that says not ready
                return False
        self.wait_until(ready, "ready", timeout_s)

    def wait_idle(self, timeout_s=30):
        """Until no request is held and every KV page is free."""
        def idle():
            return (self.metric("vllm:num_requests_running") == 0 and self.metric("vllm:num_requests_waiting") == 0
                    and self.metric("vllm:kv_cache_usage_perc") == 0)
        self.wait_until(idle, "idle, all pages free", timeout_s)


def stream_completion(cluster: Cluster, body: dict, timeout_s=120):
    """Yields the text deltas of a streamed completion; the last item is (finish_reason, usage)."""
    request = urllib.request.Request(
        cluster.url + "/v1/completions",
        json.dumps(dict(body, stream=True, stream_options={"include_usage": True})).encode(),
        {"Content-Type": "application/json"})
    with contextlib.closing(urllib.request.urlopen(request, timeout=timeout_s)) as response:
        finish, usage = None, None
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                yield finish, usage
                return
            event = json.loads(line[6:])
            assert "error" not in event, event
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                finish = choice["finish_reason"] or finish
                if choice["text"]:
                    yield choice["text"]
    raise AssertionError("the stream ended without [DONE]")
