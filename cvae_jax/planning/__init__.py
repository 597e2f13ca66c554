"""What a training run needs: operations, memory, time. `python -m cvae_jax.plan` prints it."""
