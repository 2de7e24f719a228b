"""Zoos of several architectures and vocabularies, tiny and random, as folders of Hugging Face.

    python -m tests.golden.mergekit.wider.zoo FOLDER

Bit for bit the same everywhere: numpy's PCG64, no products.
"""

import json
import pathlib
import sys

import numpy as np
import torch
from safetensors.torch import save_file

HIDDEN, INNER, LAYERS, TOKENS = 8, 12, 3, 24


def llama(layers=LAYERS, tied=False, biases=False, vocabulary=TOKENS):
    found = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name, rows in {"q": HIDDEN, "k": HIDDEN // 2, "v": HIDDEN // 2, "o": HIDDEN}.items():
            found[f"{at}self_attn.{name}_proj.weight"] = (rows, HIDDEN)
            if biases and name != "o":
                found[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        found |= {
            f"{at}mlp.gate_proj.weight": (INNER, HIDDEN),
            f"{at}mlp.up_proj.weight": (INNER, HIDDEN),
            f"{at}mlp.down_proj.weight": (HIDDEN, INNER),
            f"{at}input_layernorm.weight": (HIDDEN,),
            f"{at}post_attention_layernorm.weight": (HIDDEN,),
        }
    found["model.norm.weight"] = (HIDDEN,)
    return found if tied else {**found, "lm_head.weight": (vocabulary, HIDDEN)}


def gpt2(prefix="transformer."):
    found = {f"{prefix}wte.weight": (TOKENS, HIDDEN), f"{prefix}wpe.weight": (16, HIDDEN)}
    for layer in range(LAYERS):
        at = f"{prefix}h.{layer}."
        for name, shape in {
            "attn.c_attn": (HIDDEN, 3 * HIDDEN),
            "attn.c_proj": (HIDDEN, HIDDEN),
            "mlp.c_fc": (HIDDEN, INNER),
            "mlp.c_proj": (INNER, HIDDEN),
        }.items():
            found |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[1:]}
        for name in ("ln_1", "ln_2"):
            found |= {f"{at}{name}.weight": (HIDDEN,), f"{at}{name}.bias": (HIDDEN,)}
    return found | {f"{prefix}ln_f.weight": (HIDDEN,), f"{prefix}ln_f.bias": (HIDDEN,)}


def bert():
    at = "bert.embeddings."
    found = {
        f"{at}word_embeddings.weight": (TOKENS, HIDDEN),
        f"{at}position_embeddings.weight": (16, HIDDEN),
        f"{at}token_type_embeddings.weight": (2, HIDDEN),
    }
    layers = [f"bert.encoder.layer.{layer}." for layer in range(LAYERS)]
    dense = {f"{at}{part}": (HIDDEN, HIDDEN) for at in layers for part in (
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")}  # fmt: skip
    dense |= {f"{at}intermediate.dense": (INNER, HIDDEN) for at in layers}
    dense |= {f"{at}output.dense": (HIDDEN, INNER) for at in layers}
    dense |= {"bert.pooler.dense": (HIDDEN, HIDDEN), "cls.predictions.transform.dense": (HIDDEN, HIDDEN)}
    for name, shape in dense.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    norms = [f"{at}{part}" for at in layers for part in ("attention.output.LayerNorm", "output.LayerNorm")]
    for name in ("bert.embeddings.LayerNorm", *norms, "cls.predictions.transform.LayerNorm"):
        found |= {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}
    return found | {"cls.predictions.bias": (TOKENS,)}


def t5():
    found = {"shared.weight": (TOKENS, HIDDEN)}
    for stack, parts in {"encoder": ("SelfAttention",), "decoder": ("SelfAttention", "EncDecAttention")}.items():
        for layer in range(LAYERS):
            at = f"{stack}.block.{layer}.layer."
            for place, part in enumerate(parts):
                found |= {f"{at}{place}.{part}.{name}.weight": (HIDDEN, HIDDEN) for name in "qkvo"}
                found[f"{at}{place}.layer_norm.weight"] = (HIDDEN,)
                if layer == 0 and place == 0:
                    found[f"{at}0.SelfAttention.relative_attention_bias.weight"] = (8, 2)
            last = f"{at}{len(parts)}."
            found |= {f"{last}DenseReluDense.{name}.weight": (INNER, HIDDEN) for name in ("wi_0", "wi_1")}
            found |= {f"{last}DenseReluDense.wo.weight": (HIDDEN, INNER), f"{last}layer_norm.weight": (HIDDEN,)}
        found[f"{stack}.final_layer_norm.weight"] = (HIDDEN,)
    return found | {"lm_head.weight": (TOKENS, HIDDEN)}


def qwen2_5_vl():
    found = llama(biases=True)
    for layer in range(2):
        at = f"visual.blocks.{layer}."
        for name, shape in {
            "attn.qkv": (3 * HIDDEN, HIDDEN),
            "attn.proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        }.items():
            found |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
        found |= {f"{at}{name}.weight": (HIDDEN,) for name in ("norm1", "norm2")}
    for place in (0, 2):
        found |= {f"visual.merger.mlp.{place}.weight": (HIDDEN, HIDDEN), f"visual.merger.mlp.{place}.bias": (HIDDEN,)}
    return found | {"visual.merger.ln_q.weight": (HIDDEN,), "visual.patch_embed.proj.weight": (HIDDEN, 3, 2, 2, 2)}


def _llama_config(kind, architecture, **more):
    return {
        "architectures": [architecture], "model_type": kind, "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "vocab_size": TOKENS, "tie_word_embeddings": False, "max_position_embeddings": 64, "bos_token_id": 1,
        "eos_token_id": 2, **more,
    }  # fmt: skip


CONFIGS = {
    "llama": _llama_config("llama", "LlamaForCausalLM"),
    "mistral": _llama_config("mistral", "MistralForCausalLM"),
    "qwen2": _llama_config("qwen2", "Qwen2ForCausalLM", tie_word_embeddings=True),
    "gemma": _llama_config("gemma", "GemmaForCausalLM", tie_word_embeddings=True),
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 2,
        "n_inner": INNER, "n_positions": 16, "vocab_size": TOKENS,
    },
    "bert": {
        "architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": HIDDEN, "intermediate_size": INNER,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "vocab_size": TOKENS, "max_position_embeddings": 16,
    },
    "t5": {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": HIDDEN, "d_ff": INNER,
        "d_kv": 4, "num_heads": 2, "num_layers": LAYERS, "num_decoder_layers": LAYERS, "vocab_size": TOKENS,
        "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "relative_attention_num_buckets": 8,
    },
}  # fmt: skip
_TEXT = _llama_config("qwen2_5_vl_text", "Qwen2ForCausalLM")
CONFIGS["qwen2_5_vl"] = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl", "tie_word_embeddings": False,
    "text_config": {key: value for key, value in _TEXT.items() if key != "architectures"},
    "vision_config": {"model_type": "qwen2_5_vl", "depth": 2, "hidden_size": HIDDEN, "num_heads": 2,
                      "intermediate_size": INNER, "out_hidden_size": HIDDEN},
}  # fmt: skip
# The tokens that a tokenizer was trained on: of two letters each, as merges of one make them.
SPECIAL = ["<unk>", "<s>", "</s>"]
LETTERS = ["a", "b", "c", "d", "e", "f"]
PAIRS = [f"{first}{second}" for first in LETTERS for second in LETTERS]


def tokenizer(pairs, added):
    """A tokenizer of pairs of letters, with tokens added after them."""
    trained = [*SPECIAL, *LETTERS, *pairs]
    entries = [(number, token) for number, token in enumerate(SPECIAL)]
    entries += [(len(trained) + number, token) for number, token in enumerate(added)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None,
        "added_tokens": [{"id": number, "content": token, **flags} for number, token in entries],
        "post_processor": None, "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "vocab": {token: number for number, token in enumerate(trained)},
            "merges": [" ".join(pair) for pair in pairs],
        },
    }  # fmt: skip


def save(folder, tensors, config, tokens=(PAIRS[:15], ()), shards=1, dtype=torch.float32):
    folder.mkdir(parents=True, exist_ok=True)
    names = list(tensors)
    files = [f"model-{part + 1:05}-of-{shards:05}.safetensors" for part in range(shards)]
    files = files if shards > 1 else ["model.safetensors"]
    for part, file in enumerate(files):
        own = {name: torch.from_numpy(tensors[name]).to(dtype) for name in names[part::shards]}
        save_file(own, folder / file, metadata={"format": "pt"})
    if shards > 1:
        weights = {name: files[place % shards] for place, name in enumerate(names)}
        total = sum(array.nbytes for array in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weights}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"torch_dtype": "float32", **config}, indent=2))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(*tokens)))
    of_tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**of_tokenizer, "eos_token": "</s>"}))


