"""Writes tests/golden/dequant/: for every GGUF type raw rows and the float32 values they stand for.

  <type>.blocks  the raw bytes, as in a GGUF's tensor data
  <type>.f32     little-endian float32 [ROWS, COLS], by the `gguf` package's dequantize
  index.json     sizes, versions

The values are exact, not approximate. A float16 scale times a format's small integers is a product of at
most 22 bits (Q6_K: 25, and nothing is added), so a value is rounded once at most, and neither the order
of the factors nor a fused multiply-add changes a bit. Test with ==.
"""

import argparse
import json
import pathlib

import gguf
import numpy as np

import blocks
from versions import versions

ROWS, COLS = 4, 512
SEED = 20250301


def rows_for(rng: np.random.Generator, kind: blocks.Type) -> np.ndarray:
    """Rows 0-1 are weights as a model has them, row 2 is random bits, row 3 the corners of the format."""
    weights = (rng.standard_normal((2, COLS)) * 0.05).astype(np.float32)
    real = blocks.encode(rng, kind, weights)
    if kind not in blocks.SCALE_OFFSETS:
        wide = (rng.standard_normal((1, COLS)) * 1e3).astype(np.float32)
        corner = np.resize(np.array([0, -0.0, 1, -1, 65504, -65504, 2**-14, 2**-24, -2**-24, 3 * 2**-24,
                                     1e-30, 3e38], np.float32), (1, COLS))
        if kind == blocks.Type.F16:
            corner = np.clip(corner, -65504, 65504)
        return np.concatenate([real, blocks.encode(rng, kind, wide), blocks.encode(rng, kind, corner)])
    random = blocks.random_blocks(rng, kind, 1, COLS, 0.01)
    corner = blocks.random_blocks(rng, kind, 1, COLS, 0.01)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    cells = corner.reshape(-1, size)
    # Alternate blocks of all bits 0 and all bits 1 under scales from subnormal to the largest float16.
    scales = [2**-24, -3 * 2**-24, 2**-14, 1.0, -1.0, 65504.0, 0.0, -0.0]
    for i, cell in enumerate(cells):
        cell[:] = 0 if i % 2 == 0 else 255
        for offset in blocks.SCALE_OFFSETS[kind]:
            scale = np.array([scales[(i // 2 + offset) % len(scales)]], "<f2")
            cell[offset:offset + 2] = scale.view(np.uint8)
    return np.concatenate([real, random, corner])


def main() -> None:
    root = pathlib.Path(__file__).resolve().parents[2]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=root / "tests/golden/dequant")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    index = {"rows": ROWS, "cols": COLS, "seed": SEED, "versions": versions("gguf", "numpy"), "types": {}}
    for kind in blocks.TYPES:
        rng = np.random.default_rng([SEED, int(kind)])
        raw = rows_for(rng, kind)
        assert raw.shape == (ROWS, blocks.bytes_per_row(kind, COLS)), (kind, raw.shape)
        data = raw.view("<f4") if kind == blocks.Type.F32 else raw
        values = np.ascontiguousarray(gguf.dequantize(data, kind), "<f4")
        assert values.shape == (ROWS, COLS) and np.isfinite(values).all(), kind
        name = kind.name.lower()
        (out / f"{name}.blocks").write_bytes(raw.tobytes())
        (out / f"{name}.f32").write_bytes(values.tobytes())
        index["types"][name] = {"ggml_type": int(kind), "row_bytes": raw.shape[1]}
        print(f"{name}: {raw.nbytes} bytes, deviation of rows 0-1 {values[:2].std():.4f}, "
              f"largest {np.abs(values).max():.4g}")
    (out / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
