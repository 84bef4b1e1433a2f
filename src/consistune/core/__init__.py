"""The method: consistency learning as a composition of five small parts (imports torch and nothing else)."""
