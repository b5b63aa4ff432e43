"""What is wrong with a data source: duplicates, labels, images, and what tells the label without the lungs."""
