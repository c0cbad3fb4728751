"""Other trainers' configs: read, explained key by key, and written."""
