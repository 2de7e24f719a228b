"""Output heads that are the embedding: files leave one of two tied tensors out, or hold it twice.

A folder means what transformers makes of it (`PreTrainedModel.tie_weights`): where `tie_word_embeddings` is not false,
a head that the file lacks is the embedding; where the file holds both, they are tied if they are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch

from mergekern.checkpoints.checkpoint import Checkpoint
from mergekern.checkpoints.configuration import TIE
from mergekern.checkpoints.names import canonical

# Ends of the names of what transformers ties to embeddings: heads, and the embeddings of encoders and decoders.
_HEADS = (
    "lm_head.weight", "embed_out.weight", "proj_out.weight", "predictions.decoder.weight", "lm_head.decoder.weight",
    "generator_lm_head.weight", "vocab_projector.weight", "pred_layer.proj.weight", "lm_loss.weight", "head.weight",
    "output.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight",
)  # fmt: skip
# Ends of the names of embeddings of tokens, the likelier ones first.
_EMBEDDINGS = (
    "shared.weight", "embed_tokens.weight", "wte.weight", "word_embeddings.weight", "tok_embeddings.weight",
    "embed_in.weight", "word_embedding.weight", "backbone.embeddings.weight", "transformer.embeddings.weight",
    "backbone.embedding.weight", "rwkv.embeddings.weight",
)  # fmt: skip
# Biases of heads that are tied to another one: cls.predictions.decoder.bias to cls.predictions.bias.
_BIAS = ".decoder.bias"
# Kinds of models that tie unless their configuration says otherwise; it leaves out what is the default of its kind.
_TIED_BY_DEFAULT = frozenset({
    "albert", "bart", "bert", "big_bird", "bigbird_pegasus", "blenderbot", "blenderbot-small", "bloom", "camembert",
    "cohere", "cohere2", "convbert", "ctrl", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "falcon",
    "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gpt2", "gpt_bigcode", "gpt_neo", "led", "longformer",
    "longt5", "m2m_100", "mamba", "marian", "mbart", "mobilebert", "modernbert", "mpnet", "mpt", "mt5", "mvp",
    "openai-gpt", "opt", "pegasus", "plbart", "prophetnet", "roberta", "roformer", "smollm3", "starcoder2",
    "switch_transformers", "t5", "umt5", "whisper", "xglm", "xlm", "xlm-roberta", "xlnet",
})  # fmt: skip
# Elements that are compared at a time.
_COMPARED = 1 << 22


def tie_heads(
    base: Checkpoint,
    models: Sequence[Checkpoint],
    *,
    factored: Set[str] = frozenset(),
    saved: Set[str] = frozenset(),
    is_language_model: bool = False,
) -> None:
    """Give heads and embeddings that only some of the files hold to those checkpoints that tie them.

    Weights are read where one file holds both and another one does not, or holds both although its configuration says
    that they are tied; and only these two.

    Args:
        base: with the names by which models are matched.
        models: those that hold tensors whole.
        factored: tensors that adapters change by factors: both of a tied pair.
        saved: tensors that adapters save whole: that one alone.
        is_language_model: whether the adapters say that their base has a head over the vocabulary.
    """
    odd = dict.fromkeys(sorted(factored | saved))
    for model in models:
        if model.tensors.keys() != base.tensors.keys():
            odd |= dict.fromkeys(sorted(model.tensors.keys() ^ base.tensors.keys()))
    touched = factored | saved
    pairs: dict[str, str] = {}
    for head in filter(is_head, odd):
        shape = next((c.tensors[head].shape for c in (base, *models) if head in c.tensors), None)
        if kept := embedding_of(head, base, shape):
            pairs[head] = kept
    if not touched.isdisjoint(name for name in base.tensors if any(_ends(name, end) for end in _EMBEDDINGS)):
        for head, kept in heads_of(base).items():
            is_told_apart = kept in saved and (is_language_model or says_tied(base.config))
            if kept in touched and (head in base.tensors or is_told_apart):
                pairs.setdefault(head, kept)
    if says_tied(base.config):
        pairs = {head: kept for head, kept in heads_of(base).items() if head in base.tensors} | pairs
    for head, kept in pairs.items():
        _tie(head, kept, base, models, is_touched=not touched.isdisjoint((head, kept)))


def _tie(head: str, kept: str, base: Checkpoint, models: Sequence[Checkpoint], *, is_touched: bool) -> None:
    if head not in base.tensors and _may_tie(base, True, is_body=_is_body(base, kept, models)):
        base.tie(head, kept)
    elif head in base.tensors:
        _tie_copies(base, head, kept, says_so=says_tied(base.config) or not base.config or not is_touched)
    is_tied = head in base.tensors and base.tensors[head].storage == base.tensors[kept].storage
    for model in models:
        if kept not in model.tensors:
            continue
        if head not in model.tensors:
            if _may_tie(model, is_tied, is_body=_is_body(model, kept, [base])):
                model.tie(head, kept)
        elif is_tied and not _tie_copies(model, head, kept):
            model.notes.append(f"its {head!r} differs from its {kept!r}, which the base ties")


def _tie_copies(checkpoint: Checkpoint, head: str, kept: str, *, says_so: bool = True) -> bool:
    """Tie two tensors that are equal, unless the configuration says that they are not tied; return whether they are."""
    first, second = checkpoint.tensors[head], checkpoint.tensors[kept]
    if first.storage == second.storage:
        return True
    if not says_so or checkpoint.config.get(TIE) is False or not same_values(checkpoint, head, kept):
        return False
    checkpoint.tie(head, kept)
    return True


def _may_tie(checkpoint: Checkpoint, is_tied_elsewhere: bool, *, is_body: bool) -> bool:
    """Tell whether a head that a checkpoint lacks is its embedding, and not simply no part of it.

    Args:
        checkpoint: a model without the head.
        is_tied_elsewhere: what holds where it has no configuration.
        is_body: whether it looks like a body that was saved alone, which only its configuration's word outweighs.
    """
    tie = _tie_of(checkpoint.config)
    if tie is None:
        return not is_body and not _is_headless(checkpoint.config) and (bool(checkpoint.config) or is_tied_elsewhere)
    return tie and not _is_headless(checkpoint.config)


def says_tied(config: Mapping[str, Any]) -> bool:
    """Tell whether a configuration says that the model ties its head; what it leaves out is the default of its kind.

    >>> says_tied({"model_type": "gpt2"}), says_tied({"model_type": "llama"}), says_tied({TIE: True})
    (True, False, True)
    """
    tie = _tie_of(config)
    return str(config.get("model_type")) in _TIED_BY_DEFAULT if tie is None else tie


def _tie_of(config: Mapping[str, Any]) -> bool | None:
    """Return what a configuration says itself: its own word first, else that of its language model."""
    nested = (config.get(name) for name in ("text_config", "llm_config", "language_config", "decoder"))
    for each in (config, *nested):
        if isinstance(each, Mapping) and isinstance(each.get(TIE), bool):
            return each[TIE]
    return None


def _is_headless(config: Mapping[str, Any]) -> bool:
    """Tell whether the architecture has no head over the vocabulary: a body alone, or a classifier."""
    named = config.get("architectures")
    named = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    heads = ("LMHead", "CausalLM", "ConditionalGeneration", "MaskedLM", "PreTraining", "DoubleHeads", "LM")
    return bool(named) and not any(head in name for name in named for head in heads)


def _is_body(checkpoint: Checkpoint, kept: str, others: Sequence[Checkpoint]) -> bool:
    """Tell whether a checkpoint calls its embedding by fewer parts than others do, as if saved without head."""
    parts = canonical(checkpoint.tensors[kept].name).count(".")
    return any(kept in o.tensors and canonical(o.tensors[kept].name).count(".") > parts for o in others)


def tying_of(base: Checkpoint, stored: Iterable[str]) -> bool | None:
    """Return whether a result like a base must say that it ties head and embedding, or that it does not.

    Args:
        base: as it is after `tie_heads`.
        stored: the tensors that the result holds.

    Returns:
        False where it holds both of a pair that the base or its configuration ties; True where the base's file holds
        both, which are equal, and the result one; None where the base's own word is right.
    """
    stored = set(stored)
    storages = [tensor.storage for name, tensor in base.tensors.items() if name in stored]
    pairs = heads_of(base).items() if says_tied(base.config) else ()
    if len(set(storages)) < len(storages) or any({head, kept} <= stored for head, kept in pairs):
        return False
    copies = [name for name, tensor in base.tensors.items() if tensor.name != name and name in base.order]
    return True if any(name not in stored for name in copies) else None


def heads_of(base: Checkpoint) -> dict[str, str]:
    """Return the heads that a base may tie, held or not, each with its embedding."""
    found: dict[str, str] = {}
    for name in base.tensors:
        if is_head(name) and (kept := embedding_of(name, base, base.tensors[name].shape)):
            found[name] = kept
    if found or _is_headless(base.config):
        return found
    head = _name_of_head(base)
    kept = embedding_of(head, base, None)
    return {head: kept} if kept else {}


def _name_of_head(base: Checkpoint) -> str:
    """Return what the head of a base is called that does not hold it."""
    if any(name.startswith("cls.predictions.") for name in base.tensors):
        return "cls.predictions.decoder.weight"
    if "lm_head.bias" in base.tensors and "lm_head.dense.weight" in base.tensors:
        return "lm_head.decoder.weight"
    return {"whisper": "proj_out.weight"}.get(str(base.config.get("model_type")), "lm_head.weight")


def embedding_of(head: str, checkpoint: Checkpoint, shape: tuple[int, ...] | None) -> str | None:
    """Return the tensor that a head is tied to, if a checkpoint has just one that may be; None otherwise.

    Args:
        head: its name.
        checkpoint: where the embedding is looked for.
        shape: shape of the head; None where it is not known.
    """
    if head.endswith(_BIAS):
        kept = head.removesuffix(_BIAS) + ".bias"
        return kept if kept in checkpoint.tensors and checkpoint.tensors[kept].shape == shape else None
    for end in _EMBEDDINGS:
        found = [
            name
            for name, tensor in checkpoint.tensors.items()
            if name != head and _ends(name, end) and len(tensor.shape) == 2 and shape in (None, tensor.shape)
        ]
        decoders = [name for name in found if ".decoder." in f".{name}"]
        found = decoders if len(found) > 1 and len(decoders) == 1 else found
        if len({checkpoint.tensors[name].storage for name in found}) == 1:
            return found[0]
    return None


def is_head(name: str) -> bool:
    """Tell whether a tensor is one that transformers ties to embeddings, by the end of its name."""
    return name.endswith(_BIAS) or any(_ends(name, end) for end in _HEADS)


def is_embedding(name: str) -> bool:
    """Tell whether a tensor is an embedding of tokens, by the end of its name."""
    return any(_ends(name, end) for end in _EMBEDDINGS)


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def same_values(checkpoint: Checkpoint, name: str, other: str) -> bool:
    """Tell whether two tensors of a checkpoint are equal, bit for bit, without holding either whole.

    >>> from mergekern.checkpoints import open_checkpoint
    >>> same_values(open_checkpoint({"a": torch.ones(2), "b": torch.ones(2)}), "a", "b")
    True
    """
    first, second = checkpoint.tensors[name], checkpoint.tensors[other]
    if first.shape != second.shape or first.read_dtype != second.read_dtype:
        return False
    return all(
        torch.equal(
            checkpoint.read_range(name, start, min(start + _COMPARED, first.count)),
            checkpoint.read_range(other, start, min(start + _COMPARED, first.count)),
        )
        for start in range(0, first.count, _COMPARED)
    )
