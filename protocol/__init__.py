"""The public vocabulary that hospitals and provider share.

Parameters, packing, masks, tags and messages, as pure functions over bytes and arrays.

Trust: both sides run it. It stores no secret and does no I/O; where a function takes a key, the caller at the site
passes one in.
"""
