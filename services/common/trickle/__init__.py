"""Live byte streams in segments over HTTP: protocol, channel, server, publisher, subscriber."""
