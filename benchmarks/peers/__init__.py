"""Peers: the same work as a user of another library would write it. They never import jax."""
