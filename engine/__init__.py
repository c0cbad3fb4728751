"""What trains: the loop and its parts. Tells through events, never prints; torch is imported by the modules that need it."""
