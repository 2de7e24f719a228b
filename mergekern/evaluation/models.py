"""What an evaluator takes, made of a state dict: the state dict itself, or a module with these weights."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn

from mergekern._internal.extras import needs
from mergekern.checkpoints import Zoo
from mergekern.checkpoints.configuration import CONFIG
from mergekern.checkpoints.folder_files import home
from mergekern.errors import EvaluationError, MismatchError
from mergekern.functional.calibration.architectures import excess
from mergekern.merging.output import OutputPlan, StateDict
from mergekern.merging.plans import Plans

# An `nn.Module`, a function that returns one, of nothing or of a model's name, or "state_dict"; None for what suits the
# checkpoints.
ModelLike = nn.Module | Callable[..., nn.Module] | Literal["state_dict"] | None
Make = Callable[[StateDict], Any]


def makers_of(zoo: Zoo, plans: Plans, model: ModelLike, needs_module: bool, device: torch.device) -> dict[int, Make]:
    """Return what makes the models that an evaluator takes, for the results of each owner.

    Args:
        zoo: the models.
        plans: what the state dicts hold, and whose heads they have.
        model: what is given.
        needs_module: whether the evaluator takes no state dict.
        device: where modules lie.

    Raises:
        EvaluationError: a module is needed, and none can be built.
    """
    owners = plans.owners(range(len(zoo.models)))
    if model is not None and model != "state_dict" and not (plans.are_of_each and _takes_a_name(model)):
        return dict.fromkeys(owners, OwnModule(model, device))
    return {owner: _maker_of(zoo, plans[owner], model, needs_module, device) for owner in owners}


def _maker_of(zoo: Zoo, plan: OutputPlan, model: ModelLike, needs_module: bool, device: torch.device) -> Make:
    if model == "state_dict":
        if needs_module:
            raise EvaluationError("this evaluator runs a module, and a state dict is none; give model=")
        return lambda state: state
    if model is not None:
        assert callable(model)
        return lambda state: OwnModule(lambda: model(plan.owner.name), device)(state)
    folder = home(plan.like_whom)
    if folder is not None and "model_type" in plan.config:
        return TransformersModel(folder, plan, device)
    if any("model_type" in each.config for each in zoo.checkpoints) and plan.owner is not zoo.base:
        raise EvaluationError(
            f"no {CONFIG} of transformers beside the weights of {plan.owner.name!r}, which says what its head is: add "
            "it, give the function that builds the model (--model-fn, model=), or take state dicts (--state-dict, "
            "model='state_dict')"
        )
    if needs_module:
        raise EvaluationError(
            "this evaluator runs a module: give the function that builds it (--model-fn FILE:FUNCTION, model=), or a "
            "base that is a folder of transformers"
        )
    return lambda state: state


def _takes_a_name(model: ModelLike) -> bool:
    """Tell whether a function cannot be called without an argument."""
    if isinstance(model, nn.Module) or not callable(model):
        return False
    try:
        inspect.signature(model).bind()
    except TypeError:
        return True
    except ValueError:  # of a function of C
        return False
    return False


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
            raise MismatchError(
                f"the models do not fit the {type(self._module).__name__}: {error}; a function that "
                "takes the name of a model may build one for each head"
            ) from error
        return self._module


class TransformersModel:
    """Makes of a state dict the model that transformers makes of a folder with these weights.

    Raises:
        EvaluationError: transformers is not installed, or does not know the architecture.
    """

    def __init__(self, folder: Path, plan: OutputPlan, device: torch.device) -> None:
        self._device, self._folder = device, folder
        self._config, self._class = _architecture(folder, plan)

    def __call__(self, state: StateDict) -> nn.Module:
        """Return a model with these weights."""
        import transformers

        was_shown = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()
        try:
            model, found = self._class.from_pretrained(
                None, config=self._config, state_dict=dict(state), output_loading_info=True,
                ignore_mismatched_sizes=True,  # named below
            )  # fmt: skip
        except Exception as error:  # of many kinds: a configuration may say anything
            line = str(error).strip().partition("\n")[0][:200]
            raise MismatchError(f"{self._what}: {line or type(error).__name__}") from error
        finally:
            if was_shown:
                transformers.utils.logging.enable_progress_bar()
        if missing := sorted(found["missing_keys"]):
            raise MismatchError(f"{self._what}: no {', '.join(missing[:5])}")
        if other := sorted(str(key[0]) for key in found["mismatched_keys"]):
            raise MismatchError(f"{self._what}: other shapes of {', '.join(other[:5])}")
        return model.to(self._device).eval()

    @property
    def _what(self) -> str:
        return f"the merged weights do not fit the {self._class.__name__} of {self._folder / CONFIG}"


def _architecture(folder: Path, plan: OutputPlan) -> tuple[Any, Any]:
    """Return the configuration of merges, and the class of their architecture."""
    try:
        import transformers
    except ImportError as error:
        raise EvaluationError(
            f"{folder}: {needs('building the model', 'evaluation', error)}; or give the "
            "function that builds it (--model-fn, model=), or take state dicts (--state-dict, model='state_dict')"
        ) from error
    if reason := excess(plan.config):
        raise EvaluationError(f"{folder}: {reason}")
    with TemporaryDirectory() as temporary:
        Path(temporary, CONFIG).write_text(json.dumps(plan.configuration))
        try:
            config = transformers.AutoConfig.from_pretrained(temporary)
        except Exception as error:  # of many kinds, as the library checks values in many ways
            raise EvaluationError(f"{folder}: transformers cannot read its {CONFIG} ({error})") from error
    named = config.architectures
    name = str(named[0]) if isinstance(named, list) and named else "none"
    if not hasattr(transformers, name):
        raise EvaluationError(
            f"{folder}: its {CONFIG} names the architecture {name!r}, which transformers "
            f"{transformers.__version__} does not have; give the function that builds it (--model-fn, model=)"
        )
    return config, getattr(transformers, name)
