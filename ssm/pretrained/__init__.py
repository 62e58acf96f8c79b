"""Published weights: Hugging Face and DeepMind names to ours, and back.

Files are safetensors only: nothing that is read is ever executed.
"""

from ssm.pretrained.checkpoint import from_flax, load, save
from ssm.pretrained.recurrent_gemma import RecurrentGemma

__all__ = ["RecurrentGemma", "from_flax", "load", "save"]
