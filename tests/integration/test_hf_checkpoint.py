"""A Hugging Face checkpoint, made here with random weights, is served from its folder on the CPU."""
import array
import json
import math
import random
import shutil
import struct
import subprocess

import grpc
import openai
import pytest

from cluster import BIN, ROOT, Cluster, free_port

TOKENIZER = ROOT / "tests/golden/hf/llama3"
MESSAGES = [{"role": "user", "content": "Hello, who are you?"}]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 2416,
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    "torch_dtype": "float32", "bos_token_id": 2401, "eos_token_id": 2402,
    "rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                             "high_freq_factor": 4.0, "original_max_position_embeddings": 128}}


def tensors():
    """(name, shape) of all that a tied Llama has."""
    h, f, kv = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["hidden_size"] // 2
    yield "model.embed_tokens.weight", (CONFIG["vocab_size"], h)
    yield "model.norm.weight", (h,)
    for layer in range(CONFIG["num_hidden_layers"]):
        shapes = {"self_attn.q_proj": (h, h), "self_attn.k_proj": (kv, h), "self_attn.v_proj": (kv, h),
                  "self_attn.o_proj": (h, h), "mlp.gate_proj": (f, h), "mlp.up_proj": (f, h), "mlp.down_proj": (h, f),
                  "input_layernorm": (h,), "post_attention_layernorm": (h,)}
        for name, shape in shapes.items():
            yield f"model.layers.{layer}.{name}.weight", shape


