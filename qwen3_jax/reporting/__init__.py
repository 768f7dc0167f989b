"""What `qwen3_jax.report` is made of."""
