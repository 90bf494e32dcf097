"""Independent samples."""
