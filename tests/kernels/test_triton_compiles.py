"""Every Triton kernel compiles without a GPU, to the instructions that it is written for."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tests.support.device import TRITON

pytestmark = TRITON

ARCHITECTURE = 90
FLOAT64_PRODUCT = r"mma\.sync\.aligned\.m\d+n8k\d+\.row\.col\.f64\.f64\.f64\.f64"  # its size depends on the version


def cases(storage):
    """Yield (name, kernel, pointers, integers, constants, options) of every kernel as it is launched."""
    from mergekern.kernels.combine import on_triton as combine
    from mergekern.kernels.device_inputs import STORAGE
    from mergekern.kernels.gram import on_triton as gram
    from mergekern.kernels.overlap import on_triton as overlap
    from mergekern.kernels.signs import on_triton as signs
    from mergekern.kernels.task_product import on_triton as task_product

    chunks = {"chunks": "i64", "addresses": "i64", "pairs": "i64", "partials": "fp64"}
    thin = {"addresses": "i64", "vectors": "fp64", "out": "fp64"}
    gram_options = {"num_warps": gram.WARPS, "num_stages": gram.STAGES}
    task_product_options = {"num_warps": task_product.WARPS, "num_stages": task_product.STAGES}
    for dtype, itemsize in (("fp32", 4), ("bf16", 2)):
        if dtype != storage or (dtype == "bf16" and torch.bfloat16 not in STORAGE):
            continue
        every = dtype == "fp32"
        tile = gram.TILE_BYTES // itemsize
        # Blocks of models as they are launched for up to 16, up to 32, and beyond.
        for models, block, within, between, exact in (
            (16, 16, True, False, True),
            (20, 16, True, True, True),
            (33, 32, False, True, True),
            (20, 16, True, True, False),
        ):
            if every or (models == 20 and exact):
                constants = {"STORAGE": dtype, "ALIGNED": True, "BLOCK": block, "TILE": tile if exact else gram.NARROW}
                constants |= {"REST": gram.NARROW, "WITHIN": within, "BETWEEN": between, "EXACT": exact}
                constants |= {"ABSOLUTE": False}
                name = f"gram of {models} {dtype}{'' if exact else ' tf32x3'}"
                yield name, gram._products, chunks, ["models", "pair_count"], constants, gram_options
        constants = {"STORAGE": dtype, "ALIGNED": True, "TILE": gram.SQUARES_TILE}
        some = {name: chunks[name] for name in ("chunks", "pairs", "partials")}
        yield f"squares {dtype}", gram._squares, some, ["pair_count"], constants, {"num_warps": gram.SUM_WARPS}
        constants = {"STORAGE": dtype, "ALIGNED": True, "WORDS": signs.WORDS}
        packed = {"tiles": "i64", "addresses": "i64", "thresholds": "fp64", "planes": "i32", "partials": "fp64"}
        yield f"pack {dtype}", signs._pack, packed, ["models"], constants, {"num_warps": signs.WARPS}
        for kind in ("upright", "transposed", "drawn"):
            if every or kind == "transposed":
                constants = {"STORAGE": dtype, "ALIGNED": True, "TRANSPOSE": kind == "transposed"}
                constants |= {"DRAW": kind == "drawn", "EXACT": True}
                # Narrow tiles compile sooner.
                columns = 16 if kind == "drawn" else task_product.COLUMNS
                constants |= {"ROWS": task_product.ROWS, "INNER": task_product.INNER, "COLUMNS": columns}
                integers = ["rows", "columns*16", "width*16", "seed"]
                yield (
                    f"task_product {kind} {dtype}",
                    task_product._task_product,
                    thin,
                    integers,
                    constants,
                    task_product_options,
                )
    # The widest case of each kernel: both ways of reading and the mask, or a quotient.
    merged = {"addresses": "i64", "numbers": "fp64", "keys": "i64", "out": "fp32", "tally": "i64"}
    integers = ["first_tile", "count", "start", "models", "needed"]
    constants = {"STORAGE": storage, "ALIGNED": True, "WHOLE": True, "TILE": combine.TILE, "MASKED": storage == "fp32"}
    constants |= {"LIMITED": storage == "fp32", "COUNTED": storage == "fp32", "FROM_ZERO": storage != "fp32"}
    constants |= dict.fromkeys(["BALLOTS", "FLOOR", "SPREAD"], storage != "fp32")
    constants |= {"CONSENSUS": "elect" if storage == "fp32" else "mean"}
    options = {"num_warps": combine.WARPS, "enable_fp_fusion": False}
    yield f"combine {storage}", combine._combine, merged, integers, constants, options
    if storage != "fp32":
        return
    constants = {"ROWS": gram.SUM_ROWS, "COLUMNS": gram.SUM_COLUMNS}
    pointers = {"partials": "fp64", "first": "i64", "out": "fp64"}
    yield "sum", gram._sum_chunks, pointers, ["width"], constants, {"num_warps": gram.SUM_WARPS}
    pointers, constants = {"chunks": "i64", "planes": "i32", "counts": "i64"}, {"WORDS": signs.WORDS}
    yield "count", signs._count, pointers, ["models"], constants, {"num_warps": signs.WARPS}
    pointers, integers = {"out": "fp64"}, ["count", "seed"]
    yield (
        "omega",
        task_product._omega,
        pointers,
        integers,
        {"TILE": task_product.DRAW_TILE},
        {"num_warps": task_product.WARPS},
    )
    constants = {"SIDE": overlap.SIDE, "PADDED": 16, "INNER": overlap.INNER}
    pointers, integers = {"bases": "fp32", "out": "fp64"}, ["models", "size", "k", "groups"]
    options = {"num_warps": overlap.WARPS, "num_stages": overlap.STAGES}
    yield "overlap", overlap._overlap, pointers, integers, constants, options


def compile_all(storage_dtype):
    """Return what the code of each kernel has, by name. Kernels that read no weights come with fp32."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    storage = {"fp32": tl.float32, "bf16": tl.bfloat16}
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    found = {}
    for name, kernel, pointers, integers, constants, options in cases(storage_dtype):
        signature = {pointer: f"*{dtype}" for pointer, dtype in pointers.items()}
        signature |= {integer.removesuffix("*16"): "i32" for integer in integers}
        divisible = [*pointers, *(integer[:-3] for integer in integers if integer.endswith("*16"))]
        source = ASTSource(
            fn=kernel,
            signature=signature,
            constexprs={key: storage.get(value, value) for key, value in constants.items()},
            attrs={(list(signature).index(argument),): [["tt.divisibility", 16]] for argument in divisible},
        )
        target = GPUTarget("cuda", ARCHITECTURE, 32)
        compiled = triton.compile(source, target=target, options={"enable_fp_fusion": True, **options})
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            cubin.write(compiled.asm["cubin"])
            cubin.flush()
            command = [tools / "cuobjdump", "-res-usage", cubin.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        ptx = compiled.asm["ptx"]
        found[name] = {
            "registers": int(re.findall(r"REG:(\d+)", usage)[0]),
            "stack": int(re.findall(r"STACK:(\d+)", usage)[0]),
            "fused": len(re.findall(r"\bfma\.", ptx)),
            "flushing": len(re.findall(r"\.ftz\b", ptx)),
            "ones": len(re.findall(r"\bpopc\.b32\b", ptx)),
            "quotients": len(re.findall(r"\bdiv\.rn\.f64\b", ptx)),
            "float64_products": len(re.findall(FLOAT64_PRODUCT, ptx)),
            # Of 16 bytes, to shared memory behind the arithmetic or to registers.
            "wide_loads": len(
                re.findall(r"cp\.async\.cg\.shared\.global|ld\.global\.v4\.b32|ld\.global\.v2\.b64", ptx)
            ),
        }
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compile in a process of its own, where kernels are not interpreted: one for all, since it begins with imports."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-m", "tests.kernels.test_triton_compiles"]
    done = subprocess.run(
        command, env=environment, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout)


def test_instructions(compiled):
    for name, code in compiled.items():
        exact_product = name.startswith(("gram", "task_product", "overlap")) and "tf32x3" not in name
        assert (code["float64_products"] > 0) == exact_product, name
        if name.startswith(("gram", "squares", "task_product", "combine", "pack fp32", "count")):
            assert code["wide_loads"] > 0, name
    assert compiled["count"]["ones"] == 4 * 4  # of each of four words of a thread, not the sums it is written as


def test_merges_round_every_operation_once(compiled):
    """Sums and products are not fused, quotients are those of IEEE, and subnormal numbers are kept."""
    for storage in ("fp32", "bf16"):
        code = compiled[f"combine {storage}"]
        assert (code["fused"], code["flushing"]) == (0, 0)
        assert code["quotients"] > 0


def test_nothing_is_spilled(compiled):
    # Cosines, in Ω, keep a table for large arguments on the stack; it is no spill.
    spilled = {name for name, code in compiled.items() if code["stack"]}
    assert spilled <= {"omega", "task_product drawn fp32"}


if __name__ == "__main__":
    print(json.dumps(compile_all("fp32") | compile_all("bf16")))
