"""Makes a tiny Llama GGUF with random weights: small enough to commit, whole enough to serve.

  make_tiny_llama.py --golden                   the two of tests/golden/tiny, with the logits they give
  make_tiny_llama.py --out x.gguf --types Q4_0  one of your own

Several types are dealt out over the matrices in turn, so that the Q, K and V of a layer differ. The
vocabulary is byte-level BPE, learnt from passages/*.txt, and can spell any text.
"""

import argparse
import dataclasses
import json
import pathlib

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE

import blocks
from reference_llama import ReferenceLlama
from versions import versions

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parents[1] / "tests/golden/tiny"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NORMAL, CONTROL = 1, 3  # tokenizer.ggml.token_type
CHAT_TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
                 "message['content'] + '<|im_end|>\n' }}{% endfor %}"
                 "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@dataclasses.dataclass
class Shape:
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 128
    vocab: int = 320
    tied: bool = True  # no output.weight: the embedding is the output head too
    context: int = 512


def learn_vocabulary(size: int) -> tuple[list[str], list[str]]:
    """Tokens in order of id, and merges as a GGUF has them."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.train([str(file) for file in sorted((HERE / "passages").glob("*.txt"))], trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    if len(tokens) != size:
        raise SystemExit(f"learnt {len(tokens)} tokens, not {size}: choose between 259 and about 1000")
    return tokens, [" ".join(merge) for merge in model["merges"]]


def matrices(shape: Shape) -> dict[str, tuple[int, int]]:
    """Name to [rows, cols] of every matrix."""
    head = shape.hidden // shape.heads
    out = {"token_embd": (shape.vocab, shape.hidden)}
    for i in range(shape.layers):
        out |= {f"blk.{i}.attn_q": (shape.hidden, shape.hidden),
                f"blk.{i}.attn_k": (shape.kv_heads * head, shape.hidden),
                f"blk.{i}.attn_v": (shape.kv_heads * head, shape.hidden),
                f"blk.{i}.attn_output": (shape.hidden, shape.hidden),
                f"blk.{i}.ffn_gate": (shape.ffn, shape.hidden),
                f"blk.{i}.ffn_up": (shape.ffn, shape.hidden),
                f"blk.{i}.ffn_down": (shape.hidden, shape.ffn)}
    return out if shape.tied else out | {"output": (shape.vocab, shape.hidden)}


def write_model(path: pathlib.Path, shape: Shape, types: list[blocks.Type], seed: int) -> None:
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocab)

    tokens, merges = learn_vocabulary(shape.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if token in SPECIAL else NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|im_start|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.add_pad_token_id(tokens.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    for i, (name, (rows, cols)) in enumerate(matrices(shape).items()):
        kind = types[i % len(types)]
        values = (rng.standard_normal((rows, cols)) * 1.5 / cols**0.5).astype(np.float32)
        writer.add_tensor(f"{name}.weight", blocks.encode(rng, kind, values), raw_dtype=kind)
    norms = [f"blk.{i}.{name}" for i in range(shape.layers) for name in ("attn_norm", "ffn_norm")]
    for name in norms + ["output_norm"]:
        values = 1 + 0.1 * rng.standard_normal(shape.hidden)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_golden(name: str, shape: Shape, types: list[blocks.Type], seed: int) -> None:
    """<name>.gguf, <name>.logits (float32 [positions, vocab]) and <name>.json."""
    GOLDEN.mkdir(parents=True, exist_ok=True)
    path = GOLDEN / f"{name}.gguf"
    write_model(path, shape, types, seed)
    ids = np.random.default_rng(seed).integers(0, shape.vocab, 40).tolist()
    exact = ReferenceLlama(path, torch.float64).logits(ids)
    rounding = (ReferenceLlama(path).logits(ids) - exact).abs().max().item()
    path.with_suffix(".logits").write_bytes(exact.numpy().astype("<f4").tobytes())
    path.with_suffix(".json").write_text(json.dumps({
        "about": "logits of ids: row i follows ids[0..i]; computed in float64 and stored as float32",
        "ids": ids, **dataclasses.asdict(shape), "types": [kind.name for kind in types], "seed": seed,
        "float32_error": rounding, "versions": versions("gguf", "torch", "numpy", "tokenizers"),
    }, indent=1) + "\n")
    print(f"{path.name}: {path.stat().st_size} bytes, logits' deviation {exact.std():.2f}, "
          f"float32 differs by {rounding:.2g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--golden", action="store_true")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--types", default="F32", help="comma-separated: " + ",".join(t.name for t in blocks.TYPES))
    parser.add_argument("--seed", type=int, default=1)
    for field in dataclasses.fields(Shape):
        kind = {"action": argparse.BooleanOptionalAction} if field.type is bool else {"type": int}
        parser.add_argument(f"--{field.name}", default=field.default, **kind)
    args = parser.parse_args()
    if args.golden:
        kinds = blocks.Type
        write_golden("mixed", Shape(), [kinds.Q8_0, kinds.Q4_0, kinds.Q4_1, kinds.Q5_0, kinds.Q5_1,
                                        kinds.F16, kinds.BF16, kinds.F32], seed=1)
        write_golden("k_quants", Shape(hidden=256, layers=1, ffn=256, tied=False),
                     [kinds.Q6_K, kinds.Q4_K, kinds.Q5_K], seed=2)
    elif args.out:
        shape = Shape(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Shape)})
        write_model(args.out, shape, [blocks.Type[name] for name in args.types.split(",")], args.seed)
    else:
        parser.error("say --golden or --out FILE")


if __name__ == "__main__":
    main()
