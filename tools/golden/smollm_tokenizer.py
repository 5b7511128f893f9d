"""The right tokeniser for a GGUF whose `tokenizer.ggml.pre` is `smollm`.

transformers' GGUF conversion builds a plain GPT-2 pre-tokeniser and so drops SmolLM's digit split: it
would make "1024" one token where the model was trained on four.
"""

import pathlib

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


def load(path: pathlib.Path) -> Tokenizer:
    reader = gguf.GGUFReader(path)

    def field(name):
        return reader.fields[f"tokenizer.ggml.{name}"].contents()

    if (field("model"), field("pre")) != ("gpt2", "smollm"):
        raise ValueError(f"{path}: not a smollm tokeniser, but {field('model')}/{field('pre')}")
    tokens = field("tokens")
    merges = [tuple(merge.split(" ")) for merge in field("merges")]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, field("token_type")):
        if kind in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=kind == _CONTROL, normalized=False)])
    return tokenizer
