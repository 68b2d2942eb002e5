"""The texts that a draft is trained on: sources of prompts, generation, shards, batches."""

SOURCES = ("user turns by the target", "code begun by the target", "code", "text")
"""where prompts come from; a shard has their numbers"""
