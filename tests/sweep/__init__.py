"""Sweeps: whole kinds of faults looked for in every place where they could be."""
