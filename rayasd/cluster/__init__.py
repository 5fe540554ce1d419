"""Ray inside a job: one launcher a node, started by srun, mpirun or by hand."""
