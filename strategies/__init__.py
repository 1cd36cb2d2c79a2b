"""The homomorphic sum, as a Flower strategy.

Trust: runs at the provider, without a secret key, TenSEAL or SEAL. It sees sizes, timing, cohorts and refusals.
"""
