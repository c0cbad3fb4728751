"""What is brought in from elsewhere: archives, and later models and pictures from the network."""
