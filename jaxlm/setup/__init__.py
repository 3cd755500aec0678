"""From a config to the task, tokenizer, datasets and model of a run."""
