// The figures of a running stream, each with a word on where it comes from.

import { useSignal } from "@preact/signals"
import { useEffect } from "preact/hooks"
import type { Link } from "../media/link.ts"
import { bitrate, cost, duration, milliseconds, pricePerMinute } from "../pure/format.ts"
import type { Studio } from "../studio.ts"

const TICK_MS = 100
const NEWS_MS = 2500 // older than this, the platform's figures are not carried on

export function Readings({ studio }: { studio: Studio }) {
  const link = studio.link.value
  const status = studio.status.value
  const { latency, source } = latencyReading(studio)
  const dropped = status?.frames_dropped ?? 0
  return (
    <dl class="readings" aria-label="Measurements" data-empty={!link && !status}>
      <Reading name="Latency" value={latency} note={source} title={breakdown(link, status?.latency_ms)} />
      <Reading
        name="Frame rate"
        value={link?.fps ? `${Math.round(link.fps)} fps` : "–"}
        note={dropped > 0 ? `${dropped} dropped so far` : link?.fps ? "none dropped" : ""}
      />
      <Reading
        name="Picture"
        value={link?.width ? `${link.width} × ${link.height}` : "–"}
        note={link?.bitsPerSecond ? bitrate(link.bitsPerSecond) : ""}
      />
      <Spent studio={studio} />
    </dl>
  )
}

function latencyReading(studio: Studio): { latency: string; source: string } {
  const measured = studio.measuredMs.value
  if (measured !== null) return { latency: milliseconds(measured), source: "read in the picture" }
  const estimated = studio.estimatedMs.value
  if (estimated !== null) return { latency: `≈ ${milliseconds(estimated)}`, source: "sum of its parts" }
  return { latency: "–", source: "" }
}

function breakdown(link: Link | null, platformMs: number | undefined): string {
  if (!link || platformMs === undefined) return ""
  const parts = [
    ["encoding here", link.encodeMs],
    ["way there", link.upMs],
    ["platform and pipeline", platformMs],
    ["way back", link.downMs],
    ["buffer and decoding here", link.receiveMs],
  ] as const
  return parts
    .filter(([, ms]) => ms !== null)
    .map(([name, ms]) => `${name} ${milliseconds(ms ?? 0)}`)
    .join(" + ")
}

/** Cost and time go on between the platform's reports, which come once a second. */
function Spent({ studio }: { studio: Studio }) {
  const status = studio.status.value
  const since = useSignal(0)
  useEffect(() => {
    if (!status || !studio.running.value) return undefined
    const heard = performance.now()
    const tick = () => {
      since.value = Math.min(performance.now() - heard, NEWS_MS)
    }
    tick()
    const timer = setInterval(tick, TICK_MS)
    return () => clearInterval(timer)
  }, [status, studio.running.value, since, studio])
  const currency = studio.prices.value.currency
  const ticking = studio.running.value && status?.phase === "live" ? since.value : 0
  const micro =
    status?.cost_micro === undefined ? null : status.cost_micro + (ticking * status.micro_per_second) / 1000
  const ms = status?.session_ms === undefined ? null : status.session_ms + ticking
  return (
    <>
      <Reading
        name="Cost"
        value={micro === null ? "–" : cost(micro, currency)}
        note={status ? pricePerMinute(status.micro_per_second, currency) : ""}
      />
      <Reading
        name="Time"
        value={ms === null ? "–" : duration(ms)}
        note={status?.viewers ? `${status.viewers} watching` : ""}
      />
    </>
  )
}

function Reading({
  name,
  value,
  note,
  title = "",
}: {
  name: string
  value: string
  note: string
  title?: string
}) {
  return (
    <div data-reading={name} {...(title ? { title } : {})}>
      <dt>{name}</dt>
      <dd>
        <span class="figure">{value}</span>
        <span class="note">{note}</span>
      </dd>
    </div>
  )
}
