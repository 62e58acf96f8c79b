"""Models: an encoder, a stack of blocks, a head."""

from ssm.models import griffin, hgrn, minimax, transformer, transnormer
from ssm.models.classifier import SequenceClassifier
from ssm.models.language_model import LanguageModel
from ssm.models.retrieval import RetrievalClassifier
from ssm.models.stack import Stack

__all__ = [
    "LanguageModel",
    "RetrievalClassifier",
    "SequenceClassifier",
    "Stack",
    "griffin",
    "hgrn",
    "minimax",
    "transformer",
    "transnormer",
]
