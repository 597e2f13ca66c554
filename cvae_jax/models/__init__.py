"""Networks only: no loss, no loop over time (see `cvae_jax.rollout` and `cvae_jax.losses`)."""
