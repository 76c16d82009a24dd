"""Makes everything in `data/`: the world, its prose, the instructions, the tokenizer and the base model."""
