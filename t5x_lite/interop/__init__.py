"""Weights from elsewhere and for elsewhere: Hugging Face, T5X, and our own run folders."""

from t5x_lite.interop.conversion import convert
from t5x_lite.interop.growth import NewTokens
from t5x_lite.interop.restore import assign, fingerprint, load_model, open_source, open_step, restore_partial
from t5x_lite.interop.source import Source
from t5x_lite.interop.tokenizer import open_vocabulary

__all__ = [
    "NewTokens",
    "Source",
    "assign",
    "convert",
    "fingerprint",
    "load_model",
    "open_source",
    "open_step",
    "open_vocabulary",
    "restore_partial",
]
