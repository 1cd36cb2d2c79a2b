"""The homomorphic sum, as a Flower strategy.

Trust: runs at the provider, without a secret key. It sees sizes, timing, cohorts and refusals; it needs SEAL for
nothing but the seeds of large cohorts.
"""
