"""Associations: negotiate, receive, acknowledge."""
