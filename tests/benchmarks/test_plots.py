from click.testing import CliRunner

from benchmarks import plots, rows


def test_each_figure_is_drawn_from_its_rows(tmp_path):
    provenance = {"device": "abacus, 2 threads", "time": "2025-01-01"}
    later = {"device": "NVIDIA Abacus", "time": "2025-01-02"}
    cases = [
        *("compute_all/vit_w384_d4x2/files", "compute_all/vit_w384_d4x5/files"),
        *("compute_all/block_w256x2/memory", "compute_all/vit_w384_d4x5/files/threads_1"),
        *("kernel/gram/2x100", "kernel/gram/2x100/torch"),
    ]
    for case in cases:
        row = rows.make(case, [2.0], 10, 10, rows.Rates(10.0, 10.0), provenance)
        rows.append(row, "suite", tmp_path / "results")
    row = rows.make(cases[0], [1.0], 10, 10, rows.Rates(10.0, 10.0), later)
    rows.append(row, "nvidia_abacus", tmp_path / "results")
    options = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "plots")]
    assert CliRunner().invoke(plots.main, options, catch_exceptions=False).exit_code == 0
    drawn = {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()}
    assert set(drawn) == {f"{name}.svg" for name in plots.FIGURES}
    assert all(b"<svg" in content for content in drawn.values())
    CliRunner().invoke(plots.main, options, catch_exceptions=False)
    assert {path.name: path.read_bytes() for path in (tmp_path / "plots").iterdir()} == drawn


def test_nothing_is_drawn_without_rows(tmp_path):
    options = ["--results", str(tmp_path / "results"), "--out", str(tmp_path / "plots")]
    assert CliRunner().invoke(plots.main, options, catch_exceptions=False).exit_code == 0
    assert not (tmp_path / "plots").exists()