def write_safetensors(path):
    rng = random.Random(7)
    header, data = {"__metadata__": {"format": "pt"}}, bytearray()
    for name, shape in tensors():
        count = math.prod(shape)
        values = array.array("f", (rng.gauss(0, 0.3) for _ in range(count)) if len(shape) > 1 else [1.0] * count)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * count]}
        data += values.tobytes()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def make_checkpoint(folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    for name in "tokenizer.json", "tokenizer_config.json", "chat_template.jinja":
        shutil.copy(TOKENIZER / name, folder)
    write_safetensors(folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny-1.5b")


@pytest.fixture(scope="module")
def served(checkpoint, tmp_path_factory):
    log = tmp_path_factory.mktemp("hf") / "log"
    # The folder's name may end in a slash.
    with Cluster(log, "--dtype", "float32", model=f"{checkpoint}/") as cluster:
        yield cluster
        assert cluster.stop() == 0


@pytest.fixture(scope="module")
def hf_client(served):
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def test_the_model_is_its_folder(hf_client, checkpoint):
    model = hf_client.models.list().data[0]
    assert model.id == "tiny-1.5b" and model.root == str(checkpoint) and model.max_model_len == 512


def test_prompts_get_bos_and_chats_their_template(served):
    facts = json.loads((TOKENIZER / "ids.jsonl").open().readline())
    for text, ids in facts["prompts"]:
        if text:
            assert served.post("/tokenize", {"prompt": text})[1]["tokens"] == ids
    chat = served.post("/tokenize", {"messages": facts["chat"]})[1]["tokens"]
    as_text = served.post("/tokenize", {"prompt": facts["chat_text"], "add_special_tokens": False})[1]["tokens"]
    assert chat == as_text and chat[0] == facts["bos_id"]
    stripped = facts["chat_text"].replace(" <both> ", "<both>")  # a token that takes the spaces around it
    assert served.post("/detokenize", {"tokens": chat})[1]["prompt"] == stripped
    assert served.post("/detokenize", {"tokens": [2415]})[0] == 200  # padding of the vocabulary
    assert served.post("/detokenize", {"tokens": [2416]})[0] == 400


def test_chat_streams_the_same(hf_client):
    greedy = dict(model="tiny-1.5b", messages=MESSAGES, max_tokens=24, temperature=0)
    whole = hf_client.chat.completions.create(**greedy)
    assert whole.choices[0].message.content and whole.usage.completion_tokens > 1
    chunks = list(hf_client.chat.completions.create(**greedy, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content


def test_completions_stream_the_same(hf_client):
    greedy = dict(model="tiny-1.5b", prompt="Once upon a time", max_tokens=24, temperature=0)
    whole = hf_client.completions.create(**greedy).choices[0]
    chunks = list(hf_client.completions.create(**greedy, stream=True))
    assert whole.text and "".join(c.choices[0].text for c in chunks) == whole.text
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_generation_config_ends_answers(served, tmp_path):
    body = {"prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "return_token_ids": True}
    ids = served.post("/v1/completions", body | {"ignore_eos": True})[1]["choices"][0]["token_ids"]
    folder = make_checkpoint(tmp_path / "ends")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, ids[3]]}))
    with Cluster(tmp_path / "log", "--dtype", "float32", model=folder) as cluster:
        choice = cluster.post("/v1/completions", body)[1]["choices"][0]
        assert choice["finish_reason"] == "stop" and choice["token_ids"] == ids[:ids.index(ids[3]) + 1]


def test_generation_config_gives_defaults(served, protos, tmp_path):
    prompt = {"prompt": "Once upon a time", "ignore_eos": True, "return_token_ids": True}
    chat = {"messages": MESSAGES, "ignore_eos": True, "return_token_ids": True}
    defaults = {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.3, "max_new_tokens": 9}

    def ids(cluster, path, body):
        status, reply = cluster.post(path, body)
        assert status == 200, reply
        return reply["choices"][0]["token_ids"]

    spelt_out = {"max_tokens" if key == "max_new_tokens" else key: value for key, value in defaults.items()} | {"seed": 7}
    expected = ids(served, "/v1/completions", prompt | spelt_out)
    expected_chat = ids(served, "/v1/chat/completions", chat | spelt_out)
    greedy = ids(served, "/v1/completions", prompt | {"temperature": 0, "max_tokens": 12})
    plain = ids(served, "/v1/completions", prompt | {"seed": 7, "max_tokens": 12})  # this model suggests nothing
    assert len(expected) == 9 and len({tuple(expected), tuple(greedy[:9]), tuple(plain[:9])}) == 3

    folder = make_checkpoint(tmp_path / "suggests")
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    with Cluster(tmp_path / "log", "--dtype", "float32", model=folder) as cluster:
        assert ids(cluster, "/v1/completions", prompt | {"seed": 7}) == expected
        assert ids(cluster, "/v1/chat/completions", chat | {"seed": 7}) == expected_chat
        own = {"temperature": 1, "top_k": 0, "top_p": 1, "repetition_penalty": 1, "max_tokens": 12, "seed": 7}
        assert ids(cluster, "/v1/completions", prompt | own) == plain
        m = protos.messages
        with grpc.insecure_channel(cluster.grpc_address) as channel:
            stub = protos.services.InferenceStub(channel)
            request = m.GenerateRequest(text=prompt["prompt"], return_token_ids=True,
                                        sampling=m.SamplingParams(seed=7, ignore_eos=True))
            assert [id for reply in stub.Generate(request) for id in reply.token_ids] == expected
            request.sampling.temperature, request.sampling.max_tokens = 0, 12
            request.sampling.repetition_penalty = 1
            assert [id for reply in stub.Generate(request) for id in reply.token_ids] == greedy

    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    with Cluster(tmp_path / "log", "--dtype", "float32", model=folder) as cluster:
        assert ids(cluster, "/v1/completions", prompt | {"max_tokens": 12}) == greedy
    with Cluster(tmp_path / "log", "--dtype", "float32", "--generation-config", "none", model=folder) as cluster:
        assert ids(cluster, "/v1/completions", prompt | {"seed": 7, "max_tokens": 12}) == plain


@pytest.fixture(scope="module")
def ids_only(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "shape-only"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    with Cluster(folder.parent / "log", "--load-format", "dummy", model=folder) as cluster:
        yield cluster


def test_dummy_weights_answer_token_ids(ids_only):
    with openai.OpenAI(base_url=ids_only.url + "/v1", api_key="none", max_retries=0, timeout=120) as client:
        request = dict(model="shape-only", prompt=[1, 2, 3], max_tokens=6, temperature=0, extra_body={"ignore_eos": True})
        whole = client.completions.create(**request)
        assert whole.usage.completion_tokens == 6 and whole.choices[0].text == ""
        chunks = list(client.completions.create(**request, stream=True))
        streamed = [id for c in chunks for id in c.choices[0].token_ids or []]
        assert streamed == whole.choices[0].token_ids and len(streamed) == 6


@pytest.mark.parametrize("path, body, param", [
    ("/v1/completions", {"prompt": "text"}, "prompt"), ("/v1/chat/completions", {"messages": MESSAGES}, "messages"),
    ("/v1/completions", {"prompt": [1], "stop": "x"}, "stop"), ("/tokenize", {"prompt": "text"}, "prompt"),
    ("/tokenize", {"messages": MESSAGES}, "messages"), ("/detokenize", {"tokens": [1]}, "tokens")])
def test_dummy_weights_know_no_text(ids_only, path, body, param):
    status, reply = ids_only.post(path, body)
    assert status == 400 and reply["error"]["param"] == param
    assert "this model has no tokenizer" in reply["error"]["message"]


def refused(model, *flags):
    """What `penstock serve` says when it doesn't start."""
    done = subprocess.run([BIN / "penstock", "serve", model, "--port", str(free_port()), "--grpc-port", "0", *flags],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode not in (0, -6, -11) and "Ready" not in done.stdout
    return done.stderr


@pytest.mark.parametrize("file, text, says", [
    ("tokenizer.json", '{"model": ', "tokenizer.json is not valid JSON"),
    ("tokenizer.json", '{"model": {"type": "Unigram"}, "decoder": {"type": "Metaspace", "replacement": "_"}}',
     "is Unigram; Penstock knows BPE"),
    ("tokenizer.json", None, "there is no tokenizer.json"),
    ("tokenizer_config.json", '{"chat_template": 7}', "chat_template"),
    ("chat_template.jinja", "{% if %}", "the chat template isn't valid"),
    ("config.json", None, "config.json"),
    ("generation_config.json", '{"temperature": -1}', "generation_config.json: temperature is -1"),
    ("generation_config.json", '{"top_k": "all"}', 'generation_config.json: "top_k" is "all", not a whole number'),
])
def test_bad_checkpoints_are_refused(checkpoint, tmp_path, file, text, says):
    folder = tmp_path / "bad"
    shutil.copytree(checkpoint, folder)
    (folder / file).unlink() if text is None else (folder / file).write_text(text)
    assert says in refused(folder)


def test_what_is_no_model_is_refused(tmp_path):
    assert "no such file or folder" in refused(tmp_path / "nothing")
    assert "--generation-config vllm must be auto or none" in refused(tmp_path, "--generation-config", "vllm")
    assert "config.json" in refused(tmp_path)
