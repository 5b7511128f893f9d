#!/usr/bin/env python3
"""Writes tests/golden/hf/: small tokenisers as Hugging Face checkpoints have them, and the ids they give.

    python tools/golden/hf_tokenizer_golden.py

`llama3/` is byte-level with Llama 3's split and ignore_merges, `sentencepiece/` what Llama 2's becomes:
both trained here, on the texts of tests/golden/tokenizer/smollm.jsonl. Each has tokenizer.json,
tokenizer_config.json, chat_template.jinja as transformers saves them, and ids.jsonl: a line of facts,
then for each of those texts [ids, ids with control tokens as plain text, decoded], null for "the same"
(as ids, as the text).

`variants.jsonl` puts other steps around the same models: a line of facts with the texts, then one object
a variant: base, the keys of tokenizer.json that it replaces ("model" is merged), and the ids of each text.
"""

import json
import pathlib
import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from versions import versions

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_OUT = _ROOT / "tests/golden/hf"
_TEXTS = _ROOT / "tests/golden/tokenizer/smollm.jsonl"
_SEED = 20242

_LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
_CL100K = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$"
           r"|\s*[\r\n]|\s+(?!\S)|\s")
_O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
          r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
          r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_DEEPSEEK = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
             r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

# Lower case, so that no template of a real model is repeated here.
_CHAT = ("{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
         " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")


def _texts() -> list[str]:
    lines = _TEXTS.read_text(encoding="utf-8").splitlines()[1:]
    entries = [json.loads(line)[0] for line in lines]
    return [e if isinstance(e, str) else bytes.fromhex(e["hex"]).decode(errors="replace") for e in entries]


def _byte_level(**more):
    return pre_tokenizers.ByteLevel(**dict(add_prefix_space=False, use_regex=False) | more)


