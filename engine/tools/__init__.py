"""What one does with finished files: look into them, shrink, translate, merge, extract, label, publish, back up."""
