"""The API's services: importing this package registers the endpoints of each."""

from . import auth, debug, events, models, organization, projects, queues, tasks, workers

__all__ = ["auth", "debug", "events", "models", "organization", "projects", "queues", "tasks", "workers"]
