"""Training: steps, gradients, state, checkpoints, resume and logging."""
