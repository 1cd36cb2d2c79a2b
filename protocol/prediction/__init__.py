"""What clinics and the prediction service share: parameters, how patients lie in ciphertexts, and the messages.

Trust: both sides run it. It holds no key.
"""
