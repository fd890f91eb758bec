"""Fused operations of the model, each with a plain torch reference that defines correct."""

from krea_model.kernels.choice import gate_output, gated_residual, norm_rotate, rms_norm_modulate, swiglu

__all__ = ["gate_output", "gated_residual", "norm_rotate", "rms_norm_modulate", "swiglu"]
