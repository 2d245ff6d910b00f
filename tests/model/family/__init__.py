"""Tiny models of every decoder family that CTranslate2's converter makes: what `families.py` writes."""
