"""The texts that a draft is trained on: sources of prompts, generation, shards, batches."""
