// What a viewer's page knows and does: one WHEP connection, kept up.

import { batch, signal } from "@preact/signals"
import { keep } from "./media/keeping.ts"
import { Peering } from "./media/peering.ts"
import { ApiError, type Failure, failureOf } from "./pure/failures.ts"

export class Watching {
  readonly phase = signal<"connecting" | "watching" | "reconnecting" | "failed">("connecting")
  readonly media = signal<MediaStream | null>(null)
  readonly failure = signal<Failure | null>(null)
  readonly #url: string
  #stop = new AbortController()

  constructor(playback: string) {
    this.#url = `/whep/${encodeURIComponent(playback)}`
  }

  async watch(): Promise<void> {
    this.#stop.abort()
    const stop = new AbortController()
    this.#stop = stop
    const media = new MediaStream()
    batch(() => {
      this.phase.value = "connecting"
      this.failure.value = null
      this.media.value = null
    })
    try {
      await keep(
        () => Peering.watch(this.#url, ({ track }) => this.#take(media, track), stop.signal),
        (peering) => {
          if (!stop.signal.aborted) this.phase.value = peering ? "watching" : "reconnecting"
        },
        stop.signal,
      )
    } catch (error) {
      if (stop.signal.aborted) return
      this.phase.value = "failed"
      this.failure.value = viewersFailure(error)
    }
  }

  // A video element that was given a stream without tracks would keep the page loading for ever.
  #take(media: MediaStream, track: MediaStreamTrack): void {
    replace(media, track)
    this.media.value = media
  }

  leave(): void {
    this.#stop.abort()
  }
}

/** A connection that was made anew brings new tracks for the same element. */
export function replace(media: MediaStream, track: MediaStreamTrack): void {
  for (const before of media.getTracks()) if (before.kind === track.kind) media.removeTrack(before)
  media.addTrack(track)
}

function viewersFailure(error: unknown): Failure {
  const failure = failureOf(error)
  if (error instanceof ApiError && error.status === 404) {
    return {
      ...failure,
      title: "Nothing to watch here",
      text: "The stream was deleted, or the link is not complete.",
    }
  }
  return failure
}
