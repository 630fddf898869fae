"""Read the 4-bit weights that LMDeploy packs (AWQ, layout gemm) back into a Hugging Face directory of float32.

    python -m training.awq_weights runs/finetune-.../awq OUT

in the training environment. LMDeploy computes with them on a GPU alone; read back, their rounding, which is what they
cost, can be measured anywhere: ``python -m training.parity`` does.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_server import model_source

# Shapes: I inputs, O outputs of a layer, G inputs that share a scale.

PLACES = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight neighbouring outputs each of an integer's eight 4-bit parts is, lowest part first (LMDeploy 0.18,
lite/quantization/modules/linear.py)."""
_PARTS = (".qweight", ".qzeros", ".scales")


def unpacked(packed: Tensor) -> Tensor:
    """(..., O / 8) int32 to (..., O) of 0 to 15."""
    values = torch.empty(*packed.shape[:-1], packed.shape[-1] * 8, dtype=torch.int32)
    for part, place in enumerate(PLACES):
        values[..., place::8] = (packed >> (4 * part)) & 15
    return values


def dequantised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by name, float32; a packed one is scale * (value - zero), with a scale and a zero for each group."""
    weights = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith(_PARTS)}
    for name in (name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")):
        values, zeros = (unpacked(tensors[f"{name}.{part}"]) for part in ("qweight", "qzeros"))  # (I, O), (I / G, O)
        scales = tensors[f"{name}.scales"].float()  # (I / G, O)
        group = len(values) // len(scales)
        values = values - zeros.repeat_interleave(group, 0)
        weights[f"{name}.weight"] = (values * scales.repeat_interleave(group, 0)).t().contiguous()
    return weights


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 2 or {"-h", "--help"} & set(arguments):
        print(__doc__, file=sys.stderr)
        return 0 if {"-h", "--help"} & set(arguments) else 2
    source, out = map(Path, arguments)
    try:
        config = json.loads((source / "config.json").read_bytes())
        method = (config.pop("quantization_config", None) or {}).get("quant_method")
    except (OSError, ValueError) as error:
        print(f"{source / 'config.json'} cannot be read: {error}", file=sys.stderr)
        return 2
    if method != "awq" or out.exists():
        why = f"{out} is there already" if out.exists() else f"{source} has no AWQ weights (quant_method: {method})"
        print(f"{why}: name the awq folder of a run, and a folder that does not exist", file=sys.stderr)
        return 2
    out.mkdir(parents=True)
    save_file(dequantised(load_file(source / "model.safetensors")), out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_text(json.dumps(config | {"dtype": "float32"}, indent=2) + "\n", encoding="utf-8")
    for path in source.iterdir():
        if path.suffix in {".json", ".jinja"} and path.name not in {"config.json", model_source.MANIFEST}:
            shutil.copyfile(path, out / path.name)
    print(json.dumps({"out": str(out)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
