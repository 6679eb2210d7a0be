// The lines that use this stream from elsewhere, each with a button that copies it.

import { key } from "../api.ts"
import { linesOf } from "../pure/lines.ts"
import { changedFrom } from "../pure/schema.ts"
import type { Studio } from "../studio.ts"
import { CopyButton } from "./copy.tsx"

export function Elsewhere({ studio }: { studio: Studio }) {
  const stream = studio.stream.value
  return (
    <section class="block elsewhere" aria-labelledby="elsewhere">
      <h2 id="elsewhere">From elsewhere</h2>
      {stream ? (
        linesOf(
          stream,
          changedFrom(studio.controls.value, studio.values.value),
          location.origin,
          key() !== "",
        ).map(({ title, lines }) => (
          <div key={title} class="lines">
            <h3>{title}</h3>
            {lines.map(({ label, text }) => (
              <div key={label} class="line">
                <span class="line-label">{label}</span>
                <code>{text}</code>
                <CopyButton text={text} label={`Copy ${label}`} />
              </div>
            ))}
          </div>
        ))
      ) : (
        <p class="muted">
          This stream's addresses for OBS, ffmpeg, WHIP, players and curl appear when it starts.{" "}
          <button
            type="button"
            class="link"
            disabled={!studio.offer.value}
            onClick={() => void studio.prepare()}
          >
            Show them now
          </button>
        </p>
      )}
    </section>
  )
}
