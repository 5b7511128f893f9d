#!/usr/bin/env python3
"""Writes tests/golden/tokenizer/: texts and the ids that Hugging Face `tokenizers` gives them.

    python tools/golden/tokenizer_golden.py MODEL.gguf

The reference is made from the GGUF's own vocabulary (smollm_tokenizer.py). Each file is JSON lines: a
first line of facts, then one array a text: [text, ids] or, where the bytes aren't UTF-8,
[{"hex": bytes}, ids]; a third entry holds the ids with control tokens taken as plain text, where these
differ; a fourth the decoded text, where it isn't the text (bytes the vocabulary lacks are dropped).

`smollm.jsonl` is the model's own tokeniser; the others put another family's pre-tokeniser on the same
vocabulary, so that its split is tested without its model.
"""

import itertools
import json
import pathlib
import random
import sys

import smollm_tokenizer
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from versions import versions

_OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/golden/tokenizer"
_SEED = 20241

_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")

_LINES = pathlib.Path(__file__).with_name("tokenizer_lines.txt")

# Unicode blocks to draw random text from: (first, last).
_BLOCKS = {
    "ascii": [(0x20, 0x7e)],
    "latin": [(0xa1, 0x24f), (0x1e00, 0x1eff)],
    "combining": [(0x61, 0x7a), (0x300, 0x36f)],
    "greek-cyrillic": [(0x370, 0x3ff), (0x400, 0x4ff)],
    "hebrew": [(0x5b0, 0x5f4), (0x20, 0x20)],
    "arabic": [(0x600, 0x6ff), (0x20, 0x20)],
    "indic": [(0x900, 0x97f), (0xb80, 0xbff), (0xe00, 0xe5b)],
    "kana-han": [(0x3040, 0x30ff), (0x4e00, 0x9fff), (0x3000, 0x3020)],
    "hangul": [(0xac00, 0xd7a3), (0x1100, 0x11f9)],
    "numbers": [(0x30, 0x39), (0xb2, 0xb3), (0xbc, 0xbe), (0x660, 0x669), (0x2150, 0x218b),
                (0x2460, 0x249b), (0x20, 0x20), (0x1d7ce, 0x1d7ff)],
    "symbols": [(0x2000, 0x206f), (0x20a0, 0x20bf), (0x2190, 0x22ff), (0x2500, 0x25ff)],
    "emoji": [(0x1f300, 0x1f64f), (0x1f900, 0x1f9ff), (0x200d, 0x200d), (0xfe0f, 0xfe0f),
              (0x1f1e6, 0x1f1ff), (0x1f3fb, 0x1f3ff)],
    "controls": [(0x0, 0x20), (0x7f, 0xa0), (0x180e, 0x180e), (0xfeff, 0xfeff), (0x61, 0x63)],
    "far": [(0x10000, 0x1003a), (0x1d400, 0x1d4ff), (0x20000, 0x2006f), (0xe000, 0xe01f),
            (0xfff0, 0xffff), (0x10fff0, 0x10ffff), (0xe0020, 0xe007f)],
}
_SPACES = [" ", "  ", "   ", "    ", "\t", "\t\t", "\n", "\n\n", "\r\n", "\r", " \n", "\n ", "\v", "\f",
           "\x85", "\xa0", "\u1680", "\u180e", "\u2003", "\u2009", "\u200b", "\u2028", "\u2029", "\u202f",
           "\u205f", "\u3000", "\ufeff"]
