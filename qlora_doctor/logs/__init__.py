"""From a log, an exit code or a dead process to the cause and its fix."""
