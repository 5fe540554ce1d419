"""The prepared script for a GPU: correctness first, then speed (benchmarks/gpu.sh runs it)."""
