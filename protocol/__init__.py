"""The public vocabulary that hospitals and provider share.

Parameters, packing, masks, tags and messages, as pure functions over bytes and arrays; and the part of SEAL's
arithmetic that takes no key.

Trust: both sides run it. It stores no secret and does no I/O but to hand SEAL bytes; where a function takes a key, the
caller at the site passes one in.
"""
