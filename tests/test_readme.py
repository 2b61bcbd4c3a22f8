"""The README's tables are what the committed measurements say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import readme_table


def test_the_readme_is_up_to_date() -> None:
    if not readme_table.README.exists():
        pytest.skip("not in a checkout")
    text = readme_table.README.read_text(encoding="utf-8")
    assert readme_table.with_tables(text) == text, "run python -m benchmarks.readme_table"


def test_a_measurement_becomes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(readme_table, "README", tmp_path / "README.md")
    readme_table.README.write_text(f"above\n{readme_table.BEGIN}\nold\n{readme_table.END}\nbelow\n")
    report = {
        "accuracy": {"o": 0.985, "ensemble": 0.98}, "total": 898, "bytes": {"o": 1000, "ensemble": 400}, "threads": 2,
        "flops_ratios": {"o": 1.0, "ensemble": 0.5}, "images_per_second": {"o": 5000.4, "ensemble": 9000, "torch": 2000},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    arguments = ["--add", "digits", "--caption", "Digits", "--command", "make quickstart", str(tmp_path / "report.json")]
    result = CliRunner().invoke(readme_table.main, arguments)
    assert result.exit_code == 0, result.output
    text = readme_table.README.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    assert "| O, original, float32 | 98.50 % | 100.0 % | 1,000 | 5,000 |" in text
    assert "898 images" in text
    assert CliRunner().invoke(readme_table.main, ["--check"]).exit_code == 0


def test_a_comparison_becomes_a_table_of_ratios() -> None:
    rows = [{"engine": engine, "member": "q", "threads": threads, "images_per_second": speed * threads}
            for engine, speed in (("hce", 3000.0), ("openvino", 2000.0)) for threads in (1, 2)]
    text = readme_table.table({"caption": "c", "command": "d", "machine": "m", "rows": rows})
    assert "| Q, quantized | 3,000 | 2,000 | 1.50x | 6,000 | 4,000 | 1.50x |" in text
