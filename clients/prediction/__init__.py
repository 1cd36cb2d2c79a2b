"""Score patients through a service that sees neither them nor their scores.

Trust: runs at the clinic or hospital, on patients' records and its own prediction key.
"""

from clients.prediction.canaries import Canaries
from clients.prediction.predictor import EncryptedPredictor

__all__ = ["Canaries", "EncryptedPredictor"]
