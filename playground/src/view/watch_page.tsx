// The viewers' page: a player alone, without a key.

import { useSignal } from "@preact/signals"
import { Maximize, Volume2, VolumeX } from "lucide"
import { useEffect, useMemo, useRef } from "preact/hooks"
import mark from "../assets/mark.svg"
import { Watching } from "../watching.ts"
import { Icon } from "./icon.tsx"
import { onPictures, STILL_GAP_MS, VIDEO_GAP_MS } from "./pictures.ts"
import { Notice, Screen } from "./screen.tsx"

const SAID = {
  connecting: "Connecting.",
  watching: "Waiting for the stream.",
  reconnecting: "Connection lost, trying to get it back.",
  failed: "",
} as const

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
  const moving = useSignal(false)
  const media = watching.media.value
  useEffect(() => {
    let before = 0
    if (video.current === null || media === null) return undefined
    return onPictures(video.current, (now) => {
      if (now - before < VIDEO_GAP_MS) moving.value = true
      if (now - before > STILL_GAP_MS) moving.value = false
      before = now
    })
  }, [media, moving])
  const failure = watching.failure.value
  const phase = watching.phase.value
  const live = phase === "watching" && moving.value
  return (
    <div class="watch">
      <Screen
        name={live ? "Live" : phase === "watching" ? "Waiting for the stream" : "Watch"}
        media={media}
        muted={muted.value}
        live={live}
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
        {failure ? `${failure.title}. ${failure.text}` : live ? "Live." : SAID[phase]}
      </p>
    </div>
  )
}
