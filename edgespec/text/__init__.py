"""Between text and tokens: tokenizer, chat template, response format (constraints), vocabularies."""
