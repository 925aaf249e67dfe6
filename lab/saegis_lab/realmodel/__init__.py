"""The filter on a real model: texts in many languages, a fine-tuned copy, an SAE, and what is measured."""
