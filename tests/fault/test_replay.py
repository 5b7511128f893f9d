"""A fault in the field: what a server recorded is replayed, against the policy and against real ranks."""
import contextlib
import importlib
import pathlib
import stat
import struct
import subprocess
import sys
import threading
import zlib

import pytest

from cluster import BIN, ROOT, SMOLLM, Cluster, stream_completion

PREFIX = "The penstock is the pipe that carries water from the reservoir down to the turbine of a power station. "
MAGIC = b"PENSTREC"


def replay(recording, *flags, code=0, timeout_s=240):
    """Runs `penstock replay`; what it prints, errors included."""
    done = subprocess.run([BIN / "penstock", "replay", recording, *map(str, flags)], capture_output=True, text=True,
                          timeout=timeout_s)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def body(number, **more):
    """Half of the requests begin alike."""
    prompt = (PREFIX if number % 2 else "") + f"Story {number}: once upon a time"
    return dict(prompt=prompt, max_tokens=40, temperature=0.8, seed=number, ignore_eos=True, **more)


def run_mixed_traffic(cluster, numbers, on_first_text=lambda: None):
    """Streams all at once; every third is given up after its first text. Returns the texts of the others."""
    texts, errors, started = {}, [], threading.Event()

    def stream(number):
        try:
            with contextlib.closing(stream_completion(cluster, body(number))) as items:
                text = ""
                for item in items:
                    if isinstance(item, str):
                        text += item
                        started.set()
                        if number % 3 == 0:
                            return  # closes the connection
                texts[number] = text
        except Exception as error:  # handed to the test
            errors.append(error)
            started.set()

    threads = [threading.Thread(target=stream, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    assert started.wait(60)
    on_first_text()
    for thread in threads:
        thread.join(180)
    assert not errors, errors
    assert sorted(texts) == [number for number in numbers if number % 3]
    return texts


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Of a server with the real model: mixed traffic, cancels, shared prefixes, forks, a worker that is killed."""
    folder = tmp_path_factory.mktemp("recorded")
    path = folder / "recording"
    with Cluster(folder / "log", "--dtype", "float32", "--max-num-seqs", "6", "--max-num-batched-tokens", "48",
                 "--num-kv-pages", "40", "--max-model-len", "512", "--record-plans", str(path)) as cluster:
        status, _ = cluster.post("/v1/completions", body(1, prompt_logprobs=1))
        assert status == 200
        status, answer = cluster.post("/v1/completions", body(3, n=3, priority=2))  # which copy a page
        assert status == 200 and len(answer["choices"]) == 3
        dead = []
        run_mixed_traffic(cluster, range(1, 13), lambda: dead.append(cluster.kill("worker-0")))
        cluster.wait_until(lambda: cluster.pid("worker-0") != dead[0], "worker-0 is back")
        run_mixed_traffic(cluster, range(1, 13))
        cluster.wait_idle()
        assert cluster.metric("vllm:prefix_cache_hits_total") > 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path


def test_the_policy_is_as_it_was(recording):
    told = replay(recording, "--check-invariants")
    assert "28 requests, 2 epochs: identical" in told and "note" not in told


def test_a_worker_is_as_it_was(recording):
    told = replay(recording, "--model", SMOLLM, "--dtype", "float32")
    assert "28 requests, 2 epochs" in told and "ids: identical" in told and "note" not in told


@pytest.fixture(scope="module")
def record_pb2(tmp_path_factory):
    out = tmp_path_factory.mktemp("stubs")
    subprocess.run(["protoc", f"-I{ROOT}", f"--python_out={out}", "proto/record.proto", "proto/wire.proto"], check=True)
    # Beside the stubs that other tests may have made of other files.
    import google.protobuf  # noqa: F401  (says what is missing if it is)
    sys.path.insert(0, str(out))
    for name in [name for name in sys.modules if name == "proto" or name.startswith("proto.")]:
        del sys.modules[name]
    module = importlib.import_module("proto.record_pb2")
    sys.path.remove(str(out))
    return module


def tamper(record_pb2, source, target, change):
    """Copies a recording; `change(event)` is called until it returns True."""
    data, at, done, out = source.read_bytes(), len(MAGIC), False, bytearray(MAGIC)
    while at < len(data):
        length, checksum = struct.unpack_from("<II", data, at)
        payload = data[at + 8:at + 8 + length]
        assert zlib.crc32(struct.pack("<I", length) + payload) == checksum
        block = record_pb2.Block.FromString(payload)
        for event in block.events:
            done = done or change(event)
        payload = block.SerializeToString()
        size = struct.pack("<I", len(payload))
        out += size + struct.pack("<I", zlib.crc32(size + payload)) + payload
        at += 8 + length
    assert done
    target.write_bytes(out)
    return target


def test_a_plan_that_was_another_is_told(recording, record_pb2, tmp_path):
    def other_page(event):
        if event.WhichOneof("what") != "compose" or event.compose.step < 20 or not event.compose.appends:
            return False
        event.compose.appends[1] ^= 1
        event.compose.appends[1] %= 40
        return True
    told = replay(tamper(record_pb2, recording, tmp_path / "tampered", other_page), code=1)
    assert "different: step " in told and "page 1 differs. Recorded: page" in told and "Now: page" in told


def test_an_id_that_was_another_is_told(recording, record_pb2, tmp_path):
    changed = {}

    def other_id(event):
        if event.WhichOneof("what") != "results" or event.results.step < 20 or not event.results.rows:
            return False
        changed.update(step=event.results.step, id=event.results.rows[2], position=event.results.rows[3])
        event.results.rows[2] ^= 1
        return True
    told = replay(tamper(record_pb2, recording, tmp_path / "tampered", other_id),
                  "--model", SMOLLM, "--dtype", "float32", code=1)
    assert f"different: step {changed['step']} of epoch" in told
    assert f"position {changed['position']}: the id differs" in told
    assert f"Recorded: {changed['id'] ^ 1}. Now: {changed['id']}." in told


def test_damage_and_cuts_are_told(recording, tmp_path):
    data = recording.read_bytes()
    path = tmp_path / "damaged"
    path.write_bytes(data[:len(data) // 2])
    told = replay(path)
    assert "identical" in told and "note: the recording is cut off: from byte" in told
    middle = len(data) // 2
    path.write_bytes(data[:middle] + bytes([data[middle] ^ 0x40]) + data[middle + 1:])
    done = subprocess.run([BIN / "penstock", "replay", path], capture_output=True, text=True)
    # It hit a block, or (seldom) a block's length, which may then be more than there is.
    assert ("is damaged from byte" in done.stderr and done.returncode == 2) or "cut off" in done.stdout, done


def test_bad_input(recording, tmp_path):
    assert "no such file" in replay(tmp_path / "none", code=2)
    assert "is not a recording" in replay(SMOLLM, code=2)
    assert "give one FILE" in replay("--dtype", "auto", code=2)
    assert "no such file or folder" in replay(recording, "--model", tmp_path / "none", code=2)
    assert "--device cpu needs the --model" in replay(recording, "--device", "cpu", code=2)
    told = replay(recording, "--device", "null", "--block-size", 32, code=2)
    assert "another model: tokens in a KV page 16, here 32: give --block-size" in told
    done = subprocess.run([BIN / "penstock", "serve", SMOLLM, "--record-plans", tmp_path / "none" / "file"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "name one in a folder that can be written to" in done.stderr


def test_a_scheduler_that_was_killed(tmp_path):
    """Its recording ends there; the next scheduler takes over the segment and writes another."""
    path = tmp_path / "recording"
    with Cluster(tmp_path / "log", "--device", "null", "--null-step-us", "2000", "--num-kv-pages", "64",
                 "--max-model-len", "512", "--record-plans", str(path)) as cluster:
        dead = []
        run_mixed_traffic(cluster, range(1, 40), lambda: dead.append(cluster.kill("scheduler")))
        cluster.wait_until(lambda: cluster.pid("scheduler") != dead[0], "the scheduler is back")
        cluster.wait_ready()
        run_mixed_traffic(cluster, range(1, 40))
        cluster.wait_idle()
    second = pathlib.Path(f"{path}.1")
    for flags in ([], ["--device", "null", "--model", SMOLLM]):
        told = replay(path, *flags)
        assert "identical" in told
        assert "note: the recording is cut off" in told or "note: the recording has no end" in told
        told = replay(second, *flags)
        assert "identical" in told and "note" not in told
    # What was lost is less than a block: the first ids are there.
    assert not replay(path).startswith("0 steps")
