"""The parts of `tools/gpu_check.py`: what is measured, and how."""
