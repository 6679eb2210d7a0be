// What comes back, and in its place, while nothing does, what is to be known or done.

import { useSignal } from "@preact/signals"
import { Maximize, Share2, Volume2, VolumeX } from "lucide"
import { useEffect, useRef } from "preact/hooks"
import { pictureOf } from "../known.ts"
import { PatternReader } from "../media/pattern.ts"
import { movedWords, placeWords, stateWords } from "../pure/condition.ts"
import { sinceTime } from "../pure/timecode.ts"
import type { Studio } from "../studio.ts"
import { CopyButton } from "./copy.tsx"
import { Icon } from "./icon.tsx"
import { onPictures, VIDEO_GAP_MS } from "./pictures.ts"
import { Runner } from "./runner.tsx"
import { Notice, Screen } from "./screen.tsx"

const READ_EVERY_MS = 250
const READS_KEPT_MS = 2000 // their median is shown; while a picture fades into another look some cannot be read
const PLAUSIBLE_MS = 20_000

export function ResultScreen({ studio }: { studio: Studio }) {
  const video = useRef<HTMLVideoElement>(null)
  const muted = useSignal(true)
  const media = studio.result.value
  useEffect(() => (video.current && media ? watched(video.current, studio) : undefined), [media, studio])
  const stream = studio.stream.value
  const share = stream ? `${location.origin}/watch/${stream.output_playback_id}` : ""
  return (
    <Screen
      name="Result"
      state={stateOf(studio)}
      media={media}
      muted={muted.value}
      live={studio.phase.value === "live"}
      video={video}
      corner={
        media && (
          <>
            <button
              type="button"
              class="quiet"
              aria-label={muted.value ? "Sound on" : "Sound off"}
              onClick={() => {
                muted.value = !muted.value
              }}
            >
              <Icon node={muted.value ? VolumeX : Volume2} size={16} />
            </button>
            <CopyButton text={share} label="Copy the link for viewers" icon={Share2} />
            <button
              type="button"
              class="quiet"
              aria-label="Full screen"
              onClick={() => void video.current?.requestFullscreen()}
            >
              <Icon node={Maximize} size={16} />
            </button>
          </>
        )
      }
    >
      <Cover studio={studio} />
      <Runner studio={studio} />
    </Screen>
  )
}

/** What is not as it should be; when all is well, that it was moved, for a while. */
function stateOf(studio: Studio): string {
  const move = studio.runner.move.value
  const words = stateWords(studio.status.value?.phase ?? "", studio.status.value?.health)
  return words || (move === null ? "" : movedWords(move))
}

function Cover({ studio }: { studio: Studio }) {
  const phase = studio.phase.value
  if (phase === "live" && studio.playing.value) return null
  const picture = pictureOf(studio.chosen.value)
  return (
    <div class="cover" data-clear={phase === "reconnecting" && studio.playing.value}>
      {picture && phase !== "reconnecting" && <img src={picture} alt="" />}
      <Said studio={studio} />
    </div>
  )
}

function Said({ studio }: { studio: Studio }) {
  const failure = studio.failure.value
  const ending = studio.ending.value
  const away = studio.away.value
  switch (studio.phase.value) {
    case "live":
      if (studio.source.value === null) {
        return <Notice title="Waiting for video" text="Send it to one of the addresses below." />
      }
      return <Starting studio={studio} />
    case "starting":
      return <Starting studio={studio} />
    case "reconnecting":
      return (
        <Notice title="Connection lost" text="Trying to get it back; the session waits for half a minute." />
      )
    case "waiting":
      return <Waiting studio={studio} />
    case "failed":
      if (failure === null) return null
      return (
        <Notice title={failure.title} text={failure.text} bad>
          {failure.remedy === "wait" && (
            <button type="button" class="primary" onClick={() => studio.wait()}>
              Keep trying
            </button>
          )}
          {failure.remedy === "key" && <EnterKey studio={studio} />}
          <button type="button" onClick={() => void studio.start()}>
            Try now
          </button>
        </Notice>
      )
    case "ended":
      if (ending === null) return null
      return (
        <Notice title={ending.title} text={ending.text} bad={!ending.orderly}>
          <button type="button" onClick={() => void studio.start()}>
            Start again
          </button>
        </Notice>
      )
    default:
      if (studio.keyNeeded.value) {
        return (
          <Notice title="A key is needed" text="Enter an API key of this platform to go on.">
            <EnterKey studio={studio} />
          </Notice>
        )
      }
      if (away) return <Notice title={away.title} text={away.text} bad />
      if (studio.offers.value?.length === 0) {
        return <Notice title="No runner is up" text="As soon as one is, its pipelines appear here." />
      }
      return null
  }
}

function Starting({ studio }: { studio: Studio }) {
  const place = studio.line.place.value
  if (place) return <Notice title="All runners are busy" text={`Waiting: ${placeWords(place)}.`} />
  const told = studio.runner.loading.value !== null || studio.runner.trouble.value !== null
  return <Notice title="Starting…" text={told ? "" : "Waiting for the first picture."} />
}

function EnterKey({ studio }: { studio: Studio }) {
  return (
    <button
      type="button"
      class="primary"
      onClick={() => {
        studio.asking.value = true
      }}
    >
      Enter a key
    </button>
  )
}

function Waiting({ studio }: { studio: Studio }) {
  const left = useSignal(0)
  useEffect(() => {
    const tick = () => {
      left.value = Math.max(0, Math.ceil((studio.retryAt.value - Date.now()) / 1000))
    }
    tick()
    const timer = setInterval(tick, 250)
    return () => clearInterval(timer)
  }, [left, studio])
  return (
    <Notice title={studio.failure.value?.title ?? "Waiting"} text={`Trying again in ${left.value} s.`}>
      <button type="button" onClick={() => void studio.stop()}>
        Stop waiting
      </button>
    </Notice>
  )
}

/** Says when video plays, and how old its pictures are if they carry their time. */
function watched(video: HTMLVideoElement, studio: Studio): () => void {
  const reader = new PatternReader()
  let ages: { at: number; ms: number }[] = []
  let before = 0
  let read = 0
  return onPictures(video, (now) => {
    if (now - before < VIDEO_GAP_MS) studio.playing.value = true
    before = now
    if (studio.source.peek()?.kind !== "pattern" || now - read < READ_EVERY_MS) return
    read = now
    const painted = reader.read(video)
    const ms = painted === null ? PLAUSIBLE_MS : sinceTime(performance.now(), painted)
    if (ms < PLAUSIBLE_MS) ages.push({ at: now, ms })
    ages = ages.filter(({ at }) => now - at < READS_KEPT_MS)
    const sorted = ages.map((age) => age.ms).sort((one, other) => one - other)
    studio.measuredMs.value = sorted[Math.floor(sorted.length / 2)] ?? null
  })
}
