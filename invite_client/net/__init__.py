"""Everything that opens a socket. Foreign exceptions become ours here, and nowhere else."""
