"""What a run has found out, without when and by which command."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

_WHOLE = ("models/**/model.safetensors", "models/**/config.json", "models/**/history.jsonl", "embeddings/**/*.parquet",
          "scores/**/*.parquet", "ensembles/**/*", "leaderboard.csv")  # fmt: skip


def results_of(run: Path) -> dict[str, bytes]:
    """Read the files that two runs of the same configuration and data must have in common, byte for byte."""
    results = {
        str(path.relative_to(run)): path.read_bytes()
        for pattern in _WHOLE
        for path in run.glob(pattern)
        if path.is_file()
    }
    for name in ("cells.parquet", "leaderboard.parquet"):
        if (run / name).exists():
            results[name] = _without_provenance(pq.read_table(run / name))
    if (run / "leaderboard.md").exists():
        lines = (run / "leaderboard.md").read_text(encoding="utf-8").splitlines()
        results["leaderboard.md"] = "\n".join(line for line in lines[1:] if not line.startswith("- ")).encode()
    return results


def _without_provenance(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(), buffer)
    return buffer.getvalue()
