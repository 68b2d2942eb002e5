"""A conversation of two turns. The second turn reads only what is new: the rest is still in the KV cache.

python examples/chat.py
"""

import edgespec

pipeline = edgespec.load()
messages: list[dict[str, str]] = []
for question in ("Name a fruit that is red.", "And one that is yellow?"):
    messages.append({"role": "user", "content": question})
    answer = pipeline.chat(messages, max_new_tokens=32)
    messages.append({"role": "assistant", "content": answer.text})
    print(f"> {question}\n{answer.text}")
    print(f"[{answer.stats.prompt_tokens} tokens of prompt, {answer.stats.reused_tokens} of them reused]")
