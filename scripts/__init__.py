"""What a person types: the launcher, its summary, and the project's own checks.

Trust: runs on the machine of whoever starts a simulation, which by its nature sees every simulated site and the
provider. Nothing here runs in a deployment.
"""
