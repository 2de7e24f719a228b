"""What an evaluator takes, made of a state dict: the state dict itself, or a module with these weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn

from mergekern._internal.extras import needs
from mergekern.checkpoints import Zoo
from mergekern.checkpoints.configuration import CONFIG, configuration_of_result
from mergekern.checkpoints.folder_files import home
from mergekern.errors import EvaluationError, MismatchError
from mergekern.merging.output import OutputPlan, StateDict

# An `nn.Module`, a function without arguments that returns one, or "state_dict"; None for what suits the base.
ModelLike = nn.Module | Callable[[], nn.Module] | Literal["state_dict"] | None
Make = Callable[[StateDict], Any]


def maker_of(zoo: Zoo, plan: OutputPlan, model: ModelLike, needs_module: bool, device: torch.device) -> Make:
    """Return what makes the model that an evaluator takes.

    Args:
        zoo: whose base decides where no model is given: a folder of transformers is built from its configuration.
        plan: what a state dict holds.
        model: what is given.
        needs_module: whether the evaluator takes no state dict.
        device: where modules lie.

    Raises:
        EvaluationError: a module is needed, and none can be built.
    """
    if model == "state_dict":
        if needs_module:
            raise EvaluationError("this evaluator runs a module, and a state dict is none; give model=")
        return lambda state: state
    if model is not None:
        return OwnModule(model, device)
    folder = home(zoo.base)
    if folder is not None and "model_type" in zoo.base.config:
        return TransformersModel(folder, zoo, plan, device)
    if needs_module:
        raise EvaluationError(
            "this evaluator runs a module: give the function that builds it (--model-fn FILE:FUNCTION, model=), or a "
            "base that is a folder of transformers"
        )
    return lambda state: state


class OwnModule:
    """Makes of a state dict a module of the user with these weights; the module is the same each time.

    Raises:
        EvaluationError: what is given is no module and returns none.
    """

    def __init__(self, model: Any, device: torch.device) -> None:
        if not isinstance(model, nn.Module) and callable(model):
            with torch.random.fork_rng([]):
                model = model()
        if not isinstance(model, nn.Module):
            raise EvaluationError(
                f"model is an nn.Module, a function that returns one, or 'state_dict', not a {type(model).__name__}"
            )
        self._module = model.to(device).eval()

    def __call__(self, state: StateDict) -> nn.Module:
        """Return the module with other weights."""
        try:
            self._module.load_state_dict(state)
        except RuntimeError as error:
            raise MismatchError(f"the models do not fit the {type(self._module).__name__}: {error}") from error
        return self._module


class TransformersModel:
    """Makes of a state dict the model that transformers makes of a folder with these weights.

    Raises:
        EvaluationError: transformers is not installed, or does not know the architecture.
    """

    def __init__(self, folder: Path, zoo: Zoo, plan: OutputPlan, device: torch.device) -> None:
        self._device = device
        self._config, self._class = _architecture(folder, zoo, plan)

    def __call__(self, state: StateDict) -> nn.Module:
        """Return a model with these weights."""
        import transformers

        was_shown = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()
        try:
            model, found = self._class.from_pretrained(
                None, config=self._config, state_dict=dict(state), output_loading_info=True
            )
        finally:
            if was_shown:
                transformers.utils.logging.enable_progress_bar()
        if missing := sorted(found["missing_keys"]):
            raise MismatchError(f"the models do not fit the {self._class.__name__}: no {', '.join(missing[:5])}")
        return model.to(self._device).eval()


def _architecture(folder: Path, zoo: Zoo, plan: OutputPlan) -> tuple[Any, Any]:
    """Return the configuration of merges, and the class of their architecture."""
    try:
        import transformers
    except ImportError as error:
        raise EvaluationError(
            f"{folder}: {needs('building the model', 'evaluation', error)}; or give the "
            "function that builds it (--model-fn, model=), or take state dicts (--state-dict, model='state_dict')"
        ) from error
    said = configuration_of_result(zoo.base.config, dtype=None, is_tied=plan.is_tied)
    with TemporaryDirectory() as temporary:
        Path(temporary, CONFIG).write_text(json.dumps(said))
        try:
            config = transformers.AutoConfig.from_pretrained(temporary)
        except (ValueError, KeyError, OSError) as error:
            raise EvaluationError(f"{folder}: transformers cannot read its {CONFIG} ({error})") from error
    name = (config.architectures or ["none"])[0]
    if not hasattr(transformers, name):
        raise EvaluationError(
            f"{folder}: its {CONFIG} names the architecture {name!r}, which transformers "
            f"{transformers.__version__} does not have; give the function that builds it (--model-fn, model=)"
        )
    return config, getattr(transformers, name)
