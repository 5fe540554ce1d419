"""Experiment trackers: a run's trainings and results where a lab looks at all its work."""
