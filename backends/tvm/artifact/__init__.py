"""From a schedule to an artifact on disk, and running it."""
