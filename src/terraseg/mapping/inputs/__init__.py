"""Scenes from files, lists, VRTs and addresses."""
