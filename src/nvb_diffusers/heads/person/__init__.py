"""What is drawn for one identity, as values, before any geometry."""
