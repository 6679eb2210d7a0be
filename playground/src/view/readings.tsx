// The figures of a running stream, each with a word on where it comes from.

import { useSignal } from "@preact/signals"
import { Info } from "lucide"
import type { ComponentChildren } from "preact"
import { useEffect } from "preact/hooks"
import type { Link } from "../media/link.ts"
import { bitrate, cost, duration, milliseconds, pricePerMinute } from "../pure/format.ts"
import type { Studio } from "../studio.ts"
import { Icon } from "./icon.tsx"

const TICK_MS = 100
const RUNS = new Set(["live", "degraded"])
const NEWS_MS = 2500 // older than this, the platform's figures are not carried on

export function Readings({ studio }: { studio: Studio }) {
  // The platform's still, which is shown until there are pictures, is not what is measured.
  const link = studio.playing.value ? studio.link.value : null
  const status = studio.status.value
  const open = useSignal(false)
  const { latency, source } = latencyReading(studio)
  const parts = partsOf(link, status?.latency_ms)
  const dropped = status?.frames_dropped ?? 0
  return (
    <div class="readings" data-empty={!link && !status}>
      <dl aria-label="Measurements">
        <Reading name="Latency" value={latency} note={source}>
          {parts && (
            <button
              type="button"
              class="quiet info"
              aria-label="What the latency is made of"
              aria-expanded={open.value}
              onClick={() => {
                open.value = !open.value
              }}
            >
              <Icon node={Info} size={15} />
            </button>
          )}
        </Reading>
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
      {open.value && parts && <p class="parts">{parts}</p>}
    </div>
  )
}

function latencyReading(studio: Studio): { latency: string; source: string } {
  const measured = studio.measuredMs.value
  if (measured !== null) return { latency: milliseconds(measured), source: "read in the picture" }
  const estimated = studio.estimatedMs.value
  if (estimated !== null) return { latency: `≥ ${milliseconds(estimated)}`, source: "what is measured of it" }
  return { latency: "–", source: "" }
}

/** What the estimate adds up, in words; empty while a part is unknown. */
function partsOf(link: Link | null, platformMs: number | undefined): string {
  if (!link || platformMs === undefined) return ""
  const parts = [
    ["encoding here", link.encodeMs],
    ["the way there", link.upMs],
    ["platform and pipeline", platformMs],
    ["the way back", link.downMs],
    ["buffer and decoding here", link.receiveMs],
  ] as const
  const known = parts.filter(([, ms]) => ms !== null).map(([name, ms]) => `${name} ${milliseconds(ms ?? 0)}`)
  return `Measured of it: ${known.join(", ")}. Camera and display add theirs.`
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
  const ticking = studio.running.value && RUNS.has(status?.phase ?? "") ? since.value : 0
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

interface ReadingProps {
  readonly name: string
  readonly value: string
  readonly note: string
  readonly children?: ComponentChildren
}

function Reading({ name, value, note, children }: ReadingProps) {
  return (
    <div data-reading={name}>
      <dt>{name}</dt>
      <dd>
        <span class="figure">{value}</span>
        <span class="note">{note}</span>
        {children}
      </dd>
    </div>
  )
}
