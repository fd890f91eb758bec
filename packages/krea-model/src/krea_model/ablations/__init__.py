"""What Krea 2's architecture was weighed against: the model with other parts, to train and compare."""

from krea_model.ablations.variants import BASELINE, VARIANTS, Row, counts, initialise, table, variant

__all__ = ["BASELINE", "VARIANTS", "Row", "counts", "initialise", "table", "variant"]
