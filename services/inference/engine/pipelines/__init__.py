"""The pipelines that come with the engine, entry points of this package: each is imported when asked for."""
