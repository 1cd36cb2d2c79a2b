"""What is typed about predictions: keys and queries at whoever asks, `serve` and `service` at the provider.

Trust: each command is one side's; none holds both a secret key and a plaintext model of others.
"""
