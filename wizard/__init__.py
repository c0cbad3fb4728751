"""The terminal: asks, explains, shows and launches."""
