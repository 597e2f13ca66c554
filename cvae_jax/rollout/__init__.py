"""The loop over time, and rollouts of long videos in chunks."""
