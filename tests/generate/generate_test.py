"""examples/generate against NumPy: tokens of small random Llamas, and of text. Usage: generate_test.py PROGRAM FOLDER [DEVICE]"""

import json
import pathlib
import random
import subprocess
import sys

import llama
import regex

PROGRAM, FOLDER = sys.argv[1], pathlib.Path(sys.argv[2])
DEVICE = sys.argv[3] if len(sys.argv) > 3 else "cpu"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
BYTES = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
STAND_INS = {b: chr(b) for b in BYTES} | {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in BYTES)}


def run(folder: pathlib.Path, *arguments: str, expect: int = 0) -> subprocess.CompletedProcess:
    result = subprocess.run([PROGRAM, str(folder), "--device", DEVICE, *arguments], capture_output=True, timeout=300)
    assert result.returncode == expect, (arguments, result.returncode, result.stderr.decode())
    return result


def ids(line: bytes) -> list[int]:
    return [int(word) for word in line.split(b",")]


def check_tokens() -> None:
    shapes = {
        "act-order": llama.Shape(),
        "llama3": llama.Shape(act_order=False, tied=False, llama3_rope=True, bf16=True, head_dim=64, kv_heads=1),
    }
    for name, shape in shapes.items():
        folder = FOLDER / name
        llama.make(folder, shape, seed=3)
        rng = random.Random(5)
        for length in 1, 7, 150:  # 150: more than is read at once
            prompt = [rng.randrange(shape.vocab) for _ in range(length)]
            expected, leads = llama.Llama(folder).generate(prompt, 40)
            # Where the lead is less, rounding (on a GPU of fp16) may choose another token: the comparison ends there.
            sure = next((i for i, lead in enumerate(leads) if lead < (1e-4 if DEVICE == "cpu" else 0.02)), 40)
            assert sure == 40 or DEVICE != "cpu", f"{name}, prompt of {length}: leads {leads}: choose another seed"
            output = run(folder, "--prompt-ids", ",".join(map(str, prompt)), "--tokens", "40", "--ids").stdout
            got = ids(output.splitlines()[1])
            assert len(got) == 40 and got[:sure] == expected[:sure], f"{name}, prompt of {length}: {got} instead of {expected}"
            assert len(set(expected)) > 5, "the model repeats itself: the test would not see much"
            print(f"{name}, prompt of {length}: {sure} tokens agree, least lead {min(leads):.1e}")


def make_tokenizer(folder: pathlib.Path, rules: list[dict], pairs_as_text: bool, before: bool) -> tuple[dict, list]:
    """Merges that were learned from a few words, in the manner of BPE's training."""
    vocab = {STAND_INS[b]: b for b in range(256)}
    merges: list[tuple[str, str]] = []
    sample = "the theatre of the thermal 123 1234 don't we'll él naïve 東京東京 \n\n  \t the  other then that 34 34 34 34 34 34".encode()
    words = [STAND_INS[b] for b in sample]
    for _ in range(60):
        counts: dict = {}
        for pair in zip(words, words[1:]):
            counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        vocab.setdefault("".join(best), len(vocab))
        merged: list[str] = []
        for word in words:
            if merged and (merged[-1], word) == best:
                merged[-1] += word
            else:
                merged.append(word)
        words = merged
    special = {"id": len(vocab), "content": "<|im_start|>", "special": True}
    end = {"id": len(vocab) + 1, "content": "<|im_end|>", "special": True}
    post = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
                                                     {"Sequence": {"id": "A", "type_id": 0}}]}
    (folder / "tokenizer.json").write_text(json.dumps({
        "added_tokens": [special, end], "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": rules},
        "post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel"}, post]} if before else None,
        "model": {"type": "BPE", "vocab": vocab, "merges": [" ".join(m) if pairs_as_text else m for m in merges]}}))
    return vocab | {"<|im_start|>": special["id"], "<|im_end|>": end["id"]}, merges


