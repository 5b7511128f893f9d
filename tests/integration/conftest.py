"""One cluster with the real model for all tests of the folder, and the clients' means to reach it."""
import importlib
import subprocess
import sys

import grpc
import openai
import pytest

from cluster import ROOT, Cluster

NAME, ALIAS = "smollm2", "the-model"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    log = tmp_path_factory.mktemp("cluster") / "log"
    with Cluster(log, "--dtype", "float32", "--served-model-name", f"{NAME},{ALIAS}") as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def serves_on(request):
    """After every test that used the cluster it still answers, and holds nothing."""
    yield
    if "cluster" in request.fixturenames:
        cluster = request.getfixturevalue("cluster")
        assert cluster.complete("One, two,", max_tokens=4, temperature=0)
        cluster.wait_idle()


@pytest.fixture(scope="session")
def client(cluster):
    with openai.OpenAI(base_url=cluster.url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture(scope="session")
def protos(tmp_path_factory):
    """Stubs of proto/inference.proto, made by Debian's protoc: an object with .messages and .services."""
    out = tmp_path_factory.mktemp("stubs")
    subprocess.run(["protoc", f"-I{ROOT}", f"--python_out={out}", f"--grpc_python_out={out}",
                    "--plugin=protoc-gen-grpc_python=/usr/bin/grpc_python_plugin", "proto/inference.proto"], check=True)
    sys.path.insert(0, str(out))

    class Protos:
        messages = importlib.import_module("proto.inference_pb2")
        services = importlib.import_module("proto.inference_pb2_grpc")
    return Protos


@pytest.fixture(scope="session")
def channel(cluster):
    with grpc.insecure_channel(cluster.grpc_address) as channel:
        yield channel


@pytest.fixture(scope="session")
def stub(protos, channel):
    return protos.services.InferenceStub(channel)
