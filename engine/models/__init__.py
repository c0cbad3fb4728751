"""The families of base models: what a file is (detect), how it is loaded (load), what the loop asks of every family
(family), and how each one works (sd, sdxl)."""
