"""A plan never costs a score that was filled in."""

import pytest
from click.testing import CliRunner

from mergekern.cli import main
from tests.support.measurements import make_table


@pytest.fixture
def files(tmp_path):
    make_table(tasks=6).save(tmp_path / "t.parquet")
    return tmp_path


def plan(files, *arguments):
    return CliRunner().invoke(main, ["plan-measurements", str(files / "t.parquet"), *map(str, arguments)])


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
def test_a_plan_is_added_to_the_scores(files, end, closed):
    scores = files / "scores.csv"
    rows = ["remark,model_b,model_a,method,accuracy", "good,task1,task0,tsv,0.31", "later,task3,task2,tsv,"]
    text = end.join(rows) + (end if closed else "")
    scores.write_bytes(text.encode())
    for _ in range(2):
        result = plan(files, "-k", 14, "--scores", scores, "--method", "tsv", "--out", scores)
        assert result.exit_code == 0, result.output
        found = scores.read_bytes().decode()
        assert found.startswith(text)
        lines = found.split(end)
        assert len(lines) == 1 + 2 + 13 + 1
        assert {line.split(",")[0] for line in lines[3:-1]} == {""}
        assert all(line.endswith(",tsv,") for line in lines[3:-1])


def test_another_file_is_not_replaced(files):
    out = files / "plan.csv"
    assert plan(files, "-k", 2, "--out", out).exit_code == 0
    first = out.read_bytes()
    result = plan(files, "-k", 3, "--out", out)
    assert result.exit_code == 1
    assert "pass it as --scores too, to add the plan to it, or --overwrite" in result.output
    assert out.read_bytes() == first
    assert plan(files, "-k", 3, "--out", out, "--overwrite").exit_code == 0
    assert out.read_bytes().count(b"\n") == 4
    filled_in = out.read_bytes()[:-1] + b"0.5\n"
    for content in (filled_in, b"my notes", b"\xff\xfe"):
        out.write_bytes(content)
        result = plan(files, "-k", 3, "--out", out, "--overwrite")
        assert result.exit_code == 1
        assert "only such a plan is replaced" in result.output
        assert out.read_bytes() == content
