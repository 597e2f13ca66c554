"""From a video of one person to a data set: what prepare.py calls."""
