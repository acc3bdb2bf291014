"""A release in one command: ``python -m tools.release``. docs/releases.md says what it checks."""
