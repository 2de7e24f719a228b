"""Probes: the one part that runs models, each once over its inputs, for the activation and gradient metrics, and merges
on samples of their tasks.

Nothing is copied and nothing is left changed: `torch.func.functional_call` runs one module on the tensors of each
checkpoint in turn, in evaluation mode. A model's gradient is as large as the model, so that those of N models never are
in memory together: what `max_memory` does not hold goes to files, which are then read a tensor of all models at a time,
as the weights are, for the same `gram` kernel.
"""

from mergekern.functional import gathering as gathering  # so that merges find what runs models for them
