"""Where a sweep's jobs run: this machine, Slurm, TPU pods."""
