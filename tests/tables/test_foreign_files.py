"""Tables that others wrote: read as they are, or refused with one short error; never by what they claim to hold."""

import json
import resource

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mergekern import MetricTable, OutputError, StatisticsError

RANK, COSINE = "stable_rank", "task_vector_cosine_similarity"
HEAD = f"model_a,model_b,{RANK}\n"
WHOLE = f"{HEAD}x,y,1.25\nx,z,1.5\ny,z,1.75\n"


def refused(path, *words):
    """Expect one short error that names the file, and return it."""
    with pytest.raises(StatisticsError) as caught:
        MetricTable.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600 + len(str(path))
    for word in words:
        assert word in message
    return message


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, newline="")
    return path


def ranks(models="xyz", value=1.5):
    return {"datasets": list(models), "metrics": {RANK: {"matrix": [[value] * len(models)] * len(models)}}}


CSV = {
    "nothing": ("", "no column model_a"),
    "header alone": (HEAD, "no rows"),
    "no first model": (f"a,model_b,{RANK}\nx,y,1\n", "no column model_a"),
    "column twice": (f"model_a,model_b,{RANK},{RANK}\nx,y,1,2\n", f"two columns are named '{RANK}'"),
    "long row": (f"{HEAD}x,y,1,2\n", "row 1 has 4 values, and the header 3 columns"),
    "short row": (f"{HEAD}x,y,1\nx,z\n", "row 2 has 2 values"),
    "text": (f"{HEAD}x,y,many\n", f"row 1, {RANK}: 'many' is not a finite number"),
    "infinite": (f"{HEAD}x,y,inf\n", "'inf' is not a finite number"),
    "huge": (f"{HEAD}x,y,{'9' * 400}\n", "is not a finite number"),
    "underscore": (f"{HEAD}x,y,1_0\n", "'1_0' is not a finite number"),
    "with itself": (f"{HEAD}x,y,1\ny,y,1\n", "row 2: a pair is of two models, not 'y' with itself"),
    "no name": (f"{HEAD}x,,1\n", "a model has no name"),
    "pair twice": (f"{WHOLE}z,x,1.5\n", "rows 2 and 4 are both of the pair 'x' and 'z'"),
    "out of range": (f"{HEAD}x,y,2.5\n", f"{RANK} of 'x' and 'y' is 2.5; this metric is from 1 to 2"),
    "not UTF-8": (f"{HEAD}x,ÿ,1\n".encode("latin-1"), "utf-8"),
    "open quote": (f'{HEAD}"x,y,1\n', "no CSV"),
    "binary": (bytes(range(256)), ""),
}


@pytest.mark.parametrize(("content", "word"), CSV.values(), ids=CSV)
def test_csv_is_refused(tmp_path, content, word):
    refused(write(tmp_path / "t.csv", content), word)


@pytest.mark.parametrize("change", [
    lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n"), lambda text: text + "\n\n",
    lambda text: text.replace("1.5", '"1.5"'), lambda text: text.replace("x,y", "y,x", 1),
], ids=["byte order mark", "carriage returns", "empty lines", "quotes", "other order"])  # fmt: skip
def test_csv_of_other_programs_is_read(tmp_path, change):
    table = MetricTable.load(write(tmp_path / "t.csv", change(WHOLE)))
    assert sorted(table.models) == ["x", "y", "z"]
    at = [table.models.index(name) for name in "xyz"]
    assert table.matrix(RANK)[np.ix_(at, at)][np.triu_indices(3, 1)].tolist() == [1.25, 1.5, 1.75]
    assert not table.notes


def test_pairs_without_a_row_and_other_columns_are_noted(tmp_path):
    path = write(tmp_path / "t.csv", f"model_a,model_b,who,{RANK}\nx,y,me,1.25\ny,z,you,1.5\n")
    table = MetricTable.load(path)
    assert table.notes == [
        "1 pairs have no row in the file, and no value of any metric: (x, z)",
        "columns not in the catalogue, left out: who",
    ]


