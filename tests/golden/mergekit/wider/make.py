"""What mergekit makes of the recipes beside this file: merged.npz and outputs.json.

    python -m tests.golden.mergekit.wider.make FOLDER [RECIPE ...]

Run it where mergekit 0.1.5 is installed, with the folder that `zoo` wrote. A recipe that mergekit refuses is named.
"""

import json
import os
import pathlib
import sys
import tempfile

import numpy as np
import torch
import yaml
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).resolve().parent


def run(content, folder):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge
    from transformers import AutoTokenizer

    options = MergeOptions(lora_merge_cache=f"{folder}/cache", allow_crimes=True, quiet=True, write_model_card=False)
    run_merge(MergeConfiguration.model_validate(content), f"{folder}/out", options=options)
    tensors = {}
    for path in sorted(pathlib.Path(folder, "out").glob("*.safetensors")):
        tensors |= load_file(path)
    config = json.loads(pathlib.Path(folder, "out/config.json").read_text())
    has_tokens = "tokenizer" in content or "tokenizer_source" in content
    return tensors, config, AutoTokenizer.from_pretrained(f"{folder}/out").get_vocab() if has_tokens else None


def main(folder, names):
    paths = sorted((HERE / "recipes").glob("*.yaml"))
    os.chdir(folder)
    merged, outputs = {}, {}
    for path in paths:
        if names and path.stem not in names:
            continue
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as place:
            try:
                tensors, config, vocabulary = run(yaml.safe_load(path.read_text()), place)
            except Exception as error:
                print(f"REFUSED {path.stem}: {type(error).__name__}: {str(error)[:300]}")
                continue
        keys = ("num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "vocab_size")
        said = {key: config[key] for key in keys if key in config}
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()})
        outputs[path.stem] = {"dtypes": dtypes, "config": said, "vocabulary": vocabulary}
        merged |= {f"{path.stem}/{name}": tensor.float().numpy() for name, tensor in tensors.items()}
    if not names:
        np.savez_compressed(HERE / "merged.npz", **merged)
        (HERE / "outputs.json").write_text(json.dumps(outputs, indent=1, sort_keys=True) + "\n")
    return merged, outputs


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
