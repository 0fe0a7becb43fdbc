"""Data: tokenizer, chat protocol, sources, packing, the generated world."""
