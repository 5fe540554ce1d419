"""What rayasd's speed is worth, each figure beside the plain way to the same result."""
