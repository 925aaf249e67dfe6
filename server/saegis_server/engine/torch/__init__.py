"""The embedded engine: Transformers' model code, steered inside a step that torch compiles."""
