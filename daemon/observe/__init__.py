"""What an engineer watches: log, metrics, health, audit."""
