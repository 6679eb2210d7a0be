"""WebRTC at the edge: one UDP port, pictures and sound passed through as they are encoded."""
