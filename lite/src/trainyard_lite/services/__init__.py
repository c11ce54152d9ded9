"""The API's services; importing one registers its endpoints."""
