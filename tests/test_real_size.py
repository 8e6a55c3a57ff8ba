"""The run at the paper's size, at a tiny one: its stages all pass, and each has its row."""

from benchmarks import real_size


def test_every_stage_runs(tmp_path, capfd):
    """Assert six rows with times and memory, and what the stages leave."""
    real_size.main(["--work", str(tmp_path), "--size", "tiny", "--mixed_precision", "no"])
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 6
    for row in rows[1:]:
        minutes, memory = map(float, row.split("|")[2:4])
        assert 0 <= minutes < 10
        assert 0.2 < memory < 4
    assert (tmp_path / "step1/checkpoint-2").is_dir()
    assert (tmp_path / "step2/pipeline/view_transformer").is_dir()
