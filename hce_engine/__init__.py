"""HCE Engine: compressed CNN ensembles that run as fast as their FLOPs say."""

__version__ = "0.1.0"
