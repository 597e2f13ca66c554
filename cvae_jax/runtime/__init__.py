"""The process: devices, platform settings, flags, errors, files and progress."""
