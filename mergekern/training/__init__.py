"""Training: regularizers that keep models mergeable while they are fine-tuned."""

from mergekern.training import regularizers

__all__ = ["regularizers"]
