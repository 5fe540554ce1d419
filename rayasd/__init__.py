"""Anomalous sound detection when only normal sounds exist for training: from wav files to a leaderboard."""

__version__ = "0.1.0"
