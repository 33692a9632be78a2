"""Small random Llama checkpoints in GPTQ's format, and what such a model computes, in NumPy with 64-bit floats."""

import dataclasses
import json
import pathlib

import numpy as np


# ---- safetensors and GPTQ's packing ------------------------------------------------------------------------------------
NAMES = {np.dtype(np.float16): "F16", np.dtype(np.float32): "F32", np.dtype(np.int32): "I32"}


def write_safetensors(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    """uint16 arrays are written as the bits of bf16."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        kind = "BF16" if tensor.dtype == np.uint16 else NAMES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor).tobytes())


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All tensors; bf16 as fp32."""
    data = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(data[:8].tobytes(), "little")
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length].tobytes()).items():
        if name == "__metadata__":
            continue
        raw = data[8 + length :][entry["data_offsets"][0] : entry["data_offsets"][1]]
        kind = {"F16": np.float16, "F32": np.float32, "I32": np.int32, "I64": np.int64, "BF16": np.uint16}[entry["dtype"]]
        tensor = raw.view(kind).reshape(entry["shape"])
        tensors[name] = (tensor.astype(np.uint32) << 16).view(np.float32) if entry["dtype"] == "BF16" else tensor
    return tensors


def bf16(values: np.ndarray) -> np.ndarray:
    return (values.astype(np.float32).view(np.uint32) + 0x8000 >> 16).astype(np.uint16)


