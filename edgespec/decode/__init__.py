"""The decoding loop is speculative.py. Plain decoding, the oracle of the tests, is autoregressive.py.

verify.py decides which draft tokens are accepted, and says why drafts do not change the tokens (see docs/exactness.md).
constraint.py and forced_tokens.py apply a response format. policy.py has the policies that need no measured costs.
"""
