"""Small models, LoRA adapters of them as PEFT saves them, and the models that PEFT merges them into."""

import copy
import json
import warnings

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)


class Convolutions(nn.Module):
    """Convolutions of one and two dimensions, plain and pointwise, and attention of torch."""

    def __init__(self):
        super().__init__()
        self.wide, self.point = nn.Conv2d(3, 10, 3), nn.Conv2d(10, 8, 1)
        self.along, self.attention = nn.Conv1d(6, 9, 3), nn.MultiheadAttention(12, 2)
        self.grouped = nn.Conv2d(4, 8, 3, groups=2)


def llama(**options):
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, bos_token_id=1, eos_token_id=2, **sizes, **options))


def bert():
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(n_embd=24, n_layer=1, n_head=2, vocab_size=50, n_positions=8, bos_token_id=1, eos_token_id=2)
    )


def seeded(build, seed=0):
    """Return a model in float64, in which PEFT's own merge is good to the last bits."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build().double()
        for name, values in model.named_parameters():
            if name.endswith("bias"):  # zero biases would test nothing
                nn.init.normal_(values)
    return model


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def adapt(model, folder, seed=0, scale=0.1, merge=True, **options):
    """Save a random adapter of a model to a folder, and return the state dict of the model that it is merged into."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        adapted = get_peft_model(copy.deepcopy(model), LoraConfig(**options))
        for values in adapted.parameters():
            if values.requires_grad:
                nn.init.normal_(values, std=scale)
        adapted.save_pretrained(folder)
        return state(adapted.merge_and_unload()) if merge else {}


def configure(folder, **changes):
    """Change the configuration of a saved adapter."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
