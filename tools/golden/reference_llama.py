"""A second opinion: a Llama forward pass read straight from a GGUF, sharing nothing with transformers.

It follows ggml's conventions (weights dequantised by the `gguf` package, Q and K in GGUF's own row order
with rotary pairs (2i, 2i+1)), where transformers undoes that order on load and pairs (i, i + E/2). The
two agreeing shows that neither the dequantisation, nor the permutation, nor a hyperparameter is wrong.
Plain and slow: one sequence, no cache.
"""

import pathlib

import gguf
import torch

torch.set_grad_enabled(False)


class ReferenceLlama:
    def __init__(self, path: pathlib.Path, dtype: torch.dtype = torch.float32):
        reader = gguf.GGUFReader(path)

        def key(name, default=None):
            field = reader.fields.get(f"llama.{name}")
            return default if field is None else field.contents()

        self.layers = key("block_count")
        self.heads = key("attention.head_count")
        self.kv_heads = key("attention.head_count_kv", self.heads)
        self.head_size = key("attention.key_length", key("embedding_length") // self.heads)
        self.rotary = key("rope.dimension_count", self.head_size)
        self.rope_base = key("rope.freq_base", 10000.0)
        self.epsilon = key("attention.layer_norm_rms_epsilon")
        self.dtype = dtype
        self.weights = {t.name: torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy()).to(dtype)
                        for t in reader.tensors}

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon) * self.weights[name]

    def rope(self, x: torch.Tensor) -> torch.Tensor:  # [T, heads, E]
        pairs = torch.arange(0, self.rotary, 2, dtype=torch.float64) / self.rotary
        angle = torch.outer(torch.arange(len(x), dtype=torch.float64), self.rope_base ** -pairs)
        cos, sin = angle.cos().to(self.dtype)[:, None], angle.sin().to(self.dtype)[:, None]
        out = x.clone()
        even, odd = x[..., 0:self.rotary:2], x[..., 1:self.rotary:2]
        out[..., 0:self.rotary:2] = even * cos - odd * sin
        out[..., 1:self.rotary:2] = even * sin + odd * cos
        return out

    def attention(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        def project(name, heads):
            return (x @ self.weights[f"{prefix}.{name}.weight"].T).view(len(x), heads, self.head_size)

        q = self.rope(project("attn_q", self.heads)).transpose(0, 1)
        k, v = self.rope(project("attn_k", self.kv_heads)), project("attn_v", self.kv_heads)
        group = self.heads // self.kv_heads
        k, v = (t.transpose(0, 1).repeat_interleave(group, 0) for t in (k, v))
        scores = q @ k.transpose(1, 2) / self.head_size**0.5
        mask = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        out = scores.masked_fill(mask, float("-inf")).softmax(-1) @ v
        return out.transpose(0, 1).reshape(len(x), -1) @ self.weights[f"{prefix}.attn_output.weight"].T

    def logits(self, ids: list[int]) -> torch.Tensor:  # [T, vocabulary]
        w = self.weights
        x = w["token_embd.weight"][torch.tensor(ids)]
        for i in range(self.layers):
            prefix = f"blk.{i}"
            x = x + self.attention(self.norm(x, f"{prefix}.attn_norm.weight"), prefix)
            h = self.norm(x, f"{prefix}.ffn_norm.weight")
            gate = torch.nn.functional.silu(h @ w[f"{prefix}.ffn_gate.weight"].T)
            x = x + (gate * (h @ w[f"{prefix}.ffn_up.weight"].T)) @ w[f"{prefix}.ffn_down.weight"].T
        return self.norm(x, "output_norm.weight") @ w.get("output.weight", w["token_embd.weight"]).T
