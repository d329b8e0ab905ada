"""Prefill, decode, sample."""
