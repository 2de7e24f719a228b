"""adapter_config.json of a LoRA adapter: the scale s of each module's factors; what else it may say is refused."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from mergekern.checkpoints.sources import ADAPTER_CONFIG
from mergekern.errors import CheckpointError

MERGE = "merge it into its base (PeftModel.merge_and_unload, save_pretrained) and give the result"
# The last release of PEFT whose options are known here.
PEFT = "0.21"
# Methods of PEFT that add inputs to a model and change no weight of it.
_PROMPTS = {
    "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT", "CPT", "CARTRIDGE",
}  # fmt: skip
# Options that say what s·BA is, those that do not touch it once it is trained, and those that make more of it.
_HONOURED = {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out", "ensure_weight_tying"}
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "eva_config", "exclude_modules",
    "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_bias",
    "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core", "merge_weights", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
    "velora_config",
}  # fmt: skip
_CHANGING = {
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora",
}  # fmt: skip
# Of `init_lora_weights`: those that leave the base as it is. Others subtract their first s·BA from it.
_INITIALISATIONS = {"true", "false", "none", "gaussian", "eva", "orthogonal", "mica"}
# Characters of patterns that Python's matcher may take exponential time for.
_BACKTRACKING = frozenset("*+?{(|")


@dataclass(frozen=True)
class AdapterOptions:
    """What an adapter's configuration says of its factors.

    Attributes:
        config: the configuration.
        source: where it came from, for messages.

    Raises:
        CheckpointError: it is no LoRA adapter, or one that means more than s·BA; a value is of no use.

    >>> AdapterOptions({"peft_type": "LORA", "r": 4, "lora_alpha": 8}, "a").scale("q_proj", 4)
    2.0
    """

    config: Mapping[str, Any]
    source: str

    def __post_init__(self) -> None:
        """Refuse what is not read."""
        kind = _word(self.config.get("peft_type")).rpartition(".")[2].upper()
        if kind in _PROMPTS:
            self._refuse(f"a {kind} adapter, which changes no weights", "leave it out: it has no task vector")
        if kind != "LORA":
            self._refuse(f"peft_type {_short(self.config.get('peft_type'))}; of adapters only LoRA is read", MERGE)
        for name, value in self.config.items():
            if value and name in _CHANGING:
                self._refuse(f"{name}={_short(value)}, which is more than s·BA", MERGE)
            if value and name not in _HONOURED | _WITHOUT_EFFECT:
                self._refuse(
                    f"{name}={_short(value)}, an unknown option (those of PEFT up to {PEFT} are known), which may mean "
                    "more than s·BA",
                    MERGE,
                )
        start = self.config.get("init_lora_weights")
        if _word(start).lower() not in _INITIALISATIONS:
            self._refuse(
                f"init_lora_weights={_short(start)}, with which loading the adapter changes its base",
                "convert it (save_pretrained with path_initial_model_for_weight_conversion), or " + MERGE,
            )
        for name in ("use_rslora", "fan_in_fan_out", "ensure_weight_tying"):
            if not isinstance(self.config.get(name), bool | None):
                self._refuse(f"{name}={_short(self.config[name])}", "it is true or false")
        if not isinstance(self.config.get("base_model_name_or_path"), str | None):
            self._refuse(f"base_model_name_or_path={_short(self.config['base_model_name_or_path'])}", "it is a name")

    @property
    def base_name(self) -> str | None:
        """Name of the model that the adapter was trained on; None if it says none."""
        return self.config.get("base_model_name_or_path") or None

    @property
    def is_transposed(self) -> bool:
        """Whether matrices of the base are stored (inputs, outputs), as those of GPT-2 are."""
        return bool(self.config.get("fan_in_fan_out"))

    @property
    def ties_heads(self) -> bool:
        """Whether what is saved of an embedding is saved of the head that is tied to it too."""
        return bool(self.config.get("ensure_weight_tying"))

    @property
    def is_of_language_model(self) -> bool:
        """Whether the adapted model has a head over the vocabulary, as far as the configuration says."""
        return self.config.get("task_type") in ("CAUSAL_LM", "SEQ_2_SEQ_LM")

    def scale(self, module: str, rank: int) -> float:
        """Return s of a module whose factors have this rank.

        Raises:
            CheckpointError: the configuration says another rank, or something that is no number.
        """
        r = self._number("r", "rank_pattern", module, 8)
        if r != rank:
            raise CheckpointError(
                f"{self.source}: the LoRA factors of {module!r} have rank {rank}, but {ADAPTER_CONFIG} says {_short(r)}"
            )
        alpha = self._number("lora_alpha", "alpha_pattern", module, 8)
        return alpha / (math.sqrt(r) if self.config.get("use_rslora") else r)

    def _refuse(self, what: str, remedy: str) -> NoReturn:
        raise CheckpointError(f"{self.source}: {ADAPTER_CONFIG} says {what}: {remedy}")

    def _number(self, name: str, pattern: str, module: str, default: float) -> float:
        """Return a number of a module: that of the first pattern that matches its name, as PEFT has it."""
        found = self.config.get(name, default)
        try:
            for key, value in (self.config.get(pattern) or {}).items():
                if _matcher(key)(module):
                    found = value
                    break
            if isinstance(found, bool) or not (isinstance(found, int | float) and math.isfinite(found)):
                raise TypeError(f"{name} is {_short(found)}")
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError, re.error) as error:
            raise CheckpointError(
                f"{self.source}: {ADAPTER_CONFIG}: {name} or {pattern} is of no use ({error})"
            ) from error
        return found


@functools.lru_cache(maxsize=256)
def _matcher(key: str) -> Callable[[str], bool]:
    """Return what tells whether a key of a pattern stands for a module, in time linear in its name.

    Raises:
        ValueError, OverflowError, RecursionError, re.error: it is no regular expression, or one of a kind that needs
            backtracking, such as with a look-ahead or a reference to a group.
    """
    compiled = re.compile(rf"(.*\.)?({key})$")
    if not _BACKTRACKING & set(key):
        return lambda module: compiled.match(module) is not None

    # Names and patterns are a stranger's: Arrow's RE2 matches in linear time, where Python's may take for ever.
    import pyarrow
    from pyarrow import compute

    def matches(module: str) -> bool:
        try:
            return compute.match_substring_regex(pyarrow.scalar(module), rf"^(.*\.)?({key})$").as_py()
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"the pattern {_short(key)} cannot be matched in bounded time: {error}") from error

    return matches


def _word(value: object) -> str:
    return str(value) if isinstance(value, str | bool | None) else ""


def _short(value: object) -> str:
    """Return a value for a message, its middle left out where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # An integer of thousands of digits, or lists in lists in lists.
        return "a value beyond all bounds"
    return text if len(text) <= 60 else f"{text[:40]}…{text[-12:]}"
