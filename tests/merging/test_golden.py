"""The merges that the published research code makes, tensor by tensor and as a whole."""

import numpy as np
import pytest
import torch

import mergekern
from mergekern import METHODS
from mergekern.merging.method import merge_tensor
from tests.golden.zoo import GOLDEN
from tests.merging.zoos import fitting, mixed

GROUPS = {"pair01": range(2), "all5": range(5)}
# As the README beside the values says.
BY_SINGULAR_VECTORS, ELEMENT_BY_ELEMENT = 1e-4, 1e-5
# The merges of which there are published values.
CASES = {
    "weight_average": ("weight_average", {}), "task_arithmetic": ("task_arithmetic", {}), "ties": ("ties", {}),
    "dare_magnitude": ("dare", {"mask": "magnitude"}), "tsv": ("tsv", {}), "isotropic": ("isotropic", {}),
    "isotropic_cts": ("isotropic_cts", {}), "tall_masks": ("tall_masks", {}),
}  # fmt: skip


def expected(group, case):
    with np.load(GOLDEN / f"merges_mixed_{group}.npz") as values:
        assert {key.split("/", 1)[0] for key in values.files} == set(CASES)
        found = {key.split("/", 1)[1]: values[key] for key in values.files if key.split("/", 1)[0] == case}
    assert len(found) >= 5
    return found


def unskewed(published, base, tuned):
    """Return the mean, where the published code has a mean that depends on the order of the models.

    It averages tensors that are not matrices into the first task vector, which it then averages once more: the first
    model counts 1/n², every other (n + 1)/n². The rule is the mean, as its other methods have it.
    """
    n = len(tuned)
    skewed = base + sum((1 if i == 0 else n + 1) / n**2 * (model - base) for i, model in enumerate(tuned))
    np.testing.assert_allclose(published, skewed, rtol=0, atol=1e-7)
    return np.mean(tuned, axis=0, dtype=np.float64)


@pytest.mark.parametrize("max_memory", [None, 3000], ids=["whole", "in blocks"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("group", GROUPS)
def test_agrees_with_the_published_code(group, case, max_memory):
    base, models = mixed(GROUPS[group])
    method, options = CASES[case]
    merged = mergekern.merge(models, base, method, max_memory=max_memory, options=options)
    assert list(merged) == list(base)
    assert torch.equal(merged["embed.position_ids"], torch.from_numpy(base["embed.position_ids"]))
    for name, values in expected(group, case).items():
        assert merged[name].dtype == torch.float32
        if case == "isotropic" and values.ndim != 2:
            values = unskewed(values, base[name], [model[name] for model in models.values()])
        tolerance = ELEMENT_BY_ELEMENT if METHODS[method].matrix is None else BY_SINGULAR_VECTORS
        np.testing.assert_allclose(merged[name], values, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("case", [*METHODS, "dare_magnitude"])
def test_the_pure_function_is_what_is_streamed(case):
    name, options = CASES.get(case, (case, {}))
    base, models = mixed(range(fitting(name, 3)))
    method = METHODS[name]
    resolved = method.resolve(options)
    if method.elements and method.elements(**resolved).drop:  # The random masks are those of other keys.
        resolved["rate"] = 0.0
        options = {**options, "rate": 0.0}
    if "epsilon" in resolved and "density" in resolved:  # the same of DELLA
        resolved["density"] = 1.0
        options = {**options, "density": 1.0}
    merged = mergekern.merge(models, base, name, options=options)
    for tensor in ("blocks.0.attn.weight", "blocks.0.attn.bias", "embed.conv.weight", "head.small.weight"):
        origin = torch.from_numpy(base[tensor]).double()
        deltas = [torch.from_numpy(model[tensor]).double() - origin for model in models.values()]
        values = merge_tensor(origin, deltas, method, None, resolved)
        torch.testing.assert_close(merged[tensor], values.float(), rtol=0, atol=1e-7)
