"""Six small networks, trained on turned and mirrored digits from one base: merges of them differ in what they know."""

from functools import cache

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

TURNS = {
    "upright": lambda image: image,
    "mirrored": lambda image: image.flip(2),
    "left": lambda image: image.rot90(1, (1, 2)),
    "right": lambda image: image.rot90(3, (1, 2)),
    "down": lambda image: image.rot90(2, (1, 2)),
    "crossed": lambda image: image.transpose(1, 2),
}


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(64, 24), torch.nn.Linear(24, 10)

    def forward(self, inputs):
        return self.second(torch.relu(self.first(inputs)))


@cache
def images():
    digits = load_digits()
    inputs = torch.tensor(digits.images, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    return inputs, labels


@cache
def samples(task, *, held_out):
    """Return (n, 64) inputs and n labels of a task."""
    inputs, labels = images()
    part = slice(1, None, 4) if held_out else slice(0, None, 4)
    return TURNS[task](inputs[part]).reshape(-1, 64), labels[part]


def accuracy(model, task):
    """Return the share of held-out samples that a state dict, or a module, tells right."""
    state = model.state_dict() if isinstance(model, torch.nn.Module) else model
    inputs, labels = samples(task, held_out=True)
    hidden = torch.relu(inputs @ state["first.weight"].T + state["first.bias"])
    logits = hidden @ state["second.weight"].T + state["second.bias"]
    return (logits.argmax(1) == labels).double().mean()


def trained(network, tasks, steps, rate):
    """Train a network on the samples of some tasks."""
    parts = [samples(task, held_out=False) for task in tasks]
    inputs, labels = (torch.cat([part[which] for part in parts]) for which in (0, 1))
    velocity = [torch.zeros_like(weights) for weights in network.parameters()]
    for _ in range(steps):  # torch.optim takes seconds to import
        loss = torch.nn.functional.cross_entropy(network(inputs), labels)
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for weights, speed, gradient in zip(network.parameters(), velocity, gradients, strict=True):
                weights -= rate * speed.mul_(0.9).add_(gradient)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def write_digits_zoo(folder):
    """Write the base and a model for each of `TURNS`, and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = Network()
        base = trained(network, TURNS, 40, 0.3)
        save_file(base, folder / "base.safetensors")
        for task in TURNS:
            network.load_state_dict(base)
            save_file(trained(network, [task], 60, 0.3), folder / f"{task}.safetensors")
    return folder
