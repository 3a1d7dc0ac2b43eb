"""Where what was learned is kept: in memory by default."""
