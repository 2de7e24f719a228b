"""What helps while models are fine-tuned: penalties that keep them mergeable."""

from mergekern.training import regularizers

__all__ = ["regularizers"]
