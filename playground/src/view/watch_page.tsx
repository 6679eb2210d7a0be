// The viewers' page: a player alone, without a key.

import { useSignal } from "@preact/signals"
import { Maximize, Volume2, VolumeX } from "lucide"
import { useEffect, useMemo, useRef } from "preact/hooks"
import mark from "../assets/mark.svg"
import { Watching } from "../watching.ts"
import { Icon } from "./icon.tsx"
import { Notice, Screen } from "./screen.tsx"

export function WatchPage({ playback }: { playback: string }) {
  const watching = useMemo(() => new Watching(playback), [playback])
  const video = useRef<HTMLVideoElement>(null)
  const muted = useSignal(true)
  useEffect(() => {
    void watching.watch()
    const leave = () => watching.leave()
    addEventListener("pagehide", leave)
    return () => {
      removeEventListener("pagehide", leave)
      leave()
    }
  }, [watching])
  const failure = watching.failure.value
  const phase = watching.phase.value
  return (
    <div class="watch">
      <Screen
        name={phase === "watching" ? "Live" : "Watch"}
        media={watching.media.value}
        muted={muted.value}
        live={phase === "watching"}
        video={video}
        corner={
          <>
            <button
              type="button"
              class="quiet"
              aria-label={muted.value ? "Sound on" : "Sound off"}
              onClick={() => {
                muted.value = !muted.value
              }}
            >
              <Icon node={muted.value ? VolumeX : Volume2} />
            </button>
            <button
              type="button"
              class="quiet"
              aria-label="Full screen"
              onClick={() => void video.current?.requestFullscreen()}
            >
              <Icon node={Maximize} />
            </button>
          </>
        }
      >
        {phase !== "watching" && (
          <div class="cover" data-clear={phase === "reconnecting"}>
            {failure ? (
              <Notice title={failure.title} text={failure.text} bad>
                <button type="button" class="primary" onClick={() => void watching.watch()}>
                  Try again
                </button>
              </Notice>
            ) : (
              <Notice title={phase === "reconnecting" ? "Connection lost" : "Connecting…"} text="" />
            )}
          </div>
        )}
      </Screen>
      <footer>
        <a href="/" class="brand">
          <img src={mark} alt="" width={20} height={20} /> Sluice
        </a>
      </footer>
      <p class="unseen" role="status" aria-live="polite">
        {failure ? `${failure.title}. ${failure.text}` : phase}
      </p>
    </div>
  )
}
