"""Configs of TerraTorch's own classes, of any age, as experiments of terraseg."""
