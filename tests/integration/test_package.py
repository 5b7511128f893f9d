"""tools/package: what it packs runs from any folder, with nothing of the machine's but glibc and CUDA."""
import os
import pathlib
import re
import subprocess

import pytest

from cluster import BIN, ROOT, Cluster

# The dynamic loader's own and the driver's; tools/package says why they stay out.
OF_THE_MACHINE = re.compile(
    r"(ld-linux|lib(c|m|mvec|pthread|dl|rt|resolv|util|anl|nss_\w+)\.so|lib(cuda|cudart|cublas|cublasLt|nvidia))")
# None of the variables that could lead elsewhere.
ENV = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "LANG": "C.UTF-8"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("an empty folder")
    archive = folder / "penstock.tar"  # not compressed: that would take longer than all the rest
    subprocess.run([ROOT / "tools/package", "--bin", BIN, archive], check=True, timeout=120)
    subprocess.run(["tar", "-xf", archive, "-C", folder], check=True)
    archive.unlink()
    return folder / "penstock"


def libraries_of(pid):
    """The files of shared libraries and Python modules that the process has mapped."""
    lines = pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if ".so" in line}


@pytest.mark.parametrize("program, says", [
    ("penstock", "penstock serve MODEL"), ("penstock-router", "--grpc_port"), ("penstock-scheduler", "--max_num_seqs"),
    ("penstock-worker", "--max_model_len")])
def test_programs_tell_their_flags(bundle, program, says):
    done = subprocess.run([bundle / "bin" / program, "--help"], env=ENV, capture_output=True, text=True, timeout=30)
    assert says in done.stdout and not done.stderr and done.returncode in (0, 1)  # Abseil's --help ends with 1


def test_serves_with_its_own_libraries(bundle, tmp_path):
    model = ROOT / "tests/golden/hf/tied"
    with Cluster(tmp_path / "log", model=model, programs=bundle / "bin", env=ENV) as cluster:
        status, reply = cluster.post("/v1/chat/completions", {
            "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0, "ignore_eos": True})
        assert status == 200 and reply["usage"]["completion_tokens"] == 8, reply
        for process in "router", "scheduler", "worker-0":
            libraries = libraries_of(cluster.pid(process))
            assert any(path.startswith(f"{bundle}/lib/") for path in libraries)
            assert [path for path in libraries if not path.startswith(f"{bundle}/")
                    and not OF_THE_MACHINE.match(os.path.basename(path))] == []
        # The chat template ran in the bundle's Python.
        assert any("libpython3" in path for path in libraries_of(cluster.pid("router")))
        assert cluster.stop() == 0


def test_version_tells_what_it_needs(bundle):
    version = (bundle / "VERSION").read_text()
    assert re.fullmatch(r"penstock \S+, .+, \d{4}-\d\d-\d\d, x86_64, glibc 2\.\d+(, CUDA \d+)?\n", version)
    assert list((bundle / "share/doc").glob("*.copyright"))
