"""Texts and tables made to overflow: endless lines, cells of megabytes, columns by the million."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.attack import PEAK_KIB, Run


def test_bombs_among_reports(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "sound.txt").write_text("FINDINGS: The lungs are clear.\nIMPRESSION: No acute disease is seen.\n")
    (folder / "cell.csv").write_bytes(b"impression\n" + b"lungs " * 3_000_000 + b"\n")
    (folder / "quote.csv").write_bytes(b'impression,id\n"' + b"lungs are clear\n" * 100_000)
    (folder / "line.jsonl").write_bytes(b'{"impression": "' + b"lungs " * 3_000_000 + b'"}\n')
    (folder / "deep.jsonl").write_bytes(b'{"impression": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n")
    (folder / "columns.csv").write_bytes(b"impression," * 1_000_000 + b"\n" + b"lungs are clear,\n" * 100)
    (folder / "text.txt").write_bytes(b"IMPRESSION: clear lungs. " * 400_000)
    (folder / "archive.zip").write_bytes(b"PK\x03\x04" + bytes(1000))
    # Small files both: equal cells are stored once, and pages compressed.
    pq.write_table(pa.table({"impression": ["lungs " * 8_000_000]}), folder / "cell.parquet", compression="zstd")
    table = pa.table({"impression": ["The lungs are clear. " * 110_000] * 300, "id": [str(n) for n in range(300)]})
    pq.write_table(table, folder / "many.parquet", compression="zstd")
    for name, head in (("hole.csv", b"impression\n"), ("hole.jsonl", b"{")):
        with (folder / name).open("wb") as file:  # takes no room
            file.write(head)
            file.truncate(64 << 20)
    run = Run("report", folder, "--vocabulary", "512", "--id-column", "id")
    assert run.reasons == {
        "sound.txt": "written", "archive.zip": "unsupported_format", "text.txt": "too_large", "cell.csv": "too_large",
        "line.jsonl": "too_large", "columns.csv": "too_large", "cell.parquet": "too_large", "hole.csv": "too_large",
        "hole.jsonl": "too_large", "many.parquet": "too_large", "deep.jsonl": "malformed_rows",
        "quote.csv": "malformed_rows",
    }  # fmt: skip
    assert run.peak_kib < PEAK_KIB
