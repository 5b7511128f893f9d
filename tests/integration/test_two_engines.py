"""Two engines behind one router, without the launcher: one is drained, the other takes over what is new."""
import os
import pathlib
import re
import signal
import subprocess
import threading
import urllib.error

import pytest

from cluster import BIN, SMOLLM, Cluster, free_port, stream_completion

TOKENS = 300


class TwoEngines(Cluster):
    def __init__(self, folder):
        self.http_port = free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.log_path = folder / "log"
        self.names, self.routers, self.schedulers, self.workers = [], [], [], []
        try:
            for i in range(2):
                self.names.append(f"two-{os.getpid()}-{self.http_port}-{i}")
                self.schedulers.append(self.start("scheduler", "--engine-id", self.names[i], "--listen",
                                                  f"ipc://{folder}/{i}", "--check-invariants"))
                self.workers.append(self.start("worker", "--engine-id", self.names[i], "--rank", "0", "--device", "null",
                                               "--model", SMOLLM, "--null-step-us", "10000"))
            self.routers.append(self.start("router", "--model", SMOLLM, "--port", str(self.http_port), "--grpc-port", "0",
                                           *(f"--engine=ipc://{folder}/{i}" for i in range(2))))
            self.wait_ready()
            self.wait_until(lambda: self.of_engines("penstock_router_engine_usable") == [1, 1], "both engines are usable")
        except BaseException:
            self.stop()
            raise

    def start(self, program, *flags):
        with self.log_path.open("ab") as log:
            return subprocess.Popen([BIN / f"penstock-{program}", *flags], stderr=log)

    def stop(self):
        for process in (*self.routers, *self.schedulers, *self.workers):
            process.kill()
            process.wait()
        for name in self.names:
            pathlib.Path(f"/dev/shm/penstock-{name}").unlink(missing_ok=True)

    def of_engines(self, name) -> list:
        values = dict(re.findall(rf'^{name}{{[^}}]*engine="(\d)"[^}}]*}} (\S+)$', self.get("/metrics")[1], re.M))
        return [float(values[str(i)]) for i in range(2)]


@pytest.fixture
def engines(tmp_path):
    with TwoEngines(tmp_path) as engines:
        yield engines


class Stream(threading.Thread):
    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.cluster, self.error, self.finish, self.usage = cluster, None, None, None
        self.started = threading.Event()
        self.start()

    def run(self):
        try:
            body = dict(prompt="x", max_tokens=TOKENS, ignore_eos=True, seed=1)
            for item in stream_completion(self.cluster, body):
                self.started.set()
                if isinstance(item, tuple):
                    self.finish, self.usage = item
        except Exception as error:  # handed to the test
            self.error = error
        self.started.set()

    def expect_whole(self):
        self.join(60)
        assert self.error is None, self.error
        assert self.finish == "length" and self.usage["completion_tokens"] == TOKENS


def test_a_drained_engine_ends_its_streams_and_the_other_takes_the_rest(engines):
    in_flight, usable = "penstock_router_engine_in_flight", "penstock_router_engine_usable"
    old = [Stream(engines) for _ in range(6)]
    for stream in old:
        assert stream.started.wait(30)
    before = engines.of_engines(in_flight)
    assert min(before) >= 1

    engines.schedulers[0].send_signal(signal.SIGTERM)
    engines.wait_until(lambda: engines.of_engines(usable) == [0, 1], "the router knows")
    new = [Stream(engines) for _ in range(3)]
    for stream in new:
        assert stream.started.wait(30)
    assert engines.of_engines(in_flight)[0] <= before[0]  # not one of them went to the engine that drains
    for stream in old + new:
        stream.expect_whole()
    assert engines.schedulers[0].wait(30) == 0
    assert engines.metric("penstock_router_resubmissions_total") == 0  # nobody had to be rescued

    last = Stream(engines)
    assert last.started.wait(30)
    engines.schedulers[1].send_signal(signal.SIGTERM)
    engines.wait_until(lambda: engines.of_engines(usable) == [0, 0], "the router knows of the second")
    with pytest.raises(urllib.error.HTTPError) as refused:
        next(stream_completion(engines, dict(prompt="x", max_tokens=1)))
    assert refused.value.code == 503 and refused.value.headers["retry-after"]
    last.expect_whole()
    assert engines.schedulers[1].wait(30) == 0
