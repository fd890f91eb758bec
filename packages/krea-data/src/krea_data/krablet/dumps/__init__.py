"""A krablet as a folder, and back."""
