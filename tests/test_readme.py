"""The tables of the README and of docs/SPEED.md are what the committed measurements say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import readme_table


def test_the_readme_is_up_to_date() -> None:
    if not readme_table.README.exists():
        pytest.skip("not in a checkout")
    for page, text in readme_table.pages().items():
        assert page.read_text(encoding="utf-8") == text, "run python -m benchmarks.readme_table"


def test_a_measurement_becomes_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(readme_table, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme_table, "SPEED", tmp_path / "SPEED.md")
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


def bench_rows() -> list[dict[str, Any]]:
    """As hce bench writes them: two peers of which one is faster, one that was skipped, one of o."""
    rows: list[dict[str, Any]] = []
    for threads in (1, 2):
        for engine, member, speed, ratio, verdict in (
            ("hce", "q", 3000.0, None, ""), ("openvino-int8", "q", 2000.0, 1.5, "FASTER"), ("onnxruntime-int8", "q", 1000.0, 3.0, "FASTER"),
            ("hce", "ensemble", 900.0, None, ""), ("openvino-int8", "ensemble", 890.0, 1.01, "SAME"), ("torch", "o", 500.0, None, ""),
        ):
            against = None if ratio is None else {"ratio": ratio, "interval": [ratio, ratio], "verdict": verdict}
            rows.append({"engine": engine, "member": member, "batch": 128, "threads": threads, "images_per_second": speed * threads,
                         "against": against, "isa_held": True})
        rows.append({"engine": "torch-compile", "member": "s", "batch": 128, "threads": threads, "images_per_second": None, "against": None, "isa_held": True})
    return rows


def test_a_comparison_becomes_a_table_of_ratios(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(readme_table, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme_table, "SPEED", tmp_path / "SPEED.md")
    readme_table.README.write_text(f"{readme_table.BEGIN}\n{readme_table.END}\n")
    claim = {"claim": "hce ensemble against o", "peer": "torch", "batch": 128, "threads": 2, "ratio": 1.8, "interval": [1.7, 1.9],
             "verdict": "FASTER"}
    report = {"schema_version": 1, "command": "bench", "machine": "m, avx2", "versions": {"torch": "2.13.0+cpu", "openvino": "2026.4.1-1-x"},
              "claims": [claim], "rows": bench_rows()}
    (tmp_path / "bench.json").write_text(json.dumps(report))
    arguments = ["--add", "peers", "--caption", "Beside others", "--command", "hce bench r20.hce", str(tmp_path / "bench.json")]
    assert CliRunner().invoke(readme_table.main, arguments).exit_code == 0
    text = readme_table.README.read_text()
    assert "Beside others. `hce bench r20.hce`; m, avx2; torch 2.13.0+cpu, openvino 2026.4.1." in text
    assert "| batch 128, images/s | HCE, 1 thread | fastest peer | ratio | HCE, 2 threads | fastest peer | ratio |" in text
    assert "| Q, quantized | 3,000 | 2,000 openvino-int8 | 1.50x | 6,000 | 4,000 openvino-int8 | 1.50x |" in text
    assert "| **Q + S, ensemble** | 900 | 890 openvino-int8 | 1.01x, SAME | 1,800 | 1,780 openvino-int8 | 1.01x, SAME |" in text
    assert "| the ensemble against O, float32 | | | | 1,800 | 1,000 torch | 1.80x |" in text
    assert "S, pruned" not in text
    assert json.loads((tmp_path / "results" / "peers.json").read_text())["rows"] == bench_rows()


def test_an_audit_becomes_a_table_of_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("README", "SPEED"):
        monkeypatch.setattr(readme_table, name, tmp_path / f"{name}.md")
        getattr(readme_table, name).write_text(f"{readme_table.BEGIN}\n{readme_table.END}\n")
    monkeypatch.setattr(readme_table, "RESULTS", tmp_path / "results")
    member = {"flops_ratio": 0.4, "time_ratio": 0.52, "realised_share": 0.8, "bound_share": 0.9}
    report = {
        "machine": {"processor": "m", "isa": "avx2"}, "setting": {"threads": 1, "batch": 128}, "peaks": [{"macs": {"f32": 64e9}}],
        "original": {"member": "o"}, "members": {"s": member}, "layers": [], "total": member,
        "peers": {"rows": [{"engine": "x", "member": "o"}, {"engine": "x", "member": "s", **member, "bound_share": None}]},
        "sweep": {"lines": {"hce": {"fixed": 0.02, "slope": 0.98, "largest_distance": 0.01, "least_share": 0.94}}},
    }
    (tmp_path / "audit.json").write_text(json.dumps(report))
    arguments = ["--add", "speed/audit", "--caption", "Saving", "--command", "hce audit r20.hce", str(tmp_path / "audit.json")]
    assert CliRunner().invoke(readme_table.main, arguments).exit_code == 0
    text = readme_table.SPEED.read_text()
    assert "Saving. `hce audit r20.hce`; m, avx2, 1 thread, batch 128; measured peaks f32 64 GMAC/s." in text
    assert "| S, pruned, float32 | 40.0 % | 52.0 % | 0.80 | 0.90 |" in text
    assert "| s on x | 40.0 % | 52.0 % | 0.80 |  |" in text
    assert "time = 0.020 + 0.980 x FLOPs; farthest point 1.0 %" in text
    assert "Saving" not in readme_table.README.read_text()
