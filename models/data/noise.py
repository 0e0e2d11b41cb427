def add_noise(text, rng, language, entity):
    return text.upper()
