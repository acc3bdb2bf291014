"""What is made from the repository, by hand or by CI."""
