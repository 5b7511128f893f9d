"""`penstock serve` on the GPU as a user would run it: answers, streams, a worker's death, starts that must fail.

Needs Python's standard library alone. Prints what GoogleTest prints, since tests/gpu/run reads that.
"""
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import unittest

ROOT = pathlib.Path(os.environ.get("PENSTOCK_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(ROOT / "tests"))
from cluster import BIN, SMOLLM, Cluster, free_port, stream_completion  # noqa: E402

DEVICE = os.environ.get("PENSTOCK_TEST_DEVICE", "cuda")  # cpu: to try the tests themselves
FLAGS = os.environ.get("PENSTOCK_TEST_SERVE_FLAGS", "").split()
TINY = ROOT / "tests/golden/hf/tied"
GOLDEN = json.loads((ROOT / "tests/golden/greedy/smollm2_135m_q4_1.json").read_text())
PASSAGES = json.loads((ROOT / "tests/golden/logprobs/smollm2_135m_q4_1.json").read_text())
TIE = PASSAGES["bfloat16"]["largest"]  # what bfloat16 is off at worst, as in tests/gpu/model_test.cc


class Serve(unittest.TestCase):
    """One cluster with SmolLM2 for all of them; it must hold nothing after each, and end well."""

    @classmethod
    def setUpClass(cls):
        if not SMOLLM.exists():
            raise unittest.SkipTest(f"no {SMOLLM}: tools/deps/model fetches it; --model-dir says where it is")
        cls.folder = tempfile.TemporaryDirectory()
        cls.cluster = Cluster(pathlib.Path(cls.folder.name) / "log", "--device", DEVICE, *FLAGS, timeout_s=150)

    @classmethod
    def tearDownClass(cls):
        code = cls.cluster.stop()
        log = cls.cluster.log()
        cls.folder.cleanup()
        assert code == 0, f"penstock serve ended with {code}\n{log[-3000:]}"

    def tearDown(self):
        try:
            self.cluster.wait_idle()
        except Exception:
            print(self.cluster.log()[-3000:])
            raise

    def test_greedy_as_the_reference(self):
        """All golden prompts at once; a text may leave the reference's only where that nearly tied."""
        def ids_of(row):
            status, body = self.cluster.post("/v1/completions", {
                "prompt": row["prompt_ids"], "max_tokens": len(row["output_ids"]), "temperature": 0,
                "ignore_eos": True, "return_token_ids": True})
            self.assertEqual(status, 200, body)
            return body["choices"][0]["token_ids"]

        rows = GOLDEN["prompts"]
        with concurrent.futures.ThreadPoolExecutor(len(rows)) as pool:
            answers = list(pool.map(ids_of, rows))
        same = sum(self.check_golden(row, ids) for row, ids in zip(rows, answers))
        print(f"{same} of {len(rows)} texts are the reference's", flush=True)

    def check_golden(self, row, ids):
        """Whether they are the reference's to the end; they may leave it only where that nearly tied."""
        self.assertEqual(len(ids), len(row["output_ids"]))
        at = next((i for i, (a, b) in enumerate(zip(ids, row["output_ids"])) if a != b), None)
        if at is not None:
            self.assertLessEqual(row["margin"][at], TIE, f"{row['prompt']!r} leaves at {at}")
        return at is None

    def test_choices_share_the_prompt(self):
        """Four greedy choices: one computes the prompt, the others share its pages and copy the last one."""
        row = max(GOLDEN["prompts"], key=lambda row: len(row["prompt_ids"]))
        prompt = row["prompt_ids"]
        before = self.cluster.metric("vllm:prefix_cache_hits_total")
        status, body = self.cluster.post("/v1/completions", {
            "prompt": prompt, "max_tokens": len(row["output_ids"]), "temperature": 0, "ignore_eos": True,
            "return_token_ids": True, "n": 4})
        self.assertEqual(status, 200, body)
        self.assertEqual(sorted(choice["index"] for choice in body["choices"]), [0, 1, 2, 3])
        for choice in body["choices"]:
            self.check_golden(row, choice["token_ids"])
        self.cluster.wait_until(
            lambda: self.cluster.metric("vllm:prefix_cache_hits_total") - before >= 3 * (len(prompt) - 1),
            f"the hits of three prompts of {len(prompt)}", timeout_s=10)

    def test_chat(self):
        """The golden prompt that is a conversation, by its words: the answer begins as the reference's."""
        text = next(row["text"] for row in GOLDEN["prompts"] if "What is gravity?" in row["prompt"])
        status, body = self.cluster.post("/v1/chat/completions", {
            "messages": [{"role": "user", "content": "What is gravity?"}], "temperature": 0, "max_tokens": 24})
        self.assertEqual(status, 200, body)
        self.assertEqual(body["choices"][0]["message"]["content"][:24], text[:24])

    def test_a_hundred_streams(self):
        """Prompts and answers of all lengths, drawn and greedy: every stream ends as it was asked to."""
        def run(i):
            ids = PASSAGES["passages"][i % len(PASSAGES["passages"])]["ids"]
            body = {"prompt": ids[:5 + 11 * i % 240], "max_tokens": 1 + 7 * i % 90, "seed": i, "ignore_eos": True,
                    "temperature": 0.8 if i % 2 else 0, "top_p": 0.9, "top_k": 40 if i % 3 else 0}
            *_, (finish, usage) = stream_completion(self.cluster, body)
            self.assertEqual((finish, usage["completion_tokens"]), ("length", body["max_tokens"]))

        with concurrent.futures.ThreadPoolExecutor(100) as pool:
            list(pool.map(run, range(100)))

    def test_logprobs(self):
        status, body = self.cluster.post("/v1/completions", {
            "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, "logprobs": 3})
        self.assertEqual(status, 200, body)
        logprobs = body["choices"][0]["logprobs"]
        self.assertEqual(len(logprobs["token_logprobs"]), len(logprobs["tokens"]))
        for own, top in zip(logprobs["token_logprobs"], logprobs["top_logprobs"]):
            self.assertLessEqual(own, 0)
            self.assertAlmostEqual(own, max(top.values()), places=4)

    def test_worker_killed(self):
        """kill -9 of the worker amid streams: a new one takes over, and all of them end as they should."""
        dead = []
        run_through(self, self.cluster, lambda: dead.append(self.cluster.kill("worker-0")))
        self.assertNotEqual(self.cluster.pid("worker-0"), dead[0])


def run_through(test, cluster, disturb, tokens=1200):  # a second or more on any device
    """Four streams, disturbed once all have begun; each must end as it was asked to."""
    def run(i):
        started = False
        for item in stream_completion(cluster, {"prompt": "Once upon a time", "max_tokens": tokens, "seed": i,
                                                "temperature": 0.8, "ignore_eos": True}):
            if isinstance(item, tuple):
                return item[0], item[1]["completion_tokens"]
            if not started:
                started = True
                first.release()

    first = threading.Semaphore(0)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(run, i) for i in range(4)]
        for _ in streams:
            test.assertTrue(first.acquire(timeout=60))
        disturb()
        test.assertEqual([s.result(150) for s in streams], [("length", tokens)] * 4)
    cluster.wait_ready()


class DeviceError(unittest.TestCase):
    """The CUDA runtime reports an error amid streams: the worker ends with it on record, and another takes over."""

    def test_error_of_a_step(self):
        if DEVICE != "cuda":
            self.skipTest("needs a GPU")
        with tempfile.TemporaryDirectory() as folder:
            trigger = pathlib.Path(folder) / "fault"
            env = {**os.environ, "LD_PRELOAD": str(BIN / "libcuda_fault.so"), "PENSTOCK_CUDA_FAULT": str(trigger)}
            with Cluster(pathlib.Path(folder) / "log", "--device", DEVICE, *FLAGS, model=TINY, timeout_s=150,
                         env=env) as cluster:
                before = cluster.pid("worker-0")
                run_through(self, cluster, trigger.touch, tokens=400)
                self.assertFalse(trigger.exists())
                self.assertNotEqual(cluster.pid("worker-0"), before)
                self.assertIn("illegal memory access", cluster.log())
                self.assertIn("exit_code=1", cluster.log())


class BadStart(unittest.TestCase):
    """What cannot start says why and ends."""

    def serve(self, *flags, **environment):
        """The exit code and what was said."""
        done = subprocess.run(
            [BIN / "penstock", "serve", TINY, "--device", "cuda", "--port", str(free_port()), "--grpc-port", "0",
             *flags],
            env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30)
        errors = [line for line in done.stdout.splitlines() if " error " in line] or done.stdout.splitlines()[-1:]
        print(f"exit code {done.returncode}: {errors[:1]}", flush=True)
        self.assertNotIn("Ready", done.stdout)
        return done.returncode, done.stdout

    def test_no_gpu(self):
        code, said = self.serve(CUDA_VISIBLE_DEVICES="")
        self.assertEqual(code, 2, said)
        self.assertRegex(said, "no GPU|no CUDA engine")

    def test_float32(self):
        code, said = self.serve("--dtype", "float32")
        self.assertEqual(code, 2, said)
        self.assertIn("--device cpu", said)

    def test_no_memory(self):
        if DEVICE != "cuda":
            self.skipTest("needs a GPU")
        code, said = self.serve("--num-kv-pages", "1000000000")
        self.assertIn(code, (1, 2), said)
        self.assertRegex(said, "memory.*--(gpu-memory-utilization|kv-cache-memory-mb|num-kv-pages)")


class Result(unittest.TestResult):
    """As GoogleTest prints it."""

    def name(self, test):
        # A class that could not be set up is named "setUpClass (module.Class)".
        return ".".join(test.id().split(".")[-2:]) if isinstance(test, unittest.TestCase) else \
            re.sub(r".*\((?:.*\.)?(\w+)\)", r"\1.setUpClass", str(test))

    def startTest(self, test):
        super().startTest(test)
        self.begin = time.monotonic()
        print(f"[ RUN      ] {self.name(test)}", flush=True)

    def end(self, what, test, text=""):
        ms = (time.monotonic() - getattr(self, "begin", time.monotonic())) * 1000
        print(f"{text}\n" * bool(text) + f"[ {what} ] {self.name(test)} ({ms:.0f} ms)", flush=True)

    def addSuccess(self, test):
        self.end("      OK", test)

    def addSkip(self, test, reason):
        self.end(" SKIPPED", test, f"Skipped\n{reason}")

    def addFailure(self, test, error):
        super().addFailure(test, error)
        self.end(" FAILED ", test, self.failures[-1][1])

    def addError(self, test, error):
        super().addError(test, error)
        self.end(" FAILED ", test, self.errors[-1][1])


def main():
    suite = unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__])
    result = Result()
    suite.run(result)
    sys.exit(0 if result.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
