"""What a hospital learns from its own patients, and makes of the sums: models, optimisers, statistics, scores, noise.

Trust: site only. Plaintext updates live here, and leave only through `clients.secrets.sealing`.
"""
