"""Running units: the plan, the run directory, the driver and the executors."""
