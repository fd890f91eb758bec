"""Fused operations of the model, each with a plain torch reference that defines correct."""

from krea_model.kernels.choice import gate_output, rms_norm_modulate, rotate, swiglu

__all__ = ["gate_output", "rms_norm_modulate", "rotate", "swiglu"]
