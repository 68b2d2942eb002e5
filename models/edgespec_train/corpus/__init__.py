"""The texts a draft is trained on: where prompts come from, what the target writes, shards, batches."""
