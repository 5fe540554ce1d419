"""Outlier exposure: a network that tells a machine's products apart and the machine from all others."""