def random_gptq(rng: np.random.Generator, k: int, n: int, group: int, act_order: bool, scale: float) -> dict[str, np.ndarray]:
    """qweight, qzeros (v1: stored minus one), scales and g_idx of a random matrix whose weights are about `scale`."""
    groups = -(-k // group)
    qweight = rng.integers(0, 2**32, (k // 8, n), dtype=np.uint32).view(np.int32)
    zeros = rng.integers(5, 11, (groups, n // 8, 8)).astype(np.uint32)
    qzeros = ((zeros - 1) << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32).view(np.int32)
    scales = (rng.uniform(0.5, 1.5, (groups, n)) * scale / 4.6).astype(np.float16)  # codes of 0 to 15 spread by 4.6
    g_idx = (np.arange(k) // group).astype(np.int32)
    return {"qweight": qweight, "qzeros": qzeros, "scales": scales, "g_idx": rng.permutation(g_idx) if act_order else g_idx}


def dequantize(t: dict[str, np.ndarray], prefix: str, v2: bool = False) -> np.ndarray:
    """W [k, n]: scales[g] * (q - zero), fp64."""
    shifts = 4 * np.arange(8, dtype=np.uint32)
    qweight = t[prefix + ".qweight"].view(np.uint32)
    q = (qweight[:, None, :] >> shifts[None, :, None] & 15).reshape(-1, qweight.shape[1]).astype(np.float64)
    qzeros = t[prefix + ".qzeros"].view(np.uint32)
    zeros = (qzeros[:, :, None] >> shifts & 15).reshape(qzeros.shape[0], -1)
    zeros = (zeros if v2 else zeros + 1 & 15).astype(np.float64)
    g = t[prefix + ".g_idx"]
    return t[prefix + ".scales"].astype(np.float64)[g] * (q - zeros[g])


# ---- checkpoints ---------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Shape:
    layers: int = 3
    hidden: int = 64
    intermediate: int = 160
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    vocab: int = 512
    group: int = 32
    act_order: bool = True
    tied: bool = True
    llama3_rope: bool = False
    bf16: bool = False
    positions: int = 512
    alike: bool = False  # every layer has the weights of the first, in bytes of its own: made in less time


LLAMA_3_8B = Shape(layers=32, hidden=4096, intermediate=14336, heads=32, kv_heads=8, head_dim=128, vocab=128256, group=128,
                   act_order=False, tied=False, llama3_rope=True, positions=8192, alike=True)


def config_of(s: Shape) -> dict:
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "num_hidden_layers": s.layers,
        "hidden_size": s.hidden, "intermediate_size": s.intermediate, "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim, "vocab_size": s.vocab, "rms_norm_eps": 1e-5,
        "max_position_embeddings": s.positions, "tie_word_embeddings": s.tied, "rope_theta": 10000.0, "eos_token_id": None,
        "quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": s.group, "desc_act": s.act_order,
                                "sym": False, "checkpoint_format": "gptq"},
    }
    if s.llama3_rope:
        config["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                  "original_max_position_embeddings": 64}
    return config


def linears(s: Shape) -> dict[str, tuple[int, int]]:
    q, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
    return {"self_attn.q_proj": (s.hidden, q), "self_attn.k_proj": (s.hidden, kv), "self_attn.v_proj": (s.hidden, kv),
            "self_attn.o_proj": (q, s.hidden), "mlp.gate_proj": (s.hidden, s.intermediate),
            "mlp.up_proj": (s.hidden, s.intermediate), "mlp.down_proj": (s.intermediate, s.hidden)}


def make(folder: pathlib.Path, s: Shape, seed: int = 1) -> None:
    """Writes config.json and model.safetensors of a random model that tells its tokens apart."""
    rng = np.random.default_rng(seed)
    dense = bf16 if s.bf16 else lambda values: values.astype(np.float16)
    tensors = {}

    def table(name: str) -> None:
        if s.alike:  # random signs and mantissas: much faster to make
            bits = rng.integers(0, 2**16, (s.vocab, s.hidden), dtype=np.uint16)
            tensors[name] = (bits & 0x83FF | 0x2A00).view(np.float16)
            return
        # Small, so that the layers' outputs outweigh the token itself, which a tied head would only say again.
        tensors[name] = dense(0.05 * rng.standard_normal((s.vocab, s.hidden), dtype=np.float32))

    table("model.embed_tokens.weight")
    for i in range(s.layers):
        for name, (k, n) in linears(s).items():
            first = {part: tensors.get(f"model.layers.0.{name}.{part}") for part in ("qweight", "qzeros", "scales", "g_idx")}
            made = first if s.alike and i > 0 else random_gptq(rng, k, n, s.group, s.act_order, k**-0.5)
            for part, tensor in made.items():
                tensors[f"model.layers.{i}.{name}.{part}"] = tensor
        for name in "input_layernorm", "post_attention_layernorm":
            tensors[f"model.layers.{i}.{name}.weight"] = dense(rng.uniform(0.5, 1.5, s.hidden))
    tensors["model.norm.weight"] = dense(rng.uniform(0.5, 1.5, s.hidden))
    if not s.tied:
        table("lm_head.weight")
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config_of(s), indent=1))


# ---- the model -------------------------------------------------------------------------------------------------------------
class Llama:
    """A checkpoint's model, token by token."""

    def __init__(self, folder: pathlib.Path):
        self.c = json.loads((folder / "config.json").read_text())
        tensors = read_safetensors(folder / "model.safetensors")
        self.w = {name: tensor.astype(np.float64) for name, tensor in tensors.items() if name.endswith(".weight")}
        for name in [n.removesuffix(".qweight") for n in tensors if n.endswith(".qweight")]:
            self.w[name] = dequantize(tensors, name)
        self.cache: list[list] = [[[], []] for _ in range(self.c["num_hidden_layers"])]

    def inverse_frequencies(self) -> np.ndarray:
        dim = self.c["head_dim"]
        base = self.c["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
        scaling = self.c.get("rope_scaling")
        if not scaling:
            return base
        wavelength, trained = 2 * np.pi / base, scaling["original_max_position_embeddings"]
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        smooth = (trained / wavelength - low) / (high - low)
        middle = (1 - smooth) * base / scaling["factor"] + smooth * base
        return np.where(wavelength < trained / high, base, np.where(wavelength > trained / low, base / scaling["factor"], middle))

    def logits(self, token: int) -> np.ndarray:
        c, w = self.c, self.w
        heads, kv_heads, dim = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]

        def norm(x, name):
            return x / np.sqrt(np.mean(x * x) + c["rms_norm_eps"]) * w[name + ".weight"]

        def rotate(x, position):
            angle = position * self.inverse_frequencies()
            a, b = x[:, : dim // 2], x[:, dim // 2 :]
            return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], 1)

        x = w["model.embed_tokens.weight"][token]
        for i, (keys, values) in enumerate(self.cache):
            p = f"model.layers.{i}."
            h = norm(x, p + "input_layernorm")
            position = len(keys)
            q = rotate((h @ w[p + "self_attn.q_proj"]).reshape(heads, dim), position)
            keys.append(rotate((h @ w[p + "self_attn.k_proj"]).reshape(kv_heads, dim), position))
            values.append((h @ w[p + "self_attn.v_proj"]).reshape(kv_heads, dim))
            k, v = (np.repeat(np.array(t), heads // kv_heads, 1) for t in (keys, values))
            scores = np.einsum("hd,phd->hp", q, k) / np.sqrt(dim)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            mixed = np.einsum("hp,phd->hd", weights / weights.sum(1, keepdims=True), v).reshape(-1)
            x = x + mixed @ w[p + "self_attn.o_proj"]
            h = norm(x, p + "post_attention_layernorm")
            gate, up = h @ w[p + "mlp.gate_proj"], h @ w[p + "mlp.up_proj"]
            x = x + (gate / (1 + np.exp(-gate)) * up) @ w[p + "mlp.down_proj"]
        head = w.get("lm_head.weight", w["model.embed_tokens.weight"])
        return head @ norm(x, "model.norm")

    def generate(self, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
        """The likeliest tokens, and the lead of each over the next likely, in units of the logits' spread."""
        tokens, leads = [], []
        for token in prompt[:-1]:
            self.logits(token)
        token = prompt[-1]
        for _ in range(count):
            logits = self.logits(token)
            token = int(np.argmax(logits))
            leads.append(float(logits[token] - np.partition(logits, -2)[-2]) / float(logits.std()))
            tokens.append(token)
        return tokens, leads


if __name__ == "__main__":  # llama.py FOLDER: a random model of the shape of Llama 3 8B, 4.7 GB
    import sys

    make(pathlib.Path(sys.argv[1]), LLAMA_3_8B)
