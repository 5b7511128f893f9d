"""Writes what transformers, in float32, makes of a GGUF:

  tests/golden/logprobs/smollm2_135m_q4_1.json   teacher-forced log-probabilities of passages/*.txt
  tests/golden/greedy/smollm2_135m_q4_1.json     greedy continuations of the prompts below

Position i of a passage predicts token i + 1, so n ids have n - 1 positions. Before anything is written
the model is held against the GGUF itself (see Verify).
"""

import argparse
import hashlib
import json
import math
import pathlib

import gguf
import torch
import transformers

import smollm_tokenizer
from bfloat16 import yardstick
from reference_llama import ReferenceLlama
from versions import versions

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parents[1] / "tests/golden"
GREEDY_TOKENS = 48

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "Three reasons why regular exercise is good for you:\n1.",
    "1, 2, 3, 5, 8, 13, 21,",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nAnswer in one short sentence.<|im_end|>\n"
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "Die Hauptstadt von Deutschland ist",
]


def verify(model, path: pathlib.Path, ids: list[int]) -> dict:
    """Raises unless the loaded model is the GGUF's: every hyperparameter, every weight that the GGUF
    stores in transformers' row order bit for bit, and the logits of an independent forward pass."""
    reader = gguf.GGUFReader(path)
    config = model.config

    def key(name):
        return reader.fields[f"llama.{name}"].contents()

    expected = {
        "rms_norm_eps": (config.rms_norm_eps, key("attention.layer_norm_rms_epsilon")),
        "rope_theta": (config.rope_parameters["rope_theta"], key("rope.freq_base")),
        "layers": (config.num_hidden_layers, key("block_count")),
        "heads": (config.num_attention_heads, key("attention.head_count")),
        "kv_heads": (config.num_key_value_heads, key("attention.head_count_kv")),
        "head_dim": (config.head_dim, key("rope.dimension_count")),
    }
    wrong = {name: pair for name, pair in expected.items() if pair[0] != pair[1]}
    if wrong:
        raise SystemExit(f"transformers read these differently from the GGUF: {wrong}")

    names = {"token_embd": "model.embed_tokens", "ffn_down": "mlp.down_proj", "ffn_up": "mlp.up_proj",
             "ffn_gate": "mlp.gate_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
    weights, compared = model.state_dict(), 0
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        if parts[-2] not in names:  # norms, and Q and K, whose rows transformers permutes
            continue
        prefix = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
        if not torch.equal(values, weights[f"{prefix}{names[parts[-2]]}.weight"]):
            raise SystemExit(f"transformers dequantised {tensor.name} differently from gguf")
        compared += 1

    theirs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    ours = ReferenceLlama(path).logits(ids).log_softmax(-1)
    difference = (theirs - ours).abs().max().item()
    if difference > 2e-3:
        raise SystemExit(f"transformers and the reference differ by {difference}")
    print(f"verified: {compared} tensors equal; logits of an independent forward pass within {difference:.2g}")
    return {"tensors_equal_to_gguf_dequantize": compared,
            "max_logprob_difference_to_reference_llama": difference}


def score(model, ids: list[int]) -> dict:
    logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    top = logprobs.topk(2, dim=-1)
    actual = logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]

    def rounded(values):  # nine digits give a float32 back exactly
        return [float(f"{v:.9g}") for v in values.tolist()]

    return {"ids": ids, "logprob": rounded(actual), "top1_id": top.indices[:, 0].tolist(),
            "top1_logprob": rounded(top.values[:, 0]), "top2_logprob": rounded(top.values[:, 1])}


def continue_greedily(model, ids: list[int]) -> dict:
    """The next ids by arg max, the end of text ignored, and by how much each won over the second."""
    cache, step, out, margins = None, torch.tensor([ids]), [], []
    for _ in range(GREEDY_TOKENS):
        result = model(step, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        top = result.logits[0, -1].log_softmax(-1).topk(2)
        out.append(top.indices[0].item())
        margins.append(round((top.values[0] - top.values[1]).item(), 6))
        step = torch.tensor([[out[-1]]])
    return {"output_ids": out, "margin": margins}


def write(path: pathlib.Path, header: dict, name: str, rows: list[dict]) -> None:
    """One line a field, so that a diff can be read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}," for k, v in header.items()]
    body = ",\n".join("  {\n" + ",\n".join(f"   {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}"
                                           for k, v in row.items()) + "\n  }" for row in rows)
    path.write_text("{\n" + "\n".join(lines) + f"\n {json.dumps(name)}: [\n{body}\n ]\n}}\n")
    json.loads(path.read_text())
    print(f"{path.relative_to(HERE.parents[1])}: {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gguf", type=pathlib.Path)
    path = parser.parse_args().gguf.resolve()
    torch.set_grad_enabled(False)
    tokenizer = smollm_tokenizer.load(path)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager").eval()

    passages = {file.stem: file.read_text() for file in sorted((HERE / "passages").glob("*.txt"))}
    ids = {name: tokenizer.encode(text).ids for name, text in passages.items()}
    for name, text in passages.items():
        if tokenizer.decode(ids[name], skip_special_tokens=False) != text:
            raise SystemExit(f"{name} doesn't survive the tokeniser")
    header = {
        "model": path.name,
        "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "dtype": "float32",
        "versions": versions("transformers", "torch", "tokenizers", "gguf", "numpy"),
        "verified": verify(model, path, ids["05_chat"]),
        "rms_norm_eps": model.config.rms_norm_eps,
        "rope_theta": model.config.rope_parameters["rope_theta"],
    }

    rows, total, positions = [], 0.0, 0
    for name, text in passages.items():
        scored = score(model, ids[name])
        count = len(scored["logprob"])
        perplexity = math.exp(-sum(scored["logprob"]) / count)
        total, positions = total - sum(scored["logprob"]), positions + count
        rows.append({"name": name, "perplexity": perplexity, "text": text, **scored})
        print(f"{name}: {count} positions, perplexity {perplexity:.2f}")
    print(f"in all: {positions} positions, perplexity {math.exp(total / positions):.4f}")
    write(GOLDEN / "logprobs/smollm2_135m_q4_1.json",
          {**header, "bfloat16": yardstick(model, rows), "positions": positions,
           "perplexity": math.exp(total / positions)}, "passages", rows)

    rows = []
    for prompt in PROMPTS:
        prompt_ids = tokenizer.encode(prompt).ids
        row = {"prompt": prompt, "prompt_ids": prompt_ids, **continue_greedily(model, prompt_ids)}
        row["text"] = tokenizer.decode(row["output_ids"], skip_special_tokens=False)
        rows.append(row)
        print(f"{prompt[-30:]!r} -> {row['text'][:60]!r}, least margin {min(row['margin']):.4f}")
    write(GOLDEN / "greedy/smollm2_135m_q4_1.json", {**header, "max_tokens": GREEDY_TOKENS}, "prompts", rows)


if __name__ == "__main__":
    main()
