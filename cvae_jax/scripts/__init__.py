"""The programs: each module has a `main` that parses flags and makes one call."""
