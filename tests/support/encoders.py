"""Small encoders of three kinds, and zoos of them with samples and heads."""

from dataclasses import dataclass

import torch
from torch import nn

from mergekern import Calibration


class Transformer(nn.Module):
    """Images (n, 1, 6, 6) to features (n, 12); its blocks give tokens (n, 5, 12)."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 12, 3, stride=3)
        self.first_token = nn.Parameter(torch.zeros(1, 1, 12))
        blocks = [nn.TransformerEncoderLayer(12, 2, 20, dropout=0.4, batch_first=True) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.blocks(torch.cat([self.first_token.expand(len(images), -1, -1), tokens], dim=1))[:, 0]


class Convolutions(nn.Module):
    """Images (n, 3, 6, 6) to features (n, 8); with batch normalisation, dropout and two layers of one weight."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.up, self.down = nn.Linear(8, 8), nn.Linear(8, 8)
        self.down.weight = self.up.weight
        self.unused = nn.Linear(2, 2)

    def forward(self, images):
        values = self.body(images).mean(dim=(2, 3))
        return self.down(nn.functional.gelu(self.up(values)))


class Text(nn.Module):
    """Token ids and masks (n, length) to features (n, 10); positions are a buffer that no state dict holds."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 10)
        self.register_buffer("positions", torch.linspace(-1, 1, 90).view(9, 10), persistent=False)
        self.register_buffer("order", torch.arange(9))
        self.block = nn.TransformerEncoderLayer(10, 2, 16, dropout=0.2, batch_first=True)

    def forward(self, input_ids, attention_mask=None):
        tokens = self.embed(input_ids) + self.positions[self.order[: input_ids.shape[1]]]
        hidden = self.block(tokens, src_key_padding_mask=attention_mask == 0)
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


@dataclass
class Case:
    """A zoo: state dicts and modules by name, (inputs, labels, head) by name, and where activations are taken."""

    make: type
    base: dict
    models: dict
    tasks: dict
    layer: str
    input_layer: str | None = None

    def calibration(self, **options):
        model = options.pop("model", None) or self.make()
        tasks = options.pop("tasks", self.tasks)
        return Calibration(model, tasks, options.pop("layer", self.layer), input_layer=self.input_layer, **options)

    def module(self, name, dtype=torch.float32):
        module = self.make().to(dtype)
        module.load_state_dict(self.models[name])
        return module


def make_case(kind, models=3, samples=10, dtype=torch.float32):
    """Return a zoo of "transformer", "convolutions" or "text" encoders; weights and samples in a dtype."""
    make, layer, width, input_layer = {
        "transformer": (Transformer, "blocks.0", 12, None),
        "convolutions": (Convolutions, "body", 8, None),
        "text": (Text, "block", 10, "embed"),
    }[kind]
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=draw).to(dtype)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = {name: v.to(dtype) if v.is_floating_point() else v for name, v in make().state_dict().items()}
    state_dicts, tasks = {}, {}
    for index in range(models):
        state = {name: v.clone() for name, v in base.items()}
        for name, values in state.items():
            if name.endswith("running_var"):
                values.add_(normal(*values.shape).abs())
            elif values.is_floating_point():
                values.add_(0.2 * normal(*values.shape))
        if kind == "convolutions":
            state["down.weight"] = state["up.weight"]
        count = samples[index] if isinstance(samples, list) else samples
        shape = {"transformer": (1, 6, 6), "convolutions": (3, 6, 6)}.get(kind)
        if shape is None:
            lengths = torch.randint(2, 9, (count, 1), generator=draw)
            inputs = {
                "input_ids": torch.randint(30, (count, 9), generator=draw),
                "attention_mask": (torch.arange(9) < lengths).long(),
            }
        else:
            inputs = normal(count, *shape)
        classes = 3 + index
        labels = torch.randint(classes, (count,), generator=draw)
        name = f"m{index}"
        state_dicts[name], tasks[name] = state, (inputs, labels, (normal(classes, width), normal(classes)))
    return Case(make, base, state_dicts, tasks, layer, input_layer)
