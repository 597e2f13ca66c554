"""Videos from a trained run."""
