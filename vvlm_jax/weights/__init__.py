"""Weights in and out: big_vision `.npz` and Hugging Face safetensors, each tensor accounted for."""