JSON = {
    "brackets": ("[" * 200_000, "nested too deeply"),
    "nested provenance": (
        json.dumps(ranks())[:-1] + ', "provenance": {"a": ' + "[" * 600 + "]" * 600 + "}}", "provenance",
    ),
    "no object": ("[1]", "valid dictionary"),
    "no metric": (json.dumps({"datasets": [f"n{i}" for i in range(5000)], "metrics": {}}), "holds no metric"),
    "numbers as names": (json.dumps({**ranks(), "datasets": [1, 2, 3]}), "datasets.0"),
    "one name twice": (json.dumps(ranks("xyx")), "two models are named 'x'"),
    "one model": (json.dumps(ranks("x")), "it is of 1 models"),
    "a count that is wrong": (json.dumps({**ranks(), "n_datasets": 4}), "n_datasets 4, and names 3"),
    "a small matrix": (json.dumps({**ranks("xyz"), "datasets": list("xyzw")}), "3 rows of 3, for 4 models"),
    "text": (json.dumps(ranks(value="1.5")), f"{RANK}: matrix.0.0"),
    "a huge number": (json.dumps(ranks()).replace("1.5", "1" + "0" * 400, 1), f"{RANK}: matrix.0.0"),
    "more digits than are read": (json.dumps(ranks()).replace("1.5", "1" * 5000, 1), ""),
    "infinite": (json.dumps(ranks()).replace("1.5", "Infinity"), f"{RANK} of 'x' and 'x' is inf"),
    "a metric twice": ('{"datasets": ["x", "y"], "metrics": {"a": 1, "a": 2}}', "'a' is there twice"),
    "two values of a pair": (
        json.dumps({"datasets": ["x", "y"], "metrics": {RANK: {"matrix": [[1, 1.5], [1.25, 1]]}}}),
        f"{RANK} of 'x' and 'y' is both 1.5 and 1.25",
    ),
    "matrix and pairs differ": (
        json.dumps({"datasets": ["x", "y"], "metrics": {
            RANK: {"matrix": [[1, 1.5], [None, 1]], "pairs": {"x__y": 1}}}}),
        "is both 1.5 and 1",
    ),
    "a layer of another pair": (
        json.dumps({"datasets": ["x", "y"], "metrics": {
            RANK: {"matrix": [[1, 1.5], [None, 1]], "per_layer": {"x__q": {"w": 1}}}}}),
        "'x__q', which is no pair",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("content", "word"), JSON.values(), ids=JSON)
def test_json_is_refused(tmp_path, content, word):
    refused(write(tmp_path / "t.json", content), word)


def claiming(path, change):
    """Write a Parquet table of three pairs whose metadata are changed."""
    MetricTable("xyz", {RANK: np.full((3, 3), 1.5)}).save(path)
    table = pq.read_table(path)
    claims = json.loads(table.schema.metadata[b"mergekern"])
    change(claims)
    metadata = {**table.schema.metadata, b"mergekern": json.dumps(claims).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


CLAIMS = {
    "fewer models": (lambda c: c.update(models=["x", "y"]), "2 models, its rows 3: 'z' are in rows"),
    "more models": (lambda c: c["models"].extend(f"m{i}" for i in range(3000)), "3,003 models, its rows 3: 'm0'"),
    "a model twice": (lambda c: c.update(models=["x", "y", "y"]), "two models are named 'y'"),
    "nested models": (lambda c: c.update(models=[["x"], "y", "z"]), "models.0"),
    "a short diagonal": (lambda c: c.update(diagonal={RANK: [1.0]}), "1 values of models with themselves, of 3"),
    "a diagonal of text": (lambda c: c.update(diagonal={RANK: ["1"] * 3}), f"diagonal.{RANK}.0"),
    "notes of numbers": (lambda c: c.update(notes=[1]), "notes.0"),
}


@pytest.mark.parametrize(("change", "word"), CLAIMS.values(), ids=CLAIMS)
def test_parquet_metadata_that_disagree_with_the_rows_are_refused(tmp_path, change, word):
    refused(claiming(tmp_path / "t.parquet", change), word)


COLUMNS = {
    "numbers as names": ({"model_a": [1], "model_b": [2], RANK: [1.5]}, "column model_a holds int64, not names"),
    "lists as names": ({"model_a": [["x"]], "model_b": [["y"]], RANK: [1.5]}, "column model_a holds list"),
    "no second name": ({"model_a": ["x"], "model_b": [None], RANK: [1.5]}, "column model_b holds null"),
    "text as numbers": ({"model_a": ["x"], "model_b": ["y"], RANK: ["1.5"]}, f"column {RANK} holds"),
    "no rows": ({"model_a": pa.array([], "string"), "model_b": pa.array([], "string")}, "no rows"),
    "a pair twice": ({"model_a": ["x", "y"], "model_b": ["y", "x"], RANK: [1.5, 1.25]}, "rows 1 and 2 are both"),
    "many rows of one pair": (
        {"model_a": pa.array(["x"] * 3_000_000).dictionary_encode(),
         "model_b": pa.array(["y"] * 3_000_000).dictionary_encode()}, "3,000,000 rows in",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "word"), COLUMNS.values(), ids=COLUMNS)
def test_parquet_of_other_columns_is_refused(tmp_path, columns, word):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", word)


def test_a_damaged_parquet_file_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    MetricTable("xyz", {RANK: np.full((3, 3), 1.5)}).save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        refused(path)


def test_models_that_hardly_share_a_pair_take_no_memory(tmp_path):
    rows = "".join(f"a{i},b{i},1.5\n" for i in range(20_000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(write(tmp_path / "t.csv", HEAD + rows), "it names 40,000 models", "fewer than one pair in 16")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


NAMES = ["=cmd|'/C calc'!A0", "+1", "-1", "@x", "'=x", "'tis", "\ttab", "＝wide", "a\nb", 'q"q', ":fire:"]


@pytest.mark.parametrize("suffix", ["csv", "json", "parquet"])
def test_names_come_back_and_no_cell_starts_a_formula(tmp_path, suffix):
    table = MetricTable(NAMES, {COSINE: np.full((len(NAMES),) * 2, -0.5)})
    table.save(tmp_path / f"t.{suffix}")
    again = MetricTable.load(tmp_path / f"t.{suffix}")
    assert again.models == table.models
    pd.testing.assert_frame_equal(again.to_pandas(), table.to_pandas(), check_exact=True)
    if suffix == "csv":
        cells = pd.read_csv(tmp_path / "t.csv", dtype=str, keep_default_na=False)
        assert not any(name.startswith(tuple("=+-@\t＝")) for side in ("model_a", "model_b") for name in cells[side])
        assert set(cells[COSINE]) == {"-0.5"}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_name_that_is_not_unicode_is_refused_where_it_cannot_be_kept(tmp_path, suffix):
    table = MetricTable(["a\udcff", "b"], {COSINE: np.zeros((2, 2))})
    with pytest.raises(OutputError, match="is not Unicode"):
        table.save(tmp_path / f"t.{suffix}")
    assert not list(tmp_path.iterdir())