_EMOJI = ["😀", "👍🏽", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷🇯🇵", "❤️‍🔥", "🧑🏿‍🚀", "☃️", "1️⃣", "#️⃣", "🤷🏻‍♀️", "👩‍❤️‍💋‍👨"]


def _reference(path: pathlib.Path, family: str) -> Tokenizer:
    tokenizer = smollm_tokenizer.load(path)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if family == "gpt-2":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    elif family == "llama-bpe":
        split = pre_tokenizers.Split(Regex(_LLAMA3 % r"\p{N}{1,3}"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        tokenizer.model.ignore_merges = True
        assert tokenizer.model.ignore_merges
    elif family == "qwen2":
        split = pre_tokenizers.Split(Regex(_LLAMA3 % r"\p{N}"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
        tokenizer.normalizer = normalizers.NFC()
    elif family != "smollm":
        raise ValueError(family)
    return tokenizer


def _random_text(rng: random.Random, blocks, length: int) -> str:
    chars = []
    while len(chars) < length:
        code_point = rng.randint(*rng.choice(blocks))
        if not 0xd800 <= code_point <= 0xdfff:
            chars.append(chr(code_point))
    return "".join(chars)


def _random_texts(rng: random.Random, count: int):
    for _ in range(count):
        for blocks in _BLOCKS.values():
            yield _random_text(rng, blocks, rng.randint(1, 24))


def _mixed_texts(rng: random.Random, lines: list[str], specials: list[str], count: int):
    everything = list(itertools.chain(*_BLOCKS.values()))
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(2, 7)):
            match rng.randrange(7):
                case 0:
                    parts.append(rng.choice(specials))
                case 1:
                    parts.append(rng.choice(_EMOJI))
                case 2:
                    parts.append("".join(rng.choices(_SPACES, k=rng.randint(1, 4))))
                case 3:
                    parts.append(str(rng.randrange(10 ** rng.randint(1, 9))))
                case 4:
                    parts.append(_random_text(rng, everything, rng.randint(1, 5)))
                case _:
                    line = rng.choice(lines)
                    begin = rng.randrange(len(line))
                    parts.append(line[begin:begin + rng.randint(1, 30)])
        yield "".join(parts)


def _space_texts(rng: random.Random):
    for space in _SPACES:
        yield space
        yield from (f"a{space}b", f"{space}a", f"a{space}", f"1{space}2", f"{space * 3}x", f".{space}.",
                    f"x {space}7", f"{space} y", f"'s{space}'S")
    for count in (2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100):
        yield from (" " * count, "\n" * count, "\t" * count, f"if:{' ' * count}x", f"9{' ' * count}9")
    for _ in range(60):
        yield "".join(rng.choices(_SPACES + ["a", "1", "."], k=rng.randint(2, 12)))


def _special_texts(specials: list[str]):
    for token in specials:
        yield from (token, f"a{token}b", f" {token} ", token * 2, token[:-1], token[1:], f"<{token}>",
                    f"{token}\n", f"7{token}7", token.upper())
    yield "".join(specials)
    yield "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def _broken_texts(rng: random.Random):
    """Bytes that aren't UTF-8."""
    fixed = [b"\x80", b"\xff", b"\xc3", b"\xc3\x28", b"\xe2\x82", b"\xe2\x28\xa1", b"\xf0\x9f\x98", b"\xc0\xaf",
             b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xe0\x80\xaf",
             b"\xf0\x80\x80\xaf", b"a\xf0\x9f\x98b", b"\xf0\x9f\x98\xf0\x9f\x98\x80", b"\xfe\xfe\xff\xff",
             b"caf\xe9", b"\x93quoted\x94", b"1\x802", b"<|im_\x80start|>", b"<|im_end|>\xc3<|im_end|>"]
    yield from fixed
    for text in _EMOJI + ["naïve", "日本語", "Привет", "שלום"]:
        data = text.encode()
        for cut in range(1, len(data)):
            for piece in (data[:cut], data[cut:]):
                try:
                    piece.decode()
                except UnicodeDecodeError:
                    yield piece
    produced = 0
    while produced < 150:
        data = bytearray(_random_text(rng, list(itertools.chain(*_BLOCKS.values())), 6).encode())
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            data.decode()
        except UnicodeDecodeError:
            produced += 1
            yield bytes(data)


def _texts(rng: random.Random, lines: list[str], specials: list[str]):
    yield ""
    yield from lines
    yield from _EMOJI
    yield from (f"{a}{b}" for a, b in itertools.pairwise(_EMOJI))
    yield from (str(10 ** n - 7) for n in range(1, 16))
    yield from ("3.14159", "1,234,567.89", "-5e-10", "0x1F", "v2.0.1", "a1b22c333", "²³", "½ cup", "١٢٣", "Ⅷ", "10²")
    yield from ("it's we'RE I'Ve you'LL he'd 'sharp 'tis", "'S'T'RE", "ſ'ſ", "don’t", "'''", "x's1's")
    # Long words take another way through the merge loop.
    yield from ("a" * 49, "ab" * 60, "internationalisation" * 12, "=" * 200, "語" * 70, "no" + "o" * 300,
                "https://example.org/" + "path/segment-" * 20, "0" * 60)
    yield from _special_texts(specials)
    yield from _space_texts(rng)
    yield from _random_texts(rng, 45)
    yield from _mixed_texts(rng, lines, specials, 500)


def _entry(tokenizer: Tokenizer, data: str | bytes):
    text = data if isinstance(data, str) else data.decode(errors="replace")
    tokenizer.encode_special_tokens = False
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = True
    plain = tokenizer.encode(text, add_special_tokens=False).ids
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    entry = [data if isinstance(data, str) else {"hex": data.hex()}, ids]
    if plain != ids or decoded != text:
        entry.append(plain if plain != ids else None)
    if decoded != text:
        entry.append(decoded)
    return entry


def _write(path: pathlib.Path, family: str, entries: list, model: pathlib.Path) -> None:
    facts = {"family": family, "model": model.name, "seed": _SEED, "texts": len(entries),
             "versions": versions("tokenizers", "gguf")}
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for line in [facts, *entries]:
            # ensure_ascii: no editor or diff tool must meet raw controls and lone marks.
            out.write(json.dumps(line, separators=(",", ":")) + "\n")
    print(f"{path}: {len(entries)} texts, {path.stat().st_size} bytes")


def main() -> None:
    model = pathlib.Path(sys.argv[1])
    rng = random.Random(_SEED)
    lines = _LINES.read_text(encoding="utf-8").splitlines()
    tokenizer = _reference(model, "smollm")
    specials = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    texts = list(dict.fromkeys([*_texts(rng, lines, specials), *_broken_texts(rng)]))
    _OUT.mkdir(parents=True, exist_ok=True)
    _write(_OUT / "smollm.jsonl", "smollm", [_entry(tokenizer, text) for text in texts], model)
    sample = rng.sample(texts, 600)
    for family in ("gpt-2", "llama-bpe", "qwen2"):
        other = _reference(model, family)
        _write(_OUT / f"{family}.jsonl", family, [_entry(other, text) for text in sample], model)


if __name__ == "__main__":
    main()
