"""A procedural dancer: every frame and label is a pure function of a seed, a sequence and a frame index."""
