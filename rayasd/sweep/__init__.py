"""What to run and where: the plan, the run directory, the driver and the executors."""
