"""Search and sampling over an explicit cache."""
