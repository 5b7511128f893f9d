"""Makes tiny Hugging Face checkpoints with random weights, and what transformers makes of them in float32:

  tests/golden/hf/<name>/       config.json, generation_config.json, safetensors, tokenizer
  tests/golden/hf/<name>.json   teacher-forced log-probabilities of random ids, and how far bfloat16 is from them

Both have grouped queries, heads whose sizes don't add up to the hidden size, and Llama 3's rope scaling with
all three of its ranges inside the ids' length. Their heads are of the two sizes that the CUDA engine has.
"""

import json
import pathlib
import shutil

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bfloat16 import yardstick
from make_tiny_llama import CHAT_TEMPLATE, SPECIAL
from versions import versions

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parents[1] / "tests/golden/hf"
NUM_PASSAGES, LENGTH = 3, 200
VOCAB = 320
END, START, STOP = range(3)  # the ids of SPECIAL

# Seeds: few of the likeliest ids are nearly tied with the second, so that top-1 says something in bfloat16, too.
CHECKPOINTS = {
    "tied": {"seed": 1, "dtype": torch.bfloat16, "layers": 2, "heads": 8, "head_dim": 64, "tied": True,
             "bias": False, "shard": "1GB"},
    "untied_sharded": {"seed": 4, "dtype": torch.float16, "layers": 1, "heads": 4, "head_dim": 128, "tied": False,
                       "bias": True, "shard": "150KB"},
}


def config(kind: dict) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=kind["layers"],
        num_attention_heads=kind["heads"], num_key_value_heads=2, head_dim=kind["head_dim"],
        max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=kind["tied"], attention_bias=kind["bias"],
        rope_parameters={"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        bos_token_id=START, eos_token_id=STOP, pad_token_id=END, dtype=kind["dtype"])


def randomise(model: LlamaForCausalLM, seed: int) -> None:
    """Weights large enough that the logits say something: they spread like a language model's."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        if weight.dim() == 2:
            values *= (4 if "embed" in name or "lm_head" in name else 1) / weight.shape[1] ** 0.5
        else:
            values = 0.1 * values + (1 if "norm" in name else 0)
        weight.data.copy_(values.to(torch.bfloat16))  # a GPU has them so: nothing is lost there


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, learnt from passages/*.txt; can spell any text."""
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    bpe.train([str(file) for file in sorted((HERE / "passages").glob("*.txt"))], trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=SPECIAL[START], eos_token=SPECIAL[STOP], pad_token=SPECIAL[END],
        chat_template=CHAT_TEMPLATE)


def score(model: LlamaForCausalLM, ids: list[int]) -> dict:
    """Position i predicts id i + 1."""
    logprobs = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    top = logprobs.topk(2, dim=-1)
    actual = logprobs.gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]

    def rounded(values):
        return [float(f"{v:.7g}") for v in values.tolist()]

    return {"ids": ids, "logprob": rounded(actual), "top1_id": top.indices[:, 0].tolist(),
            "margin": rounded(top.values[:, 0] - top.values[:, 1])}


@torch.no_grad()
def main() -> None:
    for name, kind in CHECKPOINTS.items():
        folder, seed = GOLDEN / name, kind["seed"]
        shutil.rmtree(folder, ignore_errors=True)
        model = LlamaForCausalLM(config(kind))
        randomise(model, seed)
        model = model.to(kind["dtype"])
        model.generation_config.eos_token_id = [STOP, END]
        model.save_pretrained(folder, max_shard_size=kind["shard"])
        tokenizer().save_pretrained(folder)

        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        generator = torch.Generator().manual_seed(seed)
        passages = [score(model, torch.randint(VOCAB, (LENGTH,), generator=generator).tolist())
                    for _ in range(NUM_PASSAGES)]
        header = {"about": "logprob[i] is of ids[i + 1], in float32; margin: of the likeliest id over the second",
                  "seed": seed, "bfloat16": yardstick(model, passages),
                  "versions": versions("torch", "transformers", "tokenizers", "safetensors")}
        rows = ",\n".join(json.dumps(row) for row in passages)
        (GOLDEN / f"{name}.json").write_text(json.dumps(header, indent=1)[:-2] + f',\n "passages": [\n{rows}\n]\n}}\n')
        size = sum(file.stat().st_size for file in folder.iterdir())
        spread = torch.tensor([p for row in passages for p in row["logprob"]]).std()
        print(f"{name}: {size} bytes, {sorted(file.name for file in folder.iterdir())}, deviation {spread:.2f}, "
              f"bfloat16 {header['bfloat16']}")


if __name__ == "__main__":
    main()
