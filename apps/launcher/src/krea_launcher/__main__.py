"""python -m krea_launcher."""

from krea_launcher.cli import app

if __name__ == "__main__":
    app()
