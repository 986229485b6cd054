"""The demonstration: an e-mail marketing platform whose caches are proved right, or, with --naive, caught wrong."""
