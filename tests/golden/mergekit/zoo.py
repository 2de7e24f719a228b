"""Zoo A: a tiny LLaMA base and four fine-tunes of it as Hugging Face folders, and a bfloat16 base with two.

    python zoo.py FOLDER    writes FOLDER/tiny/base, FOLDER/tiny/code, ...; recipes name models relative to FOLDER.

Bit for bit the same everywhere: numpy's PCG64, products summed rank by rank without BLAS.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file


@dataclasses.dataclass(frozen=True)
class Spec:
    seed: int = 20
    family: str = "tiny"
    names: tuple = ("code", "math", "chat", "logic")
    vocabulary: int = 80
    hidden: int = 32
    intermediate: int = 56
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    tied: bool = False
    rank: int = 3
    scale: float = 0.02
    frozen_layer: int = 1  # the last fine-tune leaves this layer as it is in the base


def shapes(spec):
    h, m = spec.hidden, spec.intermediate
    kv = h // spec.heads * spec.kv_heads
    out = {"model.embed_tokens.weight": (spec.vocabulary, h)}
    for i in range(spec.layers):
        p = f"model.layers.{i}."
        out |= {
            p + "input_layernorm.weight": (h,),
            p + "self_attn.q_proj.weight": (h, h),
            p + "self_attn.k_proj.weight": (kv, h),
            p + "self_attn.v_proj.weight": (kv, h),
            p + "self_attn.o_proj.weight": (h, h),
            p + "post_attention_layernorm.weight": (h,),
            p + "mlp.gate_proj.weight": (m, h),
            p + "mlp.up_proj.weight": (m, h),
            p + "mlp.down_proj.weight": (h, m),
        }
    out["model.norm.weight"] = (h,)
    if not spec.tied:
        out["lm_head.weight"] = (spec.vocabulary, h)
    return out


def low_rank(rng, shape, rank):
    a, b = rng.standard_normal((shape[0], rank)), rng.standard_normal((rank, shape[1]))
    return sum(a[:, r : r + 1] * b[r : r + 1] for r in range(rank)) / np.sqrt(rank)


def make(spec=Spec()):
    """The base and the fine-tunes, as dicts of float64 arrays."""
    rng = np.random.default_rng(spec.seed)
    base, tuned = {}, [{} for _ in spec.names]
    for name, shape in shapes(spec).items():
        if len(shape) == 1:
            base[name] = 1 + 0.1 * rng.standard_normal(shape)
            shared = rng.standard_normal(shape)
        else:
            base[name] = rng.standard_normal(shape) * spec.hidden**-0.5
            shared = low_rank(rng, shape, spec.rank)
        small = 0.1 if "k_proj" in name else 1.0  # two k_proj are nearly parallel, as real fine-tunes are
        for i, state in enumerate(tuned):
            own = rng.standard_normal(shape) if len(shape) == 1 else low_rank(rng, shape, spec.rank)
            noise = rng.standard_normal(shape)
            sign = -0.4 if i == 2 else 0.7  # the third model pulls against the others
            delta = small * spec.scale * (0.7 + 0.3 * i) * (sign * shared + own + 0.3 * noise)
            if i == len(tuned) - 1 and f".layers.{spec.frozen_layer}." in name:
                delta = 0 * delta
            state[name] = base[name] + delta
    return base, tuned


def config(spec, dtype):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "vocab_size": spec.vocabulary,
        "tie_word_embeddings": spec.tied,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
    }


def tokenizer(spec):
    special = ["<unk>", "<s>", "</s>"]
    words = special + [f"w{i}" for i in range(len(special), spec.vocabulary)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "added_tokens": [
            {
                "id": i,
                "content": w,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, w in enumerate(special)
        ],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {w: i for i, w in enumerate(words)}, "unk_token": "<unk>"},
    }


def save(folder, state, spec, dtype):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: torch.from_numpy(v).to(torch.float32).to(getattr(torch, dtype)) for k, v in state.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config(spec, dtype), indent=2))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(spec)))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "unk_token": "<unk>",
                "bos_token": "<s>",
                "eos_token": "</s>",
            }
        )
    )


def write(folder, spec=Spec()):
    base, tuned = make(spec)
    folder = pathlib.Path(folder) / spec.family
    for name, state in zip(("base", *spec.names), (base, *tuned), strict=False):
        save(folder / name, state, spec, "float32")
    for name, state in zip(("base", *spec.names[:2]), (base, *tuned), strict=False):
        save(folder / f"{name}-bf16", state, spec, "bfloat16")


if __name__ == "__main__":
    write(sys.argv[1])
