"""What goes into a bug report: the parts of it, and the folder or archive that they are written to."""
