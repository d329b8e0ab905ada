"""Flax modules of the model: vision encoder, projector, resamplers, language model, VLM. No I/O."""