def _split(pattern: str, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def _train_llama3(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([_split(_LLAMA3), _byte_level()])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=2400, min_frequency=3, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    # A word that no merge makes: only ignore_merges finds it.
    description = json.loads(tokenizer.to_str())
    assert description["model"]["ignore_merges"]
    description["model"]["vocab"]["zebraquux"] = len(description["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(description))
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer.add_special_tokens([AddedToken(s, normalized=False, special=True) for s in specials])
    tokenizer.add_tokens([AddedToken("<left>", lstrip=True, normalized=False),
                          AddedToken("<right>", rstrip=True, normalized=False),
                          AddedToken("<both>", lstrip=True, rstrip=True, normalized=False),
                          AddedToken("lone", single_word=True, normalized=False),
                          AddedToken("cafe\u0301!", normalized=True)])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    template = processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A $B:1",
                                             special_tokens=[("<|begin_of_text|>", bos)])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def _train_sentencepiece(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=1600, min_frequency=3, limit_alphabet=500, show_progress=False,
                                  special_tokens=specials)
    tokenizer.train_from_iterator(texts, trainer)
    description = json.loads(tokenizer.to_str())
    # The bytes are tokens of the model alone.
    description["added_tokens"] = [t for t in description["added_tokens"] if t["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(description))
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1",
                                                             special_tokens=[("<s>", 1)])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("▁<pre>", normalized=False),
                          AddedToken("<norm>", normalized=True)])
    return tokenizer


def _own_texts(tokenizer: Tokenizer) -> list[str]:
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    texts = ["zebraquux zebraquux", "zebraquuxes", " lone", "alone lone lonely lone! 1lone _lone lone\u0301 élone lone\u200d",
             "café! cafe\u0301! caf\u00e9!", "a <left> <right> b \n<both>\t\nc", "<right>   <left>", "<right> lone",
             "x\u3000<left>\u3000<right>\u3000y", "\u180e<both>\u180e", " <norm> x<norm>y <norm>", "▁<pre>a <pre>", "<0x0A>", "▁"]
    for token in added:
        texts += [token, f"a{token}b", f" {token} ", token * 2, token[:-1], f"{token}\n{token}", f"\n {token}  x"]
    return [*texts, "".join(added), " ".join(added)]


def _ids(tokenizer: Tokenizer, text: str, as_text=False) -> list[int]:
    tokenizer.encode_special_tokens = as_text
    return tokenizer.encode(text, add_special_tokens=False).ids


def _write_base(name: str, tokenizer: Tokenizer, texts: list[str], **special_tokens: str) -> None:
    folder = _OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=_CHAT, **special_tokens)
    fast.save_pretrained(folder)
    reference = Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    description = json.loads(reference.to_str())
    # Old files have merges as "a b": one of the two is kept so.
    if name == "sentencepiece":
        description["model"]["merges"] = [" ".join(pair) for pair in description["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(description, ensure_ascii=False, separators=(",", ":")) + "\n",
                                           encoding="utf-8")
    reference = Tokenizer.from_file(str(folder / "tokenizer.json"))
    own = _own_texts(reference)
    chat = [{"role": "user", "content": " Hi <both> there "}, {"role": "assistant", "content": "Yes?\n"}]
    facts = {"texts": len(texts), "own_texts": own, "seed": _SEED, "versions": versions("tokenizers", "transformers"),
             "bos_id": fast.bos_token_id, "eos_id": fast.eos_token_id, "vocab_size": len(fast),
             "prompts": [[text, reference.encode(text).ids] for text in ("", "Hello", *own[:4])],
             "chat": chat, "chat_text": fast.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)}
    with (folder / "ids.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        for text in (None, *texts, *own):
            line = facts
            if text is not None:
                ids, plain = _ids(reference, text), _ids(reference, text, as_text=True)
                decoded = reference.decode(ids, skip_special_tokens=False)
                line = [ids, None if plain == ids else plain, None if decoded == text else decoded]
                while line[-1] is None:
                    line.pop()
            out.write(json.dumps(line, separators=(",", ":")) + "\n")
    for path in sorted(folder.iterdir()):
        print(f"{path}: {path.stat().st_size} bytes")


def _variants():
    """(name, base, keys of tokenizer.json replaced): those that are null are removed."""
    def pre(*steps):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
        return {"pre_tokenizer": json.loads(tokenizer.to_str())["pre_tokenizer"]}

    def norm(*steps):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Sequence(list(steps))
        return {"normalizer": json.loads(tokenizer.to_str())["normalizer"]}

    yield "gpt2 with a space before", "llama3", pre(_byte_level(add_prefix_space=True, use_regex=True))
    yield "numbers", "llama3", pre(pre_tokenizers.Digits(False), _byte_level(use_regex=True))
    yield "digits", "llama3", pre(pre_tokenizers.Digits(True), _byte_level(use_regex=True))
    yield "cl100k, the matches alone", "llama3", pre(_split(_CL100K, "removed", True), _byte_level())
    yield "o200k", "llama3", pre(_split(_O200K), _byte_level())
    yield "deepseek", "llama3", pre(_split(r"\p{N}{1,3}"), _split(r"[一-龥\u3040-ゟ゠-ヿ]+"), _split(_DEEPSEEK), _byte_level())
    yield "spaces removed", "llama3", pre(_split(r"\s", "removed"), _byte_level())
    yield "after a space", "llama3", pre(pre_tokenizers.Split(" ", "merged_with_previous"), _byte_level())
    yield "before a word", "llama3", pre(_split(r"\w+", "merged_with_next"), _byte_level())
    yield "not a word", "llama3", pre(_split(r"\W+", "merged_with_previous", True), _byte_level())
    yield "runs", "llama3", pre(_split(r"\d|\S", "contiguous"), _byte_level())
    yield "empty matches", "llama3", pre(_split(r"(?=(\p{N}{3})+(?!\p{N}))|x*"), _byte_level())
    yield "lines", "llama3", pre(_split(r"^[^\n]{,5}|.$|\u0041|\v"), _byte_level())
    yield "every character", "llama3", pre(pre_tokenizers.Split("", "isolated"), _byte_level())
    yield "normal form", "llama3", {**norm(normalizers.NFC())}
    yield "merges obeyed", "llama3", {"model": {"ignore_merges": False}}
    for scheme in ("always", "first", "never"):
        for split in (True, False):
            yield (f"metaspace {scheme} {split}", "sentencepiece",
                   {"normalizer": None, **pre(pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split))})
    yield "gemma", "sentencepiece", {**norm(normalizers.Replace(" ", "▁")),
                                     **pre(pre_tokenizers.Split(" ", "merged_with_previous"))}
    yield "unknown fused", "sentencepiece", {"model": {"byte_fallback": False}}
    yield "unknown one by one", "sentencepiece", {"model": {"byte_fallback": False, "fuse_unk": False}}
    yield "unknown dropped", "sentencepiece", {"model": {"byte_fallback": False, "unk_token": None}}


def _write_variants(texts: list[str]) -> None:
    with (_OUT / "variants.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        facts = {"seed": _SEED, "texts": texts, "versions": versions("tokenizers")}
        out.write(json.dumps(facts, separators=(",", ":")) + "\n")
        for name, base, replaced in _variants():
            description = json.loads((_OUT / base / "tokenizer.json").read_text(encoding="utf-8"))
            for key, value in replaced.items():
                description[key] = description[key] | value if key == "model" else value
            tokenizer = Tokenizer.from_str(json.dumps(description))
            line = {"name": name, "base": base, "replaced": replaced, "ids": [_ids(tokenizer, text) for text in texts]}
            out.write(json.dumps(line, separators=(",", ":")) + "\n")
    print(f"{_OUT}/variants.jsonl: {(_OUT / 'variants.jsonl').stat().st_size} bytes")


def main() -> None:
    texts = _texts()
    llama3, sentencepiece = _train_llama3(texts), _train_sentencepiece(texts)
    _write_base("llama3", llama3, texts, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")
    _write_base("sentencepiece", sentencepiece, texts, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    own = _own_texts(llama3)
    _write_variants([*random.Random(_SEED).sample(texts, 140), *own, *_own_texts(sentencepiece)[len(own) // 2:]])


if __name__ == "__main__":
    main()
