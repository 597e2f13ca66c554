"""From files to batches: TFDS builders, recordings in memory, clips, pose labels."""
