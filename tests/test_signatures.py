"""Signatures of public functions name every option, so that help() shows them and a typo names the right function."""

import inspect

import pytest

import mergekern

PUBLIC = {name: getattr(mergekern, name) for name in mergekern.__all__}


def functions(name, thing):
    """Yield (qualified name, function) of all public functions of a module, class or function."""
    if inspect.ismodule(thing):
        own = [each for each in vars(thing) if getattr(vars(thing)[each], "__module__", None) == thing.__name__]
        for each in getattr(thing, "__all__", own):
            member = getattr(thing, each)
            if each[0] != "_" and (getattr(member, "__module__", None) or "").startswith("mergekern"):
                yield from functions(f"{name}.{each}", member)
    elif inspect.isclass(thing):
        for each, member in inspect.getmembers(thing, callable):
            is_ours = (getattr(member, "__module__", None) or "").startswith("mergekern")
            if is_ours and (each == "__init__" or not each.startswith("_")):
                yield f"{name}.{each}", member
    elif inspect.isroutine(thing):
        yield name, thing


def with_any_keywords(name, thing):
    """Return the public functions of a thing that accept keyword arguments that their signature does not name."""
    return [
        qualified
        for qualified, function in functions(name, thing)
        if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    ]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_name_all_their_options(name):
    assert not with_any_keywords(name, PUBLIC[name])


def test_functions_methods_and_constructors_are_found():
    found = {qualified for name, thing in PUBLIC.items() for qualified, _ in functions(name, thing)}
    assert {"compute_all", "MetricTable.save", "Calibration.__init__", "regularizers.distance_from_base"} <= found
    assert {"prediction.recommend", "prediction.MergePredictor.fit"} <= found

    class Loose:
        def method(self, **options):
            """Accept anything."""

    Loose.method.__module__ = "mergekern.loose"
    assert with_any_keywords("Loose", Loose) == ["Loose.method"]
