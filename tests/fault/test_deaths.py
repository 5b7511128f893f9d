"""kill -9 of each process mid-stream: it is back by itself, streams go on with the text they would have had."""
import json
import os
import signal
import threading

import httpx
import pytest

from cluster import SMOLLM, Cluster, stream_completion

REQUEST = dict(prompt="Once upon a time, in a land far away,", max_tokens=160, temperature=0.8, seed=7,
               ignore_eos=True)


@pytest.fixture(params=[1, 3], ids=["one rank", "three ranks"])
def cluster(request, tmp_path):
    flags = ["--dtype", "float32", "--tensor-parallel-size", str(request.param)]
    with Cluster(tmp_path / "log", *flags) as cluster:
        yield cluster


class Stream(threading.Thread):
    """A stream read in the background; `started` is set once some text came."""

    def __init__(self, cluster, body):
        super().__init__(daemon=True)
        self.cluster, self.body = cluster, body
        self.started = threading.Event()
        self.text, self.error, self.finish, self.usage = "", None, None, None
        self.start()

    def run(self):
        try:
            for item in stream_completion(self.cluster, self.body):
                if isinstance(item, tuple):
                    self.finish, self.usage = item
                else:
                    self.text += item
                    if len(self.text) > 20:
                        self.started.set()
        except Exception as error:  # handed to the test
            self.error = error
        self.started.set()


def run_through(cluster, victim, streams=4):
    bodies = [dict(REQUEST, seed=seed) for seed in range(streams)]
    expected = [cluster.complete(**body) for body in bodies]
    running = [Stream(cluster, body) for body in bodies]
    for stream in running:
        assert stream.started.wait(60)
        assert stream.error is None, stream.error
    dead = cluster.kill(victim)
    for stream in running:
        stream.join(120)
        assert stream.error is None, stream.error
    assert [s.text for s in running] == expected
    assert all(s.finish == "length" and s.usage["completion_tokens"] == REQUEST["max_tokens"] for s in running)
    cluster.wait_until(lambda: cluster.pid(victim) != dead, f"{victim} is back")
    cluster.wait_idle()


def test_worker(cluster):
    run_through(cluster, "worker-0")


def test_scheduler_and_workers_keep_their_weights(cluster):
    worker = cluster.pid("worker-0")
    run_through(cluster, "scheduler")
    assert cluster.pid("worker-0") == worker
    os.kill(worker, 0)


def test_any_rank_takes_the_group_with_it(tmp_path):
    with Cluster(tmp_path / "log", "--dtype", "float32", "--tensor-parallel-size", "3") as cluster:
        survivors = [cluster.pid("worker-0"), cluster.pid("worker-1")]
        run_through(cluster, "worker-2")
        assert survivors != [cluster.pid("worker-0"), cluster.pid("worker-1")]


def test_router(cluster):
    streams = [Stream(cluster, dict(REQUEST, seed=seed)) for seed in range(4)]
    for stream in streams:
        assert stream.started.wait(60)
    dead = cluster.kill("router")
    for stream in streams:
        stream.join(60)
        assert stream.error is not None or stream.finish is not None
    cluster.wait_until(lambda: cluster.pid("router") != dead, "the router is back")
    cluster.wait_ready()
    cluster.wait_idle()  # the lease of the dead router ran out
    assert cluster.complete(**REQUEST)


@pytest.mark.parametrize("victim", ["worker-0", "scheduler"])
def test_choices_of_one_request_go_on(tmp_path, victim):
    with Cluster(tmp_path / "log", "--dtype", "float32") as cluster:
        body = dict(REQUEST, n=4)
        expected = [choice["text"] for choice in cluster.post("/v1/completions", body)[1]["choices"]]
        texts, killed = [""] * 4, False
        with httpx.stream("POST", cluster.url + "/v1/completions", json=body | {"stream": True}, timeout=120) as reply:
            for line in reply.iter_lines():
                if not line.startswith("data: {"):
                    continue
                choice, = json.loads(line[6:])["choices"]
                texts[choice["index"]] += choice["text"]
                if not killed and all(len(text) > 20 for text in texts):
                    killed = bool(cluster.kill(victim))
        assert killed and texts == expected
        cluster.wait_ready()
        cluster.wait_idle()


def test_request_in_flight_at_two_deaths_fails_alone(tmp_path):
    with Cluster(tmp_path / "log", "--dtype", "float32") as cluster:
        body = dict(REQUEST, max_tokens=600)
        victim = Stream(cluster, body)
        assert victim.started.wait(60)
        for _ in range(2):
            dead = cluster.kill("worker-0")
            cluster.wait_until(lambda: cluster.pid("worker-0") != dead, "the worker is back")
            seen = len(victim.text)
            cluster.wait_until(lambda: len(victim.text) > seen or victim.error, "the stream went on or failed")
        victim.join(60)
        assert "deaths" in str(victim.error) or "died" in str(victim.error), victim.error
        cluster.wait_ready()
        assert cluster.complete(**REQUEST)
        cluster.wait_idle()


def test_everything_at_once_under_load(tmp_path):
    with Cluster(tmp_path / "log", "--dtype", "float32") as cluster:
        bodies = [dict(REQUEST, seed=seed, max_tokens=100) for seed in range(12)]
        expected = [cluster.complete(**body) for body in bodies]
        streams = [Stream(cluster, body) for body in bodies]
        assert streams[0].started.wait(60)
        cluster.kill("scheduler")
        cluster.kill("worker-0")
        for stream in streams:
            stream.join(120)
        assert [s.error for s in streams] == [None] * len(streams)
        assert [s.text for s in streams] == expected
        cluster.wait_idle()


def test_launcher_killed_leaves_nothing(tmp_path):
    cluster = Cluster(tmp_path / "log")
    pids = [cluster.pid(name) for name in ("router", "scheduler", "worker-0")]
    cluster.process.send_signal(signal.SIGKILL)
    cluster.process.wait()

    def gone():
        return not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    cluster.wait_until(gone, "the children ended")
    assert not os.path.exists(f"/dev/shm/penstock-{cluster.engine_id}")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_drain_ends_running_streams(tmp_path, how):
    assert SMOLLM.exists()
    cluster = Cluster(tmp_path / "log")
    stream = Stream(cluster, dict(REQUEST, max_tokens=200))
    assert stream.started.wait(60)
    cluster.process.send_signal(how)
    assert cluster.process.wait(60) == 0
    stream.join(10)
    assert stream.error is None and stream.finish == "length"
    assert stream.usage["completion_tokens"] == 200
    assert not os.path.exists(f"/dev/shm/penstock-{cluster.engine_id}")
