"""Answer a question, and say what the drafts were worth.

python examples/quickstart.py
"""

import edgespec

pipeline = edgespec.load()  # or a folder, a .gguf file, a hub id
result = pipeline.generate("What is the capital of France?", max_new_tokens=32)
print(result.text)
print(f"{len(result.token_ids)} tokens in {len(result.stats.rounds)} forwards, numerics {result.numerics}")
