"""Synthetic people: attributes and captions drawn from a seed, heads, hair, clothes, and their renderer."""
