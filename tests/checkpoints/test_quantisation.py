"""Weights in codes are refused by one rule; integers that are no codes are not, and a note names them."""

import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

import mergekern
from mergekern.checkpoints import open_checkpoint
from mergekern.errors import CheckpointError
from tests.support.checkpoint_files import assert_same, draw

CODES, HALF = torch.randint(0, 120, (6, 8), generator=torch.Generator().manual_seed(0)), torch.float16


def codes(dtype):
    return CODES.to(dtype)


# MLX: https://github.com/ml-explore/mlx-lm/issues/989; MXFP4: https://github.com/thinking-machines-lab/tinker-cookbook/issues/587
PACKED = {
    "MLX": {"l.weight": codes(torch.uint32), "l.scales": draw(6, 2, dtype=HALF), "l.biases": draw(6, 2, dtype=HALF)},
    "compressed-tensors": {"l.weight_packed": codes(torch.int32), "l.weight_scale": draw(6, 1)},
    "int8": {"l.weight": codes(torch.int8), "l.weight_scale": draw(6, 1, dtype=torch.bfloat16)},
    "MXFP4": {
        "l.up_proj_blocks": codes(torch.uint8).view(6, 2, 4),
        "l.up_proj_scales": codes(torch.uint8)[:, :2].clone(),
    },
    "BitNet": {"l.weight": codes(torch.uint8), "l.weight_scale": draw(1)},
    "quanto": {"l.weight._data": codes(torch.int8), "l.weight._scale": draw(6, 1)},
    "HQQ": {"l.W_q": codes(torch.uint8), "l.scale": draw(24, 1), "l.zero": draw(24, 1)},
    "NVFP4": {"l.weight": codes(torch.uint8), "l.weight_scale": draw(6, 1, dtype=torch.float8_e4m3fn)},
    "torchao": {"l._weight_qdata": codes(torch.int8), "l._weight_scale": draw(6)},
    "torchao with colons": {"l.weight:qdata": codes(torch.int8), "l.weight:scale": draw(6)},
    "AQLM": {"l.codes": codes(torch.int16), "l.codebooks": draw(2, 4, 1, 8), "l.scales": draw(6, 1, 1, 1)},
    "QuIP": {"l.Qidxs": codes(torch.int64), "l.Wscale": draw()},
    "EETQ": {"l.qweight": codes(torch.int8), "l.weight_scales": draw(8)},
    "bitsandbytes": {"l.weight": codes(torch.int8), "l.SCB": draw(6)},
    "a tool that nobody knows": {"l.stuff": codes(torch.int16), "l.row_absmax": draw(6)},
}


