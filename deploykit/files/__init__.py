"""Files as they are read, recognised and atomically written, and extension files."""
