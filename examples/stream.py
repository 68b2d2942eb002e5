"""Print a text while it is written. The same seed gives the same text, whatever drafts.

python examples/stream.py
"""

import edgespec

pipeline = edgespec.load()
sampling = edgespec.SamplingParams(temperature=0.8, top_p=0.95, seed=1)
stream = pipeline.stream("Tell me a story about a lighthouse.", max_new_tokens=48, sampling=sampling)
for piece in stream:
    print(piece, end="", flush=True)
print(f"\n[{stream.result.finish_reason}]")
