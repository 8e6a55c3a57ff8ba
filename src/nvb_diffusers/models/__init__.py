"""The networks: a folder of the saved pipeline is a file here."""
