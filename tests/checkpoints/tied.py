"""A module with tied weights, and what a checkpoint of it must keep."""

import torch

from tests.support.checkpoint_files import assert_same


class Tied(torch.nn.Module):
    """An embedding and a head that share one weight."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5)
        self.head.weight = self.embed.weight


def assert_tied(checkpoint, tensor, *names):
    assert len({checkpoint.tensors[name].storage for name in names}) == 1
    for name in names:
        assert_same(checkpoint.read(name), tensor)
