"""benchmarks/trace.py runs, on small networks."""

from benchmarks.trace import main


def test_trace_prints_seconds_for_both_families(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["trace", "--tiny", "--json", str(tmp_path / "rows.json")])
    main()
    assert [row.split(" | ")[0] for row in capsys.readouterr().out.splitlines()[2:]] == ["| sdxl", "| sd3-medium"]
    assert (tmp_path / "rows.json").stat().st_size > 50
