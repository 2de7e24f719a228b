"""A merge loads with `from_pretrained`: a tiny ViT, and a tiny Llama with tied embeddings."""

import pytest
import torch
from safetensors.torch import load_file

import mergekern

transformers = pytest.importorskip("transformers")


def vit():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    return transformers.ViTForImageClassification(config)


def llama():
    config = transformers.LlamaConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40,
        max_position_embeddings=32, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.mark.parametrize("method", ["weight_average", "ties", "tsv"])
@pytest.mark.parametrize("make", [vit, llama])
def test_from_pretrained(tmp_path, make, method):
    torch.manual_seed(0)
    names = ("base", "first", "second")
    for name in names:
        make().save_pretrained(tmp_path / name)
    out = tmp_path / "out"
    mergekern.merge([tmp_path / name for name in names[1:]], tmp_path / "base", method, output=out)
    model, loading = type(make()).from_pretrained(out, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected = mergekern.merge([tmp_path / name for name in names[1:]], tmp_path / "base", method)
    model.save_pretrained(tmp_path / "again")  # under the stored names
    saved = load_file(tmp_path / "again" / "model.safetensors")
    assert len(saved) > 10
    for name, tensor in saved.items():
        assert torch.equal(expected[name], tensor), name
    if make is llama:
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
        model(torch.arange(5)[None])


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_from_pretrained_in_the_dtype_written(tmp_path, key):
    torch.manual_seed(0)
    for name in ("base", "first", "second"):
        vit().save_pretrained(tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(path.read_text().replace('"dtype"', f'"{key}"'))
        assert key in path.read_text()
    out = tmp_path / "out"
    models = [tmp_path / "first", tmp_path / "second"]
    mergekern.merge(models, tmp_path / "base", "ties", output=out, dtype="bfloat16")
    model = transformers.ViTForImageClassification.from_pretrained(out, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.config.dtype == torch.bfloat16


def test_a_stack_of_layers_loads(tmp_path):
    torch.manual_seed(0)
    llama().save_pretrained(tmp_path / "a")
    source = {"model": str(tmp_path / "a"), "layer_range": [0, 2]}
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [source]}] * 2}
    mergekern.merge_recipe(recipe, output=tmp_path / "out")
    model, loading = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_hidden_layers == len(model.model.layers) == 4
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    model(torch.arange(5)[None])
