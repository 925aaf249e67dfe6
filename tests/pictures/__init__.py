"""Tests of pictures that come from outside."""