@pytest.mark.parametrize("tensors", PACKED.values(), ids=PACKED)
@pytest.mark.parametrize("config", [None, {}], ids=["in memory", "in a folder"])
def test_codes_are_refused_by_name(tmp_path, tensors, config):
    given = {**tensors, "norm.weight": draw(8)}
    if config is not None:
        save_file(given, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text("{}")
        given = tmp_path
    with pytest.raises(CheckpointError, match=r"'l\..*(quantised weights|codes)"):
        open_checkpoint(given)


ORDINARY = {
    "norm.num_batches_tracked": torch.tensor(7), "norm.scale": draw(8),
    "attn.position_ids": torch.arange(8)[None], "attn.scale": draw(8), "attn.logit_scale": draw(6, 1, 1),
    "attn.relative_position_index": codes(torch.int64), "attn.mask": torch.ones(6, 6, dtype=torch.bool),
    "emb.lookup": torch.arange(100), "emb.scale": draw(100), "l._extra_state": torch.zeros(9, dtype=torch.uint8),
}  # fmt: skip


def test_ordinary_integers_are_left_out_with_a_note():
    checkpoint = open_checkpoint(ORDINARY)
    assert len(checkpoint.tensors) == 4
    (note,) = checkpoint.notes
    assert note.startswith("6 integer tensors take no part (")
    assert "norm.num_batches_tracked, attn.position_ids, attn.relative_position_index and 3 more" in note


@pytest.mark.parametrize(
    ("config", "tensors", "says"),
    [
        ('{"quantization_config": {"quant_method": "vptq"}}', {"l.indices": CODES}, "by vptq, and 'l.indices'"),
        ('{"quantization": {"bits": 3}}', {"l.b": codes(torch.int16)}, r"by MLX \(3 bits\), and 'l.b'"),
        (
            '{"text_config": {"quantization_config": {"quant_method": "odd"}}}',
            {"l.weight": draw(2, 2, dtype=torch.float8_e5m2)},
            "by odd, and 'l.weight' is float8_e5m2",
        ),
        (
            '{"quantization_config": {"quant_method": "fp8"}}',
            {"l.weight": draw(2, 2, dtype=torch.float8_e5m2)},
            "no scale of the float8 tensor 'l.weight' is found",
        ),
    ],
)
def test_configurations_that_say_quantised(tmp_path, config, tensors, says):
    (tmp_path / "config.json").write_text(config)
    save_file({**tensors, "norm.weight": draw(8)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=says):
        open_checkpoint(tmp_path)


def test_floats_below_a_configuration_that_says_quantised_are_read_with_a_note(tmp_path):
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    save_file({"l.weight": draw(3, 2), "ids": torch.arange(4)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert_same(checkpoint.read("l.weight"), draw(3, 2))
    assert any("quantised by awq, but they are stored as ordinary floats" in note for note in checkpoint.notes)


# https://github.com/leejet/stable-diffusion.cpp/pull/1898
@pytest.mark.parametrize("scale", ["scale_weight", "weight_scale", "weight_scale_inv", "scale", "weight._scale"])
def test_scales_of_float8_are_found_by_name(scale):
    stored, factor = draw(4, 6, dtype=torch.float8_e4m3fn), torch.tensor(0.375)
    others = {"l.scale_input": draw(1), "attn.k_scale": draw(1), "scaled_fp8": torch.zeros(1).to(stored.dtype)}
    checkpoint = open_checkpoint({"l.weight": stored, f"l.{scale}": factor, **others})
    assert list(checkpoint.tensors) == ["l.weight"]
    assert_same(checkpoint.read("l.weight"), stored.float() * factor)
    (note,) = checkpoint.notes
    assert note.startswith("3 scales and markers of float8 layers take no part: l.scale_input")


@pytest.mark.parametrize(
    "tensors",
    [
        {"l.weight_scale": draw(1), "l.scale_weight": draw(1)},
        {"l.odd_scale": draw(1)},
        {"l.input_scale": draw(1)},
        {"l.quantizer.scale": draw(1)},
        {"l.weight_scale": draw(1), "l.weight_zero_point": torch.ones(1)},
        {"m.weight": draw(4, 6, dtype=torch.float8_e4m3fn), "m.weight_scale": draw(1)},
    ],
    ids=lambda tensors: " ".join(tensors),
)
def test_float8_of_unclear_scale_is_refused(tensors):
    with pytest.raises(CheckpointError, match=r"'l\.weight'"):
        open_checkpoint({"l.weight": draw(4, 6, dtype=torch.float8_e4m3fn), **tensors})


# https://github.com/unslothai/unsloth-zoo/issues/803
@pytest.mark.parametrize("block", [(2, 5), (3, 4), (4, 16)], ids=str)
def test_blocks_as_the_configuration_gives_them(tmp_path, block):
    stored = draw(6, 10, dtype=torch.float8_e4m3fn)
    scale = 1 + draw(-(-6 // block[0]), -(-10 // block[1])).abs()
    values = stored.float() * scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:6, :10]
    (tmp_path / "config.json").write_text(
        f'{{"quantization_config": {{"quant_method": "fp8", "weight_block_size": {list(block)}}}}}'
    )
    save_file({"l.weight": stored, "l.weight_scale_inv": scale}, tmp_path / "model.safetensors")
    assert_same(open_checkpoint(tmp_path).read("l.weight"), values)


def test_blocks_of_which_several_sizes_fit_are_refused():
    with pytest.raises(CheckpointError, match="in one way alone: blocks of any size from 5 to 9"):
        open_checkpoint({"w": draw(6, 10, dtype=torch.float8_e4m3fn), "w_scale_inv": draw(3, 2)})


# --- torch files


# https://github.com/karpathy/nanoGPT/issues/325
@pytest.mark.parametrize("key", ["model", "net_of_mine", "a.b"])
def test_nested_state_dict_is_found_by_what_it_is(tmp_path, key):
    nested = {"w": draw(2, 3), "epoch": 4, "_extra_state": None}
    for part in reversed(key.split(".")):
        nested = {part: nested}
    optimizer = {"state": {0: {"exp_avg": draw(2, 3)}}, "param_groups": [{"lr": 1.0}]}
    torch.save({**nested, "optimizer": optimizer, "scaler": {"scale": torch.tensor(2.0)}}, tmp_path / "m.pt")
    checkpoint = open_checkpoint(tmp_path / "m.pt")
    assert_same(checkpoint.read("w"), draw(2, 3))
    assert checkpoint.notes == [
        "2 entries that are no tensors take no part: 'epoch', '_extra_state'",
        f"the state dict was found in the file under {key!r}",
    ]


def test_one_of_several_state_dicts_is_chosen_in_the_path(tmp_path):
    states = {"model": {"w": draw(2, 3, seed=1)}, "ema": {"inner": {"w": draw(2, 3, seed=2)}}}
    torch.save(states, tmp_path / "m.ckpt")
    with pytest.raises(CheckpointError, match=r"holds 2 state dicts; .*m\.ckpt:model, m\.ckpt:ema\.inner"):
        open_checkpoint(tmp_path / "m.ckpt")
    checkpoint = open_checkpoint(f"{tmp_path}/m.ckpt:ema.inner")
    assert_same(checkpoint.read("w"), draw(2, 3, seed=2))
    assert checkpoint.name == "m:ema.inner"
    assert_same(open_checkpoint(checkpoint.location).read("w"), draw(2, 3, seed=2))


def test_compressed_members_are_read(tmp_path):
    state = {"w": torch.zeros(40, 40), "v": draw(5)}
    torch.save(state, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(tmp_path / "m.pt", "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member), zipfile.ZIP_DEFLATED)
    for name, values in state.items():
        assert_same(open_checkpoint(tmp_path / "m.pt").read(name), values)


def test_members_that_would_inflate_without_measure_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(70 << 20))
    with pytest.raises(CheckpointError, match="would inflate to 73,400,320 bytes"):
        open_checkpoint(tmp_path / "m.pt")


# --- complex tensors


def test_complex_tensors_that_are_the_same_take_no_part():
    turns = torch.polar(torch.ones(3), torch.arange(3.0))
    base, one, two = ({"w": draw(2, 3, seed=seed), "turns": turns.clone()} for seed in range(3))
    merged = mergekern.merge({"a": one, "b": two}, base, "weight_average")
    assert_same(merged["turns"], turns)
    two["turns"] *= -1
    with pytest.raises(CheckpointError, match="'turns' is complex and differs from that of 'base'"):
        mergekern.merge({"a": one, "b": two}, base, "weight_average")


def test_default_device_and_dtype_do_not_matter():
    code = """
import torch, mergekern
w = {n: torch.full((3, 3), v) for n, v in (("base", 0.0), ("a", 1.0), ("b", 3.0))}
torch.set_default_device("meta"); torch.set_default_dtype(torch.bfloat16)
zoo = {n: {"w": w[n]} for n in "ab"}
mergekern.compute_all(zoo, {"w": w["base"]})
ties, tsv = (mergekern.merge(zoo, {"w": w["base"]}, method)["w"] for method in ("ties", "tsv"))
print(ties.dtype, tsv.device)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.split() == ["torch.float32", "cpu"], result.stderr[-500:]
