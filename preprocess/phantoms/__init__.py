"""Procedural raw sample data: made-up patients of five modalities in the formats that clinics use."""