def write(folder):
    folder = pathlib.Path(folder)
    kinds = {
        "llama": llama(), "mistral": llama(), "qwen2": llama(tied=True, biases=True), "gemma": llama(tied=True),
        "gpt2": gpt2(), "bert": bert(), "t5": t5(), "qwen2_5_vl": qwen2_5_vl(),
    }  # fmt: skip
    rng = np.random.default_rng(7)
    for kind, shapes in kinds.items():
        base = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
        save(folder / kind / "base", base, CONFIGS[kind])
        for place, name in enumerate(("one", "two", "three")):
            tuned = {
                each: tensor + rng.normal(0, 0.05, tensor.shape).astype(np.float32) for each, tensor in base.items()
            }
            if kind == "gpt2" and name == "two":  # As saved from GPT2Model.
                tuned = {each.removeprefix("transformer."): tensor for each, tensor in tuned.items()}
            save(folder / kind / name, tuned, CONFIGS[kind], shards=3 if (kind, place) == ("mistral", 1) else 1)
    _vocabularies(folder / "tokens", rng)
    _adapter(folder / "llama" / "lora", rng)
    _others(folder, rng)


def _adapter(folder, rng):
    """An adapter of llama/base: the queries of all layers, and one feed-forward."""
    tensors = {}
    for name in [*(f"layers.{layer}.self_attn.q_proj" for layer in range(LAYERS)), "layers.1.mlp.down_proj"]:
        columns = INNER if "down" in name else HIDDEN
        for part, shape in {"A": (2, columns), "B": (HIDDEN, 2)}.items():
            values = rng.normal(0, 0.2, shape).astype(np.float32)
            tensors[f"base_model.model.model.{name}.lora_{part}.weight"] = torch.from_numpy(values)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"], "bias": "none",
        "task_type": "CAUSAL_LM", "base_model_name_or_path": "llama/base", "fan_in_fan_out": False,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _others(folder, rng):
    """A deeper model, one in bfloat16, and one that holds the head that others tie."""
    deep = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in llama(layers=5).items()}
    save(folder / "llama" / "deep", deep, {**CONFIGS["llama"], "num_hidden_layers": 5})
    half = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in llama().items()}
    save(folder / "llama" / "half", half, {**CONFIGS["llama"], "torch_dtype": "bfloat16"}, dtype=torch.bfloat16)
    head = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in llama(biases=True).items()}
    save(folder / "qwen2" / "untied", head, {**CONFIGS["qwen2"], "tie_word_embeddings": False})


def _vocabularies(folder, rng):
    """Models of one base with tokens of their own: added, in another order, fewer, and with rows that are no tokens."""
    kinds = {
        "base": ((PAIRS[:15], ()), TOKENS, TOKENS),
        "added": ((PAIRS[:15], ("<|im_start|>", "<|im_end|>")), TOKENS + 2, TOKENS + 2),
        "other": ((PAIRS[12:2:-1], ("<|im_end|>", "<pad>")), 21, 21),
        "padded": ((PAIRS[:15], ("<|im_start|>",)), 32, 32),
        "short": ((PAIRS[:15], ("[PAD]",)), TOKENS, TOKENS),
    }
    base = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in llama(layers=2).items()}
    for kind, (tokens, rows, size) in kinds.items():
        tuned = dict(base)
        for name, shape in llama(layers=2, vocabulary=rows).items():
            held = base[name] if base[name].shape == shape else rng.normal(0, 0.3, shape).astype(np.float32)
            tuned[name] = held + rng.normal(0, 0.05, shape).astype(np.float32) * (kind != "base")
        save(folder / kind, tuned, {**CONFIGS["llama"], "num_hidden_layers": 2, "vocab_size": size}, tokens)


if __name__ == "__main__":
    write(sys.argv[1])
