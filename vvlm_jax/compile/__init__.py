"""Compile a step for chips that are not there."""
