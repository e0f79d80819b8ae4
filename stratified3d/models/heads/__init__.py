"""Detection heads and the parts that they share."""
