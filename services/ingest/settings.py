"""What ingest can be told, and why each default is what it is."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from services.common.settings import ServiceSettings, config


class IngestSettings(ServiceSettings):
    """`SLUICE_INGEST_*`."""

    @property
    def own_url(self) -> str:
        """Where other ingest processes reach this one's public HTTP."""
        return self.signalling_url.rstrip("/") or f"http://{self.listen}"

    def operates(self, tenant: str) -> bool:
        """Whether a tenant's keys may do what concerns the whole installation."""
        return tenant in {name.strip() for name in self.operators.split(",") if name.strip()}

    model_config = config("ingest")

    listen: str = Field("127.0.0.1:8000", description="Public HTTP, host:port.")
    public_url: str = Field("", description="What clients call this installation. Empty: the request's host.")
    trickle_listen: str = Field("127.0.0.1:8001", description="Internal trickle for runners, host:port.")
    trickle_url: str = Field(
        "",
        description="URL under which runners reach it. Empty: as listened.",
    )
    public_trickle_listen: str = Field(
        "127.0.0.1:8002", description="Trickle for clients, host:port; below it the path is `/trickle/`."
    )
    public_trickle_url: str = Field(
        "",
        description="URL under which clients reach it. Empty: http, the request's host, the port listened.",
    )
    channel_creation: Literal["api", "key", "anybody"] = Field(
        "key",
        description="Who makes public trickle channels: only the API; also a POST with an API key to a free"
        " name; or anybody who writes to a free name, for trusted networks.",
    )
    channel_changefeed: bool = Field(
        False,
        description="Tell on the public channel `_changes` which named channels come and go.",
    )
    channel_idle_s: float = Field(
        300.0, gt=0, description="A public channel in which no byte moved for so long is closed."
    )
    max_channels: int = Field(
        200, ge=1, description="Public trickle channels on this pod; each may hold 4 MB."
    )
    max_channels_per_tenant: int = Field(
        25, ge=1, description="Public trickle channels of one tenant; anybody's count as one tenant's."
    )
    bridge_listen: str = Field("127.0.0.1:7000", description="gRPC `Bridge`, host:port.")
    bridge_address: str = Field(
        "", description="host:port under which session-managers reach this pod's bridge. Empty: as listened."
    )
    session_manager_address: str = Field("127.0.0.1:7002", description="Streams and sessions, host:port.")
    router_address: str = Field("127.0.0.1:7001", description="The router, host:port.")
    billing_address: str = Field("127.0.0.1:7003", description="Billing, host:port.")
    stream_secret: str = Field(
        min_length=16,
        description="Signs stream keys and playback ids; the same on every ingest pod.",
    )
    outbox_path: str = Field(
        "outbox.sqlite3",
        description="Where usage waits on disk until the ledger has it; survives this process.",
    )
    default_pipeline: str = Field("effects", description="The pipeline of a stream that names none.")
    first_picture_s: float = Field(
        10.0, gt=0, le=120, description="How long a publisher may take to send its first whole picture."
    )
    silent_after_s: float = Field(2.0, gt=0, le=60, description="No picture for so long pauses the session.")
    publisher_grace_s: float = Field(
        30.0, gt=0, le=3600, description="How long a session waits for a publisher that vanished."
    )
    orphan_after_s: float = Field(
        90.0,
        gt=0,
        description="A session without publisher or credit closes by itself then, if nobody ended it.",
    )
    window_s: float = Field(5.0, gt=0, le=60, description="Length of a usage window: what a crash can lose.")
    viewer_wait_s: float = Field(
        20.0, ge=0, le=120, description="How long a viewer of an idle stream waits for it to start."
    )
    viewer_stall_s: float = Field(
        15.0, gt=0, le=600, description="A viewer that takes nothing for so long is disconnected."
    )
    max_viewers: int = Field(50, ge=1, description="Viewers of one stream on this pod.")
    max_sessions: int = Field(100, ge=1, description="Sessions on this pod; 25 are about one core.")
    max_bitrate_mbps: float = Field(
        50.0, gt=0, description="A publisher above it, over 5 s, is cut off: the rings are sized for less."
    )
    complete_ahead_s: float = Field(
        2.0, gt=0, le=10, description="How far a `complete` publisher may be ahead of the output."
    )
    call_timeout_s: float = Field(
        20.0, gt=0, le=120, description="Bound of a call to another service; above a start's wait for a slot."
    )
    traces_url: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Where traces are looked up: base URL of Jaeger's query API v3, http://jaeger:16686. "
        "Empty: nowhere.",
    )
    key_ttl_s: float = Field(
        3600.0, gt=0, description="How long a verified key stays good while billing is away."
    )
    key_fresh_s: float = Field(
        30.0, gt=0, description="How long a verified key is used without asking billing again."
    )
    loopback_key: str = Field(
        "",
        description="The API key that clients on this machine have without sending one, so that published"
        " samples run unchanged. For one machine only; pages of other sites are not let in by it.",
    )
    signalling_url: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="URL under which other ingest processes reach this one's public HTTP, to pass on the"
        " signalling of sessions that are here. Empty: http, as listened.",
    )
    operators: str = Field(
        "",
        description="Tenants, by commas, whose keys may drain runners, and see and move the sessions of all.",
    )
    max_streams_per_tenant: int = Field(50, ge=1, description="Live sessions of one tenant on this pod.")
    max_viewers_per_tenant: int = Field(
        200, ge=1, description="Viewers of all streams of one tenant on this pod."
    )
    min_video_kbps: int = Field(
        300,
        ge=50,
        description="Receivers' feedback never makes a runner's bitrate lower, for the slowest viewer decides"
        " for all. A viewer below it drops pictures.",
    )
    max_video_kbps: int = Field(
        6000, ge=100, description="Receivers' feedback never makes a runner's bitrate higher."
    )
    data_channel_message_bytes: int = Field(
        65_536,
        ge=1024,
        le=1 << 20,
        description="The largest message that a client may send on a data channel.",
    )
    data_channel_messages_per_s: float = Field(
        50.0,
        ge=1,
        description="Messages that a data channel takes, a second and at once; what is more is not read, and"
        " its client is told.",
    )
    recording_dir: str = Field(
        "",
        description="Where recordings are kept, in files without a name, so that none stays behind. Empty:"
        " the system's directory for temporary files.",
    )
    recording_max_mb: int = Field(
        200,
        ge=1,
        description="A recording ends by itself at this size; while it is fetched it needs twice of it.",
    )
    recording_keep_s: float = Field(
        600.0, gt=0, description="How long a recording can be fetched after it has ended."
    )
    max_recordings: int = Field(10, ge=0, description="Recordings on this pod, with those that have ended.")
    hls_target_s: int = Field(
        2,
        ge=1,
        le=10,
        description="Target duration of HLS: key frames are asked for in time for it, and players without"
        " low latency stay three times of it behind.",
    )
    hls_buffer_mb: int = Field(
        16, ge=1, description="What is held of a stream that is watched as HLS: 16 s of 8 Mbit/s."
    )
    hls_wait_s: float = Field(
        8.0,
        ge=0,
        le=120,
        description="How long a player waits for a stream that is not live; players give up after 10 s.",
    )
    hls_idle_s: float = Field(
        30.0, gt=0, description="A stream that nobody asked for so long is no longer packaged."
    )
    max_hls_streams: int = Field(
        25, ge=1, description="Streams on this pod that are packaged as HLS; each may hold its buffer."
    )
    rtmp_listen: str = Field("127.0.0.1:1935", description="RTMP for publishers, host:port.")
    public_rtmp_url: str = Field(
        "",
        description="URL under which clients publish by RTMP, rtmp://host/live. Empty: the request's host and"
        " the port listened.",
    )
    rtmp_tls_cert: str = Field(
        "",
        description="Certificate chain (PEM) that makes this port RTMPS. Empty: plain RTMP, for behind a"
        " proxy that ends TLS.",
    )
    rtmp_tls_key: str = Field("", description="Its private key (PEM). Empty: in the same file.")
    rtmp_max_connections: int = Field(
        400, ge=1, description="RTMP connections on this pod, also of those that have yet to say a key."
    )
    rtmp_max_connections_per_address: int = Field(
        100, ge=1, description="RTMP connections of one address; all clients may come by one load balancer."
    )
    rtmp_push_private: bool = Field(
        False,
        description="Streams may be pushed to RTMP servers on this machine and in private networks. Off, for"
        " whoever may make streams could reach them with it.",
    )
    webrtc_listen: str = Field(
        "127.0.0.1:8189", description="UDP of every WebRTC connection of this process, host:port."
    )
    webrtc_address: str = Field(
        "",
        description="Where clients reach that port: addresses or names, by commas, with or without a port."
        " Empty: the host listened, or for 0.0.0.0 the one of the default route.",
    )
    stun_urls: str = Field(
        "", description="STUN servers that clients are told, by commas. This server needs none."
    )
    turn_urls: str = Field(
        "",
        description="TURN servers that clients are told, by commas: turn:host:3478?transport=udp,"
        "turns:host:443?transport=tcp, for clients whose network lets no UDP out.",
    )
    turn_secret: str = Field(
        "", description="The TURN servers' shared secret (coturn's use-auth-secret), to sign credentials."
    )
    turn_ttl_s: float = Field(
        3600.0, ge=60, le=86_400, description="How long a TURN credential can be used to connect."
    )
    max_peers: int = Field(
        200,
        ge=1,
        description="WebRTC connections on this pod, publishers and viewers; 100 are about one core.",
    )
    viewer_idle_s: float = Field(
        600.0, gt=0, description="A WebRTC viewer of a stream that has no picture for so long is let go."
    )
