"""Inlier modelling: detectors fitted to a section's normal embeddings, and window scores pooled to clips."""
