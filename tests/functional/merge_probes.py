"""Merge probes of a case, and the merges that they run."""

import torch
from torch import nn

import mergekern
from mergekern.functional.merge_probes import merge_probes


def run(case, methods, models=None, base=None, **options):
    calibration = options.pop("calibration", None) or case.calibration()
    return merge_probes(models or case.models, base or case.base, calibration=calibration, methods=methods, **options)


def catch_merges(monkeypatch):
    """Return a dictionary that fills with the merged tensors, by (method, models), as the probes run them."""
    caught, real = {}, mergekern.functional.merge_probes.open_checkpoint

    def catch(state, what):
        method, _, models = what.partition(" of ")
        caught[method, models] = state
        return real(state, what)

    monkeypatch.setattr(mergekern.functional.merge_probes, "open_checkpoint", catch)
    return caught


def linear_calibration(names, count=12, loss=nn.functional.cross_entropy, dtype=torch.float64, scale=1.0):
    draw = torch.Generator().manual_seed(0)
    inputs = scale * torch.randn(count, 20, generator=draw)
    labels = torch.arange(count) % 10 if loss is nn.functional.cross_entropy else torch.randn(count, 10, generator=draw)
    head = torch.eye(10), None
    model = nn.Linear(20, 10)
    return mergekern.Calibration(model, dict.fromkeys(names, (inputs, labels, head)), "", loss=loss, dtype=dtype)
