"""Launchers of a sweep's jobs: this machine, Slurm, TPU pods."""
