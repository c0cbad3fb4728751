"""What trains: the loop and its parts. Tells through events, never prints; only modules that need torch import it."""
