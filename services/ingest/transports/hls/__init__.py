"""HLS and low-latency HLS of a stream that somebody watches: cut once, held in memory, read by many."""
