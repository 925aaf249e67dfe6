"""Filters: policies that turn harmful answers into refusals, made in a few languages to hold in all."""
