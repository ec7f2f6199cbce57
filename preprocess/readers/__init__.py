"""Readers of clinical file formats: typed refusals instead of whatever a library raises."""
