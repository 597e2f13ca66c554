"""Many runs compared, and their report."""
