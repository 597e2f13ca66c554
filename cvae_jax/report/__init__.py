"""What people look at after a run: GIFs, film strips, curves and tables."""
