"""The families of base models: what a file is (detect), how it is loaded (load), how each one works (sd, sdxl)."""
