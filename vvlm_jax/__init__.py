"""A video vision-language model in JAX: data, model, training, generation, evaluation."""
