"""Programs about the repository itself; nothing imports them but their tests."""
