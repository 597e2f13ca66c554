"""Evaluation: scores, baselines, tables and their protocol."""
