"""Raw tensor data in each GGUF type the loader knows.

The `gguf` package quantises the legacy formats; for the K formats, which it can only dequantise, blocks
are made of random bits under scales that are finite and of a sensible size.
"""

import gguf
import numpy as np

Type = gguf.GGMLQuantizationType

TYPES = [Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0,
         Type.Q4_K, Type.Q5_K, Type.Q6_K]

# Where the float16 scales of a block lie, in bytes from its start.
SCALE_OFFSETS = {Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0],
                  Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}


def bytes_per_row(kind: Type, cols: int) -> int:
    block, size = gguf.GGML_QUANT_SIZES[kind]
    if cols % block:
        raise ValueError(f"{kind.name} needs rows of multiples of {block}, not {cols}")
    return cols // block * size


def random_blocks(rng: np.random.Generator, kind: Type, rows: int, cols: int, scale: float) -> np.ndarray:
    """uint8 [rows, bytes_per_row]: every bit random but the scales', which lie in +-[scale/2, scale]."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (rows * (cols // block), size), dtype=np.uint8)
    for offset in SCALE_OFFSETS[kind]:
        values = scale * rng.uniform(0.5, 1, len(raw)) * rng.choice([-1, 1], len(raw))
        raw[:, offset:offset + 2] = values.astype("<f2").view(np.uint8).reshape(-1, 2)
    return raw.reshape(rows, bytes_per_row(kind, cols))


def encode(rng: np.random.Generator, kind: Type, values: np.ndarray) -> np.ndarray:
    """uint8 [rows, bytes_per_row] that holds float32 `values` [rows, cols] as well as `kind` can; a K
    format gets random weights of about the same deviation and mean 0 instead."""
    rows, cols = values.shape
    if kind not in (Type.Q4_K, Type.Q5_K, Type.Q6_K):
        data = gguf.quantize(values.astype(np.float32), kind)
        return np.ascontiguousarray(data).view(np.uint8).reshape(rows, bytes_per_row(kind, cols))
    raw = random_blocks(rng, kind, rows, cols, 1.0).reshape(-1, gguf.GGML_QUANT_SIZES[kind][1])
    if kind != Type.Q6_K:
        # weight = d * scale * q - dmin * min: with both scales of one sign and dmin = d * qmax / 2 the
        # weights are centred, since the 6-bit scale and min have the same mean.
        qmax = 15 if kind == Type.Q4_K else 31
        d = raw[:, 0:2].copy().view("<f2").astype(np.float32)
        raw[:, 2:4] = (d * qmax / 2).astype("<f2").view(np.uint8)
    unit = gguf.dequantize(raw, kind).std()
    for offset in SCALE_OFFSETS[kind]:
        d = raw[:, offset:offset + 2].copy().view("<f2").astype(np.float32)
        raw[:, offset:offset + 2] = (d * (values.std() / unit)).astype("<f2").view(np.uint8)
    return raw.reshape(rows, bytes_per_row(kind, cols))
