"""What people import and type: `sluice.pipeline` for authors of pipelines, the client, and the command."""