def encode(text: str, vocab: dict, merges: list, pattern: str, digits: bool) -> list[int]:
    """What tokenizer.json means, plainly: special tokens, pieces, then each merge in turn, over the whole piece."""
    tokens = []
    for part in regex.split(r"(<\|im_start\|>|<\|im_end\|>)", text):
        if part in ("<|im_start|>", "<|im_end|>"):
            tokens.append(vocab[part])
            continue
        runs = regex.findall(r"\p{N}|\P{N}+", part) if digits else [part]
        for piece in (p for r in runs for p in regex.findall(pattern, r)):
            names = [STAND_INS[b] for b in piece.encode()]
            for left, right in merges:
                i = 0
                while i + 1 < len(names):
                    if names[i] == left and names[i + 1] == right:
                        names[i : i + 2] = [left + right]
                    i += 1
            tokens += [vocab[name] for name in names]
    return tokens


def check_text() -> None:
    folder = FOLDER / "act-order"
    split = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    tokenizers = {
        "digits, GPT-2": ([{"type": "Digits", "individual_digits": True}, plain | {"use_regex": True}], GPT2, True, True, False),
        "Llama 3": ([split, plain], LLAMA3, False, False, True),
    }
    rng = random.Random(7)
    alphabet = ["the", "THE", " ", "  ", "\n", "\r\n", "\t", "'ll", "'Re", "'s", "12", "3456", "½", "é", "ñandú", "東京", "٣", "€",
                "!?", "-", "_", "🙂", "\u00a0", "<|im_end|>", "x", "\u2003", "Ⅳ", "ſ", "'"]
    texts = ["don't they'll 12345 ?!\n\n  then", "<|im_start|>user\nthe 東京 other<|im_end|>"]
    texts += ["".join(rng.choices(alphabet, k=rng.randrange(1, 25))) for _ in range(40)]
    for name, (rules, pattern, digits, as_text, before) in tokenizers.items():
        vocab, merges = make_tokenizer(folder, rules, as_text, before)
        for text in texts:
            expected = [vocab["<|im_start|>"]] * before + encode(text, vocab, merges, pattern, digits)
            got = ids(run(folder, "--prompt=" + text, "--tokens", "1", "--ids").stdout.splitlines()[0])
            assert got == expected, f"{name}, {text!r}: {got} instead of {expected}"
        print(f"{name}: {len(texts)} texts agree")
    # What is printed are the tokens' bytes, and special tokens are not.
    out = run(folder, "--prompt", "the", "--tokens", "20", "--ids").stdout.splitlines()
    names = {i: n for n, i in vocab.items()}
    back = {c: b for b, c in STAND_INS.items()}
    expected = b"".join(b"" if names.get(i, "<")[0] == "<" and len(names.get(i, "<|")) > 1 else bytes(back[c] for c in names[i])
                        for i in ids(out[1]))
    assert run(folder, "--prompt", "the", "--tokens", "20").stdout == expected + b"\n"
    print("text: 20 tokens agree")


def check_errors() -> None:
    folder = FOLDER / "act-order"
    cases = [((folder, "--prompt-ids", "1,600"), 2, "token 600 of the prompt is not below vocab_size 512"),
             ((folder, "--prompt-ids", "1", "--tokens", "512"), 2, "513 tokens, and the model takes 512"),
             ((folder, "--prompt-ids", "1,x"), 2, '"x", not a number'),
             ((folder,), 2, "one of --prompt and --prompt-ids"),
             ((folder / "absent", "--prompt-ids", "1", "--ids"), 1, "cannot read")]
    for (where, *arguments), status, text in cases:
        error = run(where, *arguments, expect=status).stderr.decode()
        assert text in error, error
    config = json.loads((folder / "config.json").read_text())
    for field, value, text in (("model_type", "gpt2", '"gpt2" is not supported'), ("hidden_size", 72, "wants floats"),
                               ("intermediate_size", 96, "config.json wants 64 and 192"), ("num_hidden_layers", "x", "config.json")):
        (folder / "config.json").write_text(json.dumps(config | {field: value}))
        error = run(folder, "--prompt-ids", "1", "--ids", expect=1).stderr.decode()
        assert text in error, error
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "NFC"}}))
    error = run(folder, "--prompt", "a", expect=1).stderr.decode()
    assert "does not know the normalizer" in error, error
    print("errors: named")


check_tokens()
if DEVICE == "cpu":  # the same code everywhere
    check_text()
    check_errors()
