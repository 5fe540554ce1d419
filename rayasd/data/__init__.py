"""Clips on disk become arrays: naming, catalog, manifest, waveform cache, synthetic machines."""
