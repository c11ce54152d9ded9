"""The web page of port 8080."""
