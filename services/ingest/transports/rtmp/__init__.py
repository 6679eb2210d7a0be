"""RTMP: the protocol's parts, pure; a server for publishers; a client that pushes a session's output on."""
