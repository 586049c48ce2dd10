"""What is searched: architectures, their genes, costs and features."""
