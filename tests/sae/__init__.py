"""Tests of the SAE package."""
